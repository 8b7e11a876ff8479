"""carry_cache: a cache that a loop over layers scans becomes a carry of the loop.

scan(layer: cache[l] -> cache_write(cache[l], new, t))
  ->  scan(carry: cache -> cache_write(cache, new, l, t); reads are cache_read(cache, l))

and likewise for `cache_put`, which has a position for every sequence. A cache that is a scanned
input and output is copied twice a step; a cache that is carried and updated in place at
(layer, position) is not copied. A state that is computed anew, from what it was as those of linear
attention and of state spaces are, or not, is carried too: its layer is written whole. A loop that
indexes layers by a counter first becomes a scan over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dialect.caching.carried_stacks import stack_of_trips
from dialect.caching.scanned_views import views_of_rows
from dialect.normal.normal_form import EXACT_RULES, normal_form, reshaped
from dialect.ops.control import remade_scan, scan_parts
from dialect.ops.lookups import DROP
from dialect.recognition.stacked_pools import behind, one_pool, pages_of_layer
from rewrite.dataflow import dependents, rebuilt
from rewrite.driver import Report, rewrite
from rewrite.ir import Graph, Op, Symbol, Type, Value, new_input
from rewrite.opdef import make, traits, with_args
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Rule
from rewrite.target import Target

_INDEX = Type("i32", ())


@dataclass(frozen=True)
class CarryCache(Pass):
    """Carries caches through loops and updates them in place."""

    keeps: ClassVar[str] = "bits"
    rewrites: ClassVar[tuple[Rule, ...]] = (stack_of_trips, views_of_rows)

    def run(self, program: Program, target: Target) -> Program:
        notes: list[str] = []
        report = Report()
        graph = rewrite(program.graph, self.rewrites, report)
        graph = normal_form(graph, rules=EXACT_RULES) if report.fired else graph
        pairs = zip(program.step_outputs, graph.outputs)
        updates = {graph.inputs[out.updates]: x for out, x in pairs if out.updates is not None}
        graph = rewrite(_carried(graph, updates, notes), [pages_of_layer])
        return self.recorded(program.with_graph(graph), *notes)


def _carried(graph: Graph, updates: Mapping[Value, Value], notes: list[str]) -> Graph:
    """`graph` with carried caches; `updates` are the states that it has and what they become."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        regions = tuple(_carried(region, {}, notes) for region in op.regions)
        moved = with_args(op, args, regions)
        if op.name != "scan":
            return moved.results
        return _carry_through(moved, _replaced(op, updates), notes)

    return rebuilt(graph, visit)


def _replaced(loop: Op, updates: Mapping[Value, Value]) -> dict[int, int]:
    """The results of a loop, by number, that its arguments become: states, or stacks of them."""
    pairs = {}
    for position, arg in enumerate(loop.args):
        entering = arg.op.args if traits(arg.op).new_axis else (arg,)
        leaving = [updates.get(value) for value in entering]
        if None in leaving:
            continue
        rows = leaving[0].op
        results = rows.args if leaving == list(rows.results) and rows is not loop else leaving
        if [result.op for result in results] == [loop]:
            pairs[position] = results[0].index
    return pairs


@dataclass
class _Cache:
    """A cache that the loop scans: its layer in the body, the stack of all layers, the number of
    its output, and the op that writes into it; None where the layer is computed anew."""

    slice: Value
    stack: Value
    output: int
    write: Op | None


def _carry_through(op: Op, replaced: Mapping[int, int], notes: list[str]) -> tuple[Value, ...]:
    body = op.regions[0]
    consts, carry, xs = (list(op.args[part]) for part in scan_parts(op))
    caches = _caches(op, body, replaced, len(consts) + len(carry))
    if not caches:
        return op.results
    layers = make("iota", dtype=Symbol("i32"), shape=(op["length"],), dimension=0)
    index = new_input(_INDEX)
    stacks = [new_input(cache.stack.type) for cache in caches]
    new_body = _body(body, caches, index, stacks, len(carry))
    scanned = body.inputs[len(consts) + len(carry) :]
    gone = {cache.slice for cache in caches}
    pairs = [(value, arg) for value, arg in zip(scanned, xs) if value not in gone]
    inputs = (*body.inputs[: len(consts) + len(carry)], *stacks, *(v for v, _ in pairs), index)
    loop = remade_scan(
        op,
        Graph(inputs, new_body),
        consts,
        [*carry, *(cache.stack for cache in caches)],
        [*(arg for _, arg in pairs), layers],
    )
    carried = len(carry) + len(caches)
    remaining = iter(loop.results[carried:])
    at = {cache.output: loop.results[len(carry) + i] for i, cache in enumerate(caches)}
    ys = [at[i] if i in at else next(remaining) for i in range(len(carry), len(op.types))]
    notes += _told(caches, op["length"])
    return (*loop.results[: len(carry)], *ys)


