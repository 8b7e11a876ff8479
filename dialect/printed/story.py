"""What a rewrite did and what that bought, as facts for a page.

    story(explained, program, target) -> Story

Before: the program as it was traced, on one chip of the machine. After: on all of them. Times and
traffic are the cost model's (`dialect.planning.cost`), for what was recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dialect.machine.mesh import MeshSpec, Topology
from dialect.naming.axes import infer_axes
from dialect.planning.cost import estimate
from dialect.planning.decoder import decoder_shape
from dialect.planning.partitionings import partition
from dialect.planning.plan import Plan, Prediction
from dialect.reports.coverage import Coverage, coverage
from dialect.reports.explained import Explained
from dialect.reports.sweep import standard_slice
from rewrite.errors import ShardwrightError
from rewrite.passbase import find_pass
from rewrite.program import LEFT_ALONE, Program, Step
from rewrite.target import Target

_COUNT = re.compile(r"(\w+): (\d+)(, |$)")


@dataclass(frozen=True)
class Done:
    """A pass that ran: what it is for, what it said, how it changed the ops of the step."""

    text: str
    keeps: str
    purpose: str
    notes: tuple[str, ...]
    ops: tuple[int, int]

    @property
    def changed(self) -> bool:
        """Whether the step has other ops, or the pass decided something."""
        return self.ops[0] != self.ops[1]

    @property
    def counted(self) -> str:
        """The rules that fired, counted: `12 rules, 43 times`; "" where none did."""
        counts = [int(match[2]) for note in self.notes if (match := _COUNT.match(note))]
        rules = "1 rule" if len(counts) == 1 else f"{len(counts)} rules"
        return f"{rules}, {sum(counts)} times" if counts else ""


@dataclass(frozen=True)
class Held:
    """Bytes that are kept of one program: of parameters and of state."""

    params: int
    state: int

    @property
    def total(self) -> int:
        """Both."""
        return self.params + self.state


@dataclass(frozen=True)
class Story:
    """A rewrite: `before` and `after` are predictions of a step, None where nothing is known.

    - usable_bytes: the memory of a chip; tokens: new positions of a step, over all sequences
    - left: (what was left as it is, why); not_done: what was asked for and not done
    """

    name: str
    target: Target
    tokens: int
    chips: int
    usable_bytes: int
    done: tuple[Done, ...]
    held: tuple[Held, Held]
    before: Prediction | None
    after: Prediction | None
    plan: Plan | None
    coverage: Coverage | None
    left: tuple[tuple[tuple[str, ...], str], ...]


def story(explained: Explained, program: Program, target: Target) -> Story:
    """The story of a program that was rewritten while `explained` listened."""
    original = explained.original or program
    before, tokens = _as_it_was(explained.program, target)
    topology = Topology.parse(target.topology) if target.topology else None
    return Story(
        name=program.name,
        target=target,
        tokens=tokens,
        chips=MeshSpec(target.mesh).size if target.mesh else 1,
        usable_bytes=topology.chip.usable_hbm_bytes if topology else 0,
        done=tuple(_done(program.history, explained.ops)),
        held=(_held(original), _held(program)),
        before=before,
        after=_if_known(program.plan.predicted if program.plan else None),
        plan=program.plan,
        coverage=coverage(explained.program, explained.rules) if explained.program else None,
        left=_left(program),
    )


def _as_it_was(recognized: Program | None, target: Target) -> tuple[Prediction | None, int]:
    """The prediction of the recognised program on one chip, and its tokens."""
    if recognized is None or not target.topology:
        return None, 0
    shape = decoder_shape(recognized, infer_axes(recognized))
    mesh = MeshSpec((("x", 1),))
    try:
        topology = standard_slice(target.topology.partition(":")[0], 1)
        predicted = estimate(shape, topology, mesh, partition("ws1d", "heads", shape, mesh))
    except (ShardwrightError, ZeroDivisionError):  # a machine of no single chips, a part unknown
        return None, shape.tokens
    return _if_known(predicted), shape.tokens


def _if_known(predicted: Prediction | None) -> Prediction | None:
    """A prediction, unless nothing that it could be of was recognised."""
    return predicted if predicted is not None and predicted.time_s else None


def _done(history: Iterable[Step], ops: list[tuple[str, int, int]]) -> Iterable[Done]:
    counts = {text: (before, after) for text, before, after in ops}
    for step in history:
        first = (find_pass(step.name).__doc__ or "").strip().split("\n")[0].rstrip(".")
        counted = counts.get(step.text, (0, 0))
        yield Done(step.text, step.keeps, first, tuple(step.notes), counted)


def _held(program: Program) -> Held:
    of = {"param": 0, "state": 0, "arg": 0}
    for source in program.step_inputs:
        of[source.role] += source.type.bytes
    return Held(of["param"], of["state"])


def _left(program: Program) -> tuple[tuple[tuple[str, ...], str], ...]:
    """What passes left alone, by their reason."""
    reasons: dict[str, list[str]] = {}
    for step in program.history:
        for remark in step.remarks:
            if remark.kind == LEFT_ALONE:
                reasons.setdefault(f"{step.name}: {remark.text}", []).append(remark.of)
    return tuple((tuple(names), why) for why, names in reasons.items())


def facts(told: Story) -> dict[str, Any]:
    """A story for machines."""
    predicted = {"before": told.before, "after": told.after}
    return {
        "tokens": told.tokens,
        "chips": told.chips,
        "usable_bytes": told.usable_bytes,
        "predicted": {name: asdict(one) if one else None for name, one in predicted.items()},
        "held": dict(zip(predicted, map(asdict, told.held))),
        "done": [asdict(done) for done in told.done],
        "left": [{"inputs": list(names), "why": why} for names, why in told.left],
    }
