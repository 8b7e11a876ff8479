"""What a command line asks to be shown, checked or kept while passes run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from dialect.checked.bisect import VerifyNumbers
from dialect.checked.reproducer import Reproducer
from dialect.front.console import Screen
from dialect.printed.watching import ALL, PrintDiff, PrintIR, VerifyEach
from rewrite import hooks
from rewrite.errors import PipelineError, nearest
from rewrite.manager import Hook
from rewrite.passbase import Pass
from rewrite.target import Target


def listening_to(args: argparse.Namespace, target: Target, passes: Sequence[Pass]) -> list[Hook]:
    """The hooks that were asked for. Raises PipelineError for one of a pass that does not run."""
    errors = Screen(args.color, error=True)
    befores = _named(args.print_ir_before, args.print_ir_before_all, passes)
    afters = _named(args.print_ir_after, args.print_ir_after_all, passes)
    folded = getattr(args, "fold", None)
    folded = errors.terminal if folded is None else folded
    listeners: list[Hook] = []
    if befores or afters:
        shown = PrintIR(hooks.to_stderr, errors.listing_of, befores, afters, folded)
        listeners.append(shown)
    listeners += [PrintDiff(errors.listing_of)] if args.print_ir_diff else []
    listeners += [hooks.TimePasses()] if args.time_passes else []
    listeners += [VerifyEach()] if args.verify_each else []
    if args.crash_reproducer:
        listeners.append(Reproducer(Path(args.crash_reproducer)))
    if args.verify_numerics:
        listeners.append(VerifyNumbers(target))
    return listeners


def _named(names: Iterable[str], every: bool, passes: Sequence[Pass]) -> frozenset[str]:
    known = {step.pass_name() for step in passes}
    for name in names:
        must_be_among(name, known)
    return frozenset({*names, *([ALL] if every else [])})


def must_be_among(name: str, passes: Iterable[str]) -> None:
    """Raises PipelineError for a pass that is not among those that run."""
    if name not in passes:
        raise PipelineError(f"the pipeline has no pass {name!r}", hint=nearest(name, passes))
