"""The cost model against "Efficiently Scaling Transformer Inference" (arXiv:2211.05102).

What the paper published is in data/esti.json. All of it is PaLM on TPU v4, in the meshes of the
paper's public code, with the heads padded to these. `pytest -s tests/test_paper.py` prints the
table of latencies, published and predicted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from dialect.display.tables import Table, as_text
from dialect.machine.mesh import MeshSpec
from dialect.planning.cost import estimate
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.partitionings import Unavailable, partition
from dialect.planning.search import searched
from dialect.planning.workload import Workload
from tests.decoder_shapes import (
    CUBE,
    PALM_62B,
    PALM_540B,
    by_hand,
    ffn_bytes,
    ffn_communication_bytes,
    v4,
    varied,
)

Row = dict[str, Any]
ROWS: list[Row] = json.loads(Path(__file__).with_name("data").joinpath("esti.json").read_text())[
    "rows"
]

MODELS = {
    "PaLM 540B": PALM_540B,
    "PaLM 540B (8 layers)": varied(PALM_540B, layers=8),
    "PaLM 540B (multihead variant)": varied(PALM_540B, kv_heads=64, d_head=128),
    "PaLM 62B": PALM_62B,
}
# Figure 6: the code pads to 128 heads beyond 64 chips, and for 1D on 256 chips to 256.
FIGURE_6_HEADS = {(128, "ws2d"): 128, (256, "ws2d"): 128, (128, "ws1d"): 128, (256, "ws1d"): 256}
PARAMETERS = {"PaLM 540B": 540e9, "PaLM 62B": 62e9}  # nominal, as the paper counts MFU
PEAK_FLOPS_PER_S = 275e12
FFN = {"WS1D": "ws1d", "WS2D": "ws2d", "WG_X": "wg_x", "WG_XY": "wg_xy", "WG_XYZ": "wg_xyz"}
ATTENTION = {"head": ("heads",), "batch": ("batch",), None: ("heads", "batch")}
BYTES = {"bf16": 2, "int8": 1}


def published(*sources: str) -> list[Row]:
    return [row for row in ROWS if row["source"] in sources]


def ffn_of(row: Row) -> str:
    return FFN[row["ffn_layout"].rstrip("?")]


# Communication: section 3.2 and Figure 3.


def test_volumes_of_figure_3() -> None:
    """Four layouts from 2,048 to 2,097,152 tokens, within 0.5 %."""
    rows = published("Figure 3")
    assert len(rows) == 44
    for row in rows:
        found = ffn_bytes(ffn_of(row), row["in_len"])
        assert found == pytest.approx(row["value"] * 1e9, rel=0.005), row


@pytest.mark.parametrize(
    ("before", "after", "tokens"),
    [("ws2d", "wg_x", 16_384), ("wg_x", "wg_xy", 65_536), ("wg_xy", "wg_xyz", 786_432)],
)
def test_crossovers_of_figure_3(before: str, after: str, tokens: int) -> None:
    assert ffn_bytes(before, tokens) == ffn_bytes(after, tokens)
    assert ffn_bytes(before, tokens - 64) < ffn_bytes(after, tokens - 64)
    assert ffn_bytes(before, tokens + 64) > ffn_bytes(after, tokens + 64)


# Memory: Table 1.


def test_longest_contexts_of_table_1() -> None:
    """With 30 % of the HBM for the cache, within 3 %: the published figures are rounded."""
    rows = published("Table 1")
    assert len(rows) == 6
    for row in rows:
        shape = replace(MODELS[row["model"]], batch=row["batch"], context=1)
        (attention,) = ATTENTION[row["attn_layout"]]
        work = Workload(shape, CUBE, partition("ws2d", attention, shape, CUBE))
        longest = 0.3 * v4(64)[0].chip.hbm_bytes / work.cache_bytes()
        assert longest == pytest.approx(row["value"], rel=0.03), row


# Latency: Tables 2, 3 and D.2, Figures 1, 6, 7 and 8.

MEASURED = ("Table 2", "Table 3", "Table D.2", "Figure 1", "Figure 6", "Figure 7", "Figure 8")
# Where 64 sequences do not divide over 128 chips: over as many mesh axes as they do.
BATCH_AND_HEADS = "E_xF_yz>BE_xyz/heads+batch"


@dataclass(frozen=True)
class Case:
    """A published latency of one step, and what was run."""

    row: Row
    shape: DecoderShape
    published_s: float

    @property
    def predicted(self) -> tuple[float, str]:
        """Seconds, and the partitioning: where none of attention is named, the best of both."""
        topology, mesh = v4(self.row["chips"])
        made = self.named(mesh) or [
            each.partitioning
            for each in searched(self.shape, topology, mesh).candidates
            if each.label == BATCH_AND_HEADS
        ]
        compiler = by_hand(topology)
        return min(
            (estimate(self.shape, topology, mesh, each, compiler=compiler).time_s, each.label)
            for each in made
        )

    def named(self, mesh: MeshSpec) -> list[Partitioning]:
        found = []
        for attention in ATTENTION[self.row.get("attn_layout")]:
            try:
                found.append(partition(ffn_of(self.row), attention, self.shape, mesh))
            except Unavailable:
                continue
        return found


def shape_of(row: Row) -> DecoderShape:
    """In a row of several decode steps the context is that of the middle one."""
    shape = replace(
        MODELS[row["model"]],
        batch=row["batch"],
        weight_bytes_per_element=BYTES[row["weight_dtype"]],
    )
    if row["source"] == "Figure 6":
        padded = FIGURE_6_HEADS.get((row["chips"], ffn_of(row)), shape.heads)
        shape = varied(shape, heads=padded)
    if row["phase"] == "prefill":
        return replace(shape, time=row["in_len"], context=row["in_len"])
    return replace(shape, context=row["ctx_len"] + steps_of(row) // 2)


def steps_of(row: Row) -> int:
    """Steps that a published latency lasts: a total is that of all generated tokens."""
    total = row["phase"] == "decode" and row["metric"] == "latency_total"
    return row["out_len"] if total else 1


def cases() -> Iterator[Case]:
    """All measured latencies but those of the multihead model of Figure 8.

    Its curve is seven times what reading the cache once would take: the paper's code has one KV
    head per chip in the last dimension but one, which a TPU's tiles pad to eight. No partitioning
    is to blame for that, and none is priced so.
    """
    for row in published(*MEASURED):
        if row["model"] not in MODELS:
            continue
        shape, value = shape_of(row), row["value"]
        if row["metric"] == "mfu":
            flops = 2 * PARAMETERS[row["model"]] * shape.tokens
            yield Case(row, shape, flops / (row["chips"] * PEAK_FLOPS_PER_S * value))
        else:
            unit_s = {"s": 1, "ms": 1e-3}[row["unit"]]
            yield Case(row, shape, value * unit_s / steps_of(row))


def errors() -> list[tuple[Case, float, str, float]]:
    """Every case with the predicted seconds, the partitioning, and the relative error."""
    found = []
    for case in cases():
        predicted_s, label = case.predicted
        found.append((case, predicted_s, label, predicted_s / case.published_s - 1))
    return found


def table() -> Table:
    """Published latencies of one step beside the predicted ones."""
    columns = ("source", "model", "phase", ">chips", ">batch", ">context")
    columns += ("weights", "partitioning")
    rows = []
    found = errors()
    for case, predicted_s, label, error in found:
        row = case.row
        shape = (str(row["chips"]), str(row["batch"]), str(case.shape.context))
        size = (row["source"], row["model"], row["phase"], *shape)
        times = (f"{case.published_s * 1e3:.4g}", f"{predicted_s * 1e3:.4g}", f"{error:+.1%}")
        rows.append((*size, row["weight_dtype"], label, *times))
    sizes = [abs(error) for *_, error in found]
    title = f"{len(found)} latencies, median error {median(sizes):.1%}, largest {max(sizes):.1%}"
    return Table(title, (*columns, ">published ms", ">predicted ms", ">error"), tuple(rows))


def test_latencies() -> None:
    """With one set of constants: the median error at most 6 %, the largest at most 20 %."""
    print(as_text([table()]))
    found = [abs(error) for *_, error in errors()]
    assert len(found) == 69
    assert median(found) <= 0.06
    assert max(found) <= 0.20


# Choices: Tables 2 and 3, Figures 6, 7 and 8.


def chosen(shape: DecoderShape, chips: int) -> str:
    """The best of the paper's own partitionings."""
    return searched(shape, *v4(chips)).named[0].label


