"""Binding time: what depends on parameters alone, and the cheapest place to cut it off."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import framework  # noqa: F401  (framework registers)
from dialect.normal.normal_form import normal_form
from dialect.ops import nn, quant  # noqa: F401  (framework registers)
from dialect.staging.binding import bytes_read, frontier, fuses, region_bound
from passes.stage import split_loops
from rewrite.dataflow import bound_values, known_values
from rewrite.ir import Graph, Symbol, Type, Value, new_input
from rewrite.opdef import make
from rewrite.verify import verify
from tests.kit import graph_of, op_of
from tests.scaled import in_steps

W, X = jnp.ones((16, 16)), jnp.ones((2, 16))


def normal_graph_of(function: Callable[..., Any], *args: Any) -> Graph:
    """In normal form; the last argument is what a step gets, the others are parameters."""
    return normal_form(graph_of(function, *args))


def cut(graph: Graph) -> list[str]:
    """The frontier behind all inputs but the last, as op names with types."""
    return [f"{v.op.name} {v.type}" for v in frontier(graph, graph.inputs[:-1])]


# What is bound.


def test_bound_values_depend_on_parameters_alone() -> None:
    graph = normal_graph_of(lambda w, x: jnp.sin(w) @ x.T + jnp.arange(2) * x.sum(), W, X)
    bound = bound_values(graph, graph.inputs[:1])
    assert {value.op.name for value in bound} == {"input", "sin"}


def test_constants_are_known_but_not_bound() -> None:
    graph = normal_graph_of(lambda w, x: w * jnp.arange(16.0) @ x.T, W, X)
    bound, known = (f(graph, graph.inputs[:1]) for f in (bound_values, known_values))
    assert bound < known
    assert {value.op.name for value in known - bound} >= {"iota"}


def test_regions_bind_constants_and_slices() -> None:
    def function(w: Any, stack: Any, x: Any) -> Any:
        return lax.scan(lambda c, a: (c @ w + a[0] + a[1].sum(), None), x, (stack, stack * x.sum()))

    graph = normal_graph_of(function, W, jnp.ones((3, 16)), X)
    (scan,) = (op for op in graph.ops if op.name == "scan")
    bound = region_bound(scan, bound_values(graph, graph.inputs[:2]))
    body = scan.regions[0]
    assert [value in bound for value in body.inputs] == [True, False, True, False]


def test_fusing_ops() -> None:
    graph = normal_graph_of(
        lambda w, x: (w.reshape(16, 1, 16) * 2, w.reshape(4, 64), w.T, w @ w, jnp.exp(w)), W, X
    )
    fused = {f"{op.name} {op.types[0]}": fuses(op) for op in graph.ops if op.name != "const"}
    assert fused == {
        "reshape f32[16,1,16]": True,
        "mul f32[16,1,16]": True,
        "reshape f32[4,64]": False,
        "transpose f32[16,16]": False,
        "contract f32[16,16]": False,
        "exp f32[16,16]": True,
    }


# Where it is cut.


def test_quantised_weights_are_kept_as_integers_and_scales() -> None:
    def function(w: Any, x: Any) -> Any:
        return op_of("contract")(x, in_steps(w, axes=(0,)), spec="b d, d f -> b f")

    graph = normal_graph_of(function, W, X)
    assert sorted(cut(graph)) == ["quantize f32[16]", "quantize i8[16,16]"]


def test_products_of_parameters_are_computed_once() -> None:
    assert cut(normal_graph_of(lambda a, b, x: x @ (a @ b), W, W, X)) == ["contract f32[16,16]"]


def test_what_need_not_change_stays_the_users_own() -> None:
    """Equal in bytes, another shape is no better than the user's: the earliest of equal cuts."""
    assert cut(normal_graph_of(lambda w, x: x @ w.reshape(16, 1, 16)[:, 0], W, X)) == [
        "input f32[16,16]"
    ]


def test_arithmetic_is_done_once() -> None:
    """Equal in bytes, w + 1 would be added up in every step."""
    assert cut(normal_graph_of(lambda w, x: x @ (w + 1), W, X)) == ["add f32[16,16]"]


def test_narrower_copies_are_kept() -> None:
    graph = normal_graph_of(lambda w, x: x @ w.astype("bfloat16"), W, X.astype("bfloat16"))
    assert cut(graph) == ["convert_element_type bf16[16,16]"]


def test_wider_copies_are_not() -> None:
    graph = normal_graph_of(lambda w, x: x @ w.astype("float32"), W.astype("bfloat16"), X)
    assert cut(graph) == ["input bf16[16,16]"]


def test_broadcasts_are_not_kept() -> None:
    graph = normal_graph_of(lambda b, x: jnp.where(x > 0, jnp.broadcast_to(b, (2, 16)), x), W[0], X)
    assert cut(graph) == ["input f32[16]"]


def test_one_source_of_two_is_kept() -> None:
    graph = normal_graph_of(lambda w, x: x @ jnp.sin(w) + x @ jnp.cos(w), W, X)
    assert cut(graph) == ["input f32[16,16]"]


def test_two_narrow_results_are_kept_for_one_wide_source() -> None:
    def function(w: Any, x: Any) -> Any:
        return x @ jnp.sin(w).astype("bfloat16"), x * jnp.cos(w).sum()

    graph = normal_graph_of(function, W, X.astype("bfloat16"))
    assert sorted(cut(graph)) == ["convert_element_type bf16[16,16]", "reduce_sum f32[]"]


def test_an_output_is_needed() -> None:
    assert sorted(cut(normal_graph_of(lambda w, x: (w @ w, x), W, X))) == ["contract f32[16,16]"]


def test_unused_parameters_are_cut_off() -> None:
    assert cut(normal_graph_of(lambda a, b, x: x @ a, W, W, X)) == ["input f32[16,16]"]


