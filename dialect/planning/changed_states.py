"""Arrays that come back in another dtype than they went in: no state, though they look like it.

They are arguments and results, so a plan splits neither, nothing is written in place, and the next
step is another program.
"""

from __future__ import annotations

from collections.abc import Iterator

from rewrite.dataflow import dependents
from rewrite.ir import Type
from rewrite.program import Program


def changed_state_notes(program: Program) -> Iterator[str]:
    """The arguments of which a result has the name, the shape and another dtype."""
    results = {
        _within(output.name): value
        for output, value in zip(program.step_outputs, program.graph.outputs)
        if output.updates is None
    }
    alike: dict[tuple[Type, Type], list[str]] = {}
    for value, given in zip(program.graph.inputs, program.step_inputs):
        result = results.get(_within(given.name))
        if given.role != "arg" or result is None or result.type.shape != value.type.shape:
            continue
        if result.type.dtype != value.type.dtype and result in dependents(program.graph, [value]):
            alike.setdefault((value.type, result.type), []).append(given.name)
    for (before, behind), (first, *more) in alike.items():
        others = f" (and {len(more)} more)" if more else ""
        yield (
            f"{first}{others} goes in as {before} and comes back as {behind}, so it is no state: "
            "neither split by the plan nor written in place"
        )


def _within(name: str) -> str:
    """`cache/k/0` and `1/k/0`  ->  `k/0`"""
    return name.partition("/")[2] or name
