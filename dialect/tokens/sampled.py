"""A step that gives tokens instead of logits.

    logits, cache = step(params, cache, tokens)
    chosen, cache = sampled(step)(params, cache, tokens, sampling)

Logits are the largest thing that a decode step returns; a token for every row is a few bytes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from dialect.tokens.choice import Chosen, Sampling, choose


def sampled(step: Callable[..., Any], top: int | None = None) -> Callable[..., Any]:
    """`step(params, cache, ..., sampling)`, which returns `Chosen` tokens and the cache.

    `step` returns logits [rows, vocabulary] or [rows, positions, vocabulary], and the cache. With
    `top`, log-probabilities of the chosen and of the `top` most probable tokens are returned too.
    """

    @functools.wraps(step)
    def chosen(params: Any, cache: Any, *args: Any) -> tuple[Chosen, Any]:
        *given, sampling = args
        logits, cache = step(params, cache, *given)
        return choose(logits, Sampling(*sampling), top), cache

    chosen.__signature__ = _with(inspect.signature(step), "sampling")  # type: ignore[attr-defined]
    return chosen


def _with(signature: inspect.Signature, name: str) -> inspect.Signature:
    """The arguments of a step by position, and one more."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken = [parameter for parameter in signature.parameters.values() if parameter.kind in kinds]
    last = inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature(
        [parameter.replace(default=parameter.empty) for parameter in taken] + [last]
    )
