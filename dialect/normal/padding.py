"""What padding adds is not computed: an axis that is padded, and cut or summed, stays as it was.

slice(f(pad(x)))  ->  f(x), and over the padded axis contract(pad(x), y)  ->  contract(x, slice(y))

A chunked state space or linear attention pads the tokens of a step to a whole chunk: 1 to 256 in
decode. Sums over zeros are left out, so activations are taken to be finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dialect.matching.values import cut, number
from dialect.normal.parts import cut_attrs, read_by_part
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, signature, traits, with_args

ZERO, LAST, ANY = "zero", "last", "any"  # what padding holds: zeros, the last before it, anything


@dataclass(frozen=True)
class _Short:
    """A value without its padding, and what that holds, by axis."""

    value: Value
    tails: dict[int, str]


def without_padding(graph: Graph) -> Graph:
    """`graph` with axes that are padded left as they were, wherever nothing reads the padding."""
    shorts: dict[Value, _Short] = {}

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        regions = tuple(map(without_padding, op.regions))
        results = with_args(op, args, regions).results
        if len(results) > 1 or op.regions:
            return results
        short = _padded(op, args) or _shortened(op, args, [shorts.get(arg) for arg in op.args])
        if short and short.tails:
            shorts[op.results[0]] = short
        is_same = short and not short.tails and short.value.type == op.types[0]
        return (short.value,) if is_same else results

    return rebuilt(graph, visit)


def _padded(op: Op, args: Sequence[Value]) -> _Short | None:
    """What `op` pads with zeros behind its end."""
    config = op.get("padding_config") or ()
    ends = [high for low, high, inner in config if not (low or inner)]
    if len(ends) < len(config) or min(ends, default=-1) < 0 or number(args[-1]) != 0:
        return None
    tails = {axis: ZERO for axis, high in enumerate(ends) if high}
    return _Short(args[0], tails) if tails and args[0].type.size else None


def _shortened(op: Op, args: Sequence[Value], shorts: Sequence[_Short | None]) -> _Short | None:
    """The result of `op` without the padding of its arguments; None where it needs that."""
    if not any(shorts):
        return None
    if "start_indices" in dict(op.attrs):
        return _sliced(op, shorts[0])
    sizes, tails, wanted = dict[int, int](), dict[int, str](), [dict[int, int]() for _ in args]
    for axis in range(op.types[0].rank):
        read = read_by_part(op.results[0], axis) or _cumulated(op, axis)
        held = {i: short.tails.get(at) for i, at in read.items() if (short := shorts[i])}
        if any(held.values()):
            size = min(_lengths(shorts, read))
            sizes[axis], tails[axis] = size, _tail(op, held, len(args), len(read))
            for i, at in read.items():
                wanted[i][at] = size
    for read in _summed(op, shorts):
        for i, at in read.items():
            wanted[i][at] = min(_lengths(shorts, read))
    if not all(_has(short, needs) for short, needs in zip(shorts, wanted)):
        return None
    attrs = cut_attrs(op, sizes)
    short_args = map(_cut_to, args, shorts, wanted)
    return _Short(make(op.name, *short_args, origin=op.origin, **attrs), tails)


def _sliced(op: Op, short: _Short) -> _Short | None:
    """A slice of a value without its padding: within what it was, or the last of it again."""
    bounds, tails = [], {}
    if op.get("strides"):
        return None
    for axis, (start, stop) in enumerate(zip(op["start_indices"], op["limit_indices"])):
        tail, size = short.tails.get(axis, ""), short.value.type.shape[axis]
        if tail and stop > size:
            if stop - start == op.args[0].type.shape[axis]:
                start, stop, tails[axis] = 0, size, tail
            elif tail == LAST and stop - start == 1:
                start, stop = size - 1, size
            else:
                return None
        bounds.append((start, stop))
    starts, stops = zip(*bounds)
    return _Short(make("slice", short.value, start_indices=starts, limit_indices=stops), tails)


def _cumulated(op: Op, axis: int) -> dict[int, int]:
    """The argument along which an op sums up to each place, from the first on."""
    is_along = op.get("reverse") is False and traits(op).sums and op.get("axis") == axis
    return {0: axis} if is_along else {}


def _tail(op: Op, held: Mapping[int, str | None], count: int, along: int) -> str:
    """What the padding of a result holds, of `count` arguments, of which `along` have its axis."""
    tails, about = [*held.values()], traits(op)
    if "reverse" in dict(op.attrs):
        return LAST if tails == [ZERO] and about.sums else ANY
    is_zero = about.linear == "all" and tails == [ZERO] * count
    if is_zero or (about.linear == "each" and ZERO in tails):
        return ZERO
    return LAST if tails == [LAST] * along else ANY


def _summed(op: Op, shorts: Sequence[_Short | None]) -> Iterator[dict[int, int]]:
    """The axes that an op sums and of which a factor is zero in its padding: where the arguments
    have each."""
    axes = signature(op)
    for letter in axes.summed if traits(op).skips_zeros else ():
        read = {
            i: array.index((letter,)) for i, array in enumerate(axes.inputs) if (letter,) in array
        }
        if any(shorts[i] and shorts[i].tails.get(at) == ZERO for i, at in read.items()):
            yield read


def _lengths(shorts: Sequence[_Short | None], read: Mapping[int, int]) -> Iterator[int]:
    """How long the arguments are without their padding."""
    for i, at in read.items():
        if shorts[i] and at in shorts[i].tails:
            yield shorts[i].value.type.shape[at]


def _has(short: _Short | None, needs: Mapping[int, int]) -> bool:
    """Whether nothing is needed of an argument but what it is without its padding."""
    return short is None or all(
        needs.get(axis) == short.value.type.shape[axis] for axis in short.tails
    )


def _cut_to(arg: Value, short: _Short | None, needs: Mapping[int, int]) -> Value:
    """An argument that is as long as these axes need."""
    value = short.value if short else arg
    for axis, size in needs.items():
        if value.type.shape[axis] != size:
            value = cut(value, axis, 0, size)
    return value
