"""Sharding: the `constrain` op, and the mesh in which a program is being lowered.

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
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rewrite import opdef
from rewrite.errors import brief
from rewrite.ir import Op
from rewrite.opdef import OpDef, Traits
from rewrite.program import Layout
from rewrite.signature import Signature

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
    """x, laid out over the mesh: `layout` gives the mesh axes of each dimension."""
    mesh = lowering_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(layout)))


def show_layout(layout: Layout) -> str:
    """(("x", "y"), (), None) -> "xy _ ?": mesh axes per dimension, `_` where whole."""
    return " ".join("?" if axes is None else "".join(axes) or "_" for axes in layout)


def _signature(op: Op) -> Signature:
    axes = tuple((f"x{i}",) for i in range(op.types[0].rank))
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
