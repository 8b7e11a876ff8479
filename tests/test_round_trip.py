"""`Program.parse(str(p)) == p` on the examples, before and after every pass."""

from __future__ import annotations

from functools import partial

import jax
import pytest

from examples import gpt, llama, palm
from rewrite import Pipeline, Program, Target, trace

TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
PASSES = (
    "normalize, recognize, carry_cache, cache_layout, unroll, quantize, first_layer{budget=10.0}, "
    "plan{ffn=ws2d, attention=batch}, shard, stage, lower"
)


@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("tokens", [1, 4], ids=["decode", "prefill"])
@pytest.mark.parametrize("module", [llama, palm, gpt], ids=lambda module: module.__name__)
def test_reads_back_after_every_pass(module, tokens, unrolled):
    config = module.CONFIGS["toy"]
    params = jax.eval_shape(
        partial(module.init_params, config, unrolled=unrolled), jax.random.key(0)
    )
    cache = jax.eval_shape(lambda: module.init_cache(config, 8, 16, unrolled=unrolled))
    shape = (8,) if tokens == 1 else (8, tokens)
    step = partial(module.decode_step if tokens == 1 else module.prefill, config)
    program = trace(step, params, cache, jax.ShapeDtypeStruct(shape, "int32"))
    assert Program.parse(str(program)) == program
    for each in Pipeline.parse(PASSES).passes():
        program = each.run(program, TARGET)
        assert Program.parse(str(program)) == program, str(each)
    assert program.stages is not None and program.plan is not None
