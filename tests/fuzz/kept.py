"""Whether import and export, the text, and passes keep what a traced program computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays import primitives
from dialect.arrays.evaluate import evaluate
from dialect.checked.compared import difference
from dialect.checked.evaluated import evaluated
from dialect.checked.lifted import NotLiftable, lifted, widened
from dialect.checked.precision import new_constants
from dialect.jaxprs import framework  # noqa: F401  (define the ops)
from dialect.jaxprs.framework import describe
from dialect.jaxprs.jaxpr import CALLS, import_jaxpr
from dialect.ops import control, nn, quant, sharding, tensor  # noqa: F401  (define the ops)
from rewrite import Pipeline, Program, Target
from rewrite.errors import TextError
from rewrite.ir import Graph
from rewrite.program import Input, Output
from tests.fuzz.interpreted import interpreted

F64_TOLERANCE = 1e-9


class Different(Exception):
    """A result that is not what it should be."""


def compare(jaxpr: Any, leaves: Sequence[Any], passes: Pipeline | None = None) -> None:
    """Raises Different, or TraceError where the program is refused, or whatever went wrong."""
    graph = import_jaxpr(jaxpr)
    expected = op_by_op(*primitives.opened(jaxpr), leaves)
    _same(difference(expected, evaluate(graph, leaves), "bits"), "exported")
    program = as_program(graph)
    _reads_back(program)
    if passes is not None:
        after = passes.run(program, Target())
        _reads_back(after)
        _same_reals(graph, after, leaves)
        if new_constants(graph, after.graph):
            _same_in_f64(graph, passes, leaves)


def op_by_op(jaxpr: Any, consts: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr whose calls are opened, its other equations applied one by one."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *leaves), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, primitives.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        name, args = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        if name in CALLS:
            results = op_by_op(*primitives.opened(eqn.params[CALLS[name]]), args)
        else:
            with eqn.ctx.manager:  # how bits are drawn may be set where the function is written
                results = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
            results = results if eqn.primitive.multiple_results else [results]
        known.update(zip(eqn.outvars, results, strict=True))
    results = [read(atom) for atom in jaxpr.outvars]
    return [result if isinstance(result, jax.Array) else jnp.asarray(result) for result in results]


def as_program(graph: Graph) -> Program:
    """A program whose first input is a parameter and whose others are arguments."""
    roles = ["param", *["arg"] * len(graph.inputs)]
    trees = [jax.tree.structure([0] * len(values)) for values in (graph.inputs, graph.outputs)]
    return Program(
        name="function",
        graph=graph,
        inputs=tuple(Input(f"x{i}", v.type, roles[i]) for i, v in enumerate(graph.inputs)),
        outputs=tuple(Output(f"y{i}") for i in range(len(graph.outputs))),
        tree=(describe(trees[0]), describe(trees[1])),
    )


def _reads_back(program: Program) -> None:
    text = str(program)
    try:
        if Program.parse(text) != program:
            raise Different("its text reads back as another program")
    except TextError as error:
        if "which text cannot carry" not in str(error):
            raise


def _same_reals(before: Graph, after: Program, leaves: Sequence[Any]) -> None:
    """Both graphs over the reals; in their own precision where an op reads the bits of a float."""
    types = [[(v.type.dtype, v.type.shape) for v in g.outputs] for g in (before, after.graph)]
    if types[0] != types[1]:
        raise Different(f"after {_passes(after)}: results are {types[1]}, not {types[0]}")
    try:
        with jax.enable_x64(True):
            graphs, wide = (lifted(before), lifted(after.graph)), True
    except NotLiftable:
        graphs, wide = (before, after.graph), False
    with jax.enable_x64(wide or jax.config.jax_enable_x64):
        arrays = [widened(leaf) if wide else leaf for leaf in leaves]
        with np.errstate(all="ignore"):
            expected, largest = evaluated(graphs[0], arrays, interpreted)
            got = interpreted(graphs[1], arrays)
        tolerance = F64_TOLERANCE if wide else _tolerance([*expected, *leaves])
        tolerance = max(tolerance, new_constants(before, after.graph))
        wrong = difference(expected, got, "reals", tolerance, largest)
    _same(wrong, f"after {_passes(after)}")


def _same_in_f64(before: Graph, passes: Pipeline, leaves: Sequence[Any]) -> None:
    """Constants that passes compute are rounded: in a program of f64 they hardly are."""
    with jax.enable_x64(True):
        try:
            wide = lifted(before)
        except NotLiftable:
            return
        _same_reals(wide, passes.run(as_program(wide), Target()), list(map(widened, leaves)))


def _passes(program: Program) -> str:
    return ", ".join(step.text for step in program.history) or "the passes"


def _tolerance(arrays: Sequence[Any]) -> float:
    """64 units in the last place of the narrowest float."""
    dtypes = [jnp.dtype(a.dtype) for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)]
    return max((64 * float(jnp.finfo(dtype).eps) for dtype in dtypes), default=0.0)


def _same(wrong: Any, what: str) -> None:
    if wrong is not None:
        raise Different(f"{what}: {wrong}")
