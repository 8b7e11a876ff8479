"""Axis signatures: their text, their kinds, and whether lax's declare what lax computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from dialect.arrays.evaluate import evaluate
from dialect.jaxprs import framework  # noqa: F401  (register JAX and the words)
from dialect.jaxprs.jaxpr import trace_graph
from dialect.ops import nn  # noqa: F401  (register JAX and the words)
from dialect.ops.lax import reshape_signature
from dialect.ops.nn import Traced
from dialect.staging import marks  # noqa: F401  (defines the marks)
from rewrite import opdef
from rewrite.errors import TextError
from rewrite.ir import Graph, Op, Symbol, Type
from rewrite.signature import Array, Signature, letters, opaque, parse_array, show_array

LETTER = st.sampled_from(["b", "t", "d", "h", "k", "x0", "s", "o_1"])
DIMENSION = st.one_of(
    st.just(()), st.tuples(LETTER), st.lists(LETTER, min_size=2, max_size=3).map(tuple)
)
ARRAY = st.lists(DIMENSION, max_size=4).map(tuple)


@st.composite
def signatures(draw: Any) -> Signature:
    inputs = draw(st.lists(ARRAY.filter(bool), max_size=3).map(tuple))
    outputs = draw(st.lists(ARRAY.filter(bool), min_size=1, max_size=2).map(tuple))
    used = [x for array in (*inputs, *outputs) for x in letters(array)]
    need = draw(st.sets(st.sampled_from(used))) if used else set()
    return Signature(inputs, outputs, frozenset(need))


@given(signatures())
def test_text_reads_back(signature: Signature) -> None:
    assert Signature.parse(str(signature)) == signature


@given(ARRAY)
def test_array_text_reads_back(array: Array) -> None:
    assert parse_array(show_array(array)) == array


def test_one_in_parentheses_is_no_axis() -> None:
    assert Signature.parse("(1) b -> (1 b)") == Signature.parse("1 b -> b")


def test_text() -> None:
    found = Signature.parse("b t d, d (h k) -> b t h k; need d")
    assert found.inputs == ((("b",), ("t",), ("d",)), (("d",), ("h", "k")))
    assert found.outputs == ((("b",), ("t",), ("h",), ("k",)),)
    assert str(found) == "b t d, d (h k) -> b t h k; need d"
    assert Signature.parse("b 1, -> b").inputs == ((("b",), ()), ())


@pytest.mark.parametrize(
    "text, reason",
    [
        ("b t d", "no '->'"),
        ("b (h k -> b", "unclosed parenthesis"),
        ("b h) -> b", r"bad axis '\)'"),
        ("b ((h) k) -> b", r"bad axis '\('"),
        ("b$ -> b", r"bad axis 'b\$'"),
        ("b -> b; want b", "expected 'need'"),
    ],
)
def test_bad_text_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(TextError, match=reason):
        Signature.parse(text)


def test_kinds() -> None:
    found = Signature.parse("b t d, d h k -> b t h k; need k")
    kinds = {letter: found.kind(letter) for letter in found.letters}
    assert kinds == {"b": "map", "t": "map", "d": "reduce", "h": "map", "k": "need"}


def test_row_wise_letters_index_independent_rows() -> None:
    assert Signature.parse("b t d, d f -> b t f").row_wise == {"b", "t", "f"}
    assert Signature.parse("b d -> b d, b; need d").row_wise == {"b"}
    assert Signature.parse("b d -> b, d").row_wise == set()


def test_opaque_needs_everything() -> None:
    found = opaque((2, 0), (1,))
    assert {found.kind(letter) for letter in found.letters} == {"need"}
    assert len(found.letters) == 3


# Reshapes.


@pytest.mark.parametrize(
    "old, new, text",
    [
        ((8, 32), (8, 4, 8), "x0 (x1 x2) -> x0 x1 x2"),
        ((8, 4, 8), (8, 32), "x0 x1 x2 -> x0 (x1 x2)"),
        ((8, 32), (256,), "x0 x1 -> (x0 x1)"),
        ((4, 6), (2, 12), "(x0 x1) x2 -> x0 (x1 x2)"),
        ((3, 1, 4), (3, 4), "x0 1 x1 -> x0 x1"),
        ((3, 4), (1, 3, 1, 4), "x0 x1 -> 1 x0 1 x1"),
        ((3, 1), (3, 1), "x0 x1 -> x0 x1"),
        ((1,), (), "1 -> "),
    ],
)
def test_reshape(old: tuple[int, ...], new: tuple[int, ...], text: str) -> None:
    assert str(reshape_signature(old, new)) == text


def test_reshape_that_tears_its_axes_needs_them() -> None:
    found = reshape_signature((6, 4), (4, 6))
    assert {found.kind(letter) for letter in found.letters} == {"need"}


SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5).map(tuple)


@given(SHAPES, st.data())
def test_reshape_factors_are_those_of_numpy(old: tuple[int, ...], data: Any) -> None:
    """Split by the factors, both sides are the same array."""
    new = tuple(data.draw(regrouped(math.prod(old))))
    found = reshape_signature(old, new)
    if found.need:
        return
    (left,), (right,) = found.inputs, found.outputs
    sizes = factor_sizes((left, old), (right, new))
    array = np.arange(math.prod(old)).reshape(old)
    for shape, axes in ((old, left), (new, right)):
        assert [math.prod(sizes[x] for x in d) for d in axes] == list(shape)
    assert letters(left) == letters(right)
    factors = [sizes[x] for x in letters(left)]
    assert (array.reshape(factors).reshape(new) == array.reshape(new)).all()


@st.composite
def regrouped(draw: Any, size: int) -> list[int]:
    shape = []
    while size > 1:
        part = draw(st.sampled_from([n for n in range(2, size + 1) if size % n == 0]))
        shape.append(part)
        size //= part
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return shape


def factor_sizes(*sides: tuple[Array, tuple[int, ...]]) -> dict[str, int]:
    """The size of every factor: a dimension of several gets those the other side knows."""
    sizes: dict[str, int] = {}
    for _ in range(3):
        for axes, shape in sides:
            for dimension, size in zip(axes, shape):
                unknown = [x for x in dimension if x not in sizes]
                if len(unknown) == 1:
                    rest = math.prod(sizes[x] for x in dimension if x in sizes)
                    sizes[unknown[0]] = size // rest
    return sizes


# What signatures of lax ops claim, checked with numbers: along an axis that an op maps, the op of
# a part of its inputs is that part of its output.

KEY = jax.random.key(0)


def drawn(*shape: int) -> jax.Array:
    return jax.random.normal(KEY, shape)


IDS = jnp.array([2, 0, 1], jnp.int32)
TABLE = jnp.array([[2, 0], [1, 3]], jnp.int32)
OPS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "add": (lambda x, y: x + y, (drawn(3, 4), drawn(1, 4)), "x0 x1, 1 x1 -> x0 x1"),
    "matrix product": (lambda x, y: x @ y, (drawn(3, 4), drawn(4, 5)), "l0 l1, l1 r1 -> l0 r1"),
    "batched product": (
        lambda x, y: lax.dot_general(x, y, (((2,), (1,)), ((0,), (2,)))),
        (drawn(3, 2, 4), drawn(5, 4, 3)),
        "l0 l1 l2, r0 l2 l0 -> l0 l1 r0",
    ),
    "sum": (lambda x: x.sum(1), (drawn(3, 4, 5),), "x0 x1 x2 -> x0 x2"),
    "cumsum": (lambda x: jnp.cumsum(x, 1), (drawn(3, 4),), "x0 x1 -> x0 x1; need x1"),
    "sort": (lambda x: jnp.sort(x, 0), (drawn(3, 4),), "x0 x1 -> x0 x1; need x0"),
    "transpose": (lambda x: x.transpose(2, 0, 1), (drawn(3, 4, 5),), "x0 x1 x2 -> x2 x0 x1"),
    "broadcast": (
        lambda x: lax.broadcast_in_dim(x, (4, 3, 5), (1, 2)),
        (drawn(3, 1),),
        "x1 1 -> x0 x1 x2",
    ),
    "slice": (lambda x: x[:, 1:3], (drawn(3, 4),), "x0 i0_1 -> x0 x1; need i0_1 x1"),
    "concatenate": (
        lambda x, y: jnp.concatenate([x, y], 1),
        (drawn(3, 4), drawn(3, 2)),
        "x0 i0_1, x0 i1_1 -> x0 x1; need i0_1 i1_1 x1",
    ),
    "pad": (
        lambda x: jnp.pad(x, ((0, 0), (1, 0))),
        (drawn(3, 4),),
        "x0 i0_1,  -> x0 x1; need i0_1 x1",
    ),
    "reverse": (lambda x: x[::-1], (drawn(3, 4),), "x0 x1 -> x0 x1; need x0"),
    "gather rows": (lambda x, i: x[i], (drawn(4, 5), IDS), "t0 t1, r0 1 -> r0 t1; need t0"),
    "gather columns": (
        lambda x, i: x[:, i],
        (drawn(4, 5), IDS),
        "t0 t1, r0 1 -> t0 r0; need t1",
    ),
    "gather batched": (
        lambda x, i: jnp.take_along_axis(x, i, axis=1),
        (drawn(3, 5), jnp.zeros((3, 2), jnp.int32)),
        "r0 t1, r0 r1 1 -> r0 r1; need t1",
    ),
    "scatter rows": (
        lambda x, i, u: x.at[i].add(u),
        (drawn(4, 5), IDS, drawn(3, 5)),
        "x0 x1, r0 1, r0 x1 -> x0 x1; need x0",
    ),
    "dynamic update": (
        lambda x, u, i: lax.dynamic_update_slice(x, u, (0, i[0])),
        (drawn(3, 5), drawn(3, 1), IDS),
        "x0 i0_1, x0 i1_1, ,  -> x0 i0_1; need i1_1 i0_1",
    ),
    "squeeze": (lambda x: jnp.squeeze(x, 1), (drawn(3, 1, 4),), "x0 1 x2 -> x0 x2"),
    "top k": (lambda x: lax.top_k(x, 2)[0], (drawn(3, 4),), ""),
}


def graph_and_op(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Graph, Op]:
    """The graph of a function, and the op that it is about: the one that gives the result."""
    graph = trace_graph(lambda *arrays: [function(*arrays)], *args)
    return graph, graph.outputs[0].op


def main_op(function: Callable[..., Any], args: tuple[Any, ...]) -> Op:
    return graph_and_op(function, args)[1]


@pytest.mark.parametrize("name", OPS)
def test_mapped_axes_may_be_cut(name: str) -> None:
    """The property that sharding relies on, for every letter of every op."""
    function, args, _ = OPS[name]
    graph, op = graph_and_op(function, args)
    found = opdef.signature(op)
    arrays = [jnp.asarray(each) for each in evaluate(Graph(graph.inputs, op.args), args)]
    whole = by_reference(op, dict(op.attrs), arrays)
    for letter in found.letters:
        places = [array.index((letter,)) if (letter,) in array else None for array in found.inputs]
        if found.kind(letter) != "map" or all(place is None for place in places):
            continue
        parts = [a if place is None else half(a, place) for a, place in zip(arrays, places)]
        expected = half(whole, found.outputs[0].index((letter,)))
        attrs = attributes_of_part(op, parts, expected.shape)
        np.testing.assert_allclose(by_reference(op, attrs, parts), expected, rtol=1e-5, atol=1e-6)


def half(array: Any, axis: int) -> Any:
    return array[(slice(None),) * axis + (slice(0, array.shape[axis] // 2),)]


def by_reference(op: Op, attrs: dict[str, Any], arrays: list[Any]) -> Any:
    out = opdef.lookup(op.name).reference(*arrays, **attrs)
    return out[0] if isinstance(out, list) else out


def attributes_of_part(op: Op, parts: list[Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The op's attributes, those that repeat a shape as the parts have it."""
    attrs = dict(op.attrs)
    if "shape" in attrs:
        attrs["shape"] = shape
    if "limit_indices" in attrs:
        attrs["limit_indices"] = tuple(map(sum, zip(attrs["start_indices"], shape)))
    if "slice_sizes" in attrs:
        attrs["slice_sizes"] = tuple(map(min, attrs["slice_sizes"], parts[0].shape))
    return attrs


