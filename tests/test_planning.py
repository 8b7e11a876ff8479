"""What may be asked of `plan`: an objective, a batch, a prefill on the same weights, compilers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.objectives import shape_to_plan
from dialect.planning.refine import Compiled, fastest
from dialect.planning.search import TIE, best_plans, searched, storage_of
from dialect.planning.shared_storage import Serving, shared_storage
from examples import llama
from rewrite import Pipeline, Plan
from rewrite.errors import PlanError
from rewrite.program import Program
from rewrite.target import Target
from tests.decoder_shapes import LLAMA_8B, varied
from tests.kit import traced_step

V5E = Topology.parse("v5e:2x4")
MESH = MeshSpec.parse("x=2 y=4")
SLICE = Target("v5e:2x4", MESH.axes)


def traced(batch: int = 64, size: str = "8b") -> Program:
    program = traced_step(llama, llama.CONFIGS[size], batch, 2048)
    return Pipeline.parse("normalize, recognize, carry_cache").run(program, SLICE)


@pytest.fixture(scope="module")
def program() -> Program:
    return traced()


def planned(program: Program, options: str) -> tuple[Plan, tuple[str, ...]]:
    done = Pipeline.parse(f"plan{{{options}}}").run(program, SLICE)
    return done.plan, done.history[-1].notes


def splits_stream(plan: Plan) -> bool:
    return "d_model" in plan.split("residual")


def test_the_best_plans_differ_in_how_weights_heads_or_the_stream_lie() -> None:
    plans = best_plans(LLAMA_8B, V5E, MESH, count=4)
    told = [
        [*(plan.split(group) for group in ("weights", "used", "attention")), splits_stream(plan)]
        for plan in plans
    ]
    assert all(one != other for i, one in enumerate(told) for other in told[:i])
    best_s = min(plan.predicted.time_s for plan in plans)
    assert plans[0].label == "ws1d/heads" and plans[0].predicted.time_s <= (1 + TIE) * best_s
    assert all(Plan.parse(str(plan)) == plan for plan in plans)


def test_the_gap_to_the_optimum_is_told_where_nothing_is_asked_for(program: Program) -> None:
    _, notes = planned(program, "objective=latency")
    assert notes[1:] == ("optimality gap 0.0%, every partitioning being costed",)
    assert planned(program, "ffn=ws1d")[1][1:] == ()


def test_throughput_is_planned_for_the_batch_that_fills_the_memory() -> None:
    full = shape_to_plan("throughput", LLAMA_8B, V5E, MESH)
    assert full.batch == shape_to_plan("cost", LLAMA_8B, V5E, MESH).batch == 256
    assert shape_to_plan("latency", LLAMA_8B, V5E, MESH) == LLAMA_8B
    assert searched(replace(LLAMA_8B, batch=1024), V5E, MESH).candidates == ()


def test_a_plan_says_for_which_batch_it_was_made(program: Program) -> None:
    _, notes = planned(program, "objective=throughput")
    assert "planned for a batch of 256, at which throughput is best" in notes


def test_batch_and_context_may_be_others_than_the_programs(program: Program) -> None:
    own, _ = planned(program, "objective=latency")
    shorter, _ = planned(program, "context=128")
    fewer, _ = planned(program, "batch=8")
    assert shorter.predicted.hbm_bytes < own.predicted.hbm_bytes
    assert fewer.predicted.communication_bytes < own.predicted.communication_bytes / 7


def test_prefill_and_decode_share_one_storage_and_its_price_is_told() -> None:
    serving = Serving(prompt=2048, prompts=16, answer=64)
    both = shared_storage(LLAMA_8B, serving, V5E, MESH)
    assert both.decode.storage == both.prefill.storage
    assert both.decode.predicted.time_s >= both.decode_alone.predicted.time_s
    assert both.prefill.predicted.time_s >= both.prefill_alone.predicted.time_s
    shared = serving.seconds(LLAMA_8B, both.decode.predicted.time_s, both.prefill.predicted.time_s)
    for decode in searched(LLAMA_8B, V5E, MESH).candidates:
        for prefill in searched(serving.prefill(LLAMA_8B), V5E, MESH).candidates:
            if decode.storage == prefill.storage:
                pair = (decode.predicted.time_s, prefill.predicted.time_s)
                assert serving.seconds(LLAMA_8B, *pair) >= shared
    assert both.note().startswith("prefill and decode share their weights: decode ")
    assert both.note().count("% more than") == 2


def test_the_other_step_is_planned_on_the_storage_of_the_first(
    program: Program, tmp_path: Path
) -> None:
    path = tmp_path / "decode.plan"
    decode, notes = planned(program, "prompt=2048, prompts=16")
    assert sum("prefill and decode share their weights" in note for note in notes) == 1
    decode.save(path)
    other, _ = planned(program, f'weights="{path}", batch=8')
    assert storage_of(other) == storage_of(decode)
    # A plan keeps its reader from what stores them otherwise.
    one = best_plans(LLAMA_8B, V5E, MESH, "ws2d", "heads")[0]
    assert storage_of(one) != storage_of(decode)
    with pytest.raises(PlanError, match="no partitioning stores its weights as the plan"):
        best_plans(LLAMA_8B, V5E, MESH, "ws2d", "heads", 1, decode)


def compiled_in(times: dict[str, float | None]) -> list[Compiled]:
    mesh = (("x", 2),)
    return [Compiled(Plan(label, mesh, ()), time_s) for label, time_s in times.items()]


def test_the_fastest_schedule_decides() -> None:
    assert fastest(compiled_in({"a": 0.02, "b": 0.01, "c": None})).label == "b"
    with pytest.raises(PlanError) as caught:
        fastest(compiled_in({"a": None}))
    assert "compiled a: does not fit by its schedule" not in caught.value.message
    assert "compiled a: does not fit" in caught.value.message


def test_the_best_plans_are_compiled_and_told(program: Program) -> None:
    plan, notes = planned(program, "refine=2")
    told = [note for note in notes if note.startswith("compiled ")]
    assert len(told) == 2 and told[0].startswith("compiled ws1d/heads: ")
    times = {note.split()[1][:-1]: float(note.split()[2]) for note in told}
    assert plan.label == min(times, key=lambda label: times[label])


def test_a_cpu_has_no_schedules(program: Any) -> None:
    target = Target("cpu:8", (("x", 8),))
    with pytest.raises(PlanError, match="a CPU has none"):
        Pipeline.parse("plan{refine=2}").run(program, target)


def test_a_parallel_block_reduces_its_partial_sums_over_axes_in_one_order() -> None:
    """Over y x for the heads and x y for d_ff the compiler reduced both apart: twice the bytes."""
    shape = varied(LLAMA_8B, kv_heads=4, heads=16, parallel=True)
    mesh = MeshSpec.parse("x=2 y=4")
    for candidate in searched(shape, V5E, mesh).candidates:
        axes = candidate.partitioning.axes
        heads, d_ff = axes("used", "kv_heads", "q_per_kv"), axes("used", "d_ff")
        assert set(heads) != set(d_ff) or heads == d_ff


def test_queries_of_a_kv_head_that_are_split_are_an_axis_of_their_own() -> None:
    """Among all heads they would not lie side by side: an all-to-all would follow the product."""
    config = replace(llama.CONFIGS["toy"], heads=12, kv_heads=3, layers=1)
    passes = Pipeline.parse("normalize, recognize, plan, shard")
    program = passes.run(traced_step(llama, config, 4, 16), SLICE)
    assert program.plan.split("attention") == {"batch": ("y",), "q_per_kv": ("x",)}
    layouts = [op["layouts"] for op, _ in program.graph.walk() if op.name == "exchange"]
    assert "batch@y 1 kv_heads q_per_kv@x d_head" in layouts
    assert not [layout for layout in layouts if "kv_heads.q_per_kv@" in layout]
