"""A prefill that gives logits at every position: as large as anything in the step."""

from __future__ import annotations

import pytest

from dialect.machine.mesh import Topology
from dialect.naming.axes import infer_axes
from dialect.planning.decoder import decoder_shape
from dialect.planning.layouts import product_layout
from dialect.reports.audit import audit
from examples import llama
from examples.tiny import model as tiny
from rewrite import Pipeline, Program
from rewrite.target import Target
from tests.kit import traced_step

BATCH, LENGTH = 16, 512
SLICE = Target("v5e:2x4", Topology.parse("v5e:2x4").mesh_axes().axes)
WIDE = tiny.Config(
    8, "", layers=2, d_model=1024, heads=8, d_head=128, d_ff=4096, vocab=32768, dtype="bfloat16"
)


def recognized(model: object, config: object) -> Program:
    program = traced_step(model, config, BATCH, LENGTH, prompt=LENGTH)
    return Pipeline.parse("normalize, recognize, carry_cache").run(program, SLICE)


@pytest.fixture(scope="module")
def program() -> Program:
    return recognized(tiny, WIDE)


def test_positions_with_logits_are_counted(program: Program) -> None:
    assert decoder_shape(program, infer_axes(program)).logits_time == LENGTH
    last = recognized(llama, llama.CONFIGS["toy"])
    assert decoder_shape(last, infer_axes(last)).logits_time == 1


def test_logits_are_left_in_the_rows_that_the_table_reads(program: Program) -> None:
    planned = Pipeline.parse("plan{ffn=wg_x, attention=heads}").run(program, SLICE)
    assert planned.plan.split("tables") == {"vocab": ("y",), "batch": ("x",)}
    logits = planned.graph.outputs[0]
    assert product_layout(planned.plan, infer_axes(planned), logits) == (("x",), (), ("y",))


def test_the_compiler_exchanges_what_is_planned(program: Program) -> None:
    planned = Pipeline.parse("plan, shard, stage, lower").run(program, SLICE)
    found = audit(planned, SLICE)
    assert found.unplanned_above(0.01) == ()
    assert found.compiled_bytes == pytest.approx(found.planned_bytes, rel=0.01)
    assert found.compiled_memory_bytes == pytest.approx(found.planned_memory_bytes, rel=0.25)
