"""A sweep over chips, batch sizes and weight dtypes, and its Pareto front of latency and cost.

A decoder is traced once, for its shape. Batch, chips and the dtype of the weights are varied
analytically, and the best plan is searched for every combination (`dialect.planning.search`);
nothing is compiled. The front is as in Figure 1 of "Efficiently Scaling Transformer Inference"
(arXiv:2211.05102).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dialect.display.quantities import size
from dialect.display.tables import Table
from dialect.machine.mesh import MeshSpec, TargetError, Topology, cubic
from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from dialect.planning.decoder_shape import DecoderShape, Network
from dialect.planning.partitionings import Unavailable, partition
from dialect.planning.search import SearchResult, searched
from dialect.planning.workload import Workload
from dialect.user.usercode import UsageError
from rewrite.errors import PlanError, nearest
from rewrite.ir import bits
from rewrite.program import Program

WEIGHTS = ("f32", "bf16", "fp8", "int8", "int4")
TRACED_BATCH = 64  # arbitrary, since the batch is varied
_ALONE = MeshSpec((("x", 1),))


@dataclass(frozen=True)
class Decoder:
    """A user's function with one of its configurations ("" if it has none), and its shape."""

    function: str
    config: str
    shape: DecoderShape

    @staticmethod
    def of(function: str, config: str, program: Program) -> Decoder:
        """The decoder of a program. Raises PlanError if a part of it was not recognised."""
        shape = decoder_shape(program, infer_axes(program))
        unknown = [*shape.absent, *shape.unknown]
        if unknown:
            message = f"{function} cannot be costed: no cost model for {', '.join(unknown)}"
            raise PlanError(message, hint="see what was recognised: `shardwright coverage`")
        return Decoder(function, config, shape)

    @property
    def name(self) -> str:
        """The function and its configuration."""
        return f"{self.function} {self.config}".strip()

    @property
    def parameters(self) -> int:
        """The number of weights, including the embedding."""
        return self._weights(lambda network: network.experts)

    @property
    def active(self) -> int:
        """The number of weights that a token is routed to: N in `Cost.mfu`."""
        return self._weights(lambda network: network.experts_per_token)

    def _weights(self, experts: Callable[[Network], int]) -> int:
        work = Workload(self.shape, _ALONE, partition("ws1d", "heads", self.shape, _ALONE))
        tables = 1 if self.shape.tied_embedding else 2
        blocks = sum(
            work.used_weights(block, experts) * block.stored for block in self.shape.blocks
        )
        return round(blocks + tables * work.table())


@dataclass(frozen=True)
class Cost:
    """The best plan of a point, with the metrics of section 4 of arXiv:2211.05102.

    - label: the partitioning
    - time_s: seconds per step; in decode the latency per token, in prefill that of all new tokens
    - chip_s_per_token: chips * time / new tokens of all sequences
    - mfu: model FLOPs utilisation: 2 N tokens / (bf16 peak of the chips * time)
    - memory_bytes: per device
    """

    label: str
    time_s: float
    chip_s_per_token: float
    mfu: float
    memory_bytes: int

    @property
    def rank(self) -> tuple[float, float, int]:
        """The order of points: by latency, then cost, then memory."""
        return (self.time_s, self.chip_s_per_token, self.memory_bytes)


