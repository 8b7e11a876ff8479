"""For attention and what it is made of: softmaxes, and norms beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dialect.ops.vocabulary import Traced
from rewrite.ir import Symbol
from tests.more_examples.forms import Example, left_alone, making
from tests.scaled import in_steps

NORM = ("f32[2,8]", "f32[8]")
Q, K, V, MASK = "f32[3,4]", "f32[5,4]", "f32[5,6]", "bool[3,5]"


HALF = ("bf16[3,4]", "bf16[5,4]", "f32[5,6]")


def _attention(change: Callable[..., Any], *types: str, of: Any = (Q, K, V)) -> Example:
    """Attention with something done to the logits."""
    return (
        lambda q, k, v, *more: jax.nn.softmax(change(q @ k.T, *more)) @ v,
        (*of, *types),
    )


def _giving(name: str, change: Callable[..., Any], *types: str, of: Any = (Q, K, V)) -> Example:
    """Attention that is given just this operand."""
    example, types = _attention(change, *types, of=of)
    return making("attend", example, given=name), types


def _inner(dtype: str, change: Callable[..., Any]) -> Example:
    """Attention in half precision whose logits are computed in another dtype."""
    example, types = _attention(change, of=HALF)
    return making("attend", example, inner=Symbol(dtype)), types


def _of_weights(change: Callable[..., Any], *types: str, value: str = V) -> Example:
    """Attention with something done to the weights."""
    return (
        lambda q, k, v, *more: change(jax.nn.softmax(q @ k.T), *more) @ v,
        (Q, K, value, *types),
    )


def _of_logits(shares: Callable[..., Any], *types: str) -> Example:
    """Attention whose weights are made of the logits."""
    return lambda q, k, v, *more: shares(q @ k.T, *more) @ v, (Q, K, V, *types)


def _in_merged_heads() -> Example:
    """Attention of groups of heads, whose softmax is over all heads."""

    def example(q: Any, k: Any, v: Any, b: Any) -> Any:
        x = jnp.einsum("tngk,snk->ngts", q, k).reshape(4, 3, 5) + b
        shares = jax.nn.softmax(x).reshape(2, 2, 3, 5)
        return jnp.einsum("ngts,snv->tngv", shares, v)

    return example, ("f32[3,2,2,4]", "f32[5,2,4]", "f32[5,2,6]", "f32[4,1,5]")


def _with_sinks(
    shares: Callable[..., Any], sink: str = "f32[3,1]", value: str = V, query: str = Q
) -> Example:
    """Attention whose weights are made of the logits and of a sink."""
    return lambda q, k, v, s: shares(q @ k.T, s) @ v, (query, K, value, sink)


def _beside(*parts: Any) -> Any:
    return jnp.concatenate(parts, axis=-1)


def _of_query(change: Callable[..., Any], *types: str, query: str = Q) -> Example:
    """Attention with something done to the query."""
    return lambda q, k, v, *more: jax.nn.softmax(change(q, *more) @ k.T) @ v, (query, K, V, *types)


def _in_heads(split: Callable[[Any], Any], dtype: str = "f32", width: int = 8) -> Example:
    """Attention over heads that query and key are split into."""

    def example(q: Any, k: Any, v: Any) -> Any:
        shares = jax.nn.softmax(jnp.einsum("thk,shk->hts", split(q), split(k)))
        return jnp.einsum("hts,shv->thv", shares, v)

    return example, (f"{dtype}[3,{width}]", f"{dtype}[5,{width}]", "f32[5,2,6]")


def _widened(types: tuple[str, str], to: str = "float32", product: str = "float32") -> Example:
    """Attention of a query and a key that stay converted: not to what multiplies them anyway, or
    not from the same floats."""

    def example(q: Any, k: Any, v: Any) -> Any:
        q, k = q.astype(to), k.astype(to)
        return jax.nn.softmax(jnp.matmul(q, k.T, preferred_element_type=product)) @ v

    return making("convert_element_type", example), (*types, "f32[5,6]")


def _called(
    axes: str, time: int, of_query: tuple[int, ...], of_key: tuple[int, ...], batch: int = 3
) -> Example:
    """Attention in a batch whose axes get these letters."""

    def example(q: Any, k: Any, v: Any) -> Any:
        heads = "h" if of_key else ""
        shares = jax.nn.softmax(jnp.einsum(f"bthk,bs{heads}k->bhts", q, k))
        return jnp.einsum(f"bhts,bs{heads}v->bthv", shares, v)

    sizes = (str(each) for each in (time, *of_query))
    shared = "".join(f"{size}," for size in of_key)
    types = (
        f"f32[{batch},{','.join(sizes)},4]",
        f"f32[{batch},5,{shared}4]",
        f"f32[{batch},5,{shared}6]",
    )
    return making("attend", example, axes=axes), types


def _in_batches(count: int) -> Example:
    """Attention of one query in each batch, along so many axes."""
    batch = "2," * count

    def example(q: Any, k: Any, v: Any) -> Any:
        shares = jax.nn.softmax(jnp.einsum("...k,...sk->...s", q, k))
        return jnp.einsum("...s,...sv->...v", shares, v)

    return example, (f"f32[{batch}2]", f"f32[{batch}2,2]", f"f32[{batch}2,2]")


def _with_ones(rank: int) -> Example:
    """Attention of a query of so many axes, most of size one."""
    ones = "1," * (rank - 2)
    return (
        lambda q, k, v: jnp.tensordot(jax.nn.softmax(jnp.tensordot(q, k, ((-1,), (-1,)))), v, 1),
        (f"f32[{ones}3,4]", K, V),
    )


def _of_pairs(second: Callable[..., Any], *types: str, given: str = "query_2 key_2") -> Example:
    """Attention whose logits are a sum of products."""

    def example(q: Any, k: Any, v: Any, *more: Any) -> Any:
        x = jnp.einsum("bthk,bshk->bhts", q, k) + second(*more)
        return jnp.einsum("bhts,bshv->bthv", jax.nn.softmax(x), v)

    made = making("attend", example, given=given) if given else left_alone(example)
    return made, ("f32[2,3,4,5]", "f32[2,7,4,5]", "f32[2,7,4,6]", *types)


_BIASED = "bias query_2 key_2"
_FOUR = "query_2 key_2 query_3 key_3 query_4 key_4"
_SECOND = ("f32[2,3,4,2]", "f32[2,7,2]")


def _rotary(q: Any, k: Any) -> Any:
    return jnp.einsum("bthk,bsk->bhts", q, k)


def _rotaries(*arrays: Any) -> Any:
    """A sum of products of queries and keys, in turn."""
    return sum(map(_rotary, arrays[2::2], arrays[3::2]), start=_rotary(*arrays[:2]))


def _cut_of_widened(q: Any, k: Any, v: Any, i: Any) -> Any:
    """Attention of some queries, from a place on, that stay converted."""
    q = lax.dynamic_slice(q.astype("float32"), (i, 0), (3, 4))
    return jax.nn.softmax(q @ k.astype("float32").T) @ v


def _rounded(**how: Any) -> Example:
    """Attention whose weights are rounded."""
    return lambda q, k, v: in_steps(jax.nn.softmax(q @ k.T), **how) @ v, (Q, K, V)


def _shares(exponential: Callable[..., Any], *types: str) -> Example:
    """What a function makes of logits, divided by its sum."""

    def example(x: Any, *more: Any) -> Any:
        made = exponential(x, *more)
        return made / jnp.sum(made, axis=-1, keepdims=True)

    return example, ("f32[2,8]", *types)


def _shifted(example: Example) -> Example:
    """Shares of which what is subtracted has to stay."""
    return making("sub", example[0]), example[1]


def _most(x: Any, axis: int = -1) -> Any:
    return jnp.max(x, axis=axis, keepdims=True)


def _sum(x: Any) -> Any:
    return jnp.sum(x, axis=-1, keepdims=True)


def _log_sum(x: Any) -> Any:
    return jnp.log(_sum(jnp.exp(x)))


_SINK = ("f32[2,8]", "f32[2,1]")


def _sinking(shift: Callable[..., Any], other: Callable[..., Any] | None = None) -> Example:
    """Shares beside a sink, from both of which something is subtracted."""

    def example(x: Any, s: Any) -> Any:
        shares = jnp.exp(x - shift(x, s))
        return shares / (_sum(shares) + jnp.exp(s - (other or shift)(x, s)))

    return example, _SINK


def _finite(x: Any, of: Any = None) -> Any:
    """x, or 0 where it, or another array, is infinite."""
    return _where(jnp.isfinite(x if of is None else of), x, 0.0)


def _where(mask: Any, yes: Any, no: Any) -> Any:
    """A select between two arrays of one dtype."""
    whole = jnp.broadcast_shapes(mask.shape, jnp.shape(yes), jnp.shape(no))
    return jnp.where(mask, *(jnp.full(whole, each, "float32") for each in (yes, no)))


def _root(x: Any, axis: int = -1, keepdims: bool = True) -> Any:
    return lax.rsqrt(jnp.mean(x * x, axis, keepdims=keepdims) + 1e-5)


MORE: dict[str, list[Example]] = {
    "attend": [
        _attention(lambda x: x / 4),
        _attention(lambda x: x / 255),
        _attention(lambda x, m: jnp.where(m, x, -jnp.inf), MASK),
        _attention(lambda x, m: jnp.where(m, -1e9, x / 2), MASK),
        # masked with a number that is known only when the program runs
        _giving("mask fill", lambda x, m, f: jnp.where(m, x / 2, f), MASK, "f32[]"),
        _giving("mask fill", lambda x, m, f: jnp.where(m, f, x), MASK, "f32[1,1]"),
        _giving(
            "mask fill bias",
            lambda x, m, f, b: jnp.where(m, x + b, f[1]),
            MASK,
            "f32[2]",
            "f32[3,5]",
        ),
        _giving(
            "mask fill", lambda x, m, n, f: jnp.where(m, jnp.where(n, f, x), f), MASK, MASK, "f32[]"
        ),
        _attention(lambda x, m, n, f: jnp.where(m, jnp.where(n, x, f), -1e9), MASK, MASK, "f32[]"),
        _attention(lambda x, m, n, f: jnp.where(m, jnp.where(n, x, -1e9), f), MASK, MASK, "f32[]"),
        _attention(lambda x, m, f: jnp.where(m, x, f) * 2, MASK, "f32[]"),
        _attention(lambda x, m, f: jnp.where(m, x, f), MASK, "f32[3,1]"),
        _attention(lambda x, m: x + jnp.where(m, 0, -1e9), MASK),
        _attention(lambda x, b: x * 0.5 + b, "f32[3,5]"),
        _attention(lambda x, b, c: (b + x - c) * 0.5, "f32[3,5]", "f32[1,5]"),
        _attention(lambda x, b, m: x + b + jnp.where(m, 0, -1e9), "f32[3,5]", MASK),
        _attention(lambda x, m, b: jnp.where(m, x + b, -1e9), MASK, "f32[3,5]"),
        _attention(lambda x: jnp.tanh(x / 3) * 3),
        _attention(lambda x, b: (jnp.tanh(x) + b) * 3, "f32[3,5]"),
        _attention(lambda x, m, n: jnp.where(m & ~n, x, -jnp.inf), MASK, MASK),
        _attention(lambda x, m, n: jnp.where(m, jnp.where(n, -1e9, x), -1e9), MASK, MASK),
        (lambda q, k, v: jax.nn.softmax((q * 0.5) @ (k / 4).T) @ v, (Q, K, V)),
        (
            lambda q, k, v: jax.nn.softmax((0.5 * q).astype("bfloat16") @ k.T) @ v,
            (Q, "bf16[5,4]", "bf16[5,6]"),
        ),
        (
            lambda q, k, v: (
                jax.nn.softmax((q @ k.T).astype("float32") * 0.5).astype("bfloat16") @ v
            ),
            ("bf16[3,4]", "bf16[5,4]", "bf16[5,6]"),
        ),
        (
            lambda q, k, v, b: (
                jax.nn.softmax(q.astype("float32") @ k.astype("float32").T + b)
                @ v.astype("float32")
            ),
            ("bf16[3,4]", "bf16[5,4]", "bf16[5,6]", "bf16[3,5]"),
        ),
        (
            lambda q, k, v: jnp.einsum(
                "bhts,bshv->bthv", jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k)), v
            ),
            ("f32[2,3,2,4]", "f32[2,5,2,4]", "f32[2,5,2,6]"),
        ),
        (lambda q, k, v: jax.nn.softmax(q @ k.T) @ v, ("f32[1,4]", K, "f32[5,1]")),
        (
            lambda q, k, v, m: jnp.where(m, jax.nn.softmax(jnp.where(m, q @ k.T, -1e9)), 0) @ v,
            (Q, K, V, MASK),
        ),
        (
            lambda q, k, v, s: jax.nn.softmax(jnp.concatenate([q @ k.T, s], axis=-1))[:, :-1] @ v,
            (Q, K, V, "f32[3,1]"),
        ),
        (
            lambda q, k, v, s: jax.nn.softmax(jnp.concatenate([s, q @ k.T], axis=-1))[:, 1:] @ v,
            (Q, K, V, "f32[3,1]"),
        ),
        # masks and biases beside each other
        _attention(lambda x, m, n: jnp.where(m, x + jnp.where(n, 0, -1e9), -1e9), MASK, MASK),
        _attention(lambda x, m, b: x + jnp.where(m, 0, -1e9) + b, MASK, "f32[3,5]"),
        _attention(lambda x, b: (x + b).astype("float32"), "bf16[3,5]", of=HALF),
        _attention(lambda x, b, c: (x + b).astype("float32") + c, "bf16[3,5]", "f32[3,5]", of=HALF),
        _attention(lambda x, b, m: x + (b + jnp.where(m, 0, -1e9)), "f32[3,5]", MASK),
        _attention(lambda x, m: x + jnp.where(m, -1e9, 0), MASK),
        _attention(lambda x, m, n: jnp.where(m | n, x, -jnp.inf), MASK, MASK),
        _attention(lambda x, m: x + jnp.where(m, 0.5, -1e9), MASK),
        _giving("bias", lambda x, m: x + jnp.where(m, 0, -3.0), MASK),
        _giving(
            "mask",
            lambda x, m: x + jnp.where(m, jnp.float16(0), jnp.float16(-65504)),
            MASK,
            of=("f16[3,4]", "f16[5,4]", V),
        ),
        _attention(lambda x: 0.5 * x),
        # sums of products
        _of_pairs(_rotary, *_SECOND),
        _of_pairs(lambda q, k: 0.5 * _rotary(q, k) * 2, *_SECOND),
        _of_pairs(lambda q, k, b: _rotary(q, k) + b, *_SECOND, "f32[3,7]", given=_BIASED),
        _of_pairs(
            lambda q, k, p, r: _rotary(q, k) + _rotary(p, r),
            *_SECOND,
            *_SECOND,
            given="query_2 key_2 query_3 key_3",
        ),
        _of_pairs(lambda q, k: 2 * _rotary(q, k), *_SECOND, given=""),
        _of_pairs(lambda q, k: jnp.tanh(_rotary(q, k)), *_SECOND, given=""),
        _of_pairs(lambda q, k: _rotary(2 * q, k), *_SECOND),
        _of_pairs(lambda *more: _rotaries(*more), *_SECOND * 3, given=_FOUR),
        _of_pairs(lambda *more: _rotaries(*more), *_SECOND * 4, given=""),
        _of_pairs(
            lambda q, k: jnp.einsum("bthkm,bskm->bhts", q, k),
            *("f32[2,3,4,2,3]", "f32[2,7,2,3]"),
            given="",
        ),
        _of_pairs(
            lambda q, k: jnp.einsum("bthk,bskz->bhts", q, k),
            *("f32[2,3,4,2]", "f32[2,7,2,3]"),
        ),
        _of_pairs(lambda q, k: jnp.tensordot(q, k, 1), "f32[2,4,3,2]", "f32[2,7]"),
        _of_pairs(
            lambda q, k: jnp.einsum("bhsk,tsk->bhts", q, k),
            "f32[2,4,7,2]",
            "f32[3,7,2]",
            given="",
        ),
        _attention(lambda x, m, b: x + jnp.where(m, b, -1e9), MASK, "f32[3,5]"),
        _of_logits(lambda x: jnp.exp(x) / _sum(jnp.exp(x))),
        _of_logits(
            lambda x, s, m: jnp.where(m, jax.nn.softmax(_beside(jnp.where(m, x, -1e9), s)), 0)[
                :, :5
            ],
            "f32[3,1]",
            "bool[3,1]",
        ),
        _in_merged_heads(),
        _attention(lambda x: jnp.where(x == x, x, x).reshape(3, 1, 5)[:, 0]),
        _inner("f32", lambda x: x.astype("float32") * 0.5),
        _inner("f32", lambda x: (x.astype("float32") * 0.5).astype("bfloat16")),
        (
            lambda q, k, v, m: jnp.where(m, 0, jax.nn.softmax(jnp.where(m, -1e9, q @ k.T))) @ v,
            (Q, K, V, MASK),
        ),
        _with_sinks(lambda x, s: jax.nn.softmax(_beside(x, s))[:, :5], "f32[3,2]"),
        _with_sinks(lambda x, s: (y := jnp.exp(x)) / (_sum(y) + jnp.exp(_finite(s)))),
        # queries that are scaled somewhere, or not by a number
        _of_query(lambda q, w: q * w, "f32[4]"),
        _of_query(lambda q: 2 / q),
        _of_query(lambda q, c, s: Traced["rope"](q * 3, c, s), "f32[3,2]", "f32[3,2]"),
        _of_query(lambda q: (q * 0.5)[:, 1:5], query="f32[3,8]"),
        _of_query(lambda q: jnp.full((3, 4), 0.5) * q, query="f32[1,4]"),
        _of_query(lambda q: jnp.sin(q * 0.5)),
        _of_query(lambda q, r: q * 0.5 + r, "f32[3,4]"),
        _of_query(lambda q: (q * 2).astype("float32"), query="i32[3,4]"),
        _in_heads(lambda x: (x * 0.5).reshape(x.shape[0], 2, 4)),
        _of_query(lambda q: (q * 0.5)[:, :, None].reshape(1, 3, 4)[0]),
        _of_query(lambda q: (q[:, None] * 0.5).reshape(3, 4)),
        _in_heads(lambda x: jnp.transpose((x * 0.5).reshape(2, x.shape[0], 4), (1, 0, 2))),
        # queries and keys that are widened
        _in_heads(lambda x: x.astype("float32").reshape(x.shape[0], 2, 4), "bf16"),
        _in_heads(lambda x: x[:, 1:9].astype("float32").reshape(x.shape[0], 2, 4), "bf16", 9),
        _in_heads(lambda x: x.astype("float32")[:, 1:9].reshape(x.shape[0], 2, 4), "bf16", 9),
        _widened(("bf16[3,4]", "f16[5,4]")),
        (_cut_of_widened, ("bf16[6,4]", "bf16[5,4]", V, "i32[]")),
        _widened(("f16[3,4]", "f16[5,4]"), "bfloat16"),
        _widened(("i8[3,4]", "i8[5,4]")),
        _widened(("bf16[3,4]", "bf16[5,4]"), "float16", "float16"),
        # how the axes are called
        _called("b t g k, b s g k, b s g v -> b t g v", 3, (2,), (2,)),
        _called("b t j k, b s k, b s v -> b t j v", 3, (2,), ()),
        _called("b 1 g k, b s g k, b s g v -> b 1 g v", 1, (2,), (2,)),
        _called("1 t b k, 1 s b k, 1 s b v -> 1 t b v", 3, (2,), (2,), batch=1),
        _called("b 1 j k, b s k, b s v -> b 1 j v", 1, (2,), ()),
        # as many axes as there are letters, and more
        _in_batches(9),
        _with_ones(8),
        # weights that are rounded
        _rounded(axes=(1,)),
        # near misses of logits
        (left_alone(_attention(lambda x: x * -2.0)[0]), (Q, K, V)),
        (left_alone(_attention(lambda x: x * jnp.inf)[0]), (Q, K, V)),
        (left_alone(_attention(lambda x: x / jnp.inf)[0]), (Q, K, V)),
        (
            left_alone(
                lambda q, k, v: (
                    jax.nn.softmax(jnp.matmul(q, k.T, preferred_element_type="float32")) @ v
                )
            ),
            ("i8[3,4]", "i8[5,4]", V),
        ),
        _attention(lambda x: 2 / x),
        _attention(lambda x, b: x * b, "f32[3,5]"),
        _attention(lambda x, b: b - x, "f32[3,5]"),
        _attention(lambda x, b: x + b, "f32[3,5]", of=("f32[1,4]", K, V)),
        _attention(lambda x, q, k: x + q @ k.T, Q, K),
        _attention(lambda x: jax.nn.softmax(x)),
        _attention(lambda x, m: lax.select_n(m, x), MASK),
        _attention(lambda x, i: lax.select_n(i, jnp.full((3, 5), -1e9), x), "i32[3,5]"),
        _attention(lambda x: x, of=(Q, "f32[1,4]", "f32[1,6]")),
        _of_weights(lambda x: x * 0.5),
        _of_weights(jnp.tanh),
        _of_weights(lambda x, b: x + b, "f32[3,5]"),
        _of_weights(lambda x: x[:, :3], value="f32[3,6]"),
        _of_weights(lambda x, s: _beside(x, s), "f32[3,1]", value="f32[6,6]"),
        *(
            _with_sinks(shares)
            for shares in (
                lambda x, s: jax.nn.softmax(_beside(x, s) * 0.5)[:, :-1],
                lambda x, s: jax.nn.softmax(jnp.tanh(_beside(x, s)))[:, :-1],
                lambda x, s: jax.nn.softmax(_beside(x, s) + jnp.arange(6.0))[:, :-1],
                lambda x, s: jax.nn.softmax(_beside(x, s) - s)[:, :-1],
                lambda x, s: jax.nn.softmax(jnp.where(_beside(x, s) > 0, _beside(x, s), -1e9))[
                    :, :-1
                ],
                lambda x, s: jnp.where(_beside(x, s) > 0, jax.nn.softmax(_beside(x, s)), 0)[:, :-1],
                lambda x, s: jax.nn.softmax(_beside(s, x, s))[:, 1:-1],
                lambda x, s: jax.nn.softmax(_beside(_beside(x, s), s))[:, :-2],
                lambda x, s: jax.nn.softmax(_beside(x, s)[:, :-1]),
                lambda x, s: jax.nn.softmax(_beside(x, s))[:, ::-1][:, 1:],
                lambda x, s: jax.nn.softmax(_beside(x, s)[:, None])[:, 0, :-1],
                lambda x, s: jax.nn.softmax(_beside(x, s))[1:2, :-1],
            )
        ),
        *(
            (left_alone(example), types)
            for example, types in (
                _of_logits(lambda x, s: jnp.exp(x) / (_sum(jnp.exp(x)) + jnp.exp(s)), "f32[3,1]"),
                _of_logits(lambda x: jax.nn.softmax(_beside(x, x))[:, :5]),
                (
                    lambda q, k, v: jnp.einsum(
                        "bts,bsv->btv", jax.nn.softmax(jnp.einsum("btk,sk->bts", q, k)), v
                    ),
                    ("f32[2,3,4]", K, "f32[2,5,6]"),
                ),
                _attention(lambda x, m, b: jnp.where(m, x, -5.0) + b, MASK, "f32[3,5]"),
            )
        ),
        _with_sinks(lambda x, s: jax.nn.softmax(_beside(x, s))[:, 2:4], value="f32[2,6]"),
        _with_sinks(lambda x, s: jax.nn.softmax(_beside(x, s))[:, :5:2], value="f32[3,6]"),
        _with_sinks(lambda x, s: jax.nn.softmax(_beside(x, x * s))[:, :5], value="f32[5,6]"),
        _with_sinks(lambda x, s: jax.nn.softmax(jnp.concatenate([x, s]))[:3], "f32[2,5]"),
        _with_sinks(
            lambda x, s: jax.nn.softmax(jnp.concatenate([x, s]))[:1], "f32[2,5]", query="f32[1,4]"
        ),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _rounded(axes=(0,)),
                _rounded(axes=(0, 1)),
                _rounded(axes=(1,), form="fp8"),
            )
        ),
        (lambda q, k, v: jax.nn.softmax(q @ k.T, axis=0) @ v, (Q, K, V)),
        (lambda q, k, v: jax.nn.softmax(q @ k.T).T @ v, (Q, K, "f32[3,6]")),
        (lambda q, k, v: jnp.exp(q @ k.T) @ v, (Q, K, V)),
        (lambda q, k, v: jax.nn.softmax(jnp.sin(q @ k.T)) @ v, (Q, K, V)),
        (lambda q, k, v: jax.nn.softmax(q @ k.T).astype("int32").astype("float32") @ v, (Q, K, V)),
        _attention(lambda x, m, n: jnp.where(m, jnp.where(n, x, -1e9), -5.0), MASK, MASK),
        _attention(lambda x, m: jnp.tanh(jnp.where(m, x, -1.0)), MASK),
        _attention(lambda x, b: jnp.tanh(x + b), "f32[3,5]"),
        _attention(lambda x: jnp.tanh(jnp.tanh(x) * 2)),
        _attention(lambda x, m, b: jnp.where(m, x, -1e9) + b, MASK, "f32[3,5]"),
        _attention(lambda x, m: jnp.where(m, x, -1.0) * 0.5, MASK),
        _attention(lambda x: x * -2.0),
        _attention(lambda x: x + x.T[:5, :5] if x.shape == (5, 5) else x + jnp.sin(x)),
        (
            lambda q, k, v, s: jax.nn.softmax(jnp.concatenate([q @ k.T, s], axis=-1)) @ v,
            (Q, K, "f32[6,6]", "f32[3,1]"),
        ),
        (
            lambda q, k, v, s: jax.nn.softmax(jnp.concatenate([q @ k.T, s], axis=-1))[:, 1:] @ v,
            (Q, K, V, "f32[3,1]"),
        ),
        (
            lambda q, k, v, m: jnp.where(m, jax.nn.softmax(q @ k.T), 0) @ v,
            (Q, K, V, MASK),
        ),
        (
            lambda q, k, v, m: jnp.where(m, jax.nn.softmax(jnp.where(m, q @ k.T, -1.0)), 2.0) @ v,
            (Q, K, V, MASK),
        ),
        (
            lambda q, k, v: jax.nn.softmax(jnp.einsum("thk,shk->ts", q, k)) @ v,
            ("f32[3,2,4]", "f32[5,2,4]", V),
        ),
        (
            lambda q, k, v: jnp.einsum(
                "tgs,sv->tgv", jax.nn.softmax(jnp.einsum("tk,sgk->tgs", q, k)), v
            ),
            (Q, "f32[5,2,4]", V),
        ),
        (
            lambda q, k, v: jnp.einsum(
                "hts,hsv->tv", jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k)), v
            ),
            ("f32[3,2,4]", "f32[5,2,4]", "f32[2,5,6]"),
        ),
        (left_alone(lambda q, k, v: jax.nn.softmax(q @ k.T) @ v), ("f32[0,4]", K, V)),
        (
            lambda q, k, v: jax.nn.softmax((q @ k.T).reshape(3, 2, 3)).reshape(3, 6) @ v,
            (Q, "f32[6,4]", "f32[6,6]"),
        ),
        (
            lambda q, k, v: jnp.einsum(
                "ts,sv->tsv", jax.nn.softmax(jnp.einsum("tsk,tsk->ts", q, k)), v
            ),
            ("f32[3,5,4]", "f32[3,5,4]", V),
        ),
        (lambda q, k, v: jax.nn.softmax(q @ k.T) @ v, ("f32[3,1]", "f32[5,1]", V)),
        (
            lambda q, k, v: jnp.einsum("ts,shv->thv", jax.nn.softmax(q @ k.T), v),
            ("f32[1,4]", K, "f32[5,2,3]"),
        ),
        (  # a mixture of experts by a softmax over all of them: k is the router
            left_alone(
                lambda q, k, v: jnp.einsum(
                    "ts,sdv,td->tv", jax.nn.softmax(q @ k.T), v, jnp.tanh(q), optimize=False
                )
            ),
            (Q, K, "f32[5,4,6]"),
        ),
        (
            left_alone(
                lambda q, k, v: jnp.matmul(
                    jax.nn.softmax(q @ k.T), v, preferred_element_type="float32"
                )
            ),
            (Q, K, "i8[5,6]"),
        ),
    ],
    "centred": [
        (lambda x, w: (w := jnp.tanh(w)) * x - w * jnp.mean(x, -1, keepdims=True), NORM),
        (lambda x, w: jnp.mean(x, -1, keepdims=True) * (w := jnp.tanh(w)) - x * w, NORM),
        (lambda x, w: x * (w := jnp.tanh(w)) + (-jnp.mean(x, -1))[:, None] * w, NORM),
        (
            lambda x, w, b: (
                x * (w := jnp.tanh(w))
                + (jnp.sin(b) + (jnp.cos(b) + (b - jnp.mean(x, -1, keepdims=True) * w)))
            ),
            ("f32[2,8]", "f32[8]", "f32[8]"),
        ),
        (
            lambda x, w, b: (
                (
                    ((b - jnp.mean(x, -1, keepdims=True) * (w := jnp.tanh(w))) + jnp.cos(b))
                    + jnp.sin(b)
                )
                + x * w
            ),
            ("f32[2,8]", "f32[8]", "f32[8]"),
        ),
        # where a parameter may be taken to be finite
        *(
            (lambda x, w: w * x - w * jnp.mean(x, -1, keepdims=True), (f"f32[{rows},8]", "f32[8]"))
            for rows in (2, 3, 4, 5, 6)
        ),
        # rounded before they are subtracted
        (
            lambda x, w: (
                (x * (w := jnp.tanh(w))).astype("bfloat16")
                - (jnp.mean(x, -1, keepdims=True) * w).astype("bfloat16")
            ),
            NORM,
        ),
    ],
    "division_before_product": [
        (
            lambda x, v, m: (
                ((y := _where(m, jnp.exp(x), 0.0)) @ v) / jnp.sum(y, axis=-1, keepdims=True)
            ),
            ("f32[2,8]", "f32[8,3]", "bool[2,8]"),
        ),
        (
            lambda x, v: (
                (jnp.exp(x).astype("bfloat16") @ v).astype("float32")
                / jnp.sum(jnp.exp(x), axis=-1, keepdims=True)
            ),
            ("f32[2,8]", "bf16[8,3]"),
        ),
        (lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x), axis=-1), ("f32[2,8]", "f32[8]")),
        (
            lambda x, v: (jnp.exp(x) @ v).reshape(2, 1, 3) / jnp.sum(jnp.exp(x), -1)[:, None, None],
            ("f32[2,8]", "f32[8,3]"),
        ),
        (
            lambda x, v: (
                jnp.einsum("bhts,bshv->bthv", y := jnp.exp(x), v)
                / jnp.swapaxes(jnp.sum(y, -1), 1, 2)[..., None]
            ),
            ("f32[2,3,4,5]", "f32[2,5,3,6]"),
        ),
        (
            lambda x, v: jnp.einsum("sv,ts->tv", v, jnp.exp(x)) / _sum(jnp.exp(x)),
            ("f32[2,8]", "f32[8,3]"),
        ),
        (lambda x, y: (jnp.exp(x) @ jnp.exp(y)) / jnp.sum(jnp.exp(y), 0), ("f32[2,8]", "f32[8,3]")),
        (
            lambda x, v, s: (jnp.exp(x) @ v) / (_sum(jnp.exp(x)) + jnp.exp(s)),
            ("f32[2,8]", "f32[8,3]", "f32[2,1]"),
        ),
        (
            making(
                "convert_element_type",
                lambda x, v: (
                    jnp.matmul(jnp.exp(x).astype("bfloat16"), v, preferred_element_type="float32")
                    / _sum(jnp.exp(x))
                ),
            ),
            ("f32[2,8]", "bf16[8,3]"),
        ),
        # near misses
        (lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x), axis=0), ("f32[3,3]",) * 2),
        (
            lambda x, v: (
                jnp.matmul(jnp.exp(x), v, preferred_element_type="float32")
                / jnp.sum(jnp.exp(x), axis=0)
            ),
            ("f32[3,3]", "i8[3,3]"),
        ),
        (
            lambda x, v: (
                jnp.matmul(jnp.exp(x), v, preferred_element_type="float32")
                / jnp.sum(jnp.exp(x), axis=0)
            ),
            ("f32[3,3]", "bool[3,3]"),
        ),
        (lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x), axis=-1), ("f32[3,3]",) * 2),
        (lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x)), ("f32[2,8]", "f32[8,3]")),
        (
            lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(v), axis=0, keepdims=True),
            ("f32[2,8]", "f32[8,3]"),
        ),
        (
            lambda x, v: (jnp.exp(x) @ v) / jnp.sum(jnp.exp(x), -1, keepdims=True),
            ("f32[2,0]", "f32[0,3]"),
        ),
        (
            lambda x, v, m: (
                (_where(m, jnp.exp(x), 1.0) @ v) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True)
            ),
            ("f32[2,8]", "f32[8,3]", "bool[2,8]"),
        ),
    ],
    "exp_of_log_sum": [
        (lambda x: jnp.exp(x - jax.nn.logsumexp(x, axis=-1, keepdims=True)), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - jax.nn.logsumexp(x, axis=0)), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - (_most(x) + _log_sum(x - _most(x)))), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - (_log_sum(x - _most(x)) + _most(x))), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - _log_sum(x)), ("f32[2,8]",)),
        (
            lambda x: jnp.exp(x - _log_sum(x.astype("float32")).astype("bfloat16")),
            ("bf16[2,8]",),
        ),
        (
            lambda x: jnp.exp(x.astype("float32") - _log_sum(x).astype("float32")),
            ("bf16[2,8]",),
        ),
        # near misses
        (lambda x, y: jnp.exp(x - _log_sum(y)), ("f32[2,8]",) * 2),
        (lambda x: jnp.exp(x - (_log_sum(x - _most(x)) - _most(x))), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - (_log_sum(x) + _most(x))), ("f32[2,8]",)),
        (lambda x, y: jnp.exp(x - (_log_sum(x - _most(y)) + _most(x))), ("f32[2,8]",) * 2),
        (lambda x: jnp.exp(x - (_log_sum(x + _most(x)) + _most(x))), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - jnp.log(_most(jnp.exp(x)))), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - jnp.log(jnp.sum(x * x, -1, keepdims=True))), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - jnp.sum(jnp.exp(x), -1, keepdims=True)), ("f32[2,8]",)),
        (lambda x: jnp.exp(x - jnp.log(jnp.sum(jnp.exp(x), axis=1))), ("f32[4,4]",)),
        (lambda x: jnp.exp(x + _log_sum(x)), ("f32[2,8]",)),
        (
            lambda x: jnp.exp(x - jnp.broadcast_to(_log_sum(x), (2, 1))),
            ("f32[1,8]",),
        ),
    ],
    "sink_in_sum": [
        (lambda x, s: jnp.exp(x) / (jnp.exp(s) + _sum(jnp.exp(x))), _SINK),
        (lambda x: jnp.exp(x) / (1 + _sum(jnp.exp(x))), _SINK[:1]),
        (lambda x: jnp.exp(x) / (_sum(jnp.exp(x)) + 0.5), _SINK[:1]),
        (
            lambda x, s: jnp.exp(x) / (jnp.sum(jnp.exp(x), axis=0) + jnp.exp(s)),
            ("f32[8,2]", "f32[2]"),
        ),
        (lambda x, s: jnp.exp(x) / (_sum(jnp.exp(x)) + jnp.exp(s)), ("f32[2,3,8]", "f32[3,1]")),
        (lambda x, s: jnp.exp(x) / (jnp.sum(jnp.exp(x)) + jnp.exp(s)), ("f32[8]", "f32[]")),
        (
            lambda x, s: jnp.exp(x) / (_sum(jnp.exp(x)) + jnp.exp(s).astype("bfloat16")),
            ("bf16[2,8]", "f32[2,1]"),
        ),
        (
            lambda x, s: (y := jnp.exp(x).astype("float32")) / (_sum(y) + jnp.exp(s)),
            ("bf16[2,8]", "f32[2,1]"),
        ),
        _sinking(lambda x, s: jnp.maximum(_most(x), s)),
        _sinking(lambda x, s: jnp.maximum(s, _most(x))),
        # near misses
        _shifted(_sinking(lambda x, s: _most(x))),
        _shifted(_sinking(lambda x, s: jnp.minimum(_most(x), s))),
        _shifted(_sinking(lambda x, s: jnp.maximum(_most(x), s + 1))),
        _shifted(_sinking(lambda x, s: jnp.maximum(_most(x + 1), s))),
        _shifted(_sinking(lambda x, s: jnp.maximum(_sum(x), s))),
        _shifted(_sinking(lambda x, s: jnp.maximum(x, s))),
        _shifted(
            _sinking(
                lambda x, s: jnp.maximum(_most(x), s), lambda x, s: jnp.maximum(_most(x), 2 * s)
            )
        ),
        (
            lambda x, s: (
                (y := jnp.exp(x - (c := jnp.maximum(_most(x), s)))) / (_sum(y) + jnp.exp(s + c))
            ),
            _SINK,
        ),
        (
            lambda x, s: (
                (y := jnp.exp(x + (c := jnp.maximum(_most(x), s)))) / (_sum(y) + jnp.exp(s - c))
            ),
            _SINK,
        ),
        (
            lambda x, s: (
                (y := jnp.exp(x - (c := jnp.maximum(_most(x), s)))) / (_sum(y) + jnp.exp(s - c))
            ),
            ("f32[1,8]", "f32[2,1]"),
        ),
        (
            lambda x, s, t: (
                (y := jnp.exp(t - jnp.broadcast_to(c := jnp.maximum(_most(x), s), (2, 8))))
                / (_sum(y) + jnp.exp(s - c))
            ),
            ("f32[1,8]", "f32[2,1]", "f32[]"),
        ),
        (lambda x, s: jnp.exp(x) / (_sum(jnp.exp(x)) + jnp.exp(s)), ("f32[1,8]", "f32[2,1]")),
        (lambda x, s: jnp.exp(x) / (_sum(jnp.exp(x)) + jnp.exp(s)), ("f32[2,8]",) * 2),
        (lambda x, s: jnp.exp(x) / (_sum(jnp.exp(x)) - jnp.exp(s)), _SINK),
        (lambda x, s: jnp.exp(x) / (_sum(jnp.exp(x)) + s), _SINK),
        (lambda x, s: jnp.exp(x) / (_sum(x) + jnp.exp(s)), _SINK),
        (lambda x, s: jnp.exp(x) / (_most(jnp.exp(x)) + jnp.exp(s)), _SINK),
        (lambda x, s: jnp.exp(x) / (jnp.sum(jnp.exp(x)) + jnp.exp(s)), _SINK),
        (lambda x, s: x / (_sum(x) + jnp.exp(s)), _SINK),
        (lambda x: jnp.exp(x) / (_sum(jnp.exp(x)) + -1.0), _SINK[:1]),
        (lambda x: jnp.exp(x) / (_sum(jnp.exp(x)) + 0.0), _SINK[:1]),
        (lambda x: jnp.exp(x) / (_sum(jnp.exp(x)) + jnp.inf), _SINK[:1]),
        (
            lambda x: (y := jnp.exp(x)) / (_sum(jnp.broadcast_to(y, (2, 8))) + 1),
            ("f32[2,1]",),
        ),
    ],
    "rms_norm": [
        (lambda x: x * lax.rsqrt(1e-5 + jnp.mean(x * x, -1, keepdims=True)), ("f32[2,8]",)),
        (lambda x, y: (z := x * y) * _root(z), ("f32[2,8]",) * 2),
        (lambda x: x.T * _root(x, 0, False)[:, None], ("f32[8,2]",)),
        (
            lambda x, w: w * ((y := x.astype("float32")) * _root(y)).astype("bfloat16"),
            ("bf16[2,8]", "bf16[2,8]"),
        ),
        (
            lambda x, w: w * (x * _root(x.astype("float32")).astype("bfloat16")),
            ("bf16[2,8]", "bf16[2,8]"),
        ),
        (lambda x, w: (x * _root(x)).astype("bfloat16") * w, ("f32[2,8]", "bf16[2,8]")),
        (lambda x: x / 3 * _root(x / 3), ("f32[2,8]",)),
        # an epsilon that is known only when the program runs
        (lambda x, e: x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + e), ("f32[2,8]", "f32[]")),
        (
            lambda x, e: x * lax.rsqrt(e[1] + jnp.mean(x * x, -1, keepdims=True)),
            ("f32[1,8]", "f32[2]"),
        ),
        (
            lambda x, e: x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + e),
            ("bf16[2,8]", "f32[1,1]"),
        ),
        # near misses
        (
            lambda x, e: x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + e),
            ("f32[2,8]", "f32[2,1]"),
        ),
        (lambda x: x * _root(x).T, ("f32[8,8]",)),
        (lambda x: x * _root(x, (0, 1)), ("f32[2,8]",)),
        (lambda x: jnp.transpose(x, (2, 1, 0)) * _root(x, 0, False)[..., None], ("f32[8,4,4]",)),
        (lambda x, y: y.T * _root(x, 0, False)[:, None], ("f32[8,2]",) * 2),
        (lambda x: x * _root(x, 0), ("f32[8,8]",)),
    ],
    "softmax_of_exp": [
        _shares(lambda x: jnp.exp(x - _most(x))),
        _shares(lambda x: jnp.exp(x - _finite(_most(x)))),
        _shares(lambda x: jnp.exp(x - jnp.maximum(_most(x), -1e30))),
        _shares(lambda x: jnp.exp(x - jnp.maximum(0.0, _most(x)))),
        _shares(lambda x, s: jnp.exp(x - _finite(s)), "f32[2,1]"),
        _shares(lambda x, m: _where(m, jnp.exp(x), 0.0), "bool[2,8]"),
        _shares(lambda x, m: _where(m, 0.0, jnp.exp(x)), "bool[2,8]"),
        _shares(lambda x, m: _where(m, jnp.exp(_where(m, x, -1e9)), 0.0), "bool[2,8]"),
        _shares(
            lambda x, m: _where(m, jnp.exp(x - _most(_where(m, x, -jnp.inf))), 0.0),
            "bool[2,8]",
        ),
        _shares(
            lambda x, m: _where(m, jnp.exp(x - _finite(_most(_where(m, x, -jnp.inf)))), 0.0),
            "bool[2,8]",
        ),
        (lambda x: (y := jnp.exp(x.T - _most(x.T))) / jnp.sum(y, -1)[:, None], ("f32[8,2]",)),
        (lambda x: (y := jnp.exp(x - _most(x, 0))) / jnp.sum(y, 0), ("f32[4,4]",)),
        _shares(lambda x: jnp.exp((x - (s := _finite(x[:, :1]))) - _most(x - s))),
        _shares(lambda x: jnp.exp((x - _most(x)) - _finite(x[:, :1]))),
        _shares(lambda x: jnp.exp(x.astype("bfloat16")).astype("float32")),
        _shares(
            lambda x, m: _where(m, jnp.exp((y := _where(m, x, -1e9)) - _most(y)), 0.0),
            "bool[2,8]",
        ),
        _shares(lambda x, m: lax.select(m, jnp.exp(x), jnp.zeros_like(x)), "bool[]"),
        (lambda x: jnp.exp(x - jnp.max(x)) / jnp.sum(jnp.exp(x - jnp.max(x))), ("f32[8]",)),
        # near misses
        _shares(lambda x: x),
        _shares(lambda x, y: jnp.exp(x - _finite(y)), "f32[2,8]"),
        _shares(lambda x, s: jnp.exp(x[:1] - _finite(s)), "f32[2,1]"),
        _shares(lambda x, s, m: _where(m, jnp.exp(x - s), 0.0), "f32[2,1]", "bool[2,8]"),
        _shifted(_shares(lambda x, m: _where(m, jnp.exp(x - _most(x)), 0.0), "bool[2,8]")),
        (
            lambda x: (y := jnp.exp(x)) / jnp.broadcast_to(jnp.sum(y, -1, keepdims=True), (2, 1)),
            ("f32[1,8]",),
        ),
        (
            lambda x: (y := jnp.exp(x)) / jnp.sum(jnp.broadcast_to(y, (2, 8)), -1, keepdims=True),
            ("f32[2,1]",),
        ),
        _shares(lambda x, s: jnp.exp(x - s), "f32[2,1]"),
        _shares(lambda x, y: jnp.exp(x - y), "f32[2,8]"),
        _shares(lambda x, y: jnp.exp(x - _most(y)), "f32[2,8]"),
        _shares(lambda x: jnp.exp(x - jnp.max(x, axis=0))),
        _shares(lambda x, y: jnp.exp(x - _finite(_most(x), _most(y))), "f32[2,8]"),
        _shares(lambda x: jnp.exp(x - _where(_most(x) > 0, _most(x), 0.0))),
        _shares(lambda x: jnp.exp(x - _where(jnp.isfinite(_most(x)), 0.0, _most(x)))),
        _shares(lambda x: jnp.exp(x - jnp.maximum(_most(x), jnp.inf))),
        _shares(lambda x: jnp.exp(x - jnp.minimum(_most(x), 1.0))),
        _shares(lambda x, m: _where(m, jnp.exp(x), 1.0), "bool[2,8]"),
        _shares(lambda x, m: _where(m, jnp.exp(x), 0.0), "bool[2,1]"),
        _shares(lambda x, m: _where(m, jnp.cosh(x), 0.0), "bool[2,8]"),
        _shares(
            lambda x, m, n: _where(m, jnp.exp(_where(n, x, -1e9)), 0.0),
            "bool[2,8]",
            "bool[2,8]",
        ),
        _shares(
            lambda x, m: _where(m, jnp.exp(_where(m, 0.5, x)), 0.0),
            "bool[2,8]",
        ),
        _shares(
            lambda x, m, n: _where(m, jnp.exp(x - _most(_where(n, x, -jnp.inf))), 0.0),
            "bool[2,8]",
            "bool[2,8]",
        ),
        _shares(
            lambda x, m: _where(m, jnp.exp(x - _most(_where(m, -jnp.inf, x))), 0.0),
            "bool[2,8]",
        ),
        _shares(
            lambda x, m: _where(m, jnp.exp(x - _most(_where(m, x, jnp.inf))), 0.0),
            "bool[2,8]",
        ),
        _shifted(
            _shares(
                lambda x, m, y: _where(m, jnp.exp(x - _most(_where(m, y, -jnp.inf))), 0.0),
                "bool[2,8]",
                "f32[2,8]",
            )
        ),
        (lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=0), ("f32[4,4]",)),
        (lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=0)[:, None], ("f32[4,4]",)),
        (lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x)), ("f32[2,4]",)),
        (lambda x, y: jnp.exp(x) / jnp.sum(jnp.exp(y), -1, keepdims=True), ("f32[2,4]",) * 2),
        (lambda x: jnp.exp(x) / _most(jnp.exp(x)), ("f32[2,4]",)),
        (
            lambda x, m: _where(m, jnp.exp(x), 0.0) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
            ("f32[2,4]", "bool[2,4]"),
        ),
    ],
}
_ASKED = dict.fromkeys(
    ("mul for div", "always `axis`"), "what is divided is asked for its softmax, and not left"
)
_FURTHER = "it reads sums as far as they go"
EQUAL: dict[str, dict[str, str]] = {
    "division_before_product": _ASKED,
    "exp_of_log_sum": _ASKED,
    "rms_norm": {"without `if len(average.axes) != 1`": "its shape tells it too, if not why"},
    "layer_norm": {"1.00002 for 1e-05": "of its example alone"},
    "centred": {
        "without `if source is None`": "it is no factor, either",
        "without `leaf not in (value, inner)`": "it takes nothing as a whole",
        "without `deepest`": _FURTHER,
        "`deepest + 1`": _FURTHER,
        "`sign >= 0`": "it is 1 or -1",
    },
}
