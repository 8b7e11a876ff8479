"""Activations, recognised by the function that they compute.

A chain of elementwise ops with one input and one output is a function of a single number. Its
values at a few dozen samples are compared with those of the named activations, to find the nearest.
That the two are the same function is then proven by their formulas (`formulas.py`) for all
positive and all negative numbers, and checked at zero, infinity and NaN. So every spelling of GELU
is the same activation, and a clipped GELU is none.
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

_NEARLY = 0.05  # relative distance up to which a function is a near miss
_LONGEST = 24  # ops; more than in the longest spelling of an activation
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
    if all(opdef.traits(link).linear for link in chain):
        return None  # a sum of products of what it reads
    nearest: Outcome = None
    for source in _bottlenecks(op, chain):
        rows = tuple(_rows(chain, source))
        if not all(map(_of_reals, rows)):
            continue
        kind, distance = _nearest(rows)
        if _computes(rows, kind):
            return in_dtype(make("activate", source, kind=kind), op.types[0].dtype)
        if distance < _NEARLY:
            nearest = Miss(f"it is near {kind}, with relative differences up to {distance:.1g}", 5)
    return nearest


def _chain(op: Op) -> list[Op]:
    """`op` and the elementwise ops upstream of it, users first, at most `_LONGEST`."""
    order: list[Op] = []
    seen: set[Op] = set()

    def visit(link: Op) -> None:
        seen.add(link)
        for arg in link.args:
            if arg.op.name in lax.MAPS and arg.op not in seen and len(seen) < _LONGEST:
                visit(arg.op)
        order.append(link)

    visit(op)
    return order[::-1]


def _bottlenecks(op: Op, chain: list[Op]) -> list[Value]:
    """The values that the chain is a function of, nearest to its end first."""
    bottlenecks: list[Value] = []
    unread = _arrays_read(op)
    for link in chain[1:]:
        if len(unread) == 1:
            bottlenecks += unread
        if link.results[0] in unread:
            unread = (unread - {link.results[0]}) | _arrays_read(link)
    bottlenecks += unread if len(unread) == 1 else ()
    return [x for x in dict.fromkeys(bottlenecks) if x.type.shape == op.types[0].shape]


def _arrays_read(op: Op) -> set[Value]:
    return {arg for arg in op.args if number(arg) is None}


# An op of a chain: its name, its arguments, its attributes and the dtype of its result. An argument
# is ("row", index of an earlier row, dtype), where -1 is the input of the chain, or
# ("number", constant, dtype).
Row = tuple[str, tuple[tuple[str, Any, str], ...], tuple, str]


def _rows(chain: list[Op], source: Value) -> Iterator[Row]:
    """The part of the chain from `source` to its end. Equal functions may have equal rows, so rows
    are the keys of what is remembered."""
    place: dict[Value, int] = {source: -1}
    needed = {chain[0]}
    for op in chain:
        if op in needed:
            needed |= {arg.op for arg in op.args if arg != source}
    for op in reversed(chain):
        if op not in needed:
            continue
        args = tuple(
            ("row", place[arg], arg.type.dtype)
            if arg in place
            else ("number", number(arg), arg.type.dtype)
            for arg in op.args
        )
        yield op.name, args, op.attrs, op.types[0].dtype
        place[op.results[0]] = len(place) - 1


def _of_reals(row: Row) -> bool:
    """Whether an op reads real numbers only, apart from the boolean of a selection."""
    name, args, *_ = row
    dtypes_read = [dtype for _, _, dtype in args]
    if name == "select_n" and dtypes_read.pop(0) != "bool":
        return False
    return all(dtype in REALS for dtype in dtypes_read)


@lru_cache(maxsize=4096)
def _nearest(rows: tuple[Row, ...]) -> tuple[str, float]:
    """The activation nearest to these rows at the samples, and its relative distance."""
    actual = _computed(rows)[_MIDDLE]
    expected = {kind: _computed(_definition(kind))[_MIDDLE] for kind in KINDS}
    distances = {
        kind: float(np.max(np.abs(actual - values) / (1 + np.abs(values))))
        for kind, values in expected.items()
    }
    kind = min(distances, key=lambda kind: (math.isnan(distances[kind]), distances[kind]))
    return kind, distances[kind]


@lru_cache(maxsize=4096)
def _computes(rows: tuple[Row, ...], kind: str) -> bool:
    """Whether the rows compute this activation of every number, NaN and infinity included."""
    definition = _definition(kind)
    try:
        same = all(formula_of(rows, side) == formula_of(definition, side) for side in SIDES)
    except NoFormula:
        return False
    values = (_computed(function) for function in (rows, definition))
    return same and np.allclose(*values, rtol=_NEARLY, atol=_NEARLY, equal_nan=True)


@lru_cache(maxsize=16)
def _definition(kind: str) -> tuple[Row, ...]:
    """The rows of an activation's definition."""
    graph = runtime.framework().trace(lambda x: [KINDS[kind](x)], (Type("f32", ()),))
    (result,) = graph.outputs
    return tuple(_rows(_chain(result.op), graph.inputs[0]))


@lru_cache(maxsize=4096)
def _computed(rows: tuple[Row, ...]) -> np.ndarray:
    """The values of the rows at the samples, in f32 whatever dtypes they name."""
    with jax.ensure_compile_time_eval():
        return np.asarray(_at(jnp.asarray(_SAMPLES), rows), np.float32)


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
    "square",
    example=lambda x: jnp.square(Traced["activate"](x, kind="relu")),
    types=("f32[2,8]",),
)
def squared(op: Op) -> Outcome:
    """square(activate(x))  ->  activate(x) squared, of relu (So et al. 2021, section 3)"""
    inner = op.args[0].op
    if inner.get("kind") != "relu" or len(inner.args) > 1:
        return None
    return make("activate", *inner.args, kind="relu_squared")


@local(
    "mul",
    example=lambda x, y: Traced["activate"](x, kind="silu") * y,
    types=("f32[2,8]", "f32[2,8]"),
)
def gated(op: Op) -> Outcome:
    """activate(x) * y  ->  gate(x, y), of real numbers: rounding makes complex products depend on
    the order of their factors"""
    if dtypes.is_complex(op.types[0].dtype):
        return None
    for activated, factor in (op.args, op.args[::-1]):
        if activated.op.name == "activate" and activated.type == factor.type:
            return make("gate", activated.op.args[0], factor, kind=activated.op["kind"])
    return None
