"""Random pipelines: every pass once, in an order that makes sense or in any order at all."""

from __future__ import annotations

import random

_FRONT = (
    "retarget",
    "normalize",
    "recognize",
    "roll",
    "unroll",
    "carry_cache",
    "cache_layout",
    "merge_dots",
    "fold_scales",
    "first_layer{budget=10.0}",
    "pad",
)
_ROUNDING = (
    "quantize{weights=int8}",
    "quantize{weights=int8, activations=int8}",
    "quantize{weights=int4, group=2}",
    "quantize{weights=fp8, vocab=true}",
    "quantize{weights=int8, cache=int8}",
    "cache_layout{kv_heads=1}",
)
_SERVE = ("plan", "shard", "stage", "lower")
_OWN_RULES = 'rules{file="examples/own.rules"}'
_PADS = ("pad", "pad", "pad", "pad{heads=8}", "pad{d_ff=16}", "pad{vocab=12}")
ORDERS = ("usual", "shuffled", "any")


def pipeline(source: random.Random) -> tuple[str, ...]:
    """The passes in some order, where little is padded by itself at times to a size."""
    passes = _ordered(source)
    padded = source.choice(_PADS)
    return tuple(padded if each == "pad" else each for each in passes)


def _ordered(source: random.Random) -> tuple[str, ...]:
    """`usual` as in the documentation, `shuffled` behind recognition, or `any`."""
    order = source.choices(ORDERS, (3, 4, 2))[0]
    front = list(_FRONT)
    if source.random() < 0.25:
        front.insert(source.randint(2, len(front)), source.choice(_ROUNDING))
    if source.random() < 0.25:
        front.insert(source.randint(2, len(front)), _OWN_RULES)
    if order == "usual":
        return (*front, *_SERVE)
    if order == "shuffled":
        rest = [each for each in front if each not in ("normalize", "recognize")]
        source.shuffle(rest)
        return ("normalize", "recognize", *rest, *_SERVE)
    whole = [*front, *_SERVE]
    source.shuffle(whole)
    return tuple(whole)
