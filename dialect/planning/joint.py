"""One stored layout of the weights for two steps: prefill and decode share their parameters.

Section 3.2.3 of "Efficiently Scaling Transformer Inference" (arXiv:2211.05102) stores the weights
of every layout alike, so that nothing moves between the phases. Here what that costs is known: of
all layouts that both steps can be planned on, the one with the least time of both together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.search import Candidate, Searched, Storage, searched
from rewrite.errors import PlanError


@dataclass(frozen=True)
class Serving:
    """What a decode step is served with: prompts of `prompt` tokens, `prompts` at a time, each
    answered in `answer` steps."""

    prompt: int
    prompts: int
    answer: int

    def prefill(self, shape: DecoderShape) -> DecoderShape:
        """The decoder's other step."""
        return replace(shape, batch=self.prompts, time=self.prompt, context=self.prompt)

    def seconds(self, shape: DecoderShape, decode_s: float, prefill_s: float) -> float:
        """Until a full batch is prefilled and answered."""
        return decode_s * self.answer + prefill_s * shape.batch / self.prompts


@dataclass(frozen=True)
class Joint:
    """The best partitionings of both steps on one storage, and those of each alone."""

    decode: Candidate
    prefill: Candidate
    decode_alone: Candidate
    prefill_alone: Candidate

    def notes(self) -> list[str]:
        """The price of sharing."""
        told = []
        for phase, here, alone in (
            ("decode", self.decode, self.decode_alone),
            ("prefill", self.prefill, self.prefill_alone),
        ):
            time_s, best_s = here.predicted.time_s, alone.predicted.time_s
            told.append(
                f"weights stored for prefill and decode: {phase} {here.label} {time_s * 1e3:.4g}"
                f" ms, {100 * (time_s / best_s - 1):.1f} % more than {alone.label} alone"
            )
        return told


def joint(shape: DecoderShape, serving: Serving, topology: Topology, mesh: MeshSpec) -> Joint:
    """Raises PlanError where no storage serves both."""
    decode = searched(shape, topology, mesh)
    prefill = searched(serving.prefill(shape), topology, mesh)
    first, second = _by_storage(decode), _by_storage(prefill)
    both = [each for each in first if each in second]
    if not both:
        raise PlanError("no layout of the weights fits prefill and decode into memory")
    best = min(
        both,
        key=lambda each: serving.seconds(
            shape, first[each].predicted.time_s, second[each].predicted.time_s
        ),
    )
    return Joint(first[best], second[best], decode.candidates[0], prefill.candidates[0])


def _by_storage(found: Searched) -> dict[Storage, Candidate]:
    """The best candidate of each storage."""
    return {each.storage: each for each in reversed(found.candidates)}
