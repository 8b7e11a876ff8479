"""The story of a rewrite as a page of text: at most `LINES` lines of `COLUMNS` columns.

What was done, what it bought, how it is split, what was left and why, what to try next.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from dialect.display.quantities import milliseconds, percent, size
from dialect.display.tables import brief
from dialect.planning.label_words import in_words, legend
from dialect.planning.plan import Prediction
from dialect.printed.story import Done, Story
from dialect.reports.op_cost import Cost

LINES, COLUMNS = 42, 100
_NAMED = 5  # names of parameters, or parts, that a line shows
_BOUND = {
    "compute_s": ("arithmetic", "more chips, or quantize{activations=int8}"),
    "hbm_s": ("reading memory", "quantize weights or caches, or a larger batch"),
    "communication_s": ("exchanges", "fewer chips or another mesh: shardwright sweep"),
    "latency_s": ("latency of exchanges", "a larger batch, which has as many, or fewer chips"),
}


_SPLIT = "How it is split (d_ff@x,y: the axis d_ff, over the mesh axes x and y)"


def page(told: Story, first: Sequence[str] = (), details: str = "--details") -> str:
    """The page; `first` is what must be said before all else, such as what was not done, and
    `details` how the reader gets to all there is to say."""
    sections = {
        "What it buys": _bought(told),
        "What was done": _what_was_done(told),
        _SPLIT: _split(told),
        "What was left, and why": _left(told),
        "What to try next": _next(told, details),
    }
    bodies = {title: _cut(list(lines), COLUMNS - 2) for title, lines in sections.items()}
    head = [*_cut(first, COLUMNS), *_head(told)]
    over = len(head) + sum(len(body) + 2 for body in bodies.values() if body) - LINES
    for title in ("What was left, and why", "What was done"):
        over -= _shortened(bodies[title], over, details)
    for title, body in bodies.items():
        head += ["", title, *(f"  {line}" for line in body)] if body else []
    return "\n".join(line.rstrip() for line in head)


def _shortened(body: list[str], by: int, details: str) -> int:
    """Leaves so many lines out, and says so; how many that were."""
    out = min(by, len(body) - 2)
    if out <= 0:
        return 0
    body[-out - 1 :] = [f"and {out + 1} more: {details}"]
    return out


def _cut(lines: Sequence[str], most: int) -> list[str]:
    return [
        line if len(line) <= most else f"{line[: most - 4].rstrip(' ,;:')} ..." for line in lines
    ]


def _head(told: Story) -> list[str]:
    mesh = " ".join(f"{axis}={count}" for axis, count in told.target.mesh)
    chips = f"{told.chips} chips" if told.chips > 1 else "one chip"
    where = f" for {told.target.topology}: {chips}, mesh {mesh}" if mesh else ""
    return [f"{told.name}{where}"]


# What it buys.


def _bought(told: Story) -> Iterator[str]:
    now = f"now, on {told.chips}" if told.chips > 1 else "now"
    yield f"{'':30}{'as it was, on one chip':26}{now}"
    one, other = told.before, told.after
    if one and other:
        fits = "" if one.memory_bytes <= told.usable_bytes else " (does not fit)"
        yield _row("time of a step", milliseconds(one.time_s) + fits, milliseconds(other.time_s))
        if told.tokens:
            rates = (f"{told.tokens / step.time_s:,.0f}" for step in (one, other))
            yield _row("tokens a second", *rates)
        of = f"of {size(told.usable_bytes)}"
        memory = (f"{size(step.memory_bytes)} {of}" for step in (one, other))
        yield _row("memory of a chip", *memory)
        if told.tokens:
            read = (step.hbm_bytes * n / told.tokens for step, n in ((one, 1), (other, told.chips)))
            yield _row("memory traffic of a token", *map(size, read))
            sent = other.communication_bytes * told.chips / told.tokens
            yield _row("exchanged for a token", "nothing", size(sent) if sent else "nothing")
    kept = (f"{size(held.params)}, {size(held.state)}" for held in told.held)
    yield _row("parameters, state (caches)", *kept)


def _row(what: str, before: str, after: str) -> str:
    return f"{what:30}{before:26}{after}"


# What was done.


def _what_was_done(told: Story) -> Iterator[str]:
    idle = []
    for done in told.done:
        said = _said(done)
        name = done.text.partition("{")[0]
        if done.changed or done.keeps == "approx" or _decided(done):
            approximate = ", approximately" if done.keeps == "approx" else ""
            ops = "{} -> {} ops".format(*done.ops) if done.changed else ""
            yield f"{name + approximate:27}{ops:17} {said}"
        else:
            idle.append(name)
    if idle:
        yield f"{'nothing to do for':27}{', '.join(idle)}"


def _decided(done: Done) -> bool:
    """Whether a pass that left the ops alone still said what it decided."""
    return bool(done.notes) and not done.counted and not done.notes[0].startswith("no ")


def _said(done: Done) -> str:
    """What a pass did, in its own words, or in those of its declaration."""
    if done.notes and not done.counted:
        return done.notes[0]
    first = re.split(r"[,;:] ", done.purpose)[0]
    return f"{first} ({done.counted})" if done.counted else first


# How it is split.


def _split(told: Story) -> Iterator[str]:
    plan = told.plan
    if plan is None:
        return
    words = in_words(plan.label)
    yield f"{plan.label}: {words}" if words else plan.label
    alike: dict[str, list[str]] = {}
    for group, split in plan.groups:
        shown = " ".join(f"{axis}@{','.join(axes)}" for axis, axes in split) or "whole"
        alike.setdefault(shown, []).append(group)
    for shown, groups in alike.items():
        yield f"{', '.join(groups):25}  {shown}"
    slower = [other for other in plan.alternatives if other.time_s is not None]
    if slower:
        second, time = slower[0], milliseconds(slower[0].time_s or 0)
        yield f"next best: {second.label}, {time}: {second.reason}"
        letters = legend([plan.label, slower[0].label])
        yield from textwrap.wrap(letters, COLUMNS - 2) if letters else ()


# What was left.


def _left(told: Story) -> Iterator[str]:
    for names, why in told.left[:4]:
        shown = ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
        yield from textwrap.wrap(
            f"{shown}: {_without_hint(why)}", COLUMNS - 4, subsequent_indent="  "
        )
    report = told.coverage
    if report is None:
        return
    lost = sum((group.cost for group in report.unrecognised), Cost())
    share = percent(report.cost.flops - lost.flops, report.cost.flops)
    moved = percent(report.cost.bytes - lost.bytes, report.cost.bytes)
    if report.unrecognised:
        yield f"recognised: {share} of the arithmetic, {moved} of the traffic, before fusion"
    for group in report.unrecognised[:3]:
        at = f" at {brief(group.source)}" if group.source else ""
        near = f": nearly {group.near.rule}: {group.near.reason}" if group.near else ""
        yield f"not recognised: {group.ops}{at}{near}"


def _without_hint(why: str) -> str:
    return re.sub(r" \([^()]*\{[^()]*\)$", "", why)


# What to try next.


def _next(told: Story, details: str) -> Iterator[str]:
    if told.after is not None:
        part, advice = _bottleneck(told.after)
        yield f"- most of a step is {part}: {advice}"
    hints = [re.search(r"\(([^()]*\{[^()]*\}[^()]*)\)$", why) for _, why in told.left]
    for hint in dict.fromkeys(match[1] for match in hints if match):
        yield f"- {hint}"
    if told.coverage and any(group.near for group in told.coverage.unrecognised):
        yield "- what was not recognised, and why, layer by layer: shardwright coverage"
    if any(done.keeps == "approx" for done in told.done):
        yield "- what the approximate passes cost in accuracy: shardwright eval"
    yield f"- what the compiler makes of it: shardwright compile; every rule and cost: {details}"


def _bottleneck(predicted: Prediction) -> tuple[str, str]:
    longest = max(_BOUND, key=lambda name: getattr(predicted, name))
    return _BOUND[longest]