@dataclass(frozen=True)
class Point:
    """One combination of the sweep, with its cost or the reason why it is impossible.

    new_tokens: per sequence and step, 1 in decode.
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
    shape = replace(decoder.shape, batch=batch, weight_bytes_per_element=bits(weights) / 8)
    mesh = topology.mesh_axes()
    result = searched(shape, topology, mesh)
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
    if not result.candidates:
        return replace(point, reason=_reason(shape, topology, mesh, result))
    best = result.candidates[0]
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


def _reason(shape: DecoderShape, topology: Topology, mesh: MeshSpec, result: SearchResult) -> str:
    """Why nothing fits: the named partitioning that needs the least memory, or any other."""
    needed: dict[str, float] = {}
    for label in result.unavailable:
        try:
            partitioning = partition(*label.split("/"), shape, mesh)
        except Unavailable:
            continue
        work = Workload.on(topology.chip, shape, mesh, partitioning)
        needed[label] = sum(work.memory().values())
    closest = min(needed or result.unavailable, key=lambda label: needed.get(label, 0))
    return f"{closest}: {result.unavailable[closest].message}"


def front(points: Iterable[Point]) -> list[Point]:
    """The Pareto front: points that no other beats in both latency and cost, fastest first. Of
    equal points the one with the least memory."""
    best: list[Point] = []
    possible = [point for point in points if point.cost is not None]
    for point in sorted(possible, key=lambda point: point.cost.rank):
        if not best or point.cost.chip_s_per_token < best[-1].cost.chip_s_per_token:
            best.append(point)
    return best


@dataclass(frozen=True)
class Sweep:
    """A sweep over all combinations of its fields."""

    decoders: tuple[Decoder, ...]
    topologies: tuple[Topology, ...]
    batches: tuple[int, ...]
    weights: tuple[str, ...]

    def __len__(self) -> int:
        varied = (self.decoders, self.topologies, self.batches, self.weights)
        return len(list(itertools.product(*varied)))

    def points(self) -> Iterator[Point]:
        """The points, one at a time, since all of them may take a minute."""
        varied = (self.decoders, self.topologies, self.weights, self.batches)
        for decoder, topology, weights, batch in itertools.product(*varied):
            yield costed(decoder, topology, batch, weights)

    def tables(self, points: Sequence[Point]) -> list[Table]:
        """Two tables per decoder: the front, and all points with the front marked."""
        return [table for decoder in self.decoders for table in _tables(decoder, points)]


def facts(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as data for JSON."""
    best = {point for group in grouped(points).values() for point in front(group)}
    return [asdict(point) | {"pareto": point in best} for point in points]


def grouped(points: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points by decoder: {(function, config): points}."""
    by_decoder: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        by_decoder.setdefault((point.function, point.config), []).append(point)
    return by_decoder


_COLUMNS = (
    *("", ">chips", "topology", ">batch", "weights", ">ms", ">chip-s/token", ">MFU", ">per device"),
    "partitioning, or why there is none",
)


def _tables(decoder: Decoder, points: Sequence[Point]) -> list[Table]:
    own_points = grouped(points)[decoder.function, decoder.config]
    best, shape = front(own_points), decoder.shape
    count = f"{decoder.parameters / 1e9:.4g} B parameters"
    title = f"{decoder.name}, {count}, context {shape.context}, new tokens {shape.time}"
    return [
        Table(f"{title}: the Pareto front", _COLUMNS, tuple(_row(point, best) for point in best)),
        Table(f"{title}: all", _COLUMNS, tuple(_row(point, best) for point in own_points)),
    ]


def _row(point: Point, best: Sequence[Point]) -> tuple[str, ...]:
    varied = (str(point.chips), point.topology, str(point.batch), point.weights)
    cost = point.cost
    if cost is None:
        return ("", *varied, "", "", "", "", point.reason)
    return (
        "*" if point in best else "",
        *varied,
        f"{cost.time_s * 1e3:.4g}",
        f"{cost.chip_s_per_token:.4g}",
        f"{100 * cost.mfu:.1f} %",
        size(cost.memory_bytes),
        cost.label,
    )


# Arguments of the command line.


def standard_slice(chip: str, chips: int) -> Topology:
    """The standard slice with so many chips. Raises TargetError if there is none."""
    for rank in (3, 2):
        try:
            return Topology.parse(f"{chip}:" + "x".join(map(str, cubic(chips, rank))))
        except TargetError:
            continue
    return Topology.parse(f"{chip}:{chips}")


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Reads "8..64" (doublings: 8 16 32 64), "8,12", or both: "1,8..64". Raises UsageError."""
    values: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:\.\.([0-9]+))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last:
            hint = f"write {option} 8,16,32 or {option} 8..32"
            raise UsageError(f"{option} has no numbers in {word!r}", hint=hint)
        doubled = (first << i for i in range(last.bit_length()))
        values += [number for number in doubled if number <= last]
    return tuple(dict.fromkeys(values))


def weight_dtypes(text: str) -> tuple[str, ...]:
    """Reads "bf16,int8". Raises UsageError."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in WEIGHTS:
            raise UsageError(f"--dtype has no weights of {word!r}", hint=nearest(word, WEIGHTS))
    return words
