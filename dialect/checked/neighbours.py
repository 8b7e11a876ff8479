"""Programs in the neighbourhood of a rule: its example at other types, edited here and there.

Guards matter near the pattern, not on it, so that is where programs are drawn: a variant of the
example, brought to the form on which the rule fires, with no edit, one or a few. A program depends
on the rule's name, a seed and a number alone, so that it can be drawn again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import jax

from dialect.checked.all_rules import Family, FoundRule
from dialect.checked.edits import edits
from dialect.checked.forms import after_rules
from dialect.checked.variants import CUBES, PLAIN, is_wide, variant
from rewrite.errors import ShardwrightError
from rewrite.ir import Graph
from rewrite.rules import Rule
from rewrite.verify import verify

_VARIANTS = 50  # of an example, itself included: as many as its arrays are compiled for
_MOST_OPS = 120
_MOST_ELEMENTS = 4096
# What JAX or the IR raises for an edit whose types do not fit.
_UNFIT = (
    *(ShardwrightError, TypeError, ValueError, LookupError, AttributeError),
    *(ZeroDivisionError, OverflowError, NotImplementedError, AssertionError),
)


@dataclass(frozen=True)
class Neighbour:
    """A program to try a rule on; `wide` where it needs JAX with 64 bits."""

    graph: Graph
    wide: bool


def neighbour(checked_rule: FoundRule, first: Family, seed: int, number: int) -> Neighbour | None:
    """The program of this number; None where its edits fit no types.

    The first numbers are the examples of the rule, unedited.
    """
    random = Random(f"{checked_rule.name} {seed} {number}")
    examples = (checked_rule.rule, *checked_rule.more)
    unedited = number < len(examples)
    rule = (
        examples[number]
        if unedited
        else random.choice(examples)
        if checked_rule.more
        else checked_rule.rule
    )
    chosen = 0 if unedited else _chosen(random)
    traced = variant(rule, chosen)
    if traced is None or not _is_small(traced):  # 15 axes of size 4, say
        return None
    wide = is_wide([value.type for value in traced.inputs])
    count = 0 if unedited else random.choices((0, 1, 2, 3), (2 if chosen else 0, 6, 4, 2))[0]
    roots = set(checked_rule.rule.roots)
    early = bool(first) and not unedited and random.random() < 0.3
    with jax.enable_x64(wide):
        try:
            graph = _edited(traced, count if early else 0, wide, roots, random)
            graph = after_rules(graph, first) if early else _after_rules(rule, chosen, first)
            graph = _edited(graph, 0 if early else count, wide, roots, random)
            verify(graph)
        except _UNFIT:
            return None
    return Neighbour(graph, wide) if _is_small(graph) else None


@lru_cache(maxsize=1024)
def _after_rules(rule: Rule, chosen: int, first: Family) -> Graph:
    return after_rules(variant(rule, chosen), first)


def _chosen(random: Random) -> int:
    """A number of a variant: the example, another dtype, equal sizes, or other types and sizes."""
    form, plain = random.random(), len(PLAIN)
    if form < 0.3:
        return 0
    if form < 0.5:
        return random.randint(1, plain)
    if form < 0.65:
        return random.randint(plain + 1, plain + len(CUBES))
    return random.randrange(1, _VARIANTS)


def _edited(graph: Graph, count: int, wide: bool, roots: Collection[str], random: Random) -> Graph:
    pool, weights = zip(*edits(graph, wide, roots))
    for _ in range(count):
        for _ in range(4):  # not every edit has a place in every program
            edited = random.choices(pool, weights)[0](graph, random)
            if edited is not None:
                graph = edited
                break
        if not _is_small(graph):  # the next edit may write an array of that size
            break
    return graph


def _is_small(graph: Graph) -> bool:
    """Whether the graph has few ops, all on small arrays."""
    values = (*graph.inputs, *(value for op in graph.ops for value in op.results))
    small = all(value.type.size <= _MOST_ELEMENTS for value in values)
    return small and graph.op_count <= _MOST_OPS
