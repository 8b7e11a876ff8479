"""Products: every one a `contract`, with its layout in the subscripts and nowhere else.

All rules keep `reals`, for products in another layout are summed in another order.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp

from dialect.matching.operands import transposed, untransposed
from dialect.matching.values import REALS, in_dtype, reshaped, rounding, through, unrounded
from dialect.normal.cuts import cut, cut_inside, cuts, only_cuts
from dialect.ops import tensor  # noqa: F401  (defines contract)
from dialect.ops.follow import followed
from rewrite import opdef
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import make
from rewrite.rules import Outcome, local
from rewrite.signature import Array, Signature, letters


@local(
    "dot_general",
    keeps="reals",
    example=lambda x, w: x @ w,
    types=("f32[3,4]", "f32[4,5]"),
)
def dot_to_contract(op: Op) -> Outcome:
    """dot_general(x, y)  ->  contract "..., ... -> ..." (x, y)"""
    if op.get("out_sharding") is not None:
        return None
    axes = opdef.signature(op)
    name = dict(zip(axes.letters, _LETTERS))
    if len(axes.letters) > len(_LETTERS):
        return None
    precision = op.get("precision")
    return make(
        "contract",
        *op.args,
        spec=str(_renamed(axes, name)),
        dtype=Symbol(op.types[0].dtype),
        **({"precision": precision} if precision is not None else {}),
    )


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _renamed(signature: Signature, name: dict[str, str]) -> Signature:
    def array(axes: Array) -> Array:
        return tuple(tuple(name[letter] for letter in dimension) for dimension in axes)

    return Signature(tuple(map(array, signature.inputs)), tuple(map(array, signature.outputs)))


@local(
    "contract",
    keeps="reals",
    example=lambda x, w: jnp.einsum("ba,a->ba", x, w),
    types=("f32[3,4]", "f32[4]"),
)
def product_without_sum(op: Op) -> Outcome:
    """contract "b a, a -> b a" (x, w), which sums nothing and has every axis of x  ->  x * w"""
    spec, dtype = Signature.parse(op["spec"]), op.types[0].dtype
    if spec.summed or any(
        kind not in REALS for kind in (dtype, *(arg.type.dtype for arg in op.args))
    ):
        return None
    sides, (out,) = zip(op.args, spec.inputs), spec.outputs
    for whole, other in itertools.permutations(sides):
        if len(whole[1]) == len(out):
            factors = (whole[0], _along(*other, whole[1]))
            product = make("mul", *(in_dtype(factor, dtype) for factor in factors))
            return transposed(product, [whole[1].index(axis) for axis in out])
    return None


def _along(factor: Value, axes: Array, whole: Array) -> Value:
    """A factor with these axes along those of another: of size one where it lacks one."""
    order = sorted(range(len(axes)), key=lambda place: whole.index(axes[place]))
    sizes = dict(zip(axes, factor.type.shape))
    return reshaped(transposed(factor, order), tuple(sizes.get(axis, 1) for axis in whole))


@local(
    "contract",
    keeps="reals",
    example=lambda r, h, w: jnp.einsum("te,ted->td", r, jnp.einsum("tef,efd->ted", h, w)),
    types=("f32[3,2]", "f32[3,2,4]", "f32[2,4,5]"),
    needs=("finite parameters", "finite activations"),  # a weight of zero hides no infinity
)
def weights_of_sum(op: Op) -> Outcome:
    """sum_e r * contract(h, w: e f d)  ->  contract(r * h, w) over e and f"""
    outer = Signature.parse(op["spec"])
    sides = list(zip(op.args, outer.inputs))
    for (r, over), (product, whole) in itertools.permutations(sides):
        inner = unrounded(product).op
        if inner.name != "contract" or not outer.summed or set(over) - set(whole):
            continue
        if not all(_is_of_reals(x) for x in (op, inner)) or any(map(rounding, inner.args)):
            continue
        name = dict(zip(whole, Signature.parse(inner["spec"]).outputs[0]))
        over, out = (tuple(name[axis] for axis in axes) for axes in (over, outer.outputs[0]))
        summed = _weighted(inner, r, over, out)
        if summed is not None:
            return in_dtype(summed, op.types[0].dtype)
    return None


def _is_of_reals(op: Op) -> bool:
    return all(value.type.dtype in REALS for value in (*op.args, *op.results))


def _weighted(product: Op, r: Value, over: Array, out: Array) -> Value | None:
    """The product with its factor that has the axes of r times r, only its axes `out` left; None if
    neither has them, or one alone has what is to be summed."""
    spec = Signature.parse(product["spec"])
    summed = set(spec.outputs[0]) - set(out)
    for h in (0, 1):
        factor, axes = product.args[h], spec.inputs[h]
        if set(over) <= set(axes) and summed <= set(spec.inputs[1 - h]):
            weighted = make("mul", in_dtype(factor, r.type.dtype), _along(r, over, axes))
            args = list(product.args)
            args[h] = in_dtype(weighted, factor.type.dtype)
            attrs = {**dict(product.attrs), "spec": str(Signature(spec.inputs, (out,)))}
            return make("contract", *args, **attrs)
    return None


@local(
    "contract",
    keeps="reals",
    example=lambda x, w: x.T @ w,
    types=("f32[4,3]", "f32[4,5]"),
)
def contract_of_transpose(op: Op) -> Outcome:
    """contract(transpose(x), y)  ->  contract(x, y) with the subscript reordered"""
    return without_transposes(op)


def without_transposes(op: Op, first: int = 0) -> Value | None:
    """An op with subscripts, reading arguments (from `first` on) before they were transposed; None
    if none was."""
    axes = opdef.signature(op)
    args, inputs = list(op.args), list(axes.inputs)
    for i, arg in list(enumerate(args))[first:]:
        args[i], order = untransposed(arg)
        inputs[i] = tuple(inputs[i][order.index(d)] for d in range(len(order)))
    if tuple(args) == op.args:
        return None
    now = Signature(tuple(inputs), axes.outputs)
    return make(op.name, *args, **followed(op, axes, now))


@local(
    "contract",
    example=lambda x, w: jnp.transpose(x, (0, 2, 1))[0] @ w,
    types=("f32[1,4,3]", "f32[4,5]"),
)
def contract_of_dropped(op: Op) -> Outcome:
    """contract(reshape(transpose(x)), y)  ->  contract(transpose(reshape(x)), y), where the reshape
    drops axes of size one: `jnp.matmul` drops those of a batch"""
    args = tuple(map(_transposed_last, op.args))
    return make("contract", *args, **dict(op.attrs)) if args != op.args else None


def _transposed_last(value: Value) -> Value:
    """reshape(transpose(x)) that only drops axes of size one as transpose(reshape(x))"""
    laid_out = through(value, "reshape")
    source, order = untransposed(laid_out)
    if value.op.args != (laid_out,) or source == laid_out:
        return value
    axes = opdef.signature(value.op)
    inner, outer = axes.inputs[0], axes.outputs[0]
    if tuple(filter(None, inner)) != outer:
        return value
    kept = [d for d, axis in zip(order, inner) if axis]
    dropped = reshaped(source, tuple(source.type.shape[d] for d in sorted(kept)))
    return transposed(dropped, [sorted(kept).index(d) for d in kept])


@local(
    "transpose",
    keeps="reals",
    example=lambda x, w: (x @ w).T,
    types=("f32[3,4]", "f32[4,5]"),
)
def transpose_of_contract(op: Op) -> Outcome:
    """transpose(contract(x, y))  ->  contract(x, y) that gives its axes in that order"""
    inner = op.args[0].op
    if inner.name != "contract":
        return None
    axes = opdef.signature(inner)
    now = Signature(axes.inputs, (tuple(axes.outputs[0][i] for i in op["permutation"]),))
    return make("contract", *inner.args, **followed(inner, axes, now))


@local(
    "contract",
    keeps="reals",
    example=lambda x, w: x.reshape(3, 8) @ w,
    types=("f32[3,2,4]", "f32[8,5]"),
)
def contract_of_merge(op: Op) -> Outcome:
    """contract(reshape(x: h k -> (h k)), w)  ->  contract(x, reshape(w))

    Numbers that were stacked to be neighbours, as rotary positions are, are merged for good.
    """
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        if arg.op.name != "reshape":
            continue
        merged = opdef.signature(arg.op)
        if not only_cuts(merged.outputs[0], merged.inputs[0]):
            continue
        if _interleaves(arg.op.args[0], merged):
            continue
        source = dict(zip(letters(merged.inputs[0]), arg.op.args[0].type.shape))
        parts = {
            axis: tuple(source[part] for part in dimension)
            for axis, dimension in zip(spec.inputs[i], merged.outputs[0])
        }
        if not any(axis in spec.outputs[0] for axis in parts if len(parts[axis]) > 1):
            return cut(op, parts).results[0]
    return None


def _interleaves(source: Value, merged: Signature) -> bool:
    """Whether a merge makes neighbours of what was stacked along a new axis."""
    stacked = unrounded(source).op
    axis = stacked.get(opdef.traits(stacked).new_axis)
    if axis is None:
        return False
    return any(
        len(dimension) > 1 and merged.inputs[0][axis] == dimension[-1:]
        for dimension in merged.outputs[0]
    )


@local(
    "reshape",
    keeps="reals",
    example=lambda x, w: (x @ w).reshape(3, 2, 4),
    types=("f32[3,5]", "f32[5,8]"),
)
def split_of_contract(op: Op) -> Outcome:
    """reshape(contract(x, w): (h k) -> h k)  ->  contract(x, reshape(w)) that gives h and k"""
    return cut_inside(op) if op.args[0].op.name == "contract" and cuts(op) else None


@local(
    "reshape",
    keeps="reals",
    example=lambda x, w: jnp.einsum("ab,bhk->ahk", x, w.reshape(5, 2, 4)).reshape(3, 8),
    types=("f32[3,5]", "f32[5,8]"),
)
def merge_of_contract(op: Op) -> Outcome:
    """reshape(contract(x, reshape(w: (h k) -> h k)): h k -> (h k))  ->  contract(x, w)"""
    inner, merged = op.args[0].op, opdef.signature(op)
    if inner.name != "contract" or not only_cuts(merged.outputs[0], merged.inputs[0]):
        return None
    spec = Signature.parse(inner["spec"])
    out = _as_named(merged.outputs[0], merged.inputs[0], spec.outputs[0])
    for number, arg in enumerate(inner.args):
        if not arg.op.args or not opdef.traits(arg.op).view:
            continue
        cut_axes = opdef.signature(arg.op)
        if not only_cuts(cut_axes.inputs[0], cut_axes.outputs[0]):
            continue
        array = _as_named(cut_axes.inputs[0], cut_axes.outputs[0], spec.inputs[number])
        whole = {axis for axis in (*array, *out) if len(axis) > 1}
        others = set(letters(spec.inputs[1 - number]))
        if whole <= {*array} & {*out} and others.isdisjoint(letters(tuple(whole))):
            inputs, factors = list(spec.inputs), list(inner.args)
            inputs[number], factors[number] = _firsts(array), arg.op.args[0]
            now = str(Signature(tuple(inputs), (_firsts(out),)))
            return make("contract", *factors, **dict(inner.attrs) | {"spec": now})
    return None


def _as_named(merged: Array, single: Array, named: Array) -> Array:
    """The axes of merged dimensions, which are called `named` where they are single."""
    name = dict(zip(single, named))
    return tuple(tuple(x for letter in axis for x in name[letter,]) for axis in merged)


def _firsts(axes: Array) -> Array:
    return tuple(axis[:1] for axis in axes)
