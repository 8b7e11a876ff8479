"""What each mesh axis is used for, and the layouts of all tensors that follow from that.

A decoder's layer is split the same way in every layer, so a plan is one `Use` per mesh axis:

    weights    the axis of the weights that it splits, as they are stored: d_model, d_ff (with the
               heads and the experts, which lie as d_ff does), or neither: a copy on every chip
    stream     the axis of the residual stream that it splits: batch, d_model, or neither
    attention  what of attention it splits: heads, batch, or neither

Weights split along a mesh axis that splits the batch too are gathered over it before they are
read: weight-gathered. All others stay where they are: weight-stationary. Section 3 of "Efficiently
Scaling Transformer Inference" (arXiv:2211.05102) names ten of the combinations
(`dialect.planning.partitionings`); any other is as good if it is faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import HEADS
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.plan import Plan, Split

MeshAxes = tuple[str, ...]
Groups = tuple[tuple[str, Split], ...]


@dataclass(frozen=True)
class Use:
    """What one mesh axis splits; "" for nothing."""

    weights: str = ""
    stream: str = ""
    attention: str = ""

    @property
    def gathers(self) -> bool:
        """Whether weights are gathered over this axis."""
        return bool(self.weights) and self.stream == "batch"


# All that an axis can be used for. Of a weight-stationary d_model the residual stream is split as
# well, since the product behind gives it so; a batch that is split is split in attention too. On
# mesh axes that are alike the uses are tried in this order only (`dialect.planning.search`): the
# batch lies over the major ones, as in the paper.
USES = (
    Use("", "batch", "batch"),
    Use("d_model", "batch", "batch"),
    *(Use("d_model", "d_model", attention) for attention in ("heads", "batch")),
    Use("d_ff", "batch", "batch"),
    *(Use("d_ff", "d_model", attention) for attention in ("heads", "batch")),
    *(Use("d_ff", "", attention) for attention in ("heads", "batch")),
)
Uses = tuple[tuple[str, Use], ...]  # of every mesh axis, the major one first


@dataclass(frozen=True)
class Partitioning:
    """The layout of every group of tensors of one decoder on one mesh: the groups of a `Plan`."""

    label: str
    groups: Groups

    @cached_property
    def _splits(self) -> dict[str, dict[str, MeshAxes]]:
        return {group: dict(split) for group, split in self.groups}

    def split(self, group: str) -> dict[str, MeshAxes]:
        """The mesh axes of each logical axis in a group."""
        return dict(self._splits[group])

    def axes(self, group: str, *axes: str) -> MeshAxes:
        """The mesh axes of some logical axes of a group, one after the other."""
        split = self._splits[group]
        return tuple(each for axis in axes for each in split.get(axis, ()))


def gathered_in_pieces(plan: Plan | Partitioning) -> MeshAxes:
    """The mesh axes over which a compiler can gather large weights piece by piece, each beside the
    product of the one before: those of d_model, where they split the batch alike, and d_ff is split
    otherwise. Pieces of weights that are split along d_ff would come in another order, and of those
    read whole or over but a part of the batch none are made.
    """
    weights, used = plan.split("weights"), plan.split("used")
    over = without(weights.get("d_model", ()), used.get("d_model", ()))
    stays = all(used.get(name) == axes for name, axes in weights.items() if name != "d_model")
    alike = set(over) == set(plan.split("residual").get("batch", ()))
    return over if stays and alike and "d_ff" in used else ()


def arranged(label: str, uses: Uses, shape: DecoderShape, mesh: MeshSpec) -> Partitioning:
    """The layouts that follow from the uses of the mesh axes.

    Every axis of a tensor takes as many of the mesh axes that are meant for it as divide it, in
    their order; what is left of these holds copies.
    """
    over = Offered(uses)
    fit = Fit(shape, mesh)
    d_model, ffn = fit("d_model", over.weights("d_model")), fit.ffn(over.weights("d_ff"))
    batch = fit("batch", over.stream("batch"))
    stored = {"d_model": d_model, **ffn, **fit.heads(over.head_weights())}
    used = {axis: without(split, over.gathered()) for axis, split in stored.items()}
    over_batch = (*batch, *without(fit("batch", over.attention("batch", batch)), batch))
    heads = fit.heads(without(over.attention("heads"), over_batch))
    residual = {"batch": batch, "d_model": fit("d_model", over.stream("d_model"))}
    rows = {"batch": batch} if shape.routing else fit.scattered(batch, used["d_model"])
    hidden = rows | {axis: used[axis] for axis in ffn}
    tables = fit.tables(over, batch)
    logits = fit.logits(tables, (*over.weights("d_ff"), *over.weights("d_model")))
    groups = {
        "weights": stored,
        "used": used,
        "tables": tables,
        "residual": residual,
        "hidden": hidden,
        "attention": {"batch": over_batch, **heads},
        "cache": {"batch": over_batch, **fit.cached(heads)},
        "logits": logits,
    }
    return Partitioning(
        label,
        tuple(
            (group, tuple(each for each in splits.items() if each[1] and fit.size(each[0])))
            for group, splits in groups.items()
        ),
    )


def uses_of(made: Partitioning, mesh: MeshSpec) -> Uses:
    """What each mesh axis splits in the end."""

    def split(group: str, name: str, *axes: tuple[str, str]) -> str:
        return next((what for axis, what in axes if name in made.axes(group, axis)), "")

    heads = tuple((axis, "heads") for axis in HEADS)
    inner = tuple((axis, "d_ff") for axis in ("experts", "d_ff", *HEADS))
    outer = (("batch", "batch"), ("d_model", "d_model"))
    return tuple(
        (
            name,
            Use(
                split("weights", name, ("d_model", "d_model"), *inner),
                split("residual", name, *outer),
                split("attention", name, ("batch", "batch"), *heads),
            ),
        )
        for name in mesh.names
    )


@dataclass(frozen=True)
class Offered:
    """The mesh axes that are meant for each axis of the tensors, in the order of the mesh."""

    uses: Uses

    def weights(self, axis: str) -> MeshAxes:
        return tuple(name for name, use in self.uses if use.weights == axis)

    def stationary(self, axis: str) -> MeshAxes:
        return tuple(name for name, use in self.uses if use.weights == axis and not use.gathers)

    def gathered(self) -> MeshAxes:
        return tuple(name for name, use in self.uses if use.gathers)

    def stream(self, axis: str) -> MeshAxes:
        """Of d_model those first that the product behind leaves it split over."""
        names = [name for name, use in self.uses if use.stream == axis]
        first = self.stationary("d_model") if axis == "d_model" else ()
        return tuple(sorted(names, key=lambda name: name not in first))

    def attention(self, what: str, first: MeshAxes = ()) -> MeshAxes:
        """Of the heads those of d_model last, as they are scattered; of the batch those of d_ff,
        which come from the heads: what changes its place is the minor part of both."""
        names = [name for name, use in self.uses if use.attention == what]
        last = self.stationary("d_model" if what == "heads" else "d_ff")
        return tuple(sorted(names, key=lambda name: (name not in first, name in last)))

    def head_weights(self) -> MeshAxes:
        """Those of d_ff, and first those along which the heads stay where they are: what is
        split off the minor end moves to the batch in one all-to-all."""
        keep = {name for name, use in self.uses if use.attention == "heads"}
        return tuple(sorted(self.weights("d_ff"), key=lambda name: name not in keep))


@dataclass(frozen=True)
class Fit:
    """Which of the mesh axes that an axis of the decoder is offered divide it."""

    shape: DecoderShape
    mesh: MeshSpec

    def __call__(self, axis: str, offered: MeshAxes) -> MeshAxes:
        """As many of the mesh axes as divide this axis, taken in their order."""
        return _dividing(self.size(axis), tuple((name, self.ways(name)) for name in offered))

    def ways(self, name: str) -> int:
        return self.mesh.ways((name,))

    def heads(self, axes: MeshAxes) -> dict[str, MeshAxes]:
        """Query heads over those of the axes that divide them; with grouped queries the KV heads
        take what they can, and the queries of each group the rest."""
        if self.shape.kv_heads in (1, self.shape.heads):
            return {"heads": self("heads", axes)}
        kv_heads = self("kv_heads", axes)
        return {"kv_heads": kv_heads, "q_per_kv": self("q_per_kv", without(axes, kv_heads))}

    def ffn(self, axes: MeshAxes) -> dict[str, MeshAxes]:
        """Experts take what they can, and d_ff the rest: the sum over experts then comes last, of
        one result for each token. Those of a ragged product are whole on every chip."""
        split = self.shape.routing not in ("", "ragged")
        experts = self("experts", axes) if split else ()
        return {"experts": experts, "d_ff": self("d_ff", without(axes, experts))}

    def scattered(self, batch: MeshAxes, partial: MeshAxes) -> dict[str, MeshAxes]:
        """Where partial sums over these mesh axes are scattered to: the rows, which are batch, or
        time where each chip has one sequence. Along the axis that is read next the compiler only
        ever sums them up on all chips."""
        over_batch = self("batch", (*batch, *partial))
        alone = self.shape.batch == self.mesh.ways(over_batch)
        return {
            "batch": over_batch,
            "time": self("time", without(partial, over_batch)) if alone else (),
        }

    def cached(self, heads: dict[str, MeshAxes]) -> dict[str, MeshAxes]:
        """The cache has KV heads only: one KV head is on every chip that reads it."""
        if self.shape.kv_heads == 1:
            return {}
        return {axis: split for axis, split in heads.items() if axis != "q_per_kv"}

    def tables(self, over: Offered, batch: MeshAxes) -> dict[str, MeshAxes]:
        """The embedding and the weights of the logits, which are never gathered: where all axes
        split the batch, d_model is split, since the rows of a table are wanted everywhere. Beside
        them rows keep their batch split over what mesh axes the table leaves free."""
        d_model, vocab = over.stationary("d_model"), over.stationary("d_ff")
        if not d_model and not vocab:
            d_model = tuple(name for name, use in over.uses if use != Use())
        d_model, vocab = self("d_model", d_model), self("vocab", vocab)
        free = without(batch, (*d_model, *vocab))
        return {"d_model": d_model, "vocab": vocab, "batch": free}

    def logits(self, tables: dict[str, MeshAxes], weights: MeshAxes) -> dict[str, MeshAxes]:
        """As the tables leave them, partial sums scattered over the rows; over the vocabulary
        where there are too few."""
        partial, vocab, batch = tables["d_model"], tables["vocab"], tables["batch"]
        if partial and self("batch", (*batch, *partial)) == (*batch, *partial):
            return {"batch": (*batch, *partial), "vocab": vocab}
        return {
            "batch": batch,
            "vocab": self("vocab", without(weights if vocab else partial, batch)),
        }

    def size(self, axis: str) -> int:
        if axis == "q_per_kv":
            return self.shape.heads // self.shape.kv_heads
        return getattr(self.shape, axis)


@cache
def _dividing(size: int, offered: tuple[tuple[str, int], ...]) -> MeshAxes:
    taken, ways = (), 1
    for name, count in offered:
        if size % (ways * count) == 0:
            taken, ways = (*taken, name), ways * count
    return taken


def without(axes: Iterable[str], taken: Iterable[str]) -> MeshAxes:
    """The mesh axes that are not taken, in their order."""
    return tuple(axis for axis in axes if axis not in set(taken))
