"""A graph over the reals: every float widened to f64, so that what rounding hides is seen.

    convert_element_type{bf16} (x: f32)  ->  the identity of x: f64

Two graphs that are equal in the reals agree to f64 precision once both are lifted. Formats of eight
bits and fewer stay: a conversion to them is quantisation, which computes something.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dialect.arrays import attributes, dtypes
from dialect.jaxprs.expanded import reference_graph
from dialect.jaxprs.jaxpr import constant
from rewrite import opdef
from rewrite.errors import ShardwrightError
from rewrite.ir import Graph, Op, Opaque, Record, Symbol, Type, Value, new_input

_WIDER = {"f16": "f64", "bf16": "f64", "f32": "f64", "c64": "c128"}
# They compute with the format of a float, and mean nothing over the reals.
_OF_FORMAT = ("nextafter", "reduce_precision")


class NotLiftable(ShardwrightError):
    """The graph reads the bits of a float, or holds an op that insists on its own dtype."""


def lifted_type(type_: Type) -> Type:
    """The type with its floats widened, never weak: a weak integer would be an i64 beside f64."""
    return Type(_WIDER.get(type_.dtype, type_.dtype), type_.shape)


def widened(array: Any) -> Any:
    """An array in its lifted type: a narrower float in f64 or c128."""
    type_ = dtypes.type_of(array)
    wider = lifted_type(type_).dtype
    return array if wider == type_.dtype else np.asarray(array).astype(dtypes.dtype_of(wider))


def lifted(graph: Graph) -> Graph:
    """`graph` computed in f64. Needs `jax.enable_x64`. Raises NotLiftable."""
    memo = {value: new_input(lifted_type(value.type)) for value in graph.inputs}
    inputs = tuple(memo.values())
    return Graph(inputs, tuple(_outputs(graph, memo)))


def _outputs(graph: Graph, memo: dict[Value, Value]) -> list[Value]:
    """The lifted outputs of `graph`, its lifted inputs being in `memo`."""
    for op in graph.ops:
        if _is_composite(op):
            # Its reference may ask for f32 by name: lifted op by op, that is f64 too.
            inner = _reference(op)
            args = {value: memo[arg] for value, arg in zip(inner.inputs, op.args)}
            memo.update(zip(op.results, _outputs(inner, args)))
        else:
            memo.update(zip(op.results, _lifted_op(op, memo).results))
    return [memo[value] for value in graph.outputs]


def _is_composite(op: Op) -> bool:
    """Whether it is a composite op: those declare their attributes, JAX's primitives take any."""
    ours = opdef.lookup(op.name).attrs is not None
    return ours and op.name != "const" and not op.regions


def _reference(op: Op) -> Graph:
    types = (*op.types, *(arg.type for arg in op.args))
    wide = any(type_.dtype in ("i64", "u64", "f64", "c128") for type_ in types)
    with jax.enable_x64(wide):
        return reference_graph(op)


def _lifted_op(op: Op, memo: dict[Value, Value]) -> Op:
    if op.name in _OF_FORMAT:
        raise NotLiftable(f"{op.told} computes with the format of its floats")
    if op.name == "const":
        return _lifted_constant(op).op
    attrs = {name: _lifted_attribute(value) for name, value in op.attrs}
    regions = tuple(lifted(region) for region in op.regions)
    try:
        wide = opdef.build(
            op.name, *(memo[arg] for arg in op.args), regions=regions, origin=op.origin, **attrs
        )
    except (TypeError, ValueError) as error:
        raise NotLiftable(f"{op.told} does not take f64: {error}") from error
    wanted = [(lifted_type(type_).dtype, type_.shape) for type_ in op.types]
    if [(type_.dtype, type_.shape) for type_ in wide.types] != wanted:
        raise NotLiftable(f"{op.told} gives {wide.types[0]} in f64, where {op.types[0]} was")
    return wide


def _lifted_constant(op: Op) -> Value:
    type_ = lifted_type(op.types[0])
    if type_ == op.types[0]:
        return Value(op, 0)
    array = np.asarray(attributes.decode(op["value"])).astype(dtypes.dtype_of(type_.dtype))
    return constant(array.reshape(type_.shape), type_)


def _lifted_attribute(value: Any) -> Any:
    if isinstance(value, Symbol):
        return Symbol(_WIDER.get(value.text, value.text))
    if isinstance(value, Type):
        return lifted_type(value)
    if isinstance(value, tuple):
        return tuple(_lifted_attribute(item) for item in value)
    if isinstance(value, Record):
        fields = tuple((name, _lifted_attribute(item)) for name, item in value.fields)
        return Record(value.name, fields)
    if isinstance(value, Opaque) and any(
        hasattr(x, "eqns") for x in jax.tree.leaves(value.payload)
    ):
        raise NotLiftable(f"an attribute holds a {value.kind}, whose dtypes are its own")
    return value