def _told(caches: Sequence[_Cache], length: int) -> Iterator[str]:
    """How many caches, and states that are computed anew, a loop carries."""
    anew = sum(cache.write is None for cache in caches)
    for count, what in ((len(caches) - anew, "caches"), (anew, "states that are computed anew")):
        if count:
            yield f"{count} {what} carried through a loop of {length}"


def _caches(op: Op, body: Graph, replaced: Mapping[int, int], first: int) -> list[_Cache]:
    caches: list[_Cache] = []
    stacked = set(range(op["carry"], len(op.types)))
    for position, value in enumerate(body.inputs[first:], first):
        updates = dependents(body, [value])
        free = stacked - {cache.output for cache in caches}  # one state may enter twice
        wanted = {replaced[position]} if position in replaced else stacked - {*replaced.values()}
        for output in sorted(wanted & free):
            new, stack = body.outputs[output], op.args[position]
            write, is_same = new.op, op.types[output] == stack.type
            known = traits(write)
            is_written = known.of_cache and known.writes > 0 and write.args[0] == value
            is_state = value.type.rank > 1 and is_same and (position in replaced or new in updates)
            if is_written or is_state:
                caches.append(_Cache(value, stack, output, write if is_written else None))
                break
    return caches


def _written(op: Op, stack: Value, index: Value, new: Value, *positions: Value) -> Value:
    """The `cache_write` of one layer, into the stack of all layers."""
    axes = (0, *(axis + 1 for axis in op["axes"]))
    row = reshaped(new, (1, *new.type.shape))
    origin = op.origin.then("carry_cache")
    return make("cache_write", stack, row, index, *positions, axes=axes, origin=origin)


def _put(op: Op, stack: Value, index: Value, new: Value, positions: Value) -> Value:
    """The `cache_put` of one layer, into the stack of all layers."""
    origin, axis = op.origin.then("carry_cache"), op["axis"] + 1
    return make(
        "cache_put", stack, new, positions, index, axis=axis, mode=op["mode"], origin=origin
    )


def _put_in_pages(
    op: Op, stack: Value, index: Value, new: Value, table: Value, places: Value
) -> Value:
    """The `page_put` of one layer, into the pool of all layers."""
    numbers, how = behind(table, index, stack, DROP), dict(op.attrs)
    origin = op.origin.then("carry_cache")
    put = make("page_put", one_pool(stack), new, numbers, places, **how, origin=origin)
    return reshaped(put, stack.type.shape)


def _stored(op: Op, stack: Value, *args: Value) -> Value:
    """The write of one layer, into the stack of all layers."""
    store = _put_in_pages if op.get("behind") is not None else _put
    return (store if op.get("mode") else _written)(op, stack, *args)


def _body(
    body: Graph, caches: list[_Cache], index: Value, stacks: list[Value], carry: int
) -> tuple[Value, ...]:
    """The outputs of the new body: carries, updated caches, and the other scanned outputs."""
    memo = {value: value for value in body.inputs}
    updated: dict[int, Value] = {}
    by_write = {cache.write: (cache, stack) for cache, stack in zip(caches, stacks) if cache.write}
    for cache, stack in zip(caches, stacks):
        memo[cache.slice] = make("cache_read", stack, index)
    for op in body.ops:
        args = tuple(memo[arg] for arg in op.args)
        if op not in by_write:
            memo.update(zip(op.results, with_args(op, args).results))
            continue
        cache, stack = by_write[op]
        stored = _stored(op, stack, index, *args[1:])
        updated[cache.output] = stored
        memo[op.results[0]] = make("cache_read", stored, index)
    for cache, stack in zip(caches, stacks):
        if cache.write is None:
            row = memo[body.outputs[cache.output]]
            row = reshaped(row, (1, *row.type.shape))
            updated[cache.output] = make("cache_write", stack, row, index, axes=(0,))
    remaining = [i for i in range(carry, len(body.outputs)) if i not in updated]
    return (
        *(memo[value] for value in body.outputs[:carry]),
        *(updated[cache.output] for cache in caches),
        *(memo[body.outputs[i]] for i in remaining),
    )