def named_s(shape: DecoderShape, chips: int, label: str) -> float:
    """Seconds of a step in a partitioning of the paper's."""
    topology, mesh = v4(chips)
    return estimate(shape, topology, mesh, partition(*label.split("/"), shape, mesh)).time_s


TABLE_ROWS = published("Table 2", "Table 3")
EIGHT_CHIPS = [row for row in TABLE_ROWS if row["chips"] == 8]


@pytest.mark.parametrize(
    "row",
    [row for row in TABLE_ROWS if row not in EIGHT_CHIPS],
    ids=lambda row: f"{row['model'][5:]}-{row['phase']}-{row['batch']}",
)
def test_layouts_of_tables_2_and_3_are_the_best_of_their_family(row: Row) -> None:
    (attention,) = ATTENTION[row["attn_layout"]]
    assert chosen(shape_of(row), row["chips"]) == f"{ffn_of(row)}/{attention}"


def test_on_eight_chips_one_dimension_exchanges_less_than_two() -> None:
    """The one row of Table 3 where the model disagrees: decode of PaLM 62B on 8 chips, ws2d/batch
    in the paper. By its own formula two dimensions exchange less only from 16 chips on (section
    3.2.2: sqrt(n) > F/E); 1D was not timed there. As compiled it takes 60.6 ms, 2D 77.3."""
    (row,) = EIGHT_CHIPS
    shape, (_, mesh) = shape_of(row), v4(8)
    assert chosen(shape, 8) == "ws1d/batch"
    one, two = (ffn_communication_bytes(ffn, shape, mesh) for ffn in ("ws1d", "ws2d"))
    assert one < two


