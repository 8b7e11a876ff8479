"""The types at which a rule fires on its example: a guard too many leaves too few."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from dialect.checked.all_rules import Family
from dialect.checked.forms import after_rules, fires
from dialect.checked.variants import CUBES, PLAIN, is_wide, variant
from rewrite.errors import ShardwrightError
from rewrite.rules import Rule

NAMES = ("example", *PLAIN, *(f"{size}s" for size in CUBES))


def reach(rule: Rule, first: Family, names: Sequence[str] = NAMES) -> tuple[str, ...]:
    """The variants on which the rule fires: the example, its ops at other dtypes, axes of one size.

    `first` are the rules that run before it; `names` the variants that are tried.
    """
    return tuple(name for name in names if _reaches(rule, first, NAMES.index(name)))


def _reaches(rule: Rule, first: Family, number: int) -> bool:
    graph = variant(rule, number)
    if graph is None:
        return False
    with jax.enable_x64(is_wide([value.type for value in graph.inputs])):
        try:
            return fires(rule, after_rules(graph, first))
        except (ShardwrightError, TypeError, ValueError):
            return False  # the rules that run first do not take these types
