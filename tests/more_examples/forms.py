"""For the rules that change forms: caching, padding, planning, quantised products, staging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dialect.ops.vocabulary import Traced
from rewrite.ir import Symbol

Example = tuple[Callable[..., Any], tuple[str, ...]]
CLIP = Symbol("GatherScatterMode.CLIP")

MORE: dict[str, list[Example]] = {
    "put_of_spread": [
        # of one layer of a stack
        (
            lambda x, new: Traced["cache_put"](
                Traced["spread_heads"](x, axis=3, count=2, by="mean"),
                Traced["spread_heads"](new, axis=2, count=2, by="mean"),
                jnp.full((3, 1), 2),
                1,
                axis=2,
                mode=CLIP,
            ),
            ("f32[2,3,8,2]", "f32[3,1,2]"),
        ),
    ],
}
EQUAL: dict[str, dict[str, str]] = {}
