"""The named partitionings of "Efficiently Scaling Transformer Inference" (arXiv:2211.05102).

A partitioning is a layout of the feed-forward layer (section 3.2) with a layout of attention
(section 3.3). In the paper's notation, on a mesh x, y, z, with B batch, E d_model, F d_ff:

    ffn     weights stored   products read   residual stream   hidden
    ws1d    E F_xyz          E F_xyz         E                 F_xyz
    ws2d    E_x F_yz         E_x F_yz        E_xyz             B_x F_yz
    wg_x    E_x F_yz         E F_yz          B_x E_yz          B_x F_yz
    wg_xy   E_x F_yz         E F_z           B_xy E_z          B_xy F_z
    wg_xyz  E_x F_yz         E F             B_xyz E           B_xyz F

    attention = heads: heads over the axes that the batch leaves;  batch: batch over all of them.

The letters stand for mesh axes by position, whatever their names. On two axes yz = y; on one axis
x is empty. The paper scatters the partial sums of ws2d's hidden values along F_yzx; here they are
scattered along the rows (`dialect.compiled.constraints`), with the same bytes.

The names are labels: a result of the search (`dialect.planning.search`) with the same layout gets
the name. Any other is labelled by its layout: `EF_xyz>B_xyzE` stores weights as E F_xyz and has a
residual stream B_xyz E.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import HEADS
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import (
    Fit,
    MeshRole,
    MeshRoles,
    OfferedAxes,
    Partitioning,
    partitioning_of,
)
from rewrite.errors import PlanError, nearest


class Unavailable(PlanError):
    """Raised for a partitioning that a decoder cannot have on a mesh, with the reason."""


@dataclass(frozen=True)
class Ffn:
    """A layout of the feed-forward layer, in letters of mesh axes; see the table above."""

    d_model: str  # shards d_model of the stored weights
    d_ff: str  # shards d_ff of the stored weights
    gathered: str  # shards the batch, so weights are all-gathered over it
    residual: str  # shards d_model of the residual stream


FFN = {
    "ws1d": Ffn(d_model="", d_ff="xyz", gathered="", residual=""),
    "ws2d": Ffn(d_model="x", d_ff="yz", gathered="", residual="xyz"),
    "wg_x": Ffn(d_model="x", d_ff="yz", gathered="x", residual="yz"),
    "wg_xy": Ffn(d_model="x", d_ff="yz", gathered="xy", residual="z"),
    "wg_xyz": Ffn(d_model="x", d_ff="yz", gathered="xyz", residual=""),
}
ATTENTION = ("heads", "batch")
_TOGETHER = {"heads": HEADS, "d_ff": ("experts", "d_ff")}  # axes that share their mesh axes
_PREFERRED = ("ws1d", "ws2d", "wg_xyz", "wg_x", "wg_xy")  # order, if two are the same on a mesh
NAMES = tuple(f"{ffn}/{attention}" for ffn in FFN for attention in ATTENTION)


def letters(mesh: MeshSpec) -> dict[str, str]:
    """The letter of every mesh axis of more than one chip; the axis over slices (`dcn`) is last."""
    names = [name for name, size in mesh.axes if size > 1 and name != "dcn"]
    names += [name for name, size in mesh.axes if size > 1 and name == "dcn"]
    if len(names) == 1:
        return {names[0]: "y"}
    return {name: "xyz"[min(at, 2)] for at, name in enumerate(names)}


def named_mesh_roles(ffn: str, attention: str, mesh: MeshSpec) -> MeshRoles:
    """The roles of the mesh axes in a named partitioning. Raises PlanError for an unknown name."""
    for name, known in ((ffn, FFN), (attention, ATTENTION)):
        if name not in known:
            raise PlanError(f"unknown partitioning {name!r}", hint=nearest(name, known))
    by_letter = letters(mesh)
    return tuple(
        (name, _role(FFN[ffn], attention, by_letter[name]) if name in by_letter else MeshRole())
        for name in mesh.names
    )


def _role(layout: Ffn, attention: str, letter: str) -> MeshRole:
    weights = "d_model" if letter in layout.d_model else "d_ff"
    if letter in layout.gathered:
        return MeshRole(weights, "batch", "batch")
    return MeshRole(weights, "d_model" if letter in layout.residual else "", attention)


def partition(ffn: str, attention: str, shape: DecoderShape, mesh: MeshSpec) -> Partitioning:
    """The named partitioning of a decoder over a mesh.

    KV heads and the vocabulary are replicated over mesh axes that do not divide them. Raises
    Unavailable if an axis must be divided and is not; PlanError for an unknown name.
    """
    roles = named_mesh_roles(ffn, attention, mesh)
    label = f"{ffn}/{attention}"
    same = label_of(roles, mesh)
    if same == f"{ffn}/batch" != label and mesh.size > 1:
        raise Unavailable("the batch takes every mesh axis, so none is left for the heads")
    if same != label:
        raise Unavailable(f"on the mesh {mesh} this is {same}")
    partitioning = partitioning_of(label, roles, shape, mesh)
    _must_divide(partitioning, roles, shape, mesh)
    return partitioning


def _must_divide(
    partitioning: Partitioning, roles: MeshRoles, shape: DecoderShape, mesh: MeshSpec
) -> None:
    """Raises Unavailable if an axis is sharded over fewer mesh axes than the name implies."""
    offered = OfferedAxes(roles)
    required = (
        ("weights", "d_model", offered.weights("d_model")),
        ("weights", "d_ff", offered.weights("d_ff")),
        ("weights", "heads", offered.weights("d_ff")),
        ("residual", "batch", offered.stream("batch")),
        ("residual", "d_model", offered.stream("d_model")),
        ("attention", "batch", offered.attention("batch")),
    )
    for group, axis, axes in required:
        size = Fit(shape, mesh).size(axis)
        names = _TOGETHER.get(axis, (axis,))
        if size and set(partitioning.axes(group, *names)) != set(axes):
            ways = mesh.ways(axes)
            over = " ".join(f"{name}={count}" for name, count in mesh.axes if name in axes)
            grouped = axis == "heads" and 1 < shape.kv_heads < size
            counted = f"{size}, for {shape.kv_heads} KV heads" if grouped else size
            padding = f"pad {axis} to {-(-size // ways) * ways}, or " if size % ways else ""
            raise Unavailable(
                f"{group}: {axis} ({counted}) does not divide over {over} ({ways} chips)",
                hint=f"{padding}shard another axis",
            )


def label_of(roles: MeshRoles, mesh: MeshSpec) -> str:
    """The name of these roles of the mesh axes, or their layouts in the paper's notation."""
    roles = tuple((name, role) for name, role in roles if dict(mesh.axes)[name] > 1)
    for ffn, attention in itertools.product(_PREFERRED, ATTENTION[::-1] if roles else ATTENTION):
        named = named_mesh_roles(ffn, attention, mesh)
        if roles == tuple((name, role) for name, role in named if name in dict(roles)):
            return f"{ffn}/{attention}"
    by_letter = letters(mesh)

    def spec(letter: str, tensor: str, axis: str) -> str:
        over = "".join(by_letter[name] for name, role in roles if getattr(role, tensor) == axis)
        return f"{letter}_{over}" if over else letter

    weights = spec("E", "weights", "d_model") + spec("F", "weights", "d_ff")
    stream = spec("B", "stream", "batch") + spec("E", "stream", "d_model")
    kinds = {role.attention for _, role in roles} - {""}
    return f"{weights}>{stream}/{'+'.join(sorted(kinds, reverse=True)) or 'whole'}"
