"""Exchanges: how they are written, and what the compiler is told of each."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from dialect.arrays.evaluate import evaluate
from dialect.compiled.constraints import constrained
from dialect.machine.chips import CHIPS
from dialect.ops.sharding import constrain, show_layout, sides
from rewrite import Program
from rewrite.errors import ShardwrightError
from rewrite.ir import Graph, Type, Value, new_input
from rewrite.opdef import make

MESH = {"x": 2, "y": 2, "z": 2}
X, W = new_input(Type("f32", (8, 4, 16))), new_input(Type("f32", (16, 32)))
H = new_input(Type("f32", (16, 4, 8)))


def product(x: Value = X, w: Value = W, spec: str = "b t d, d f -> b t f") -> Value:
    return make("contract", x, w, spec=spec)


def exchanged(value: Value, layouts: str, **more: Any) -> Graph:
    return Graph((X, W, H), (make("exchange", value, layouts=layouts, **more),))


def told(graph: Graph, chip: str = "") -> list[str]:
    """The layouts of the constraints, in order, and the names of the ops behind the product."""
    ops = constrained(graph, MESH, CHIPS.get(chip)).ops
    return [
        show_layout(op["layout"]) if op.name == "constrain" else op.name
        for op in ops
        if op.name not in ("input", "contract")
    ]


@pytest.mark.parametrize(
    ("layouts", "sums", "by"),
    [
        ("batch d_ff@x,y", (), ""),
        ("batch d_model@x -> batch d_model@x,y", (), ""),
        ("batch d_model@x,y -> batch d_model@x", (), "all-gather y"),
        ("batch heads@y -> batch@y heads", (), "all-to-all y"),
        ("batch heads@y -> batch@x,y heads", ("x",), "reduce-scatter x, all-to-all y"),
        ("batch d_model", ("x", "y"), "all-reduce x y"),
        ("batch d_model -> batch d_model@x", ("x", "y"), "reduce-scatter x, all-reduce y"),
    ],
)
def test_both_sides_say_the_collectives(layouts: str, sums: tuple[str, ...], by: str) -> None:
    assert str(sides(layouts)) == layouts
    assert sides(layouts).collectives(sums) == by


@pytest.mark.parametrize("layouts", ["b c -> c b", "b", "b c -> b"])
def test_sides_of_other_axes_are_refused(layouts: str) -> None:
    text = (
        'program step\ninputs {\n  %x : f32[2,4] arg\n}\noutputs {\n  ""\n}\ntree * -> 0\nstep {\n'
        f'  %0 = exchange "{layouts}" (%x) {{of="hidden"}} : f32[2,4]\n  return %0\n}}\n'
    )
    with pytest.raises(ShardwrightError):
        Program.parse(text)


@pytest.mark.parametrize(
    ("value", "layouts", "more", "expected"),
    [
        (product(), "batch time d_ff@x", {"of": "hidden"}, ["_ _ x"]),
        (
            product(),
            "batch time vocab@x -> batch@y time vocab@x",
            {"of": "logits"},
            ["_ _ x", "y _ x"],
        ),
        (X, "batch time d_model@x -> batch time d_model", {"of": "factor"}, ["_ _ _"]),
        (X, "batch time d_model", {"of": "residual", "sums": ("x",)}, ["_ _ _"]),
        (
            product(X, H, "b t d, d h k -> b t h k"),
            "batch time heads@y,z d_head -> batch@x,z time heads@y d_head",
            {"of": "heads"},
            ["_ _ yz _", "x _ yz _", "xz _ y _"],
        ),
    ],
)
def test_a_pair_determines_the_collective(
    value: Value, layouts: str, more: dict[str, Any], expected: list[str]
) -> None:
    """What is no product, and so is pinned already, is told where it goes alone."""
    assert told(exchanged(value, layouts, **more)) == expected


HIDDEN = {"of": "hidden", "sums": ("x",)}
ROWS = "batch time d_ff@y -> batch@x time d_ff@y"


def test_partial_sums_of_hidden_values_are_scattered_as_rows() -> None:
    assert told(exchanged(product(), ROWS, **HIDDEN)) == ["reshape", "_ y", "x y", "reshape"]


def test_where_computing_hides_the_reading_they_are_scattered_in_windows() -> None:
    x = new_input(Type("f32", (512, 2048, 16)))
    graph = Graph((x, W), (make("exchange", product(x), layouts=ROWS, **HIDDEN),))
    assert told(graph, "v4") == ["x _ y"]
    assert told(graph) == ["reshape", "_ y", "x y", "reshape"]


@pytest.mark.parametrize(
    ("layouts", "expected"),
    [
        ("batch time heads@y d_head -> batch@x time heads@y d_head", ["_ y _", "x y _"]),
        ("batch time heads@y d_head -> batch@z time heads@x d_head", []),
    ],
)
def test_heads_are_scattered_as_rows_that_attention_owns(layouts: str, expected: list[str]) -> None:
    heads = product(X, H, "b t d, d h k -> b t h k")
    found = told(exchanged(heads, layouts, of="heads", sums=("x",)))
    assert [each for each in found if each.count(" ") == 2] == expected


@pytest.mark.parametrize("count", [1, 2])
def test_partial_sums_of_the_stream_stay_on_their_chips(count: int) -> None:
    value = product()
    value = make("add", value, product(X, W)) if count == 2 else value
    graph = exchanged(value, "batch time d_model", of="residual", sums=("y",))
    parts = ["partial_contract", "y _ _ _"]
    added = ["add"] if count == 2 else []
    assert told(graph) == [*parts, *added, "reduce_sum", "_ _ _"]
    random = np.random.default_rng(3)
    args = [random.standard_normal(each.type.shape, np.float32) for each in graph.inputs]
    (found,) = evaluate(constrained(graph, MESH, None), args)
    (expected,) = jax.jit(lambda *args: evaluate(graph, args))(*args)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_those_of_a_matrix_are_reduced_as_asked() -> None:
    x = new_input(Type("f32", (8, 1, 16)))
    asked = make("exchange", product(x), layouts="batch 1 d_model", of="residual", sums=("y",))
    assert told(Graph((x, W), (asked,))) == ["_ _ _"]


def test_partial_sums_that_lie_otherwise_are_added_up_apart() -> None:
    """Heads over x and z, d_ff over y: what is one sum is exchanged once all the same."""
    heads = make("exchange", new_input(Type("f32", (8, 4, 16))), layouts="b t h@x,z", of="factor")
    hidden = make("exchange", new_input(Type("f32", (8, 4, 16))), layouts="b t f@y", of="factor")
    value = make("add", product(heads), product(hidden))
    asked = make("exchange", value, layouts="b t d", of="residual", sums=("x", "z", "y"))
    graph = Graph((heads.op.args[0], hidden.op.args[0], W), (asked,))
    part = ["partial_contract", "reduce_sum"]
    found = [each for each in told(graph) if "_" not in each or each in part]
    assert sorted(found) == sorted([*part, *part, "add"])


def test_a_layout_has_no_more_dimensions_than_its_array() -> None:
    layout = (("x",), (), (), ())
    with pytest.raises(ValueError, match="a layout of 4 dimensions is none of 3"):
        constrain(np.zeros((8, 4, 16)), layout=layout)


def test_a_softmax_has_no_base_but_two() -> None:
    q, k = new_input(Type("f32", (2, 3, 4))), new_input(Type("f32", (2, 5, 4)))
    with pytest.raises(ValueError, match="a softmax has no base 3"):
        make("attend", q, k, k, axes="g t k, g s k, g s v -> g t v", base=3)
