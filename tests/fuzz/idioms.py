"""What decoders are written with, in many spellings: near enough to the rules to tempt them."""

from __future__ import annotations

from tests.fuzz.drawing import Drawer, Template


def _x(d: Drawer) -> str:
    return d.of("f", least=1)


def _epsilon(d: Drawer) -> str:
    return d.one("1e-6 1e-5 1e-12 0.1 0.0")


def _statistic(d: Drawer, text: str) -> str:
    axis = d.one("-1 -1 -1 0")
    return text.format(x=_x(d), e=_epsilon(d), a=axis, k=d.one("True True False"))


NORMS: tuple[Template, ...] = tuple(
    lambda d, text=text: _statistic(d, text)
    for text in (
        "{x} * lax.rsqrt(jnp.mean({x} * {x}, {a}, keepdims={k}) + {e})",
        "{x} / jnp.sqrt(jnp.mean(jnp.square({x}), {a}, keepdims=True) + {e})",
        "{x} * (jnp.mean({x} ** 2, {a}, keepdims=True) + {e}) ** -0.5",
        "{x} * lax.rsqrt(jnp.maximum(jnp.mean({x} * {x}, {a}, keepdims=True), {e}))",
        "{x} * lax.rsqrt(jnp.sum({x} * {x}, {a}, keepdims=True) / {x}.shape[{a}] + {e})",
        "{x} * lax.rsqrt(jnp.sum({x} * {x}, {a}, keepdims=True) / 3 + {e})",
        "{x} / (jnp.sqrt(jnp.mean({x} * {x}, {a}, keepdims=True)) + {e})",
        "({x} - jnp.mean({x}, {a}, keepdims=True)) * lax.rsqrt("
        "jnp.var({x}, {a}, keepdims=True) + {e})",
        "({x} - jnp.mean({x}, {a}, keepdims=True)) * lax.rsqrt(jnp.maximum(jnp.mean("
        "{x} * {x}, {a}, keepdims=True) - jnp.square(jnp.mean({x}, {a}, keepdims=True)), 0) + {e})",
        "({x} - {x}.mean({a}, keepdims=True)) "
        "/ jnp.sqrt({x}.var({a}, ddof=1, keepdims=True) + {e})",
        "({x} - {x}.mean({a}, keepdims=True)) / ({x}.std({a}, keepdims=True) + {e})",
        "jnp.mean({x} * {x}, {a}) - jnp.mean({x}, {a}) ** 2",
        "{x} / jnp.linalg.norm({x}, axis={a}, keepdims=True)",
        "{x} / jnp.maximum(jnp.linalg.norm({x}, axis={a}, keepdims=True), {e})",
        "jax.nn.standardize({x}, axis={a}, epsilon={e})",
        "({x}.astype('float32') * lax.rsqrt(jnp.mean(jnp.square({x}.astype('float32')), {a}, "
        "keepdims=True) + {e})).astype({x}.dtype)",
        "{x}.astype('int32').astype({x}.dtype) * lax.rsqrt(jnp.mean({x} * {x}, {a}, "
        "keepdims=True) + {e})",
    )
)


def _softmax(d: Drawer, text: str) -> str:
    x = _x(d)
    size = d.last.shape[-1]
    mask = d.one(
        f"jnp.arange({size})<2 jnp.arange({size})<={d.of('i', rank=0)} {x}>0 {x}>-inf "
        f"jnp.arange({size})>5 (jnp.arange({size})&1)==0 True"
    )
    low = d.one("-inf -1e9 -1e30 -1e4 jnp.finfo('float32').min -100.0 0.0")
    return text.format(x=x, m=mask, low=low, a=d.one("-1 -1 -1 0"), s=d.one("0.5 0.125 1e-8 2.0"))


