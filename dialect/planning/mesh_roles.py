"""The role of every mesh axis, and the partition specs of all tensors that follow from the roles.

All layers of a decoder are sharded alike, so a plan is one `MeshRole` per mesh axis:

    weights    the axis of the stored weights that it shards: d_model, d_ff (together with heads and
               experts), or neither (replicated)
    stream     the axis of the residual stream that it shards: batch, d_model, or neither
    attention  the axis of attention that it shards: heads, batch, or neither

Weights are all-gathered before use over mesh axes that shard the batch too (weight-gathered, as in
FSDP) and stay sharded over all others (weight-stationary, tensor parallelism). Section 3 of
"Efficiently Scaling Transformer Inference" (arXiv:2211.05102) names ten of the combinations
(`dialect.planning.partitionings`); the search considers all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import HEADS
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.plan import Split

MeshAxes = tuple[str, ...]
Groups = tuple[tuple[str, Split], ...]


@dataclass(frozen=True)
class MeshRole:
    """What one mesh axis shards; "" for nothing."""

    weights: str = ""
    stream: str = ""
    attention: str = ""

    @property
    def gathers(self) -> bool:
        """Whether weights are all-gathered over this axis."""
        return bool(self.weights) and self.stream == "batch"


# All roles of a mesh axis. An axis that shards a weight-stationary d_model shards the residual
# stream as well, since the next product returns it so; a sharded batch is sharded in attention too.
# Interchangeable mesh axes get their roles in this order (`dialect.planning.search`): the batch is
# sharded over the major ones, as in the paper.
MESH_ROLES = (
    MeshRole("", "batch", "batch"),
    MeshRole("d_model", "batch", "batch"),
    *(MeshRole("d_model", "d_model", attention) for attention in ("heads", "batch")),
    MeshRole("d_ff", "batch", "batch"),
    *(MeshRole("d_ff", "d_model", attention) for attention in ("heads", "batch")),
    *(MeshRole("d_ff", "", attention) for attention in ("heads", "batch")),
)
MeshRoles = tuple[tuple[str, MeshRole], ...]  # (mesh axis, its role), major first


@dataclass(frozen=True)
class Partitioning:
    """The sharding of every group of tensors of one decoder on one mesh: the groups of a `Plan`."""

    label: str
    groups: Groups

    @cached_property
    def _splits(self) -> dict[str, dict[str, MeshAxes]]:
        return {group: dict(split) for group, split in self.groups}

    def split(self, group: str) -> dict[str, MeshAxes]:
        """The mesh axes of each logical axis in a group."""
        return dict(self._splits[group])

    def axes(self, group: str, *axes: str) -> MeshAxes:
        """The mesh axes of these logical axes of a group, concatenated."""
        split = self._splits[group]
        return tuple(mesh_axis for axis in axes for mesh_axis in split.get(axis, ()))


def partitioning_of(
    label: str, roles: MeshRoles, shape: DecoderShape, mesh: MeshSpec
) -> Partitioning:
    """The partitioning that follows from the roles of the mesh axes.

    Every axis of a tensor is sharded over those of its mesh axes that divide it, in their order,
    and replicated over the others.
    """
    over = OfferedAxes(roles)
    fit = Fit(shape, mesh)
    d_model = fit("d_model", over.weights("d_model"))
    ffn = fit.ffn(over.head_weights() if shape.is_parallel else over.weights("d_ff"))
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
            (group, tuple((axis, over) for axis, over in split.items() if over and fit.size(axis)))
            for group, split in groups.items()
        ),
    )


def mesh_roles_of(partitioning: Partitioning, mesh: MeshSpec) -> MeshRoles:
    """The roles that the mesh axes have in a partitioning."""

    def split(group: str, name: str, *axes: tuple[str, str]) -> str:
        return next((role for axis, role in axes if name in partitioning.axes(group, axis)), "")

    heads = tuple((axis, "heads") for axis in HEADS)
    inner = tuple((axis, "d_ff") for axis in ("experts", "d_ff", *HEADS))
    outer = (("batch", "batch"), ("d_model", "d_model"))
    return tuple(
        (
            name,
            MeshRole(
                split("weights", name, ("d_model", "d_model"), *inner),
                split("residual", name, *outer),
                split("attention", name, ("batch", "batch"), *heads),
            ),
        )
        for name in mesh.names
    )


@dataclass(frozen=True)
class OfferedAxes:
    """The mesh axes with a role in an axis of a tensor, in the order of the mesh if not stated."""

    roles: MeshRoles

    def weights(self, axis: str) -> MeshAxes:
        """The mesh axes that shard this axis of the stored weights."""
        return tuple(name for name, role in self.roles if role.weights == axis)

    def stationary(self, axis: str) -> MeshAxes:
        """Those of `weights` over which the weights are not gathered."""
        return tuple(name for name, role in self.roles if role.weights == axis and not role.gathers)

    def gathered(self) -> MeshAxes:
        """The mesh axes over which weights are all-gathered."""
        return tuple(name for name, role in self.roles if role.gathers)

    def stream(self, axis: str) -> MeshAxes:
        """The mesh axes of the residual stream; of d_model first those over which the preceding
        product leaves it sharded."""
        names = [name for name, role in self.roles if role.stream == axis]
        first = self.stationary("d_model") if axis == "d_model" else ()
        return tuple(sorted(names, key=lambda name: name not in first))

    def attention(self, axis: str, first: MeshAxes = ()) -> MeshAxes:
        """The mesh axes of `heads` or `batch` in attention, in an order that makes the resharded
        part the minor one: of heads, the axes that scatter d_model come last; of the batch, the
        axes of d_ff, which shard heads before."""
        names = [name for name, role in self.roles if role.attention == axis]
        last = self.stationary("d_model" if axis == "heads" else "d_ff")
        return tuple(sorted(names, key=lambda name: (name not in first, name in last)))

    def head_weights(self) -> MeshAxes:
        """The mesh axes of d_ff for the projections to heads: first those that shard heads in
        attention too, so that the minor rest moves to the batch in one all-to-all."""
        kept = {name for name, role in self.roles if role.attention == "heads"}
        return tuple(sorted(self.weights("d_ff"), key=lambda name: name not in kept))


@dataclass(frozen=True)
class Fit:
    """Divisibility: which of the offered mesh axes shard an axis of the decoder."""

    shape: DecoderShape
    mesh: MeshSpec

    def __call__(self, axis: str, offered: MeshAxes) -> MeshAxes:
        """The mesh axes that divide this axis together, taken greedily in their order."""
        return _dividing(self.size(axis), tuple((name, self.ways(name)) for name in offered))

    def ways(self, name: str) -> int:
        """The number of shards over one mesh axis."""
        return self.mesh.ways((name,))

    def heads(self, axes: MeshAxes) -> dict[str, MeshAxes]:
        """Query heads over the mesh axes that divide them; with grouped queries the KV heads take
        the mesh axes that divide them, and the queries of a group the rest."""
        if self.shape.kv_heads in (1, self.shape.heads):
            return {"heads": self("heads", axes)}
        kv_heads = self("kv_heads", axes)
        return {"kv_heads": kv_heads, "q_per_kv": self("q_per_kv", without(axes, kv_heads))}

    def ffn(self, axes: MeshAxes) -> dict[str, MeshAxes]:
        """Experts take the mesh axes that divide them, and d_ff the rest, so that the sum over
        experts comes last, with one result per token. A network without experts, beside a mixture,
        is sharded over all of them: a mesh axis shards the first axis that names it. Ragged
        products do not shard experts."""
        split = self.shape.routing not in ("", "ragged")
        experts = self("experts", axes) if split else ()
        rest = without(axes, experts)
        is_shared = experts and any(not network.routing for network, _ in self.shape.networks)
        return {"experts": experts, "d_ff": self("d_ff", (*rest, *experts) if is_shared else rest)}

    def scattered(self, batch: MeshAxes, partial: MeshAxes) -> dict[str, MeshAxes]:
        """The rows over which partial sums are scattered: the batch, or time if a chip has one
        sequence; not along the axis that the next product contracts."""
        over_batch = self("batch", (*batch, *partial))
        alone = self.shape.batch == self.mesh.ways(over_batch)
        return {
            "batch": over_batch,
            "time": self("time", without(partial, over_batch)) if alone else (),
        }

    def cached(self, heads: dict[str, MeshAxes]) -> dict[str, MeshAxes]:
        """The cache has KV heads only; a single KV head is replicated."""
        if self.shape.kv_heads == 1:
            return {}
        return {axis: split for axis, split in heads.items() if axis != "q_per_kv"}

    def tables(self, over: OfferedAxes, batch: MeshAxes) -> dict[str, MeshAxes]:
        """The embedding and the unembedding, which are never gathered. If all mesh axes shard the
        batch, they shard d_model here, since every chip looks up rows of the whole table. The batch
        of the rows stays sharded over the remaining mesh axes."""
        d_model, vocab = over.stationary("d_model"), over.stationary("d_ff")
        if not d_model and not vocab:
            d_model = tuple(name for name, role in over.roles if role != MeshRole())
        d_model, vocab = self("d_model", d_model), self("vocab", vocab)
        free = without(batch, (*d_model, *vocab))
        return {"d_model": d_model, "vocab": vocab, "batch": free}

    def logits(self, tables: dict[str, MeshAxes], weights: MeshAxes) -> dict[str, MeshAxes]:
        """Sharded as the unembedding leaves them, with partial sums scattered over the rows, or
        over the vocabulary if there are too few rows."""
        partial, vocab, batch = tables["d_model"], tables["vocab"], tables["batch"]
        if partial and self("batch", (*batch, *partial)) == (*batch, *partial):
            return {"batch": (*batch, *partial), "vocab": vocab}
        return {
            "batch": batch,
            "vocab": self("vocab", without(weights if vocab else partial, batch)),
        }

    def size(self, axis: str) -> int:
        """The size of an axis of the decoder."""
        if axis == "q_per_kv":
            return self.shape.heads // self.shape.kv_heads
        return getattr(self.shape, axis)


@cache
def _dividing(size: int, offered: tuple[tuple[str, int], ...]) -> MeshAxes:
    """The greedy choice of (mesh axis, shards) pairs whose product divides `size`."""
    taken, ways = (), 1
    for name, count in offered:
        if size % (ways * count) == 0:
            taken, ways = (*taken, name), ways * count
    return taken


def without(axes: Iterable[str], taken: Iterable[str]) -> MeshAxes:
    """The mesh axes of `axes` that are not in `taken`, in their order."""
    return tuple(axis for axis in axes if axis not in set(taken))
