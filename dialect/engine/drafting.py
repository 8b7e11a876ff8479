"""How many drafts an engine verifies: so many, or as many as pay by what its steps take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dialect.engine.building import Built
from dialect.serving.drafts import Ahead, Drafts, PromptLookup, Usual
from dialect.serving.policy import Policy, ServingError
from dialect.serving.requests import Request
from dialect.serving.shapes import Shape, rows_alone, rows_of, told
from dialect.token_rows import packing, sampling
from dialect.token_rows.beside import BESIDE
from dialect.token_rows.packing import Packed
from rewrite.errors import PipelineError, nearest
from rewrite.pipeline import Pipeline

DRAFTS = {
    "ngram": "n-grams of a request's own text",
    "self": "the decoder's own, with int4 weights",
    BESIDE: "a second decoder's",
}
PASSES = {"self": "quantize{weights=int4, group=64}", BESIDE: BESIDE}  # of the decoder that drafts
_MOST = 16  # drafts of a request, where it is not said how many
_TIMES = 3  # that a step runs to be timed
_PLACE = 1 / 4  # of the context: where it is timed, since a step reads what lies before


def measured(built: Built, draft: str | None, length: int | None) -> dict[str, Any]:
    """Of an engine's policy, what its drafts are; where no length is given, its steps are timed."""
    once_s = draft_s(built)
    if draft is None or length is not None:
        return {"drafts": length or 0, "seconds": [], "draft_s": once_s}
    return {"drafts": _MOST, "seconds": seconds(built), "draft_s": once_s}


def verified(draft: str | None, length: int | None) -> int | None:
    """The drafts of a request that are verified in one group; None for as many as the plan says."""
    return 0 if draft is None else length


def passes_of(draft: str | None, length: int | None) -> str:
    """The passes that make the decoder that drafts; empty where none does. Raises ServingError for
    drafts that do not exist."""
    if length is not None and (draft is None or length < 1):
        raise ServingError(f"draft_length is {length}, and must be at least 1, of a draft")
    if draft is None or draft in DRAFTS:
        return PASSES.get(draft or "", "")
    try:
        Pipeline.parse(draft, source="draft")
    except PipelineError as error:
        named = f"a name ({nearest(draft, DRAFTS)}) or passes ({error.message})"
        raise ServingError(f"no drafts are called {draft!r}", hint=named) from error
    return draft


@dataclass(frozen=True)
class Drafting:
    """What an engine's drafts are (`DRAFTS`), and how often they are right."""

    draft: str | None
    usual: Usual = field(default_factory=Usual)

    def of(self, request: Request) -> Drafts | None:
        """The drafts of a new request."""
        if self.draft is None:
            return None
        return PromptLookup(request.tokens) if self.draft == "ngram" else Ahead(self.usual)


def seconds(built: Built) -> list[float]:
    """The seconds of all steps, if they are full and everybody has a part of the context behind."""
    run = built.executables.run
    timed = []
    for shape in built.sizes.shapes:
        timed.append(_seconds(partial(run, built.params, _alike(built, shape))))
    built.executables.fresh()
    return timed


def draft_s(built: Built) -> float:
    """The seconds in which the decoder that drafts does so once for everybody; 0 without one."""
    if built.draft_params is None:
        return 0.0
    step = _alike(built, rows_alone(built.sizes.rows))
    once_s = _seconds(lambda: built.executables.draft(built.draft_params, step))
    built.executables.fresh()
    return once_s


def _alike(built: Built, shape: Shape) -> Packed:
    """A step whose token rows are all at one place, on the same pages."""
    place = int(_PLACE * built.sizes.context)
    pages = place // built.sizes.page + 1
    array = packing.empty(rows_of(shape), built.executables.width)
    array[:, packing.POSITION] = place
    array[:, packing.PAGES : packing.PAGES + pages] = np.arange(pages)
    return Packed(shape, array, sampling.unasked(built.sizes.choices), {})


def _seconds(run: Callable[[], Any]) -> float:
    """The least that it takes, of some times."""
    times = [time.perf_counter()]
    for _ in range(_TIMES):
        np.asarray(run())
        times.append(time.perf_counter())
    return float(np.diff(times).min())


def drafts_told(draft: str | None, policy: Policy, counted: Mapping[str, int]) -> list[str]:
    """For people: how long drafts were, how many were accepted, how many not verified and why."""
    if draft is None:
        return []
    rows, verified = counted["draft_rows"], counted["drafts"]
    accepted, declined = counted["drafts_accepted"], counted["draft_rows_declined"]
    lines = [
        f"drafts are {DRAFTS.get(draft, f'its own, after {draft}')}, {policy.drafts} at most: "
        f"{verified} were verified behind {rows} tokens, {accepted} accepted; behind {declined} "
        "tokens none were, as they would not have paid or had no room",
    ]
    if any(step_s for _, step_s in policy.steps):
        rows = ", ".join(told(shape) for shape, _ in policy.steps)
        took = ", ".join(f"{1e3 * step_s:.3g}" for _, step_s in policy.steps)
        line = f"what pays follows from the time of steps of {rows} rows: {took} ms"
        more = f"; {1e3 * policy.draft_s:.3g} ms to draft once" if policy.draft_s else ""
        lines.append(line + more)
    return lines
