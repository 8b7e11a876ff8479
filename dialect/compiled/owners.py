"""Attention in blocks, on the chips that own it.

attend{blocks}(constrain{layout}(q), k, v)  ->  mapped[attend{blocks}](q, k, v)

Its loops over blocks are those of every chip, over its own sequences and heads. Left to the SPMD
partitioner, which sees one loop over all of them, each trip becomes an exchange between chips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dialect.ops import mapped  # noqa: F401  (defines it)
from dialect.ops.sharding import laid_out
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op, Opaque, Type, Value, new_input
from rewrite.opdef import build, signature
from rewrite.program import Layout
from rewrite.rules import Outcome, Rule
from rewrite.signature import Array, Dimension, Signature

Owners = Mapping[Dimension, tuple[str, ...]]  # the mesh axes that split an axis of attention


def owned(graph: Graph, mesh: Mapping[str, int]) -> Graph:
    """`graph` with every attention in blocks mapped over the chips of this mesh."""

    def on_owners(op: Op) -> Outcome:
        owners = _owners(op, mesh) if op.get("blocks") else {}
        return _mapped(op, owners, mesh) if any(owners.values()) else None

    doc = "attend{blocks}(q, k, v)  ->  mapped[attend{blocks}](q, k, v)"
    roots = frozenset({"attend", "attend_pages"})
    return rewrite(graph, [Rule("attend_on_owners", doc, roots, on_owners, "bits")])


def _owners(op: Op, mesh: Mapping[str, int]) -> Owners:
    """The mesh axes of each axis, as its query is laid out."""
    layout, query = laid_out(op.args[0]), Signature.parse(op["axes"]).inputs[0]
    if layout is None or None in layout:
        return {}
    return {
        axis: tuple(name for name in names if name in mesh)
        for axis, names in zip(query, layout)
        if axis and axis not in (("k",), ("s",))
    }


def _mapped(op: Op, owners: Owners, mesh: Mapping[str, int]) -> Sequence[Value]:
    named = signature(op)
    inputs = tuple(_layout(axes, owners) for axes in named.inputs)
    (out,) = (_layout(axes, owners) for axes in named.outputs)
    cut = [new_input(_block(arg.type, layout, mesh)) for arg, layout in zip(op.args, inputs)]
    body = Graph(tuple(cut), build(op.name, *cut, origin=op.origin, **dict(op.attrs)).results)
    return build(
        "mapped",
        *op.args,
        origin=op.origin,
        body=Opaque.of(body),
        axes=tuple(mesh.items()),
        inputs=inputs,
        outputs=(out,),
    ).results


def _layout(axes: Array, owners: Owners) -> Layout:
    return tuple(owners.get(axis, ()) for axis in axes)


def _block(type_: Type, layout: Layout, mesh: Mapping[str, int]) -> Type:
    sizes = zip(type_.shape, layout)
    shape = (size // math.prod(mesh[name] for name in names) for size, names in sizes)
    return Type(type_.dtype, tuple(shape))
