"""Pipelines: which passes run, in what order and with what options, as text and as data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.lexer import PatternStr

from rewrite import manager, options
from rewrite.errors import PipelineError, ShardwrightError, TextError, caret, nearest
from rewrite.manager import Hook
from rewrite.passbase import Pass, find_pass, pass_names
from rewrite.program import Program
from rewrite.target import Target

SUFFIX = ".pipeline"


@dataclass(frozen=True)
class Pipeline:
    """The passes of each phase; a plain list of passes is one phase named "".

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
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineError(f"cannot read the pipeline file {str(path)!r}: {error}") from error
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
        named = json.dumps(self.topology) if "/" in self.topology else self.topology
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
        """`program` after the passes of a phase; `target` stands in for the pipeline's own.

        `rewrite.manager.run` gives the reports of the passes as well.
        """
        passes = self.passes(phase)
        return manager.run(program, passes, target or self.target(), hooks)[0]


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    return Lark.open(
        "pipeline.lark",
        rel_to=__file__,
        parser="lalr",
        propagate_positions=True,
        maybe_placeholders=False,
    )


class _Reader:
    """Turns one text into a `Pipeline`; every error points into the text."""

    def __init__(self, text: str, source: str) -> None:
        text = text.replace("\r\n", "\n")
        self.lines, self.source = text.split("\n"), source
        try:
            self.tree = _grammar().parse(text)
        except UnexpectedInput as error:
            self.unexpected(error)

    def pipeline(self) -> Pipeline:
        topology, where = "", ""
        mesh: dict[str, int] = {}
        phases: dict[str, tuple[Pass, ...]] = {}
        for part in self.tree.children:
            match part.data:
                case "target" if topology:
                    self.fail(part.meta, "the target is given twice")
                case "target":
                    named = str(part.children[0])
                    topology = json.loads(named) if named.startswith('"') else named
                    where = f"{self.source}:{part.meta.line}"
                case "mesh" if mesh:
                    self.fail(part.meta, "the mesh is given twice")
                case "mesh":
                    mesh = self.mesh(part.children)
                case "phase":
                    name, passes = part.children
                    if name in phases:
                        self.fail(name, f"phase {str(name)!r} is given twice")
                    if name in pass_names():
                        self.fail(name, f"{str(name)!r} is a pass, so no phase", "{option=value}")
                    phases[str(name)] = self.passes(passes)
                case "passes":
                    phases[""] = self.passes(part)
        return Pipeline(tuple(phases.items()), topology, tuple(mesh.items()), where)

    def mesh(self, axes: list[Token]) -> dict[str, int]:
        mesh: dict[str, int] = {}
        for axis in axes:
            name, size = (part.strip() for part in axis.split("="))
            if not (size.isascii() and size.isdigit() and int(size) > 0):
                self.fail(axis, f"mesh axis {name} needs a whole number of chips, not {size!r}")
            if name in mesh:
                self.fail(axis, f"mesh axis {name} is given twice")
            mesh[name] = int(size)
        return mesh

    def passes(self, tree: Tree) -> tuple[Pass, ...]:
        return tuple(self.made(*each.children) for each in tree.children)

    def made(self, name: Token, *written: Tree) -> Pass:
        """The pass that `name{option=value, ...}` stands for."""
        try:
            kind = find_pass(str(name))
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

    def given(self, name: Token, kind: type[Pass], written: tuple[Tree, ...]) -> dict[str, Any]:
        """The options by name, each as the type of its field."""
        types = get_type_hints(kind)
        known = [each.name for each in dataclasses.fields(kind) if each.init]
        given: dict[str, Any] = {}
        for option, value in (each.children for each in written):
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

    def value(self, value: Token | Tree) -> Any:
        """An Atom, a string that stood in quotes, or a tuple of these."""
        if isinstance(value, Tree):
            return tuple(map(self.value, value.children))
        if value.type == "ATOM":
            return options.Atom(value)
        try:
            return json.loads(value, strict=False)
        except json.JSONDecodeError:
            self.fail(value, "unknown escape in a string", "write a backslash as \\\\")

    def unexpected(self, error: UnexpectedInput) -> NoReturn:
        """Says what stands where something else was expected."""
        if isinstance(error, UnexpectedCharacters):
            place = Token("", error.char, None, error.line, error.column)
            found, expected = repr(error.char), error.allowed or set()
        elif isinstance(error, UnexpectedToken) and error.token.type != "$END":
            place, found, expected = error.token, repr(str(error.token)), error.accepts
        else:
            place, found, expected = self.end(), "the end", error.accepts
        wanted = " or ".join(sorted({*map(_shown, expected - {"$END"})}) or ["the end"])
        hint = "end the string on its own line" if found == repr('"') else ""
        self.fail(place, f"expected {wanted}, found {found}", hint, TextError)

    def end(self) -> Token:
        """The place behind the last thing in the text."""
        line = max((n for n, each in enumerate(self.lines, 1) if each.strip()), default=1)
        return Token("", "", None, line, len(self.lines[line - 1].rstrip()) + 1)

    def fail(
        self,
        place: Any,
        message: str,
        hint: str = "",
        error: type[ShardwrightError] = PipelineError,
    ) -> NoReturn:
        """Raises `error` at a token, or at the position of a tree."""
        place = place.meta if isinstance(place, Tree) else place
        line = self.lines[place.line - 1].replace("\t", " ")
        one_line = getattr(place, "end_line", None) == place.line
        width = place.end_column - place.column if one_line else 1
        shown = caret(line, place.column, width)
        raise error(f"{message}\n{shown}", where=f"{self.source}:{place.line}", hint=hint)


def _is_needed(option: dataclasses.Field) -> bool:
    defaults = (option.default, option.default_factory)
    return option.init and all(each is dataclasses.MISSING for each in defaults)


def _shown(terminal: str) -> str:
    """A terminal of the grammar as a person would write it."""
    pattern = _grammar().get_terminal(terminal).pattern
    if isinstance(pattern, PatternStr):
        return repr(pattern.value)
    return {"NAME": "a name", "AXIS": "an axis such as x=4"}.get(terminal, "a value")
