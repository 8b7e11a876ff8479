"""Pipelines: which passes run, in what order and with what options, as text and as data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from lark import Lark, Token, Tree

from rewrite import manager, options
from rewrite.errors import PipelineError, ShardwrightError, nearest
from rewrite.manager import Hook
from rewrite.passbase import Pass, find_pass, pass_names
from rewrite.program import Program
from rewrite.source import Parsed, Source, grammar, quoted, read_file
from rewrite.target import Target

_IN_WORDS = {"NAME": "a name", "AXIS": "an axis such as x=4"}
_BARE = re.compile(r"[A-Za-z0-9_.*|+-][^\s,(){}=\"/#]*")  # what needs no quotes
SUFFIX = ".pipeline"


@dataclass(frozen=True)
class Pipeline:
    """The passes of every phase; a plain list of passes is one phase named "".

    `topology` and `mesh` are what a target is made of (see `Target`); `where` is the line that
    names the topology, for whoever finds that it does not exist.
    """

    phases: tuple[tuple[str, tuple[Pass, ...]], ...]
    topology: str = ""
    mesh: tuple[tuple[str, int], ...] = ()
    where: str = field(default="", compare=False, repr=False)

    @staticmethod
    def parse(text: str, source: str = "pipeline") -> Pipeline:
        """Reads a pipeline. `source` names the text in errors.

        Raises TextError where the text is no pipeline, and PipelineError where it names a pass,
        option or value that does not exist; both show the line with a caret.
        """
        return _Reader(text, source).pipeline()

    @staticmethod
    def load(path: str | Path) -> Pipeline:
        """Reads a pipeline file. Raises PipelineError where there is none, else as `parse`."""
        text = read_file(path, "pipeline file", PipelineError)
        return Pipeline.parse(text, source=str(path))

    @staticmethod
    def of(given: Pipeline | Path | str) -> Pipeline:
        """A pipeline as a user may give it: itself, a path (ends in `.pipeline`), or its text."""
        if isinstance(given, Pipeline):
            return given
        if isinstance(given, Path) or given.endswith(SUFFIX):
            return Pipeline.load(given)
        return Pipeline.parse(given)

    def __str__(self) -> str:
        """The canonical text: `Pipeline.parse(str(p)) == p`."""
        named = self.topology if _BARE.fullmatch(self.topology) else quoted(self.topology)
        lines = [f"target {named}"] if self.topology else []
        if self.mesh:
            lines.append("mesh " + " ".join(f"{axis}={size}" for axis, size in self.mesh))
        for name, passes in self.phases:
            if name:
                lines.append(f"{name} {{\n  " + ",\n  ".join(map(str, passes)) + "\n}")
            else:
                lines.append(", ".join(map(str, passes)))
        return "\n".join(lines)

    def target(self) -> Target:
        """The machine and the mesh that the text names."""
        return Target(self.topology, self.mesh)

    def passes(self, phase: str | None = None) -> tuple[Pass, ...]:
        """The passes of a phase, or of the only one. Raises PipelineError."""
        phases = dict(self.phases)
        if phase is None and len(phases) == 1:
            return next(iter(phases.values()))
        if phase is None:
            raise PipelineError("the pipeline has several phases", hint=nearest("", phases))
        if phase not in phases:
            raise PipelineError(f"the pipeline has no phase {phase!r}", hint=nearest(phase, phases))
        return phases[phase]

    def run(
        self,
        program: Program,
        target: Target | None = None,
        phase: str | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Program:
        """`program` after the passes of a phase; `target` stands in for the pipeline's.

        `rewrite.manager.run` gives the reports of the passes as well.
        """
        passes = self.passes(phase)
        return manager.run(program, passes, target or self.target(), hooks)[0]


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    return grammar(Path(__file__).with_name("pipeline.lark"), maybe_placeholders=False)


class _Reader:
    """Turns one text into a `Pipeline`; every error points into the text."""

    def __init__(self, text: str, source: str) -> None:
        self.source = Source(text, source)
        self.tree = self.source.tree(_grammar(), _IN_WORDS)
        self.find = lru_cache(maxsize=None)(find_pass)
        self.taken = set(pass_names())

    def pipeline(self) -> Pipeline:
        topology, where = "", ""
        mesh: dict[str, int] = {}
        phases: dict[str, tuple[Pass, ...]] = {}
        for part in self.tree.children:
            match part.data:
                case "target" if topology:
                    self.fail(part, "the target is given twice")
                case "target":
                    topology = str(self.value(part.children[0]))
                    where = f"{self.source.name}:{part.meta.line}"
                case "mesh" if mesh:
                    self.fail(part, "the mesh is given twice")
                case "mesh":
                    mesh = self.mesh(part.children)
                case "phase":
                    name, passes = part.children
                    if name in phases:
                        self.fail(name, f"phase {str(name)!r} is given twice")
                    if name in self.taken:
                        self.fail(name, f"{str(name)!r} is a pass, so no phase", "{option=value}")
                    phases[str(name)] = self.passes(passes)
                case "passes":
                    phases[""] = self.passes(part)
        return Pipeline(tuple(phases.items()), topology, tuple(mesh.items()), where)

    def mesh(self, axes: list[Token]) -> dict[str, int]:
        mesh: dict[str, int] = {}
        for axis in axes:
            name, size = (part.strip() for part in axis.split("="))
            if not re.fullmatch("0*[1-9][0-9]{0,9}", size):
                self.fail(axis, f"mesh axis {name} needs a whole number of chips, not {size!r}")
            if name in mesh:
                self.fail(axis, f"mesh axis {name} is given twice")
            mesh[name] = int(size)
        return mesh

    def passes(self, tree: Parsed) -> tuple[Pass, ...]:
        return tuple(self.step(*entry.children) for entry in tree.children)

    def step(self, name: Token, *written: Parsed) -> Pass:
        """The pass that `name{option=value, ...}` stands for."""
        try:
            kind = self.find(str(name))
        except PipelineError as error:
            self.fail(name, error.message, error.hint)
        given = self.given(name, kind, written)
        for option in dataclasses.fields(kind):
            if _is_needed(option) and option.name not in given:
                self.fail(name, f"pass {name} needs the option {option.name!r}")
        try:
            return kind(**given)
        except (ShardwrightError, TypeError, ValueError) as error:
            self.fail(name, f"pass {name}: {error}")

    def given(self, name: Token, kind: type[Pass], written: tuple[Parsed, ...]) -> dict[str, Any]:
        """The options by name, as the types of its fields."""
        types = get_type_hints(kind)
        known = [field.name for field in dataclasses.fields(kind) if field.init]
        given: dict[str, Any] = {}
        for option, value in (entry.children for entry in written):
            if option not in known:
                hint = nearest(option, known) if known else "it takes no options"
                self.fail(option, f"pass {name} has no option {str(option)!r}", hint)
            if option in given:
                self.fail(option, f"option {str(option)!r} is given twice")
            wanted, listed = types[option], options.choices(types[option])
            try:
                given[str(option)] = options.fit(self.value(value), wanted)
            except ValueError:
                hint = nearest(str(value), listed) if listed else ""
                self.fail(value, f"option {option} of {name} is {options.describe(wanted)}", hint)
        return given

    def value(self, value: Parsed) -> Any:
        """An Atom, a string that stood in quotes, or a tuple of these."""
        if isinstance(value, Tree):
            return tuple(map(self.value, value.children))
        if value.type == "ATOM":
            return options.Atom(value)
        return self.source.string(value)

    def fail(self, place: Parsed, message: str, hint: str = "") -> NoReturn:
        self.source.fail(place, message, hint, error=PipelineError)


def _is_needed(option: dataclasses.Field[Any]) -> bool:
    defaults = (option.default, option.default_factory)
    return option.init and all(default is dataclasses.MISSING for default in defaults)
