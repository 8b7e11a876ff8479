"""Programs in notebooks: their lines, folded, in colours that suit light and dark pages."""

from __future__ import annotations

from dialect.printed.program_lines import program_lines
from dialect.printed.words import as_html
from rewrite.program import Program

STYLE = (
    ".sw{overflow-x:auto;line-height:1.35;color-scheme:light dark}"
    ".sw .head{font-weight:bold}.sw .op{font-weight:600}"
    ".sw .name{color:light-dark(#00527a,#7cc7ee)}.sw .type{color:light-dark(#1d6325,#8fd694)}"
    ".sw .attr,.sw .note{color:light-dark(#595959,#a8a8a8)}"
    ".sw .fold{color:light-dark(#8a1f7a,#e79ddb)}"
)


def program_html(program: Program) -> str:
    """A program as a fragment of a page."""
    return f'<style>{STYLE}</style><pre class="sw">{as_html(program_lines(program))}</pre>'


Program._repr_html_ = program_html  # type: ignore[attr-defined]  # IPython looks for this name
