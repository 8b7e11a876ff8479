"""A failure as one text file: the program, the passes that fail on it, and with which versions.

    //! failure: pass
    //! error: PassError: pass stage failed with KeyError: 'x'
    //! seed: 0
    //! versions: python 3.11.7, jax 0.10.2, jaxlib 0.10.2, numpy 2.2.1
    //! pipeline:
    //! target v5e:2x4
    //! normalize, stage
    program decode_step
    ...

The header is a comment to the reader of programs. `shardwright reproduce FILE` runs it again.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rewrite.errors import TextError
from rewrite.files import written_whole
from rewrite.hooks import Write, to_stderr
from rewrite.ir import Graph, Opaque, Value, new_input, replace_values
from rewrite.manager import Hook
from rewrite.passbase import Pass
from rewrite.pipeline import Pipeline
from rewrite.program import Input, Program
from rewrite.target import Target

_HEADER = "//! "
_PIPELINE = "pipeline:"
KINDS = ("pass", "compilation", "numbers")
_PACKAGES = ("shardwright", "jax", "jaxlib", "libtpu", "numpy")


@dataclass(frozen=True)
class Failure:
    """A program, the pipeline that fails on it, and how.

    - kind: a `pass` raised, the `compilation` of its result did, or `numbers` left the class that
      a pass claims to keep;
    - error: the first line of the message;
    - seed: of the numbers that the program was run on.
    """

    kind: str
    program: Program
    pipeline: Pipeline
    error: str = ""
    seed: int = 0
    versions: str = ""

    def __str__(self) -> str:
        facts = (
            f"failure: {self.kind}",
            f"error: {self.error}",
            f"seed: {self.seed}",
            f"versions: {self.versions or versions()}",
            _PIPELINE,
            *str(self.pipeline).split("\n"),
        )
        return "\n".join([*(_HEADER + line for line in facts), f"{self.program}\n"])

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all. Raises FileError."""
        with written_whole(path) as part:
            part.write_text(str(self), encoding="utf-8")

    @staticmethod
    def of(
        kind: str,
        program: Program,
        passes: Sequence[Pass],
        target: Target,
        error: Exception | str,
        seed: int = 0,
    ) -> Failure:
        """The failure of passes on a program, for a target."""
        pipeline = Pipeline((("", tuple(passes)),), target.topology, target.mesh)
        return Failure(kind, portable(program), pipeline, first_line(error), seed)

    @staticmethod
    def parse(text: str) -> Failure:
        """Reads what `str` wrote. Raises TextError or PipelineError."""
        header = [line for line in text.split("\n") if line.startswith(_HEADER.strip())]
        lines = [line.removeprefix(_HEADER.strip()).strip() for line in header]
        if _PIPELINE not in lines:
            raise TextError(
                f"this is no reproducer: no line reads `{_HEADER}{_PIPELINE}`",
                hint="a file that --crash-reproducer wrote begins with one",
            )
        at = lines.index(_PIPELINE)
        facts = dict(line.partition(": ")[::2] for line in lines[:at])
        kind, seed = facts.get("failure", "pass"), facts.get("seed", "0")
        if kind not in KINDS or not (seed.isascii() and seed.isdecimal() and len(seed) < 19):
            raise TextError(
                f"a reproducer of `{kind}` with the seed `{seed}` is none that is known"
            )
        pipeline = Pipeline.parse("\n".join(lines[at + 1 :]), source="reproducer")
        error, versions_ = (facts.get(name, "") for name in ("error", "versions"))
        return Failure(kind, Program.parse(text), pipeline, error, int(seed), versions_)


@dataclass(frozen=True)
class Reproducer(Hook):
    """Writes the program that a pass failed on, with the passes that were still to run."""

    path: Path
    seed: int = 0
    write: Write = to_stderr

    def failed(
        self, rest: Sequence[Pass], program: Program, target: Target, error: Exception
    ) -> None:
        kind = getattr(error, "failure", "pass")
        self.keep(Failure.of(kind, program, rest, target, error, self.seed), f"pass {rest[0]}")

    def keep(self, failure: Failure, subject: str) -> None:
        """Writes the file. Nothing may hide the failure itself, which is raised right after."""
        try:
            failure.save(self.path)
        except Exception as error:
            self.write(f"no reproducer could be written to {self.path}: {error}")
        else:
            self.write(f"{subject} failed; {self.path} reproduces it")


def portable(program: Program) -> Program:
    """`program` in a form that text can carry.

    Large constants become parameters, and custom containers a flat tuple.
    """
    if program.stages is not None:
        return program
    constants = [op for op in program.graph.ops if isinstance(op.get("value"), Opaque)]
    inputs, results = program.tree
    if constants or isinstance(inputs, Opaque) or isinstance(results, Opaque):
        fresh = {Value(op, 0): new_input(op.types[0]) for op in constants}
        graph = replace_values(program.graph, fresh)
        graph = Graph((*graph.inputs, *fresh.values()), graph.outputs)
        names = [f"constant_{number}" for number in range(len(fresh))]
        added = [Input(name, op.types[0], "param") for name, op in zip(names, constants)]
        declared = (*program.inputs, *added)
        flat = (tuple(range(len(declared))), tuple(range(len(program.outputs))))
        return replace(program, graph=graph, inputs=declared, tree=flat)
    return program


def first_line(error: Exception | str) -> str:
    """The kind of an error and the first line of its message."""
    name = "" if isinstance(error, str) else f"{type(error).__name__}: "
    lines = str(error).strip().splitlines()
    return name + (lines[0] if lines else "")


def versions() -> str:
    """The versions of Python and of the packages that decide what a program becomes."""
    shown = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            shown.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(shown)
