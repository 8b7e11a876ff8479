"""Exhaustive search: every role of every mesh axis is costed, and the best plan is returned.

A mesh has few axes and an axis has few roles, so all combinations are tried: the result is the
optimum of the cost model. Interchangeable mesh axes (same size, same links) are tried in one order
only. Memory is a hard constraint. All layers are planned alike, so depth does not matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dialect.compiled.compilers import Compiler, compiler_for
from dialect.display.quantities import milliseconds
from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.cost import estimate, must_fit
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import (
    MESH_ROLES,
    Groups,
    MeshRole,
    MeshRoles,
    Partitioning,
    mesh_roles_of,
    partitioning_of,
)
from dialect.planning.partitionings import (
    ATTENTION,
    FFN,
    NAMES,
    Unavailable,
    label_of,
    named_mesh_roles,
    partition,
)
from dialect.planning.plan import Alternative, Plan, Prediction
from dialect.planning.planned_exchanges import planned_exchanges
from dialect.planning.workload import Workload
from rewrite.errors import PlanError, nearest

# Two plans whose predicted times differ by less than TIE (the model's median error) are considered
# equal. Equal plans are ordered by (1) whether they leave 10 % of the memory free, (2) predicted
# time under the current compiler (the model itself is fitted to the programs of Pope et al.),
# (3) fewest collectives per layer.
TIE = 0.05
Storage = tuple[tuple[str, tuple[str, ...]], ...]
_DISTINGUISHING = ("weights", "used", "attention")  # groups in which alternatives have to differ
_ROOMY = 0.9  # fraction of the memory that leaves room for what the memory model omits
SHOWN = 4  # unnamed runners-up that a plan lists; all named ones are listed


@dataclass(frozen=True)
class Candidate:
    """A partitioning that fits into memory, and the predicted cost of a step."""

    partitioning: Partitioning
    predicted: Prediction
    compiled_s: float  # predicted seconds of a step under the current compiler
    collectives: int  # per layer
    is_tight: bool  # leaves less than 10 % of the memory free

    @property
    def label(self) -> str:
        """The name of the partitioning, or its layouts in the notation of Pope et al."""
        return self.partitioning.label

    @property
    def is_named(self) -> bool:
        """Whether Pope et al. name this partitioning."""
        return self.label in NAMES

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for partitionings that differ only in the order of mesh axes, or in the number of
        mesh axes that shard the residual stream."""
        groups = dict(self.partitioning.groups)
        storage = tuple(groups[group] for group in _DISTINGUISHING)
        return storage, "d_model" in dict(groups["residual"])

    @property
    def storage(self) -> Storage:
        """The sharding of the stored weights; see `storage_of`."""
        return storage_of(self.partitioning)

    @property
    def rank(self) -> tuple[float, ...]:
        """The order among candidates with equal predicted times."""
        return (self.is_tight, self.collectives, self.predicted.time_s)


def storage_of(stored: Partitioning | Plan) -> Storage:
    """The sharding of the layers' stored weights: steps that share parameters must agree on it."""
    return tuple(sorted(stored.split("weights").items()))


@dataclass(frozen=True)
class SearchResult:
    """All candidates, best first, and why the other named partitionings are unavailable."""

    candidates: tuple[Candidate, ...]
    unavailable: dict[str, Unavailable]
    tried: int

    @property
    def named(self) -> list[Candidate]:
        """The named candidates, best first; ties are broken by communication volume, the criterion
        of Pope et al."""
        named = [candidate for candidate in self.candidates if candidate.is_named]
        tied, others = _tied(named, lambda candidate: candidate.predicted.time_s)
        return sorted(tied, key=lambda candidate: candidate.predicted.communication_bytes) + others


