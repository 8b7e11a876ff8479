"""A second decoder that drafts, beside the one that is served: one step of both, on one table.

    step(params, cache, tokens)  ->  (logits, logits of the drafter), cache       of both, by name

Its pools have pages of their own, of the same numbers: it reads every token that the decoder reads,
in the same step, so prompts that are shared, copied or computed again are so for both, and nothing
is scheduled twice. Where it runs ahead, the pools of the decoder stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dialect.serving.policy import ServingError
from rewrite.ir import Value
from rewrite.program import Input, Output

BESIDE = "beside"  # in place of the passes that make the decoder that drafts
DECODER, DRAFTER = "decoder", "drafter"
Results = list[tuple[Value, Output]]
Served = tuple[Callable[..., Any], Any, Callable[..., Any]]  # step, params, init_cache


def beside(decoder: Served, drafter: Served) -> Served:
    """Both as one decoder, whose step has the logits of both; it raises ServingError where it is
    traced and they do not have the same tokens."""
    both = {DECODER: decoder, DRAFTER: drafter}

    def step(params: Any, cache: Any, tokens: Any) -> Any:
        made = {name: one(params[name], cache[name], tokens) for name, (one, _, _) in both.items()}
        logits = tuple(made[name][0] for name in both)
        one, other = (each.shape[-1] for each in logits)
        if one != other:
            raise ServingError(f"a drafter of {other} tokens cannot draft for a decoder of {one}")
        return logits, {name: made[name][1] for name in both}

    def init_cache(batch: int, context: int) -> Any:
        return {name: init(batch, context) for name, (_, _, init) in both.items()}

    return step, {name: params for name, (_, params, _) in both.items()}, init_cache


def answering(outputs: Results, inputs: Mapping[Value, Input], drafts: bool) -> Results:
    """What a step on pools gives that has the logits of both, with those of one alone: of the
    decoder, or of the drafter, which leaves the pools of the other as they are."""
    logits = [value for value, out in outputs if out.updates is None]
    if len(logits) == 1:
        return outputs
    pools, kept = list(inputs.items()), []
    for value, out in outputs:
        if out.updates is not None:
            pool, declared = pools[out.updates]
            stays = drafts and f"/{DECODER}/" in declared.name
            kept.append((pool if stays else value, out))
        elif value is logits[drafts]:
            kept.append((value, out))
    return kept
