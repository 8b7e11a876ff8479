"""`Program.parse(str(p)) == p` on the examples, before and after every pass."""

from __future__ import annotations

import pytest

from examples import gpt, llama, palm
from rewrite import Pipeline, Program, Target
from tests.kit import traced_step

TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
PASSES = (
    "normalize, recognize, carry_cache, cache_layout, unroll, quantize, first_layer{budget=10.0}, "
    "plan{ffn=ws2d, attention=batch}, shard, stage, lower"
)


@pytest.mark.parametrize(
    ("prompt", "unrolled"), [(None, False), (4, True)], ids=["decode", "prefill unrolled"]
)
@pytest.mark.parametrize("model", [llama, palm, gpt], ids=lambda model: model.__name__)
def test_reads_back_after_every_pass(model, prompt, unrolled):
    how = {"prompt": prompt, "unrolled": unrolled}
    program = traced_step(model, model.CONFIGS["toy"], 8, 16, **how)
    assert Program.parse(str(program)) == program
    for each in Pipeline.parse(PASSES).passes():
        program = each.run(program, TARGET)
        assert Program.parse(str(program)) == program, str(each)
    assert program.stages is not None and program.plan is not None
