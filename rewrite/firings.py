"""Firings of rules, counted and stopped after so many: to single out a wrong one among thousands.

with counted(limit=17) as firings:
    step.run(program, target)     # as if no rule had fired after the 17th
firings.last                      # the 17th
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from rewrite.ir import Op, Value
from rewrite.rules import Rule


@dataclass(frozen=True)
class Firing:
    """A rule that fired: the op that it took, and the values that it put in its place."""

    rule: Rule
    op: Op
    results: tuple[Value, ...]


class Firings:
    """How many rules fired, and the last of them; none is allowed beyond `limit`."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.count = limit, 0
        self.last: Firing | None = None

    def allow(self, firing: Firing) -> bool:
        """Counts the firing, unless the limit is reached."""
        if self.limit is not None and self.count >= self.limit:
            return False
        self.count += 1
        self.last = firing
        return True


_COUNTED: ContextVar[Firings | None] = ContextVar("firings", default=None)


@contextmanager
def counted(limit: int | None = None) -> Iterator[Firings]:
    """Counts every firing in the block, and allows no more than `limit`."""
    firings = Firings(limit)
    token = _COUNTED.set(firings)
    try:
        yield firings
    finally:
        _COUNTED.reset(token)


def allowed(rule: Rule, op: Op, results: tuple[Value, ...]) -> bool:
    """Whether the rule may fire: always, where nobody counts."""
    firings = _COUNTED.get()
    return firings is None or firings.allow(Firing(rule, op, results))
