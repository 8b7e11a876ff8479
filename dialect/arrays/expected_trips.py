"""How often a loop is expected to run whose end is known only when it runs, in its name.

    jit(prefill)/while/body/llama.py:78/trips=2.5/while

A named scope, as source lines are: it changes nothing in what is compiled.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import jax

_TRIPS = re.compile(r"trips=([\d.e+]+)/while$")


def expecting(trips: float | None) -> AbstractContextManager:
    """Inside, a loop that is traced carries how often it is expected to run, if that is known."""
    return nullcontext() if trips is None else jax.named_scope(f"trips={trips:.6g}")


def expected_trips(name: str) -> float | None:
    """How often a loop of this name is expected to run, if its name says so."""
    match = _TRIPS.search(name)
    return float(match[1]) if match else None
