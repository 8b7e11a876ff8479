"""What quantisation saves and costs, parameter by parameter: bytes, and the error of the weights.

    packed(program)             bytes before and after, and why a parameter was left alone
    errors(program, params)     the error of each quantised parameter

Both read the program as it stands, staged or not: a parameter is quantised where an op `quantize`
reads what was made of it alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import evaluate
from dialect.display.tables import Table
from dialect.jaxprs.jaxpr import trace_graph
from dialect.ops.control import remade_scan, scan_parts
from dialect.staging.parameter_paths import Paths, paths_in, paths_inside
from rewrite.errors import PipelineError
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import substitute
from rewrite.program import LEFT_ALONE, Program

_NOT_READ = "no product reads it as its weight"


@dataclass(frozen=True)
class Packed:
    """A parameter, or several that one packed weight is made of: bytes before and after.

    `form` is that of its numbers and how many of them share a scale, `int4/64`; empty for what was
    left alone, of which `reason` says why.
    """

    name: str
    form: str
    before_bytes: int
    after_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Error:
    """How far a parameter's quantised weights are from the weights themselves.

    `max` and `rms` are in the weights' own units; `snr_db` is 10 log10(sum w² / sum error²).
    """

    name: str
    form: str
    max: float
    rms: float
    snr_db: float

    def facts(self) -> dict[str, Any]:
        """For machines: what has no noise has no ratio."""
        ratio = self.snr_db if math.isfinite(self.snr_db) else None
        return asdict(self) | {"snr_db": ratio}


@dataclass(frozen=True)
class _Found:
    """An op `quantize`: the parameters that it reads, and how often its loops run it."""

    op: Op
    names: frozenset[str]
    trips: int

    @property
    def form(self) -> str:
        """`int4/64`: 64 numbers share a scale."""
        return f"{self.op['form']}/{self.op.types[0].size // self.op.args[1].type.size}"

    @property
    def bytes(self) -> int:
        return self.trips * (self.op.types[0].bytes + self.op.args[1].type.bytes)


def packed(program: Program) -> tuple[Packed, ...]:
    """Every parameter of a program, in its order; those that share a packed weight together."""
    params = [each for each in program.inputs if each.role == "param"]
    sizes = {each.name: each.type.bytes for each in params}
    reasons = dict(_reasons(program))
    by_names: dict[frozenset[str], list[_Found]] = {}
    for found in _quantised(*_bound_graph(program)):
        by_names.setdefault(found.names, []).append(found)
    rows = {
        min(names, key=list(sizes).index): Packed(
            name=", ".join(sorted(names)),
            form=", ".join(dict.fromkeys(each.form for each in several)),
            before_bytes=sum(sizes[name] for name in names),
            after_bytes=sum(each.bytes for each in several),
        )
        for names, several in by_names.items()
    }
    taken = frozenset().union(*by_names)
    for name, size in sizes.items():
        if name not in taken:
            rows[name] = Packed(name, "", size, size, reasons.get(name, _NOT_READ))
    return tuple(rows[name] for name in sizes if name in rows)


def errors(program: Program, params: Any) -> tuple[Error, ...]:
    """The error of every quantised parameter. `params` is the user's own pytree."""
    graph, names = _bound_graph(program)
    found = list(_errors(graph, names))
    leaves = jax.tree.leaves(params)
    order = [value for value in graph.inputs if value in names]
    measured = evaluate(Graph(tuple(order), tuple(value for _, value in found)), leaves)
    return tuple(map(_error, (each for each, _ in found), map(np.asarray, measured)))


def packed_table(rows: Sequence[Packed]) -> Table:
    """A row for each parameter; one for all layers that are written out and fare alike."""
    alike: dict[tuple[str, str, str], list[Packed]] = {}
    for each in rows:
        place = re.sub(r"\d+", "#", each.name)
        alike.setdefault((place, each.form, each.reason), []).append(each)
    shown = [
        (_counted(place, several), form or "as it is", *_bytes(several), reason)
        for (place, form, reason), several in alike.items()
    ]
    total = ("all", "", *_bytes(rows), "")
    columns = ("parameter", "form", ">bytes", ">packed", ">of them", "left alone because")
    return Table("quantised weights", columns, (*shown, total))


