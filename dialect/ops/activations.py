"""Activations by name: functions of one number, alone or gating another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialect.ops.vocabulary import elementwise, word
from rewrite.opdef import Traits

KINDS: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: x * jax.nn.sigmoid(x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": lambda x: jnp.maximum(x, 0),
    "relu_squared": lambda x: jnp.square(jnp.maximum(x, 0)),
    "softplus": jax.nn.softplus,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
}


def activate(x: Any, *, kind: str) -> Any:
    """The activation of a feed-forward network, elementwise; see KINDS."""
    return KINDS[kind](x)


def gate(x: Any, y: Any, *, kind: str) -> Any:
    """activation(x) * y: the gated unit of SwiGLU and its relatives (Shazeer 2020), elementwise."""
    return KINDS[kind](x) * y


word(activate, elementwise, ("kind",), traits=Traits(batches=True))
word(gate, elementwise, ("kind",), traits=Traits(batches=True))
