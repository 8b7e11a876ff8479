"""A decoder on a mesh: how long a step takes by the cost model, and how many tokens have room.

    step = max(products + attention, weights + cache) + exchanges

Everything but attention and the cache follows from the tokens of the step; these two from the
positions that its rows read. Nothing is compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.cost import CONSTANTS, estimate
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.plan import Prediction
from dialect.planning.search import searched
from dialect.planning.workload import Workload
from dialect.serving.policy import ServingError
from dialect.serving.shapes import Priced, rows_alone
from dialect.simulated.demand import Demand

ROOMY = 0.95  # of a chip's memory: the rest is for what the memory model omits
MOST_ROWS, MOST_TOKENS = 1024, 8192  # of a step
_ROUNDS = 8
PADDING = 8  # tokens and answers of a step are padded to a multiple of it


@dataclass(frozen=True)
class Typical:
    """A mean request: tokens of its prompt and its answer, and those that are held for it while it
    runs; tokens of the longest, for which a group must have room; requests a second."""

    prompt: float
    new: float
    held: float
    longest: int
    rate: float = math.inf

    @property
    def per_answer(self) -> float:
        """Tokens to compute for every token of an answer."""
        return 1 + self.prompt / self.new


@dataclass(frozen=True)
class Placement:
    """A decoder, the mesh that serves it, and how the plan divides it over the chips.

    rows, chunk: the most answers, and tokens, of a step.
    """

    shape: DecoderShape
    topology: Topology
    mesh: MeshSpec
    partitioning: Partitioning
    rows: int
    chunk: int

    @staticmethod
    def best(
        shape: DecoderShape,
        topology: Topology,
        typical: Typical,
        rows: int | None = None,
        chunk: int | None = None,
        owner: str = "",
    ) -> Placement:
        """The plan that serves such requests best (`rank`), by the cost model.

        rows: by default as many as have room, up to a power of two; chunk: as many tokens as are
        computed while weights and a full cache are read.
        owner: what owns the pages, "heads" or "batch"; by default what is better. Raises
        ServingError where nothing fits.
        """
        mesh = topology.mesh_axes()
        step = replace(shape, batch=MOST_ROWS, time=1, logits_time=1, context=1)
        placements = []
        for candidate in searched(step, topology, mesh).candidates:
            divided = candidate.partitioning
            if owner in ("", "batch" if divided.axes("cache", "batch") else "heads"):
                placed = Placement(shape, topology, mesh, divided, rows or 1, chunk or MOST_ROWS)
                placed = placed if rows else replace(placed, rows=placed._rows_with_room(typical))
                placed = placed if chunk else replace(placed, chunk=placed._free_chunk())
                room = placed.tokens // placed.groups
                placements += [placed] if room >= typical.longest else []
        if not placements:
            whose = f" with pages owned by {owner}" if owner else ""
            message = f"no plan{whose} leaves room for {typical.longest} tokens on {topology}"
            raise ServingError(message, hint="use more chips, or a smaller --longest")
        return min(placements, key=lambda placed: placed.rank(typical))

    def rank(self, typical: Typical) -> tuple[bool, float]:
        """The least is best: the shortest steps of the plans that keep up with the rate, or where
        none does, the least time that a request takes of the chips."""
        most = min(self.rows, self.tokens / typical.held, self.chunk / typical.per_answer)
        step_s = self._step_s(typical, most)
        if most / step_s < typical.rate * typical.new:
            return True, step_s / most * typical.new
        for _ in range(_ROUNDS):  # as many run as come in the time that one takes
            decoding = min(most, typical.rate * typical.new * step_s)
            step_s = self._step_s(typical, decoding)
        return False, step_s

    def _step_s(self, typical: Typical, decoding: float) -> float:
        """Seconds of a step that computes as many tokens of prompts as those that decode need."""
        tokens = decoding * typical.per_answer
        positions = decoding * (typical.prompt + typical.new / 2)
        pairs = positions + (tokens - decoding) * typical.prompt / 2
        return self.seconds(Demand(*map(math.ceil, (decoding, tokens, decoding, positions, pairs))))

    def _rows_with_room(self, typical: Typical) -> int:
        return min(MOST_ROWS, 1 << math.ceil(self.tokens / typical.held).bit_length())

    def _free_chunk(self) -> int:
        """The power of two nearest to the tokens that are computed while a full cache is read."""
        read_s = self._base(self.rows, self.rows).hbm_s
        read_s += self.tokens * sum(position_s for _, _, position_s in self._attention)
        chunk = 1 << (self.rows - 1).bit_length()
        while chunk < MOST_TOKENS:
            if self._base(2 * chunk, self.rows).compute_s > math.sqrt(2) * read_s:
                break
            chunk *= 2
        return chunk

    @cached_property
    def groups(self) -> int:
        """Groups of chips with pages of their own: as many as share out the batch in attention."""
        return self.mesh.ways(self.partitioning.axes("cache", "batch"))

    @cached_property
    def tokens(self) -> int:
        """Tokens that have room in the cache, in all groups together: what is left of memory."""
        largest = self._work(self.chunk, self.rows)
        needed = sum(largest.memory().values()) - largest.cache_bytes()
        left = ROOMY * self.topology.chip.usable_hbm_bytes - needed
        return max(0, int(left / self._work(1, 1).cache_bytes()))

    def seconds(self, demand: Demand) -> float:
        """How long a step takes."""
        tokens, answers = (_padded(count) for count in (demand.tokens, demand.answers))
        base, attention = self._base(tokens, answers), self._attention
        rows, positions = demand.rows, demand.positions
        compute_s = sum(
            pair_s * min(demand.pairs, demand.tokens * window) for window, pair_s, _ in attention
        )
        read_s = sum(
            position_s * min(positions, rows * window) for window, _, position_s in attention
        )
        exchanged_s = base.time_s - max(base.compute_s, base.hbm_s)
        return max(base.compute_s + compute_s, base.hbm_s + read_s) + exchanged_s

    def steps(self, typical: Typical) -> Priced:
        """The steps of a group in which mean requests decode, and their seconds. What a request
        reads is counted once, however many tokens it has."""
        chunk = -(-self.chunk // self.groups)
        sizes = [1 << bits for bits in range(chunk.bit_length()) if 1 << bits < chunk] + [chunk]
        return tuple((rows_alone(n), self._decoding_s(typical, n * self.groups)) for n in sizes)

    def _decoding_s(self, typical: Typical, tokens: int) -> float:
        positions = math.ceil(min(tokens, self.rows) * typical.held)
        pairs = math.ceil(tokens * typical.held)
        return self.seconds(Demand(min(tokens, self.rows), tokens, tokens, positions, pairs))

    @cached_property
    def _attention(self) -> list[tuple[float, float, float]]:
        """(window, seconds of a query and a key, seconds to read a position) of all attentions of
        one kind."""
        chip, work = self.topology.chip, self._work(1, 1)
        flops_per_s = CONSTANTS.compute * chip.bf16_flops_per_s
        bytes_per_s = CONSTANTS.hbm * chip.hbm_bytes_per_s
        return [
            (
                attention.window or math.inf,
                2
                * work.scores(attention, block)
                * attention.multiplied
                * block.times
                / flops_per_s,
                work.layer_cache_bytes(attention) * block.times / bytes_per_s,
            )
            for attention, block in self.shape.attentions
        ]

    def _base(self, tokens: int, answers: int) -> Prediction:
        return _estimated(self, tokens, answers)

    def _step(self, tokens: int, answers: int) -> DecoderShape:
        """The decoder in a step of so many tokens that reads one position of the cache."""
        return replace(self.shape, batch=1, time=tokens, logits_time=answers, context=1)

    def _work(self, tokens: int, answers: int) -> Workload:
        shape = self._step(tokens, answers)
        return Workload.on(self.topology.chip, shape, self.mesh, self.partitioning)


@lru_cache(maxsize=1 << 16)
def _estimated(placed: Placement, tokens: int, answers: int) -> Prediction:
    step = placed._step(tokens, answers)
    return estimate(step, placed.topology, placed.mesh, placed.partitioning)


def _padded(count: int) -> int:
    return -(-max(1, count) // PADDING) * PADDING
