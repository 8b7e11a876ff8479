"""Attention in blocks, and what it reads in pages, on the chips that own it.

attend{blocks}(constrain{layout}(q), k, v)  ->  mapped[attend{blocks}](q, k, v)

Its loops over blocks are those of every chip, over its own sequences and heads. Left to the SPMD
partitioner, which sees one loop over all of them, each trip becomes an exchange between chips.

Where the pages of a pool are divided among the chips that own rows, those of a row are in the part
of its chips: the first rows have the first pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dialect.ops import mapped  # noqa: F401  (defines it)
from dialect.ops.pages import pages_here  # noqa: F401  (defines it)
from dialect.ops.sharding import laid_out
from rewrite.driver import rewrite
from rewrite.errors import PlanError
from rewrite.ir import Graph, Op, Opaque, Type, Value, new_input
from rewrite.opdef import build, make, signature, traits
from rewrite.program import Layout
from rewrite.rules import Outcome, Rule
from rewrite.signature import Array, Dimension

Owners = Mapping[Dimension, tuple[str, ...]]  # the mesh axes that split an axis of attention


def owned(graph: Graph, mesh: Mapping[str, int], pages: tuple[str, ...] = ()) -> Graph:
    """`graph` with every attention in blocks mapped over the chips of this mesh, and every write
    into pages that are divided over these mesh axes.

    Raises PlanError where there are not as many pages for all groups of chips.
    """

    def on_owners(op: Op) -> Outcome:
        written = traits(op).writes or 0
        is_mapped = pages if written else op.get("blocks") or op.get("sparq")
        owners = _owners(op, mesh, written, pages) if is_mapped else {}
        return _mapped(op, owners, mesh) if any(owners.values()) else None

    doc = "attend{blocks}(q, k, v)  ->  mapped[attend{blocks}](q, k, v)"
    roots = frozenset({"attend", "attend_pages", "attend_layer", "page_put"})
    return rewrite(graph, [Rule("on_owners", doc, roots, on_owners, "bits")])


def _owners(op: Op, mesh: Mapping[str, int], number: int, pages: tuple[str, ...]) -> Owners:
    """The mesh axes of each axis, as this argument is laid out: its query, or what it writes."""
    layout, named = laid_out(op.args[number]), signature(op)
    if layout is None or None in layout:
        return {}
    whole = frozenset[str]() if number else named.need  # rows that are written are those of owners
    owners = {
        axis: tuple(name for name in names if name in mesh)
        for axis, names in zip(named.inputs[number], layout)
        if axis and axis not in (("k",), ("s",)) and not whole.intersection(axis)
    }
    return owners | {("pages",): pages}


def _mapped(op: Op, owners: Owners, mesh: Mapping[str, int]) -> Sequence[Value]:
    named = signature(op)
    inputs = tuple(_layout(axes, owners) for axes in named.inputs)
    (out,) = (_layout(axes, owners) for axes in named.outputs)
    cut = [new_input(_block(arg.type, layout, mesh)) for arg, layout in zip(op.args, inputs)]
    groups = math.prod(mesh[name] for name in owners[("pages",)])
    args = cut if groups == 1 else _with_pages_here(op, cut, groups)
    body = Graph(tuple(cut), build(op.name, *args, origin=op.origin, **dict(op.attrs)).results)
    return build(
        "mapped",
        *op.args,
        origin=op.origin,
        body=Opaque.of(body),
        axes=tuple(mesh.items()),
        inputs=inputs,
        outputs=(out,),
    ).results


def _with_pages_here(op: Op, args: Sequence[Value], groups: int) -> list[Value]:
    """What an op reads in one of so many groups of chips: tables name the pages of its own pool."""
    inputs, changed = signature(op).inputs, list(args)
    pools = [arg for arg, axes in zip(op.args, inputs) if axes[:1] == (("pages",),)]
    count = pools[0].type.shape[0] // (op.get("layers") or 1) if pools else 0
    if count % groups:
        raise PlanError(f"{count} pages do not divide over the {groups} groups of chips with rows")
    for number, axes in enumerate(inputs):
        if pools and axes[1:] == (("n",),):
            changed[number] = make("pages_here", args[number], pages=count, here=count // groups)
    return changed


def _layout(axes: Array, owners: Owners) -> Layout:
    return tuple(owners.get(axis, ()) for axis in axes)


def _block(type_: Type, layout: Layout, mesh: Mapping[str, int]) -> Type:
    sizes = zip(type_.shape, layout)
    shape = (size // math.prod(mesh[name] for name in names) for size, names in sizes)
    return Type(type_.dtype, tuple(shape))
