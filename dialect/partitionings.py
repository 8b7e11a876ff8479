"""The named partitionings of "Efficiently Scaling Transformer Inference" (arXiv:2211.05102).

A partitioning is a layout of the feed-forward layer (section 3.2) with a layout of attention
(section 3.3). In the paper's notation, on a mesh x, y, z, with B batch, E d_model, F d_ff:

    ffn     weights stored   products read   residual stream   hidden
    ws1d    E F_xyz          E F_xyz         E                 F_xyz
    ws2d    E_x F_yz         E_x F_yz        E_xyz             F_yzx
    wg_x    E_x F_yz         E F_yz          B_x E_yz          B_x F_yz
    wg_xy   E_x F_yz         E F_z           B_xy E_z          B_xy F_z
    wg_xyz  E_x F_yz         E F             B_xyz E           B_xyz F

    attention = heads: heads over the axes that the batch leaves;  batch: batch over all of them.

The letters stand for mesh axes by position, whatever these are called. On two axes yz = y; on
one axis x is empty. An order such as yzx is major first: F_yz, once reduced over x, is F_yzx.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dialect.mesh import MeshSpec
from rewrite.errors import PlanError, nearest
from rewrite.plan import Split

MeshAxes = tuple[str, ...]
Groups = tuple[tuple[str, Split], ...]


class Unavailable(PlanError):
    """A partitioning that this decoder cannot have on this mesh; the message says why."""


@dataclass(frozen=True)
class DecoderShape:
    """What the cost of one step of a decoder depends on.

    - batch: sequences; time: new positions of each in the step (1 in decode)
    - context: positions that attention reads, the new ones included
    - ffn_matrices: 2, or 3 with a gate
    - parallel: attention and feed-forward layer read the same norm and share one addition
    - logits_time: positions of each sequence whose logits are computed
    - tied_embedding: one table for the embedding and the logits
    - *_bytes_per_element: of weights, embedding tables, activations and the KV cache

    What a program has not, or what was not recognised in it, has size 0: it divides over any mesh
    and costs nothing.
    """

    batch: int
    time: int
    context: int
    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    d_head: int
    vocab: int
    ffn_matrices: int = 3
    parallel: bool = False
    tied_embedding: bool = False
    logits_time: int = 1
    weight_bytes_per_element: float = 2
    embedding_bytes_per_element: float = 2
    activation_bytes_per_element: float = 2
    cache_bytes_per_element: float = 2

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise PlanError(f"{self.heads} heads do not divide over {self.kv_heads} KV heads")

    @property
    def absent(self) -> tuple[str, ...]:
        """What of a decoder is not there, or was not recognised."""
        parts = {"attention": self.heads, "feed-forward layer": self.d_ff}
        parts |= {"vocabulary": self.vocab, "residual stream": self.d_model}
        return tuple(name for name, size in parts.items() if not size)

    @property
    def tokens(self) -> int:
        """New positions in the step, over all sequences."""
        return self.batch * self.time

    @property
    def logits_rows(self) -> int:
        """Positions in the step whose logits are computed."""
        return self.batch * self.logits_time

    @property
    def ffn_weights(self) -> int:
        """Elements of one layer's feed-forward weights."""
        return self.ffn_matrices * self.d_model * self.d_ff


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


@dataclass(frozen=True)
class Partitioning:
    """A named partitioning made for one decoder and mesh: the groups of a `Plan`."""

    ffn: str
    attention: str
    groups: Groups

    @property
    def label(self) -> str:
        return f"{self.ffn}/{self.attention}"

    def split(self, group: str) -> dict[str, MeshAxes]:
        """The mesh axes of each logical axis in a group."""
        return dict(dict(self.groups)[group])

    def axes(self, group: str, *axes: str) -> MeshAxes:
        """The mesh axes of some logical axes of a group, one after the other."""
        split = self.split(group)
        return tuple(each for axis in axes for each in split.get(axis, ()))


def fit(attention: str, shape: DecoderShape, mesh: MeshSpec) -> Partitioning:
    """ws1d over as many mesh axes as divide each axis, down to none: every decoder can have it."""
    return _Builder(FFN["ws1d"], shape, mesh, strict=False).build("fit", attention)


def partition(ffn: str, attention: str, shape: DecoderShape, mesh: MeshSpec) -> Partitioning:
    """The partitioning of a decoder over a mesh.

    Heads, KV heads and the vocabulary stay whole along mesh axes that do not divide them, where
    a copy will do. Raises Unavailable where an axis must divide and does not; PlanError for an
    unknown name.
    """
    for name, known in ((ffn, FFN), (attention, ATTENTION)):
        if name not in known:
            raise PlanError(f"unknown partitioning {name!r}", hint=nearest(name, known))
    return _Builder(FFN[ffn], shape, mesh).build(ffn, attention)


