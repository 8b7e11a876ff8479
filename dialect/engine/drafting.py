"""How many drafts an engine verifies: so many, or as many as pay by what its steps take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from dialect.engine import packing
from dialect.engine.building import Built
from dialect.serving.drafts import Prices
from dialect.serving.policy import Policy, ServingError
from rewrite.errors import nearest

DRAFTS = ("ngram",)
_MOST = 16  # drafts of a request, where it is not said how many
_TIMES = 3  # that a step runs to be timed
_PLACE = 1 / 4  # of the context: where it is timed, since a step reads what lies before


def drafting(built: Built, draft: str | None, length: int | None) -> dict[str, Any]:
    """Of an engine's policy, what its drafts are. Raises ServingError for those that do not exist.

    Where no length is given, the steps are run to be timed.
    """
    if draft is not None and draft not in DRAFTS:
        raise ServingError(f"no drafts are called {draft!r}", hint=nearest(draft, DRAFTS))
    if length is not None and (draft is None or length < 1):
        raise ServingError(f"draft_length is {length}, and must be at least 1, of a draft")
    if draft is None:
        return {"drafts": 0, "prices": ()}
    return {"drafts": length or _MOST, "prices": () if length else prices(built)}


def prices(built: Built) -> Prices:
    """The seconds of steps that are full, as everybody has a part of the context behind."""
    executables, place = built.executables, int(_PLACE * built.sizes.context)
    pages = place // built.sizes.page + 1
    timed = []
    for rows in executables.rows:
        array = np.full((rows, packing.PAGES + executables.width), packing.NO_PAGE, np.int32)
        array[:, : packing.PAGES] = 0
        array[:, packing.SOURCE] = -1
        array[:, packing.POSITION] = place
        array[:, packing.PAGES : packing.PAGES + pages] = np.arange(pages)
        times = [time.perf_counter()]
        for _ in range(_TIMES):
            np.asarray(executables.run(built.params, array))
            times.append(time.perf_counter())
        timed.append((rows, float(np.diff(times).min())))
    executables.fresh()
    return tuple(timed)


def drafts_told(policy: Policy, counted: Mapping[str, int]) -> list[str]:
    """For people: how long drafts were, how many were accepted, how many not verified and why."""
    if not policy.drafts:
        return []
    rows, verified = counted["draft_rows"], counted["drafts"]
    accepted, declined = counted["drafts_accepted"], counted["draft_rows_declined"]
    lines = [
        f"drafts are n-grams of a request's own text, {policy.drafts} at most: {verified} were "
        f"verified behind {rows} tokens, {accepted} accepted; behind {declined} tokens none were, "
        "as they would not have paid or had no room",
    ]
    if policy.prices:
        tokens = ", ".join(str(rows) for rows, _ in policy.prices)
        seconds = ", ".join(f"{1e3 * price_s:.3g}" for _, price_s in policy.prices)
        lines.append(f"what pays follows from the time of steps of {tokens} tokens: {seconds} ms")
    return lines
