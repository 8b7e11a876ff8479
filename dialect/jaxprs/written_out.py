"""A function of blocks as a function of whole arrays: what `shard_map` computes, on no mesh.

Over a mesh axis of one chip every exchange gives back what it got and the chip is number 0, so the
body is the function, each op with its line of the program. Other axes become `jax.vmap`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dialect.arrays.dtypes import struct_of
from dialect.jaxprs.jaxpr import constant, trace_graph
from dialect.ops.mapped import MeshAxes, over_all_blocks
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Type, Value, attrs_of
from rewrite.opdef import make, with_args
from rewrite.program import Layout

_AXES = ("axes", "axis_name")  # the attributes that name mesh axes


def written_out(
    body: Graph,
    axes: MeshAxes,
    inputs: tuple[Layout, ...],
    outputs: tuple[Layout, ...],
    types: Sequence[Type],
) -> Graph:
    """`body`, a function of blocks over `axes`, as a function of whole arrays of the `types`.

    Raises NotImplementedError for an exchange over an axis of one chip that is not known here, and
    whatever JAX raises for a collective that it cannot batch.
    """
    body = _without(body, frozenset(name for name, size in axes if size == 1))
    axes = tuple((name, size) for name, size in axes if size > 1)
    if not axes:
        return body
    return trace_graph(
        lambda *arrays: over_all_blocks(body, axes, inputs, outputs, arrays),
        *map(struct_of, types),
    )


def _without(graph: Graph, lone: frozenset[str]) -> Graph:
    """The function of blocks without its mesh axes `lone`, each of one chip."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        op = with_args(op, args, tuple(_without(region, lone) for region in op.regions))
        key = next((key for key in _AXES if lone & set(_names(op.get(key)))), None)
        if key is None:
            return op.results
        left = tuple(name for name in _names(op[key]) if name not in lone)
        if not left:
            return _alone(op)
        return replace(op, attrs=attrs_of(dict(op.attrs) | {key: left})).results

    return rebuilt(graph, visit)


def _names(attribute: object) -> tuple[object, ...]:
    return attribute if isinstance(attribute, tuple) else (attribute,)


def _alone(op: Op) -> tuple[Value, ...]:
    """What an op that names mesh axes gives a chip that is the only one on them: the chip's number,
    or what it is given, in the shape of its result."""
    if not op.args:
        return (constant(0, op.types[0]),)
    sizes = [arg.type.size for arg in op.args]
    if sizes != [type_.size for type_ in op.types] or op.get("perm") == ():  # () sends nothing
        raise NotImplementedError(f"{op.name} over a mesh axis of one chip")
    pairs = zip(op.args, op.types)
    return tuple(make("reshape", value, new_sizes=result.shape) for value, result in pairs)
