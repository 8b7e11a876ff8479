"""What a plan says is exchanged, as the TPU compiler makes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dialect.compiled.compilers import Compiler
from dialect.machine.interconnect import Ring, Switch
from dialect.machine.mesh import MeshSpec, Topology
from dialect.ops.sharding import sides
from dialect.planning.cost import CONSTANTS, estimate
from dialect.planning.decoder_shape import Attention, Block, DecoderShape, Network
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.plan import Exchange, Plan
from dialect.planning.planned_exchanges import planned_exchanges
from dialect.planning.search import choose, searched
from dialect.planning.workload import Workload
from examples import llama
from rewrite import Pipeline
from rewrite.target import Target
from tests.decoder_shapes import LLAMA_70B, PALM_540B, varied
from tests.kit import traced_step

PREFILL_70B = replace(LLAMA_70B, batch=16, time=2048)
CUBE = Topology.parse("v4:4x4x4")
MESH = CUBE.mesh_axes()
CHOSEN = "E_xF_yz>BE_x/heads+batch"


def made(shape: DecoderShape) -> Partitioning:
    """Its batch over x in the products' sums, over x and z in attention."""
    found = [each.partitioning for each in searched(shape, CUBE, MESH).candidates]
    return next(
        each
        for each in found
        if each.label == CHOSEN and each.axes("attention", "batch") == ("x", "z")
    )


def exchanges(shape: DecoderShape, kind: str) -> list[Exchange]:
    every = planned_exchanges(shape, CUBE, MESH, made(shape))
    return [each for each in every if each.kind == kind]


def test_sums_around_a_closed_ring_are_passed_on_in_pieces_where_computing_hides_them() -> None:
    """Gate and up: [512, d_ff / 16] in four pieces each; queries and keys stay one exchange."""
    (pieces,) = exchanges(replace(PALM_540B, batch=512), "collective-permute")
    assert pieces == Exchange(
        "collective-permute", ("x",), 512 * 73728 // 16 * 2 // 4, 118 * 2 * 4, "block"
    )
    assert exchanges(PALM_540B, "collective-permute") == []


def test_new_keys_are_cut_to_their_owners_rows_before_they_are_summed() -> None:
    """Over x they are partial sums, over z copies of which each chip wants its own rows."""
    work = Workload(PALM_540B, MESH, made(PALM_540B))
    (attention, _), *_ = work.shape.attentions
    assert (work.scattered, work.row_axes(attention)) == (("x",), ("z",))
    (scatter, _) = exchanges(PALM_540B, "reduce-scatter")
    hidden, queries, keys = 2 * 73728 / 16, 64 * 256 / 16, 2 * 256 / 4
    assert scatter.bytes == 2 * 64 * (hidden + queries + keys)


def test_partial_sums_of_less_than_a_tile_of_rows_are_reduced_everywhere() -> None:
    """Of 16 sequences 4 are left to a chip, of 32 a whole tile; tiles are the compiler's alone."""
    few, whole = replace(PALM_540B, batch=16), replace(PALM_540B, batch=32)
    assert {each.part for each in exchanges(few, "reduce-scatter")} == set()
    assert {each.part for each in exchanges(whole, "reduce-scatter")} == {"block", "logits"}