def test_tables_are_read_by_rows() -> None:
    table, ids = new_input(Type("f32", (100, 8))), new_input(Type("i32", (3,)))
    rows = make("take", table, ids, mode=Symbol("GatherScatterMode.CLIP"))
    assert bytes_read(Graph((table, ids), (rows,)), table) == 3 * 8 * 4
    both = Graph((table, ids), (rows, make("exp", table)))
    assert bytes_read(both, table) == 100 * 8 * 4


def test_a_table_is_kept_as_its_rows_are_read() -> None:
    """exp(table) is read in three rows, table would be read whole."""

    def function(table: Any, ids: Any) -> Any:
        return op_of("take")(jnp.exp(table), ids, mode=lax.GatherScatterMode.CLIP)

    graph = normal_graph_of(function, jnp.ones((100, 8)), jnp.arange(3))
    assert cut(graph) == ["exp f32[100,8]"]


# The cheapest of all cuts.

DTYPES = ("f32", "bf16", "i8")


@st.composite
def programs(draw: Any) -> Graph:
    """Two parameters, some conversions, sums and products of them, and a step that reads some."""
    params = [new_input(Type(draw(st.sampled_from(DTYPES)), (4, 4))) for _ in range(2)]
    values: list[Value] = list(params)
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["convert", "add", "product"]))
        one = draw(st.sampled_from(values))
        if kind == "convert":
            dtype = draw(st.sampled_from(DTYPES))
            values.append(
                make("convert_element_type", one, new_dtype=Symbol(dtype), weak_type=False)
            )
            continue
        other = draw(st.sampled_from([v for v in values if v.type == one.type]))
        if kind == "add":
            values.append(make("add", one, other))
        else:
            values.append(
                make("contract", one, other, spec="a b, b c -> a c", dtype=Symbol(one.type.dtype))
            )
    x = new_input(Type("f32", (4, 4)))
    read = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    mixed = [
        make("mul", x, make("convert_element_type", v, new_dtype=Symbol("f32"), weak_type=False))
        for v in read
    ]
    return Graph((*params, x), tuple(mixed))


def computable(value: Value, chosen: set[Value], bound: frozenset[Value]) -> bool:
    if value in chosen:
        return True
    op = value.op
    return fuses(op) and all(computable(arg, chosen, bound) for arg in op.args if arg in bound)


@settings(max_examples=60, deadline=None)
@given(programs())
def test_no_cut_is_cheaper(graph: Graph) -> None:
    params = graph.inputs[:-1]
    bound = bound_values(graph, params)
    needed = {
        value
        for value in bound
        if any(op.results[0] not in bound for op, _ in graph.users.get(value, ()))
    }
    found = frontier(graph, params)
    assert all(computable(value, set(found), bound) for value in needed)
    cost = sum(value.type.bytes for value in found)
    for count in range(len(bound) + 1):
        for chosen in combinations(bound, count):
            if sum(value.type.bytes for value in chosen) < cost:
                assert not all(computable(value, set(chosen), bound) for value in needed)


# Loops.


def loop(body: Callable[..., Any], **options: Any) -> tuple[Graph, list[Any]]:
    """A scan of `body` over three weights, and its arguments."""
    random = np.random.default_rng(0)
    args = [jnp.asarray(random.standard_normal((3, 16, 16)), jnp.float32), X]
    return normal_graph_of(lambda ws, x: lax.scan(body, x, ws, **options), *args), args


def split(graph: Graph) -> Graph:
    made = split_loops(graph, graph.inputs[:-1])
    verify(made)
    return made


def test_loops_are_split() -> None:
    """What a body does to its weights runs in a loop of its own, before."""
    graph, args = loop(lambda c, w: (jnp.tanh(c @ (w @ w)), c.sum()))
    made = split(graph)
    first, second = (op for op in made.ops if op.name == "scan")
    assert [op.name for op in first.regions[0].ops] == ["contract"]
    assert [op.name for op in second.regions[0].ops].count("contract") == 1
    assert second.args[1:] == first.results
    assert cut(made) == ["scan f32[3,16,16]"]
    for one, other in zip(evaluate(made, args), evaluate(graph, args)):
        np.testing.assert_array_equal(one, other)


def test_loops_that_only_read_their_weights_stay_whole() -> None:
    graph, _ = loop(lambda c, w: (jnp.tanh(c @ w), None))
    assert split(graph) == graph
    assert cut(graph) == ["input f32[3,16,16]"]


def test_reversed_loops_are_split_too() -> None:
    graph, args = loop(lambda c, w: (jnp.tanh(c @ (w @ w)), c), reverse=True)
    made = split(graph)
    assert [op.name for op in made.ops].count("scan") == 2
    for one, other in zip(evaluate(made, args), evaluate(graph, args)):
        np.testing.assert_array_equal(one, other)


def test_loops_within_loops_are_split() -> None:
    def outer(c: Any, w: Any) -> Any:
        return lax.scan(lambda d, row: (d + jnp.exp(row @ row) * d, None), c, w)[0], None

    graph, args = loop(outer)
    made = split(graph)
    # The rows' products of all layers become one array, one number per row and layer.
    assert cut(made)[0].endswith("f32[3,16]")
    for one, other in zip(evaluate(made, args), evaluate(graph, args)):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_loops_over_parameters_alone_are_left() -> None:
    def function(ws: Any, x: Any) -> Any:
        return x @ lax.scan(lambda c, w: (c @ w, None), jnp.eye(16), ws)[0]

    graph = normal_graph_of(function, jnp.ones((3, 16, 16)), X)
    assert split(graph) == graph
    assert cut(graph) == ["scan f32[16,16]"]