@pytest.mark.parametrize("name", [name for name in OPS if OPS[name][2]])
def test_signatures_of_lax(name: str) -> None:
    function, args, text = OPS[name]
    found, expected = opdef.signature(main_op(function, args)), Signature.parse(text)
    assert canonical(found) == canonical(expected)


def test_unknown_primitive_needs_everything() -> None:
    function, args, _ = OPS["top k"]
    found = opdef.signature(main_op(function, args))
    assert {found.kind(letter) for letter in found.letters} == {"need"}


def canonical(found: Signature) -> Signature:
    """The signature with its letters numbered in order of appearance."""
    number = {letter: f"a{i}" for i, letter in enumerate(found.letters)}

    def array(axes: Array) -> Array:
        return tuple(tuple(number[x] for x in dimension) for dimension in axes)

    need = frozenset(number[x] for x in found.need)
    return Signature(tuple(map(array, found.inputs)), tuple(map(array, found.outputs)), need)


@pytest.mark.parametrize("name", sorted(Traced))
def test_composites_declare_axes_of_their_own_shapes(name: str) -> None:
    """Every composite takes its arguments, and refuses others where an axis has two sizes."""
    op = composite(name)
    types, arrays = [arg.type for arg in op.args], opdef.signature(op).inputs
    assert opdef.infer(op) == op.types and len(arrays) == len(types)
    axes = [axis for array in arrays for axis in array]
    for number, array in enumerate(arrays):
        for place, axis in enumerate(array):
            if axis and axes.count(axis) > 1:
                shape = list(types[number].shape)
                shape[place] += 2
                other = types.copy()
                other[number] = Type(types[number].dtype, tuple(shape))
                with pytest.raises((ValueError, TypeError)):
                    opdef.lookup(name).infer(tuple(other), dict(op.attrs), op.regions)


