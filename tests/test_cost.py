"""The cost model against "Efficiently Scaling Transformer Inference" (arXiv:2211.05102).

All published figures are PaLM on TPU v4, with heads padded from 48 to 64 for 540B.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dialect.compiled.compilers import room_on_chip, scatters_rows
from dialect.machine.mesh import MeshSpec, Topology
from dialect.planning.cost import estimate
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.partitionings import NAMES, Unavailable, partition
from dialect.planning.plan import Plan, Prediction
from dialect.planning.search import TIE, choose, on_every_chip, optimality_gap, searched
from dialect.planning.workload import Workload
from rewrite.errors import PlanError
from tests import decoder_shapes
from tests.decoder_shapes import (
    CUBE,
    PALM_62B,
    PALM_540B,
    ffn_bytes,
    v4,
    varied,
)

LLAMA_8B = replace(decoder_shapes.LLAMA_8B, weight_bytes_per_element=1)
INT8 = {"weight_bytes_per_element": 1}


def predict(shape: DecoderShape, chips: int, ffn: str, attention: str) -> Prediction:
    topology, mesh = v4(chips)
    return estimate(shape, topology, mesh, partition(ffn, attention, shape, mesh))


def prefill(shape: DecoderShape, batch: int, **changes: float) -> DecoderShape:
    return varied(shape, batch=batch, time=2048, context=2048, **changes)


def decode(shape: DecoderShape, batch: int, **changes: float) -> DecoderShape:
    return varied(shape, batch=batch, **changes)


# Communication volume: section 3.2 and Figure 3.


@pytest.mark.parametrize("tokens", [64, 4096, 16384, 1 << 20])
def test_volumes_are_the_formulas_of_the_paper(tokens: int) -> None:
    """Appendix A.2, in bf16: BLE both ways; and each gathered weight once."""
    model, ff, x, yz, chips = 16384, 65536, 4, 16, 64
    weights = 2 * model * ff
    assert ffn_bytes("ws1d", tokens) == 2 * (2 * tokens * model)
    assert ffn_bytes("ws2d", tokens) == 2 * (2 * tokens * (model / x + ff / yz))
    for name, gathered in (("wg_x", 4), ("wg_xy", 16)):
        activations = 2 * tokens * model / gathered
        assert ffn_bytes(name, tokens) == 2 * (weights * gathered / chips + activations)
    assert ffn_bytes("wg_xyz", tokens) == 2 * weights


def test_a_gate_queries_and_a_serial_block_add_their_share() -> None:
    """Per token and layer of PaLM 540B on 64 chips: 2 B [2 E/X + (2 H Q + 3 F)/YZ]; a serial
    block adds 2 E/X. Left out there: the one KV head, which is replicated over yz and then whole
    over x too; and the queries, whose rows lie over x until attention splits the heads."""

    def per_token(shape: DecoderShape) -> float:
        work = Workload(shape, CUBE, partition("ws2d", "heads", shape, CUBE))
        parts = [each for each in work.collectives() if each.part in ("block", "ffn", "attention")]
        return sum(each.volume for each in parts) / shape.layers / shape.batch

    keys_and_values, queries = 2 * (2 * 2 * 256), 2 * 64 * 256 / 64
    assert per_token(PALM_540B) == 50_176 + keys_and_values + queries
    serial = varied(PALM_540B, parallel=False)
    assert per_token(serial) == 50_176 + keys_and_values + queries + 2 * 2 * 18432 / 4


# Memory: Table 1.


def test_memory_per_chip() -> None:
    """PaLM 540B padded to 64 heads in bf16: 549 B parameters in the layers, one table."""
    work = Workload(PALM_540B, CUBE, partition("ws2d", "batch", PALM_540B, CUBE))
    memory = work.memory()
    layer = 18432 * (3 * 73728 + 2 * 64 * 256) / 64 + 18432 * 2 * 256 / 4  # KV over x alone
    assert memory["weights"] == 118 * layer * 2
    assert memory["embedding"] == 256128 * 18432 * 2 / 64
    assert memory["cache"] == 2 * 256 * 2 * 118 * 64 * 2048 / 64
    assert predict(PALM_540B, 64, "ws2d", "batch").memory_bytes == round(sum(memory.values()))


def test_heads_of_half_the_lanes_are_stored_as_whole_ones() -> None:
    """GPT-2 and Llama-3.2-1B: a TPU pads d_head 64 to 128 in memory and on every read."""
    small, mesh = varied(LLAMA_8B, d_head=64), MeshSpec.parse("x=2 y=4")
    cache = [
        Workload(shape, mesh, partition("ws1d", "heads", shape, mesh), lanes).memory()["cache"]
        for shape, lanes in ((small, 128), (LLAMA_8B, 128), (small, 1))
    ]
    assert cache[0] == cache[1] == 2 * cache[2]
    work = Workload(small, mesh, partition("ws1d", "heads", small, mesh), 128)
    (attention, _), *_ = small.attentions
    turned = replace(attention, positions_last=True)  # [batch, heads, d_head, context], as of T5X
    assert work.layer_cache_bytes(attention) == 2 * work.layer_cache_bytes(turned)
    plan = choose(small, Topology.parse("v5e:2x4"), mesh)
    assert plan.predicted.memory_bytes > cache[0]


@pytest.mark.parametrize(("slice_", "moves"), [("v5e:2x4", 1), ("v6e:2x4", 1), ("v5p:2x2x2", 3)])
def test_a_block_of_pages_that_the_compiler_copies_is_moved_three_times(
    slice_: str, moves: int
) -> None:
    mesh, kind = MeshSpec.parse("x=2 y=4"), Topology.parse(slice_).chip
    (attention, block), *_ = LLAMA_8B.attentions
    in_pages = replace(block, attention=replace(attention, in_pages=True))
    paged = replace(LLAMA_8B, blocks=(in_pages, *LLAMA_8B.blocks[1:]))
    layout = partition("ws1d", "heads", LLAMA_8B, mesh)
    of_rows, of_pages = (Workload.on(kind, of, mesh, layout) for of in (LLAMA_8B, paged))
    more = of_pages.hbm_bytes() - of_rows.hbm_bytes()
    assert more == (moves - 1) * of_rows.memory()["cache"]


def test_what_no_block_holds_is_on_every_chip() -> None:
    shape, mesh = replace(LLAMA_8B, other_bytes=1e6), MeshSpec.parse("x=2 y=4")
    memory = Workload(shape, mesh, partition("ws1d", "heads", shape, mesh)).memory()
    assert memory["other"] == 1e6


# What is multiplied.


def test_integers_are_multiplied_as_fast_as_the_chip_does() -> None:
    def compute_s(slice_: str, multiplies: str) -> float:
        topology = Topology.parse(slice_)
        shape, mesh = replace(LLAMA_8B, multiplies=multiplies), topology.mesh_axes()
        return estimate(shape, topology, mesh, partition("ws1d", "batch", shape, mesh)).compute_s

    assert compute_s("v5e:2x4", "int8") < 0.6 * compute_s("v5e:2x4", "bf16")
    assert compute_s("v4:2x2x2", "int8") == compute_s("v4:2x2x2", "bf16")  # it widens them
    assert compute_s("7x:2x2x2", "fp8") < 0.6 * compute_s("7x:2x2x2", "bf16")


# Scores of attention.


def test_scores_that_are_too_large_for_a_chip_are_written_and_read() -> None:
    """Llama-70B's prefill of 64 on v6e:4x4: as compiled 4,563 MB a layer written and 4,429 read."""
    v6e = Topology.parse("v6e:4x4")
    shape, mesh = prefill(decoder_shapes.LLAMA_70B, 64), v6e.mesh_axes()
    found = partition("wg_xyz", "batch", shape, mesh)
    work, layer_bytes = Workload(shape, mesh, found), 64 * 64 * 2048 * 2048 * 4 // 16
    scores_bytes, others = work.spilled_bytes(room_on_chip(v6e.chip))
    assert layer_bytes == 4_294_967_296
    assert scores_bytes == 80 * 2 * layer_bytes
    assert work.spilled_bytes(2 * layer_bytes) == (0, 0)
    moved = work.hbm_bytes() + others + scores_bytes
    predicted = estimate(shape, v6e, mesh, found)
    assert predicted.hbm_bytes == round(moved)
    assert predicted.hbm_s == pytest.approx(moved / (0.85 * v6e.chip.hbm_bytes_per_s), rel=1e-3)
    assert predicted.time_s > predicted.compute_s + scores_bytes / v6e.chip.hbm_bytes_per_s


