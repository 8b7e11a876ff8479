"""The lax dialect: every JAX primitive as an op, with the axis signature of those we know.

An op is named as its primitive and keeps its parameters, so that exporting re-binds exactly what
was imported. The primitives in the table below know their axes; any other is an opaque leaf: it
re-binds unchanged, and every one of its axes is needed whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax

from dialect.arrays import attribute_kinds, constants, dtypes, primitives  # noqa: F401  (define const)
from dialect.arrays.attributes import decode
from dialect.ops.traits import TRAITS
from rewrite import opdef
from rewrite.ir import Graph, Op, Type
from rewrite.opdef import OpDef, Traits
from rewrite.signature import Array, Signature, numbered, opaque

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp
    exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p log2 logistic lt max min
    mul name ne neg nextafter not one_minus_square optimization_barrier or polynomial
    population_count pow real reduce_precision rem round rsqrt select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient
    sub tan tanh xor""".split()
)
# Each result element depends on the argument elements at its place, and on nothing else.
MAPS = ELEMENTWISE - {"sharding_constraint", "optimization_barrier"}
_BATCHING = MAPS | {"reshape", "transpose"}
# Broadcasts a scalar, or an axis of size one, against a longer one; the others want equal shapes.
BROADCASTING = MAPS - {"select_n", "clamp", "add_any"}
# Each combines the elements along `axes`; of one element it gives that element.
REDUCTIONS = tuple(f"reduce_{name}" for name in "sum max min prod and or xor".split())
# All read and write the same value; they differ in what autodiff or a scheduler thinks of them.
IDENTITIES = frozenset({"copy", "name", "stop_gradient"})


def _elementwise(op: Op) -> Signature:
    return _mapped(tuple(arg.type.shape for arg in op.args), tuple(t.shape for t in op.types))


@lru_cache(maxsize=4096)
def _mapped(read: tuple[tuple[int, ...], ...], written: tuple[tuple[int, ...], ...]) -> Signature:
    outputs = tuple(numbered(len(shape)) for shape in written)

    def axes(shape: tuple[int, ...]) -> Array:
        if len(shape) != len(written[0]):
            return ()
        return tuple(
            () if size == 1 and size != whole else axis
            for size, whole, axis in zip(shape, written[0], outputs[0])
        )

    return Signature(tuple(axes(shape) for shape in read), outputs)


def _each_by_itself(op: Op) -> Signature:
    """Every result is its argument."""
    arrays = tuple(numbered(arg.type.rank, f"a{i}x") for i, arg in enumerate(op.args))
    return Signature(arrays, arrays)


def _dot_general(op: Op) -> Signature:
    (left_sum, right_sum), (left_batch, right_batch) = op["dimension_numbers"]
    left, right = (list(numbered(arg.type.rank, p)) for arg, p in zip(op.args, "lr"))
    for i, j in zip((*left_batch, *left_sum), (*right_batch, *right_sum)):
        right[j] = left[i]
    out = [left[i] for i in left_batch]
    out += [axis for i, axis in enumerate(left) if i not in (*left_batch, *left_sum)]
    out += [axis for i, axis in enumerate(right) if i not in (*right_batch, *right_sum)]
    return Signature((tuple(left), tuple(right)), (tuple(out),))


def _ragged_dot(op: Op) -> Signature:
    """Of `jax.lax.ragged_dot`; nothing is known of its more general forms."""
    numbers = tuple(value for _, value in op["ragged_dot_dimension_numbers"].fields)
    if numbers != ((((1,), (1,)), ((), ())), (0,), (0,)):
        return _unknown(op)
    return Signature.parse("m k, e k n, e -> m n; need m e")


def _reduction(op: Op) -> Signature:
    axes = numbered(op.args[0].type.rank)
    out = tuple(axis for i, axis in enumerate(axes) if i not in op["axes"])
    return Signature((axes,) * len(op.args), (out,) * len(op.types))


