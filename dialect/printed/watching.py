"""What is printed while passes run, beside `rewrite.hooks`: programs for people, differences, and
programs that are read back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dialect.printed.difference import difference
from dialect.printed.difference_lines import difference_lines
from dialect.printed.program_lines import program_lines
from dialect.printed.words import Line
from rewrite.errors import InvalidProgram, ShardwrightError, TextError
from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.program import Program

Write = Callable[[Sequence[Line]], None]
ALL = "all"


@dataclass(frozen=True)
class PrintIR(Hook):
    """Prints the program before and after passes: their names, or `ALL` of them.

    folded: as people read it, to `write_lines`; else the text that reads back, to `write`.
    """

    write: Callable[[str], None]
    write_lines: Write
    befores: frozenset[str] = frozenset()
    afters: frozenset[str] = frozenset()
    folded: bool = False

    def before(self, step: Pass, program: Program) -> None:
        """Prints what a pass gets."""
        self.show("before", self.befores, step, program)

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Prints what it gives."""
        self.show("after", self.afters, step, program)

    def show(self, when: str, names: frozenset[str], step: Pass, program: Program) -> None:
        """Prints a program, if it is asked for there."""
        if ALL not in names and step.pass_name() not in names:
            return
        if self.folded:
            self.write(f"// {when} {step}")
            self.write_lines(program_lines(program))
        else:
            self.write(f"// {when} {step}\n{program}")


@dataclass
class PrintDiff(Hook):
    """Prints what every pass changes; of those that change nothing, that."""

    write_lines: Write
    given: list[Program] = field(default_factory=list)

    def before(self, step: Pass, program: Program) -> None:
        """Keeps what a pass gets."""
        self.given[:] = [program]

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Prints how it differs from what the pass gives."""
        changes = difference(self.given[0], program, (f"before {step}", f"after {step}"))
        self.write_lines(difference_lines(changes))


def cannot_be_text(error: ShardwrightError) -> bool:
    """Whether a text was not read for what no text holds: a mesh, a large constant."""
    return "which text cannot carry" in error.message


@dataclass(frozen=True)
class VerifyEach(Hook):
    """Reads the text of every program back, which must give the same program.

    That a program is valid is checked after every pass anyway. One with a handle in its text (a
    mesh, a large constant) cannot be read, and is left.
    """

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Raises InvalidProgram where what is read is another program."""
        try:
            again = Program.parse(str(program))
        except TextError as error:
            if cannot_be_text(error):
                return
            raise InvalidProgram(f"pass {step}: its text cannot be read back: {error}") from error
        if again != program:
            raise InvalidProgram(f"pass {step}: its text is read back as another program")
