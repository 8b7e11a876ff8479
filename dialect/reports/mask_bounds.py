"""The kind of a mask: causal, sliding window, length, padding; and whether a bias is ALiBi.

The words for the bounds of a mask (`dialect.matching.mask_regions`), and for what is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from dialect.matching.mask_regions import COMPARED, Bound, Region, Sum, region_of
from dialect.matching.values import number, through
from rewrite.ir import Op, Value
from rewrite.signature import Signature

OTHER = "other"


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
    words += [f"{name} {op[name]}" for name in ("window", "sinks") if op.get(name)]
    return tuple(words)


def describe_mask(value: Value, context: int | None = -1) -> tuple[str, ...]:
    """The kinds of a boolean mask; `context` is the dimension of the context position.

    - `causal`: positions up to the query's
    - `window n`: the last n positions up to the query's; `ahead n`: also n after it
    - `length`: the filled part of a cache or sequence; `first n`: a constant number of positions
    - `chunk n`: the positions of the same n as the query's
    - `prefix`: a prefix, and causal after it
    - `padding`: an argument marks every position; `segments`: positions with the query's label
    - `other`: none of these
    """
    if context is None:
        return (OTHER,)
    return _words(region_of(value, context % value.type.rank))


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


def _words(region: Region) -> tuple[str, ...]:
    """A region in words; of bounds with the same base only the tightest."""
    words: dict[str, None] = {}
    known = [bound for condition in region for bound in condition.bounds]
    bounds = [bound for bound in known if len(bound.ends) == 1]
    last = _tightest((bound.ends[0] for bound in bounds if not bound.lowest), min)
    first = _tightest((bound.ends[0] for bound in bounds if bound.lowest), max)
    for base, end in last.items():
        words[_last(base, end)] = None
    for base, end in first.items():
        length = min(last.get(base, 0), 0) - end + 1
        words[f"chunk {_steps(base)}" if _steps(base) > 1 else f"window {length}"] = None
    if "causal" in words:
        words = {word: None for word in words if not word.startswith("ahead")}
    words.pop("", None)
    of_several = (_of_several(bound) for bound in known if len(bound.ends) > 1)
    rest = (_by_content(source) for _, source, bounds in region if not bounds)
    return tuple(dict.fromkeys((*words, *of_several, *rest)))


def _steps(base: Sum) -> int:
    """In steps of how many positions a bound moves."""
    return max((factor for _, factor in base.terms), default=1)


def _of_several(bound: Bound) -> str:
    """The name of a bound with several ends."""
    kinds = {_last(replace(end, number=0), end.number) for end in bound.ends if not bound.lowest}
    return "prefix" if kinds == {"causal", "length"} else OTHER


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
    if _steps(base) > 1:
        return ""  # the end of a chunk, which its beginning names
    if end == 0:
        return "causal"
    by_row = base.dims or any(_varies_by_row(operand.value) for operand, _ in base.terms)
    if not by_row:
        return "length"
    return f"ahead {end}" if end > 0 else f"behind {-end}"


def _varies_by_row(value: Value) -> bool:
    """Whether a value has another axis than one over sequences."""
    return sum(size > 1 for size in value.type.shape) > 1


def _by_content(value: Value) -> str:
    """The name of a mask that is not a bound, by what it reads per position."""
    inner = through(value, "not", "convert_element_type")
    sides = [arg for arg in inner.op.args if number(arg) is None]
    if inner.op.name == "eq" and len(sides) == 2:
        return "segments"
    while len(sides) == 1 and inner.op.name in (*COMPARED, "ne"):
        inner = through(sides[0], "not", "convert_element_type", "reshape", "broadcast_in_dim")
        sides = [arg for arg in inner.op.args if number(arg) is None]
    return "padding" if inner.op.name == "input" else OTHER
