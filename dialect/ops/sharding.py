"""Sharding: the ops `constrain` and `exchange`, and the mesh in which a program is being lowered.

A program names mesh axes, never a mesh; which devices stand behind them is decided when it is
lowered. Evaluated without a mesh, a constraint is the identity.

A layout gives the mesh axes of each dimension. In a constraint that a user wrote a dimension may
be None: it is left to the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rewrite import opdef
from rewrite.errors import brief
from rewrite.ir import Op, Value
from rewrite.opdef import OpDef, Traits
from rewrite.program import Layout
from rewrite.signature import Signature, numbered

_mesh: ContextVar[Any] = ContextVar("mesh", default=None)


@contextmanager
def lowering_on(mesh: Any) -> Iterator[None]:
    """Inside, `constrain` becomes a sharding constraint on this jax mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def lowering_mesh() -> Any:
    """The jax mesh on which the program is being lowered, or None."""
    return _mesh.get()


def partition_spec(layout: Layout) -> PartitionSpec:
    """(("x", "y"), (), None) -> P(("x", "y"), None, UNCONSTRAINED)"""
    return PartitionSpec(*map(_entry, layout))


def _entry(axes: tuple[str, ...] | None) -> Any:
    if axes is None:
        return PartitionSpec.UNCONSTRAINED
    return axes if len(axes) > 1 else axes[0] if axes else None


def spec_layout(spec: PartitionSpec, rank: int) -> Layout:
    """P(("x", "y"), UNCONSTRAINED) -> (("x", "y"), None, ()): dimensions left out are whole."""
    entries = (*spec, *(None,) * (rank - len(spec)))
    free = PartitionSpec.UNCONSTRAINED
    return tuple(
        None if axis is free else () if axis is None else (axis,) if isinstance(axis, str) else axis
        for axis in entries
    )


class Misfit(Exception):
    """A sharding that a mesh cannot have; the message says why."""


def fitted(sharding: Any, shape: tuple[int, ...], mesh: dict[str, int]) -> Layout:
    """The layout that a program's sharding asks for, on a mesh of these axes and sizes.

    Names decide, not devices. A name that the mesh has not is left out where it splits nothing on
    the program's mesh. Raises Misfit.
    """
    if not mesh:
        raise Misfit("there is no mesh to lay them over")
    if sharding is None:
        raise Misfit("they name no devices")
    if not isinstance(sharding, NamedSharding):
        raise Misfit(f"a {type(sharding).__name__} names no mesh axes")
    theirs = dict(sharding.mesh.shape)
    if sharding.mesh.size == 1:
        raise Misfit(f"their mesh {_shown(theirs)} has one device")
    if sharding.memory_kind not in (None, "device"):
        raise Misfit(f"the memory {sharding.memory_kind!r} cannot be asked for here")
    asked = spec_layout(sharding.spec, len(shape))
    names = {name for axes in asked for name in axes or () if name in mesh or theirs[name] > 1}
    # What is whole is whole along axes of its mesh, and unknown along others.
    unknown = sorted((names or {name for name in theirs if theirs[name] > 1}) - set(mesh))
    if unknown:
        raise Misfit(f"the mesh {brief(_shown(mesh))} has no axis {' or '.join(unknown)}")
    layout = tuple(axes and tuple(name for name in axes if name in names) for axes in asked)
    for size, axes in zip(shape, layout):
        if size % math.prod(mesh[name] for name in axes or ()):
            over = {name: mesh[name] for name in axes}
            raise Misfit(f"an axis of {size} does not divide over {_shown(over)}")
    return layout