def test_scores_of_one_token_stay_on_the_chip() -> None:
    shape = decode(PALM_540B, 512)
    work = Workload(shape, CUBE, partition("ws2d", "batch", shape, CUBE))
    assert predict(shape, 64, "ws2d", "batch").hbm_bytes == round(work.hbm_bytes())


def test_logits_are_scattered_in_whole_tiles_or_reduced_on_every_chip() -> None:
    """As compiled for v5e and v6e: 16 or 64 rows of 128,256 over 8 chips, 64 of 256,000."""
    assert scatters_rows(8, 256_000, (2, 4))
    assert scatters_rows(64, 32_768, (4,))
    assert not scatters_rows(2, 256_000, (2, 4))  # rows of no whole tile
    assert not scatters_rows(8, 128_256, (2, 4))  # 501 pairs of tiles, too many at a time
    assert not scatters_rows(8, 32_768, (4, 4))  # two lines
    shape = replace(prefill(LLAMA_8B, 16), time=512, context=512)
    mesh = MeshSpec.parse("x=2 y=4")
    found = partition("wg_xyz", "batch", shape, mesh)
    for lanes, kind in ((128, "all-reduce"), (1, "reduce-scatter")):  # of a TPU, of a CPU
        work = Workload(shape, mesh, found, lanes)
        kinds = [each.kind for each in work.collectives() if each.part == "logits"]
        assert kinds == ["all-to-all", kind]


