"""The program as data: structural equality, types in bytes, and the verifier's messages."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dialect.jaxprs import framework  # noqa: F401  (define the ops)
from dialect.jaxprs.jaxpr import constant, trace_graph
from dialect.ops import control  # noqa: F401  (define the ops)
from rewrite import opdef
from rewrite.errors import InvalidProgram
from rewrite.ir import (
    Graph,
    Op,
    Opaque,
    Origin,
    Record,
    Symbol,
    Type,
    Value,
    attrs_of,
    bits,
    new_input,
    replace_values,
)
from rewrite.opdef import OpDef, build, make
from rewrite.signature import Signature
from rewrite.verify import verify, window

F32 = Type("f32", (2, 3))

opdef.define(
    OpDef(
        name="test_ir.scaled",
        signature=lambda op: Signature.parse("a b -> a b"),
        infer=lambda types, attrs, regions: types,
        reference=lambda x, *, by: x * by,
        attrs=("by",),
    )
)


def scaled(value: Value, by: Any = 2.0, origin: Origin = Origin()) -> Value:
    return make("test_ir.scaled", value, by=by, origin=origin)


def chain(*factors: float) -> Graph:
    start = new_input(F32)
    value = start
    for by in factors:
        value = scaled(value, by)
    return Graph((start,), (value,))


# Types.


@pytest.mark.parametrize(
    "type_, size",
    [
        (Type("f32", (3, 4)), 48),
        (Type("bf16", (3, 4)), 24),
        (Type("i8", (5,)), 5),
        (Type("i4", (5,)), 3),  # two to a byte, the last one half empty
        (Type("u4", (4, 4)), 8),
        (Type("i2", (5,)), 2),
        (Type("f4_e2m1fn", (3,)), 2),
        (Type("f8_e4m3fn", (3,)), 3),
        (Type("f8_e4m3b11fnuz", (3,)), 3),
        (Type("bool", (9,)), 9),
        (Type("c64", (2,)), 16),
        (Type("key<fry>", (2,)), 16),
        (Type("f32", ()), 4),
        (Type("f32", (0, 4)), 0),
    ],
)
def test_bytes(type_: Type, size: int) -> None:
    assert type_.bytes == size


def test_bits_of_a_word() -> None:
    assert (bits("i64"), bits("u16"), bits("f64")) == (64, 16, 64)


@pytest.mark.parametrize("text", ["f32[2,3]", "bf16[]", "i32[]~", "key<fry>[4]", "f8_e5m2[0,1]"])
def test_type_text_reads_back(text: str) -> None:
    assert str(Type.parse(text)) == text


def test_weak_types_differ() -> None:
    assert Type("f32", (), weak=True) != Type("f32", ())


# Equality.


def test_equal_structures_are_equal() -> None:
    assert chain(2.0, 3.0) == chain(2.0, 3.0)
    assert hash(chain(2.0, 3.0)) == hash(chain(2.0, 3.0))
    assert len({chain(2.0), chain(2.0), chain(3.0)}) == 2


def test_order_attributes_and_types_count() -> None:
    assert chain(2.0, 3.0) != chain(3.0, 2.0)
    assert chain(2.0) != chain(2.0, 2.0)
    narrow = new_input(Type("bf16", (2, 3)))
    assert Graph((narrow,), (scaled(narrow),)) != chain(2.0)


def test_origin_does_not_count() -> None:
    start = new_input(F32)
    named = Graph((start,), (scaled(start, origin=Origin("model.py:3", ("a rule",))),))
    assert named == chain(2.0)


def test_sharing_counts() -> None:
    """Two equal ops are not one: a graph says which values are shared."""
    start = new_input(F32)
    once, again = scaled(start), scaled(start)
    assert Graph((start,), (once, once)) != Graph((start,), (once, again))


def test_inputs_are_told_apart_by_place() -> None:
    a, b = new_input(F32), new_input(F32)
    assert Graph((a, b), (scaled(a),)) != Graph((a, b), (scaled(b),))
    assert Graph((a, b), (scaled(a),)) == Graph((b, a), (scaled(b),))


def test_ops_are_equal_by_identity() -> None:
    start = new_input(F32)
    value = scaled(start)
    assert value != scaled(start)
    assert value.op.results == (value,)


def test_opaque_handles_are_equal_by_key() -> None:
    first, second = object(), object()
    assert Opaque("mesh", first, "a") == Opaque("mesh", second, "a")
    assert Opaque("mesh", first, "a") != Opaque("mesh", first, "b")
    assert Opaque.of(first) == Opaque.of(first) != Opaque.of(second)


def test_regions_count() -> None:
    def looped(by: float) -> Graph:
        return trace_graph(
            lambda x: [lax.scan(lambda c, _: (c * by, None), x, None, 3)[0]], jnp.ones(4)
        )

    assert looped(2.0) == looped(2.0)
    assert looped(2.0) != looped(3.0)


# Graphs.


def test_ops_come_after_their_arguments() -> None:
    start = new_input(F32)
    left, right = scaled(start, 2.0), scaled(start, 3.0)
    total = make("add", scaled(left, 4.0), right)
    graph = Graph((start,), (total,))
    place = {op: i for i, op in enumerate(graph.ops)}
    assert len(place) == 4
    assert all(place[arg.op] < place[op] for op in graph.ops for arg in op.args if arg != start)


def test_users() -> None:
    start = new_input(F32)
    double = scaled(start)
    square = make("mul", double, double)
    graph = Graph((start,), (square, double))
    assert graph.users[double] == ((square.op, 0), (square.op, 1))
    assert graph.users[start] == ((double.op, 0),)
    assert square not in graph.users


def test_deep_graphs_do_not_recurse() -> None:
    graph = chain(*[2.0] * 20_000)
    assert len(graph.ops) == graph.op_count == 20_000
    assert graph == chain(*[2.0] * 20_000)
    verify(graph)


def test_walk_gives_the_ops_that_enclose() -> None:
    graph = trace_graph(
        lambda x: [lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0] + 1], jnp.ones(4)
    )
    enclosing = {op.name: [parent.name for parent in parents] for op, parents in graph.walk()}
    assert enclosing["sin"] == ["scan"]
    assert enclosing["add"] == []
    assert graph.op_count == sum(1 for _ in graph.walk())


def test_replace_values_keeps_what_does_not_depend() -> None:
    a, b = new_input(F32), new_input(F32)
    kept, total = scaled(a), make("add", scaled(a), scaled(b))
    moved = replace_values(Graph((a, b), (kept, total)), {b: a})
    assert moved.outputs[0] == kept
    assert moved.outputs[1].op.args[0] == total.op.args[0]
    assert moved.outputs[1].op.args[1].op.args == (a,)


def test_attributes_are_sorted_and_found() -> None:
    op = Op("any", (), attrs_of({"b": 2, "a": None}), (F32,))
    assert op.attrs == (("a", None), ("b", 2))
    assert (op["b"], op["a"], op.get("c", 5)) == (2, None, 5)
    with pytest.raises(KeyError, match="any has no attribute 'c'"):
        op["c"]


def test_origin_notes_each_rule_once_in_a_row() -> None:
    origin = Origin("model.py:3").then("a").then("a").then("b")
    assert origin == Origin("model.py:3", ("a", "b"))


# The verifier.


def test_valid_program() -> None:
    verify(chain(2.0, 3.0))


def rejected(graph: Graph, *texts: str, blame: str = "") -> InvalidProgram:
    with pytest.raises(InvalidProgram) as caught:
        verify(graph, blame)
    for text in texts:
        assert text in str(caught.value)
    return caught.value


def mistyped(origin: Origin = Origin()) -> tuple[Graph, Op]:
    start = new_input(F32)
    good = scaled(start, 2.0)
    bad = Op("test_ir.scaled", (good,), (("by", 3.0),), (Type("f32", (3, 2)),), (), origin)
    return Graph((start,), (scaled(Value(bad, 0), 4.0),)), bad


def test_wrong_type_is_told_with_blame_rule_window_and_line() -> None:
    graph, bad = mistyped(Origin("model.py:12 (block)", ("rotate", "fold")))
    error = rejected(
        graph,
        "pass fold: op test_ir.scaled says its results are f32[3,2], but they are f32[2,3]",
        "made by rule: fold",
        "     %0.0 = test_ir.scaled(%i0) : f32[2,3]",
        "  >> %1.0 = test_ir.scaled(%0.0) : f32[3,2]",
        "     %2.0 = test_ir.scaled(%1.0) : f32[3,2]",
        "at: model.py:12 (block)",
        blame="pass fold",
    )
    assert error.where == "model.py:12 (block)"
    assert window(graph, bad).count(">>") == 1


def test_users_line_is_named() -> None:
    def function(x: jax.Array) -> list[jax.Array]:
        return [jnp.sin(x)]

    line = inspect.getsourcelines(function)[1] + 1
    graph = trace_graph(function, jnp.ones(3))
    (sin,) = graph.ops
    broken = Op("sin", sin.args, sin.attrs, (Type("f32", (4,)),), (), sin.origin)
    error = rejected(Graph(graph.inputs, broken.results))
    assert error.where.startswith(f"{__file__}:{line} ")


def test_window_is_short() -> None:
    graph = chain(*range(100))
    shown = window(graph, graph.ops[50])
    assert len(shown.splitlines()) == 11
    assert "  >> %50.0" in shown


def test_unknown_op_gives_nearest_names() -> None:
    start = new_input(F32)
    graph = Graph((start,), Op("test_ir.scald", (start,), (), (F32,)).results)
    rejected(graph, "there is no op 'test_ir.scald'", "did you mean test_ir.scaled")


def test_unknown_attribute() -> None:
    start = new_input(F32)
    op = Op("test_ir.scaled", (start,), attrs_of({"by": 2.0, "times": 3}), (F32,))
    rejected(Graph((start,), op.results), "takes no attribute 'times'")


@pytest.mark.parametrize("value", [[1], {"a": 1}, object(), (1, [2]), Record("R", (("a", [1]),))])
def test_attribute_that_does_not_print(value: Any) -> None:
    start = new_input(F32)
    op = Op("test_ir.scaled", (start,), (("by", value),), (F32,))
    rejected(Graph((start,), op.results), "attribute 'by' is a bare", "wrap it")


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "a", Symbol("f32"), (1, ("a",)), Opaque.of(object()), F32]
)
def test_attribute_that_may_stand(value: Any) -> None:
    start = new_input(F32)
    verify(Graph((start,), (scaled(start, value),)))


def test_input_of_another_graph_is_told_at_its_reader() -> None:
    start, foreign = new_input(F32), new_input(F32)
    reader = scaled(foreign, origin=Origin("model.py:7 (block)"))
    error = rejected(
        Graph((start,), (make("add", start, reader),)),
        "op test_ir.scaled reads an input that belongs to another graph",
        "  >> ",
    )
    assert error.where == "model.py:7 (block)"


def test_output_that_is_an_input_of_another_graph() -> None:
    start, foreign = new_input(F32), new_input(F32)
    error = rejected(Graph((start,), (start, foreign)), blame="pass fold")
    assert str(error) == "pass fold: an output is the input of another graph"


def test_input_twice() -> None:
    start = new_input(F32)
    rejected(Graph((start, start), (start,)), "the same input twice")


def test_arguments_that_the_op_does_not_accept() -> None:
    a, b = new_input(F32), new_input(Type("f32", (5,)))
    op = Op("add", (a, b), (), (F32,))
    rejected(Graph((a, b), op.results), "op add does not accept its arguments")


def loop(body: Graph, start: Value) -> Graph:
    attrs = {"consts": 0, "carry": 1, "length": 2, "reverse": False, "unroll": 1}
    return Graph((start,), Op("scan", (start,), attrs_of(attrs), (F32,), (body,)).results)


def test_regions_are_verified() -> None:
    graph, bad = mistyped(Origin("model.py:12 (block)"))
    body = Graph(graph.inputs, (make("transpose", Value(bad, 0), permutation=(1, 0)),))
    error = rejected(loop(body, new_input(F32)), "  >> %1.0 = test_ir.scaled")
    assert error.where == "model.py:12 (block)"


def test_a_region_reads_nothing_from_outside() -> None:
    start, inner = new_input(F32), new_input(F32)
    body = Graph((inner,), (make("add", inner, start),))
    rejected(loop(body, start), "reads an input that belongs to another graph")


def test_an_op_moved_to_another_graph_is_verified_there() -> None:
    """Each op is checked once in its life, but what it reads depends on the graph."""
    start, other = new_input(F32), new_input(F32)
    value = scaled(start)
    verify(Graph((start,), (value,)))
    rejected(Graph((other,), (value,)), "reads an input that belongs to another graph")


def test_weakness_is_no_error() -> None:
    start = new_input(Type("f32", (2, 3), weak=True))
    op = Op("test_ir.scaled", (start,), (("by", 2.0),), (F32,))
    verify(Graph((start,), op.results))


# Building.


def test_build_infers_types() -> None:
    start = new_input(F32)
    op = build("transpose", start, permutation=(1, 0))
    assert op.types == (Type("f32", (3, 2)),)


def test_with_args_infers_again_where_types_changed() -> None:
    start, longer = new_input(F32), new_input(Type("f32", (4, 3)))
    op = build("transpose", start, permutation=(1, 0))
    assert opdef.with_args(op, (start,)) is op
    assert opdef.with_args(op, (longer,)).types == (Type("f32", (3, 4)),)


def test_an_op_is_defined_once() -> None:
    with pytest.raises(ValueError, match="already defined"):
        opdef.define(opdef.lookup("test_ir.scaled"))


def test_equal_constants_make_equal_graphs() -> None:
    one, other = (Graph((), (constant(jnp.arange(n)),)) for n in (5, 5))
    assert one == other
    assert Graph((), (constant(jnp.arange(5)),)) != Graph((), (constant(jnp.arange(6)),))
