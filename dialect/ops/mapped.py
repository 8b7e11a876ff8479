"""A function of blocks: `mapped`, what a program's `shard_map` becomes, and `whole`.

Both are programs for one chip at a time, which the compiler does not split. `mapped` gives every
chip its block of every array and lets the chips exchange values by the names of mesh axes.
Lowered on a mesh that has these axes it is `jax.shard_map`; anywhere else it is the same function
under `jax.vmap` over all blocks at once, since a collective means the same under either.

`whole` gives every chip all of everything. It holds what can be compiled in no other way: kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax

from dialect.arrays.evaluate import evaluate
from dialect.ops import lax
from dialect.ops.control import must_take
from dialect.ops.sharding import lowering_mesh, partition_spec
from rewrite import opdef
from rewrite.ir import Graph, Op, Opaque, Type
from rewrite.opdef import OpDef
from rewrite.program import Layout
from rewrite.signature import Signature, opaque

MeshAxes = tuple[tuple[str, int], ...]


def mapped(
    *arrays: Any,
    body: Opaque,
    axes: MeshAxes,
    inputs: tuple[Layout, ...],
    outputs: tuple[Layout, ...],
) -> list[Any]:
    """`body`, a Graph over blocks, on the blocks that `inputs` cuts of every array.

    `axes` are the mesh axes that the body knows, with their sizes; the layouts name no others.
    """
    mesh, graph = lowering_mesh(), body.payload
    if mesh is None or any(dict(mesh.shape).get(name) != size for name, size in axes):
        return over_all_blocks(graph, axes, inputs, outputs, arrays)
    manual = {name for name, _ in axes}
    return jax.shard_map(
        lambda *blocks: evaluate(graph, blocks),
        mesh=mesh,
        in_specs=tuple(map(partition_spec, inputs)),
        out_specs=[partition_spec(layout) for layout in outputs],
        axis_names=manual,
        check_vma=False,
    )(*arrays)


def over_all_blocks(
    body: Graph,
    axes: MeshAxes,
    inputs: tuple[Layout, ...],
    outputs: tuple[Layout, ...],
    arrays: Sequence[Any],
) -> list[Any]:
    """`mapped` without a mesh: nested `jax.vmap`s with the names of the mesh axes.

    Raises whatever JAX raises for a collective that cannot be batched.
    """
    cuts = {name: size for name, size in axes if size > 1}  # an axis of one chip cuts nothing
    function: Callable[..., Any] = functools.partial(_evaluated, body)
    for name, size in reversed(axes):
        cut = [0 if name in _cutting(layout, cuts) else None for layout in inputs]
        function = jax.vmap(function, in_axes=cut, axis_name=name, axis_size=size)
    blocks = [_cut(array, layout, cuts) for array, layout in zip(arrays, inputs)]
    return [_joined(block, layout, axes) for block, layout in zip(function(*blocks), outputs)]


def _evaluated(body: Graph, *blocks: Any) -> list[Any]:
    return evaluate(body, blocks)


def _cutting(layout: Layout, cuts: dict[str, int]) -> list[str]:
    """The mesh axes that cut an array, in the mesh's order."""
    named = {name for dimension in layout for name in dimension}
    return [name for name in cuts if name in named]


def _cut(array: Any, layout: Layout, cuts: dict[str, int]) -> Any:
    """f32[8,6], (("y", "x"), ()), x=2 y=4  ->  f32[2,4,1,6]: the mesh axes in front."""
    shape, place, rest = [], {}, []
    for size, names in zip(array.shape, layout):
        for name in filter(cuts.__contains__, names):
            place[name] = len(shape)
            shape.append(cuts[name])
            size //= cuts[name]
        rest.append(len(shape))
        shape.append(size)
    return array.reshape(shape).transpose(*map(place.get, _cutting(layout, cuts)), *rest)


def _joined(blocks: Any, layout: Layout, axes: MeshAxes) -> Any:
    """The inverse of `_cut`. Where a mesh axis cuts nothing, all blocks are the first."""
    cuts = {name: size for name, size in axes if size > 1}
    cutting = _cutting(layout, cuts)
    blocks = blocks[tuple(slice(None) if name in cutting else 0 for name, _ in axes)]
    order, shape = [], []
    for number, names in enumerate(layout, len(cutting)):
        names = [name for name in names if name in cuts]
        order += [*map(cutting.index, names), number]
        shape.append(blocks.shape[number] * math.prod(map(cuts.get, names)))
    return blocks.transpose(order).reshape(shape)


def whole(*arrays: Any, regions: tuple[Graph, ...]) -> list[Any]:
    """The region on every chip, all arrays whole."""
    mesh = lowering_mesh()
    if mesh is None:
        return evaluate(regions[0], arrays)
    return jax.shard_map(
        lambda *arrays: evaluate(regions[0], arrays),
        mesh=mesh,
        in_specs=jax.sharding.PartitionSpec(),
        out_specs=jax.sharding.PartitionSpec(),
        check_vma=False,
    )(*arrays)


def _signature(op: Op) -> Signature:
    return opaque(tuple(arg.type.rank for arg in op.args), tuple(t.rank for t in op.types))


def _infer_mapped(
    types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
) -> tuple[Type, ...]:
    sizes = dict(attrs["axes"])
    return tuple(
        replace(
            value.type,
            shape=tuple(
                size * math.prod(sizes.get(name, 1) for name in names)
                for size, names in zip(value.type.shape, layout)
            ),
        )
        for value, layout in zip(attrs["body"].payload.outputs, attrs["outputs"])
    )


def _infer_whole(
    types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Graph, ...]
) -> tuple[Type, ...]:
    must_take("its region", regions[0], types)
    return tuple(value.type for value in regions[0].outputs)


opdef.define(
    OpDef(
        name="mapped",
        signature=_signature,
        infer=_infer_mapped,
        reference=mapped,
        attrs=("body", "axes", "inputs", "outputs"),
        doc="A function of blocks, one per chip: jax.shard_map over named mesh axes.",
    )
)
opdef.define(
    OpDef(
        name="whole",
        signature=_signature,
        infer=_infer_whole,
        reference=whole,
        attrs=(),
        regions=1,
        doc="The region runs on every chip with whole arrays: a kernel that cannot be split.",
    )
)
# Where a `shard_map` checks which values differ from chip to chip, JAX writes these two. What was
# checked once need not be checked again: here they mean what they compute.
for _name, _reference in {
    "pvary": lambda *arrays, axes: list(arrays),
    "psum_invariant": lambda *arrays, axes: list(jax.lax.psum(arrays, axes)),
}.items():
    opdef.define(
        OpDef(
            name=_name,
            signature=_signature,
            infer=lax.infer_by_reference(_name),
            reference=_reference,
            attrs=("axes",),
            doc=f"{_name} of a function of blocks.",
        )
    )
