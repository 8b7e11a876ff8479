"""What the command shows: colour and tables on a terminal, plain lines in a pipe.

Everything here takes data and writes it; nothing is decided. A pipe gets no colour, no borders
and no line breaks that the text does not have.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dialect.display.progress import Shows, lines
from dialect.display.quantities import size
from dialect.planning.plan import Plan
from dialect.printed.words import Line, coloured, plain
from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target

T = TypeVar("T")

_ENDLESS = 100_000  # columns of a pipe
_NOTES_WIDTH, _INDENT = 96, 4


class Screen:
    """Standard output, or standard error, as it is when this is made.

    color: "always" and "never" overrule what a terminal and NO_COLOR say ("auto").
    """

    def __init__(self, color: str = "auto", error: bool = False) -> None:
        plain_ = {"highlight": False, "markup": False, "emoji": False, "stderr": error}
        forced = {"always": True, "never": None}.get(color)
        off = True if color == "never" else False if color == "always" else None
        self.console = Console(force_terminal=forced, no_color=off, **plain_)
        self.file = sys.stderr if error else sys.stdout
        self.terminal = self.console.is_terminal
        self.coloured = self.terminal and not self.console.no_color
        self.moving = self.terminal and self.file.isatty()  # a pipe may have colour, and no more
        if not self.file.isatty():
            self.console.width = _ENDLESS

    def show(self, *shown: Any, style: str = "") -> None:
        """Text or tables; long lines are left to the terminal to wrap."""
        if self.terminal:
            self.console.print(*shown, style=style, soft_wrap=isinstance(shown[0], str))
            return
        with self.console.capture() as captured:
            self.console.print(*shown)
        lines = captured.get().removesuffix("\n").split("\n")
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))

    def data(self, facts: Any) -> None:
        """Facts for machines."""
        print(as_json(facts))

    def heading(self, text: str) -> None:
        """A line that begins a section."""
        self.show(f"\n{text}", style="bold")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A column whose name begins with `>` is set to the right."""
        headed = any(name.strip(">") for name in columns)
        ruled = box.SIMPLE_HEAD if self.terminal and headed else None
        table = Table(box=ruled, show_header=headed, show_edge=False, pad_edge=False)
        for name in columns:
            table.add_column(name.removeprefix(">"), justify="right" if name[:1] == ">" else "left")
        for row in rows:
            table.add_row(*row)
        self.show(Padding(table, (0, 0, 0, 2), expand=False))

    def tables(self, tables: Iterable[Any]) -> None:
        """Tables of `dialect.display.tables`, every one under its title."""
        for table in tables:
            self.heading(table.title)
            self.table(table.columns, table.rows)

    def lines(self, lines: Sequence[str], style: str = "") -> None:
        """Indented, also where the terminal has to wrap them."""
        for line in lines:
            self.show(Padding(Text(line), (0, 0, 0, _INDENT), expand=False), style=style)

    def warnings(self, lines: Sequence[str]) -> None:
        """What must not be overlooked."""
        for line in lines:
            self.show(Text(line), style="bold yellow")

    @contextmanager
    def working(self, what: str) -> Iterator[Shows]:
        """Says what is being done while it takes its time."""
        if not self.moving:
            with lines(what) as shown:
                yield shown
            return
        spinner = Spinner("dots", what)
        # What goes to standard error is printed around the spinner only where both are one screen.
        with Live(
            spinner, console=self.console, transient=True, redirect_stderr=sys.stderr.isatty()
        ):
            yield spinner

    @contextmanager
    def growing(self) -> Iterator[Callable[[Iterable[str]], None]]:
        """Gives a function that shows paragraphs, again and again as they grow; a pipe gets the
        last of them."""
        last: list[str] = []

        def show(paragraphs: Iterable[str]) -> None:
            last[:] = paragraphs
            if self.moving:
                live.update(Text("\n".join(last)))

        with Live(console=self.console, transient=True) if self.moving else nullcontext() as live:
            yield show
        self.lines(last)

    def counted(self, what: str, results: Iterable[T], total: int) -> list[T]:
        """The results, with how many of the total there are while they are computed."""
        computed: list[T] = []
        with self.working(what) as spinner:
            for result in results:
                computed.append(result)
                spinner.update(text=f"{what}, {len(computed)} of {total}")
        return computed

    def listing(self, passes: Sequence[dict[str, Any]]) -> None:
        """Every pass with its options, one to a line."""
        rows = []
        for known in passes:
            lines = (f"{o['name']}={o['default']}  ({o['takes']})" for o in known["options"])
            rows.append((known["name"], known["keeps"], known["what"], "\n".join(lines)))
        self.table(("pass", "keeps", "what it does", "options and their defaults"), rows)

    def listing_of(self, lines: Sequence[Line]) -> None:
        """Lines of a program or of a difference."""
        if self.coloured:
            self.console.print(coloured(lines), soft_wrap=True)
        else:
            self.file.write(f"{plain(lines)}\n")

    def rewriting(
        self, what: str, target: Target, reports: Sequence[PassReport], plan: Plan | None
    ) -> None:
        """Each pass with its time, what it changed and what it had to say; then the plan."""
        mesh = " ".join(f"{axis}={chips}" for axis, chips in target.mesh)
        self.show(f"{what} for {target.topology}, mesh {mesh}")
        widest = max((len(report.text) for report in reports), default=0)
        self.heading(f"{'passes':{widest}}  {'ms':>8}  {'ops':>14}  keeps")
        for report in reports:
            ops = f"{report.ops_before} -> {report.ops_after}"
            timed = f"{report.seconds * 1e3:8.1f}  {ops:>14}"
            self.show(f"{report.text:{widest}}  {timed}  {report.keeps}")
            self.lines(_packed(report.notes, self.console.width), style="dim")
        self.heading("plan")
        self.show("no pass made a plan" if plan is None else plan.explain())

    def executable(self, report: Any, notes: Sequence[str], seconds: float, hbm_bytes: int) -> None:
        """A `dialect.compiled.executable.Report`, the compiler's notes, and a chip's HBM."""
        memory, collectives = report.memory, _collectives(report)
        self.heading(f"executable, compiled in {seconds:.1f} s")
        self.show(f"memory per chip: {size(memory.total_bytes)} of {size(hbm_bytes)}")
        rows = {
            "parameters, state and arguments": memory.argument_bytes,
            "of these, state updated in place": memory.alias_bytes,
            "results": memory.output_bytes - memory.alias_bytes,
            "temporaries": memory.temp_bytes,
            "code": memory.code_bytes,
        }
        self.table(("", ">"), [(name, size(count)) for name, count in rows.items()])
        self.heading("entry parameters, per chip")
        by_dtype = report.by_dtype().items()
        shown = [(dtype, str(count), size(total)) for dtype, (count, total) in by_dtype]
        self.table(("dtype", ">arrays", ">size"), shown)
        self.heading("collectives, per step" if collectives else "no collectives")
        if collectives:
            self.table(("kind", "dtype", "over", ">count x trips", ">size of one"), collectives)
        self.heading("compiler notes" if notes else "no compiler notes")
        self.lines(notes)


