"""Activations, found by what they compute.

A chain of elementwise ops that ends in one value and reads one value is a function of a single
number. At a few dozen numbers it is compared with the activations that have a name, which gives
the one that it may be; that it is this one is proven by their formulas (`formulas.py`), on both
sides of zero, and at zero, infinity and NaN by what both give. Every spelling of GELU is then the
same, and a clipped one is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays import dtypes
from dialect.matching.values import REALS, in_dtype, number
from dialect.ops import lax
from dialect.ops.activations import KINDS
from dialect.ops.vocabulary import Traced
from dialect.recognition.formulas import SIDES, NoFormula, formula_of
from rewrite import opdef, runtime
from rewrite.ir import Op, Type, Value
from rewrite.opdef import make
from rewrite.rules import Miss, Outcome, local

_SIGNS = {"tanh", "erf", "erfc", "logistic", "exp", "max", "select_n"}  # each has one of them
_NEARLY = 0.05  # relative distance up to which a function is called a near miss
_LONGEST = 24  # ops in the longest spelling of an activation, with room to spare
_ENDS = [0.0, 1e-30, -1e-30, 1e30, -1e30, np.inf, -np.inf, np.nan]
_SAMPLES = np.array([*np.linspace(-6, 6, 49), -0.01, 0.01, 0.3, 1.7, *_ENDS], np.float32)
_MIDDLE = slice(-len(_ENDS))


@local(
    "mul",
    "max",
    "div",
    "square",
    "select_n",
    example=lambda x: 0.5 * x * (1 + jnp.tanh(0.7978846 * x * (1 + 0.044715 * x * x))),
    types=("f32[2,8]",),
    keeps="reals",
)
def activation(op: Op) -> Outcome:
    """f(x), elementwise, that equals an activation  ->  activate(x)"""
    if op.types[0].shape[-1:] in ((), (1,)):
        return None
    chain = _chain(op)
    if not any(each.name in _SIGNS for each in chain):
        return None
    nearest: Outcome = None
    for source in _narrow_places(op, chain):
        rows = tuple(_rows(chain, source))
        if not all(map(_of_reals, rows)):
            continue
        kind, distance = _nearest(rows)
        if _is(rows, kind):
            return in_dtype(make("activate", source, kind=kind), op.types[0].dtype)
        if distance < _NEARLY:
            nearest = Miss(f"it is {kind} but for {distance:.1g} of its values", 5)
    return nearest


def _chain(op: Op) -> list[Op]:
    """The elementwise ops behind `op`, users before what they read, at most `_LONGEST`."""
    order: list[Op] = []
    seen: set[Op] = set()

    def visit(each: Op) -> None:
        seen.add(each)
        for arg in each.args:
            if arg.op.name in lax.MAPS and arg.op not in seen and len(seen) < _LONGEST:
                visit(arg.op)
        order.append(each)

    visit(op)
    return order[::-1]


def _narrow_places(op: Op, chain: list[Op]) -> list[Value]:
    """The values through which alone a chain reads its argument, nearest first."""
    found: list[Value] = []
    unread = _read_by(op)
    for each in chain[1:]:
        if len(unread) == 1:
            found += unread
        if each.results[0] in unread:
            unread = (unread - {each.results[0]}) | _read_by(each)
    found += unread if len(unread) == 1 else ()
    return [each for each in dict.fromkeys(found) if each.type.shape == op.types[0].shape]


def _read_by(op: Op) -> set[Value]:
    return {arg for arg in op.args if number(arg) is None}


# An op of a chain: its name, its arguments, its attributes and the dtype of its result. An argument
# is the number of an earlier row (-1: what the chain reads) or a constant, with its dtype.
Row = tuple[str, tuple[tuple[str, Any, str], ...], tuple, str]


def _rows(chain: list[Op], source: Value) -> Iterator[Row]:
    """The part of the chain between `source` and its end: a key."""
    place: dict[Value, int] = {source: -1}
    needed = {chain[0]}
    for each in chain:
        if each in needed:
            needed |= {arg.op for arg in each.args if arg != source}
    for each in reversed(chain):
        if each not in needed:
            continue
        args = tuple(
            ("row", place[arg], arg.type.dtype)
            if arg in place
            else ("number", number(arg), arg.type.dtype)
            for arg in each.args
        )
        yield each.name, args, each.attrs, each.types[0].dtype
        place[each.results[0]] = len(place) - 1


def _of_reals(row: Row) -> bool:
    """Whether an op takes real numbers alone, and a boolean that selects one of them."""
    name, args, *_ = row
    kinds = [kind for _, _, kind in args]
    if name == "select_n" and kinds.pop(0) != "bool":
        return False
    return all(kind in REALS for kind in kinds)


@lru_cache(maxsize=4096)
def _nearest(rows: tuple[Row, ...]) -> tuple[str, float]:
    """The activation nearest to what these rows compute at the samples, and how far it is."""
    found = _computed(rows)[_MIDDLE]
    expected = {kind: _computed(_defined(kind))[_MIDDLE] for kind in KINDS}
    distances = {
        kind: float(np.max(np.abs(found - values) / (1 + np.abs(values))))
        for kind, values in expected.items()
    }
    kind = min(distances, key=lambda each: (math.isnan(distances[each]), distances[each]))
    return kind, distances[kind]


@lru_cache(maxsize=4096)
def _is(rows: tuple[Row, ...], kind: str) -> bool:
    """Whether the rows compute this activation of every number, NaN and infinity included."""
    definition = _defined(kind)
    try:
        same = all(formula_of(rows, side) == formula_of(definition, side) for side in SIDES)
    except NoFormula:
        return False
    both = (_computed(each) for each in (rows, definition))
    return same and np.allclose(*both, rtol=_NEARLY, atol=_NEARLY, equal_nan=True)


@lru_cache(maxsize=16)
def _defined(kind: str) -> tuple[Row, ...]:
    """The rows of an activation's definition."""
    graph = runtime.framework().trace(lambda x: [KINDS[kind](x)], (Type("f32", ()),))
    (result,) = graph.outputs
    return tuple(_rows(_chain(result.op), graph.inputs[0]))


@lru_cache(maxsize=4096)
def _computed(rows: tuple[Row, ...]) -> np.ndarray:
    """What the rows compute at the samples, in f32 whatever floats they name."""
    with jax.ensure_compile_time_eval():
        return np.asarray(jax.jit(lambda x: _at(x, rows))(_SAMPLES), np.float32)


def _at(samples: Any, rows: tuple[Row, ...]) -> Any:
    results: dict[int, Any] = {-1: samples}
    for i, (name, args, attrs, _) in enumerate(rows):
        arrays = [
            results[value] if what == "row" else jnp.full_like(samples, value)
            for what, value, _ in args
        ]
        if name == "convert_element_type":
            results[i] = arrays[0]
            continue
        if name == "select_n":
            arrays[0] = arrays[0].astype(bool)
        results[i] = opdef.lookup(name).reference(*arrays, **dict(attrs))
    return results[len(rows) - 1]


@local(
    "mul",
    example=lambda x, y: Traced["activate"](x, kind="silu") * y,
    types=("f32[2,8]", "f32[2,8]"),
)
def gated(op: Op) -> Outcome:
    """activate(x) * y  ->  gate(x, y), of real numbers: complex products round by their order"""
    if dtypes.is_complex(op.types[0].dtype):
        return None
    for one, other in (op.args, op.args[::-1]):
        if one.op.name == "activate" and one.type == other.type:
            return make("gate", one.op.args[0], other, kind=one.op["kind"])
    return None
