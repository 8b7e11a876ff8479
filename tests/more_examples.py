"""Further programs that rules are tried on: other forms that they fire on, and near misses.

A rule's own example stands with it and explains it; these keep its guards. `EQUAL` are mutants of a
rule (`tests/fuzz/mutants.py`) that compute the same, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from dialect.checked.all_rules import FoundRule, all_rules
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


def every_rule() -> list[FoundRule]:
    """Every rule of the packages, with its further examples."""
    return [
        replace(
            found,
            more=tuple(
                replace(found.rule, example=example, types=types)
                for example, types in MORE.get(found.name, ())
            ),
        )
        for found in all_rules("dialect", "passes")
    ]
