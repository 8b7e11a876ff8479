"""ring: a cache of which attention reads a window is a ring of as many places.

cache of s places  ->  ring of n places, for the inputs and outputs of the step
attend(q, k, v, p - n < s <= p)  ->  attend(q, ring of k, ring of v, s <= p)

The cache of an attention with a window of n is written at the position modulo n, as that of Mistral
7B is (Jiang et al. 2023, arXiv:2310.06825, section 2): it takes n places, whatever the context.
Logits are those of the decoder for every position below its context. What a ring has written over
is zero in a state that is restored, so that the step does not keep its state's numbers.

It is done where the step counts the position that it writes to, and reads the n places up to
that one alone (`dialect.caching.ring_places`). `adapt` converts the position together with the
caches: a state with another position is one to adapt again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dialect.caching.claimed_positions import checked
from dialect.caching.ring_cache import AROUND, RULES, in_ring
from dialect.caching.ring_places import Held, RingPlaces
from dialect.caching.state_forms import keep_in, stacked_forms
from dialect.matching.attend_bounds import kept_by, with_bounds
from dialect.naming.axes import infer_axes
from dialect.normal.masks_into_loops import masks_into_loops
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value, new_input, replace_values
from rewrite.opdef import build, with_args
from rewrite.passbase import Pass
from rewrite.program import LEFT_ALONE, NOT_DONE, NOTHING_DONE, Program, Remark
from rewrite.target import Target


@dataclass(frozen=True)
class Ring(Pass):
    """Keeps as much of a cache as the window of its attention reads.

    `chunk`: as many tokens at once as another step may write that has this state, too.
    """

    chunk: int = 1

    keeps: ClassVar[str] = "approx"  # a restored cache lacks what was written over

    def run(self, program: Program, target: Target) -> Program:
        given = program.with_graph(masks_into_loops(program.graph))
        forms = stacked_forms(given)
        arguments = {n: given.graph.inputs[n] for n in _arguments(given)}
        places = RingPlaces(given.graph, forms, infer_axes(given), arguments, self.chunk)
        alone = dict(places.refused)
        while True:
            rings = {n: ring for n, ring in places.rings.items() if n not in alone}
            windows, claims = places.windows(list(rings)), places.claims(list(rings))
            narrow = given.with_graph(_narrowed(given.graph, windows, claims))
            changes = {n: in_ring(ring.axis, ring.context, ring.size) for n, ring in rings.items()}
            changed, left = keep_in(narrow, changes, RULES, "around", (), stacked_forms(narrow))
            if not left:
                break
            alone |= left
        notes: list[str | Remark] = [
            f"{program.inputs[n].name} kept in a ring of {ring.size} of its {ring.context} places"
            for n, ring in rings.items()
        ]
        notes += _claims(program, rings)
        kind = LEFT_ALONE if rings else NOT_DONE
        notes += (Remark(why, program.inputs[n].name, kind) for n, why in alone.items())
        if not rings:
            missing = Remark("no attention to a cache was recognised", kind=NOTHING_DONE)
            return self.recorded(program, *(notes or [missing]))
        return self.recorded(_by_position(changed, rings), *notes)


def _arguments(program: Program) -> Iterator[int]:
    """The numbers of the inputs that the caller gives anew in every step."""
    return (number for number, source in enumerate(program.inputs) if source.role == "arg")


def _claims(program: Program, rings: Mapping[int, Held]) -> Iterator[str]:
    """What is taken for granted of inputs up to which rings are read."""
    claims = {(n, ring.position) for ring in rings.values() for n in ring.claimed}
    for number, position in sorted(claims):
        claimed, written = (program.inputs[n].name for n in (number, position))
        yield f"{claimed} is taken to be {written}: rows of attention where it is not are NaN"


def _narrowed(graph: Graph, windows: Mapping[Op, int], claims: Mapping[Op, Value]) -> Graph:
    """`graph` with a window of so many positions in the place of the mask of these attentions, and
    with results that are checked of those that claim to be read up to the places written."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        regions = tuple(_narrowed(region, windows, claims) for region in op.regions)
        moved = with_args(op, args, regions)
        if op in windows:
            moved = with_bounds(moved, kept_by(moved)._replace(first=None), window=windows[op])
        return (checked(moved, claims[op]),) if op in claims else moved.results

    return rebuilt(graph, visit)


def _by_position(program: Program, rings: Mapping[int, Held]) -> Program:
    """The program with its rings taken from the caches at the position that enters the step, and
    turned back at the one that leaves it."""
    alike: dict[tuple[int, int, int | None], dict[Value, Held]] = {}
    for number, ring in rings.items():
        (entering, _), key = stacked_forms(program)[number], (ring.position, ring.size, ring.rows)
        alike.setdefault(key, {})[entering] = number
    for numbers in alike.values():
        program = _turned(program, {number: rings[number] for number in numbers.values()})
    return program


def _turned(program: Program, rings: Mapping[int, Held]) -> Program:
    """The same with rings of one size that share a position."""
    forms, ring = stacked_forms(program), next(iter(rings.values()))
    changed = [*(forms[number] for number in rings), forms[ring.position]]
    entering, leaving = map(list, zip(*changed))
    attrs: dict[str, Any] = {"axes": tuple(ring.axis for ring in rings.values())}
    attrs |= {} if ring.rows is None else {"rows": ring.rows}
    caches = [value.op.args[0] for value in entering[:-1]]
    inward = build("rings", *caches, entering[-1], size=ring.size, **attrs).results
    fresh = [new_input(value.type) for value in inward]
    outputs = dict(zip(program.outputs, program.graph.outputs))
    kept = [value for out, value in outputs.items() if forms.get(out.updates) not in changed]
    inside = replace_values(Graph((), (*leaving, *kept)), dict(zip(entering, fresh))).outputs
    contexts = tuple(ring.context for ring in rings.values())
    turned = inside[: len(leaving)]
    outward = build("unwound", *turned, contexts=contexts, **attrs).results
    leaving[:-1] = [_cache(program.graph, value) for value in leaving[:-1]]
    rest = [value for out, value in outputs.items() if forms.get(out.updates) in changed]
    back = replace_values(Graph((), tuple(rest)), dict(zip(leaving, outward))).outputs
    becomes = dict(zip(kept, inside[len(leaving) :])) | dict(zip(rest, back))
    graph = Graph(program.graph.inputs, tuple(map(becomes.get, program.graph.outputs)))
    return program.with_graph(replace_values(graph, dict(zip(fresh, inward))))


def _cache(graph: Graph, ring: Value) -> Value:
    """The cache that goes around a ring, as it leaves the step."""
    return next(op.results[0] for op, _ in graph.users[ring] if op.name == AROUND.op)
