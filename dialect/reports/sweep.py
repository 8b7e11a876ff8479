"""What a decoder costs on other machines, with other batches and weights: a Pareto sweep.

A decoder is traced once, for its shape; batch, chips and the dtype of the weights are then varied
analytically, and the best plan is searched for each (`dialect.planning.search`). Nothing is
compiled. Of all that is found the Pareto front is what no other beats in both latency and cost:
Figure 1 of "Efficiently Scaling Transformer Inference" (arXiv:2211.05102).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dialect.display.tables import Table
from dialect.machine.chips import GIB
from dialect.machine.mesh import MeshSpec, TargetError, Topology, cubic
from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.partitionings import Unavailable, partition
from dialect.planning.search import SearchResult, searched
from dialect.planning.workload import Workload
from dialect.user.usercode import UsageError
from rewrite.errors import PlanError, nearest
from rewrite.ir import bits
from rewrite.program import Program

WEIGHTS = ("f32", "bf16", "fp8", "int8", "int4")
TRACED_BATCH = 64  # any will do: it is varied afterwards
_ALONE = MeshSpec((("x", 1),))


@dataclass(frozen=True)
class Decoder:
    """A function of the user's with one of its configurations ("" without any), and its shape."""

    function: str
    config: str
    shape: DecoderShape

    @staticmethod
    def of(function: str, config: str, program: Program) -> Decoder:
        """Of a program that is recognised. Raises PlanError where a part of it is not."""
        shape = decoder_shape(program, infer_axes(program))
        unknown = [*shape.absent, *shape.unknown]
        if unknown:
            message = f"{function} cannot be costed: of {', '.join(unknown)} the cost is not known"
            raise PlanError(message, hint="see what was recognised: `shardwright coverage`")
        return Decoder(function, config, shape)

    @property
    def name(self) -> str:
        return f"{self.function} {self.config}".strip()

    @property
    def parameters(self) -> int:
        """All weights, the embedding included."""
        return self._weights(self.shape.experts)

    @property
    def active(self) -> int:
        """Those that a token is routed to: the N of `Cost.mfu`."""
        return self._weights(self.shape.experts_per_token)

    def _weights(self, experts: int) -> int:
        work = Workload(self.shape, _ALONE, partition("ws1d", "heads", self.shape, _ALONE))
        tables = 1 if self.shape.tied_embedding else 2
        return round(work.used_weights(experts) * self.shape.layers + tables * work.table())


@dataclass(frozen=True)
class Cost:
    """The best plan of one size, as section 4 of arXiv:2211.05102 counts.

    - label: the partitioning
    - time_s: one step; in decode the latency of a token, in prefill that of all new tokens
    - chip_s_per_token: chips * time over the new tokens of all sequences
    - mfu: 2 N tokens over what the chips could compute in that time, in bf16
    - memory_bytes: per device
    """

    label: str
    time_s: float
    chip_s_per_token: float
    mfu: float
    memory_bytes: int

    @property
    def rank(self) -> tuple[float, float, int]:
        return (self.time_s, self.chip_s_per_token, self.memory_bytes)


@dataclass(frozen=True)
class Point:
    """One size, with what it costs, or the reason why it cannot be had.

    new_tokens: of each sequence in a step, 1 in decode.
    """

    function: str
    config: str
    topology: str
    chips: int
    batch: int
    weights: str
    context: int
    new_tokens: int
    cost: Cost | None = None
    reason: str = ""


def costed(decoder: Decoder, topology: Topology, batch: int, weights: str) -> Point:
    """The best plan for a decoder with this batch and weights of this dtype."""
    size = bits(weights) / 8
    shape = replace(decoder.shape, batch=batch, weight_bytes_per_element=size)
    mesh = topology.mesh_axes()
    found = searched(shape, topology, mesh)
    point = Point(
        function=decoder.function,
        config=decoder.config,
        topology=str(topology),
        chips=topology.chips,
        batch=batch,
        weights=weights,
        context=shape.context,
        new_tokens=shape.time,
    )
    if not found.candidates:
        return replace(point, reason=_reason(shape, mesh, found))
    best = found.candidates[0]
    time_s = best.predicted.time_s
    possible = topology.devices * topology.chip.bf16_flops_per_s * time_s
    cost = Cost(
        label=best.label,
        time_s=time_s,
        chip_s_per_token=topology.chips * time_s / shape.tokens,
        mfu=2 * decoder.active * shape.tokens / possible,
        memory_bytes=best.predicted.memory_bytes,
    )
    return replace(point, cost=cost)