def as_json(facts: Any) -> str:
    """The text of facts for machines."""
    return json.dumps(facts, indent=2)


@dataclass(frozen=True)
class Progress(Hook):
    """Names the pass that is running."""

    spinner: Shows

    def before(self, step: Pass, program: Program) -> None:
        self.spinner.update(text=f"pass {step}")


def _packed(notes: Sequence[str], width: int) -> list[str]:
    """Notes as lines; short ones share a line."""
    most = min(_NOTES_WIDTH, width - _INDENT)
    lines: list[str] = []
    for note in notes:
        joined = f"{lines[-1]}, {note}" if lines else note
        if lines and len(joined) <= most:
            lines[-1] = joined
        else:
            lines.append(note)
    return lines


def _collectives(report: Any) -> list[tuple[str, ...]]:
    """Equal collectives as one row, whatever they were made for."""
    counts: Counter[tuple[str, ...]] = Counter()
    for collective in report.collectives:
        axes = "?" if collective.axes is None else " ".join(collective.axes)
        trips = "?" if collective.trip_count is None else str(collective.trip_count)
        counts[collective.kind, collective.dtype, axes, trips, size(collective.result_bytes)] += (
            collective.count
        )
    return [
        (kind, dtype, axes, f"{count} x {trips}", result_size)
        for (kind, dtype, axes, trips, result_size), count in counts.items()
    ]
