"""The normal form: one spelling for what libraries write in many.

Layout noise goes away (identities, chains of reshapes and transposes, explicit broadcasts that
the consumer would do by itself), products become `contract`, and small constants are folded. The
rules are grouped by subject in this room.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from dialect.matching.values import is_splat, reshaped  # noqa: F401
from dialect.normal import (
    arithmetic_rules,
    complex_rules,
    contract_rules,
    convolutions,
    layout_rules,
    loop_rules,
    mask_rules,
    siblings,
    slice_rules,
)
from rewrite.driver import Report, rewrite
from rewrite.ir import Graph, Symbol, Type, Value
from rewrite.opdef import make
from rewrite.rules import Rule


def rules_of(*modules: ModuleType) -> tuple[Rule, ...]:
    """Every rule that the modules define, in their order."""
    return tuple(
        value for module in modules for value in vars(module).values() if isinstance(value, Rule)
    )


RULES = rules_of(
    layout_rules,
    contract_rules,
    convolutions,
    arithmetic_rules,
    complex_rules,
    mask_rules,
    slice_rules,
    siblings,
    loop_rules,
)
# For passes that keep every bit, and only tidy up their results.
EXACT_RULES = tuple(rule for rule in RULES if rule.keeps == "bits")


def normal_form(graph: Graph, report: Report | None = None, rules: Iterable[Rule] = RULES) -> Graph:
    """`graph` in normal form, its outputs as weakly typed as they were. Idempotent."""
    return typed_as(graph, rewrite(graph, rules, report))


def typed_as(before: Graph, after: Graph) -> Graph:
    """`after`, its outputs as weakly typed as those of `before`."""
    pairs = zip(after.outputs, before.outputs, strict=True)
    return Graph(after.inputs, tuple(_typed(new, old.type) for new, old in pairs))


def _typed(value: Value, type_: Type) -> Value:
    """`value` as weakly typed as the type: what users compute with an output depends on it."""
    if value.type.weak == type_.weak:
        return value
    if value.op.name == "const":
        return make("const", value=value.op["value"], type=type_)
    dtype = Symbol(type_.dtype)
    return make("convert_element_type", value, new_dtype=dtype, weak_type=type_.weak)
