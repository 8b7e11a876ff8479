"""The kind of a mask: causal, sliding window, length, padding; and whether a bias is ALiBi.

A mask is analysed as bounds on the context position, `first <= s <= last`, with ends that are sums
of row numbers, of values that do not depend on the context (a position, a cache's index, a length)
and of a constant. The bounds are the same however a library computes the mask (comparisons of
iotas, a slice of a triangle). For reports, and for passes that skip masked positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from dialect.matching.operands import Operand, moved_ones
from dialect.matching.values import number, through
from rewrite.ir import Op, Value
from rewrite.signature import Signature

OTHER = "other"


@dataclass(frozen=True)
class Sum:
    """A linear form: indices along dimensions and values with their factors, and a constant."""

    dims: tuple[tuple[int, int], ...] = ()
    terms: tuple[tuple[Value, int], ...] = ()
    number: int = 0

    def plus(self, other: Sum, factor: int = 1) -> Sum:
        """self + factor * other."""
        return Sum(
            _added(self.dims, other.dims, factor),
            _added(self.terms, other.terms, factor),
            self.number + factor * other.number,
        )

    def along(self, dim: int) -> int:
        """The factor of the index along a dimension."""
        return dict(self.dims).get(dim, 0)

    def moved(self, place: Callable[[int], int | None]) -> Sum:
        """The sum with renumbered dimensions; None drops one, since its index is 0."""
        moved = ((place(dim), factor) for dim, factor in self.dims)
        return replace(self, dims=tuple(sorted((d, f) for d, f in moved if d is not None)))


def _added(left: tuple, right: tuple, factor: int) -> tuple:
    total = dict(left)
    for key, value in right:
        total[key] = total.get(key, 0) + factor * value
    order = list(total) if any(isinstance(key, Value) for key in total) else sorted(total)
    return tuple((key, total[key]) for key in order if total[key])


@dataclass(frozen=True)
class Bound:
    """s <= end, or s >= end if `lowest`."""

    end: Sum
    lowest: bool


Facts = tuple[Bound | str, ...]


def describe_attend(op: Op) -> tuple[str, ...]:
    """The other inputs of an `attend`: `("causal", "window 4096", "alibi")`."""
    words: list[str] = []
    arrays = Signature.parse(op["axes"]).inputs[3:]
    for name, value, axes in zip(op.get("given", "").split(), op.args[3:], arrays):
        context = axes.index(("s",)) if ("s",) in axes else None
        if name == "mask":
            words += describe_mask(value, context)
        elif name == "bias":
            words += describe_bias(value, context)
        else:
            words.append(name)
    return tuple(words)


def describe_mask(value: Value, context: int | None = -1) -> tuple[str, ...]:
    """The kinds of a boolean mask; `context` is the dimension of the context position.

    - `causal`: positions up to the query's
    - `window n`: the last n positions up to the query's; `ahead n`: also n after it
    - `length`: the filled part of a cache or sequence; `first n`: a constant number of positions
    - `prefix`: a prefix, and causal after it
    - `padding`: an argument marks every position; `segments`: positions with the query's label
    - `other`: none of these
    """
    if context is None:
        return (OTHER,)
    return _words(_facts(value, context % value.type.rank))


def describe_bias(value: Value, context: int | None = -1) -> tuple[str, ...]:
    """`alibi` if the bias is a slope times the position (Press et al. 2022), else `bias`."""
    value = through(value, "convert_element_type", "reshape", "neg", "broadcast_in_dim")
    if context is None or value.op.name not in ("mul", "contract"):
        return ("bias",)
    return ("alibi",) if any(map(_counts, value.op.args)) else ("bias",)


def _counts(value: Value) -> bool:
    """Whether a value counts positions."""
    if value.op.name in ("iota", "cumsum"):
        return True
    layout = ("reshape", "broadcast_in_dim", "convert_element_type", "transpose", "neg")
    inner = value.op.args if value.op.name in (*layout, "add", "sub") else ()
    return any(map(_counts, inner))


def _words(facts: Facts) -> tuple[str, ...]:
    """Facts in words; of bounds with the same base only the tightest."""
    words: dict[str, None] = {}
    bounds = [bound for bound in facts if isinstance(bound, Bound)]
    last = _tightest((bound.end for bound in bounds if not bound.lowest), min)
    first = _tightest((bound.end for bound in bounds if bound.lowest), max)
    for base, end in last.items():
        words[_last(base, end)] = None
    for base, end in first.items():
        words[f"window {min(last.get(base, 0), 0) - end + 1}"] = None
    if "causal" in words:
        words = {word: None for word in words if not word.startswith("ahead")}
    return tuple(dict.fromkeys((*words, *(fact for fact in facts if isinstance(fact, str)))))


def _tightest(ends: Iterable[Sum], choose: Callable[[int, int], int]) -> dict[Sum, int]:
    ends_: dict[Sum, int] = {}
    for end in ends:
        base = replace(end, number=0)
        ends_[base] = choose(ends_.get(base, end.number), end.number)
    return ends_


def _last(base: Sum, end: int) -> str:
    """The name of s <= base + end."""
    if base == Sum():
        return f"first {end + 1}"
    if end == 0:
        return "causal"
    by_row = base.dims or any(_varies_by_row(value) for value, _ in base.terms)
    if not by_row:
        return "length"
    return f"ahead {end}" if end > 0 else f"behind {-end}"


def _varies_by_row(value: Value) -> bool:
    """Whether a value has another axis than one over sequences."""
    return sum(size > 1 for size in value.type.shape) > 1


def _facts(value: Value, context: int) -> Facts:
    """The facts of a boolean about the position along a dimension."""
    op = value.op
    if number(value) is not None:
        return () if number(value) else (OTHER,)
    if op.name == "and":
        return tuple(fact for arg in op.args for fact in _facts(arg, context))
    if op.name == "or":
        sides = {_words(_facts(arg, context)) for arg in op.args}
        return ("prefix",) if sides == {("causal",), ("length",)} else (OTHER,)
    if op.name in _COMPARED:
        bound = _bounds(op, context)
        if bound is not None:
            return bound
    moved = _moved_facts(value, context)
    return moved if moved is not None else (_by_content(value, context),)


def _moved_facts(value: Value, context: int) -> Facts | None:
    """The facts of the argument of a layout op or slice, in the dimensions of its result."""
    op, rank = value.op, value.type.rank
    if op.name == "dynamic_slice":
        facts = _facts(op.args[0], context)
        starts = [_sum(start, None) or Sum(terms=((start, 1),)) for start in op.args[1:]]
        return tuple(_shifted(fact, starts, context, value.type.shape) for fact in facts)
    inner = _inner(value, rank)
    if inner is None or (context,) not in inner.axes:
        return None
    facts = _facts(inner.value, inner.axes.index((context,)))
    place = {d: axis[0] for d, axis in enumerate(inner.axes) if axis}
    return tuple(
        fact if isinstance(fact, str) else replace(fact, end=fact.end.moved(place.get))
        for fact in facts
    )


def _inner(value: Value, rank: int) -> Operand | None:
    """The argument of a layout op, with dimensions numbered as in its result."""
    op = value.op
    if op.name == "broadcast_in_dim" and len(op.args) == 1:
        sizes = zip(op.args[0].type.shape, op["broadcast_dimensions"])
        axes = tuple((d,) if size == value.type.shape[d] else () for size, d in sizes)
        return Operand(op.args[0], axes)
    if op.name == "transpose":
        order = op["permutation"]
        return Operand(op.args[0], tuple((order.index(i),) for i in range(rank)))
    if op.name == "reshape":
        return moved_ones(Operand(value, tuple((d,) for d in range(rank))), op.args[0])
    return None


def _shifted(
    fact: Bound | str, starts: list[Sum], context: int, shape: tuple[int, ...]
) -> Bound | str:
    """A bound in the indices of a slice that begins at `starts`."""
    if isinstance(fact, str):
        return fact
    end = fact.end.plus(starts[context], -1)
    for dim, factor in fact.end.dims:
        end = end.plus(starts[dim], factor)
    return replace(fact, end=end.moved(lambda dim: dim if shape[dim] > 1 else None))


_COMPARED = {"lt": (-1, False), "le": (0, False), "gt": (1, True), "ge": (0, True)}


def _bounds(op: Op, context: int) -> Facts | None:
    """The bound of a comparison on the position; None if the position does not occur once."""
    sides = [_sum(arg, context) for arg in op.args]
    if None in sides:
        return None
    difference = sides[0].plus(sides[1], -1)  # the op compares it with 0
    factor = difference.along(context)
    if factor not in (1, -1):
        return None
    step, lowest = _COMPARED[op.name]
    rest = Sum(dims=((context, factor),)).plus(difference, -1)
    rest = rest.plus(Sum(number=step))
    end = rest if factor == 1 else Sum().plus(rest, -1)
    return (Bound(end, lowest if factor == 1 else not lowest),)


def _sum(value: Value, context: int | None) -> Sum | None:
    """A value as a linear form; None if it depends on the context in another way. `context` None:
    the value does not depend on the context."""
    op, known = value.op, number(value)
    if known is not None:
        return Sum(number=int(known)) if float(known).is_integer() else None
    if op.name == "iota":
        return Sum(dims=((op["dimension"], 1),))
    if op.name in ("convert_element_type", "wrap"):
        return _sum(op.args[0], context)
    if op.name in ("add", "sub"):
        rank = value.type.rank
        sides = [_sum(arg, context if arg.type.rank == rank else None) for arg in op.args]
        return None if None in sides else sides[0].plus(sides[1], 1 if op.name == "add" else -1)
    inner = _inner(value, value.type.rank)
    if inner is not None:
        place = {d: axis[0] for d, axis in enumerate(inner.axes) if axis}
        within = next((d for d, outer in place.items() if outer == context), None)
        total = _sum(inner.value, within)
        return None if total is None else total.moved(place.get)
    varies = context is not None and value.type.shape[context : context + 1] not in ((), (1,))
    return None if varies else Sum(terms=((value, 1),))


def _by_content(value: Value, context: int) -> str:
    """The name of a mask that is not a bound, by what it reads per position."""
    inner = through(value, "not", "convert_element_type")
    sides = [arg for arg in inner.op.args if number(arg) is None]
    if inner.op.name == "eq" and len(sides) == 2:
        return "segments"
    while len(sides) == 1 and inner.op.name in (*_COMPARED, "eq", "ne"):
        inner = through(sides[0], "not", "convert_element_type", "reshape", "broadcast_in_dim")
        sides = [arg for arg in inner.op.args if number(arg) is None]
    return "padding" if inner.op.name == "input" else OTHER
