"""Logits of a query and its keys, those of one query over several parts of the context, and those
of several pairs of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dialect.jaxprs.jaxpr import constant
from dialect.matching.operands import Operand, bare, combined, in_parts, laid_out, named, unlaid
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss
from rewrite.signature import Array, Signature, letters

Pair = tuple[Operand, Operand]


@dataclass(frozen=True)
class Logits:
    """A value as logits or weights: the product that it comes from, and the steps in between.

    `axes` are the letters of the value's dimensions, as in the spec of the product. `pairs` are the
    factors of further products that are added to it, in its letters.
    """

    product: Op
    axes: Array
    inner: str  # the widest dtype up to the softmax
    scale: float = 1.0
    cap: float | None = None
    masks: tuple[Operand, ...] = ()
    fill: float | Value | None = None  # the logits where one of the masks is false, maybe a scalar
    dropped: bool = False  # whether the weights are zero there, even in rows without any key
    biases: tuple[Operand, ...] = ()
    sink: Operand | None = None
    columns: tuple[str, int, int] | None = None  # (axis, start, stop) of the keys beside a sink
    context: str = ""  # the axis of the softmax, after it
    pairs: tuple[Pair, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each letter of the product."""
        (array,) = Signature.parse(self.product["spec"]).outputs
        return dict(zip(letters(array), self.product.types[0].shape))


class _Part:
    """A part of the logits, in the letters of another part; `count` places of the context."""

    def __init__(self, part: Logits, first: Logits, axis: int) -> None:
        spec, first_spec = (Signature.parse(logits.product["spec"]) for logits in (part, first))
        self.logits = part
        self.names = dict(zip(letters(part.axes), letters(first.axes)))
        self.names |= dict(zip(spec.summed, first_spec.summed))
        (context,) = part.axes[axis]
        self.count = part.sizes[context]
        self.sizes = {self.names[x]: size for x, size in part.sizes.items() if x in self.names}
        sides = [self.named(arg, axes) for arg, axes in zip(part.product.args, spec.inputs)]
        self.key_at = next(i for i, axes in enumerate(spec.inputs) if (context,) in axes)
        self.key = sides[self.key_at]
        self.query = unlaid(sides[1 - self.key_at], self.sizes)

    def named(self, value: Value, axes: Array) -> Operand:
        """An argument of the product, or what stands beside the logits, in the other's letters."""
        return named(
            value, tuple(tuple(self.names[x] for x in axis if x in self.names) for axis in axes)
        )

    def beside(
        self, operands: Sequence[Operand], by: str, order: list[str], nothing: Value
    ) -> Operand:
        """Its masks, or its biases, as one operand."""
        renamed = [self.named(operand.value, operand.axes) for operand in operands]
        return combined(by, renamed, order) if renamed else Operand(nothing, ())


def of_one_query(parts: Sequence[Logits], axis: int) -> Logits | Miss:
    """concat(q . k_1, q . k_2, ...), scaled and masked alike  ->  q . concat(k_1, k_2, ...)"""
    first, *_ = parts
    if len({_settings(part) for part in parts}) != 1 or any(part.pairs for part in parts):
        return Miss("the parts of the logits are not computed alike", 4)
    if first.context or first.sink:
        return Miss("the parts of the logits are not computed alike", 4)
    if len({part.fill for part in parts if part.masks}) > 1:
        return Miss("the parts of the logits are masked with different numbers", 4)
    if len({tuple(map(len, part.axes)) for part in parts}) != 1 or len(first.axes[axis]) != 1:
        return Miss("the parts of the logits have different axes", 4)
    known = [_Part(part, first, axis) for part in parts]
    if any(part.query != known[0].query for part in known):
        return Miss("the parts of the logits have different queries", 4)
    (context,), order = first.axes[axis], list(letters(first.axes))
    counts = [part.count for part in known]

    def beside(name: str, by: str, nothing: Value) -> tuple[Operand, ...]:
        entries = [getattr(part, name) for part in parts]
        operands = [
            x.beside(operands_of_part, by, order, nothing)
            for x, operands_of_part in zip(known, entries)
        ]
        return (in_parts(operands, counts, context, order),) if any(entries) else ()

    return replace(
        first,
        product=_over_all_keys(first.product, known, context),
        masks=beside("masks", "and", constant(True, Type("bool", ()))),
        biases=beside("biases", "add", constant(0.0, Type(first.inner, ()))),
        fill=next((part.fill for part in parts if part.masks), None),
    )


def _settings(part: Logits) -> tuple:
    """What the parts must have in common."""
    rest = tuple(attr for attr in part.product.attrs if attr[0] != "spec")
    return rest, part.inner, part.scale, part.cap, part.context, part.sink, len(part.product.args)


def _over_all_keys(product: Op, parts: Sequence[_Part], context: str) -> Op:
    """The product of the first part, with the keys of all."""
    args, (first, *_) = list(product.args), parts
    keys = []
    for part in parts:
        sizes = part.sizes | dict(zip(letters(part.key.axes), _kept(part.key)))
        shape = tuple(sizes[axis[0]] if axis else 1 for axis in first.key.axes)
        keys.append(laid_out(bare(part.key, sizes), first.key.axes, shape))
    dimension = first.key.axes.index((context,))
    args[first.key_at] = make("concatenate", *keys, dimension=dimension)
    return make("contract", *args, **dict(product.attrs)).op


def _kept(operand: Operand) -> tuple[int, ...]:
    """The sizes of its axes."""
    pairs = zip(operand.axes, operand.value.type.shape)
    return tuple(size for axis, size in pairs if axis)


def of_several_pairs(left: Logits, right: Logits) -> Logits | Miss:
    """q_1 . k_1 + q_2 . k_2, scaled alike and not masked yet"""
    if _settings(left) != _settings(right) or left.context or left.cap is not None:
        return Miss("the products of the logits are not computed alike", 4)
    if any(logits.masks or logits.sink for logits in (left, right)):
        return Miss("the logits are masked before another product is added to them", 4)
    if [*map(len, left.axes)] != [*map(len, right.axes)]:
        return Miss("the products of the logits have different axes", 4)
    name = dict(zip(letters(right.axes), letters(left.axes)))
    number = len(left.pairs)

    def renamed(operand: Operand) -> Operand:
        """In the letters of the left; what is summed keeps a name of its own."""
        return Operand(
            operand.value,
            tuple(tuple(name.get(x, f"{x} {number}") for x in axis) for axis in operand.axes),
        )

    pairs = ((renamed(one), renamed(other)) for one, other in (_factors(right), *right.pairs))
    biases = tuple(map(renamed, right.biases))
    return replace(left, pairs=(*left.pairs, *pairs), biases=(*left.biases, *biases))


def _factors(logits: Logits) -> Pair:
    """Both factors of the product that logits come from."""
    spec = Signature.parse(logits.product["spec"])
    one, other = (named(*pair) for pair in zip(logits.product.args, spec.inputs))
    return one, other
