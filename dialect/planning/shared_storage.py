"""One sharding of the stored weights for prefill and decode, which share their parameters.

Section 3.2.3 of "Efficiently Scaling Transformer Inference" (arXiv:2211.05102) stores the weights
the same way for every layout, so that nothing is resharded between the phases. Here the best such
sharding is searched: the one with the least total time of both steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dialect.display.quantities import milliseconds
from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.search import Candidate, SearchResult, Storage, searched
from rewrite.errors import PlanError


@dataclass(frozen=True)
class Serving:
    """The serving load: prompts of `prompt` tokens, `prompts` per prefill, `answer` decode steps
    per sequence."""

    prompt: int
    prompts: int
    answer: int

    def prefill(self, shape: DecoderShape) -> DecoderShape:
        """The shape of the prefill step."""
        return replace(shape, batch=self.prompts, time=self.prompt, context=self.prompt)

    def seconds(self, shape: DecoderShape, decode_s: float, prefill_s: float) -> float:
        """Seconds to prefill and decode one full batch, from the seconds of either step."""
        return decode_s * self.answer + prefill_s * shape.batch / self.prompts


@dataclass(frozen=True)
class SharedStorage:
    """The best partitionings of both steps with shared storage, and the best of each alone."""

    decode: Candidate
    prefill: Candidate
    decode_alone: Candidate
    prefill_alone: Candidate

    def note(self) -> str:
        """The time of both phases, and how much of it sharing costs."""
        phases = []
        for phase, shared, alone in (
            ("decode", self.decode, self.decode_alone),
            ("prefill", self.prefill, self.prefill_alone),
        ):
            time_s, alone_s = shared.predicted.time_s, alone.predicted.time_s
            more = f"{100 * (time_s / alone_s - 1):.1f} % more than {alone.label} alone"
            phases.append(f"{phase} {shared.label} {milliseconds(time_s)} ({more})")
        return f"prefill and decode share their weights: {', '.join(phases)}"


def shared_storage(
    shape: DecoderShape, serving: Serving, topology: Topology, mesh: MeshSpec
) -> SharedStorage:
    """The best sharding that both steps can use. Raises PlanError if there is none."""
    decode = searched(shape, topology, mesh)
    prefill = searched(serving.prefill(shape), topology, mesh)
    first, second = _by_storage(decode), _by_storage(prefill)
    both = [storage for storage in first if storage in second]
    if not both:
        raise PlanError("no sharding of the weights fits both prefill and decode into memory")
    best = min(
        both,
        key=lambda storage: serving.seconds(
            shape, first[storage].predicted.time_s, second[storage].predicted.time_s
        ),
    )
    return SharedStorage(first[best], second[best], decode.candidates[0], prefill.candidates[0])


def _by_storage(searched: SearchResult) -> dict[Storage, Candidate]:
    """The best candidate for every sharding of the stored weights."""
    return {candidate.storage: candidate for candidate in reversed(searched.candidates)}
