"""The normal form: one spelling for what libraries write in many.

Layout noise goes away (identities, chains of reshapes and transposes, explicit broadcasts that
the consumer would do by itself), products become `contract`, and small constants are folded. All
rules keep every bit, but for the order in which a contraction may be computed.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from dialect import lax, tensor  # noqa: F401  (tensor defines contract)
from dialect.jaxpr import constant
from rewrite import opdef, runtime
from rewrite.driver import Report, rewrite
from rewrite.ir import Graph, Op, Symbol, Value
from rewrite.opdef import make
from rewrite.rules import Outcome, Rule, local
from rewrite.signature import Array, Signature, letters

_LARGEST_FOLDED = 64  # elements; larger constants would not be printed


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """`value` in another shape."""
    return make("reshape", value, new_sizes=tuple(shape))


def is_splat(value: Value) -> bool:
    """Whether every element is the same constant scalar."""
    return value.op.name == "const" and not value.type.shape


@local(*lax.IDENTITIES, example=lambda x: jax.lax.stop_gradient(x), types=("f32[4]",))
def identity(op: Op) -> Outcome:
    """copy(x), stop_gradient(x), name(x)  ->  x"""
    return op.args[0]


@local(
    "convert_element_type",
    example=lambda x: jax.lax.convert_element_type(x, "float32"),
    types=("f32[4]~",),
)
def convert_to_same(op: Op) -> Outcome:
    """convert(x: T) to T  ->  x"""
    if op.args[0].op.name == "const":
        return None  # folded, it becomes as strongly typed as its conversion
    return op.args[0] if op.args[0].type.dtype == op.types[0].dtype else None


@local("max", example=lambda x: jnp.maximum(x, -jnp.inf), types=("f32[4]",))
def max_with_minus_infinity(op: Op) -> Outcome:
    """max(x, -inf)  ->  x"""
    for one, other in (op.args, op.args[::-1]):
        if is_splat(one) and one.op["value"] == -math.inf and other.type.shape == op.types[0].shape:
            return other
    return None


@local("mul", example=lambda x: x * x, types=("f32[4]",))
def mul_by_itself(op: Op) -> Outcome:
    """x * x  ->  square(x)"""
    return make("square", op.args[0]) if op.args[0] == op.args[1] else None


@local("integer_pow", example=lambda x: x**2, types=("f32[4]",))
def second_power(op: Op) -> Outcome:
    """x ** 2  ->  square(x)"""
    return make("square", op.args[0]) if op["y"] == 2 else None


@local("squeeze", example=lambda x: jnp.squeeze(x, 1), types=("f32[4,1]",))
def squeeze_to_reshape(op: Op) -> Outcome:
    """squeeze(x)  ->  reshape(x)"""
    return reshaped(op.args[0], op.types[0].shape)


@local("broadcast_in_dim", example=lambda x: x[:, None], types=("f32[4]",))
def expand_to_reshape(op: Op) -> Outcome:
    """broadcast(x) that only adds axes of size one  ->  reshape(x)"""
    same = op.args[0].type.size == op.types[0].size and len(op.args) == 1
    rising = op["broadcast_dimensions"] == tuple(sorted(op["broadcast_dimensions"]))
    return reshaped(op.args[0], op.types[0].shape) if same and rising else None


@local("reshape", example=lambda x: x.reshape(4, 2).reshape(8, 1), types=("f32[8]",))
def reshape_of_reshape(op: Op) -> Outcome:
    """reshape(reshape(x))  ->  reshape(x), and reshape(x) to x's own shape  ->  x"""
    source = op.args[0]
    if source.type.shape == op.types[0].shape:
        return source
    if op.get("dimensions") is None and source.op.name == "reshape":
        return reshaped(source.op.args[0], op.types[0].shape)
    return None


@local("split", example=lambda x: jnp.split(x, 2, axis=1)[1], types=("f32[4,2]",))
def split_to_slices(op: Op) -> Outcome:
    """split(x)  ->  its slices"""
    source, axis, start, parts = op.args[0], op["axis"], 0, []
    for size in op["sizes"]:
        first, last = [0] * source.type.rank, list(source.type.shape)
        first[axis], last[axis] = start, start + size
        parts.append(make("slice", source, start_indices=tuple(first), limit_indices=tuple(last)))
        start += size
    return parts


