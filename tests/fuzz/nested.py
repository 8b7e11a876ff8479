"""Functions within functions: loops, branches, calls, derivatives, maps over devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tests.fuzz.drawing import Drawer, Template, draw_line, is_a

Groups = Sequence[tuple[float, Sequence[Template]]]
_DEEPEST = 2


def nested(groups: Callable[[], Groups]) -> tuple[Template, ...]:
    """The templates; `groups` gives what the functions within are drawn from."""

    def body(wanted: Sequence[Any] | None = None, least: int = 1) -> Callable[[Drawer], str]:
        def draw(d: Drawer) -> str:
            for _ in range(d.between(least, 3)):
                draw_line(d, groups())
            if wanted is None:
                return _some(d)
            return _tuple(_of_type(d, type_) for type_ in wanted)

        return draw

    def called(wrapper: str) -> Template:
        def template(d: Drawer) -> str:
            if d.scope.depth >= _DEEPEST:
                return ""
            names = [d.of("x") for _ in range(d.between(1, 2))]
            function = d.function([d.scope.types[name] for name in names], body(), wrapper)
            return f"{function}({', '.join(names)})"

        return template

    def scan(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        carry, xs = [d.of("x") for _ in range(d.between(0, 2))], []
        length = d.random.choice([0, 1, 2, 3, 3])
        if d.flag:
            xs = [name for name, t in d.scope.types.items() if t.shape[:1] == (length,)][-2:]
        carries = [d.scope.types[name] for name in carry]
        slices = [_row(d.scope.types[name]) for name in xs]
        step = d.function([*carries, *slices], _loop_body(body(), carries))
        count = len(carry)
        parts = f"*c, {'*x' if xs else ''}"
        call = f"lambda c, x: (lambda r: (r[:{count}], r[{count}:]))({step}({parts.rstrip(', ')}))"
        options = f"length={length}, reverse={d.flag}, unroll={d.between(1, 2)}"
        scanned = _names(xs) if xs else "None"
        return f"jax.tree.leaves(lax.scan({call}, {_names(carry)}, {scanned}, {options}))"

    def fori(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        carry = d.of("x")
        type_ = d.scope.types[carry]
        number = jax.ShapeDtypeStruct((), jnp.int32)
        step = d.function([number, type_], lambda inner: _one(inner, body([type_])))
        return f"lax.fori_loop({d.between(0, 1)}, {d.between(0, 3)}, {step}, {carry})"

    def while_(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        carry = d.of("x")
        type_ = d.scope.types[carry]
        step = d.function([type_], lambda inner: _one(inner, body([type_])))
        stop = d.function([type_], lambda inner: _scalar(inner, body()))
        return (
            f"lax.while_loop(lambda c: (c[0] < {d.between(0, 3)}) & {stop}(c[1]), "
            f"lambda c: (c[0] + 1, {step}(c[1])), (0, {carry}))"
        )

    def cond(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        which = d.of("b", rank=0) if d.flag else ""
        names = [d.of("x") for _ in range(d.between(1, 2))]
        types = [d.scope.types[name] for name in names]
        wanted = [d.random.choice(types) for _ in range(d.between(1, 2))]
        count = 2 if which else d.between(1, 3)
        branches = [d.function(types, body(wanted, least=0)) for _ in range(count)]
        if which:
            return f"lax.cond({which}, {', '.join(branches)}, {', '.join(names)})"
        index = f"{d.of('i', rank=0)}.astype('int32')"
        return f"lax.switch({index}, [{', '.join(branches)}], {', '.join(names)})"

    def function_of_one(d: Drawer) -> tuple[str, str]:
        """The name of a float, and a function of it that gives one like it."""
        name = d.of("f")
        types = [d.scope.types[name]]
        return name, d.function(types, lambda inner: _one(inner, body([d.last])))

    def custom_jvp(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        name, function = function_of_one(d)
        made = f"jax.custom_jvp({function})"
        return f"{made}({name})"

    def custom_vjp(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        name, function = function_of_one(d)
        rules = f"lambda x: ({function}(x), x), lambda x, g: (g * x,)"
        made = f"(lambda f: (f.defvjp({rules}), f)[1])(jax.custom_vjp({function}))"
        return f"jax.grad(lambda x: jnp.sum({made}(x)))({name})" if d.flag else f"{made}({name})"

    def vmap(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        names = [d.of("x", least=1)]
        size = d.last.shape[0]
        names += [n for n, t in d.scope.types.items() if t.shape[:1] == (size,)][-1:]
        function = d.function([_row(d.scope.types[name]) for name in names], body())
        out = d.one("0 0 -1")
        return f"jax.vmap({function}, out_axes={out})({', '.join(names)})"

    def derivative(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        name = d.of("f")
        function = d.function([d.last], lambda inner: _real_sum(inner, body()))
        text = d.one("jax.grad({f})({x}) jax.value_and_grad({f})({x}) jax.jvp({f},({x},),({x},))")
        return text.format(f=function, x=name)

    def sharded(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        name = d.of("x", least=1)
        type_ = d.last
        function = d.function([type_], lambda inner: _one(inner, body([type_])))
        spec = d.one("P() P('m')")
        inner = d.one("{f}(x) {f}(x) lax.psum({f}(x),'m') {f}(lax.all_gather(x,'m',tiled=True))")
        inner = inner.format(f=function)
        options = f"mesh=mesh, in_specs={spec}, out_specs={spec}, check_vma=False"
        return f"jax.shard_map(lambda x: {inner}, {options})({name})"

    def mapped(d: Drawer) -> str:
        if d.scope.depth >= _DEEPEST:
            return ""
        name = d.of("x", least=1)
        function = d.function([_row(d.last)], lambda inner: _one(inner, body([_row(d.last)])))
        return f"lax.map({function}, {name})"

    def associative(d: Drawer) -> str:
        name = d.of("f", least=1)
        operation = d.one("jnp.add jnp.multiply jnp.maximum")
        return f"lax.associative_scan({operation}, {name}, reverse={d.flag})"

    return (
        called("@jax.jit"),
        called("@jax.jit"),
        called("@jax.checkpoint"),
        called("@functools.partial(jax.jit, inline=True)"),
        called("@functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)"),
        scan,
        scan,
        fori,
        while_,
        cond,
        cond,
        custom_jvp,
        custom_vjp,
        vmap,
        derivative,
        sharded,
        mapped,
        associative,
    )


def _some(d: Drawer) -> str:
    """One or two of the last values, as a tuple."""
    names = [name for name in d.scope.types][-d.between(1, 2) :]
    return _tuple(names)


def _one(d: Drawer, draw: Callable[[Drawer], str]) -> str:
    """The only item of a tuple that was drawn."""
    return draw(d).removeprefix("(").removesuffix(",)")


def _loop_body(draw: Callable[[Drawer], str], carries: Sequence[Any]) -> Callable[[Drawer], str]:
    """The new carries, then what a loop stacks."""

    def body(d: Drawer) -> str:
        stacked = draw(d).removeprefix("(").removesuffix(")")
        carried = [_of_type(d, type_) for type_ in carries]
        return _tuple([*carried, *(stacked.strip(", ").split(", ") if d.flag else [])])

    return body


def _scalar(d: Drawer, draw: Callable[[Drawer], str]) -> str:
    """A condition."""
    draw(d)
    number = d.of("x")
    return (
        f"jnp.all({number} == {number})" if d.flag else f"(jnp.sum({number}).astype('float32') < 9)"
    )


def _real_sum(d: Drawer, draw: Callable[[Drawer], str]) -> str:
    draw(d)
    return f"jnp.sum({d.of('f')})"


def _of_type(d: Drawer, type_: Any) -> str:
    """A value of the type: one in scope, or another made to fit."""
    same = [
        name
        for name, known in d.scope.types.items()
        if (known.shape, known.dtype, known.weak_type)
        == (type_.shape, type_.dtype, type_.weak_type)
    ]
    if same and (d.random.random() < 0.6 or jnp.issubdtype(type_.dtype, jax.dtypes.prng_key)):
        return d.recent(same)
    numbers = [name for name, known in d.scope.types.items() if is_a(known, "x")]
    real = [name for name in numbers if not jnp.iscomplexobj(d.scope.types[name])]
    if not real:
        return d.recent(same) if same else "0"
    return f"jnp.full({type_.shape}, jnp.sum({d.recent(real)}), '{type_.dtype}')"


def _row(type_: Any) -> Any:
    """The type of one row of an array."""
    return type_.update(shape=type_.shape[1:])


def _names(names: Sequence[str]) -> str:
    return _tuple(names)


def _tuple(items: Any) -> str:
    items = tuple(items)
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
