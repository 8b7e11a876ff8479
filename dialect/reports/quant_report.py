"""Quantisation report per parameter: bytes before and after, and the error of the weights.

    packed(program)             bytes, and why a parameter was not quantised
    errors(program, params)     the error of every quantised parameter

Both take a program that is staged or not. A parameter is quantised if an op `quantize` reads a
value that depends on parameters only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import evaluate
from dialect.display.tables import Table
from dialect.jaxprs.jaxpr import trace_graph
from dialect.ops.control import remade_scan, scan_parts
from dialect.ops.quant import dequantize
from dialect.staging.parameter_paths import Paths, paths_in, paths_inside
from rewrite.errors import PipelineError
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import substitute
from rewrite.program import LEFT_ALONE, Program

_NOT_READ = "no product reads it as its weight"


@dataclass(frozen=True)
class Packed:
    """A parameter, or several that share one packed weight: bytes before and after.

    `form` is the integer form and the group size of scales, `int4/64`. It is empty if the parameter
    was not quantised, for this `reason`.
    """

    name: str
    form: str
    before_bytes: int
    after_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Error:
    """The error of a parameter's quantised weights.

    `max` and `rms` are in the unit of the weights; `snr_db` is 10 log10(sum w² / sum error²).
    """

    name: str
    form: str
    max: float
    rms: float
    snr_db: float

    def facts(self) -> dict[str, Any]:
        """The error as data for JSON, with None for an infinite ratio."""
        ratio = self.snr_db if math.isfinite(self.snr_db) else None
        return asdict(self) | {"snr_db": ratio}


@dataclass(frozen=True)
class _Quantised:
    """An op `quantize`, the parameters that it reads, and its executions in loops."""

    op: Op
    names: frozenset[str]
    trips: int

    @property
    def form(self) -> str:
        """`int4/64`: a scale per 64 numbers."""
        return f"{self.op['form']}/{self.op.types[0].size // self.op.types[1].size}"

    @property
    def bytes(self) -> int:
        return self.trips * sum(type_.bytes for type_ in self.op.types)


def packed(program: Program) -> tuple[Packed, ...]:
    """The parameters of a program, in order; those that share a packed weight in one row."""
    params = [input_ for input_ in program.inputs if input_.role == "param"]
    sizes = {input_.name: input_.type.bytes for input_ in params}
    reasons = dict(_reasons(program))
    by_names: dict[frozenset[str], list[_Quantised]] = {}
    for weight in _quantised(*_bound_graph(program)):
        by_names.setdefault(weight.names, []).append(weight)
    rows = {
        min(names, key=list(sizes).index): Packed(
            name=", ".join(sorted(names)),
            form=", ".join(dict.fromkeys(weight.form for weight in several)),
            before_bytes=sum(sizes[name] for name in names),
            after_bytes=sum(weight.bytes for weight in several),
        )
        for names, several in by_names.items()
    }
    taken = frozenset().union(*by_names)
    for name, size in sizes.items():
        if name not in taken:
            rows[name] = Packed(name, "", size, size, reasons.get(name, _NOT_READ))
    return tuple(rows[name] for name in sizes if name in rows)


def errors(program: Program, params: Any) -> tuple[Error, ...]:
    """The error of every quantised parameter. `params` is the user's pytree of originals."""
    graph, names = _bound_graph(program)
    measured_ = list(_errors(graph, names))
    leaves = jax.tree.leaves(params)
    order = [value for value in graph.inputs if value in names]
    measured = evaluate(Graph(tuple(order), tuple(value for _, value in measured_)), leaves)
    return tuple(map(_error, (weight for weight, _ in measured_), map(np.asarray, measured)))


