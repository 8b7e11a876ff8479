"""`shardwright report`: everything about a rewrite as one HTML page."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import read as read_executable
from dialect.compiled.schedule import schedule
from dialect.display.quantities import size
from dialect.front import session
from dialect.front.console import Screen
from dialect.front.session import Arguments, Rewritten, rewritten
from dialect.front.strict import not_done
from dialect.machine.mesh import Topology
from dialect.pages.gathered import Built, Gathered, Stages
from dialect.pages.report import report
from dialect.printed.story import story
from dialect.reports.audit import compiled_collectives
from dialect.reports.beside_plan import beside_plan, differences
from dialect.user.usercode import UsageError
from rewrite import files
from rewrite.source import read_file


def write_report(args: Arguments, screen: Screen) -> None:
    """Writes the page to --out."""
    path = Path(args.out)
    files.must_be_writable(path)
    measured = _measured(args.accuracy) if args.accuracy else []
    stages = Stages()
    asked = session.traced(args, screen)
    mesh = asked.mesh if args.compile else None
    done = rewritten(args, screen, listeners=(stages,), asked=asked)
    built = None if mesh is None else _built(args, screen, done, mesh)
    told = not_done(done.program) + (differences(list(built.beside)) if built else [])
    topology = Topology.parse(done.target.topology) if done.target.topology else None
    with screen.working("writing the report"):
        gathered = Gathered(
            story=story(stages, done.program, done.target),
            original=stages.original or done.program,
            stages=tuple(stages.stages),
            topology=topology,
            first=tuple(told),
            built=built,
            command=shlex.join(["shardwright", *args.words]),
            measured=measured,
        )
        text = report(gathered)
        with files.written_whole(path) as part:
            part.write_text(text, encoding="utf-8")
    if args.json:
        screen.data({"report": str(path), "bytes": len(text.encode())} | done.facts())
    else:
        screen.show(f"{path}: {size(len(text.encode()))}")


def _built(args: Arguments, screen: Screen, done: Rewritten, mesh: Any) -> Built:
    with screen.working(f"compiling for {done.target.topology}"), session.kept(args, done):
        started = time.perf_counter()
        executable, notes = compiled(Compilable(done.program, mesh))
        seconds = time.perf_counter() - started
    topology = Topology.parse(done.target.topology)
    scheduled = None
    if topology.chip.platform == "tpu":
        try:
            scheduled = schedule(executable, topology, mesh)
        except ValueError:  # how often a loop runs is not known
            scheduled = None
    memory = read_executable(executable).memory
    return Built(
        seconds,
        scheduled,
        tuple(compiled_collectives(executable, topology, mesh)),
        tuple(beside_plan(done.program, executable, mesh)),
        notes,
        {
            "parameters, state, arguments": memory.argument_bytes,
            "results": memory.output_bytes - memory.alias_bytes,
            "temporaries": memory.temp_bytes,
            "code": memory.code_bytes,
        },
    )


def _measured(path: str) -> list[dict[str, Any]]:
    """The rows that `shardwright eval --json` printed."""
    try:
        rows = json.loads(read_file(path, "accuracy", UsageError))["rows"]
        return [dict(row) for row in rows if {"bits_per_byte", "agreement"} <= set(row)]
    except (ValueError, KeyError, TypeError) as error:
        hint = "shardwright eval ... --json prints it"
        raise UsageError(f"{path} holds no accuracy: {error}", hint=hint) from error