@pytest.mark.parametrize(("batch", "ffn"), [(64, "ws2d"), (128, "wg_xyz")])
def test_gathering_weights_pays_between_131k_and_262k_tokens(batch: int, ffn: str) -> None:
    """Figure 7, of whose two layouts of the feed-forward layer the faster one is expected."""
    shape = replace(PALM_540B, batch=batch, time=2048)
    rows = [row for row in published("Figure 7") if row["batch"] == batch]
    times = {ffn_of(row): named_s(shape, 64, f"{ffn_of(row)}/batch") for row in rows}
    assert ffn_of(max(rows, key=lambda row: row["value"])) == ffn
    assert min(times, key=lambda each: times[each]) == ffn


@pytest.mark.parametrize("chips", [64, 128, 256])
def test_two_dimensions_beat_one_at_64_chips_and_above(chips: int) -> None:
    """Figure 6: decode with batch 512, both as they were padded."""
    times = {
        ffn_of(row): named_s(shape_of(row), chips, f"{ffn_of(row)}/batch")
        for row in published("Figure 6")
        if row["chips"] == chips
    }
    assert times["ws2d"] < times["ws1d"]


@pytest.mark.parametrize("context", [128, 512, 2048, 8192])
def test_order_of_attention_layouts_in_figure_8(context: int) -> None:
    """Of the multiquery model; the multihead one is left out for the reason in `cases`."""
    own = [case for case in cases() if case.row["source"] == "Figure 8"]
    pair = [case for case in own if case.row["ctx_len"] == context]
    measured = sorted(pair, key=lambda case: case.published_s)
    assert len(pair) == 2
    assert measured == sorted(pair, key=lambda case: case.predicted[0])
    assert measured[0].predicted[1] == ("ws2d/heads" if context == 128 else "ws2d/batch")