# Latency: Tables 2 and 3, Figures 1, 6, 7 and 8.


# Choices, and why not the others.


def llama_plan(**asked: str) -> Plan:
    return choose(LLAMA_8B, Topology.parse("v5e:2x4"), MeshSpec.parse("x=2 y=4"), **asked)


def test_a_table_whose_rows_fill_no_lanes_is_turned_in_every_step() -> None:
    """As compiled for v5e: GPT-2 XL's, of 1,600 columns; with 1,664 it is only read."""
    mesh = MeshSpec.parse("x=2 y=4")
    moved, held = [], []
    for width in (1600, 1664):
        shape = varied(LLAMA_8B, d_model=width, vocab=50257)
        split = partition("ws1d", "heads", shape, mesh)
        aligned, tiled = (Workload(shape, mesh, split, lanes) for lanes in (1, 128))
        moved.append(tiled.hbm_bytes() - aligned.hbm_bytes())
        held.append(sum(tiled.memory().values()) - sum(aligned.memory().values()))
    assert moved == [2 * 50257 * (1600 + 1664), 0]
    assert held == [2 * 50257 * 1664, 0]


def test_a_chip_by_itself_exchanges_nothing_and_reads_everything() -> None:
    v5p, mesh = Topology.parse("v5p:2x2x1"), MeshSpec.parse("x=2 y=2")
    alone, plan = on_every_chip(LLAMA_8B, v5p, mesh), choose(LLAMA_8B, v5p, mesh)
    assert alone.communication_bytes == 0 and alone.latency_s == 0
    assert alone.hbm_bytes == pytest.approx(4 * plan.predicted.hbm_bytes, rel=0.05)
    assert on_every_chip(LLAMA_8B, Topology.parse("v5e:2x2"), mesh) is None  # no room for it


def test_llama_8b_on_eight_chips_keeps_its_residual_whole() -> None:
    plan = llama_plan()
    assert plan.label == "ws1d/heads"
    assert plan.split("residual") == {}
    assert plan.layout("cache", ("batch", "context", "kv_heads", "d_head")) == (
        *((), (), ("x", "y"), ()),
    )
    wq = plan.layout("weights", ("d_model", ("kv_heads", "q_per_kv"), "d_head"))
    assert wq == ((), ("x", "y"), ())
    assert plan.layout("tables", ("vocab", "d_model")) == (("x", "y"), ())
    assert Plan.parse(str(plan)) == plan


def test_every_partitioning_with_a_name_is_accounted_for() -> None:
    plan = llama_plan()
    labels = [plan.label, *(each.label for each in plan.alternatives)]
    assert set(NAMES) <= set(labels)
    times = [each.time_s for each in plan.alternatives if each.time_s is not None]
    assert times == sorted(times)
    reasons = {each.label: each.reason for each in plan.alternatives}
    assert "instead of" in reasons["wg_x/heads"]
    assert reasons["wg_xy/batch"] == "on the mesh x=2 y=4 this is wg_xyz/batch"


def test_what_the_paper_has_no_name_for_is_taken_where_it_is_faster() -> None:
    """Grouped queries on 16 chips: KV heads divide over one mesh axis, the batch over the other."""
    shape = varied(LLAMA_8B, layers=80, d_model=8192, d_ff=28672, heads=64)
    plan = choose(shape, Topology.parse("v6e:4x4"), MeshSpec.parse("x=4 y=4"))
    assert plan.label == "EF_xy>BE/heads+batch"
    assert plan.split("cache") == {"batch": ("y",), "kv_heads": ("x",)}
    assert plan.split("weights") == {
        "d_ff": ("x", "y"),
        "kv_heads": ("x",),
        "q_per_kv": ("y",),
    }
    named = [each for each in plan.alternatives if each.label in NAMES and each.time_s]
    assert all(each.time_s > (1 + TIE) * plan.predicted.time_s for each in named)