def _broadcast_in_dim(op: Op) -> Signature:
    out = numbered(op.types[0].rank)
    source = op.args[0].type.shape
    grown = zip(source, op["broadcast_dimensions"])
    read = tuple(out[d] if size == op.types[0].shape[d] else () for size, d in grown)
    return Signature((read,) + ((),) * (len(op.args) - 1), (out,))


def _transpose(op: Op) -> Signature:
    axes = numbered(op.args[0].type.rank)
    return Signature((axes,), (tuple(axes[i] for i in op["permutation"]),))


def _squeeze(op: Op) -> Signature:
    gone = op["dimensions"]
    axes = tuple(() if i in gone else axis for i, axis in enumerate(numbered(op.args[0].type.rank)))
    return Signature((axes,), (tuple(axis for i, axis in enumerate(axes) if i not in gone),))


def _reshape(op: Op) -> Signature:
    if op.get("dimensions") is not None:  # it is transposed first
        return _unknown(op)
    return reshape_signature(op.args[0].type.shape, op.types[0].shape)


@lru_cache(maxsize=4096)
def reshape_signature(old: tuple[int, ...], new: tuple[int, ...]) -> Signature:
    """How a reshape splits and merges axes: `(8, 32) -> (8, 4, 8)` is `a (b c) -> a b c`.

    Both shapes are read from the left; whatever divides evenly is one axis. Where neither side
    divides the other (6, 4 -> 4, 6), the axes are torn and needed whole; so are those of an array
    without elements, which may become any others.
    """
    if 0 in old:
        return opaque((len(old),), (len(new),))
    left: list[list[str]] = [[] for _ in old]
    right: list[list[str]] = [[] for _ in new]
    fresh = (f"x{number}" for number in range(len(old) + len(new)))
    i = j = 0
    rest_left, rest_right = 1, 1
    while True:
        while rest_left == rest_right == 1 and old[i : i + 1] == new[j : j + 1] == (1,):
            left[i] = right[j] = [next(fresh)]
            i, j = i + 1, j + 1
        while rest_left == 1 and i < len(old):
            rest_left, i = old[i], i + 1
        while rest_right == 1 and j < len(new):
            rest_right, j = new[j], j + 1
        if rest_left == rest_right == 1:
            return Signature((tuple(map(tuple, left)),), (tuple(map(tuple, right)),))
        small, large = sorted((rest_left, rest_right))
        if large % small:
            return opaque((len(old),), (len(new),))
        letter = next(fresh)
        left[i - 1].append(letter)
        right[j - 1].append(letter)
        rest_left, rest_right = rest_left // small, rest_right // small


def _same_or_need(out: tuple[int, ...], *inputs: tuple[int, ...]) -> Signature:
    """Arrays of one rank: a dimension of equal size is the same axis, any other is needed."""
    axes, need, read = numbered(len(out)), set(), []
    for number, shape in enumerate(inputs):
        row = []
        for d, (size, whole) in enumerate(zip(shape, out)):
            letter = axes[d][0] if size == whole else f"i{number}_{d}"
            need |= {letter, axes[d][0]} if size != whole else set()
            row.append((letter,))
        read.append(tuple(row))
    return Signature(tuple(read), (axes,), frozenset(need))


def _slice(op: Op) -> Signature:
    axes = _same_or_need(op.types[0].shape, op.args[0].type.shape)
    return Signature(axes.inputs + ((),) * (len(op.args) - 1), axes.outputs, axes.need)


def _static_slice(op: Op) -> Signature:
    """One of several equal parts of an axis is `(p x) -> x`: the part is an axis of its own."""
    axes, strides = _slice(op), op.get("strides")
    read, need = list(axes.inputs[0]), set(axes.need)
    sizes = zip(op.args[0].type.shape, op.types[0].shape, op["start_indices"])
    for d, (whole, part, start) in enumerate(sizes):
        if part != whole and not strides and part and whole % part == start % part == 0:
            need = (need - {read[d][0]}) | {f"p{d}"}
            read[d] = (f"p{d}", f"x{d}")
    return Signature((tuple(read),), axes.outputs, frozenset(need))


