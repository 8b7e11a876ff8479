"""For attention over keys and values that are expanded from latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dialect.ops.vocabulary import Traced
from tests.more_examples.forms import Example, left_alone, making

_AXES = "b t h k, b s h k, b s h v -> b t h v"


def _of_latents(cut: Callable[..., Any], wrap: Callable[..., Any] = lambda x: x) -> Example:
    """Attention over keys and values that are cut from one product of a latent."""

    def example(q: Any, x: Any, w: Any) -> Any:
        keys, values = cut(jnp.einsum("bsc,chk->bshk", x, w))
        return Traced["attend"](q, keys, values, axes=_AXES)

    return wrap(example), ("f32[2,3,4,5]", "f32[2,7,6]", "f32[6,4,10]")


def _of_two(
    *operands: str, axes: str = _AXES, dtype: str = "f32", query: str = "f32[2,3,4,5]", **how: Any
) -> Example:
    """Attention over keys and values that two weights expand from one latent."""

    def example(q: Any, x: Any, w: Any, u: Any, *more: Any) -> Any:
        keys, values = (jnp.einsum("bsc,chk->bshk", x, weight) for weight in (w, u))
        return Traced["attend"](q, keys, values, *more, axes=axes, **how)

    widths = ("[2,7,6]", "[6,4,5]", "[6,4,8]")
    return example, (query, *(f"{dtype}{width}" for width in widths), *operands)


_LATENTS = [
    _of_latents(lambda both: (both[..., :5], both[..., 5:])),
    _of_latents(lambda both: jnp.unstack(both.reshape(2, 7, 4, 2, 5), axis=3)),
    # one query at a time, and with a mask
    _of_two(axes="b 1 h k, b s h k, b s h v -> b 1 h v", query="f32[2,1,4,5]"),
    _of_two("bool[2,7]", axes=f"{_AXES.replace(' ->', ', b s ->')}", given="mask"),
    # near misses
    _of_latents(lambda both: (both[:, :4, :, :5], both[:, :4, :, 5:]), left_alone),
    _of_latents(lambda both: (both[..., :9:2], both[..., 1:9:2]), left_alone),
    _of_latents(lambda both: (jnp.sin(both[..., :5]), jnp.cos(both[..., 5:])), left_alone),
]


def _of_integers(scale: str) -> Example:
    """Attention over integers, one of which has a scale and the other is computed from floats."""
    axes = _AXES.replace(" ->", ", b s h ->")
    example, types = _of_two("f32[2,7,4]", axes=axes, dtype="i8", given=scale)
    return left_alone(example), types


def _beside(*parts: Callable[..., Any], axes: str = _AXES, **how: Any) -> Example:
    """Attention over keys of which a part is expanded."""

    def example(q: Any, x: Any, w: Any, v: Any, r: Any, *more: Any) -> Any:
        keys = jnp.einsum("bsc,chk->bshk", x, w)
        keys = jnp.concatenate([keys, *(part(keys, r) for part in parts)], -1)
        return Traced["attend"](q, keys, v, *more, axes=axes, **how)

    width = 5 + 2 * len(parts)
    types = (f"f32[2,3,4,{width}]", "f32[2,7,6]", "f32[6,4,5]", "f32[2,7,4,8]", "f32[2,7,2]")
    return example, types


def _over_heads(keys: Any, r: Any) -> Any:
    return jnp.repeat(r[:, :, None], 4, axis=2)


def _of_one_sequence() -> Example:
    """Attention whose shared part of the keys has no axes but those of every key."""

    def example(q: Any, x: Any, w: Any, v: Any, r: Any) -> Any:
        shared = jnp.repeat(r[:, None], 4, axis=1)
        keys = jnp.concatenate([jnp.einsum("sc,chk->shk", x, w), shared], -1)
        return Traced["attend"](q, keys, v, axes="t h k, s h k, s h v -> t h v")

    types = ("f32[3,4,7]", "f32[7,6]", "f32[6,4,5]", "f32[7,4,8]", "f32[7,2]")
    return making("attend", example, axes="t h k, s h k, s h v, t h p, s p -> t h v"), types


def _in_parts() -> list[Example]:
    paired = _AXES.replace(" ->", ", b t h 1, b s h 1 ->")
    pair = ("f32[2,3,4,1]", "f32[2,7,4,1]")
    of_pairs, types = _beside(_over_heads, axes=paired, given="query_2 key_2")
    decode = _AXES.replace("t", "1")
    one, _ = _beside(_over_heads, axes=decode)
    thin = "b t h 1, b s h 1, b s h v -> b t h v"
    return [
        _beside(_over_heads, lambda keys, r: keys[..., :2]),
        _beside(lambda keys, r: jnp.full((2, 7, 4, 2), r[0, 0, 0])),
        _beside(lambda keys, r: jnp.full((2, 7, 4, 2), 0.5)),
        (one, ("f32[2,1,4,7]", *types[1:])),
        _of_one_sequence(),
        _beside(*(_over_heads,) * 3),
        # near misses
        *(
            (left_alone(example), types)
            for example, types in (
                _beside(*(_over_heads,) * 4),
                (of_pairs, (*types, *pair)),
                _beside(_over_heads, axes=_AXES.replace("b", "p")),
                (
                    lambda q, k, r, v: Traced["attend"](
                        q, jnp.concatenate([k, _over_heads(k, r)], -1), v, axes=_AXES
                    ),
                    ("f32[2,3,4,7]", "f32[2,7,4,5]", "f32[2,7,2]", "f32[2,7,4,8]"),
                ),
                (
                    lambda q, k, v: Traced["attend"](q, k, v, axes=thin),
                    ("f32[2,3,4,1]", "f32[2,7,4,1]", "f32[2,7,4,8]"),
                ),
            )
        ),
    ]


MORE: dict[str, list[Example]] = {
    "key_in_parts": _in_parts(),
    "key_of_latent": [*_LATENTS, _of_integers("key_scale")],
    "value_of_latent": [*_LATENTS, _of_integers("value_scale")],
}
EQUAL: dict[str, dict[str, str]] = {}