@lru_cache(maxsize=16)  # `pad` and `plan` search for the same decoders
def searched(shape: DecoderShape, topology: Topology, mesh: MeshSpec) -> SearchResult:
    """Every partitioning of a decoder over a mesh that fits into memory, best first."""
    candidates: list[Candidate] = []
    unavailable: dict[str, Unavailable] = {}
    seen: set[Groups] = set()
    tried = 0
    generated = _all(shape, topology, mesh) if shape.is_costed else _plain(shape, mesh)
    for partitioning in itertools.chain(_named(shape, mesh, unavailable), generated):
        tried += 1
        if partitioning.groups in seen:
            continue
        seen.add(partitioning.groups)
        try:
            candidates.append(_candidate(shape, topology, mesh, partitioning))
        except Unavailable as error:
            if partitioning.label in NAMES:
                unavailable[partitioning.label] = error
    return SearchResult(tuple(best_first(candidates)), unavailable, tried)


def _candidate(
    shape: DecoderShape, topology: Topology, mesh: MeshSpec, partitioning: Partitioning
) -> Candidate:
    """A partitioning with its cost. Raises Unavailable if it does not fit into memory."""
    must_fit(shape, topology, mesh, partitioning)
    compiler = compiler_for(topology.chip)
    predicted = estimate(shape, topology, mesh, partitioning)
    compiled = estimate(shape, topology, mesh, partitioning, compiler=compiler)
    return Candidate(
        partitioning,
        predicted,
        compiled_s=compiled.time_s,
        collectives=_collectives(Workload(shape, mesh, partitioning), compiler),
        is_tight=predicted.memory_bytes > _ROOMY * topology.chip.usable_hbm_bytes,
    )


def on_every_chip(shape: DecoderShape, topology: Topology, mesh: MeshSpec) -> Prediction | None:
    """The cost of a step that every chip computes by itself; None if a chip has no room for it."""
    alone = tuple((name, MeshRole()) for name in mesh.names)
    whole = partitioning_of("whole", alone, shape, mesh)
    try:
        must_fit(shape, topology, mesh, whole)
    except Unavailable:
        return None
    return estimate(shape, topology, mesh, whole)


def _collectives(work: Workload, compiler: Compiler) -> int:
    """Collectives per layer, as the compiler emits them."""
    shard = work.shape.d_model // work.mesh.ways(work.residual)
    counts = (
        exchange.times
        * compiler.emitted(exchange.kind, exchange.array_axes, work.gathers_in_windows, shard)
        for exchange in work.collectives()
    )
    return sum(counts) // max(1, work.shape.layers)