class _Builder:
    """Turns letters into mesh axes, and checks that they divide; else takes those that do."""

    def __init__(self, ffn: Ffn, shape: DecoderShape, mesh: MeshSpec, strict: bool = True) -> None:
        self.ffn, self.shape, self.mesh, self.strict = ffn, shape, mesh, strict

    def axes(self, letters: str) -> MeshAxes:
        """The mesh axes that letters stand for; axes of one chip split nothing."""
        names = tuple(name for name, size in self.mesh.axes if size > 1)
        by_letter = {"x": names[:1], "y": names[1:2], "z": names[2:]}
        if len(names) == 1:
            by_letter = {"x": (), "y": names, "z": ()}
        return tuple(name for letter in letters for name in by_letter[letter])

    def build(self, ffn: str, attention: str) -> Partitioning:
        layout = self.ffn
        everywhere = self.axes("xyz")
        gathered = self.axes(layout.gathered)
        hidden = self.without(self.axes(layout.d_ff + layout.d_model), gathered)
        self.distinct(ffn, attention, gathered)
        self.must_divide("d_model", self.axes(layout.d_model), "weights")
        self.must_divide("d_ff", self.axes(layout.d_ff), "weights")
        self.must_divide("heads", self.axes(layout.d_ff), "weights")
        self.must_divide("batch", gathered, "residual")
        self.must_divide("d_model", self.axes(layout.residual), "residual")
        self.must_divide("d_ff", hidden, "hidden")
        d_model, d_ff = self.axes(layout.d_model), self.fitting("d_ff", self.axes(layout.d_ff))
        stored = {"d_model": d_model, "d_ff": d_ff, **self.heads(self.axes(layout.d_ff))}
        over_batch = everywhere if attention == "batch" else gathered
        self.must_divide("batch", over_batch, "attention")
        over_batch = self.fitting("batch", over_batch)
        heads = self.heads(self.without(hidden, over_batch))
        groups = {
            "weights": stored,
            "used": {axis: self.without(split, gathered) for axis, split in stored.items()},
            "tables": self.tables(),
            "residual": {"batch": gathered, "d_model": self.axes(layout.residual)},
            "hidden": {"batch": gathered, "d_ff": self.fitting("d_ff", hidden)},
            "attention": {"batch": over_batch, **heads},
            "cache": {"batch": over_batch, **self.cached(heads)},
            "logits": {"vocab": self.fitting("vocab", self.axes(layout.d_ff + layout.d_model))},
        }
        return Partitioning(
            ffn,
            attention,
            tuple(
                (group, tuple(each for each in splits.items() if each[1] and self.size(each[0])))
                for group, splits in groups.items()
            ),
        )

    def tables(self) -> dict[str, MeshAxes]:
        """The embedding and the weights of the logits, which are never gathered: where the batch
        is split, d_model is, since rows of a table split over its vocabulary are everywhere."""
        layout = self.ffn
        if layout.gathered:
            return {"d_model": self.fitting("d_model", self.axes("xyz"))}
        d_model = self.axes(layout.d_model)
        return {"d_model": d_model, "vocab": self.fitting("vocab", self.axes(layout.d_ff))}

    def heads(self, axes: MeshAxes) -> dict[str, MeshAxes]:
        """Query heads over those of the axes that divide them; with grouped queries the KV heads
        take what they can, and the queries of each group the rest."""
        if self.shape.kv_heads in (1, self.shape.heads):
            return {"heads": self.fitting("heads", axes)}
        kv_heads = self.fitting("kv_heads", axes)
        return {
            "kv_heads": kv_heads,
            "q_per_kv": self.fitting("q_per_kv", self.without(axes, kv_heads)),
        }

    def cached(self, heads: dict[str, MeshAxes]) -> dict[str, MeshAxes]:
        """The cache has KV heads only: one KV head is on every chip that reads it."""
        if self.shape.kv_heads == 1:
            return {}
        return {axis: split for axis, split in heads.items() if axis != "q_per_kv"}

    def distinct(self, ffn: str, attention: str, gathered: MeshAxes) -> None:
        """Raises Unavailable where this mesh makes two partitionings the same: one will do."""
        same = "wg_xyz" if ffn == "wg_xy" and not self.axes("z") else ""
        same = same or ("ws2d" if ffn == "wg_x" and not self.axes("x") else "")
        if same:
            raise Unavailable(f"on the mesh {self.mesh} this is {same}/{attention}")
        if attention == "heads" and gathered and gathered == self.axes("xyz"):
            raise Unavailable("the batch takes every mesh axis and leaves none to the heads")

    def must_divide(self, axis: str, axes: MeshAxes, group: str) -> None:
        size, ways = self.size(axis), self.mesh.ways(axes)
        if axis == "heads":
            split = [each for part in self.heads(axes).values() for each in part]
            divides = self.mesh.ways(tuple(split)) == ways
        else:
            divides = size % ways == 0
        if divides or not self.strict:
            return
        over = " ".join(f"{name}={self.mesh.ways((name,))}" for name in axes)
        raise Unavailable(
            f"{group}: {axis} ({size}) does not divide over {over} ({ways} chips)",
            hint=f"pad {axis} to {-(-size // ways) * ways}, or split another axis",
        )

    def fitting(self, axis: str, axes: MeshAxes) -> MeshAxes:
        """As many of the mesh axes as divide this axis, taken in their order."""
        taken: MeshAxes = ()
        for name in axes:
            if self.size(axis) % self.mesh.ways((*taken, name)) == 0:
                taken = (*taken, name)
        return taken

    def size(self, axis: str) -> int:
        if axis == "q_per_kv":
            return self.shape.heads // self.shape.kv_heads
        return getattr(self.shape, axis)

    @staticmethod
    def without(axes: Iterable[str], taken: Iterable[str]) -> MeshAxes:
        return tuple(axis for axis in axes if axis not in set(taken))
