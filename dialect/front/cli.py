"""The `shardwright` command: its parser, and what becomes of errors.

It traces on the CPU and compiles ahead of time; only `eval` and `serve` run the program, and only
`serve` uses a TPU. `dialect.front.examples` shows what is typed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dialect.front import versions
from dialect.front.arguments import (
    add_bisect,
    add_common,
    add_details,
    add_diff,
    add_eval,
    add_explain,
    add_file,
    add_function,
    add_json,
    add_listing,
    add_passes,
    add_report,
    add_reproduce,
    add_rules,
    add_serving,
    add_shell,
    add_simulation,
    add_sweep,
)
from dialect.front.completion import script
from dialect.front.examples import epilog, overview
from dialect.machine.topology import platform_of
from rewrite.errors import ShardwrightError

REFUSED, WRONG, MISTAKE, INTERRUPTED = 1, 2, 70, 130  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, given without the program's name. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Python has none where they are closed.
    sys.stdout, sys.stderr = (
        stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr)
    )
    args = parser().parse_args(words)
    args.words = words
    if args.command == "completion":
        print(script(parser(), args.shell), end="")
        return 0
    if _runs_on_cpu(args):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported
    try:
        versions.check()
        from dialect.front import commands  # with JAX, whose version is now known to do

        commands.run(args)
        sys.stdout.flush()
    except ShardwrightError as error:
        return _refused(error, args)
    except BrokenPipeError:
        # The reader has gone; what is still unwritten must not raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            raise
        return _mistake(error, args)
    return 0


def _runs_on_cpu(args: argparse.Namespace) -> bool:
    """Whether JAX starts the CPU alone: it compiles for a TPU there, for a GPU on a GPU."""
    if args.command == "serve":
        return (args.mesh or "").startswith("cpu")
    return platform_of(getattr(args, "target", None) or "") != "gpu"


def _refused(error: ShardwrightError, args: argparse.Namespace) -> int:
    if args.debug and error.__cause__ is not None:
        raise error
    if args.json:
        said = {"message": error.message, "where": error.where, "hint": error.hint}
        print(json.dumps({"error": said}, indent=2))
    print(f"error: {error}", file=sys.stderr)
    return REFUSED


def _mistake(error: Exception, args: argparse.Namespace) -> int:
    """What nobody foresaw: one line, and how to see more."""
    told = f"{type(error).__name__}: {str(error).strip() or 'without a message'}".splitlines()[0]
    if args.json:
        print(json.dumps({"error": {"message": told, "where": "", "hint": "--debug"}}, indent=2))
    print(f"error: {told}\n  try: --debug, which shows where it was raised", file=sys.stderr)
    return MISTAKE


class _Parser(argparse.ArgumentParser):
    """One whose errors are as short as all others are."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"error: {message}\n  try: {self.prog} --help\n")


class _Version(argparse.Action):
    """Reads the version of the distribution where it is asked for, not at every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            version = importlib.metadata.version("shardwright")
        except importlib.metadata.PackageNotFoundError:  # run in a clone
            version = "of a clone"
        print(f"shardwright {version}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    plain = argparse.RawDescriptionHelpFormatter
    whole = _Parser(
        prog="shardwright",
        description="Rewrites JAX decoders for inference.",
        epilog=overview(),
        formatter_class=plain,
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for name, about, groups in _COMMANDS:
        command = commands.add_parser(
            name, help=about, description=about, epilog=epilog(name), formatter_class=plain
        )
        command.set_defaults(command=name, json=False)
        for add in (*groups, add_common):
            add(command)
    return whole


# Each command: what it does, and the groups of its arguments.
_COMMANDS = (
    (
        "compile",
        "Rewrites a function, compiles it, and shows the executable.",
        (add_function, add_passes, add_json),
    ),
    (
        "explain",
        "Says on a page what was done to a decoder, what it bought, what was left, and why.",
        (add_function, add_details, add_passes, add_json),
    ),
    (
        "diff",
        "Shows how two programs differ, or what passes change, and what that saves.",
        (add_diff, add_passes, add_json),
    ),
    (
        "report",
        "Writes everything about a rewrite as one HTML page.",
        (add_function, add_report, add_passes, add_json),
    ),
    (
        "show",
        "Rewrites a function and prints the program.",
        (add_function, add_explain, add_listing, add_passes, add_json),
    ),
    (
        "coverage",
        "Shows what of a function is recognised, what is not and why, and what its axes are.",
        (add_function, add_passes, add_json),
    ),
    (
        "eval",
        "Measures on held-out text the accuracy that every pass costs and the bytes that it saves.",
        (add_eval, add_passes, add_json),
    ),
    (
        "sweep",
        "Costs a decoder over chips, batches and dtypes of weights; marks the Pareto front.",
        (add_sweep, add_passes, add_json),
    ),
    (
        "simulate",
        "Serves a load on paper: throughput, latencies and pages, on any mesh.",
        (add_simulation, add_passes, add_json),
    ),
    (
        "serve",
        "Serves a decoder over HTTP, as OpenAI's clients speak it.",
        (add_serving,),
    ),
    (
        "opt",
        "Reads a program, or the file of a crash, runs passes, and prints the result.",
        (add_file, add_listing, add_passes, add_json),
    ),
    (
        "bisect",
        "Names the first pass, and its first rule, after which numbers leave their class.",
        (add_function, add_passes, add_bisect, add_json),
    ),
    (
        "reproduce",
        "Runs the file of a failure again; with --reduce, makes it as small as it still fails.",
        (add_reproduce, add_json),
    ),
    (
        "check-rules",
        "Tries rules on programs around their examples: do they keep what they claim?",
        (add_rules, add_json),
    ),
    (
        "passes",
        "Lists every pass, those of other packages included.",
        (add_json,),
    ),
    (
        "completion",
        "Prints the completion of this command for a shell.",
        (add_shell,),
    ),
)