def best_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates by predicted time; the order of equal ones is explained at `TIE`."""
    tied, others = _tied(candidates, lambda candidate: candidate.predicted.time_s)
    roomy = [candidate for candidate in tied if not candidate.is_tight] or tied
    fast, _ = _tied(roomy, lambda candidate: candidate.compiled_s)
    return sorted(tied, key=lambda candidate: (candidate not in fast, candidate.rank)) + others


def _tied(
    candidates: Iterable[Candidate], time_s: Callable[[Candidate], float]
) -> tuple[list[Candidate], list[Candidate]]:
    """(candidates as fast as the fastest, within TIE; the others), both by time."""
    by_time = sorted(candidates, key=time_s)
    count = sum(time_s(candidate) <= (1 + TIE) * time_s(by_time[0]) for candidate in by_time)
    return by_time[:count], by_time[count:]


def _named(
    shape: DecoderShape, mesh: MeshSpec, unavailable: dict[str, Unavailable]
) -> Iterator[Partitioning]:
    """The partitionings of Pope et al.; those that the decoder cannot have go to `unavailable`."""
    for ffn, attention in itertools.product(FFN, ATTENTION):
        try:
            yield partition(ffn, attention, shape, mesh)
        except Unavailable as error:
            unavailable[f"{ffn}/{attention}"] = error


def _all(shape: DecoderShape, topology: Topology, mesh: MeshSpec) -> Iterator[Partitioning]:
    """Every assignment of roles to mesh axes, up to the order of interchangeable axes."""
    rings = topology.rings(mesh)
    links = {name: (size, rings[name]) for name, size in mesh.axes}
    names = [name for name, size in mesh.axes if size > 1]
    interchangeable = [
        (first, second)
        for first, second in itertools.combinations(range(len(names)), 2)
        if links[names[first]] == links[names[second]]
    ]
    for numbers in itertools.product(range(len(MESH_ROLES)), repeat=len(names)):
        if all(numbers[first] <= numbers[second] for first, second in interchangeable):
            roles = dict(zip(names, (MESH_ROLES[number] for number in numbers)))
            if _splits_head_shards(roles.values()):
                continue
            yield _fitted(tuple((n, roles.get(n, MeshRole())) for n in mesh.names), shape, mesh)


def _splits_head_shards(roles: Iterable[MeshRole]) -> bool:
    """Whether heads would be scattered over axes of d_model and gathered over axes of d_ff, so that
    the heads of a chip would not be contiguous."""
    heads = {role.weights for role in roles if role.attention == "heads"}
    return "d_model" in heads and any(
        role.weights == "d_ff" and role.attention == "batch" for role in roles
    )


def _plain(shape: DecoderShape, mesh: MeshSpec) -> Iterator[Partitioning]:
    """The partitionings for a decoder with parts that have no cost model: 1D weight-stationary is
    the only layout that is safe for unknown parts."""
    for attention in ATTENTION:
        yield _fitted(named_mesh_roles("ws1d", attention, mesh), shape, mesh)


def _fitted(roles: MeshRoles, shape: DecoderShape, mesh: MeshSpec) -> Partitioning:
    """The partitioning for these roles, labelled by the axes that it shards after divisibility.

    A name of Pope et al. gets the prefix `fit_`: `_named` generates the exact ones.
    """
    partitioning = partitioning_of("", roles, shape, mesh)
    label = label_of(mesh_roles_of(partitioning, mesh), mesh)
    return replace(partitioning, label=f"fit_{label}" if label in NAMES else label)


def choose(
    shape: DecoderShape,
    topology: Topology,
    mesh: MeshSpec,
    ffn: str | None = None,
    attention: str | None = None,
) -> Plan:
    """The best plan that fits into memory, with its runners-up and all named alternatives.

    `ffn` and `attention` restrict the choice to partitionings with these names (`FFN`,
    `ATTENTION`). Raises PlanError if none is possible.
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
    moved: Callable[[Plan], int] | None = None,
) -> list[Plan]:
    """The plan of `choose`, then the best plans of another kind (`Candidate.kind`): `count` in all.

    `stored` restricts the choice to partitionings that store the weights as this plan does, `moved`
    to those for which it is least.
    """
    result = searched(shape, topology, mesh)
    labels = asked_for(ffn, attention)
    allowed = [
        candidate
        for candidate in result.candidates
        if (not labels or candidate.label in labels)
        and (stored is None or candidate.storage == storage_of(stored))
    ]
    missing = {k: v for k, v in result.unavailable.items() if not labels or k in labels}
    if not allowed and not missing:
        raise PlanError("no partitioning stores its weights as the plan that was given")
    if not allowed:
        raise _impossible(topology, mesh, missing)
    if moved is not None:
        bytes_ = {candidate: moved(_grouped(candidate, topology, mesh)) for candidate in allowed}
        least = min(bytes_.values())
        allowed = [candidate for candidate in allowed if bytes_[candidate] == least]
    rejected = [Alternative(label, None, _reason(error)) for label, error in missing.items()]
    ranked = best_first(allowed)
    best_of_kind = {candidate.kind: candidate for candidate in reversed(ranked)}
    plans = []
    for best in sorted(best_of_kind.values(), key=ranked.index)[:count]:
        alternatives = (*_runners_up(best, allowed), *rejected)
        plans.append(_plan(best, alternatives, shape, topology, mesh))
    return plans