def error_table(rows: Sequence[Error], of: str = "") -> Table:
    """A row for each parameter; `of` names the parameters as a whole."""
    columns = ("parameter", "form", ">max error", ">rms error", ">signal to noise")
    shown = (
        (each.name, each.form, f"{each.max:.3g}", f"{each.rms:.3g}", f"{each.snr_db:.1f} dB")
        for each in rows
    )
    title = "errors of quantised weights" + (f", {of}" if of else "")
    return Table(title, columns, tuple(shown))


def _counted(place: str, rows: Sequence[Packed]) -> str:
    return f"{place} ({len(rows)} times)" if len(rows) > 1 else rows[0].name


def _bytes(rows: Sequence[Packed]) -> tuple[str, str, str]:
    before, after = sum(r.before_bytes for r in rows), sum(r.after_bytes for r in rows)
    return f"{before:,}", f"{after:,}", f"{after / max(1, before):.1%}"


def _reasons(program: Program) -> Iterator[tuple[str, str]]:
    for step in program.history:
        yield from ((each.of, each.text) for each in step.remarks if each.kind == LEFT_ALONE)


def _bound_graph(program: Program) -> tuple[Graph, Paths]:
    """The graph that reads the parameters, and their names. Raises PipelineError."""
    if any(step.name == "lower" for step in program.history):
        hint = "ask for a program that has not been through `lower`"
        raise PipelineError("a lowered program does not tell its quantised weights", hint=hint)
    graph = program.stages.prepare if program.stages else program.graph
    params = [each for each in program.inputs if each.role == "param"]
    values = graph.inputs if program.stages else program.values("param")
    return graph, {value: frozenset({each.name}) for value, each in zip(values, params)}


def _quantised(graph: Graph, names: Paths, trips: int = 1) -> Iterator[_Found]:
    paths = paths_in(graph, names)
    for op in graph.ops:
        if op.name == "quantize" and op.results[0] in paths:
            yield _Found(op, paths[op.args[0]], trips)
        elif op.name == "scan":
            inner = paths_inside(op, paths)
            yield from _quantised(op.regions[0], inner, trips * op["length"])


def _errors(graph: Graph, names: Paths) -> Iterator[tuple[_Found, Value]]:
    """Each quantised weight with a value [..., 4]: max|e|, sum e², sum w², and how many.

    Those of a loop's body are computed by a loop that does nothing else.
    """
    paths = paths_in(graph, names)
    for op in graph.ops:
        if op.name == "quantize" and op.results[0] in paths:
            args = (op.args[0], op.results[0], op.args[1])
            measure = trace_graph(_measured, *(struct_of(arg.type) for arg in args))
            yield _Found(op, paths[op.args[0]], 1), substitute(measure, args)[0]
        elif op.name == "scan":
            body = op.regions[0]
            inner = list(_errors(body, paths_inside(op, paths)))
            if not inner:
                continue
            consts, carry, xs = scan_parts(op)
            inputs = (*body.inputs[consts], *body.inputs[xs])
            loop = Graph(inputs, tuple(value for _, value in inner))
            made = remade_scan(op, loop, op.args[consts], (), op.args[xs])
            yield from zip((each for each, _ in inner), made.results)


def _measured(weights: Any, q: Any, scale: Any) -> list[Any]:
    wide = weights.astype(jnp.float32)
    error = jnp.abs(q.astype(jnp.float32) * scale - wide)
    sums = jnp.max(error), jnp.sum(error**2), jnp.sum(wide**2), jnp.float32(error.size)
    return [jnp.stack(sums)]


def _error(found: _Found, measured: np.ndarray) -> Error:
    rows = measured.reshape(-1, 4).astype(np.float64)
    noise, signal, count = rows[:, 1:].sum(axis=0)
    ratio = signal / noise if noise else math.inf
    return Error(
        name=", ".join(sorted(found.names)),
        form=found.form,
        max=float(rows[:, 0].max()),
        rms=math.sqrt(noise / count),
        snr_db=10 * math.log10(ratio) if ratio > 0 else -math.inf,
    )