def composite(name: str) -> Op:
    x, mode = drawn(2, 3, 4), lax.GatherScatterMode.CLIP
    made: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "contract": (
            lambda x, w: Traced["contract"](x, w, spec="a b c, c d -> a b d"),
            (x, drawn(4, 5)),
        ),
        "partial_contract": (
            lambda x, w: Traced["partial_contract"](x, w, spec="a b c, c d -> e a b d", parts=2),
            (x, drawn(4, 5)),
        ),
        "softmax": (Traced["softmax"], (x,)),
        "rms_norm": (lambda x: Traced["rms_norm"](x, epsilon=1e-5), (x,)),
        "layer_norm": (lambda x: Traced["layer_norm"](x, epsilon=1e-5), (x,)),
        "rope": (Traced["rope"], (x, drawn(3, 2), drawn(3, 2))),
        "activate": (lambda x: Traced["activate"](x, kind="silu"), (x,)),
        "gate": (lambda x, y: Traced["gate"](x, y, kind="silu"), (x, x)),
        "quantize": (lambda x: Traced["quantize"](x, axes=(1,), form="int8"), (x,)),
        "dequantize": (
            lambda q, s: Traced["dequantize"](q, s, axes=(1,), dtype=Symbol("f32")),
            (x.astype(jnp.int8), drawn(2, 4)),
        ),
        "known": (lambda x: Traced["known"](x, alone=True), (x,)),
        "shared": (Traced["shared"], (x,)),
        "merge_heads": (
            lambda x: Traced["merge_heads"](x, axis=2, count=2, by="mean"),
            (x,),
        ),
        "spread_heads": (
            lambda x: Traced["spread_heads"](x, axis=2, count=2, by="first"),
            (x,),
        ),
        "shared_heads": (
            lambda w: Traced["shared_heads"](w, axis=1, count=2, summed=(0,)),
            (drawn(6, 4, 3),),
        ),
        "padded": (lambda x: Traced["padded"](x, axis=1, size=9), (x,)),
        "unpadded": (lambda x: Traced["unpadded"](x, axis=1, size=2), (x,)),
        "cleared": (lambda x: Traced["cleared"](x, axis=1, size=2), (x,)),
        "picked": (
            lambda x: Traced["picked"](x, jnp.asarray([[[2], [0]]], jnp.int32), axis=1),
            (x,),
        ),
        "some_rows": (lambda x: Traced["some_rows"](x, rows=(1,), size=2), (x,)),
        "all_rows": (lambda x: Traced["all_rows"](x, rows=(1, 2), size=4), (x,)),
        "masked": (lambda x: Traced["masked"](x, x, axis=1, keep=1, of=3), (drawn(2, 3, 4),)),
        "straight_through": (Traced["straight_through"], (x, x)),
        "largest": (lambda x: Traced["largest"](x, count=2), (x,)),
        "take": (lambda t, i: Traced["take"](t, i, mode=mode), (drawn(5, 4), IDS)),
        "wrap": (lambda i: Traced["wrap"](i, size=4), (IDS,)),
        "modulo": (lambda i: Traced["modulo"](i, size=4), (IDS,)),
        "cache_write": (
            lambda c, n, i: Traced["cache_write"](c, n, i[0], axes=(1,)),
            (x, drawn(2, 1, 4), IDS),
        ),
        "cache_put": (
            lambda c, n, i: Traced["cache_put"](c, n, i, axis=1, mode=mode),
            (x, drawn(2, 1, 4), IDS[:1]),
        ),
        "cache_read": (lambda c, i: Traced["cache_read"](c, i[0]), (x, IDS)),
        "expert_product": (
            lambda r, w, n: Traced["expert_product"](r, w, n, dtype=None, precision=None),
            (drawn(6, 4), x[:, :1].reshape(2, 4, 1), jnp.array([2, 4])),
        ),
        "paged": (lambda p, t: Traced["paged"](p, t, page=3), (drawn(6, 2, 3, 4), TABLE)),
        "pages": (lambda c: Traced["pages"](c, page=3, layers=0), (drawn(2, 2, 6, 4),)),
        "apart": (lambda k: Traced["apart"](k, axis=1, sizes=(1, 2)), (x,)),
        "joined": (lambda k, v: Traced["joined"](k, v, axis=1), (x, x[:, :2])),
        "columns": (lambda k: Traced["columns"](k, axis=1), (x,)),
        "total": (lambda v: Traced["total"](v, axis=1), (x,)),
        "with_columns": (
            lambda k, c: Traced["with_columns"](k, c, axis=1),
            (x, jnp.moveaxis(x, 1, 2)),
        ),
        "with_total": (lambda v, t: Traced["with_total"](v, t, axis=1), (x, x[:, 0])),
        "around": (lambda r: Traced["around"](r, axis=1, context=6, size=3), (x,)),
        "first_round": (lambda c: Traced["first_round"](c, axis=1, size=2), (x,)),
        "checked": (lambda x: Traced["checked"](x, x > 0), (x,)),
        "rings": (lambda k, p: Traced["rings"](k, p[:2], axes=(1,), size=2, rows=0), (x, IDS)),
        "unwound": (lambda r, p: Traced["unwound"](r, p[0], axes=(1,), contexts=(6,)), (x, IDS)),
        "attend_layer": (
            lambda q, k, i: Traced["attend_layer"](
                q, k, k, i[0], axes="b t k, b s k, b s v -> b t v", blocks=(8, 3)
            ),
            (x, drawn(3, 2, 6, 4), IDS),
        ),
        "axis_of_one": (lambda x: Traced["axis_of_one"](x, axis=1), (x,)),
        "without_axis": (lambda x: Traced["without_axis"](x[:, :1], axis=1), (x,)),
        "pages_here": (lambda t: Traced["pages_here"](t, pages=6, here=3), (TABLE,)),
        "pages_behind": (
            lambda t: Traced["pages_behind"](t, 1, pages=6, layers=2, mode=mode),
            (TABLE,),
        ),
        "page_put": (
            lambda p, n, t, i: Traced["page_put"](p, n, t, i, mode=mode),
            (drawn(6, 2, 3, 4), drawn(2, 2, 3, 4), TABLE, IDS),
        ),
        "attend_pages": (
            lambda q, k, t: Traced["attend_pages"](
                q, k, t, k, t, axes="b t k, b s k, b s v -> b t v", blocks=(8, 3)
            ),
            (x, drawn(6, 3, 4), TABLE),
        ),
        "attend": (
            lambda q, k, v, m: Traced["attend"](
                q,
                k,
                v,
                m,
                axes="b t k, b s k, b s v, t s -> b t v",
                given="mask",
                scale=0.5,
            ),
            (x, drawn(2, 5, 4), drawn(2, 5, 6), jnp.ones((3, 5), bool)),
        ),
    }
    return main_op(*made[name])
