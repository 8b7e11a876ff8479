"""Layers that are left out: what they would add to the residual stream is not computed.

x + f(x, w)        ->  x                           of a layer that is written out
scan(body, x, ws)  ->  scan(body, x, ws[kept])     of layers in a loop

A state that only a layer which is left out writes stays as it came. Where a loop scans it, its rows
leave the loop, and come back as zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dialect.jaxprs.jaxpr import constant
from dialect.layered.layers import Layers, find_layers
from dialect.normal.normal_form import reshaped
from dialect.normal.trips import counters_of
from dialect.ops.control import remade_scan, scan_parts
from rewrite import opdef
from rewrite.dataflow import bound_values, dependents
from rewrite.ir import Graph, Op, Type, Value, attrs_of, new_input, replace_values
from rewrite.opdef import make, substitute, with_args
from rewrite.program import Program
from rewrite.rules import FLOATS

Rows = Sequence[int] | Value  # of layers that are kept: known, or i32[rows] of the weights


class NotLeftOut(Exception):
    """A layer that cannot be left out; the message says why, and at which line."""


@dataclass(frozen=True, eq=False)
class Place:
    """Layers from number `first` on: those of a loop, or these segments of the trunk. So many are
    left out together: a trip, or those between which more than the residual stream passes."""

    first: int
    loop: Op | None
    together: int = 1
    segments: range = range(0)

    @property
    def numbers(self) -> range:
        """The layers, as they follow one another."""
        trips = self.loop["length"] if self.loop else 1
        return range(self.first, self.first + trips * self.together)


def places_of(program: Program, layers: Layers) -> list[Place]:
    """Where the layers of a program are, in order. Raises NotLeftOut where some are in a loop and
    some are not, and these are not told apart."""
    places = list[Place]()
    for loop, segments in _found(program, layers):
        first = places[-1].numbers.stop if places else 0
        inside = [op for number in segments for op in layers.segments[number].ops]
        places.append(
            Place(first, loop, _attentions(loop.regions[0].ops if loop else inside), segments)
        )
    return places


def _found(program: Program, layers: Layers) -> list[tuple[Op | None, range]]:
    """The loops over layers, and the segments of every layer that is in none, in order."""
    loops = loops_of(program)
    if loops and not _has_layers_outside(program):
        return [(loop, range(0)) for loop in loops]
    found = list[tuple[Op | None, range]]()
    for piece in layers.pieces:
        ends = [layers.segments[number].end.op for number in piece]
        found += [(op, range(0)) for op in ends if op in loops] or [(None, piece)]
    if loops and ({*loops} - {loop for loop, _ in found} or not found[-1][0]):
        raise NotLeftOut(
            "some layers are in a loop, and where those behind it end is not known: "
            "it is known in front of roll, or between unroll and carry_cache"
        )
    return found


def _attentions(ops: Sequence[Op]) -> int:
    """How many layers some ops are, by their attention; one where there is none."""
    return max(1, [op.name for op in ops].count("attend"))


def _has_layers_outside(program: Program) -> bool:
    """Whether attention is computed, or a state of more than numbers written, outside of loops."""
    graph, loops = program.graph, set(loops_of(program))
    outside = "attend" in [op.name for op in graph.ops]
    for value, out in zip(graph.outputs, program.outputs):
        if out.updates is not None and value.type.rank > 1 and value not in graph.inputs:
            while value.op not in loops and value.op.args:  # in whatever form it leaves the loop
                value = value.op.args[0]
            outside |= value.op not in loops
    return outside


def stream_of(place: Place, layers: Layers) -> tuple[Value, Value]:
    """The residual stream before and behind a layer, in the body of its loop. Raises NotLeftOut
    where a loop carries several."""
    if place.loop is None:
        segments = [layers.segments[number] for number in place.segments]
        return segments[0].start, segments[-1].end
    body, (_, carry, _) = place.loop.regions[0], scan_parts(place.loop)
    streams = [
        (inside, after)
        for inside, after in zip(body.inputs[carry], body.outputs)
        if inside.type.dtype in FLOATS and inside.type.rank and _before_writing(after) is None
    ]
    if len(streams) != 1:
        raise NotLeftOut(f"{place.loop.told} carries {len(streams)} streams")
    return streams[0]


def loops_of(program: Program) -> list[Op]:
    """The loops over layers: in every trip they scan weights, and apply them to what they carry."""
    graph, params = program.graph, program.values("param")
    reached, known = dependents(graph, params), bound_values(graph, params)
    return [
        op
        for op in graph.ops
        if op.get("length")
        and op["carry"]
        and op.results[0] not in known
        and any(arg in reached & known for arg in op.args[scan_parts(op)[2]])
    ]


def weights_of(program: Program, loop: Op) -> list[Value]:
    """The floats of parameters that a loop scans."""
    graph, params = program.graph, program.values("param")
    bound = dependents(graph, params) & bound_values(graph, params)
    scanned = loop.args[scan_parts(loop)[2]]
    return [value for value in scanned if value in bound and value.type.dtype in FLOATS]


def without_layers(program: Program, left_out: Sequence[int]) -> Program:
    """The program without the layers of these numbers, from 0. Raises NotLeftOut."""
    layers = find_layers(program, through_loops=True)
    places = places_of(program, layers)
    count = places[-1].numbers.stop if places else 0
    if not count:
        raise NotLeftOut("no layers were found")
    if strange := [number for number in left_out if number not in range(count)]:
        raise NotLeftOut(f"there is no layer {strange[0]}: they are 0 to {count - 1}")
    if len({*left_out}) == count:
        raise NotLeftOut(f"all {count} layers would be left out")
    graph = program.graph
    for place in reversed(places):  # what is in front of a layer stays as it is
        gone = {number for number in place.numbers if number in left_out}
        kept = _trips(place, gone)
        if gone and place.loop:
            results = shorter_loop(program, place.loop, kept)
            graph = replace_values(graph, dict(zip(place.loop.results, results)))
        elif gone:
            graph = replace_values(graph, _passed(program, layers, place))
    return program.with_graph(graph)


def _trips(place: Place, gone: set[int]) -> list[int]:
    """The trips that are kept, of one where layers are written out."""
    kept, numbers = [], place.numbers
    for trip, first in enumerate(numbers[:: place.together]):
        inside = set(range(first, first + place.together))
        if gone & inside and inside - gone:
            told = " and ".join(map(str, sorted(inside)))
            raise NotLeftOut(f"layers {told} are left out together, or not at all")
        if not gone & inside:
            kept.append(trip)
    if place.loop and not kept:
        raise NotLeftOut(f"all layers of {place.loop.told} would be left out")
    return kept


# Layers that are written out.


def _passed(program: Program, layers: Layers, place: Place) -> dict[Value, Value]:
    """The values of a layer, and what they are without it."""
    segments = [layers.segments[number] for number in place.segments]
    start, end = segments[0].start, segments[-1].end
    if start.type != end.type:
        raise NotLeftOut(f"layer {place.first} takes {start.type} and gives {end.type}")
    inside = {op for segment in segments for op in segment.ops}
    becomes = {end: start}
    for segment in segments:
        for value in segment.exits:
            users = {user for user, _ in program.graph.users.get(value, ())}
            if value != end and (value in program.graph.outputs or users - inside):
                becomes[value] = _as_it_came(program, value, place.first)
    return becomes


def _as_it_came(program: Program, value: Value, layer: int) -> Value:
    """What a state is that a layer would write, or a row of it, without the layer."""
    for output, out in zip(program.graph.outputs, program.outputs):
        if out.updates is None:
            continue
        state = program.graph.inputs[out.updates]
        if output == value and state.type == value.type:
            return state
        axis = opdef.traits(output.op).new_axis  # of a stack of layers
        if axis and value in output.op.args and state.type == output.type:
            rows = opdef.build("unstack", state, axis=output.op[axis]).results
            return rows[output.op.args.index(value)]
    if (before := _before_writing(value)) is not None:
        return before
    raise NotLeftOut(f"{value.op.told} of layer {layer} is read elsewhere")


def _before_writing(value: Value) -> Value | None:
    """What was written into, in the form in which it leaves; None where nothing was."""
    op = value.op
    if opdef.traits(op).writes:
        return _before_writing(op.args[0]) or op.args[0]
    if opdef.traits(op).moves and len(op.args) == 1:
        before = _before_writing(op.args[0])
        return with_args(op, (before,)).results[value.index] if before is not None else None
    return None


# Layers in a loop.


def shorter_loop(program: Program, loop: Op, rows: Rows) -> tuple[Value, ...]:
    """The results of a loop over some of its layers alone. Raises NotLeftOut."""
    for result, inside in zip(
        loop.results[loop["carry"] :], loop.regions[0].outputs[loop["carry"] :]
    ):
        if not _is_state(program, result):
            raise NotLeftOut(f"{inside.op.told} of every layer is read behind the loop")
    op, counted = _with_counters_scanned(loop)
    (body,), (consts, carry, xs) = op.regions, scan_parts(op)
    for inside, after in zip(body.inputs[carry], body.outputs):
        if after != inside and inside.type.dtype not in FLOATS and _before_writing(after) is None:
            raise NotLeftOut(f"{after.op.told} counts on every layer")
    shorter = replace(op, attrs=attrs_of({**dict(op.attrs), "length": _count(rows)}))
    scanned = [_rows(value, rows) for value in op.args[xs]]
    made = remade_scan(shorter, body, op.args[consts], op.args[carry], scanned).results
    carried = iter(made[: op["carry"]])
    first = [counted.get(number) or next(carried) for number in range(loop["carry"])]
    return (*first, *(_back(value, rows, op["length"]) for value in made[op["carry"] :]))


def _is_state(program: Program, value: Value) -> bool:
    """Whether all that becomes of a value is the new value of a state."""
    outputs = list(zip(program.graph.outputs, program.outputs))
    if any(value == output and out.updates is None for output, out in outputs):
        return False
    users = {user for user, _ in program.graph.users.get(value, ())}
    results = (result for user in users for result in user.results)
    return all(opdef.traits(user).moves for user in users) and all(
        _is_state(program, result) for result in results
    )


def _with_counters_scanned(op: Op) -> tuple[Op, dict[int, Value]]:
    """The loop with numbers that it counts as rows, and what these are behind it, by number."""
    (body,), (consts, carry, xs) = op.regions, scan_parts(op)
    counted = dict(counters_of(op))
    number = {inside: n for n, inside in enumerate(body.inputs[carry])}
    rows = {inside: new_input(Type(inside.type.dtype, ())) for inside in counted}
    behind = {
        number[inside]: substitute(
            Graph((inside,), (body.outputs[number[inside]],)), [constant(counts[-1])]
        )[0]
        for inside, counts in counted.items()
    }
    left = [n for n in number.values() if n not in behind]
    inputs = (
        *body.inputs[consts],
        *(body.inputs[carry][n] for n in left),
        *body.inputs[xs],
        *rows.values(),
    )
    kept = (*(body.outputs[n] for n in left), *body.outputs[op["carry"] :])
    inside = Graph(inputs, replace_values(Graph((), kept), rows).outputs)
    scanned = [*op.args[xs], *map(constant, counted.values())]
    carried = [op.args[carry][n] for n in left]
    return remade_scan(op, inside, op.args[consts], carried, scanned), behind


def _count(rows: Rows) -> int:
    return rows.type.shape[0] if isinstance(rows, Value) else len(rows)


def _rows(value: Value, rows: Rows) -> Value:
    """These rows of a stack."""
    if isinstance(rows, Value):
        places = reshaped(rows, (rows.type.shape[0], *(1 for _ in value.type.shape[1:])))
        return make("picked", value, places, axis=0)
    return make("some_rows", value, rows=tuple(rows), size=value.type.shape[0])


def _back(value: Value, rows: Rows, size: int) -> Value:
    """A stack of which these are the rows, among zeros."""
    if isinstance(rows, Value):
        raise NotLeftOut("a cache is scanned: carry_cache in front carries it")
    return make("all_rows", value, rows=tuple(rows), size=size)
