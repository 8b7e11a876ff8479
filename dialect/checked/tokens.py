"""A decoder run before and after a pass, side by side: the first token that differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from dialect.checked.numbers import results
from rewrite.program import Program


@dataclass(frozen=True)
class Token:
    """Where two decoders differ: the step, the sequence, and the tokens that they choose."""

    step: int
    sequence: int
    expected: int
    got: int

    def __str__(self) -> str:
        where = f"token {self.step} of sequence {self.sequence}"
        return f"the first token that differs is {where}: expected {self.expected}, got {self.got}"


def is_decoder(program: Program) -> bool:
    """Whether a step takes tokens and a state, and gives logits and the state."""
    return _interface(program) is not None


def first_token(
    before: Program, after: Program, leaves: Sequence[Any], steps: int = 8
) -> Token | None:
    """Decodes greedily with both, each with its own state, on the tokens that `before` chose.

    None where all `steps` tokens agree, or where the program is no decoder.
    """
    interface = _interface(before)
    if interface is None:
        return None
    logits, tokens = interface
    one, two = list(leaves), list(leaves)
    for step in range(steps):
        first, second = results(before, one), results(after, two)
        expected, got = (np.asarray(jnp.argmax(out[logits], -1)) for out in (first, second))
        if (expected != got).any():
            place = tuple(np.argwhere(expected != got)[0])
            return Token(step, int(place[0]), int(expected[place]), int(got[place]))
        shape = before.inputs[tokens].type.shape
        if expected.size != np.prod(shape):
            return None  # a prompt: its one next token agrees
        for side, outputs in ((one, first), (two, second)):
            _advance(before, side, outputs)
            side[tokens] = jnp.asarray(expected.reshape(shape), side[tokens].dtype)
    return None


def _interface(program: Program) -> tuple[int, int] | None:
    """(the output that holds logits, the input that takes tokens)."""
    logits = [
        i
        for i, (out, value) in enumerate(zip(program.outputs, program.graph.outputs))
        if out.updates is None and value.type.rank in (2, 3) and value.type.dtype[0] in "fb"
    ]
    tokens = [
        i
        for i, declared in enumerate(program.inputs)
        if declared.role == "arg"
        and declared.type.dtype[0] in "iu"
        and declared.type.rank in (1, 2)
    ]
    updated = any(out.updates is not None for out in program.outputs)
    return (logits[0], tokens[0]) if updated and len(logits) == len(tokens) == 1 else None


def _advance(program: Program, leaves: list[Any], results: list[Any]) -> None:
    """The state for the next step; a scalar argument is a position, one further."""
    for out, result in zip(program.outputs, results):
        if out.updates is not None:
            leaves[out.updates] = result
    for i, declared in enumerate(program.inputs):
        if declared.role == "arg" and declared.type.dtype[0] in "iu" and declared.type.rank == 0:
            leaves[i] = leaves[i] + 1
