"""What the command line of `simulate` asks for: loads, and how they are served."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from dialect.front.session import Arguments
from dialect.machine.mesh import Topology
from dialect.serving.policy import VICTIMS, ServingError
from dialect.simulated.arrivals import Arrival, Lengths, at_rate, drawn, read_trace, spread
from dialect.simulated.comparison import Load, described
from dialect.simulated.methods import METHODS
from rewrite.errors import nearest

OWNERS = ("heads", "batch")


def loads(args: Arguments) -> list[Load]:
    """The requests at every rate that was asked for. Raises ServingError."""
    if args.requests is not None and args.requests < 1:
        raise ServingError(f"--requests is {args.requests}, and must be at least 1")
    if not 0 <= args.guessed < 1:
        raise ServingError(f"--guessed is {args.guessed}, and must be at least 0, less than 1")
    arrivals = read_trace(args.trace, args.requests) if args.trace else _drawn(args)
    arrivals = [replace(arrival, guessed=args.guessed) for arrival in arrivals]
    name = described(arrivals, Path(args.trace).name if args.trace else "drawn")
    rates = _numbers(args.rate, "--rate") if args.rate else []
    if args.plot and all(map(math.isinf, rates)) and not (args.trace and not rates):
        raise ServingError("--plot draws latencies over rates", hint="add --rate 1,2,4,8")
    if not rates and args.trace:
        lasts = arrivals[-1].at
        return [Load(name, len(arrivals) / lasts if lasts else math.inf, arrivals)]
    return [Load(name, rate, _timed(arrivals, rate, args)) for rate in rates or [math.inf]]


def _drawn(args: Arguments) -> list[Arrival]:
    spreads = _numbers(args.spread, "--spread")
    prefixes = args.prefixes.split("x")
    if len(spreads) != 2 or len(prefixes) != 2 or not all(map(str.isdecimal, prefixes)):
        hint = "write --spread 1.2,1.0 --prefixes 8x512"
        raise ServingError("--spread takes two numbers, and --prefixes two whole ones", hint=hint)
    count, length = map(int, prefixes)
    prompts = Lengths(args.prompt, spreads[0], args.longest - length - 1)
    answers = Lengths(args.new, spreads[1], args.longest)
    if min(args.prompt, args.new) < 1 or prompts.most < args.prompt:
        raise ServingError(f"such prompts and answers do not fit into {args.longest} tokens")
    return drawn(args.requests or 1000, prompts, answers, args.longest, (count, length), args.seed)


def _timed(arrivals: list[Arrival], rate: float, args: Arguments) -> list[Arrival]:
    """A trace keeps its own rhythm unless bursts were asked for; what is drawn is a Poisson process
    by default."""
    if math.isinf(rate):
        return [replace(arrival, at=0.0) for arrival in arrivals]
    if args.trace and args.burst is None:
        return at_rate(arrivals, rate)
    return spread(arrivals, rate, args.burst or 1.0, args.seed)


def options(args: Arguments) -> dict[str, Any]:
    """The fields of a `dialect.simulated.comparison.Comparison`. Raises ServingError."""
    return {
        "topologies": [Topology.parse(text) for text in args.mesh.split(",")],
        "owners": _words(args.owner, "owner", OWNERS) if args.owner else ("",),
        "methods": _words(args.batching, "batching", METHODS),
        "pages": [int(number) for number in _numbers(args.page, "--page")],
        "longest": args.longest,
        "rows": args.rows,
        "chunk": args.chunk,
        "room": args.room,
        "victim": _words(args.victim, "victim", VICTIMS)[0],
        "shares": not args.no_sharing,
    }


def _words(text: str, what: str, known: Any) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise ServingError(f"no {what} {word!r}", hint=nearest(word, known))
    return words


def _numbers(text: str, option: str) -> list[float]:
    """Positive numbers; "max" is infinite."""
    try:
        numbers = [math.inf if word == "max" else float(word) for word in text.split(",")]
    except ValueError:
        numbers = [0.0]
    if not all(number > 0 for number in numbers):
        raise ServingError(f"{option} takes positive numbers, not {text!r}")
    return numbers
