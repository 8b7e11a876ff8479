"""For the rules that find activations: spellings of them, and what nearly is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dialect.ops.vocabulary import Traced
from tests.more_examples.forms import left_alone

Example = tuple[Callable[..., Any], tuple[str, ...]]

X = ("f32[2,8]",)


def _where_positive(x: Any, value: Any) -> Any:
    return jnp.where(x < 0, jnp.zeros_like(x), value)


def _powers(x: Any) -> Any:
    """x, x squared or x cubed, as its whole part says."""
    return lax.select_n(x.astype("int32"), x, x * x, x * x * x)


MORE: dict[str, list[Example]] = {
    "activation": [
        (lambda x: _where_positive(x, x), X),
        (lambda x: x.astype("bfloat16") * jax.nn.sigmoid(x).astype("bfloat16"), X),
        # near misses
        *((left_alone(jax.nn.silu), (each,)) for each in ("f32[]", "f32[2,1]")),
        *((left_alone(jax.nn.relu), (each,)) for each in ("i32[2,8]", "f8_e4m3fn[2,8]")),
        (lambda x: jnp.maximum(jnp.zeros((2, 8)), x), ("f32[1,8]",)),
        (lambda x: jnp.where(x > 0, x, jnp.zeros_like(x)), X),
        (lambda x: jnp.where(x > 0, x.astype("int32").astype("float32"), jnp.zeros_like(x)), X),
        (lambda x: x * (x > 0).astype("float32"), X),
        (lambda x: jnp.where((x > 0) == (x > -1), x, jnp.zeros_like(x)), X),
        (lambda x: _powers(x) * jax.nn.sigmoid(x), X),
        (lambda x: _where_positive(x, x + jnp.tanh(jnp.exp(x - 1000))), X),
        (lambda x: x * jax.nn.sigmoid(x + 1000), X),
        (lambda x, s: x * jax.nn.sigmoid(s), ("f32[2,8]", "f32[1,8]")),
    ],
    "squared": [
        (left_alone(lambda x: jnp.square(Traced["activate"](x, kind="silu"))), X),
        (left_alone(jnp.square), X),
        (left_alone(lambda x, y: jnp.square(Traced["gate"](x, y, kind="relu"))), (*X, *X)),
    ],
    "gated": [
        (left_alone(lambda x, y: Traced["activate"](x, kind="silu") * y), (*X, "f32[1,8]")),
        (left_alone(lambda x: Traced["activate"](x, kind="silu") * 2.0), X),
    ],
}

_SAVES_TIME = "nothing else is an activation: this only saves time"
_IS_RIGHT = "the right one is as near, however far the others are"
EQUAL: dict[str, dict[str, str]] = {
    "activation": {
        "without `if all((opdef.traits(link).linear for link in chain))`": _SAVES_TIME,
        "without `len(seen) < _LONGEST`": _SAVES_TIME,
        "`len(seen) <= _LONGEST`": _SAVES_TIME,
        "`np.abs(actual - values) * (1 + np.abs(values))`": _IS_RIGHT,
        "`1 - np.abs(values)`": _IS_RIGHT,
        "`distance <= _NEARLY`": "it only says of which one it is a near miss",
    },
}
