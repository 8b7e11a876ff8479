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

The letters stand for mesh axes by position, whatever these are called. On two axes yz = y; on
one axis x is empty. The paper scatters the partial sums of ws2d's hidden values along F_yzx; the
rows carry the same bytes, and it is rows that the compiler scatters.

Names are labels: what the search finds (`dialect.planning.search`) earns one if it is the same
layout. What the paper has no name for is called by its layout, `EF_xyz>B_xyzE` being weights stored
E F_xyz under a residual stream B_xyz E.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import HEADS
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.uses import Fit, MeshAxes, Partitioning, Use, Uses, arranged
from rewrite.errors import PlanError, nearest


class Unavailable(PlanError):
    """A partitioning that this decoder cannot have on this mesh; the message says why."""


@dataclass(frozen=True)
class Ffn:
    """A layout of the feed-forward layer, in letters of the mesh; see the table above."""

    d_model: str  # of the stored weights
    d_ff: str  # of the stored weights
    gathered: str  # axes that split the batch, so that the weights are gathered over them
    residual: str  # d_model of the residual stream


FFN = {
    "ws1d": Ffn(d_model="", d_ff="xyz", gathered="", residual=""),
    "ws2d": Ffn(d_model="x", d_ff="yz", gathered="", residual="xyz"),
    "wg_x": Ffn(d_model="x", d_ff="yz", gathered="x", residual="yz"),
    "wg_xy": Ffn(d_model="x", d_ff="yz", gathered="xy", residual="z"),
    "wg_xyz": Ffn(d_model="x", d_ff="yz", gathered="xyz", residual=""),
}
ATTENTION = ("heads", "batch")
_LIE_ALIKE = {"heads": HEADS, "d_ff": ("experts", "d_ff")}
_PREFERRED = ("ws1d", "ws2d", "wg_xyz", "wg_x", "wg_xy")  # where a mesh makes two of them the same
NAMES = tuple(f"{ffn}/{attention}" for ffn in FFN for attention in ATTENTION)


def letters(mesh: MeshSpec) -> dict[str, str]:
    """The letter that each mesh axis of more than one chip stands for; slices are the last."""
    names = [name for name, size in mesh.axes if size > 1 and name != "dcn"]
    names += [name for name, size in mesh.axes if size > 1 and name == "dcn"]
    if len(names) == 1:
        return {names[0]: "y"}
    return {name: "xyz"[min(at, 2)] for at, name in enumerate(names)}


def named_uses(ffn: str, attention: str, mesh: MeshSpec) -> Uses:
    """The uses of the mesh axes in a named partitioning. Raises PlanError for an unknown name."""
    for name, known in ((ffn, FFN), (attention, ATTENTION)):
        if name not in known:
            raise PlanError(f"unknown partitioning {name!r}", hint=nearest(name, known))
    by_letter = letters(mesh)
    return tuple(
        (name, _use(FFN[ffn], attention, by_letter[name]) if name in by_letter else Use())
        for name in mesh.names
    )


def _use(layout: Ffn, attention: str, letter: str) -> Use:
    weights = "d_model" if letter in layout.d_model else "d_ff"
    if letter in layout.gathered:
        return Use(weights, "batch", "batch")
    return Use(weights, "d_model" if letter in layout.residual else "", attention)


def partition(ffn: str, attention: str, shape: DecoderShape, mesh: MeshSpec) -> Partitioning:
    """The named partitioning of a decoder over a mesh.

    Heads, KV heads and the vocabulary stay whole along mesh axes that do not divide them, where
    a copy will do. Raises Unavailable where an axis must divide and does not; PlanError for an
    unknown name.
    """
    uses = named_uses(ffn, attention, mesh)
    label = f"{ffn}/{attention}"
    same = label_of(uses, mesh)
    if same == f"{ffn}/batch" != label and mesh.size > 1:
        raise Unavailable("the batch takes every mesh axis and leaves none to the heads")
    if same != label:
        raise Unavailable(f"on the mesh {mesh} this is {same}")
    made = arranged(label, uses, shape, mesh)
    _must_divide(made, uses, shape, mesh)
    return made


def _must_divide(made: Partitioning, uses: Uses, shape: DecoderShape, mesh: MeshSpec) -> None:
    """Raises Unavailable where an axis is split over fewer mesh axes than its name says."""
    asked: list[tuple[str, str, MeshAxes]] = []
    for axis in ("d_model", "d_ff"):
        asked.append(("weights", axis, tuple(n for n, use in uses if use.weights == axis)))
    asked.append(("weights", "heads", tuple(n for n, use in uses if use.weights == "d_ff")))
    for axis in ("batch", "d_model"):
        asked.append(("residual", axis, tuple(n for n, use in uses if use.stream == axis)))
    over_batch = tuple(name for name, use in uses if use.attention == "batch")
    asked.append(("attention", "batch", over_batch))
    for group, axis, axes in asked:
        size = Fit(shape, mesh).size(axis)
        names = _LIE_ALIKE.get(axis, (axis,))
        if size and set(made.axes(group, *names)) != set(axes):
            ways = mesh.ways(axes)
            over = " ".join(f"{name}={mesh.ways((name,))}" for name in axes)
            raise Unavailable(
                f"{group}: {axis} ({size}) does not divide over {over} ({ways} chips)",
                hint=f"pad {axis} to {-(-size // ways) * ways}, or split another axis",
            )


def label_of(uses: Uses, mesh: MeshSpec) -> str:
    """The name that uses of the mesh axes earn, or their layouts in the paper's notation."""
    uses = tuple((name, use) for name, use in uses if dict(mesh.axes)[name] > 1)
    for ffn, attention in itertools.product(_PREFERRED, ATTENTION[::-1] if uses else ATTENTION):
        found = named_uses(ffn, attention, mesh)
        if uses == tuple(each for each in found if each[0] in dict(uses)):
            return f"{ffn}/{attention}"
    by_letter = letters(mesh)

    def split(letter: str, kind: str, axis: str) -> str:
        over = "".join(by_letter[name] for name, use in uses if getattr(use, kind) == axis)
        return f"{letter}_{over}" if over else letter

    weights = split("E", "weights", "d_model") + split("F", "weights", "d_ff")
    stream = split("B", "stream", "batch") + split("E", "stream", "d_model")
    kinds = {use.attention for _, use in uses} - {""}
    return f"{weights}>{stream}/{'+'.join(sorted(kinds, reverse=True)) or 'whole'}"
