"""A failing program made smaller: fewer passes, one result, lines cut off and their values given.

What is left fails in the same way: after the same pass, with the same complaint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.fuzz.checks import Failure
from tests.fuzz.interpreted import interpreted_function
from tests.fuzz.source import Function, Given, Line, Source

Fails = Callable[[Source, Sequence[str]], Failure | None]
_LARGEST_TRIALS = 150


def shrunk(
    source: Source, failure: Failure, fails: Fails
) -> tuple[Source, tuple[str, ...], Failure]:
    """The smaller program, the passes that are left, and how it fails."""
    passes, key, trials = failure.passes, failure.key, 0

    def same(one: Source, some: Sequence[str]) -> Failure | None:
        nonlocal trials
        trials += 1
        try:
            again = fails(one, some) if trials < _LARGEST_TRIALS else None
        except Exception:  # a program cut in the wrong place is none
            return None
        return again if again is not None and again.key == key else None

    smaller = True
    while smaller:
        smaller = False
        for some in _without_one(passes):
            if found := same(source, some):
                passes, failure, smaller = tuple(some), found, True
                break
        for one in () if smaller else _smaller(source):
            if found := same(one, passes):
                source, failure, smaller = one, found, True
                break
    return source, passes, failure


def _without_one(passes: Sequence[str]) -> Iterator[Sequence[str]]:
    """Without half of the passes before the last, then without each."""
    before, last = passes[:-1], passes[-1:]
    half = len(before) // 2
    if half > 1:
        yield (*before[half:], *last)
        yield (*before[:half], *last)
    for i in range(len(before)):
        yield (*before[:i], *before[i + 1 :], *last)


def _smaller(source: Source) -> Iterator[Source]:
    if len(source.outputs) > 1:
        for name in source.outputs:
            yield replace(source, outputs=(name,)).live()
    for i in range(len(source.state)):
        yield replace(
            source,
            state=(*source.state[:i], *source.state[i + 1 :]),
            args=(*source.args, source.state[i]),
            updates=(*source.updates[:i], *source.updates[i + 1 :]),
        ).live()
    if not source.outputs and source.updates:
        yield replace(source, outputs=source.updates).live()
    yield from _given_lines(source)
    for i, line in enumerate(source.lines):
        for inner in _smaller_functions(line):
            yield replace(source, lines=(*source.lines[:i], inner, *source.lines[i + 1 :]))
    yield from _fewer_inputs(source)


def _given_lines(source: Source) -> Iterator[Source]:
    """Without one line: what it gave becomes an argument."""
    values = _values(source)
    for i, line in reversed(list(enumerate(source.lines))):
        given = tuple(_given(name, values[name]) for name in line.names if name in values)
        rest = (*source.lines[:i], *source.lines[i + 1 :])
        if all(given) and len(given) == len(line.names):
            yield replace(source, lines=rest, args=(*source.args, *given)).live()


def _values(source: Source) -> dict[str, Any]:
    """What each line gives."""
    names = tuple(name for line in source.lines for name in line.names)
    shown = replace(source, outputs=names, updates=())
    with jax.enable_x64(source.x64):
        found = interpreted_function(shown.function.compiled(), *source.arrays)
    return dict(zip(names, found))


def _given(name: str, value: Any) -> Given | None:
    if not isinstance(value, np.ndarray):
        return None
    kind = value.dtype
    if jnp.issubdtype(kind, jnp.complexfloating):
        numbers = tuple(complex(number) for number in value.ravel())
    elif jnp.issubdtype(kind, jnp.floating):
        numbers = tuple(float(number) for number in value.ravel().astype(np.float64))
    else:
        numbers = tuple(number.item() if kind == bool else int(number) for number in value.ravel())
    return Given(name, str(kind), value.shape, numbers)


def _smaller_functions(line: Line) -> Iterator[Line]:
    """The line with one line less in one of its inner functions."""
    for i, function in enumerate(line.inner):
        for smaller in _smaller_bodies(function):
            yield replace(line, inner=(*line.inner[:i], smaller, *line.inner[i + 1 :]))


def _smaller_bodies(function: Function) -> Iterator[Function]:
    read = {name for line in function.lines for name in line.reads}
    read |= replace(function, lines=()).reads | set(function.results.replace(",", " ").split())
    for i, line in enumerate(function.lines):
        rest = (*function.lines[:i], *function.lines[i + 1 :])
        if not read & set(line.names):
            yield replace(function, lines=rest)
        for inner in _smaller_functions(line):
            yield replace(function, lines=(*function.lines[:i], inner, *function.lines[i + 1 :]))


def _fewer_inputs(source: Source) -> Iterator[Source]:
    """Without the inputs that nothing reads."""
    read = {name for line in source.lines for name in line.reads}
    read |= {*source.outputs, *source.updates}
    for group in ("params", "args"):
        kept = tuple(each for each in getattr(source, group) if each.name in read)
        if len(kept) < len(getattr(source, group)):
            yield replace(source, **{group: kept})
