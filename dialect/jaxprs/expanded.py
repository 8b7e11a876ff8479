"""An op as what it stands for: the graph of its reference, in lax."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dialect.arrays.dtypes import struct_of
from dialect.jaxprs.jaxpr import trace_graph
from rewrite import opdef
from rewrite.ir import Graph, Op, Type


def reference_graph(op: Op) -> Graph:
    """The graph of the op's arguments that its reference traces to."""
    types = tuple(arg.type for arg in op.args)
    return _traced(opdef.lookup(op.name).reference, types, op.attrs)


@lru_cache(maxsize=4096)
def _traced(reference: Callable[..., Any], types: tuple[Type, ...], attrs: tuple) -> Graph:
    def traced(*arrays: object) -> list[object]:
        out = reference(*arrays, **dict(attrs))
        return out if isinstance(out, list) else [out]

    return trace_graph(traced, *map(struct_of, types))
