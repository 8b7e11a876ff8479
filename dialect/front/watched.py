"""What a command line asks to be shown, checked or kept while passes run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from dialect.checked.bisect import VerifyNumbers
from dialect.checked.reproducer import Reproducer
from dialect.front.console import Screen
from dialect.printed.watching import ALL, PrintDiff, PrintIR, VerifyEach
from rewrite import hooks
from rewrite.manager import Hook
from rewrite.passbase import find_pass
from rewrite.target import Target


def listening_to(args: argparse.Namespace, target: Target) -> list[Hook]:
    """The hooks that were asked for."""
    errors = Screen(args.color, error=True)
    befores = _named(args.print_ir_before, args.print_ir_before_all)
    afters = _named(args.print_ir_after, args.print_ir_after_all)
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


def _named(names: Iterable[str], every: bool) -> frozenset[str]:
    known = {find_pass(name).pass_name() for name in names}
    return frozenset({*known, *([ALL] if every else [])})
