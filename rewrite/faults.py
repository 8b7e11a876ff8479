"""The commands that look for faults: `bisect` and `reproduce`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rewrite import asked
from rewrite.asked import Arguments, start
from rewrite.console import Screen
from rewrite.errors import ShardwrightError, TextError
from rewrite.program import Program
from rewrite.source import MOST_OF_A_PROGRAM, read_file


class Found(ShardwrightError):
    """A fault that was looked for is there."""


def bisect(args: Arguments, screen: Screen) -> None:
    """Names the first pass, and in it the first rule, after which numbers leave their class.

    Every pass is run, and the results before and after it are compared on drawn numbers.
    """
    from dialect.checked.bisect import bisect as first_departure
    from dialect.checked.reproducer import Failure

    traced = asked.traced(args, screen, "normalize, recognize")
    with screen.working("comparing before and after every pass"):
        departure = first_departure(traced.program, traced.passes, traced.target, args.seed)
    if departure is None:
        screen.show(f"all {len(traced.passes)} passes keep what they claim")
        return
    if args.out:
        told = (traced.program, traced.passes, traced.target, str(departure), args.seed)
        Failure.of("numbers", *told).save(Path(args.out))
    raise Found(str(departure), where=departure.blame.source if departure.blame else "")


def reproduce(args: Arguments, screen: Screen) -> None:
    """Runs the file of a failure again; with --reduce, makes it as small as it still fails."""
    from dialect.checked.reproducer import Failure
    from rewrite import api

    failure = Failure.parse(read(args.file))
    if failure.pipeline.topology:
        start(failure.pipeline.topology)
    from dialect.checked.failures import Again

    mesh, target = api.resolve(None, None, failure.pipeline)
    again = Again(failure, mesh, target)
    with screen.working("running it again"):
        error = again.error()
    if error is None:
        screen.show(f"does not fail any more (it was written with {failure.versions})")
        return
    if args.reduce:
        with screen.working("making it smaller") as spinner:

            def watch(program: Program, passes: Any) -> None:
                told = f"{program.graph.op_count} ops, {len(passes)} passes"
                spinner.update(text=f"making it smaller: {told}")

            smaller = again.reduced(args.seconds, watch)
        path = Path(args.out or f"{args.file}.reduced")
        smaller.save(path)
        told = f"{failure.program.graph.op_count} ops to {smaller.program.graph.op_count}"
        screen.show(f"reduced from {told}: {path}")
    raise (
        error if isinstance(error, ShardwrightError) else Found(f"{type(error).__name__}: {error}")
    )


def read(file: str) -> str:
    """The text of a file, or of standard input for "-"."""
    if file != "-":
        return read_file(file, "program")
    try:
        return sys.stdin.read(MOST_OF_A_PROGRAM + 1)
    except UnicodeDecodeError as error:
        raise TextError(f"cannot read the program on standard input: {error}") from error


def add_bisect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what it is run on").add_argument
    add("--seed", type=int, default=0, metavar="N", help="of the numbers (0)")
    add("--out", metavar="FILE", help="a reproducer, where something is wrong")


def add_reproduce(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="written by --crash-reproducer, `bisect --out` or a fuzzer")
    add("--reduce", action="store_true", help="make it smaller while it fails in the same way")
    add("--seconds", type=float, default=60.0, metavar="S", help="to spend on that (60)")
    add("--out", metavar="FILE", help="where the smaller one goes (FILE.reduced)")