def _shown(mesh: dict[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in mesh.items()) or "()"


def named_sharding(mesh: Any, layout: Layout | None, rank: int) -> NamedSharding:
    """The sharding of an array on a mesh; whole where no layout was decided."""
    decided = tuple(axes or () for axes in (layout if layout is not None else ((),) * rank))
    return NamedSharding(mesh, partition_spec(decided))


def constrain(x: Any, *, layout: Layout, why: str = "") -> Any:
    """x, laid out over the mesh: `layout` gives the mesh axes of each dimension.

    Raises ValueError for a layout of more dimensions than x has.
    """
    if len(layout) > x.ndim:
        raise ValueError(f"a layout of {len(layout)} dimensions is none of {x.ndim}")
    mesh = lowering_mesh()
    if mesh is None:
        return x
    return on_all_devices_of_the_step(x, NamedSharding(mesh, partition_spec(layout)))


def on_all_devices_of_the_step(x: Any, sharding: NamedSharding) -> Any:
    """x, so laid out. JAX's error for a `jit` of other devices around a step names this."""
    return jax.lax.with_sharding_constraint(x, sharding)


def show_layout(layout: Layout) -> str:
    """(("x", "y"), (), None) -> "xy _ ?": mesh axes per dimension, `_` where whole."""
    return " ".join("?" if axes is None else "".join(axes) or "_" for axes in layout)


class Sides(NamedTuple):
    """The layouts of an exchange, before and after: the names of its dimensions, and mesh axes."""

    names: tuple[str, ...]
    given: Layout
    wanted: Layout

    def __str__(self) -> str:
        before, after = (
            " ".join(f"{name}@{','.join(axes)}" if axes else name for name, axes in zip(*side))
            for side in ((self.names, self.given), (self.names, self.wanted))
        )
        return before if before == after else f"{before} -> {after}"

    def collectives(self, sums: tuple[str, ...]) -> str:
        """What it takes: `reduce-scatter x, all-to-all z`; "" if every chip has what it wants."""
        before, after = (
            {axis: place for place, axes in enumerate(side) for axis in axes} for side in self[1:]
        )
        kinds = {axis: "reduce-scatter" if axis in after else "all-reduce" for axis in sums}
        for axis in before:
            if after.get(axis) != before[axis]:
                kinds[axis] = "all-to-all" if axis in after else "all-gather"
        over = {kind: [x for x in kinds if kinds[x] == kind] for kind in kinds.values()}
        return ", ".join(f"{kind} {' '.join(axes)}" for kind, axes in over.items())


def sides(text: str) -> Sides:
    """`batch heads@y -> batch@y heads`, read; without an arrow both sides are the same."""
    before, _, after = text.partition(" -> ")
    names, given = _side(before)
    also, wanted = _side(after or before)
    if names != also:
        raise ValueError(f"the sides of {text!r} name other axes")
    return Sides(names, given, wanted)


def _side(text: str) -> tuple[tuple[str, ...], Layout]:
    words = [word.partition("@") for word in text.split()]
    layout = (tuple(filter(None, axes.split(","))) for _, _, axes in words)
    return tuple(name for name, _, _ in words), tuple(layout)


def exchange(
    x: Any, *, layouts: str, of: str = "", sums: tuple[str, ...] = (), by: str = ""
) -> Any:
    """x, as the chips have it, moved to where the next op wants it."""
    return constrain(x, layout=sides(layouts).wanted)


def _infer_exchange(types: Any, attrs: Any, regions: Any) -> Any:
    count = len(sides(attrs["layouts"]).names)
    if count != types[0].rank:
        raise ValueError(f"{types[0]} does not have {count} axes")
    return types


def laid_out(value: Value) -> Layout | None:
    """The layout that an op of this file gives; None for any other value."""
    if value.op.name == "exchange":
        return sides(value.op["layouts"]).wanted
    return value.op["layout"] if value.op.name == "constrain" else None


def _signature(op: Op) -> Signature:
    axes = numbered(op.types[0].rank)
    return Signature((axes,), (axes,))


opdef.define(
    OpDef(
        name="constrain",
        signature=_signature,
        infer=lambda types, attrs, regions: types,
        reference=constrain,
        attrs=("layout", "why"),
        doc="A sharding constraint over named mesh axes.",
        traits=Traits(moves=True, view=True, linear="all"),
    )
)

opdef.define(
    OpDef(
        name="exchange",
        signature=_signature,
        infer=_infer_exchange,
        reference=exchange,
        attrs=("layouts", "of", "sums", "by"),
        lead="layouts",
        doc="A value as the chips have it, partial sums over `sums`, moved to where it is wanted.",
        traits=Traits(moves=True, view=True, linear="all"),
    )
)
