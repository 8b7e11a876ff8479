"""A graph with one dtype replaced by another everywhere: the same ops on integers, for example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dialect.arrays import attributes, dtypes
from dialect.jaxprs.jaxpr import constant
from rewrite import opdef
from rewrite.ir import Graph, Op, Record, Symbol, Type, Value, new_input

Kinds = Mapping[str, str]  # dtypes by their short names


def retyped(graph: Graph, kinds: Kinds) -> Graph:
    """`graph` with dtypes replaced, in its inputs, constants and attributes, and inferred again.

    Raises whatever an op raises that does not take the new dtype.
    """
    memo = {value: new_input(_type(value.type, kinds)) for value in graph.inputs}
    inputs = tuple(memo.values())
    for op in graph.ops:
        memo.update(zip(op.results, _op(op, memo, kinds).results, strict=True))
    return Graph(inputs, tuple(memo[value] for value in graph.outputs))


def _type(type_: Type, kinds: Kinds) -> Type:
    return Type(kinds.get(type_.dtype, type_.dtype), type_.shape)


def _op(op: Op, memo: dict[Value, Value], kinds: Kinds) -> Op:
    if op.name == "const":
        type_ = _type(op.types[0], kinds)
        array = np.asarray(attributes.decode(op["value"]))
        with np.errstate(all="ignore"):
            number = array.astype(dtypes.dtype_of(type_.dtype)).reshape(type_.shape)
        return constant(number, type_).op
    attrs = {name: _attribute(value, kinds) for name, value in op.attrs}
    regions = tuple(retyped(region, kinds) for region in op.regions)
    args = (memo[arg] for arg in op.args)
    return opdef.build(op.name, *args, regions=regions, origin=op.origin, **attrs)


def _attribute(value: Any, kinds: Kinds) -> Any:
    if isinstance(value, Symbol):
        return Symbol(kinds.get(value.text, value.text))
    if isinstance(value, Type):
        return _type(value, kinds)
    if isinstance(value, tuple):
        return tuple(_attribute(item, kinds) for item in value)
    if isinstance(value, Record):
        return Record(
            value.name, tuple((name, _attribute(item, kinds)) for name, item in value.fields)
        )
    return value
