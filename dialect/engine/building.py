"""Everything that an engine compiles and lays out before its first request."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax

from dialect.compiled.compilation_cache import use_by_default
from dialect.compiled.compiling import Compilable
from dialect.compiled.resolved import resolve
from dialect.engine.executables import MOST_STEPS, Executables, packed_params
from dialect.engine.sizes import Sizes, whole_pages
from dialect.machine.chips import Chip
from dialect.machine.mesh import Topology
from dialect.prepared.originals import shape_of_lazy
from dialect.serving.policy import ServingError
from dialect.serving.shapes import rows_alone
from dialect.simulated.step_seconds import Seconds, step_seconds
from dialect.token_rows.beside import BESIDE
from dialect.token_rows.decoder import FEWEST, PAGE, PAGE_ON_TPU, PASSES, Decoder
from dialect.token_rows.states import States
from rewrite.passbase import Pass
from rewrite.pipeline import Pipeline
from rewrite.program import NOTHING_DONE, Program
from rewrite.target import Target

_DRAFTING = 0.3  # of the parameters as they were given: those of a decoder that drafts
Init = Callable[..., Any]
Passes = tuple[Pass, ...]


@dataclass(frozen=True)
class Built:
    """What an engine runs: `program` is that of the steps of `sizes.rows` token rows; `params` are
    packed."""

    sizes: Sizes
    target: Target
    program: Program
    executables: Executables
    params: list[Any]
    draft_params: list[Any] | None = None  # of the decoder's own drafts
    declined: tuple[str, ...] = ()  # what was asked for or tried, and why it is not so

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return self.program.graph.outputs[0].type.shape[-1]


def built(
    step: Callable[..., Any],
    params: Any,
    init_cache: Init,
    mesh: Any,
    pipeline: Pipeline | str | Path | None,
    page: int | None,
    drafting: str = "",
    drafts: int | None = 0,
    **asked: int | None,
) -> Built:
    """An engine's executables; arguments as those of `Engine`, `asked` as those of `Sizes.of`.

    drafting: passes that make of the decoder the one that drafts for it, or `BESIDE`; drafts: of a
    request, that are verified in a group; None for as many as the plan says
    """
    use_by_default()
    shapes = jax.tree.map(shape_of_lazy, params)
    given = Pipeline.of(pipeline) if pipeline is not None else None
    jax_mesh, target = resolve(mesh, None, given or Pipeline(()))
    chip = Topology.parse(target.topology).chip
    passes, page = _passes(given, page, chip)
    asked["context"] = context = whole_pages(page, **asked)

    def sized(batch: int) -> Any:
        return init_cache(batch, context)

    states = States.of(step, shapes, partial(sized, 1), context)
    decoder = Decoder(step, sized, shapes, states)
    beside = _DRAFTING * _bytes(shapes) if drafting else 0.0
    room = partial(_room, decoder, passes, target, jax_mesh, context, beside)
    seconds = partial(_seconds, decoder, passes, target, context)
    parts = jax_mesh.size if _in_groups(passes) else 1
    steps, together = MOST_STEPS - bool(drafting), parts == 1 and _reads_count(sized, shapes, chip)
    how = {"steps": steps, "parts": parts, "together": together, "drafts": drafts}
    sizes = Sizes.of(page, room, seconds, **asked, **how)
    make = partial(decoder.program, pages=sizes.pages, target=target)
    ways = [passes] if given else [passes, _without(passes, "roll")]
    rows = rows_alone(sizes.rows)
    program, passes, declined = _first_in_pages(partial(make, rows), ways)
    sizes = sizes.in_groups(_groups(program, target))
    planned = partial(make, plan=program.plan)
    programs = {
        shape: planned(shape, passes=passes) if shape != rows else program for shape in sizes.shapes
    }
    draft = _drafting(planned, rows, passes, drafting) if drafting else None
    most = sizes.rows, sizes.choices, sizes.groups
    executables = Executables(programs, jax_mesh, sizes.pages, states.tables, *most, draft)
    packed = packed_params(program, jax_mesh, params)
    draft_packed = _packed(draft, jax_mesh, params, packed, drafting) if draft else None
    executables.fresh()
    return Built(sizes, target, program, executables, packed, draft_packed, declined)


def _passes(given: Pipeline | None, page: int | None, chip: Chip) -> tuple[Passes, int]:
    """The passes of an engine, and the tokens of a page."""
    if given and page:
        raise ServingError("the size of a page is asked for twice", hint="paged{page=..} says it")
    page = page or (PAGE_ON_TPU if chip.platform == "tpu" else PAGE)
    passes = (given or Pipeline.parse(PASSES.format(page=page))).passes()
    return passes, next((pass_.page for pass_ in passes if pass_.pass_name() == "paged"), page)


def _in_groups(passes: Passes) -> bool:
    """Whether chips that own rows shall have the pages of these alone."""
    return any(getattr(pass_, "groups", False) is True for pass_ in passes)


def _groups(program: Program, target: Target) -> int:
    """The groups of chips that have pages of their own, by the plan."""
    axes = program.plan.split("cache").get("pages", ())
    return prod(dict(target.mesh)[name] for name in axes)


def _seconds(decoder: Decoder, passes: Passes, target: Target, context: int) -> Seconds | None:
    """What a step of some rows takes, by the cost model."""
    before_plan = partial(decoder.before_plan, FEWEST, passes, target)
    return step_seconds(before_plan, target, context)


def _before_plan(passes: Passes, more: str) -> Passes:
    """A pipeline with more passes, which change what is planned."""
    at = [step.pass_name() for step in passes].index("plan")
    return (*passes[:at], *Pipeline.parse(more).passes(), *passes[at:])


def _drafting(make: Callable[..., Program], rows: Any, passes: Passes, more: str) -> Program:
    """The program that drafts. Raises ServingError where its passes found nothing to do."""
    if more == BESIDE:
        return make(rows, passes=passes, drafts=True)
    draft, named = make(rows, passes=_before_plan(passes, more)), Pipeline.parse(more).passes()
    idle = [step for step in draft.history if step.text in map(str, named)]
    lines = [str(remark) for step in idle for remark in step.remarks if remark.kind == NOTHING_DONE]
    if lines:
        raise ServingError("\n  ".join([f"drafts of {more} are none:", *lines]))
    return draft


def _packed(draft: Program, mesh: Any, params: Any, packed: list[Any], drafting: str) -> list[Any]:
    """The parameters of the program that drafts; a second decoder's are packed with the first's."""
    return packed if drafting == BESIDE else packed_params(draft, mesh, params)


def _without(passes: Passes, name: str) -> Passes:
    return tuple(pass_ for pass_ in passes if pass_.pass_name() != name)


def _first_in_pages(
    make: Callable[..., Program], ways: Sequence[Passes]
) -> tuple[Program, Passes, tuple[str, ...]]:
    """The program of the first passes that bring all state into pages, and why not of those before.

    Layers that are rolled into a loop can have caches that are stacked before it: apart these lie
    in pages. Raises ServingError where none of the passes do.
    """
    errors: list[ServingError] = []
    for passes in ways:
        try:
            said = (f"layers are not rolled into a loop: {error.message}" for error in errors)
            return make(passes=passes), passes, tuple(said)
        except ServingError as error:
            errors.append(error)
    raise errors[0]


def _room(
    decoder: Decoder,
    passes: Passes,
    target: Target,
    mesh: Any,
    context: int,
    beside: float,
    rows: int,
) -> float:
    """Tokens that have room in the memory that the parameters leave, and so many bytes beside them:
    as a step of so many rows stores them, on every chip."""
    staged = Compilable(decoder.staged(rows, passes, target, None), mesh)
    chip = Topology.parse(target.topology).chip
    memory: float = chip.usable_hbm_bytes
    if chip.platform == "cpu":  # all devices are in one memory, of which others have a share
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 / mesh.size
    left = memory - beside / mesh.size - _on_a_chip(staged, "param")
    return max(0.0, left) / _on_a_chip(staged, "state") * rows * context


def _on_a_chip(staged: Compilable, group: str) -> int:
    """Bytes of some inputs on every chip."""
    pairs = zip(staged.inputs(group), staged.shardings(group))
    types = ((input_.type, sharding) for input_, sharding in pairs)
    return sum(replace(t, shape=sharding.shard_shape(t.shape)).bytes for t, sharding in types)


def _reads_count(init_cache: Init, params: Any, chip: Chip) -> bool:
    """Whether a token takes longer to read a full context than to be multiplied with all weights:
    then those of a prompt read it together."""
    reads_s = _bytes(jax.eval_shape(partial(init_cache, 1))) / chip.hbm_bytes_per_s
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    return reads_s > 2 * weights / max(peak for _, peak in chip.peaks)


def _bytes(shapes: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
