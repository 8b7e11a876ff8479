"""What a decoder of somebody's library is to these tests: a pure step, and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Case:
    """`function(params, cache, tokens[, positions]) -> (logits, cache)`, and shapes of all four.

    tokens and positions are i32[batch, length]: one token in decode, half the cache in prefill.
    A library's own loop has no cache: `function(params, tokens) -> tokens`.
    """

    function: Callable[..., Any]
    vocab: int
    params: Any
    tokens: jax.ShapeDtypeStruct
    cache: Any = None
    positions: jax.ShapeDtypeStruct | None = None

    @property
    def args(self) -> tuple[Any, ...]:
        """Shapes of the function's arguments."""
        given = (self.params, self.cache, self.tokens, self.positions)
        return tuple(each for each in given if each is not None)


def shape(*sizes: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def shapes(tree: Any, floats: Any) -> Any:
    """The shapes of a pytree, with its floating-point arrays in the dtype `floats`."""

    def cast(leaf: Any) -> jax.ShapeDtypeStruct:
        kept = not jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if kept else floats)

    return jax.tree.map(cast, tree)


def random_params(case: Case, seed: int = 0) -> Any:
    """Weights that no library has drawn: theirs are often zero, and take seconds to compile."""
    random = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, width = getattr(path[-1], "key", None), len(leaf.shape)
        if leaf.dtype == jnp.int8:
            return jnp.asarray(random.integers(-127, 128, leaf.shape), leaf.dtype)
        noise = random.standard_normal(leaf.shape)
        if width == 1:  # a norm's scale is about one, a bias about nothing
            values = 0.1 * noise + (name != "bias")
        elif name == "scale":  # of int8 weights
            values = 1e-3 * (1 + 0.1 * noise)
        else:
            values = 0.08 * noise
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(draw, case.params)


def random_tokens(case: Case, seed: int = 1) -> jax.Array:
    random = np.random.default_rng(seed)
    return jnp.asarray(random.integers(0, case.vocab, case.tokens.shape), jnp.int32)


def empty_cache(case: Case) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), case.cache)
