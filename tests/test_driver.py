"""The driver: rules everywhere, once per value; sharing, regions, dead ops, endless rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import framework  # noqa: F401  (define the ops)
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.arithmetic_rules import max_of_more
from dialect.ops import control  # noqa: F401  (define the ops)
from rewrite.driver import Report, rewrite
from rewrite.errors import InvalidProgram
from rewrite.ir import Graph, Op, Origin, Type, Value, new_input
from rewrite.opdef import make, substitute, with_args
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.verify import verify

X = jnp.linspace(-1, 1, 12).reshape(3, 4)


def traced(function: Callable[..., Any], *args: Any) -> Graph:
    return trace_graph(lambda *arrays: jax.tree.leaves(function(*arrays)), *(args or (X,)))


def names(graph: Graph) -> list[str]:
    return [op.name for op in graph.ops]


def same_types(op: Op, name: str, *args: Value) -> Value:
    """An elementwise op in place of another, by the attributes that tracing gives it."""
    pattern = traced(getattr(lax, name), *[jnp.ones(())] * len(args)).ops[0]
    return Value(Op(name, args, pattern.attrs, op.types), 0)


@local("sin", example=lambda x: jnp.sin(x), types=("f32[3]",))
def sin_to_cos(op: Op) -> Outcome:
    """sin(x)  ->  cos(x)"""
    return same_types(op, "cos", op.args[0])


@local("cos", example=lambda x: jnp.cos(x), types=("f32[3]",))
def cos_to_tan(op: Op) -> Outcome:
    """cos(x)  ->  tan(x)"""
    return same_types(op, "tan", op.args[0])


@local("neg", example=lambda x: --x, types=("f32[3]",))
def double_negation(op: Op) -> Outcome:
    """neg(neg(x))  ->  x"""
    inner = op.args[0].op
    return inner.args[0] if inner.name == "neg" else None


@local("tan", example=lambda x: jnp.tan(x), types=("f32[3]",))
def tan_to_two(op: Op) -> Outcome:
    """tan(x)  ->  sin(x) / cos(x)"""
    (x,) = op.args
    return same_types(op, "div", same_types(op, "sin", x), same_types(op, "cos", x))


def fired(graph: Graph, *rules: Rule) -> tuple[Graph, dict[str, int]]:
    report = Report()
    made = rewrite(graph, rules, report)
    verify(made)
    return made, report.fired


def test_no_rules_change_nothing() -> None:
    graph = traced(lambda x: jnp.sin(x) @ x.T + 1)
    assert rewrite(graph, ()) == graph


def test_nothing_is_mutated() -> None:
    graph = traced(lambda x: jnp.sin(x))
    key = graph.key
    made, _ = fired(graph, sin_to_cos)
    assert (names(graph), graph.key) == (["sin"], key)
    assert names(made) == ["cos"]


def test_rules_fire_on_what_rules_made() -> None:
    made, counts = fired(traced(jnp.sin), cos_to_tan, sin_to_cos)
    assert names(made) == ["tan"]
    assert counts == {"sin_to_cos": 1, "cos_to_tan": 1}


def test_rules_fire_inside_what_rules_made() -> None:
    made, counts = fired(traced(jnp.tan), tan_to_two, sin_to_cos)
    assert names(made) == ["cos", "div"]  # sin(x) became the cos(x) that was there
    assert counts == {"tan_to_two": 1, "sin_to_cos": 1}


def test_a_rule_may_return_a_value_that_was_there() -> None:
    made, counts = fired(traced(lambda x: -(-jnp.sin(x)) + 1), double_negation)
    assert [name for name in names(made) if name != "const"] == ["sin", "add"]
    assert counts == {"double_negation": 1}


def test_equal_ops_become_one() -> None:
    made, _ = fired(traced(lambda x: jnp.sin(x) + jnp.sin(x)))
    assert names(made) == ["sin", "add"]
    assert made.ops[1].args == made.ops[0].results * 2


def test_ops_that_become_equal_are_one() -> None:
    made, counts = fired(traced(lambda x: jnp.sin(x) + jnp.cos(x)), sin_to_cos)
    assert names(made) == ["cos", "add"]
    assert counts == {"sin_to_cos": 1}


def test_ops_of_other_types_stay_apart() -> None:
    made, _ = fired(traced(lambda x, y: (jnp.sin(x), jnp.sin(y)), X, X.astype("bfloat16")))
    assert names(made) == ["sin", "sin"]


def test_dead_ops_go() -> None:
    x = new_input(Type.parse("f32[4]"))
    dead = make("sin", x, accuracy=None)
    graph = Graph((x,), (make("add", x, x),))
    assert dead.op not in graph.ops
    made, counts = fired(traced(lambda x: (jnp.tan(x), x + 1)[1]), tan_to_two)
    assert [name for name in names(made) if name != "const"] == ["add"]
    assert counts == {}


def test_shared_subterms_are_visited_once() -> None:
    """x = x + sin(x), 4000 times: 2 ** 4000 paths, 8000 ops, each rewritten once."""
    x = start = new_input(Type.parse("f32[4]"))
    for _ in range(4000):
        x = make("add", x, make("sin", x, accuracy=None))
    visits, cos = 0, traced(jnp.cos).ops[0]

    def counted(op: Op) -> Outcome:
        nonlocal visits
        visits += 1
        return Value(Op("cos", op.args, cos.attrs, op.types), 0)

    rule = Rule("counted", "sin(x)  ->  cos(x)", frozenset({"sin"}), counted)
    made = rewrite(Graph((start,), (x,)), [rule])
    assert visits == 4000
    assert len(made.ops) == 8000
    assert names(made).count("cos") == 4000


def test_regions_are_rewritten() -> None:
    def function(x: jax.Array) -> Any:
        looped = lax.scan(lambda c, _: (jnp.sin(c), jnp.cos(c)), x, None, 3)
        waited = lax.while_loop(lambda c: jnp.sin(c).sum() > 9, lambda c: jnp.sin(c), x)
        return looped, waited, lax.cond(x.sum() > 0, jnp.sin, jnp.tan, x)

    made, counts = fired(traced(function), sin_to_cos)
    found = [op.name for op, _ in made.walk()]
    assert "sin" not in found
    assert found.count("cos") == 4  # in the scan it joined the one that was there
    assert counts == {"sin_to_cos": 3}  # the while's body and the cond's branch are equal


def test_equal_regions_are_rewritten_once() -> None:
    def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.sin(carry), None

    def function(x: jax.Array) -> jax.Array:
        return lax.scan(body, lax.scan(body, x, None, 3)[0] + 1, None, 3)[0]

    made, counts = fired(traced(function), sin_to_cos)
    first, second = (op.regions[0] for op in made.ops if op.name == "scan")
    assert first is second
    assert counts == {"sin_to_cos": 1}


def test_the_region_of_a_region_is_rewritten() -> None:
    def outer(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        return lax.fori_loop(0, 2, lambda i, c: jnp.sin(c), carry), None

    made, counts = fired(traced(lambda x: lax.scan(outer, x, None, 3)[0]), sin_to_cos)
    assert "sin" not in {op.name for op, _ in made.walk()}
    assert counts == {"sin_to_cos": 1}


def test_several_results() -> None:
    @local("top_k", example=lambda x: lax.top_k(x, 2), types=("f32[4]",))
    def swapped(op: Op) -> Outcome:
        """top_k(x)  ->  top_k(-x), whose results are all replaced"""
        if op.args[0].op.name == "neg":
            return None
        negated = with_args(op, (same_types(op.args[0].op, "neg", op.args[0]),))
        return negated.results

    graph = traced(lambda x: lax.top_k(jnp.sin(x), 2))
    made, counts = fired(graph, swapped)
    assert names(made) == ["sin", "neg", "top_k"]
    assert counts == {"swapped": 1}
    assert [v.index for v in made.outputs] == [0, 1]
    expected = lax.top_k(-jnp.sin(X), 2)
    for one, other in zip(evaluate(made, [X]), expected):
        np.testing.assert_array_equal(one, other)


def test_an_input_that_is_an_output_stays() -> None:
    made, _ = fired(traced(lambda x: (x, jnp.sin(x), x)), sin_to_cos)
    assert made.outputs[0] == made.outputs[2] == made.inputs[0]


def test_origin_names_the_rules_in_order() -> None:
    made, _ = fired(traced(lambda x: jnp.sin(x)), sin_to_cos, cos_to_tan)
    (op,) = made.ops
    assert op.origin.rules == ("sin_to_cos", "cos_to_tan")
    assert op.origin.source.startswith(__file__)


def test_rules_that_never_end_are_stopped() -> None:
    @local("cos", example=lambda x: jnp.cos(x), types=("f32[3]",))
    def cos_to_sin(op: Op) -> Outcome:
        """cos(x)  ->  sin(x)"""
        return same_types(op, "sin", make("neg", op.args[0]))

    with pytest.raises(InvalidProgram, match="rules do not come to an end") as caught:
        rewrite(traced(lambda x: jnp.sin(x)), [sin_to_cos, cos_to_sin])
    assert "sin_to_cos" in str(caught.value) and "cos_to_sin" in str(caught.value)


def test_a_rule_that_returns_its_own_op_comes_to_an_end() -> None:
    @local("sin", example=lambda x: jnp.sin(x), types=("f32[3]",))
    def itself(op: Op) -> Outcome:
        """sin(x)  ->  sin(x)"""
        return op.results

    made, _ = fired(traced(jnp.sin), itself)
    assert names(made) == ["sin"]


def test_misses_keep_the_deepest_reason() -> None:
    @local("sin", example=lambda x: jnp.sin(x), types=("f32[3]",))
    def picky(op: Op) -> Outcome:
        """sin(x)  ->  never"""
        return Miss("nearly", 3) if op.args[0].op.name == "tan" else Miss("hardly", 1)

    report = Report()
    rewrite(traced(lambda x: (jnp.sin(x), jnp.sin(jnp.tan(x)))), [picky], report)
    (note,) = report.notes()
    assert note.startswith(f"picky nearly fired at {__file__}:")
    assert note.endswith(": nearly")


def test_a_rule_that_fired_reports_its_count_alone() -> None:
    report = Report()
    report.missed(sin_to_cos, Miss("somewhere else"), traced(jnp.sin).ops[0])
    rewrite(traced(jnp.sin), [sin_to_cos], report)
    assert report.notes() == ("sin_to_cos: 1",)


def test_substitute_inlines() -> None:
    inner = traced(lambda x, y: (x + y, x), X, X)
    a = new_input(Type.parse("f32[3,4]"))
    total, first = substitute(inner, [a, a], origin=Origin("here"))
    assert first == a
    assert total.op.args == (a, a)
    assert total.op.origin == Origin("here")
    with pytest.raises(ValueError):
        substitute(inner, [a])


def test_what_a_rule_needs_and_proved_is_noted() -> None:
    report = Report()
    graph = trace_graph(lambda x: [jnp.maximum(jnp.abs(x), 0.0)], jnp.ones(4))
    rewrite(graph, [max_of_more], report)
    assert report.notes() == ("max_of_more: 1, proven: no less",)
