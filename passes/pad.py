"""pad: an axis of the weights padded with zeros, so that the mesh divides it.

heads (48)  ->  heads (64): queries, keys and values, their readers, and a cache that has heads

With 48 heads, PaLM-540B was served as if it had 64 (Pope et al. 2022, arXiv:2211.05102, appendix
D.1). Idle heads, hidden units and tokens are zeros, so no result changes; `stage` pads the weights
once, in `prepare`, and the cache in `adapt`. Grouped queries are padded within each group or by
more groups, whichever is faster. Hidden units of ragged experts are padded to whole lanes too: what
fills none is copied for their kernel in every step. The cost model decides whether padding pays;
`pad{heads=64}` asks for a size, `pad{heads=off}` for none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from dialect.display.quantities import size as shown_bytes
from dialect.machine.mesh import MeshSpec, Topology
from dialect.machine.tiles import lanes_of
from dialect.naming.axes import Axes
from dialect.padded.pad_axis import NotPadded, Padding, padded_program
from dialect.planning.decoder import decoder_shape
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.fallback_plans import planned_axes
from dialect.planning.search import TIE, choose
from rewrite.errors import PlanError
from rewrite.opdef import traits
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target

NETWORKS = {"d_ff": "", "ragged_d_ff": " of ragged experts"}  # which networks' width it is
Wanted = Literal["auto", "off"] | int


@dataclass(frozen=True)
class Option:
    """A way to pad: an axis of the program, its old and new size, and the padded decoder. of: where
    several arrays have such an axis, which of them."""

    axis: str
    old: int
    new: int
    shape: DecoderShape
    of: str = ""

    def __str__(self) -> str:
        return f"{self.axis} {self.old} -> {self.new}{self.of}"


@dataclass(frozen=True)
class Planned:
    """A program as a plan sees it: its axes and sizes, which are found when they are asked for."""

    program: Program
    target: Target

    @cached_property
    def axes(self) -> Axes:
        """The axes of its values."""
        return planned_axes(self.program, self.target.mesh)

    @cached_property
    def shape(self) -> DecoderShape:
        """The sizes of its decoder."""
        return decoder_shape(self.program, self.axes)

    def padding(self, option: Option) -> Padding:
        """What an option does to its values. Raises NotPadded."""
        return Padding.named(self.axes, option.axis, option.old, option.new)

    def padded(self, padding: Padding) -> Planned:
        """The padded program. Raises NotPadded."""
        return Planned(padded_program(self.program, padding), self.target)


@dataclass(frozen=True)
class Pad(Pass):
    """Pads query heads, d_ff and the vocabulary: where it pays, to a size, or not at all."""

    heads: Wanted = "auto"
    d_ff: Wanted = "auto"
    ragged_d_ff: Wanted = "auto"
    vocab: Wanted = "auto"

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        wanted = {name: getattr(self, name) for name in ("heads", *NETWORKS, "vocab")}
        wanted = {name: size for name, size in wanted.items() if size != "off"}
        is_ragged = any(traits(op).counts for op, _ in program.graph.walk())
        if wanted.get("ragged_d_ff") == "auto" and not is_ragged:
            del wanted["ragged_d_ff"]
            if not wanted:
                return self.recorded(program, "no experts are ragged")
        notes: list[str] = []
        planned = Planned(program, target)
        for name, size in wanted.items():
            if isinstance(size, int):
                planned = _asked(planned, name, size, notes)
            elif target.mesh:
                planned = _paying(planned, name, notes)
        if not target.mesh:
            notes.append("there is no mesh, so only what is asked for is padded")
        return self.recorded(planned.program, *notes)


def _asked(planned: Planned, name: str, size: int, notes: list[str]) -> Planned:
    """The program with an axis of this size. Raises PlanError where it cannot have it."""
    shape, target = planned.shape, planned.target
    old, *others = _sizes(shape, name) or [0]
    if size == old:
        notes.append(f"{name} are {size} already")
        return planned
    errors = [f"this program has {old}"]
    widest = f", the widest of {', '.join(map(str, (old, *others)))}" if others else ""
    for option in _of_size(shape, name, old, size):
        try:
            padding = planned.padding(option)
            padded = planned.padded(padding)
        except NotPadded as error:
            errors.append(f"{option}: {error}")
            continue
        times = [_step_s(s, target) for s in (option.shape, shape)] if target.mesh else []
        price = _price(times, planned.program, padding)
        notes.append(f"{option}{widest}, as asked: {price}")
        return padded
    raise PlanError(f"cannot pad {name} to {size}: {'; '.join(errors)}")


def _paying(planned: Planned, name: str, notes: list[str]) -> Planned:
    """The program with an axis padded if that is faster by more than a tie; of the widths that
    networks have, each by itself."""
    sizes = _sizes(planned.shape, name)
    for size in sizes:
        planned = _best(planned, name, size, notes)
    if not sizes:
        notes.append(f"no axis is known as {name}")
    return planned


def _best(planned: Planned, name: str, size: int, notes: list[str]) -> Planned:
    """The program with an axis of this size padded if that is faster by more than a tie."""
    target = planned.target
    lanes = lanes_of(Topology.parse(target.topology).chip)
    options = [x for ways in _ways(target) for x in _over(planned.shape, name, size, ways, lanes)]
    if not options:
        notes.append(f"{name} ({size}) divides as it is")
        return planned
    now_s = _step_s(planned.shape, target)
    times = {option: _padded_s(option, target) for option in dict.fromkeys(options)}
    for option, time_s in _fastest_first(times, now_s):
        try:
            padding = planned.padding(option)
            price = _price([time_s, now_s], planned.program, padding)
            if time_s * (1 + TIE) >= now_s:
                notes.append(f"{option} does not pay: {price}")
                return planned
            padded = planned.padded(padding)
        except NotPadded as error:
            notes.append(f"not {option}: {error}")
            continue
        notes.append(f"{option}: {price}")
        return padded
    return planned


def _fastest_first(times: dict[Option, float], now_s: float) -> list[tuple[Option, float]]:
    """Options with their times; of equal ones that pay those first that pad the least."""
    equal_s = min((1 + TIE) * min(times.values()), now_s / (1 + TIE))

    def rank(pair: tuple[Option, float]) -> tuple[float, float]:
        option, time_s = pair
        return max(equal_s, time_s), option.new / option.old

    return sorted(times.items(), key=rank)


def _ways(target: Target) -> list[int]:
    """The numbers of shards that an axis may have: the products of sizes of mesh axes."""
    counts = {1}
    for _, size in target.mesh:
        counts |= {ways * size for ways in counts}
    return sorted(counts)


def _sizes(shape: DecoderShape, name: str) -> list[int]:
    """The sizes that a decoder has of an axis: the widths of its networks, the largest first."""
    if name not in NETWORKS:
        return [size] if (size := getattr(shape, name)) else []
    ragged = name == "ragged_d_ff"
    networks = (network for network, _ in shape.networks)
    widths = {each.d_ff for each in networks if (each.routing == "ragged") == ragged}
    return sorted(widths, reverse=True)


def _over(shape: DecoderShape, name: str, old: int, ways: int, lanes: int) -> Iterator[Option]:
    """The least padding for an axis to have so many shards; none if they divide it."""
    for axis, size, step in _steps(shape, name, old, ways, lanes):
        new = -(-size // step) * step
        if new != size:
            yield Option(axis, size, new, shape.resized(axis, new, size), NETWORKS.get(name, ""))


def _steps(
    shape: DecoderShape, name: str, old: int, ways: int, lanes: int
) -> Iterator[tuple[str, int, int]]:
    """(axis of the program, its size, what must divide it); two ways for grouped queries, and for
    ragged experts, whose kernel takes whole lanes."""
    if name == "heads" and _is_grouped(shape):
        step = ways // math.gcd(shape.kv_heads, ways)
        yield "q_per_kv", shape.heads // shape.kv_heads, step
        if shape.heads % ways:
            yield "kv_heads", shape.kv_heads, ways
        return
    axis = "d_ff" if name in NETWORKS else name
    yield axis, old, ways
    if name == "ragged_d_ff":
        yield axis, old, ways * lanes


def _of_size(shape: DecoderShape, name: str, old: int, size: int) -> Iterator[Option]:
    """The ways to give an axis a size, first those that leave the cache alone."""
    if not old or size < old:
        return
    if name != "heads" or not _is_grouped(shape):
        axis = "d_ff" if name in NETWORKS else name
        yield Option(axis, old, size, shape.resized(axis, size, old), NETWORKS.get(name, ""))
        return
    queries = shape.heads // shape.kv_heads
    if size % shape.kv_heads == 0:
        new = size // shape.kv_heads
        yield Option("q_per_kv", queries, new, shape.resized("q_per_kv", new))
    if size % queries == 0:
        new = size // queries
        yield Option("kv_heads", shape.kv_heads, new, shape.resized("kv_heads", new))


def _is_grouped(shape: DecoderShape) -> bool:
    return 1 < shape.kv_heads < shape.heads


def _step_s(shape: DecoderShape, target: Target) -> float:
    """Seconds of a step in the best partitioning; infinite if none fits into memory."""
    try:
        topology = Topology.parse(target.topology)
        return choose(shape, topology, MeshSpec(target.mesh)).predicted.time_s
    except PlanError:
        return math.inf


def _padded_s(option: Option, target: Target) -> float:
    """Seconds of a padded step. Padded logits are gathered onto one chip to be cut back."""
    time_s = _step_s(option.shape, target)
    if option.axis != "vocab":
        return time_s
    logits = option.shape.logits_rows * option.new
    gathered = option.shape.logits_bytes_per_element * logits
    link_bytes_per_s = Topology.parse(target.topology).chip.link_bytes_per_s
    return time_s + gathered / link_bytes_per_s


def _price(times: list[float], program: Program, padding: Padding) -> str:
    """Times with and without padding, where they are known, and the bytes stored more."""
    params, state = (padding.extra_bytes(program.values(role)) for role in ("param", "state"))
    shown = [" a step instead of ".join(map(_shown_time, times))] if times else []
    shown.append(f"{shown_bytes(params)} more weights")
    shown += [f"{shown_bytes(state)} more cache"] if state else []
    return ", ".join(shown)


def _shown_time(time_s: float) -> str:
    return "no partitioning that fits" if math.isinf(time_s) else f"{time_s * 1e3:.4g} ms"