def test_the_search_is_exhaustive() -> None:
    """Every use of every axis; on axes that are alike in one order: C(9 + 2, 3) without those that
    tear the heads, and the named ones."""
    found = searched(PALM_540B, *v4(64))
    assert found.tried == 165 - 24 + len(NAMES) - 1  # wg_xyz leaves nothing to the heads
    assert found.candidates[0].predicted.time_s <= min(
        each.predicted.time_s for each in found.named
    )


def test_the_gap_to_the_optimum_is_that_of_a_tie() -> None:
    gaps = []
    for shape in (decode(PALM_540B, 64), decode(PALM_62B, 512), prefill(PALM_540B, 64)):
        found, plan = searched(shape, *v4(64)), choose(shape, *v4(64))
        fastest_s = min(each.predicted.time_s for each in found.candidates)
        gaps.append(optimality_gap(plan))
        assert gaps[-1] == pytest.approx(plan.predicted.time_s / fastest_s - 1)
    assert 0 == min(gaps) < max(gaps) <= TIE


def test_a_tie_goes_to_the_fewest_bytes() -> None:
    """PaLM 62B on 16 chips, where sqrt(n) = F/E: one and two dimensions are equally good."""
    best, other = searched(decode(PALM_62B, 32, **INT8), *v4(16)).named[:2]
    assert (best.label, other.label) == ("ws2d/batch", "ws1d/batch")
    assert other.predicted.time_s == pytest.approx(best.predicted.time_s, rel=TIE)
    assert other.predicted.communication_bytes > best.predicted.communication_bytes


def test_a_partitioning_may_be_asked_for() -> None:
    assert llama_plan(ffn="ws2d", attention="batch").label == "ws2d/batch"
    assert llama_plan(attention="batch").label == "ws1d/batch"
    for asked in ({"ffn": "ws3d"}, {"attention": "head"}):
        with pytest.raises(PlanError, match="unknown"):
            llama_plan(**asked)


def test_what_does_not_fit_says_what_is_too_large() -> None:
    shape = decode(PALM_540B, 1024)
    plan = choose(shape, *v4(64))
    reason = next(e.reason for e in plan.alternatives if e.label == "ws2d/heads")
    assert reason.startswith("needs 252.76 GiB per chip, 222.01 GiB more than v4 has: cache 236.00")
    with pytest.raises(PlanError) as caught:
        choose(shape, *v4(8))
    assert "no partitioning over x=2 y=2 z=2 is possible on v4:2x2x2" in caught.value.message
    assert "ws2d/batch: needs" in caught.value.message
    assert "a smaller batch or context" in caught.value.message


def test_asked_for_by_name_it_says_why_not() -> None:
    with pytest.raises(Unavailable) as caught:
        choose(decode(PALM_540B, 3), *v4(64), ffn="ws2d", attention="batch")
    assert "batch (3) does not divide over x=4 y=4 z=4 (64 chips)" in caught.value.message
    assert caught.value.hint == "pad batch to 64, or shard another axis"


def unavailable(ffn: str, attention: str, shape: DecoderShape) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        partition(ffn, attention, shape, CUBE)
    return caught.value


def test_what_does_not_divide_says_which_axis() -> None:
    unpadded = varied(PALM_540B, heads=48)
    error = unavailable("ws1d", "heads", unpadded)
    assert error.message == ("weights: heads (48) does not divide over x=4 y=4 z=4 (64 chips)")
    assert error.hint == "pad heads to 64, or shard another axis"
    error = unavailable("ws1d", "heads", varied(PALM_540B, heads=192, kv_heads=8))
    assert error.message == (
        "weights: heads (192, for 8 KV heads) does not divide over x=4 y=4 z=4 (64 chips)"
    )
    assert error.hint == "shard another axis"
    assert "d_ff (73730)" in unavailable("ws2d", "batch", varied(PALM_540B, d_ff=73730)).message
    assert "batch (1)" in unavailable("ws2d", "batch", decode(PALM_540B, 1)).message
    assert "batch (2)" in unavailable("wg_x", "heads", decode(PALM_540B, 2)).message
    error = unavailable("wg_xyz", "heads", PALM_540B)
    assert error.message == "the batch takes every mesh axis, so none is left for the heads"
    with pytest.raises(PlanError, match="48 heads do not divide over 5 KV heads"):
        varied(unpadded, kv_heads=5)


