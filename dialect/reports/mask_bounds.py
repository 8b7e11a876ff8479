"""What a mask is: causal, a sliding window, a length, padding; and whether a bias is ALiBi.

A mask is read as bounds on the position in the context, `first <= s <= last`, whose ends are sums
of row numbers, of values that the context does not enter (a position, a cache's index, a length)
and of a number. However a library computes it (comparisons of iotas, a slice of a triangle, both at
once), the bounds say what it lets through. For reports, and for passes that skip what is masked.
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
    """A sum of indices along dimensions, of values and of a number, each with its factor."""

    dims: tuple[tuple[int, int], ...] = ()
    terms: tuple[tuple[Value, int], ...] = ()
    number: int = 0

    def plus(self, other: Sum, factor: int = 1) -> Sum:
        return Sum(
            _added(self.dims, other.dims, factor),
            _added(self.terms, other.terms, factor),
            self.number + factor * other.number,
        )

    def along(self, dim: int) -> int:
        return dict(self.dims).get(dim, 0)

    def moved(self, place: Callable[[int], int | None]) -> Sum:
        """The sum with its dimensions elsewhere; those of size one are gone, being index 0."""
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
    """s <= end, or s >= end where it is `lowest`."""

    end: Sum
    lowest: bool


Facts = tuple[Bound | str, ...]


def describe_attend(op: Op) -> tuple[str, ...]:
    """What beside query, key and value an `attend` has: `("causal", "window 4096", "alibi")`."""
    found: list[str] = []
    arrays = Signature.parse(op["axes"]).inputs[3:]
    for name, value, axes in zip(op.get("given", "").split(), op.args[3:], arrays):
        context = axes.index(("s",)) if ("s",) in axes else None
        if name == "mask":
            found += describe_mask(value, context)
        elif name == "bias":
            found += describe_bias(value, context)
        else:
            found.append(name)
    return tuple(found)


def describe_mask(value: Value, context: int | None = -1) -> tuple[str, ...]:
    """What a boolean lets through, the position in the context counted along dimension `context`.

    - `causal`: what is not behind the query's position;
    - `window n`: the last n positions up to there, `ahead n`: also n behind it;
    - `length`: what was written of a cache, or of a sequence; `first n`: that many, always;
    - `prefix`: all of a prefix, and behind it what is causal;
    - `padding`: what an argument says of each position; `segments`: what has the query's label;
    - `other`: none of these.
    """
    if context is None:
        return (OTHER,)
    return _said(_facts(value, context % value.type.rank))


def describe_bias(value: Value, context: int | None = -1) -> tuple[str, ...]:
    """`alibi` for a bias that is a slope times the position (Press et al. 2022), else `bias`."""
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


def _said(facts: Facts) -> tuple[str, ...]:
    """Facts in words, the tightest bound from each base alone."""
    words: dict[str, None] = {}
    bounds = [each for each in facts if isinstance(each, Bound)]
    last = _tightest((each.end for each in bounds if not each.lowest), min)
    first = _tightest((each.end for each in bounds if each.lowest), max)
    for base, end in last.items():
        words[_last(base, end)] = None
    for base, end in first.items():
        words[f"window {min(last.get(base, 0), 0) - end + 1}"] = None
    if "causal" in words:
        words = {each: None for each in words if not each.startswith("ahead")}
    return tuple(dict.fromkeys((*words, *(each for each in facts if isinstance(each, str)))))


def _tightest(ends: Iterable[Sum], choose: Callable[[int, int], int]) -> dict[Sum, int]:
    found: dict[Sum, int] = {}
    for end in ends:
        base = replace(end, number=0)
        found[base] = choose(found.get(base, end.number), end.number)
    return found


def _last(base: Sum, end: int) -> str:
    """What s <= base + end is called."""
    if base == Sum():
        return f"first {end + 1}"
    if end == 0:
        return "causal"
    by_row = base.dims or any(_varies_by_row(value) for value, _ in base.terms)
    if not by_row:
        return "length"
    return f"ahead {end}" if end > 0 else f"behind {-end}"


def _varies_by_row(value: Value) -> bool:
    """Whether a value has more axes than one for the sequences."""
    return sum(size > 1 for size in value.type.shape) > 1


def _facts(value: Value, context: int) -> Facts:
    """What a boolean says of the position along a dimension."""
    op = value.op
    if number(value) is not None:
        return () if number(value) else (OTHER,)
    if op.name == "and":
        return tuple(fact for arg in op.args for fact in _facts(arg, context))
    if op.name == "or":
        sides = {_said(_facts(arg, context)) for arg in op.args}
        return ("prefix",) if sides == {("causal",), ("length",)} else (OTHER,)
    if op.name in _COMPARED:
        bound = _bounds(op, context)
        if bound is not None:
            return bound
    moved = _moved_facts(value, context)
    return moved if moved is not None else (_by_content(value, context),)


def _moved_facts(value: Value, context: int) -> Facts | None:
    """The facts of a mask behind a layout op or a slice, in the dimensions of this one."""
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
    """What a layout op lays out, its dimensions numbered as behind it."""
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
    """A bound in the indices of a slice that starts there."""
    if isinstance(fact, str):
        return fact
    end = fact.end.plus(starts[context], -1)
    for dim, factor in fact.end.dims:
        end = end.plus(starts[dim], factor)
    return replace(fact, end=end.moved(lambda dim: dim if shape[dim] > 1 else None))


_COMPARED = {"lt": (-1, False), "le": (0, False), "gt": (1, True), "ge": (0, True)}


def _bounds(op: Op, context: int) -> Facts | None:
    """The bound that a comparison puts on the position, which enters it once."""
    sides = [_sum(arg, context) for arg in op.args]
    if None in sides:
        return None
    difference = sides[0].plus(sides[1], -1)  # of which the op compares the sign
    factor = difference.along(context)
    if factor not in (1, -1):
        return None
    step, lowest = _COMPARED[op.name]
    rest = Sum(dims=((context, factor),)).plus(difference, -1)
    rest = rest.plus(Sum(number=step))
    end = rest if factor == 1 else Sum().plus(rest, -1)
    return (Bound(end, lowest if factor == 1 else not lowest),)


def _sum(value: Value, context: int | None) -> Sum | None:
    """A number as a sum, None where the context enters it otherwise; `context` None: nowhere."""
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
        found = _sum(inner.value, within)
        return None if found is None else found.moved(place.get)
    varies = context is not None and value.type.shape[context : context + 1] not in ((), (1,))
    return None if varies else Sum(terms=((value, 1),))


def _by_content(value: Value, context: int) -> str:
    """What a mask that is no bound is called: by what it reads for each position."""
    inner = through(value, "not", "convert_element_type")
    sides = [arg for arg in inner.op.args if number(arg) is None]
    if inner.op.name == "eq" and len(sides) == 2:
        return "segments"
    while len(sides) == 1 and inner.op.name in (*_COMPARED, "eq", "ne"):
        inner = through(sides[0], "not", "convert_element_type", "reshape", "broadcast_in_dim")
        sides = [arg for arg in inner.op.args if number(arg) is None]
    return "padding" if inner.op.name == "input" else OTHER
