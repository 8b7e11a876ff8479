"""The commands that look at programs and passes: `show`, `opt`, `diff` and `passes`."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_type_hints

from dialect.checked.reproducer import Failure
from dialect.compiled.resolved import target_of
from dialect.front import session
from dialect.front.console import Screen
from dialect.front.programs import parsed
from dialect.front.session import Arguments, Rewritten, rewritten, traced
from dialect.front.strict import not_done
from dialect.front.watched import listening_to, must_be_among
from dialect.machine.virtual_cpus import start
from dialect.printed.difference import Difference, difference
from dialect.printed.difference_lines import difference_lines, facts
from dialect.printed.program_lines import program_lines
from dialect.printed.story import facts as story_facts
from dialect.printed.story import story
from dialect.printed.story_page import page
from dialect.reports.explained import Explained
from rewrite import manager, options
from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass, find_pass, pass_names
from rewrite.program import Program


def show(args: Arguments, screen: Screen) -> None:
    """Rewrites a function and prints the program."""
    explained = Explained()
    done = rewritten(args, screen, listeners=(explained,))
    if args.json:
        screen.data(done.facts() | {"program": str(done.program)})
        return
    if args.explain:
        _details(args, screen, done, explained)
    else:
        _print_program(done.program, args, screen)


def explain(args: Arguments, screen: Screen) -> None:
    """Says on a page what was done, what it bought, what was left and why."""
    explained = Explained()
    done = rewritten(args, screen, listeners=(explained,))
    told = story(explained, done.program, done.target)
    if args.json:
        screen.data(done.facts() | {"story": story_facts(told)})
    elif args.details:
        _details(args, screen, done, explained)
    else:
        for line in page(told, not_done(done.program)).split("\n"):
            screen.show(line, style="" if line.startswith(" ") else "bold")


def _details(args: Arguments, screen: Screen, done: Rewritten, explained: Explained) -> None:
    screen.warnings(not_done(done.program))
    screen.rewriting(args.function, done.target, done.reports, done.program.plan)
    screen.tables(explained.tables())


def opt(args: Arguments, screen: Screen) -> None:
    """Reads a program, or the file of a crash, runs passes, and prints the result."""
    if args.list_passes:
        passes(args, screen)
        return
    pipeline = session.pipeline(args)
    if pipeline is not None:
        program = parsed(args.file, Program.parse)
    else:
        failure = parsed(args.file, Failure.parse)
        program, pipeline = failure.program, failure.pipeline
    target = pipeline.target()
    if args.target or target.topology:
        start(args.target or target.topology)
        target = target_of(args.target, pipeline)
    steps = pipeline.passes(args.phase)
    listening = listening_to(args, target, steps)
    result, reports = manager.run(program, steps, target, listening)
    if args.json:
        screen.data({"passes": [asdict(report) for report in reports], "program": str(result)})
    else:
        _print_program(result, args, screen)


def _print_program(program: Program, args: Arguments, screen: Screen) -> None:
    """The text that reads back, or on a terminal and where it is asked for the one for people."""
    if screen.terminal if args.fold is None else args.fold:
        screen.listing_of(program_lines(program, sources=args.sources))
    else:
        print(program)


@dataclass
class Around(Hook):
    """Keeps the programs before and after the pass of this name, where it runs first."""

    name: str
    kept: list[Program] = field(default_factory=list)

    def before(self, step: Pass, program: Program) -> None:
        """Keeps what the pass gets."""
        if step.pass_name() == self.name and not self.kept:
            self.kept.append(program)

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Keeps what it gives."""
        if step.pass_name() == self.name and len(self.kept) == 1:
            self.kept.append(program)


def diff(args: Arguments, screen: Screen) -> None:
    """Shows how two programs differ, or what passes change, and what that saves."""
    changes = _two_programs(args, screen) if args.other else _before_and_after(args, screen)
    if args.json:
        screen.data(facts(changes))
    else:
        screen.listing_of(difference_lines(changes, args.most))


def _two_programs(args: Arguments, screen: Screen) -> Difference:
    """Both after the passes, where any were asked for."""
    programs = []
    for name in (args.function, args.other):
        one = Arguments(**vars(args) | {"function": name})
        asked = traced(one, screen)
        runs = session.pipeline(one) is not None
        programs.append(rewritten(one, screen, asked=asked).program if runs else asked.program)
    return difference(*programs, names=(args.function, args.other))


def _before_and_after(args: Arguments, screen: Screen) -> Difference:
    """Of the whole pipeline, or of one of its passes."""
    asked = traced(args, screen)
    names = [step.pass_name() for step in asked.passes]
    if args.only:
        must_be_among(args.only, names)
    around = Around(args.only or "")
    done = rewritten(args, screen, listeners=(around,), asked=asked)
    if args.only:
        return difference(*around.kept, names=(f"before {args.only}", f"after {args.only}"))
    text = ", ".join(map(str, asked.passes))
    return difference(asked.program, done.program, (args.function, text))


def passes(args: Arguments, screen: Screen) -> None:
    """Lists every pass, those of other packages included."""
    listed = [described(find_pass(name)) for name in pass_names()]
    if args.json:
        screen.data(listed)
    else:
        screen.listing(listed)


def described(kind: type[Pass]) -> dict[str, Any]:
    """A pass: its name, what it keeps, the first line of its docstring, its options."""
    types = get_type_hints(kind)
    takes = [
        {
            "name": field.name,
            "default": "" if field.default is MISSING else options.show(field.default),
            "takes": options.describe(types[field.name]),
        }
        for field in fields(kind)
    ]
    what = (inspect.getdoc(kind) or "").split("\n")[0]
    return {"name": kind.pass_name(), "keeps": kind.keeps, "what": what, "options": takes}
