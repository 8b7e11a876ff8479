"""The form on which a rule fires: its example as traced, or after rules that run before it.

Most rules fire on what a function traces to. Others expect the normal form, or results of the other
rules of their set: then those run first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import jax

from dialect.arrays.dtypes import struct_of
from dialect.checked.all_rules import Family, FoundRule
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.normal_form import RULES as NORMAL_FORM
from rewrite.driver import Report, rewrite
from rewrite.errors import ShardwrightError
from rewrite.ir import Graph, Type
from rewrite.rules import Rule


class NeverFires(ShardwrightError):
    """A rule's example is in no form that it fires on."""


def example_graph(rule: Rule) -> Graph:
    """What the rule's example traces to."""
    return traced(rule, [Type.parse(text) for text in rule.types])


def traced(rule: Rule, types: Iterable[Type]) -> Graph:
    """The example of a rule at other types. Raises whatever its function raises there."""
    return trace_graph(
        lambda *arrays: jax.tree.leaves(rule.example(*arrays)), *map(struct_of, types)
    )


def fires(rule: Rule, graph: Graph) -> bool:
    """Whether the rule alone fires on a graph. To raise, or not to end, counts as firing."""
    report = Report()
    try:
        rewrite(graph, [rule], report)
    except Exception:
        return True
    return rule.name in report.fired


@cache
def first_rules(checked_rule: FoundRule) -> Family:
    """The rules that bring the example to the form on which the rule fires. Raises NeverFires."""
    graph = example_graph(checked_rule.rule)
    for first in _orders(checked_rule):
        if fires(checked_rule.rule, after_rules(graph, first)):
            return first
    raise NeverFires(f"the example of {checked_rule.name} is in no form on which it fires")


def after_rules(graph: Graph, first: Family) -> Graph:
    """The graph after these rules."""
    return rewrite(graph, first) if first else graph


def _orders(checked_rule: FoundRule) -> Iterator[Family]:
    """What may run first: no rule, the normal form, the normal form with a set of the rule's."""
    yield ()
    for family in ((), *sorted(checked_rule.families, key=len)):
        rules = dict.fromkeys((*NORMAL_FORM, *family))
        yield tuple(rule for rule in rules if rule != checked_rule.rule)
