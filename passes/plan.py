"""plan: over which mesh axes each kind of tensor is split, chosen by the cost model.

Every use of every mesh axis is costed for this decoder on this machine (`dialect.planning.search`);
the fastest that fits is the plan. `plan{ffn=ws2d, attention=batch}` asks for a partitioning of Pope
et al. 2022 (arXiv:2211.05102), `plan{load="my.plan"}` reads a plan, `plan{refine=4}` compiles the
best four and keeps the one with the fastest schedule. What was not recognised is planned by its
size, and told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from dialect.display.quantities import milliseconds, size
from dialect.machine.mesh import MeshSpec, Topology
from dialect.naming.axes import Axes
from dialect.ops.padding import as_padded
from dialect.planning.changed_states import changed_state_notes
from dialect.planning.declared import declared_shardings, resharded_bytes
from dialect.planning.decoder import decoder_shape, loop_notes, whole_write_notes
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.fallback_plans import planned_axes, with_fallback_layouts, worth_splitting
from dialect.planning.layouts import planned_layout
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.objectives import shape_to_plan
from dialect.planning.plan import Plan as Chosen
from dialect.planning.refine import fastest, refined
from dialect.planning.search import TIE, best_plans, on_every_chip, optimality_gap
from dialect.planning.shared_storage import Serving, shared_storage
from dialect.planning.workload import Workload
from passes.lower import Lower
from passes.shard import Shard
from passes.stage import Stage
from rewrite import manager
from rewrite.errors import PlanError, brief
from rewrite.passbase import Pass
from rewrite.program import LEFT_ALONE, NOT_DONE, Input, Program, Remark
from rewrite.target import Target


@dataclass(frozen=True)
class Plan(Pass):
    """Chooses the layout of weights, activations and caches."""

    ffn: Literal["auto", "ws1d", "ws2d", "wg_x", "wg_xy", "wg_xyz"] = "auto"
    attention: Literal["auto", "heads", "batch"] = "auto"
    objective: Literal["latency", "throughput", "cost"] = "latency"
    batch: int = 0  # to plan for, if not the program's own
    context: int = 0  # positions that attention reads, if not all that the cache holds
    prompt: int = 0  # tokens of the prompts whose prefill reads the same weights
    prompts: int = 1  # that are prefilled at a time
    answer: int = 64  # steps of decode for each prompt
    weights: str = ""  # a saved plan: the weights are stored as it says
    refine: int = 0  # how many of the best plans are compiled
    load: str = ""

    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, target: Target) -> Program:
        if not target.mesh:
            raise PlanError(
                "there is no mesh to plan for", hint="say `target v5e:2x4`, or give a mesh"
            )
        if self.load:
            chosen, notes = self.loaded(target), ()
        else:
            chosen, notes = self.chosen(program, target)
        said = (f"{chosen.label} on {chosen.target}", *notes)
        return self.recorded(replace(program, plan=chosen), *said)

    def loaded(self, target: Target) -> Chosen:
        """The saved plan. Raises PlanError where it is for another mesh."""
        plan = Chosen.load(Path(self.load))
        if plan.mesh != target.mesh:
            shown = (brief(str(MeshSpec(mesh))) for mesh in (plan.mesh, target.mesh))
            raise PlanError(f"{self.load} plans for the mesh {next(shown)}, not {next(shown)}")
        return plan

    def chosen(self, program: Program, target: Target) -> tuple[Chosen, tuple[str | Remark, ...]]:
        """The plan, and what there is to say of it."""
        mesh, axes = MeshSpec(target.mesh), planned_axes(program, target.mesh)
        shape, topology = decoder_shape(program, axes), Topology.parse(target.topology)
        owner = program.requested("owner") or "auto"
        attention = self.attention if self.attention != "auto" else owner
        asked = [None if choice == "auto" else choice for choice in (self.ffn, attention)]
        notes = [*shape.notes(), *_notes(program, axes)]
        alone = mesh.size > 1 and bool(program.values("state")) and shape.batch % mesh.size == 0
        if alone and not (shape.heads or any(asked)):
            asked[1] = "batch"  # of an unknown state only this is known: sequences do not mix
        shape = replace(
            shape, batch=self.batch or shape.batch, context=self.context or shape.context
        )
        planned = shape_to_plan(self.objective, shape, topology, mesh)
        if planned != shape:
            notes.append(
                f"planned for a batch of {planned.batch}, at which {self.objective} is best"
            )
        stored = Chosen.load(Path(self.weights)) if self.weights else None
        if self.prompt:
            both = shared_storage(
                planned, Serving(self.prompt, self.prompts, self.answer), topology, mesh
            )
            stored = both.decode.partitioning
            notes.append(both.note())
        search = partial(best_plans, planned, topology, mesh, *asked, stored=stored)
        best, beside = _agreeing(search, max(1, self.refine), program, axes)
        notes += beside
        plans = [with_fallback_layouts(chosen_plan, shape, axes) for chosen_plan in best]
        if self.refine:
            tried = list(refined(program, plans, topology, mesh, partial(_lowered, target)))
            plans = [fastest(tried)]
            notes += map(str, tried)
        if shape.is_costed and not any(asked) and stored is None:
            notes.append(_behind_the_optimum(plans[0]))
        plan = plans[0].with_pages() if program.requested("pages") == "groups" else plans[0]
        notes += [*_whole_pages(program, plan), *_better_alone(planned, plan)]
        notes += _copied(program, plan, shape)
        return plan, (*notes, *_unplanned(program, axes, plan))


_OWN = "the program's own shardings"


def _notes(program: Program, axes: Axes) -> Iterator[str]:
    """What is assumed of the program, and what of it costs more than it seems to."""
    yield from loop_notes(program)
    yield from whole_write_notes(program, axes)
    yield from changed_state_notes(program)


def _agreeing(
    search: Callable[..., list[Chosen]], count: int, program: Program, axes: Axes
) -> tuple[list[Chosen], list[str | Remark]]:
    """The best plans that agree with the shardings that the program declares, and what there is to
    say of these."""
    declared = tuple(declared_shardings(program, axes))
    if not declared:
        return search(count), []
    moved = partial(resharded_bytes, axes=axes, declared=declared)
    best = search(count, moved=moved)
    return best, [*_beside_declared(best[0], search()[0], moved(best[0]))]


def _beside_declared(best: Chosen, free: Chosen, moved: int) -> Iterator[str | Remark]:
    """What there is to say of a plan beside shardings that the program declares itself."""
    if moved:
        yield Remark(
            f"no partitioning has all of them, {size(moved)} a step lie otherwise than planned "
            "(retarget{shardings=remove})",
            _OWN,
            LEFT_ALONE,
        )
    if best.groups != free.groups and best.predicted and free.predicted:
        times = " instead of ".join(
            milliseconds(each.predicted.time_s) for each in (free, best) if each.predicted
        )
        text = f"without them {free.label}, {times} (retarget{{shardings=remove}})"
        yield Remark(text, _OWN, LEFT_ALONE)


def _whole_pages(program: Program, plan: Chosen) -> Iterator[str]:
    """What there is to say of pages that every chip holds."""
    if program.requested("pages") == "whole" and "batch" in plan.split("cache"):
        yield "chips own rows, and hold the pages of all: paged{groups=true} divides them"


def _better_alone(shape: DecoderShape, plan: Chosen) -> Iterator[str]:
    """What there is to say where exchanges take longer than they save. (The hops of other chips
    than TPUs are not known.)"""
    topology = Topology.parse(plan.target)
    if topology.chip.platform != "tpu" or not plan.predicted:
        return
    alone = on_every_chip(shape, topology, MeshSpec(plan.mesh))
    if alone and alone.time_s * (1 + TIE) < plan.predicted.time_s:
        times = " instead of ".join(milliseconds(x.time_s) for x in (alone, plan.predicted))
        yield f"one chip by itself takes {times}, as nothing is exchanged: use fewer chips"


def _copied(program: Program, plan: Chosen, shape: DecoderShape) -> Iterator[Remark]:
    """What there is to say of parameters that are copied in every step."""
    chip, partitioning = Topology.parse(plan.target).chip, Partitioning(plan.label, plan.groups)
    work = Workload.on(chip, shape, MeshSpec(plan.mesh), partitioning)
    yield from _copied_experts(program, work)
    yield from _copied_weights(work)


def _copied_experts(program: Program, work: Workload) -> Iterator[Remark]:
    """Ragged experts whose part on a chip fills no lanes."""
    networks = dict.fromkeys(network for network, _ in work.shape.networks)
    unfilled = (part for network in networks for part in work.unfilled(network))
    may_pad = all(step.name != "pad" for step in program.history)
    for axis, width in dict.fromkeys((axis, width) for axis, _, width in unfilled):
        text = f"copied in every step, as {width:g} of {axis} on a chip fill no {work.lanes} lanes"
        hint = " (pad{ragged_d_ff=auto} before plan)" if may_pad and axis == "d_ff" else ""
        yield Remark(text + hint, "ragged experts", LEFT_ALONE)


def _copied_weights(work: Workload) -> Iterator[Remark]:
    """f32 weights of loops, which the chip multiplies in bf16."""
    if copied := work.rounded_weights() * work.shape.weight_bytes_per_element:
        text = f"{size(copied)} are rounded to bf16 in every step, as the chip multiplies them"
        hint = "of w.astype(jnp.bfloat16) `prepare` keeps bf16, and the chip computes the same"
        yield Remark(f"{text}: {hint}", "f32 weights", LEFT_ALONE)


def _behind_the_optimum(plan: Chosen) -> str:
    gap = optimality_gap(plan)
    tie = f", which is within the model's error of {TIE:.0%}" if 0 < gap <= TIE else ""
    return f"optimality gap {gap:.1%}, every partitioning being costed{tie}"


def _lowered(target: Target, program: Program) -> Program:
    return manager.run(program, (Shard(), Stage(), Lower()), target)[0]


_SPLIT = "split by size alone, its axes being unknown"
_WHOLE = "whole on every chip"
_UNKNOWN = "whole on every chip, its axes being unknown"


def _unplanned(program: Program, axes: Axes, plan: Chosen) -> list[Remark]:
    """Large inputs that are split by their size, or not at all: not done where the reason is that
    nothing is known of their axes."""
    remarks: dict[str, list[Input]] = {}
    for value, declared in zip(program.graph.inputs, program.step_inputs):
        is_read = value in program.graph.users or value in program.graph.outputs
        if not is_read or not worth_splitting(declared.type, plan.mesh):
            continue
        names = axes.of(value)
        if not any(planned_layout(plan, axes, as_padded(program.graph, value), declared)):
            is_known = all("_" not in dimension for dimension in names)
            remarks.setdefault(_WHOLE if is_known else _UNKNOWN, []).append(declared)
        elif any("wide" in dimension for dimension in names):
            remarks.setdefault(_SPLIT, []).append(declared)
    return [
        Remark(f"{what}: {_listed(inputs)}", kind="" if what == _WHOLE else NOT_DONE)
        for what, inputs in remarks.items()
    ]


def _listed(inputs: list[Input], most: int = 5) -> str:
    """The largest inputs with their types, and how many bytes all of them have."""
    largest = sorted(inputs, key=lambda input_: -input_.type.bytes)
    shown = [f"{input_.name} {input_.type}" for input_ in largest[:most]]
    shown += [f"{len(inputs) - most} more"] if len(inputs) > most else []
    total = sum(input_.type.bytes for input_ in inputs)
    return f"{', '.join(shown)} ({size(total)})"
