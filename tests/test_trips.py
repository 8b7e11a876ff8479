"""How often a loop runs: its length, or as often as a counter in its condition allows at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from jax import lax

from dialect.normal.trips import most_trips
from rewrite import Pipeline, trace
from rewrite.ir import Op

X = jnp.ones(4)
TESTS: dict[str, tuple[Callable[..., Any], int, int | None]] = {
    "below": (lambda n, x: n < 10, 1, 10),
    "in twos": (lambda n, x: n < 9, 2, 5),
    "at most": (lambda n, x: n <= 10, 1, 11),
    "above": (lambda n, x: 10 > n, 3, 4),
    "and more": (lambda n, x: (x.sum() < 9) & (n < 7) & (n < 8), 1, 7),
    "or more": (lambda n, x: (x.sum() < 9) | (n < 7), 1, None),
    "no counter": (lambda n, x: x.sum() < 9, 1, None),
    "no limit": (lambda n, x: n < x.sum().astype(int), 1, None),
    "another way": (lambda n, x: n < 10, -1, None),
    "never": (lambda n, x: n < 0, 1, 0),
}


def loops(function: Callable[..., Any], name: str) -> list[Op]:
    program = Pipeline.parse("normalize").run(trace(function, X))
    return [op for op in program.graph.ops if op.name == name]


@pytest.mark.parametrize("name", TESTS)
def test_a_while_runs_as_often_as_its_counter_allows(name: str) -> None:
    goes_on, step, most = TESTS[name]

    def function(x: Any) -> Any:
        def trip(carry: Any) -> Any:
            return carry[0] + step, carry[1] * 2

        return lax.while_loop(lambda carry: goes_on(*carry), trip, (0, x))[1]

    (loop,) = loops(function, "while")
    assert most_trips(loop) == most


def test_a_scan_runs_as_often_as_it_is_long() -> None:
    (loop,) = loops(lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=5)[0], "scan")
    assert most_trips(loop) == 5