@local("transpose", example=lambda x: x.T.T, types=("f32[4,2]",))
def transpose_of_transpose(op: Op) -> Outcome:
    """transpose(transpose(x))  ->  transpose(x), and one that moves nothing  ->  x"""
    order = op["permutation"]
    if order == tuple(range(len(order))):
        return op.args[0]
    if op.args[0].op.name != "transpose":
        return None
    inner = op.args[0].op
    return make(
        "transpose", inner.args[0], permutation=tuple(inner["permutation"][i] for i in order)
    )


@local(
    *lax.BROADCASTING,
    example=lambda x, y: x + jnp.broadcast_to(y[None, :], (3, 4)),
    types=("f32[3,4]", "f32[4]"),
)
def broadcast_by_consumer(op: Op) -> Outcome:
    """f(x, broadcast(y))  ->  f(x, y with axes of size one), which f broadcasts by itself"""
    args = list(op.args)
    for i, arg in enumerate(args):
        if arg.op.name != "broadcast_in_dim" or len(arg.op.args) > 1:
            continue
        shorter = _unbroadcast(arg)
        others = [other.type.shape for j, other in enumerate(args) if j != i]
        if shorter.type.shape and not any(others):
            continue  # scalars alone would not give the result its rank
        if _broadcast_shape([*others, shorter.type.shape]) == op.types[0].shape:
            args[i] = shorter
    if tuple(args) == op.args:
        return None
    return make(op.name, *args, **dict(op.attrs))


def _unbroadcast(value: Value) -> Value:
    source, places = value.op.args[0], value.op["broadcast_dimensions"]
    if not source.type.shape:
        return source
    shape = [1] * value.type.rank
    for size, place in zip(source.type.shape, places):
        shape[place] = size
    return reshaped(source, tuple(shape)) if tuple(shape) != source.type.shape else source


def _broadcast_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


@local("dot_general", example=lambda x, w: x @ w, types=("f32[3,4]", "f32[4,5]"))
def dot_to_contract(op: Op) -> Outcome:
    """dot_general(x, y)  ->  contract "..., ... -> ..." (x, y)"""
    if op.get("out_sharding") is not None:
        return None
    found = opdef.signature(op)
    name = dict(zip(found.letters, _LETTERS))
    if len(found.letters) > len(_LETTERS):
        return None
    asked = op.get("precision")
    return make(
        "contract",
        *op.args,
        spec=str(_renamed(found, name)),
        dtype=op.get("preferred_element_type") or Symbol(op.types[0].dtype),
        **({"precision": asked} if asked is not None else {}),
    )


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _renamed(found: Signature, name: dict[str, str]) -> Signature:
    def array(axes: Array) -> Array:
        return tuple(tuple(name[letter] for letter in dimension) for dimension in axes)

    return Signature(tuple(map(array, found.inputs)), tuple(map(array, found.outputs)))


@local("contract", example=lambda x, w: x.T @ w, types=("f32[4,3]", "f32[4,5]"))
def contract_of_transpose(op: Op) -> Outcome:
    """contract(transpose(x), y)  ->  contract(x, y) with the subscript reordered"""
    spec = Signature.parse(op["spec"])
    args, inputs = list(op.args), list(spec.inputs)
    for i, arg in enumerate(args):
        if arg.op.name == "transpose":
            order = arg.op["permutation"]
            args[i] = arg.op.args[0]
            inputs[i] = tuple(inputs[i][order.index(d)] for d in range(len(order)))
    if tuple(args) == op.args:
        return None
    moved = Signature(tuple(inputs), spec.outputs)
    return make("contract", *args, **{**dict(op.attrs), "spec": str(moved)})


@local("transpose", example=lambda x, w: (x @ w).T, types=("f32[3,4]", "f32[4,5]"))
def transpose_of_contract(op: Op) -> Outcome:
    """transpose(contract(x, y))  ->  contract(x, y) that gives its axes in that order"""
    inner = op.args[0].op
    if inner.name != "contract":
        return None
    spec = Signature.parse(inner["spec"])
    out = tuple(spec.outputs[0][i] for i in op["permutation"])
    attrs = {**dict(inner.attrs), "spec": str(Signature(spec.inputs, (out,)))}
    return make("contract", *inner.args, **attrs)


