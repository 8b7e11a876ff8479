"""The cost model against latencies that it was not fitted to: data/esti_held_out.json, of
"Efficiently Scaling Transformer Inference" (arXiv:2211.05102), all on TPU v4.

`pytest -s tests/test_held_out.py` prints the table of latencies, published and predicted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from dialect.display.tables import Table, as_text
from dialect.planning.cost import estimate
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.mesh_roles import Partitioning
from dialect.planning.partitionings import Unavailable, partition
from dialect.planning.search import searched
from tests.decoder_shapes import PALM_62B, PALM_540B, by_hand, uniform, v4, varied
from tests.test_paper import BATCH_AND_HEADS

Row = dict[str, Any]
ROWS: list[Row] = json.loads(
    Path(__file__).with_name("data").joinpath("esti_held_out.json").read_text()
)["rows"]
MODELS = {
    "PaLM 8B": varied(PALM_540B, layers=32, d_model=4096, d_ff=16384, heads=16),
    "PaLM 62B": PALM_62B,
    "PaLM 540B": PALM_540B,
    "MT-NLG 530B": uniform(
        batch=64,
        time=1,
        context=2048,
        layers=105,
        d_model=20480,
        d_ff=81920,
        heads=128,
        kv_heads=128,
        d_head=160,
        vocab=51200,
        ffn_matrices=2,
    ),
}
# Figure 1: the chips of a point, by the least chips per sequence, where none are printed: those of
# the printed point before it, or of Table 3.
CHIPS = {
    ("PaLM 62B", "decode"): {1: 32, 1 / 32: 16, 0: 8},
    ("PaLM 62B", "prefill"): {8: 16, 1 / 4: 64, 0: 32},
    ("PaLM 8B", "decode"): {1 / 4: 16, 0: 8},
    ("PaLM 8B", "prefill"): {2: 8, 1 / 4: 64, 0: 32},
}
STATIONARY, GATHERED = ("ws2d", "heads"), ("wg_xyz", "batch")


def chips_of(row: Row) -> int:
    if row["chips"]:
        return row["chips"]
    by_ratio = CHIPS[row["model"], row["phase"]]
    return next(chips for least, chips in by_ratio.items() if row["chips_over_batch"] >= least)


def step_s(shape: DecoderShape, chips: int, *named: tuple[str, str]) -> float:
    """Seconds of a step in the best of these partitionings."""
    topology, mesh = v4(chips)
    compiler, made = by_hand(topology), list[Partitioning]()
    for name in named:
        try:
            made.append(partition(*name, shape, mesh))
        except Unavailable:
            continue
    if not made:
        found = searched(shape, topology, mesh).candidates
        made = [each.partitioning for each in found if each.label == BATCH_AND_HEADS]
    return min(estimate(shape, topology, mesh, each, compiler=compiler).time_s for each in made)


def decode_s(shape: DecoderShape, chips: int) -> float:
    return step_s(shape, chips, ("ws2d", "heads"), ("ws2d", "batch"))


def predicted_s(row: Row) -> float:
    """Seconds of a prefill, a decode step of Figure 1, or all steps of a table."""
    chips, is_int8 = chips_of(row), row["weights"] == "int8"
    shape = replace(MODELS[row["model"]], weight_bytes_per_element=1 if is_int8 else 2)
    if row["source"] == "Figure 1":
        shape = replace(shape, batch=int(chips / row["chips_over_batch"]))
        if row["phase"] == "decode":  # the middle one of 64
            return decode_s(replace(shape, context=row["context"] + 32), chips)
        named = [STATIONARY] + [GATHERED] * (shape.batch >= chips)
        return step_s(replace(shape, time=row["context"], context=row["context"]), chips, *named)
    shape, tokens, steps = replace(shape, batch=row["batch"]), row["tokens_in"], row["tokens_out"]
    seconds = 0.0
    if row["phase"] != "decode":
        seconds += step_s(replace(shape, time=tokens, context=tokens), chips, STATIONARY)
    if row["phase"] != "prefill":
        seconds += steps * decode_s(replace(shape, context=tokens + steps // 2), chips)
    return seconds


def errors() -> Iterator[tuple[Row, float, float]]:
    """Every row, the predicted seconds, and the relative error."""
    for row in ROWS:
        predicted = predicted_s(row)
        yield row, predicted, predicted / row["seconds"] - 1


def test_held_out_latencies() -> None:
    """119 latencies, of which 78 are of a known number of chips: their median error is at most
    6.5 %, the largest below 20 %. What the others are off by: docs/measurements.md."""
    found = list(errors())
    columns = (">".join(("", each)) for each in ("chips", "batch", "ms", "predicted ms", "error"))
    lines, groups = [], {}
    for row, seconds, error in found:
        chips = chips_of(row)
        batch = row.get("batch") or chips / row["chips_over_batch"]
        kind = (row["source"], row["model"], row["phase"], row["weights"])
        size = (f"{chips}{'' if row['chips'] else '?'}", f"{batch:.0f}")
        times = (f"{row['seconds'] * 1e3:.4g}", f"{seconds * 1e3:.4g}", f"{error:+.1%}")
        lines.append((*kind, *size, *times))
        groups.setdefault(kind, []).append(error)
    print(as_text([Table("held out", ("source", "model", "phase", "weights", *columns), lines)]))
    for kind, of_kind in groups.items():
        print(*kind, f"mean {mean(of_kind):+.1%}, largest {max(of_kind, key=abs):+.1%}")
    everywhere = [abs(error) for *_, error in found]
    known = [abs(error) for row, _, error in found if row["chips"]]
    for name, some in (("all", everywhere), ("chips known", known)):
        print(f"{name}: {len(some)}, median {median(some):.1%}, largest {max(some):.1%}")
    assert (len(everywhere), len(known)) == (119, 78)
    assert median(known) <= 0.065
    assert max(known) < 0.20
    assert median(everywhere) <= 0.075
