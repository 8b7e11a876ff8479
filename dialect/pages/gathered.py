"""What a report is of: every stage of a rewrite, and where it was compiled, the executable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dialect.compiled.schedule import Schedule
from dialect.machine.mesh import Topology
from dialect.printed.story import Story
from dialect.reports.audit import CompiledCollective
from dialect.reports.beside_plan import Beside
from dialect.reports.explained import Explained
from rewrite.manager import PassReport
from rewrite.passbase import Pass
from rewrite.program import Program


@dataclass(frozen=True)
class Stage:
    """A pass that ran, and the program that it gave."""

    report: PassReport
    program: Program


class Stages(Explained):
    """Keeps every program, beside what `Explained` keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[Stage] = []

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Keeps what a pass gives."""
        super().after(step, program, report)
        self.stages.append(Stage(report, program))


@dataclass(frozen=True)
class Built:
    """An executable, read: seconds of compiling, its schedule (of a TPU), its collectives, the plan
    beside it, the compiler's notes; bytes of a chip's memory by use."""

    seconds: float
    schedule: Schedule | None
    collectives: tuple[CompiledCollective, ...]
    beside: tuple[Beside, ...]
    notes: tuple[str, ...]
    memory: dict[str, int]


@dataclass(frozen=True)
class Gathered:
    """All that a report shows. `first` is what must be said before all else; `measured` the facts
    that `shardwright eval --json` printed, where they were given."""

    story: Story
    original: Program
    stages: tuple[Stage, ...]
    topology: Topology | None
    first: tuple[str, ...] = ()
    built: Built | None = None
    command: str = ""
    measured: list[dict[str, Any]] = field(default_factory=list)

    @property
    def program(self) -> Program:
        """The last one."""
        return self.stages[-1].program if self.stages else self.original
