"""What a program says itself of how its values lie, which no plan changes."""

from __future__ import annotations

from collections.abc import Iterator

from rewrite.ir import Graph, Value
from rewrite.program import Program

CACHE_WRITES = frozenset({"cache_write", "cache_put"})
# What lies as its first argument does: the same in another form, or a cache before and after.
_FORMS = frozenset({"reshape", "transpose", "convert_element_type"})
_CACHES = CACHE_WRITES | {"cache_read"}


def decided_by(program: Program) -> frozenset[Value]:
    """The values that the program says itself how to lay out, and what is made of such inputs."""
    declared = zip(program.graph.inputs, program.step_inputs)
    laid_out = frozenset(value for value, each in declared if each.layout)
    return frozenset(_decided_in(program.graph, laid_out))


def _decided_in(graph: Graph, inputs: frozenset[Value]) -> Iterator[Value]:
    """`inputs` are those of the graph that the program lays out; `held` lies as they do."""
    found, held = set(inputs), set(inputs)
    for op in graph.ops:
        if op.name == "constrain":
            found.update(op.results, _forms_of(op.args[0]))
        elif op.name in _FORMS and op.args[0] in found:
            found.update(op.results)
        elif op.name in ("contract", "attend") and held & set(op.args):
            found.update(op.results, op.args[:1] if op.name == "attend" else ())
        if op.name in _FORMS | _CACHES and op.args[0] in held:
            held.update(op.results)
            found.update(op.args[1:2])
        for region in op.regions:
            pairs = zip(op.args, region.inputs) if op.name == "scan" else ()
            yield from _decided_in(region, frozenset(x for arg, x in pairs if arg in held))
    yield from found


def _forms_of(value: Value) -> Iterator[Value]:
    """A value, and what it is another form of."""
    yield value
    while value.op.name in _FORMS:
        value = value.op.args[0]
        yield value