def packed_table(rows: Sequence[Packed]) -> Table:
    """A row per parameter; equal rows of unrolled layers are merged."""
    equal: dict[tuple[str, str, str], list[Packed]] = {}
    for row in rows:
        place = re.sub(r"\d+", "#", row.name)
        equal.setdefault((place, row.form, row.reason), []).append(row)
    shown = [
        (_counted(place, several), form or "as it is", *_bytes(several), reason)
        for (place, form, reason), several in equal.items()
    ]
    total = ("all", "", *_bytes(rows), "")
    columns = ("parameter", "form", ">bytes", ">packed", ">of them", "left alone because")
    return Table("quantised weights", columns, (*shown, total))


def error_table(rows: Sequence[Error], of: str = "") -> Table:
    """A row per parameter; `of` names the configuration in the title."""
    columns = ("parameter", "form", ">max error", ">rms error", ">signal to noise")
    shown = (
        (row.name, row.form, f"{row.max:.3g}", f"{row.rms:.3g}", f"{row.snr_db:.1f} dB")
        for row in rows
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
        yield from (
            (remark.of, remark.text) for remark in step.remarks if remark.kind == LEFT_ALONE
        )


def _bound_graph(program: Program) -> tuple[Graph, Paths]:
    """(the graph that reads the originals, their names). Raises PipelineError for a lowered one."""
    if any(step.name == "lower" for step in program.history):
        hint = "give a program that has not been through `lower`"
        raise PipelineError("a lowered program does not show its quantised weights", hint=hint)
    graph = program.stages.prepare if program.stages else program.graph
    params = [input_ for input_ in program.inputs if input_.role == "param"]
    values = graph.inputs if program.stages else program.values("param")
    return graph, {value: frozenset({input_.name}) for value, input_ in zip(values, params)}


def _quantised(graph: Graph, names: Paths, trips: int = 1) -> Iterator[_Quantised]:
    paths = paths_in(graph, names)
    for op in graph.ops:
        if op.name == "quantize" and op.results[0] in paths:
            yield _Quantised(op, paths[op.args[0]], trips)
        elif op.name == "scan":
            inner = paths_inside(op, paths)
            yield from _quantised(op.regions[0], inner, trips * op["length"])


def _errors(graph: Graph, names: Paths) -> Iterator[tuple[_Quantised, Value]]:
    """(quantised weight, value [..., 4] of max|e|, sum e², sum w², count).

    Those of a loop body are computed by another loop.
    """
    paths = paths_in(graph, names)
    for op in graph.ops:
        if op.name == "quantize" and op.results[0] in paths:
            args = (op.args[0], *op.results)
            measured = partial(_measured, axes=op["axes"])
            measure = trace_graph(measured, *(struct_of(arg.type) for arg in args))
            yield _Quantised(op, paths[op.args[0]], 1), substitute(measure, args)[0]
        elif op.name == "scan":
            body = op.regions[0]
            inner = list(_errors(body, paths_inside(op, paths)))
            if not inner:
                continue
            consts, carry, xs = scan_parts(op)
            inputs = (*body.inputs[consts], *body.inputs[xs])
            loop = Graph(inputs, tuple(value for _, value in inner))
            results = remade_scan(op, loop, op.args[consts], (), op.args[xs])
            yield from zip((weight for weight, _ in inner), results.results)


def _measured(weights: Any, q: Any, scale: Any, axes: tuple[int, ...]) -> list[Any]:
    wide = weights.astype(jnp.float32)
    error = jnp.abs(dequantize(q, scale, axes=axes, dtype=jnp.float32) - wide)
    sums = jnp.max(error), jnp.sum(error**2), jnp.sum(wide**2), jnp.float32(error.size)
    return [jnp.stack(sums)]


def _error(weight: _Quantised, measured: np.ndarray) -> Error:
    rows = measured.reshape(-1, 4).astype(np.float64)
    noise, signal, count = rows[:, 1:].sum(axis=0)
    ratio = signal / noise if noise else math.inf
    return Error(
        name=", ".join(sorted(weight.names)),
        form=weight.form,
        max=float(rows[:, 0].max()),
        rms=math.sqrt(noise / count),
        snr_db=10 * math.log10(ratio) if ratio > 0 else -math.inf,
    )