# The layouts themselves: section 3.2, in the paper's notation.


def letters(partitioning: Partitioning, group: str) -> str:
    split = partitioning.split(group)
    return " ".join(f"{axis}@{''.join(axes)}" for axis, axes in split.items())


@pytest.mark.parametrize(
    ("ffn", "weights", "used", "residual", "hidden"),
    [
        ("ws1d", "d_ff@xyz heads@xyz", "d_ff@xyz heads@xyz", "", "d_ff@xyz"),
        (
            "ws2d",
            "d_model@x d_ff@yz heads@yz",
            "d_model@x d_ff@yz heads@yz",
            "d_model@xyz",
            "batch@x d_ff@yz",
        ),
        (
            "wg_x",
            "d_model@x d_ff@yz heads@yz",
            "d_ff@yz heads@yz",
            "batch@x d_model@yz",
            "batch@x d_ff@yz",
        ),
        (
            "wg_xy",
            "d_model@x d_ff@yz heads@yz",
            "d_ff@z heads@z",
            "batch@xy d_model@z",
            "batch@xy d_ff@z",
        ),
        ("wg_xyz", "d_model@x d_ff@yz heads@yz", "", "batch@xyz", "batch@xyz"),
    ],
)
def test_layouts_on_three_axes(
    ffn: str, weights: str, used: str, residual: str, hidden: str
) -> None:
    made = partition(ffn, "batch", PALM_540B, CUBE)
    assert letters(made, "weights") == weights
    assert letters(made, "used") == used
    assert letters(made, "residual") == residual
    assert letters(made, "hidden") == hidden
    assert letters(made, "attention") == letters(made, "cache") == "batch@xyz"


def test_heads_stay_whole_along_axes_that_do_not_divide_them() -> None:
    over_heads = partition("ws2d", "heads", varied(PALM_540B, heads=48), CUBE)
    assert letters(over_heads, "attention") == "heads@yz"
    assert letters(over_heads, "cache") == ""  # one KV head: on every chip


def test_kv_heads_take_what_they_can_and_their_queries_the_rest() -> None:
    llama_70b = varied(LLAMA_8B, d_model=8192, d_ff=28672, heads=64, layers=80)
    made = partition("ws2d", "heads", llama_70b, MeshSpec.parse("x=4 y=4"))
    assert letters(made, "weights") == "d_model@x d_ff@y kv_heads@y"
    assert letters(made, "attention") == "kv_heads@y q_per_kv@x"
    assert letters(made, "cache") == "kv_heads@y"


def test_as_many_kv_heads_as_heads_are_heads() -> None:
    made = partition("ws2d", "heads", varied(PALM_540B, kv_heads=64), CUBE)
    assert letters(made, "cache") == letters(made, "attention") == "heads@yzx"


def test_a_vocabulary_that_does_not_divide_stays_whole() -> None:
    made = partition("ws2d", "heads", replace(PALM_540B, vocab=50257), CUBE)
    assert letters(made, "tables") == "d_model@x"
    assert letters(made, "logits") == "batch@x"


def test_gathered_weights_leave_tables_split_over_d_model() -> None:
    made = partition("wg_xyz", "batch", PALM_540B, CUBE)
    assert letters(made, "tables") == "d_model@xyz"
    assert letters(made, "logits") == "batch@xyz"


def test_the_letters_are_positions() -> None:
    """Two axes: yz = y. One axis: x is empty. Axes of one chip split nothing."""
    two = partition("ws2d", "heads", LLAMA_8B, MeshSpec.parse("data=2 model=4"))
    assert two.split("weights")["d_model"] == ("data",)
    assert two.split("hidden") == {"batch": ("data",), "d_ff": ("model",)}
    for text in ("model=8", "data=1 model=8"):
        one = partition("ws2d", "heads", LLAMA_8B, MeshSpec.parse(text))
        assert letters(one, "weights") == "d_ff@model kv_heads@model"
        assert letters(one, "residual") == "d_model@model"
    alone = choose(LLAMA_8B, Topology.parse("v5p:1x1x1"), MeshSpec.parse("x=1"))
    assert alone.label == "ws1d/heads"
    assert (alone.predicted.communication_bytes, alone.predicted.latency_s) == (0, 0)
    assert all(split == () for _, split in alone.groups)
