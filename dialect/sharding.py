"""Sharding: the `constrain` op, and the mesh in which a program is being lowered.

A program names mesh axes, never a mesh; which devices stand behind them is said when it is
lowered. Evaluated without a mesh, a constraint is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rewrite import opdef
from rewrite.ir import Op
from rewrite.opdef import OpDef
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


def partition_spec(layout: Layout) -> PartitionSpec:
    """(("x", "y"), ()) -> P(("x", "y"), None)"""
    return PartitionSpec(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in layout))


def named_sharding(mesh: Any, layout: Layout | None, rank: int) -> NamedSharding:
    """The sharding of an array on a mesh; replicated where no layout was decided."""
    return NamedSharding(mesh, partition_spec(layout if layout is not None else ((),) * rank))


def constrain(x: Any, *, layout: Layout, why: str = "") -> Any:
    """x, laid out over the mesh: `layout` gives the mesh axes of each dimension."""
    mesh = _mesh.get()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, named_sharding(mesh, layout, x.ndim))


def show_layout(layout: Layout) -> str:
    """(("x", "y"), ()) -> "xy _": mesh axes per dimension, `_` where whole."""
    return " ".join("".join(axes) if axes else "_" for axes in layout)


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
    )
)