SOFTMAXES: tuple[Template, ...] = tuple(
    lambda d, text=text: _softmax(d, text)
    for text in (
        "jax.nn.softmax({x}, {a})",
        "jax.nn.softmax(jnp.where({m}, {x}, {low}), {a})",
        "jax.nn.softmax(jnp.where({m}, {x} * {s}, {low}), {a})",
        "jax.nn.softmax(jnp.where({m}, {x}, {low}) * {s}, {a})",
        "jax.nn.softmax({x} + jnp.where({m}, 0.0, {low}), {a})",
        "jax.nn.softmax({x} + (1.0 - ({m} + jnp.zeros(1))) * {low}, {a})",
        "jax.nn.softmax({x} + jnp.where({m}, 0.0, {low}) + jnp.where({x} < 1, 0.0, {low}), {a})",
        "jnp.where({m}, jax.nn.softmax(jnp.where({m}, {x}, {low}), {a}), 0)",
        "jax.nn.softmax({x}, {a}, where={m} & ({x} == {x}))",
        "jnp.exp({x} - jnp.max({x}, {a}, keepdims=True)) / jnp.sum(jnp.exp({x} - jnp.max("
        "{x}, {a}, keepdims=True)), {a}, keepdims=True)",
        "jnp.exp({x}) / jnp.sum(jnp.exp({x}), {a}, keepdims=True)",
        "jnp.exp({x}).astype('int32') / jnp.sum(jnp.exp({x}), {a}, keepdims=True)",
        "jnp.exp({x} - lax.stop_gradient({x}.max({a}, keepdims=True))) / (1.0 + jnp.exp({x} - "
        "{x}.max({a}, keepdims=True)).sum({a}, keepdims=True))",
        "jax.nn.log_softmax({x}, {a})",
        "jnp.exp(jax.nn.log_softmax({x}, {a}))",
        "jax.nn.logsumexp({x}, {a})",
        "jax.nn.softmax(jnp.tanh({x} / 30.0) * 30.0, {a})",
        "jax.nn.softmax({x}.astype('float32'), {a}).astype({x}.dtype)",
    )
)

ACTIVATIONS: tuple[Template, ...] = tuple(
    lambda d, text=text: text.format(x=d.of("f"), y=d.like(), n=d.number)
    for text in (
        "jax.nn.silu({x})",
        "{x} * jax.nn.sigmoid({x})",
        "{x} / (1 + jnp.exp(-{x}))",
        "{x} * jax.nn.sigmoid(1.702 * {x})",
        "jnp.clip({x}, -10, 10) * jax.nn.sigmoid({x})",
        "jnp.minimum({x}, 7) * jax.nn.sigmoid({x})",
        "{x} * jax.nn.sigmoid({y})",
        "jax.nn.gelu({x})",
        "jax.nn.gelu({x}, approximate=False)",
        "0.5 * {x} * (1 + jnp.tanh(0.7978845608 * ({x} + 0.044715 * {x} ** 3)))",
        "0.5 * {x} * (1 + lax.erf({x} / np.sqrt(2.0).astype('float32')))",
        "{x} * 0.5 * (1.0 + lax.erf({x} * 0.7071))",
        "jax.nn.relu({x})",
        "jnp.maximum({x}, 0) ** 2",
        "jax.nn.softplus({x})",
        "jax.nn.elu({x})",
        "jax.nn.leaky_relu({x})",
        "jax.nn.relu6({x})",
        "jax.nn.hard_swish({x})",
        "jax.nn.log_sigmoid({x})",
        "jax.nn.selu({x})",
        "jax.nn.mish({x})",
        "jax.nn.silu({x}) * {y}",
        "jnp.where({x} > 0, {x}, 0)",
        "jnp.where({x} > 0, {x}, {n} * {x})",
        "1 / (1 + jnp.exp(-{x}))",
        "0.5 * (jnp.tanh(0.5 * {x}) + 1)",
        "jnp.tanh({x} / {n}) * {n}",
    )
)


def _halves(d: Drawer, text: str) -> str:
    x = _x(d)
    size = d.last.shape[-1]
    if size < 2 or size % 2:
        return ""
    half = size // 2
    angle = d.one("jnp.arange({h})*0.5 jnp.arange({h})*1.0 {i}*(10.0**-jnp.arange({h}))")
    angle = angle.format(h=half, i=d.of("i", rank=0))
    return text.format(x=x, h=half, cos=f"jnp.cos({angle})", sin=f"jnp.sin({angle})")