def _reason(shape: DecoderShape, mesh: MeshSpec, found: SearchResult) -> str:
    """Of the named partitionings that only lack memory the one that lacks least; else any."""
    needed: dict[str, float] = {}
    for label in found.unavailable:
        try:
            made = partition(*label.split("/"), shape, mesh)
        except Unavailable:
            continue
        needed[label] = sum(Workload(shape, mesh, made).memory().values())
    closest = min(needed or found.unavailable, key=lambda label: needed.get(label, 0))
    return f"{closest}: {found.unavailable[closest].message}"


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both latency and cost, the fastest first; of equals the one
    that takes the least memory."""
    best: list[Point] = []
    had = [each for each in points if each.cost is not None]
    for each in sorted(had, key=lambda each: each.cost.rank):
        if not best or each.cost.chip_s_per_token < best[-1].cost.chip_s_per_token:
            best.append(each)
    return best


@dataclass(frozen=True)
class Sweep:
    """What is varied, every combination of it."""

    decoders: tuple[Decoder, ...]
    topologies: tuple[Topology, ...]
    batches: tuple[int, ...]
    weights: tuple[str, ...]

    def __len__(self) -> int:
        varied = (self.decoders, self.topologies, self.batches, self.weights)
        return len(list(itertools.product(*varied)))

    def points(self) -> Iterator[Point]:
        """One by one, since all together may take a minute."""
        varied = (self.decoders, self.topologies, self.weights, self.batches)
        for decoder, topology, weights, batch in itertools.product(*varied):
            yield costed(decoder, topology, batch, weights)

    def tables(self, points: Sequence[Point]) -> list[Table]:
        """For each decoder the front, and all points with those of the front marked."""
        return [table for each in self.decoders for table in _tables(each, points)]


def facts(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The same for machines."""
    best = {point for group in grouped(points).values() for point in front(group)}
    return [asdict(each) | {"pareto": each in best} for each in points]


def grouped(points: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points of each decoder: of different ones none is better than another."""
    found: dict[tuple[str, str], list[Point]] = {}
    for each in points:
        found.setdefault((each.function, each.config), []).append(each)
    return found


_COLUMNS = (
    *("", ">chips", "topology", ">batch", "weights", ">ms", ">chip-s/token", ">MFU", ">GiB/device"),
    "partitioning, or why there is none",
)


def _tables(decoder: Decoder, points: Sequence[Point]) -> list[Table]:
    own = grouped(points)[decoder.function, decoder.config]
    best, shape = front(own), decoder.shape
    size = f"{decoder.parameters / 1e9:.4g} B parameters"
    title = f"{decoder.name}, {size}, context {shape.context}, new tokens {shape.time}"
    return [
        Table(f"{title}: the Pareto front", _COLUMNS, tuple(_row(each, best) for each in best)),
        Table(f"{title}: all", _COLUMNS, tuple(_row(each, best) for each in own)),
    ]


def _row(point: Point, best: Sequence[Point]) -> tuple[str, ...]:
    size = (str(point.chips), point.topology, str(point.batch), point.weights)
    cost = point.cost
    if cost is None:
        return ("", *size, "", "", "", "", point.reason)
    return (
        "*" if point in best else "",
        *size,
        f"{cost.time_s * 1e3:.4g}",
        f"{cost.chip_s_per_token:.4g}",
        f"{100 * cost.mfu:.1f} %",
        f"{cost.memory_bytes / GIB:.2f}",
        cost.label,
    )


# What the command line says.


def standard_slice(chip: str, chips: int) -> Topology:
    """The standard slice with so many chips. Raises TargetError where the chip has none."""
    for rank in (3, 2):
        try:
            return Topology.parse(f"{chip}:" + "x".join(map(str, cubic(chips, rank))))
        except TargetError:
            continue
    return Topology.parse(f"{chip}:{chips}")


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Reads "8..64" (8 16 32 64: each twice the one before), "8,12", or both: "1,8..64"."""
    found: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:\.\.([0-9]+))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last:
            hint = f"write {option} 8,16,32 or {option} 8..32"
            raise UsageError(f"{option} has no numbers in {word!r}", hint=hint)
        doubled = (first << i for i in range(last.bit_length()))
        found += [number for number in doubled if number <= last]
    return tuple(dict.fromkeys(found))


def weight_dtypes(text: str) -> tuple[str, ...]:
    """Reads "bf16,int8"."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in WEIGHTS:
            raise UsageError(f"--dtype has no weights of {word!r}", hint=nearest(word, WEIGHTS))
    return words