@local("contract", example=lambda x, w: x.reshape(3, 8) @ w, types=("f32[3,2,4]", "f32[8,5]"))
def contract_of_merge(op: Op) -> Outcome:
    """contract(reshape(x: h k -> (h k)), w)  ->  contract(x, reshape(w))"""
    spec = Signature.parse(op["spec"])
    for i, arg in enumerate(op.args):
        if arg.op.name != "reshape":
            continue
        found = opdef.signature(arg.op)
        if not _only_splits(found.outputs[0], found.inputs[0]):
            continue
        source = dict(zip(letters(found.inputs[0]), arg.op.args[0].type.shape))
        parts = {
            letter: tuple(source[part] for part in dimension)
            for (letter,), dimension in zip(spec.inputs[i], found.outputs[0])
        }
        if not any(
            letter in letters(spec.outputs[0]) for letter in parts if len(parts[letter]) > 1
        ):
            return _split_contract(op, parts)
    return None


@local("reshape", example=lambda x, w: (x @ w).reshape(3, 2, 4), types=("f32[3,5]", "f32[5,8]"))
def split_of_contract(op: Op) -> Outcome:
    """reshape(contract(x, w): (h k) -> h k)  ->  contract(x, reshape(w)) that gives h and k"""
    inner = op.args[0].op
    if inner.name != "contract":
        return None
    found = opdef.signature(op)
    if not _only_splits(found.inputs[0], found.outputs[0]):
        return None
    result = dict(zip(letters(found.outputs[0]), op.types[0].shape))
    out = Signature.parse(inner["spec"]).outputs[0]
    return _split_contract(
        inner,
        {
            letter: tuple(result[part] for part in dimension)
            for (letter,), dimension in zip(out, found.inputs[0])
        },
    )


def _only_splits(merged: Array, split: Array) -> bool:
    """Whether a reshape cuts dimensions apart and does nothing else."""
    return (
        all(len(dimension) == 1 for dimension in split)
        and all(dimension for dimension in merged)
        and any(len(dimension) > 1 for dimension in merged)
        and letters(merged) == letters(split)
    )


def _split_contract(op: Op, parts: dict[str, tuple[int, ...]]) -> Value:
    """A contract with some letters cut into parts of these sizes, its arguments reshaped to fit."""
    spec = Signature.parse(op["spec"])
    fresh = iter(x for x in _LETTERS if x not in spec.letters)
    names = {letter: (letter, *(next(fresh) for _ in sizes[1:])) for letter, sizes in parts.items()}

    def axes(array: Array) -> Array:
        return tuple((part,) for (letter,) in array for part in names.get(letter, (letter,)))

    def shaped(arg: Value, array: Array) -> Value:
        sizes = zip(array, arg.type.shape)
        shape = tuple(part for (x,), size in sizes for part in parts.get(x, (size,)))
        return reshaped(arg, shape) if shape != arg.type.shape else arg

    args = [shaped(arg, array) for arg, array in zip(op.args, spec.inputs)]
    cut = Signature(tuple(map(axes, spec.inputs)), (axes(spec.outputs[0]),))
    return make("contract", *args, **{**dict(op.attrs), "spec": str(cut)})


_FOLDED = lax.ELEMENTWISE - {"sharding_constraint", "optimization_barrier"}


@local(
    *_FOLDED,
    "broadcast_in_dim",
    "reshape",
    "transpose",
    "concatenate",
    example=lambda x: x + jnp.exp(jnp.float32(2.0)),
    types=("f32[4]",),
)
def constant_fold(op: Op) -> Outcome:
    """f(constants)  ->  a constant, where small enough to print"""
    if not op.args or any(arg.op.name != "const" for arg in op.args):
        return None
    if op.name == "broadcast_in_dim" and not op.args[0].type.shape:
        return None  # a splat says more than its elements do
    if (
        len(op.types) > 1
        or op.types[0].size > _LARGEST_FOLDED
        or op.types[0].dtype.startswith("key")
    ):
        return None
    with jax.ensure_compile_time_eval():
        (folded,) = runtime.framework().evaluate(Graph((), op.results), [])
    return constant(np.asarray(folded), op.types[0])


RULES: tuple[Rule, ...] = tuple(rule for rule in list(globals().values()) if isinstance(rule, Rule))


def normal_form(graph: Graph, report: Report | None = None) -> Graph:
    """`graph` in normal form. Idempotent."""
    return rewrite(graph, RULES, report)
