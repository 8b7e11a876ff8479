"""Every pass has a golden file: what it makes of a small Llama. A refactoring leaves them alone.

`python -m pytest tests/test_golden.py --update-golden` writes them anew.
"""

from __future__ import annotations

from functools import partial

import jax
import pytest

from examples import llama
from rewrite import Pipeline, Program, Target, trace
from rewrite.passbase import pass_names

TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
SERVING = (
    "retarget",
    "normalize",
    "recognize",
    "carry_cache",
    "cache_layout",
    "quantize",
    "first_layer{budget=10.0}",
    "plan{ffn=ws1d, attention=heads}",
    "shard",
    "stage",
    "lower",
)
ALONE = {
    "audit": ("audit",),
    "fold_scales": ("normalize", "recognize", "carry_cache", "fold_scales"),
    "merge_dots": ("normalize", "recognize", "carry_cache", "merge_dots"),
    "pad": ("normalize", "recognize", "carry_cache", "pad{heads=20, vocab=260}", "stage"),
    "roll": ("normalize", "recognize", "unroll", "roll"),
    "unroll": ("normalize", "recognize", "unroll"),
    "rules": ("normalize", 'rules{file="examples/own.rules"}'),
}


def traced() -> Program:
    config = llama.CONFIGS["toy"]
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    cache = jax.eval_shape(lambda: llama.init_cache(config, 8, 16))
    tokens = jax.ShapeDtypeStruct((8,), "int32")
    return trace(partial(llama.decode_step, config), params, cache, tokens)


def after(*passes: str) -> Program:
    return Pipeline.parse(", ".join(passes)).run(traced(), TARGET)


def check(program: Program, name: str, golden) -> None:
    """The history names files and lines of this machine, so only the program itself is kept."""
    from dataclasses import replace

    golden(str(replace(program, history=())), f"llama.{name}.ir")


def test_traced(golden):
    check(traced(), "traced", golden)


@pytest.mark.parametrize("count", range(1, len(SERVING) + 1), ids=lambda n: SERVING[n - 1])
def test_serving(count, golden):
    name = SERVING[count - 1].partition("{")[0]
    check(after(*SERVING[:count]), name, golden)


@pytest.mark.parametrize("name", ALONE)
def test_alone(name, golden):
    check(after(*ALONE[name]), name, golden)


def test_no_pass_is_forgotten():
    assert {text.partition("{")[0] for text in SERVING} | set(ALONE) == set(pass_names())
