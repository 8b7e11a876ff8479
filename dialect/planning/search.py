"""The best of all partitionings: every use of every mesh axis, costed.

A mesh has few axes and each has few uses, so all of them are tried: the optimum of the model, with
no gap. Mesh axes that are alike (as long, closed or open alike) are tried in one order only.
Memory is a hard constraint. All layers are alike, so depth costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dialect.machine.chips import Chip
from dialect.machine.mesh import MeshSpec, Topology
from dialect.machine.tiles import LANES
from dialect.planning.cost import estimate, must_fit
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.partitionings import (
    ATTENTION,
    FFN,
    NAMES,
    Unavailable,
    label_of,
    named_uses,
    partition,
)
from dialect.planning.plan import Alternative, Plan, Prediction
from dialect.planning.planned_exchanges import planned_exchanges
from dialect.planning.uses import USES, Groups, Partitioning, Use, Uses, arranged, uses_of
from dialect.planning.workload import Workload
from rewrite.errors import PlanError, nearest

# Faster by less than this, about the median error of the cost model, is no faster. Of such those
# are taken that are as fast in what is compiled today, where the model is of other programs
# (`Chip.as_compiled`); of these the one in the fewest collectives a layer, which leave the compiler
# the least to make of them; but none that hardly fits if another does.
TIE = 0.05
Storage = tuple[tuple[str, tuple[str, ...]], ...]
_TELLING = ("weights", "used", "attention")
_SURE = 0.9  # of the memory: what the model leaves out hardly needs the rest
SHOWN = 4  # runners-up that a plan keeps, beside those with a name


@dataclass(frozen=True)
class Candidate:
    """A partitioning that fits into memory, and what a step costs in it."""

    partitioning: Partitioning
    predicted: Prediction
    compiled_s: float  # of a step, as it is compiled today
    collectives: int  # in a layer
    is_tight: bool  # hardly fits into memory, if what the model does not know is small

    @property
    def label(self) -> str:
        return self.partitioning.label

    @property
    def is_named(self) -> bool:
        return self.label in NAMES

    @property
    def kind(self) -> tuple[Any, ...]:
        """What tells it from those that differ only in the order of their axes, or in how many of
        them the residual stream is split over."""
        groups = dict(self.partitioning.groups)
        return tuple(groups[each] for each in _TELLING), "d_model" in dict(groups["residual"])

    @property
    def storage(self) -> Storage:
        return storage_of(self.partitioning)

    @property
    def rank(self) -> tuple[float, ...]:
        return (self.is_tight, self.collectives, self.predicted.time_s)


def storage_of(made: Partitioning | Plan) -> Storage:
    """How the weights of the layers lie: what steps that share them have to agree about."""
    return tuple(sorted(made.split("weights").items()))


@dataclass(frozen=True)
class Searched:
    """What was found: candidates, the best first, and why the named others are unavailable."""

    candidates: tuple[Candidate, ...]
    unavailable: dict[str, Unavailable]
    tried: int

    @property
    def named(self) -> list[Candidate]:
        """Those of the paper, the best first; of as good ones that with the least volume, as the
        paper argues."""
        named = [each for each in self.candidates if each.is_named]
        tied, others = _tied(named, lambda each: each.predicted.time_s)
        return sorted(tied, key=lambda each: each.predicted.communication_bytes) + others


@lru_cache(maxsize=16)  # `pad` and `plan` ask for the same decoders
def searched(shape: DecoderShape, topology: Topology, mesh: MeshSpec) -> Searched:
    """Every partitioning of a decoder over a mesh that fits into memory, the best first."""
    found: dict[Groups, Candidate] = {}
    unavailable: dict[str, Unavailable] = {}
    seen: set[Groups] = set()
    compiled = replace(topology, chip=topology.chip.as_compiled)
    tried = 0
    every = _all(shape, topology, mesh) if shape.is_costed else _plain(shape, mesh)
    for made in itertools.chain(_named(shape, mesh, unavailable), every):
        tried += 1
        if made.groups in seen:
            continue
        seen.add(made.groups)
        try:
            must_fit(shape, topology, mesh, made)
        except Unavailable as error:
            if made.label in NAMES:
                unavailable[made.label] = error
            continue
        predicted = estimate(shape, topology, mesh, made)
        compiled_s = estimate(shape, compiled, mesh, made).time_s
        work = Workload(shape, mesh, made)
        count = _collectives(work, topology.chip)
        tight = predicted.memory_bytes > _SURE * topology.chip.usable_hbm_bytes
        found[made.groups] = Candidate(made, predicted, compiled_s, count, tight)
    return Searched(tuple(best_first(found.values())), unavailable, tried)


def _collectives(work: Workload, chip: Chip) -> int:
    """In a layer. Beside weights in pieces an all-reduce is its two halves, and a reduce-scatter to
    shards that are no two tiles, one for each way around a ring, is an all-reduce."""
    twice = set()
    if work.gathers_in_pieces and chip.gathers_in_pieces:
        shard = work.shape.d_model // work.mesh.ways(work.residual)
        twice = {"all-reduce", "reduce-scatter"} if shard % (2 * LANES) else {"all-reduce"}
    counts = (each.times * each.along * (1 + (each.kind in twice)) for each in work.collectives())
    return sum(counts) // max(1, work.shape.layers)


def best_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """By time; of those as fast as the fastest first what is as fast as it is compiled today."""
    tied, others = _tied(candidates, lambda each: each.predicted.time_s)
    roomy = [each for each in tied if not each.is_tight] or tied
    fast, _ = _tied(roomy, lambda each: each.compiled_s)
    return sorted(tied, key=lambda each: (each not in fast, each.rank)) + others


def _tied(
    candidates: Iterable[Candidate], time_s: Callable[[Candidate], float]
) -> tuple[list[Candidate], list[Candidate]]:
    """(those as fast as the fastest, within TIE; the others), the fastest first."""
    by_time = sorted(candidates, key=time_s)
    count = sum(time_s(each) <= (1 + TIE) * time_s(by_time[0]) for each in by_time)
    return by_time[:count], by_time[count:]


def _named(
    shape: DecoderShape, mesh: MeshSpec, unavailable: dict[str, Unavailable]
) -> Iterator[Partitioning]:
    for ffn, attention in itertools.product(FFN, ATTENTION):
        try:
            yield partition(ffn, attention, shape, mesh)
        except Unavailable as error:
            unavailable[f"{ffn}/{attention}"] = error


def _all(shape: DecoderShape, topology: Topology, mesh: MeshSpec) -> Iterator[Partitioning]:
    rings = topology.rings(mesh)
    alike = {name: (size, rings[name]) for name, size in mesh.axes}
    names = [name for name, size in mesh.axes if size > 1]
    pairs = [
        (one, other)
        for one, other in itertools.combinations(range(len(names)), 2)
        if alike[names[one]] == alike[names[other]]
    ]
    for chosen in itertools.product(range(len(USES)), repeat=len(names)):
        if all(chosen[one] <= chosen[other] for one, other in pairs):
            uses = dict(zip(names, (USES[number] for number in chosen)))
            if _tears_heads(uses.values()):
                continue
            yield _fitted(tuple((n, uses.get(n, Use())) for n in mesh.names), shape, mesh)


def _tears_heads(uses: Iterable[Use]) -> bool:
    """Whether heads would be scattered over axes of d_model and taken off those of d_ff: what is
    left on each chip would not be neighbours."""
    heads = {use.weights for use in uses if use.attention == "heads"}
    return "d_model" in heads and any(
        use.weights == "d_ff" and use.attention == "batch" for use in uses
    )


def _plain(shape: DecoderShape, mesh: MeshSpec) -> Iterator[Partitioning]:
    """What every program can have: of parts that were not recognised the cost is not known, and
    only the plainest layout is sure to do them no harm."""
    for attention in ATTENTION:
        yield _fitted(named_uses("ws1d", attention, mesh), shape, mesh)


def _fitted(uses: Uses, shape: DecoderShape, mesh: MeshSpec) -> Partitioning:
    """The layouts that follow from uses, called by what is split in the end.

    What has a name divides, and was found by its name: the rest only resembles it.
    """
    made = arranged("", uses, shape, mesh)
    label = label_of(uses_of(made, mesh), mesh)
    return replace(made, label=f"fit_{label}" if label in NAMES else label)


def choose(
    shape: DecoderShape,
    topology: Topology,
    mesh: MeshSpec,
    ffn: str | None = None,
    attention: str | None = None,
) -> Plan:
    """The best partitioning that fits into memory, with the runners-up and all that have a name.

    `ffn` and `attention` ask for a named one, or for the best of those that have the other name.
    Raises PlanError where none is possible.
    """
    return best_plans(shape, topology, mesh, ffn, attention)[0]


def best_plans(
    shape: DecoderShape,
    topology: Topology,
    mesh: MeshSpec,
    ffn: str | None = None,
    attention: str | None = None,
    count: int = 1,
    stored: Plan | Partitioning | None = None,
) -> list[Plan]:
    """`choose`, and the best that store or read their weights in another way, the best first.

    `stored`: only what stores its weights as this plan does.
    """
    found = searched(shape, topology, mesh)
    labels = asked_for(ffn, attention)
    chosen = [each for each in found.candidates if not labels or each.label in labels]
    missing = {k: v for k, v in found.unavailable.items() if not labels or k in labels}
    if stored is not None:
        chosen = [each for each in chosen if each.storage == storage_of(stored)]
    if not chosen and not missing:
        raise PlanError("no partitioning stores its weights as the plan that was given")
    if not chosen:
        raise _impossible(topology, mesh, missing)
    rejected = [Alternative(label, None, _reason(error)) for label, error in missing.items()]
    ranked = best_first(chosen)
    by_time = sorted(chosen, key=lambda each: each.predicted.time_s)
    unlike = {each.kind: each for each in reversed(ranked)}
    plans = []
    for best in sorted(unlike.values(), key=ranked.index)[:count]:
        others = [each for each in by_time if each is not best]
        plans.append(
            Plan(
                label=best.label,
                target=str(topology),
                mesh=mesh.axes,
                groups=best.partitioning.groups,
                predicted=best.predicted,
                exchanges=tuple(planned_exchanges(shape, topology, mesh, best.partitioning)),
                alternatives=(*_runners_up(best, others), *rejected),
            )
        )
    return plans


def optimality_gap(plan: Plan) -> float:
    """How far behind the fastest that was costed a plan is, as a fraction: of ties not the first.

    All partitionings are costed, so where none is asked for it is the gap to the model's optimum.
    """
    times = [each.time_s for each in plan.alternatives if each.time_s is not None]
    return plan.predicted.time_s / min((plan.predicted.time_s, *times)) - 1


def asked_for(ffn: str | None, attention: str | None) -> set[str]:
    """The labels that are asked for; none where neither name is given."""
    for name, known in ((ffn, FFN), (attention, ATTENTION)):
        if name is not None and name not in known:
            raise PlanError(f"unknown partitioning {name!r}", hint=nearest(name, known))
    if ffn is None and attention is None:
        return set()
    return {
        f"{one}/{other}"
        for one in ([ffn] if ffn else FFN)
        for other in ([attention] if attention else ATTENTION)
    }


def _impossible(topology: Topology, mesh: MeshSpec, missing: dict[str, Unavailable]) -> PlanError:
    if len(missing) == 1:
        return next(iter(missing.values()))
    reasons = "".join(f"\n  {label}: {_reason(error)}" for label, error in missing.items())
    return PlanError(f"no partitioning over {mesh} is possible on {topology}:{reasons}")


def _reason(error: Unavailable) -> str:
    return "; ".join(filter(None, (error.message, error.hint)))


def _runners_up(best: Candidate, others: list[Candidate]) -> Iterator[Alternative]:
    """The next best, and all that have a name; of several that cost the same the first."""
    seen = {(best.predicted.time_s, best.predicted.communication_bytes)}
    shown = 0
    for each in others:
        cost = (each.predicted.time_s, each.predicted.communication_bytes)
        if not each.is_named and (cost in seen or shown == SHOWN):
            continue
        seen.add(cost)
        shown += not each.is_named
        yield _runner_up(each, best)


def _runner_up(each: Candidate, first: Candidate) -> Alternative:
    """Says which part of the time is to blame."""
    predicted, best = each.predicted, first.predicted
    parts = ("compute_s", "hbm_s", "communication_s", "latency_s")
    worst = max(parts, key=lambda part: getattr(predicted, part) - getattr(best, part))
    before, after = getattr(best, worst) * 1e3, getattr(predicted, worst) * 1e3
    reason = f"{worst[:-2]} {after:.4g} ms instead of {before:.4g} ms"
    tied = predicted.time_s <= (1 + TIE) * best.time_s
    if tied and each.compiled_s > (1 + TIE) * first.compiled_s:
        before, after = first.compiled_s * 1e3, each.compiled_s * 1e3
        reason = f"as fast, but as it is compiled today {after:.4g} ms instead of {before:.4g} ms"
    elif tied and each.collectives > first.collectives:
        reason = f"as fast, but in {each.collectives} collectives a layer, not {first.collectives}"
    return Alternative(each.label, predicted.time_s, reason)