def _pad(op: Op) -> Signature:
    """An axis that it leaves alone is the same axis; any other may be moved along itself."""
    axes, read, need = numbered(op.types[0].rank), [], set()
    for d, (out, config) in enumerate(zip(axes, op["padding_config"])):
        read.append((f"i{d}",) if any(config) else out)
        need |= {out[0], f"i{d}"} if any(config) else set()
    return Signature((tuple(read), ()), (axes,), frozenset(need))


def _dynamic_update_slice(op: Op) -> Signature:
    operand, update, *indices = op.args
    axes = _same_or_need(op.types[0].shape, operand.type.shape, update.type.shape)
    return Signature(axes.inputs + ((),) * len(indices), axes.outputs, axes.need)


def _concatenate(op: Op) -> Signature:
    return _same_or_need(op.types[0].shape, *(arg.type.shape for arg in op.args))


def _along(attr: str) -> Callable[[Op], Signature]:
    """An op that maps over every axis but the one that `attr` names, which it needs whole."""

    def signature(op: Op) -> Signature:
        rank = op.args[0].type.rank
        named = op[attr] if isinstance(op[attr], tuple) else (op[attr],)
        gone = tuple(axis % rank for axis in named)
        axes = numbered(rank)
        need = frozenset(axes[i][0] for i in gone)

        def result(number: int, shape: tuple[int, ...]) -> Array:
            return tuple(
                (f"o{number}_{i}",) if shape[i] != op.args[0].type.shape[i] else axes[i]
                for i in range(rank)
            )

        outputs = tuple(result(number, type_.shape) for number, type_ in enumerate(op.types))
        cut = {x for array in outputs for (x,) in array} - {x for (x,) in axes}
        return Signature((axes,) * len(op.args), outputs, need | cut)

    return signature


def _stack(op: Op) -> Signature:
    axes = numbered(op.args[0].type.rank)
    axis = op["axis"]
    out = (*axes[:axis], ("new",), *axes[axis:])
    return Signature((axes,) * len(op.args), (out,), frozenset({"new"}))


def _unstack(op: Op) -> Signature:
    axes = numbered(op.args[0].type.rank)
    axis = op["axis"]
    out = axes[:axis] + axes[axis + 1 :]
    return Signature((axes,), (out,) * len(op.types), frozenset(axes[axis]))


def _gather(op: Op) -> Signature:
    numbers = dict(op["dimension_numbers"].fields)
    table, indices = op.args[0].type, op.args[1].type
    read = list(numbered(table.rank, "t"))
    rows = list(numbered(indices.rank - 1, "r")) + [()]
    need = set()
    for i, j in zip(numbers["operand_batching_dims"], numbers["start_indices_batching_dims"]):
        read[i] = rows[j]
    gone = {*numbers["collapsed_slice_dims"], *numbers["operand_batching_dims"]}
    offsets = []
    for i, size in enumerate(op["slice_sizes"]):
        partial = size != table.shape[i]
        if i in numbers["operand_batching_dims"]:
            continue
        need |= {read[i][0]} if partial or i in numbers["collapsed_slice_dims"] else set()
        if i not in gone:
            offsets.append((f"o{i}",) if partial else read[i])
    need |= {axis[0] for axis in offsets if axis[0].startswith("o")}
    rest, batch = iter(offsets), iter(rows)
    out = tuple(
        next(rest) if d in numbers["offset_dims"] else next(batch) for d in range(op.types[0].rank)
    )
    return Signature((tuple(read), tuple(rows)), (out,), frozenset(need))