def test_heads_that_do_not_divide_leave_rows_to_be_gathered() -> None:
    """Of 25 heads on two chips both have all; each attends half of the rows, which come together
    behind."""
    attention = Block(Attention(heads=25, kv_heads=25, d_head=64), times=48, stored=48)
    network = Block(networks=(Network(6400, into=1),), times=48, stored=48)
    shape = DecoderShape(16, 1, 1024, 1600, 50304, (attention, network))
    v5e = Topology.parse("v5e:2x4")
    plan = next(
        each.partitioning
        for each in searched(shape, v5e, v5e.mesh_axes()).candidates
        if each.label == "EF_x>B_yE/batch" and each.partitioning.axes("residual", "batch") == ("y",)
    )
    every = planned_exchanges(shape, v5e, v5e.mesh_axes(), plan)
    assert [each for each in every if each.part == "attention"] == [
        Exchange("all-gather", ("x",), 2 * 16 // 4 * 25 * 64, 48, "attention")
    ]


def test_rows_beside_a_table_keep_their_batch_on_axes_that_it_leaves_free() -> None:
    shape = replace(PALM_540B, batch=16, time=2048)
    plan = choose(shape, CUBE, MESH)
    assert plan.split("residual")["batch"] == plan.split("tables")["batch"] == ("x",)
    assert plan.split("tables")["vocab"] == ("y", "z")
    assert plan.split("logits") == {"batch": ("x",), "vocab": ("y", "z")}
    assert not [each for each in plan.exchanges if each.kind == "all-to-all" and each.times == 1]
    assert Plan.parse(str(plan)) == plan


def test_where_the_compiler_waits_for_gathered_weights_two_copies_are_faster() -> None:
    """Llama-70B's prefill on v5p: 1,881 ms by its schedule, and 2,465 gathered."""
    v5p = Topology.parse("v5p:2x2x2")
    plan = choose(PREFILL_70B, v5p, v5p.mesh_axes())
    assert plan.label == "EF_z>B_xyE/heads+batch"
    assert plan.split("weights") == plan.split("used")
    gathers = next(
        each
        for each in searched(PREFILL_70B, v5p, v5p.mesh_axes()).candidates
        if each.label == "E_zF>B_xyzE/batch"
    )
    overlapping = Compiler(overlaps_gathers=True)
    beside = estimate(PREFILL_70B, v5p, v5p.mesh_axes(), gathers.partitioning, compiler=overlapping)
    assert beside.time_s < plan.predicted.time_s < gathers.predicted.time_s


@pytest.mark.parametrize(
    ("chips", "passes", "pinned"),
    [("v6e:4x4", "", 0), ("v5e:4x4", "", 3), ("v6e:4x4", "quantize, ", 5)],
)
def test_weights_that_are_gathered_in_pieces_are_not_pinned(
    chips: str, passes: str, pinned: int
) -> None:
    """Beside their products, which pinned ones would wait for."""
    planned = f"{passes}plan{{ffn=wg_x, attention=heads}}, shard"
    traced = traced_step(llama, llama.CONFIGS["toy"], 16, 32, prompt=32)
    target = Target(chips, Topology.parse(chips).mesh_axes().axes)
    pipeline = Pipeline.parse(f"normalize, recognize, carry_cache, {planned}")
    program = pipeline.run(traced, target)
    (body,) = [op.regions[0] for op in program.graph.ops if op.name == "scan"]
    read = [sides(op["layouts"]) for op in body.ops if op.get("of") == "weights"]
    whole = [each for each in read if "d_ff" in each.names]
    assert all(each.wanted[each.names.index("d_ff")] == ("y",) for each in whole)
    assert len(whole) == pinned  # w_gate, w_up, w_down; the scales of two where there are some
    assert len(read) > len(whole)  # the projections are pinned


@pytest.mark.parametrize(
    ("count", "beside", "worth"),
    [(1, False, 1.0), (2, False, 2**0.15), (3, False, 3**0.15), (3, True, 0.5)],
)
def test_rings_of_several_axes_work_together(count: int, beside: bool, worth: float) -> None:
    rings = [Ring(4, True, 45e9, 1e-6)] * count
    assert CONSTANTS.worth(rings, beside) == pytest.approx(worth * CONSTANTS.link)


def test_a_switch_is_one_link() -> None:
    assert CONSTANTS.worth([Switch(8, 450e9, 1.9e-6)], False) == CONSTANTS.link


def test_what_has_no_ring_is_not_cut() -> None:
    shape = varied(PALM_540B, batch=512, layers=4)
    switch = Topology.parse("h100:8")
    mesh = MeshSpec.parse("x=8")
    found = searched(shape, switch, mesh).candidates[0].partitioning
    kinds = {each.kind for each in planned_exchanges(shape, switch, mesh, found)}
    assert "collective-permute" not in kinds