def _plan(
    candidate: Candidate,
    alternatives: tuple[Alternative, ...],
    shape: DecoderShape,
    topology: Topology,
    mesh: MeshSpec,
) -> Plan:
    exchanges = tuple(planned_exchanges(shape, topology, mesh, candidate.partitioning))
    bare = _grouped(candidate, topology, mesh)
    return replace(bare, exchanges=exchanges, alternatives=alternatives)


def _grouped(candidate: Candidate, topology: Topology, mesh: MeshSpec) -> Plan:
    """The plan of a candidate without its exchanges and alternatives."""
    groups = candidate.partitioning.groups
    return Plan(candidate.label, mesh.axes, groups, str(topology), candidate.predicted)


def optimality_gap(plan: Plan) -> float:
    """How much slower a plan is than the fastest one that was costed, as a fraction.

    All partitionings are costed, so without a requested name it is the gap to the model's optimum;
    it is above 0 (and below `TIE`) where a tie was not decided by time.
    """
    times = [other.time_s for other in plan.alternatives if other.time_s is not None]
    return plan.predicted.time_s / min((plan.predicted.time_s, *times)) - 1


def asked_for(ffn: str | None, attention: str | None) -> set[str]:
    """The labels of the requested partitionings; empty if neither name is given. Raises PlanError
    for an unknown name."""
    for name, known in ((ffn, FFN), (attention, ATTENTION)):
        if name is not None and name not in known:
            raise PlanError(f"unknown partitioning {name!r}", hint=nearest(name, known))
    if ffn is None and attention is None:
        return set()
    return {
        f"{first}/{second}"
        for first in ([ffn] if ffn else FFN)
        for second in ([attention] if attention else ATTENTION)
    }


def _impossible(topology: Topology, mesh: MeshSpec, missing: dict[str, Unavailable]) -> PlanError:
    if len(missing) == 1:
        return next(iter(missing.values()))
    reasons = "".join(f"\n  {label}: {_reason(error)}" for label, error in missing.items())
    return PlanError(f"no partitioning over {mesh} is possible on {topology}:{reasons}")


def _reason(error: Unavailable) -> str:
    return "; ".join(filter(None, (error.message, error.hint)))


def _runners_up(best: Candidate, candidates: list[Candidate]) -> Iterator[Alternative]:
    """The next best by time, and all named ones; of several with the same cost only the first."""
    seen = {(best.predicted.time_s, best.predicted.communication_bytes)}
    shown = 0
    for candidate in sorted(candidates, key=lambda candidate: candidate.predicted.time_s):
        cost = (candidate.predicted.time_s, candidate.predicted.communication_bytes)
        if candidate is best or not candidate.is_named and (cost in seen or shown == SHOWN):
            continue
        seen.add(cost)
        shown += not candidate.is_named
        yield _runner_up(candidate, best)


def _runner_up(candidate: Candidate, first: Candidate) -> Alternative:
    """A slower candidate, and the part of its time that differs most from the first."""
    predicted, best = candidate.predicted, first.predicted
    parts = ("compute_s", "hbm_s", "communication_s", "latency_s")
    worst = max(parts, key=lambda part: getattr(predicted, part) - getattr(best, part))
    before, after = milliseconds(getattr(best, worst)), milliseconds(getattr(predicted, worst))
    reason = f"{worst[:-2]} {after} instead of {before}"
    tied = predicted.time_s <= (1 + TIE) * best.time_s
    if tied and candidate.compiled_s > (1 + TIE) * first.compiled_s:
        before, after = milliseconds(first.compiled_s), milliseconds(candidate.compiled_s)
        reason = f"tied, but {after} instead of {before} under the current compiler"
    elif tied and candidate.collectives > first.collectives:
        counts = f"{candidate.collectives} collectives per layer instead of {first.collectives}"
        reason = f"tied, but {counts}"
    return Alternative(candidate.label, predicted.time_s, reason)
