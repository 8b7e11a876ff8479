"""A mask that a loop is given becomes one that its body computes.

scan{consts: arange(s) <= p, ...}  ->  scan{consts: p, ...} with arange(s) <= p in its body
scan{xs: stack(arange(s) <= p, arange(s) <= q), ...}  ->  the same, with xs: stack(p, q)

So whoever reads the mask in the body sees what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dialect.matching.bound_values import integer, kept
from dialect.matching.mask_regions import is_known, region_of
from dialect.matching.values import in_shape, reshaped
from dialect.ops.control import remade_scan, scan_parts
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Symbol, Type, Value, new_input, replace_values
from rewrite.opdef import make, with_args

_COUNTS = ("bool", "i32", "i64")  # the dtypes of masks, positions and lengths


class _Inside(NamedTuple):
    """A mask as the body computes it, of inputs of its own: {input: what the loop is given}."""

    mask: Value
    inputs: dict[Value, Value]


def masks_into_loops(graph: Graph) -> Graph:
    """`graph` with the masks that its loops are given computed in their bodies."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        inside = masks_into_loop(with_args(op, args))
        regions = tuple(map(masks_into_loops, inside.regions))
        return with_args(inside, inside.args, regions).results

    return rebuilt(graph, visit)


def masks_into_loop(op: Op) -> Op:
    """`op`, with masks in its body where it is a scan that is given any whose bounds are known."""
    if op.name != "scan":
        return op
    (body,), (fixed, carry, xs) = op.regions, scan_parts(op)
    consts = {x: _of_one(arg) for x, arg in zip(body.inputs[fixed], op.args[fixed])}
    rows = {x: _of_stack(arg) for x, arg in zip(body.inputs[xs], op.args[xs])}
    inside = {x: leaf for x, leaf in (consts | rows).items() if leaf is not None}
    if not inside:
        return op
    replaced = replace_values(body, {x: leaf.mask for x, leaf in inside.items()})
    given = dict(zip(body.inputs, op.args))

    def inputs(part: slice) -> dict[Value, Value]:
        """What the loop is given of a part, new inputs in the place of masks."""
        new: dict[Value, Value] = {}
        for x in body.inputs[part]:
            new |= inside[x].inputs if x in inside else {x: given[x]}
        return new

    parts = [inputs(fixed), inputs(carry), inputs(xs)]
    graph = Graph(tuple(x for part in parts for x in part), replaced.outputs)
    return remade_scan(op, graph, *(list(part.values()) for part in parts))


def _of_one(mask: Value) -> _Inside | None:
    """A constant of the loop: its positions become constants. So does what only counts."""
    leaves = dict.fromkeys(_leaves(mask))
    if leaves and not _is_bounded(mask):
        return None
    inputs = {leaf: new_input(leaf.type) for leaf in leaves}
    return _Inside(_within(mask, inputs), {x: leaf for leaf, x in inputs.items()})


def _is_bounded(mask: Value) -> bool:
    """Whether this is a mask with bounds along its last dimension, computed outside."""
    if mask.type.dtype != "bool" or not mask.type.rank:
        return False
    return any(condition.bounds for condition in region_of(mask, mask.type.rank - 1))


def _leaves(value: Value) -> Iterator[Value]:
    """What a mask is computed of, at little cost: positions, lengths, and what is no bound."""
    op, dtypes = value.op, {operand.type.dtype for operand in (value, *value.op.args)}
    is_input = not op.args and not is_known(value)
    if is_input or op.regions or not dtypes <= set(_COUNTS):
        yield value
        return
    for arg in op.args:
        yield from _leaves(arg)


def _within(value: Value, inputs: dict[Value, Value]) -> Value:
    """The value, computed in the body."""
    if value in inputs:
        return inputs[value]
    args = tuple(_within(arg, inputs) for arg in value.op.args)
    return with_args(value.op, args).results[value.index]


def _of_stack(stack: Value) -> _Inside | None:
    """Masks of which each trip gets one: their bounds are stacked."""
    op = stack.op
    if op.name != "stack" or op["axis"] != 0 or not all(map(_is_bounded, op.args)):
        return None
    shape = op.args[0].type.shape
    masks = [kept(arg, len(shape) - 1) for arg in op.args]
    places = reshaped(
        make("iota", dtype=Symbol("i32"), shape=shape[-1:], dimension=0),
        (*(1 for _ in shape[1:]), shape[-1]),
    )
    parts: list[Value] = []
    inputs: dict[Value, Value] = {}
    for name, values, otherwise in (
        ("ge", [mask.first for mask in masks], integer(0)),
        ("le", [mask.last for mask in masks], integer(shape[-1] - 1)),
        ("and", [mask.rest for mask in masks], make("const", value=True, type=Type("bool", ()))),
    ):
        if any(values):
            rows = _alike([value or otherwise for value in values], len(shape))
            row = new_input(rows[0].type)
            inputs[row] = make("stack", *rows, axis=0)
            parts.append(row if name == "and" else make(name, places, row))
    mask = parts[0]
    for part in parts[1:]:
        mask = make("and", mask, part)
    return _Inside(in_shape(mask, shape), inputs)


def _alike(values: Sequence[Value], rank: int) -> list[Value]:
    """The values broadcast to one shape."""
    values = [value if value.type.rank else reshaped(value, (1,) * rank) for value in values]
    shape = tuple(max(sizes) for sizes in zip(*(value.type.shape for value in values)))
    return [in_shape(value, shape) for value in values]