ROPES: tuple[Template, ...] = tuple(
    lambda d, text=text: _halves(d, text)
    for text in (
        "jnp.concatenate([{x}[..., :{h}] * {cos} - {x}[..., {h}:] * {sin}, "
        "{x}[..., {h}:] * {cos} + {x}[..., :{h}] * {sin}], -1)",
        "jnp.concatenate([{x}[..., :{h}] * {cos} + {x}[..., {h}:] * {sin}, "
        "{x}[..., {h}:] * {cos} - {x}[..., :{h}] * {sin}], -1)",
        "{x} * jnp.tile({cos}, 2) + jnp.concatenate([-{x}[..., {h}:], {x}[..., :{h}]], -1) * "
        "jnp.tile({sin}, 2)",
        "jnp.stack([{x}[..., ::2] * {cos} - {x}[..., 1::2] * {sin}, {x}[..., 1::2] * {cos} + "
        "{x}[..., ::2] * {sin}], -1).reshape({x}.shape)",
        "jnp.concatenate(jnp.split({x}, 2, -1)[::-1], -1)",
        "jnp.roll({x}, {h}, -1) * {x}",
    )
)

POSITIONS: tuple[Template, ...] = (
    lambda d: f"jnp.where({d.of('i')} < 0, {_again(d)} + 8, {_again(d)})",
    lambda d: f"jnp.where(({d.of('i')} < 0) & {d.of('b')}, {d.of('i')} + 8, {d.of('i')})",
    lambda d: f"lax.rem({d.of('i')}, jnp.asarray({d.between(1, 4)}, {d.dtype_of_last!r}))",
    lambda d: f"jnp.arange({d.between(1, 4)})[:, None] >= jnp.arange({d.between(1, 4)})[None]",
    lambda d: f"jnp.tril(jnp.ones(({d.between(1, 4)}, {d.between(1, 4)}), bool))",
    lambda d: f"(jnp.arange(4) <= {d.of('i', rank=0)}) & (jnp.arange(4) > {_again(d)} - 2)",
    lambda d: f"jnp.where({d.of('b')}, {d.number}, {d.number}).astype({d.dtype!r})",
    lambda d: f"jnp.where({d.of('b')}, 0.5, 0.0).astype('int32') != 0",
    lambda d: f"jnp.where({d.of('b')}, 300, 0).astype('int8') > 100",
    lambda d: f"(1.0 - {d.of('b')}.astype('float32')) * {d.one('-1e9 -inf inf -1e30')}",
    lambda d: f"(-{d.of('i')}) // {d.one('2 3 -2')}",
    lambda d: f"{d.of('f', rank=2)}[{d.of('i', rank=1)}]",
    lambda d: f"jnp.clip({d.of('i')}, 0, {d.between(0, 4)})",
    lambda d: f"jnp.cumsum({d.of('b', least=1)}, -1)",
)


def _again(d: Drawer) -> str:
    """The last name once more: a value of its own type."""
    return next(name for name, type_ in d.scope.types.items() if type_ is d.last)


ATTENTION: tuple[Template, ...] = (
    lambda d: (
        f"jax.nn.softmax(jnp.where(jnp.arange({d.of('f', rank=2) and d.last.shape[0]}) <= "
        f"{d.of('i', rank=0)}, {_scores(d)}, -inf), -1)"
    ),
    lambda d: _attention(d),
    lambda d: _attention(d),
)


def _scores(d: Drawer) -> str:
    return f"{d.of('f', rank=2)} @ {d.like()}.T"


def _attention(d: Drawer) -> str:
    q = d.of("f", rank=2)
    rows, size = d.last.shape
    k, v = d.like(), d.like()
    scale = d.one(f"*{max(size, 1)}**-0.5 /2.0 *1e-8 *1.0")
    scores = f"({q} @ {k}.T){scale}"
    if d.flag:
        mask, fill = f"jnp.tril(jnp.ones(({rows}, {rows}), bool))", d.one("-inf -1e9 -1e30")
        scores = f"jnp.where({mask}, {scores}, {fill})"
    return f"jax.nn.softmax({scores}, -1) @ {v}"