def _scatter(op: Op) -> Signature:
    numbers = dict(op["dimension_numbers"].fields)
    operand, indices, updates = (arg.type for arg in op.args)
    axes = list(numbered(operand.rank))
    rows: list[Any] = list(numbered(indices.rank - 1, "r")) + [()]
    batching = numbers["operand_batching_dims"]
    for i, j in zip(batching, numbers["scatter_indices_batching_dims"]):
        rows[j] = axes[i]
    windows = [
        i for i in range(operand.rank) if i not in (*numbers["inserted_window_dims"], *batching)
    ]
    window_sizes = dict(zip(numbers["update_window_dims"], windows))
    batch, read, need = iter(rows), [], set()
    for d in range(updates.rank):
        if d not in window_sizes:
            read.append(next(batch))
            continue
        i = window_sizes[d]
        whole = updates.shape[d] == operand.shape[i]
        read.append(axes[i] if whole else (f"u{d}",))
        need |= set() if whole else {f"u{d}", axes[i][0]}
    need |= {axes[i][0] for i in numbers["inserted_window_dims"]}
    return Signature((tuple(axes), tuple(rows), tuple(read)), (tuple(axes),), frozenset(need))


def _iota(op: Op) -> Signature:
    return Signature(((),) * len(op.args), (numbered(op.types[0].rank),))


# Scatters that go out through the public function: which makes their `update_jaxpr`.
SCATTERS = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter-sub": jax.lax.scatter_sub,
    "scatter-mul": jax.lax.scatter_mul,
    "scatter-min": jax.lax.scatter_min,
    "scatter-max": jax.lax.scatter_max,
}

SIGNATURES: dict[str, Callable[[Op], Signature]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "optimization_barrier": _each_by_itself,
    **dict.fromkeys((*REDUCTIONS, "argmax", "argmin"), _reduction),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along("axis")),
    **dict.fromkeys(SCATTERS, _scatter),
    "sort": _along("dimension"),
    "rev": _along("dimensions"),
    "split": _along("axis"),
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "slice": _static_slice,
    "dynamic_slice": _slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "gather": _gather,
    "iota": _iota,
}


def _unknown(op: Op) -> Signature:
    return opaque(tuple(arg.type.rank for arg in op.args), tuple(t.rank for t in op.types))


def _reference(name: str) -> Callable[..., Any]:
    def reference(*arrays: Any, **attrs: Any) -> Any:
        params = {key: decode(value) for key, value in attrs.items()}
        if name in SCATTERS and "update_jaxpr" not in params:
            return SCATTERS[name](*arrays, **params)
        out = primitives.bind(name, arrays, params)
        return out[0] if len(out) == 1 else out

    return reference


@lru_cache(maxsize=65536)
def _evaluated(name: str, types: tuple[Type, ...], attrs: tuple, wide: bool) -> tuple[Type, ...]:
    structs = [dtypes.struct_of(type_) for type_ in types]
    reference = opdef.lookup(name).reference
    out = jax.eval_shape(lambda *arrays: reference(*arrays, **dict(attrs)), *structs)
    return tuple(
        dtypes.type_of(array) for array in (out if isinstance(out, (list, tuple)) else [out])
    )


def infer_by_reference(name: str) -> opdef.Infer:
    """Type inference by tracing the op's reference, remembered per types, attributes and x64."""

    def infer(
        types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
    ) -> tuple[Type, ...]:
        wide = jax.config.jax_enable_x64
        attribute_kinds.check(name, types, attrs)
        return _evaluated(name, types, tuple(sorted(attrs.items())), wide)

    return infer


def _back(op: Op) -> tuple[int, ...]:
    return tuple(op["permutation"].index(i) for i in range(op.types[0].rank))


# What undoes a change of form.
_INVERSES = {
    "reshape": lambda op: ("reshape", {"new_sizes": op.args[0].type.shape}),
    "transpose": lambda op: ("transpose", {"permutation": _back(op)}),
    "stack": lambda op: ("unstack", {"axis": op["axis"]}),
    "unstack": lambda op: ("stack", {"axis": op["axis"]}),
}


def _resolve(name: str) -> OpDef | None:
    if primitives.find(name) is None:
        return None
    return OpDef(
        name=name,
        signature=SIGNATURES.get(name, _unknown),
        infer=infer_by_reference(name),
        reference=_reference(name),
        lead={"dot_general": "dimension_numbers"}.get(name),
        inverse=_INVERSES.get(name),
        traits=replace(TRAITS.get(name, Traits()), batches=name in _BATCHING),
    )


opdef.resolve_with(_resolve)
