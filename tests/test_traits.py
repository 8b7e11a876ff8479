"""What `Traits` say of ops, checked on numbers, on a program that has every op with traits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from dialect.arrays.dtypes import dtype_of
from dialect.jaxprs import framework  # noqa: F401  (registers JAX)
from dialect.jaxprs.jaxpr import trace_graph
from dialect.ops import nn, tensor  # noqa: F401  (declare words)
from dialect.ops.follow import followed
from dialect.ops.traits import TRAITS
from dialect.ops.vocabulary import Traced
from dialect.staging import marks  # noqa: F401  (declares marks)
from rewrite import opdef
from rewrite.ir import Graph, Op, Symbol, Type, new_input
from rewrite.opdef import build
from rewrite.signature import Signature

F32, I32 = (
    (lambda *shape: jax.ShapeDtypeStruct(shape, "float32")),
    jax.ShapeDtypeStruct((2,), "int32"),
)
INPUTS = (F32(3, 4), F32(4, 3), I32, F32(2, 5, 4), F32(2, 1, 4))
CLIP = Symbol("GatherScatterMode.CLIP")


def spelled(x: Any, y: Any, i: Any, cache: Any, new: Any) -> list[Any]:
    """Every primitive and every word that has traits."""
    z = x * 2
    pairs = [f(x, z) for f in (lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min)]
    tests = [f(x, z) for f in (lax.lt, lax.le, lax.gt, lax.ge, lax.eq, lax.ne)]
    bits = [f(x > 0, x > 1) for f in (lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor)]
    alone = [lax.neg(x), lax.abs(x), lax.ceil(x), lax.floor(x), lax.round(x), lax.sign(x)]
    alone += [lax.real(lax.complex(x, x)), lax.imag(lax.complex(x, x))]
    sums = [
        jnp.sum(x, 0),
        jnp.max(x, 0),
        jnp.min(x, 0),
        lax.cumsum(x),
        lax.cummax(x),
        lax.cummin(x),
    ]
    truths = [jnp.all(x > 1, 0), jnp.any(x > 1, 0), lax.is_finite(x), ~(x > 1)]
    places = [
        jnp.argmax(x, 0),
        jnp.argmin(x, 0),
        *lax.top_k(x, 2),
        *lax.sort([x, z]),
        lax.rem(x, z),
    ]
    forms = [x.reshape(2, 6), x[None], x.T, x[:, :2], lax.rev(x, (0,)), jnp.tile(x, (2, 1))]
    forms += [lax.squeeze(x[:, :1], (1,)), *lax.split(x, (1, 2))]
    joined = [jnp.stack([x, z]), *jnp.unstack(x), lax.concatenate([x, z], 0)]
    chosen = [lax.select(x > 1, x, z), lax.clamp(0.5, x, 1.0), jnp.pad(x, 1, constant_values=2.0)]
    parts = [lax.dynamic_slice(x, (i[0], i[1]), (2, 2)), x[i], lax.iota("float32", 3)]
    writes = [lax.dynamic_update_slice(x, y[:2, :2], (i[1], i[1])), x.at[i].set(y[:2, :1])]
    writes += [getattr(x.at[i], name)(y[:2, :1]) for name in ("add", "mul", "min", "max")]
    writes += [x.at[i].subtract(y[:2, :1])]
    kept = [lax.stop_gradient(x), *lax.optimization_barrier([x, y]), jnp.copy(x)]
    kept += [checkpoint_name(x, "x"), lax.convert_element_type(x, "bfloat16")]
    products = [lax.dot(x, y), lax.ragged_dot(x, jnp.stack([y, y * 2]), i)]
    products += [lax.conv(x[None, None], y[None, None, :2, :2], (1, 1), "SAME")]
    words = [
        Traced["contract"](x, y, spec="a b, b c -> a c"),
        Traced["attend"](cache, cache, cache, axes="h t k, h s k, h s v -> h t v"),
        Traced["rope"](x, x[:, :2], x[:, 2:], pairs="halves"),
        Traced["cache_write"](cache, new, i[1], axes=(1,)),
        Traced["cache_put"](cache, new, i[:1], axis=1, mode=CLIP),
        Traced["cache_read"](cache, i[1]),
        Traced["take"](x, i, mode=CLIP),
        Traced["expert_product"](x, jnp.stack([y, y * 2]), i, dtype=None, precision=None),
        *(Traced[name](x, axis=0, size=size) for name, size in (("padded", 5), ("unpadded", 2))),
        *(Traced[name](x, axis=1, count=2, by="mean") for name in ("merge_heads", "spread_heads")),
        *Traced["quantize"](x, axes=(1,), form="int8"),
        Traced["dequantize"](x, y[0, :3], axes=(1,), dtype=Symbol("f32")),
        Traced["known"](x, alone=True),
        Traced["shared"](x),
    ]
    return [
        *(*pairs, *tests, *bits, *alone, *sums, *truths, *places, *forms, *joined, *chosen),
        *(*parts, *writes, *kept, *products, *words),
    ]


def ops() -> dict[str, tuple[Op, list[np.ndarray]]]:
    """Each op with traits, and numbers for its arguments: odd eighths, which floats hold."""
    random, found = np.random.default_rng(0), {}
    for op, _ in trace_graph(spelled, *INPUTS).walk():
        if opdef.traits(op) == opdef.Traits() or op.name in found:
            continue
        found[op.name] = op, [drawn(random, arg.type) for arg in op.args]
    return found


def drawn(random: np.random.Generator, type_: Any) -> np.ndarray:
    if type_.dtype == "bool":
        return random.random(type_.shape) > 0.5
    if type_.dtype[0] in "iu":
        return random.integers(0, 2, type_.shape).astype("int32")
    eighths = (2 * random.permutation(type_.size or 1)[: type_.size] + 1).reshape(type_.shape) / 8
    return eighths.astype("complex64" if type_.dtype[0] == "c" else "float32")


OPS = ops()


def run(op: Op, arrays: Sequence[Any]) -> list[np.ndarray]:
    made = opdef.lookup(op.name).reference(*map(jnp.asarray, arrays), **dict(op.attrs))
    return [np.asarray(each) for each in (made if isinstance(made, (list, tuple)) else [made])]


def floats(arrays: Sequence[np.ndarray]) -> list[int]:
    return [i for i, each in enumerate(arrays) if each.dtype.kind in "fc"]


def having(trait: str) -> list[str]:
    return [name for name, (op, _) in OPS.items() if getattr(opdef.traits(op), trait)]


def test_every_op_with_traits_is_checked() -> None:
    assert set(TRAITS) - set(OPS) == {"add_any", "sharding_constraint"}


@pytest.mark.parametrize("name", having("linear"))
def test_linear(name: str) -> None:
    """f(2x + 3y) = 2 f(x) + 3 f(y), in those arguments."""
    op, arrays = OPS[name]
    several = {"all": [floats(arrays)], "first": [[0]], "each": [[i] for i in floats(arrays)]}
    for changed in several[opdef.traits(op).linear]:
        others = [np.flip(a) * 2 if i in changed else a for i, a in enumerate(arrays)]
        mixed = [
            2 * a + 3 * b if i in changed else a for i, (a, b) in enumerate(zip(arrays, others))
        ]
        for whole, one, other in zip(run(op, mixed), run(op, arrays), run(op, others)):
            near = {"rtol": 2e-2 if whole.dtype == jnp.bfloat16 else 1e-5, "atol": 1e-6}
            expected = 2 * one.astype("float32") + 3 * other.astype("float32")
            np.testing.assert_allclose(whole.astype("float32"), expected, **near)


@pytest.mark.parametrize("name", having("commutes"))
def test_commutes(name: str) -> None:
    op, (left, right) = OPS[name]
    np.testing.assert_array_equal(run(op, (left, right)), run(op, (right, left)))


@pytest.mark.parametrize("name", having("moves"))
def test_moves(name: str) -> None:
    """Nothing comes out that did not go in, but zeros and places."""
    op, arrays = OPS[name]
    if name != "iota":
        given = {0.0, *(x for array in arrays for x in np.ravel(array).tolist()), 2.0}
        assert {x for array in run(op, arrays) for x in np.ravel(array).tolist()} <= given


@pytest.mark.parametrize("name", having("view"))
def test_views_hold_no_more_than_they_are_given(name: str) -> None:
    op, arrays = OPS[name]
    for made, given in zip(run(op, arrays), arrays):
        assert set(np.ravel(made).tolist()) == set(np.ravel(given).tolist())


@pytest.mark.parametrize("name", having("exact"))
def test_exact(name: str) -> None:
    """The same in f64 as in f32, of numbers that f32 fills."""
    op, arrays = OPS[name]
    filled = [a / 3 if a.dtype.kind == "f" else a for a in arrays]
    with jax.enable_x64(True):
        wide = run(op, [a.astype("float64") if a.dtype.kind == "f" else a for a in filled])
    for one, other in zip(run(op, filled), wide):
        np.testing.assert_array_equal(one, other.astype(one.dtype))


@pytest.mark.parametrize("name", having("converts"))
def test_converts(name: str) -> None:
    op, arrays = OPS[name]
    (made,) = run(op, arrays)
    assert made.dtype == dtype_of(op.types[0].dtype)
    np.testing.assert_array_equal(made, arrays[0])


@pytest.mark.parametrize("name", having("writes"))
def test_writes(name: str) -> None:
    """The first argument comes back, changed in no more places than are written."""
    op, arrays = OPS[name]
    (made,) = run(op, arrays)
    assert made.shape == arrays[0].shape
    changed = int((made != arrays[0]).sum())
    assert 0 < changed <= arrays[opdef.traits(op).writes].size


@pytest.mark.parametrize("name", having("picks"))
def test_picks(name: str) -> None:
    """No more elements of the first argument are read than come out."""
    op, arrays = OPS[name]
    (made,) = run(op, arrays)
    read = [i for i in range(arrays[0].size) if not np.array_equal(made, *run(op, at(arrays, i)))]
    assert 0 < len(read) <= made.size


def at(arrays: Sequence[np.ndarray], place: int) -> list[np.ndarray]:
    """The arrays, one element of the first changed."""
    first = arrays[0].copy()
    first.flat[place] = -1
    return [first, *arrays[1:]]


@pytest.mark.parametrize("name", having("shape"))
def test_shape(name: str) -> None:
    op, _ = OPS[name]
    assert op[opdef.traits(op).shape] == op.types[0].shape


FOLLOWING = [
    name for trait in ("axes", "order", "new_axis", "by_axis", "spelled") for name in having(trait)
]


@pytest.mark.parametrize("name", FOLLOWING)
def test_attributes_follow_axes(name: str) -> None:
    """Of arrays whose axes lie otherwise comes the same, its axes lying otherwise."""
    op, arrays = OPS[name]
    axes, wanted, moved = opdef.signature(op).along(), run(op, arrays), 0
    for first in permutations(axes.inputs[0]):
        given = [first, *(sorted(array, key=(*first, *array).index) for array in axes.inputs[1:])]
        result = tuple(sorted(axes.outputs[0], key=(*first, *axes.outputs[0]).index))
        turned = [
            np.transpose(array, tuple(map(was.index, now)))
            for array, was, now in zip(arrays, axes.inputs, given)
        ]
        types = [Type(arg.type.dtype, array.shape) for arg, array in zip(op.args, turned)]
        try:
            now = Signature(tuple(map(tuple, given)), (result,))
            attrs = followed(op, axes, now)
            made = build(name, *map(new_input, types), **attrs)
            lie = opdef.signature(made).along().results(now.inputs)
        except (TypeError, ValueError):  # it needs an axis where it was
            continue
        moved += first != axes.inputs[0]
        for got, expected, was, now in zip(run(made, turned), wanted, axes.outputs, lie):
            order = tuple(map(was.index, now))
            np.testing.assert_allclose(got, expected.transpose(order), rtol=1e-6)
    assert moved


@pytest.mark.parametrize("name", having("skips_zeros"))
def test_skips_zeros(name: str) -> None:
    """One more zero at the end of an axis that is reduced or needed changes no number."""
    op, arrays = OPS[name]
    axes, results = opdef.signature(op), run(op, arrays)
    mapped = axes.row_wise - axes.need
    longer = [
        np.pad(array, [(0, letters[0] not in mapped) for letters in named])
        for array, named in zip(arrays, axes.inputs)
    ]
    assert [array.shape for array in longer] != [array.shape for array in arrays]
    for result, expected in zip(run(op, longer), results):
        np.testing.assert_array_equal(result[tuple(map(slice, expected.shape))], expected)


@pytest.mark.parametrize("name", having("batches"))
def test_batches(name: str) -> None:
    """An op of stacked arrays is the stack of its results."""
    op, arrays = OPS[name]
    others = [np.flip(array) for array in arrays]
    axes, new = opdef.signature(op), ("new",)
    shared = [not array.ndim and op.types[0].rank > 0 for array in arrays]
    stacked = [
        array if alone else np.stack([array, other])
        for array, other, alone in zip(arrays, others, shared)
    ]
    inputs = [
        (new, *array) if both.ndim > len(array) else array
        for array, both in zip(axes.inputs, stacked)
    ]
    now = Signature(tuple(inputs), ((new, *axes.outputs[0]),))
    attrs = followed(op, axes, now, {new: 2})
    types = [Type(arg.type.dtype, both.shape) for arg, both in zip(op.args, stacked)]
    (batched,) = run(build(name, *map(new_input, types), **attrs), stacked)
    second = [array if alone else other for array, other, alone in zip(arrays, others, shared)]
    for result, expected in zip(batched, (*run(op, arrays), *run(op, second))):
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_an_axis_that_is_needed_stays_unless_an_attribute_says_where_it_is() -> None:
    def reversed_first(name: str) -> dict[str, Any]:
        axes = opdef.signature(OPS[name][0]).along()
        now = Signature((axes.inputs[0][::-1], *axes.inputs[1:]), axes.outputs)
        return followed(OPS[name][0], axes, now)

    assert reversed_first("attend")["axes"] == "k t h, h s k, h s v -> h t v"
    with pytest.raises(ValueError, match="reshape needs i0_0 where it is"):
        reversed_first("reshape")


@pytest.mark.parametrize("name", having("sums"))
def test_sums(name: str) -> None:
    """Terms of opposite signs cancel: the result is smaller than that of their sizes."""
    op, arrays = OPS[name]
    signed = np.where(np.arange(arrays[0].size) % 3, 1, -1).reshape(arrays[0].shape)
    cancelled = run(op, [arrays[0] * signed.astype("float32"), *arrays[1:]])
    assert any((np.abs(c) < w).any() for c, w in zip(cancelled, run(op, arrays)))


@pytest.mark.parametrize("name", having("jumps"))
def test_jumps(name: str) -> None:
    """On a way of small changes, one of them makes much of the whole difference."""
    op, (array, *others) = OPS[name]
    largest = 0.0
    for end in (-array, -np.flip(array)):
        way = [array + (end - array) * step / 256 for step in range(257)]
        results = zip(*(run(op, [place.astype("float32"), *others]) for place in way))
        for values in (np.stack(result).astype("float32") for result in results):
            changes = np.abs(np.diff(values, axis=0))
            largest = max(largest, (changes.max(0) / (changes.sum(0) + 1e-9)).max())
    assert largest > 0.1


def test_a_program_of_all_ops_is_a_program() -> None:
    graph = trace_graph(spelled, *INPUTS)
    assert isinstance(graph, Graph) and graph.op_count > 100
