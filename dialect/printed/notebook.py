"""Programs and differences in notebooks: their lines, in colours that suit light and dark pages.

diff(program, rewritten)      prints, and in a notebook shows, what was replaced by what
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dialect.printed.difference import Difference, difference
from dialect.printed.difference_lines import difference_lines
from dialect.printed.program_lines import program_lines
from dialect.printed.words import Line, as_html, plain
from rewrite.program import Program

STYLE = (
    ".sw{overflow-x:auto;line-height:1.35;color-scheme:light dark}"
    ".sw .head{font-weight:bold}.sw .op{font-weight:600}"
    ".sw .name{color:light-dark(#00527a,#7cc7ee)}.sw .type{color:light-dark(#1d6325,#8fd694)}"
    ".sw .attr,.sw .note{color:light-dark(#595959,#a8a8a8)}"
    ".sw .gone{color:light-dark(#a3211c,#ff9a94)}.sw .new{color:light-dark(#1d6f35,#74c98a)}"
    ".sw .fold{color:light-dark(#8a1f7a,#e79ddb)}"
)


def _fragment(lines: Sequence[Line]) -> str:
    return f'<style>{STYLE}</style><pre class="sw">{as_html(lines)}</pre>'


def program_html(program: Program) -> str:
    """A program as a fragment of a page."""
    return _fragment(program_lines(program))


@dataclass(frozen=True)
class Shown:
    """A difference that prints itself; `changes` has it as data."""

    changes: Difference

    def __str__(self) -> str:
        return plain(difference_lines(self.changes))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _fragment(difference_lines(self.changes))


def diff(before: Program, after: Program) -> Shown:
    """How two programs differ, and what that saves in a step (`dialect.printed.difference`)."""
    return Shown(difference(before, after))


Program._repr_html_ = program_html  # type: ignore[attr-defined]  # IPython looks for this name
