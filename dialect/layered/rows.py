"""Per-layer state: splits a stacked state that is written row by row into its rows.

Libraries that keep the caches of all layers in one array write it at constant rows,

    c1 = cache_write(c, new, 0, t);  k0 = c1[0];  c2 = cache_write(c1, new', 1, t);  k1 = c2[1] ...

so that every layer depends on the writes of all layers before it. After the split every layer has
its cache, and the array is stacked again where an op reads it.
"""

from __future__ import annotations

from collections.abc import Iterable

from dialect.normal.normal_form import EXACT_RULES, normal_form, reshaped
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, make, with_args


def rows_apart(graph: Graph, states: Iterable[Value]) -> Graph:
    """`graph` with every state that is written row by row split into rows; else `graph` itself."""
    rows = {value: build("unstack", value, axis=0).results for value in _by_rows(graph, states)}
    if not rows:
        return graph
    memo = {value: value for value in graph.inputs}

    def stacked(value: Value) -> Value:
        if value not in memo:
            memo[value] = make("stack", *rows[value], axis=0)
        return memo[value]

    for op in graph.ops:
        number = _written_row(op) if op.args and op.args[0] in rows else None
        if number is not None:
            before = rows[op.args[0]]
            new = _new_row(op, before[number], [stacked(arg) for arg in op.args[1:]])
            rows[op.results[0]] = (*before[:number], new, *before[number + 1 :])
            continue
        number = _read_row(op) if op.args and op.args[0] in rows else None
        if number is not None:
            memo[op.results[0]] = reshaped(rows[op.args[0]][number], op.types[0].shape)
            continue
        moved = with_args(op, tuple(stacked(arg) for arg in op.args))
        memo.update(zip(op.results, moved.results))
    rewritten = Graph(graph.inputs, tuple(stacked(value) for value in graph.outputs))
    return normal_form(rewritten, rules=EXACT_RULES)


def _by_rows(graph: Graph, states: Iterable[Value]) -> list[Value]:
    """The states with all rows written one by one."""
    source = {value: value for value in states if value.type.rank}
    written: dict[Value, set[int]] = {value: set() for value in source}
    for op in graph.ops:
        number = _written_row(op) if op.args and op.args[0] in source else None
        if number is not None:
            source[op.results[0]] = source[op.args[0]]
            written[source[op.args[0]]].add(number)
    return [value for value, rows in written.items() if len(rows) == value.type.shape[0] > 0]


def _written_row(op: Op) -> int | None:
    """The constant row that an op writes; None for any other op."""
    if op.name == "cache_write" and op["axes"][0] == 0 and op.args[1].type.shape[0] == 1:
        row = _number(op.args[2])
    elif op.name == "cache_put" and op["axis"] == 0 and op.args[2].type.shape == (1,):
        row = _number(op.args[2])
    else:
        return None
    return row if row is not None and 0 <= row < op.types[0].shape[0] else None


def _number(value: Value) -> int | None:
    """The number that a value is: a constant, or an element of an unstacked counter."""
    if value.op.name == "unstack" and value.op.args[0].op.name == "iota":
        return value.index if not value.type.shape else None
    if value.op.name != "const":
        return None
    number = value.op["value"]
    number = number[0] if isinstance(number, tuple) and len(number) == 1 else number
    return number if type(number) is int else None


def _new_row(op: Op, row: Value, args: list[Value]) -> Value:
    new = reshaped(args[0], row.type.shape if len(args) == 2 else args[0].type.shape[1:])
    if len(args) == 2:
        return new
    axes = tuple(axis - 1 for axis in op["axes"][1:])
    return make("cache_write", row, new, *args[2:], axes=axes, origin=op.origin)


def _read_row(op: Op) -> int | None:
    """The constant row that an op reads; None for any other op."""
    if op.name == "cache_read":
        row = _number(op.args[1])
        return row if row is not None and 0 <= row < op.args[0].type.shape[0] else None
    if op.name != "slice" or op.get("strides"):
        return None
    row, *first = op["start_indices"]
    is_whole = op["limit_indices"] == (row + 1, *op.args[0].type.shape[1:]) and not any(first)
    return row if is_whole else None
