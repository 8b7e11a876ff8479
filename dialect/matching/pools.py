"""Pools of pages, which rows of a step share (see `dialect.ops.pages`)."""

from __future__ import annotations

from rewrite.ir import Graph, Value
from rewrite.opdef import traits


def is_in_pages(cache: Value) -> bool:
    """Whether a cache, or its integers, are read from pages."""
    return any(op.get("page") for op in (cache.op, *(arg.op for arg in cache.op.args)))


def pools_of(graph: Graph) -> set[Value]:
    """The inputs of a graph, or of the bodies of its loops, whose pages it reads by a table."""
    return {_written(op.args[0]) for op, _ in graph.walk() if op.get("page")}


def _written(pool: Value) -> Value:
    """A pool before a step wrote into it."""
    while traits(pool.op).writes or traits(pool.op).view and pool.op.args:
        pool = pool.op.args[0]
    return pool
