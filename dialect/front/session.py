"""What a command line asks for: a user's function, rewritten by the passes that were named."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dialect.checked.reproducer import Failure, Reproducer
from dialect.compiled.resolved import mesh_of, target_of
from dialect.front import api
from dialect.front.console import Progress, Screen
from dialect.front.programs import program_of
from dialect.front.strict import must_be_empty, must_have_begun, not_done
from dialect.front.watched import listening_to
from dialect.machine.caller import apart
from dialect.machine.virtual_cpus import start
from rewrite import manager
from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target

Arguments = argparse.Namespace


@dataclass(frozen=True)
class Traced:
    """A user's function as it was traced, and the passes and the machine that were asked for."""

    program: Program
    passes: tuple[Pass, ...]
    target: Target

    @functools.cached_property
    def mesh(self) -> Any:
        """The jax Mesh of that machine, to compile for. Raises TargetError where there is none."""
        return mesh_of(self.target)


@dataclass(frozen=True)
class Rewritten:
    """A function after its passes, and what it was rewritten from and for."""

    program: Program
    reports: tuple[PassReport, ...]
    asked: Traced

    @property
    def target(self) -> Target:
        """The machine that it was rewritten for."""
        return self.asked.target

    def facts(self) -> dict[str, Any]:
        """What every command tells a machine."""
        plan = self.program.plan
        return {
            "target": self.target.topology,
            "mesh": dict(self.target.mesh),
            "passes": [asdict(report) for report in self.reports],
            "plan": None if plan is None else str(plan),
            "not_done": not_done(self.program),
        }


def traced(args: Arguments, screen: Screen, passes: str = "") -> Traced:
    """The user's function, with the passes that were asked for, or else `passes`."""
    asked = pipeline(args) or Pipeline.parse(passes or api.DEFAULT_PIPELINE)
    steps = asked.passes(args.phase)
    start(args.target or asked.topology)
    target = target_of(args.target, asked)
    # What a user's code prints is no result: a pipe gets results alone.
    with screen.working("tracing"), redirect_stdout(sys.stderr):
        program = program_of(args)
    return Traced(program, steps, target)


def rewritten(
    args: Arguments,
    screen: Screen,
    passes: str = "",
    listeners: Sequence[Hook] = (),
    asked: Traced | None = None,
) -> Rewritten:
    """The user's function, or what was traced of it, after the passes that were asked for, or else
    `passes`."""
    asked = asked or traced(args, screen, passes)
    with screen.working("rewriting") as spinner, apart():  # a file may call jax.set_mesh
        listening = [*listening_to(args, asked.target, asked.passes), *listeners, Progress(spinner)]
        program, reports = manager.run(asked.program, asked.passes, asked.target, listening)
    must_have_begun(program)
    must_be_empty(not_done(program) if args.strict else ())
    return Rewritten(program, reports, asked)


@contextmanager
def kept(args: Arguments, done: Rewritten) -> Iterator[None]:
    """Keeps what a compilation in the block fails on, where that was asked for."""
    try:
        yield
    except Exception as error:
        if args.crash_reproducer:
            traced = done.asked
            failure = Failure.of("compilation", traced.program, traced.passes, traced.target, error)
            Reproducer(Path(args.crash_reproducer)).keep(failure, "compilation")
        raise


def pipeline(args: Arguments) -> Pipeline | None:
    """The pipeline that was asked for, in a file or in the command line itself."""
    if args.pipeline:
        return Pipeline.load(args.pipeline)
    return Pipeline.parse(args.passes, source="--passes") if args.passes else None
