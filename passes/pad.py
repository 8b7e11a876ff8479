"""pad: an axis of the weights padded with zeros, so that the mesh divides it.

heads (48)  ->  heads (64): queries, keys and values, their readers, and a cache that has heads

With 48 heads, PaLM-540B was served as if it had 64 (Pope et al. 2022, arXiv:2211.05102, appendix
D.1). Idle heads, hidden units and tokens are zeros, so no result changes; `stage` pads the weights
once, in `prepare`, and the cache in `adapt`. Grouped queries are padded within each group or by
more groups, whichever is faster. The cost model decides whether padding pays; `pad{heads=64}` asks
for a size, `pad{heads=off}` for none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from dialect.display.quantities import size as shown_bytes
from dialect.machine.mesh import MeshSpec, Topology
from dialect.machine.tiles import lanes_of
from dialect.naming.axes import Axes, infer_axes
from dialect.padded.pad_axis import NotPadded, Padding, padded_program
from dialect.planning.decoder import decoder_shape
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.search import TIE, choose
from rewrite.errors import PlanError
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target

AXES = ("heads", "d_ff", "vocab")
Wanted = Literal["auto", "off"] | int


@dataclass(frozen=True)
class Option:
    """A way to pad: an axis of the program, its old and new size, and the padded decoder."""

    axis: str
    old: int
    new: int
    shape: DecoderShape

    def __str__(self) -> str:
        return f"{self.axis} {self.old} -> {self.new}"


@dataclass(frozen=True)
class Pad(Pass):
    """Pads query heads, d_ff and the vocabulary: where it pays, to a size, or not at all."""

    heads: Wanted = "auto"
    d_ff: Wanted = "auto"
    vocab: Wanted = "auto"

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        notes: list[str] = []
        axes = infer_axes(program)
        for name in AXES:
            wanted, before = getattr(self, name), program
            if isinstance(wanted, int):
                program = _asked(program, axes, target, name, wanted, notes)
            elif wanted == "auto" and target.mesh:
                program = _paying(program, axes, target, name, notes)
            axes = axes if program is before else infer_axes(program)
        if not target.mesh:
            notes.append("there is no mesh, so only what is asked for is padded")
        return self.recorded(program, *notes)


def _asked(
    program: Program, axes: Axes, target: Target, name: str, size: int, notes: list[str]
) -> Program:
    """The program with an axis of this size. Raises PlanError where it cannot have it."""
    shape = decoder_shape(program, axes)
    if size == getattr(shape, name):
        notes.append(f"{name} are {size} already")
        return program
    errors = [f"this program has {getattr(shape, name)}"]
    for option in _of_size(shape, name, size):
        try:
            padding = Padding.named(axes, option.axis, option.old, option.new)
            padded = padded_program(program, padding)
        except NotPadded as error:
            errors.append(f"{option}: {error}")
            continue
        times = [_step_s(s, target) for s in (option.shape, shape)] if target.mesh else []
        notes.append(f"{option}, as asked: {_price(times, program, padding)}")
        return padded
    raise PlanError(f"cannot pad {name} to {size}: {'; '.join(errors)}")


def _paying(program: Program, axes: Axes, target: Target, name: str, notes: list[str]) -> Program:
    """The program with an axis padded if that is faster by more than a tie."""
    shape = decoder_shape(program, axes)
    lanes = lanes_of(Topology.parse(target.topology).chip)
    options = [option for ways in _ways(target) for option in _over(shape, name, ways, lanes)]
    if not options:
        size = getattr(shape, name)
        notes.append(f"{name} ({size}) divides as it is" if size else f"no axis is known as {name}")
        return program
    now_s = _step_s(shape, target)
    times = {option: _padded_s(option, target) for option in dict.fromkeys(options)}
    for option, time_s in sorted(times.items(), key=lambda pair: pair[1]):
        try:
            padding = Padding.named(axes, option.axis, option.old, option.new)
            price = _price([time_s, now_s], program, padding)
            if time_s * (1 + TIE) >= now_s:
                notes.append(f"{option} does not pay: {price}")
                return program
            padded = padded_program(program, padding)
        except NotPadded as error:
            notes.append(f"not {option}: {error}")
            continue
        notes.append(f"{option}: {price}")
        return padded
    return program


def _ways(target: Target) -> list[int]:
    """The numbers of shards that an axis may have: the products of sizes of mesh axes."""
    counts = {1}
    for _, size in target.mesh:
        counts |= {ways * size for ways in counts}
    return sorted(counts)


def _over(shape: DecoderShape, name: str, ways: int, lanes: int) -> Iterator[Option]:
    """The least padding for an axis to have so many shards; none if they divide it."""
    for axis, old, step in _steps(shape, name, ways, lanes):
        new = -(-old // step) * step
        if new != old:
            yield Option(axis, old, new, shape.resized(axis, new, old))


def _steps(shape: DecoderShape, name: str, ways: int, lanes: int) -> Iterator[tuple[str, int, int]]:
    """(axis of the program, its size, what must divide it); two ways for grouped queries, and for
    ragged experts, whose kernel takes whole lanes."""
    size = getattr(shape, name)
    if not size:
        return
    if name == "heads" and _is_grouped(shape):
        step = ways // math.gcd(shape.kv_heads, ways)
        yield "q_per_kv", shape.heads // shape.kv_heads, step
        if shape.heads % ways:
            yield "kv_heads", shape.kv_heads, ways
        return
    if name != "d_ff":
        yield name, size, ways
    for network, _ in shape.networks if name == "d_ff" else ():
        yield name, network.d_ff, ways
        if network.routing == "ragged":
            yield name, network.d_ff, ways * lanes


def _of_size(shape: DecoderShape, name: str, size: int) -> Iterator[Option]:
    """The ways to give an axis a size, first those that leave the cache alone."""
    old = getattr(shape, name)
    if not old or size < old:
        return
    if name != "heads" or not _is_grouped(shape):
        yield Option(name, old, size, shape.resized(name, size))
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
