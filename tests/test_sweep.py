"""Sweeps over chips, batches and dtypes of weights: costs, the Pareto front, and the command."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from dialect.front.cli import main
from dialect.machine.mesh import TargetError, Topology
from dialect.planning.search import searched
from dialect.reports.sweep import (
    Cost,
    Decoder,
    Point,
    Sweep,
    costed,
    facts,
    front,
    numbers,
    standard_slice,
    weight_dtypes,
)
from dialect.user.usercode import UsageError
from examples import palm
from rewrite import Pipeline, trace
from rewrite.errors import PlanError
from rewrite.files import FileError, written_whole
from rewrite.program import Program
from tests import decoder_shapes
from tests.kit import Captured, complaint, printed, traced_step

PALM = os.path.relpath(palm.__file__)
TOY = ("sweep", f"{PALM}:decode_step", "--config", "toy", "--context", "16", "--chip", "v5e")
SMALL = (*TOY, "--chips", "1..4", "--batch", "8,16", "--dtype", "bf16")
PALM_62B = replace(decoder_shapes.PALM_62B, vocab=256000)
DECODER = Decoder("decode_step", "62b", PALM_62B)


def recognised_step(config: str, tokens: int | None, context: int) -> Program:
    """A decoder of the examples as far as its parts are recognised."""
    program = traced_step(palm, palm.CONFIGS[config], 4, context, prompt=tokens)
    return Pipeline.parse("normalize, recognize").run(program)


# --- one size --------------------------------------------------------------------------------


def test_a_point_is_the_best_plan_with_what_it_costs() -> None:
    topology = Topology.parse("v4:2x4x4")
    found = costed(DECODER, topology, 128, "int8")
    shape = replace(PALM_62B, batch=128, weight_bytes_per_element=1)
    best = searched(shape, topology, topology.mesh_axes()).candidates[0]
    assert (found.topology, found.chips, found.batch, found.weights) == (
        "v4:2x4x4",
        32,
        128,
        "int8",
    )
    assert found.cost is not None
    assert (found.cost.label, found.cost.time_s) == (best.label, best.predicted.time_s)
    assert found.cost.memory_bytes == best.predicted.memory_bytes
    assert found.cost.chip_s_per_token == pytest.approx(32 * found.cost.time_s / 128)
    flops = 2 * DECODER.parameters * 128
    assert found.cost.mfu == pytest.approx(flops / (32 * 275e12 * found.cost.time_s))


def test_tokens_of_a_prefill_share_its_cost() -> None:
    prefill = Decoder("prefill", "62b", replace(PALM_62B, time=2048))
    found = costed(prefill, Topology.parse("v4:2x2x4"), 2, "int8")
    assert (found.new_tokens, found.context) == (2048, 2048)
    assert found.cost is not None
    assert found.cost.chip_s_per_token == pytest.approx(16 * found.cost.time_s / (2 * 2048))


def test_a_chip_with_two_devices_is_one_chip() -> None:
    found = costed(DECODER, Topology.parse("7x:2x2x1"), 64, "bf16")
    assert found.chips == 4 and found.cost is not None
    assert found.cost.chip_s_per_token == pytest.approx(4 * found.cost.time_s / 64)
    flops = 2 * DECODER.parameters * 64
    assert found.cost.mfu == pytest.approx(flops / (4 * 2307e12 * found.cost.time_s))


def test_what_does_not_fit_is_a_point_with_the_closest_miss() -> None:
    found = costed(DECODER, Topology.parse("v4:1x1x1"), 64, "bf16")
    assert found.cost is None
    assert found.reason.startswith(
        "ws1d/heads: needs 124.47 GiB per chip, 93.72 GiB more than v4 has"
    )
    assert "weights 112.50 GiB, cache 8.00 GiB, embedding 3.91 GiB" in found.reason


def test_parameters_are_all_weights() -> None:
    """PaLM 8B: all but the scales of the norms, which no product reads."""
    decoder = Decoder.of("decode_step", "8b", recognised_step("8b", None, 64))
    config = palm.CONFIGS["8b"]
    params = jax.eval_shape(lambda: palm.init_params(config, jax.random.key(0)))
    norms = (config.layers + 1) * config.d_model
    assert decoder.parameters == sum(math.prod(x.shape) for x in jax.tree.leaves(params)) - norms
    untied = replace(decoder, shape=replace(decoder.shape, tied_embedding=False))
    assert untied.parameters - decoder.parameters == config.vocab * config.d_model


@pytest.mark.parametrize("context", [16, 64])
def test_a_prefill_reads_what_it_writes(context: int) -> None:
    """Also where its tokens fill the cache."""
    shape = Decoder.of("prefill", "toy", recognised_step("toy", 16, context)).shape
    assert (shape.time, shape.context) == (16, context)


def test_what_is_not_recognised_is_not_costed() -> None:
    plain = trace(lambda w, x: x @ w, *(jax.ShapeDtypeStruct((8, 8), "float32"),) * 2)
    message = "double cannot be costed: no cost model for .*attention"
    with pytest.raises(PlanError, match=message) as caught:
        Decoder.of("double", "", Pipeline.parse("normalize, recognize").run(plain))
    assert caught.value.hint == "see what was recognised: `shardwright coverage`"


# --- the front -------------------------------------------------------------------------------


def point(time_s: float, chip_s: float, memory: int = 1, config: str = "a") -> Point:
    cost = Cost("ws2d/batch", time_s, chip_s, 0.5, memory)
    return Point("decode_step", config, "v4:2x2x2", 8, 8, "bf16", 2048, 1, cost)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    fast, cheap, between = point(1, 9), point(9, 1), point(4, 4)
    beaten = [point(5, 4), point(4, 5), point(10, 1), replace(fast, cost=None, reason="large")]
    assert front([*beaten, cheap, between, fast]) == [fast, between, cheap]
    assert front([]) == []


def test_of_equals_the_smaller_is_on_the_front() -> None:
    small, large = point(1, 1, memory=1), point(1, 1, memory=2)
    assert front([large, small]) == [small]


def test_decoders_do_not_beat_each_other() -> None:
    points = [point(1, 1, config="a"), point(2, 2, config="b"), point(3, 3, config="b")]
    assert [each["pareto"] for each in facts(points)] == [True, True, False]


def test_every_combination_is_costed_and_listed() -> None:
    topologies = (Topology.parse("v4:1x1x1"), Topology.parse("v4:2x2x4"))
    sweep = Sweep((DECODER,), topologies, (16, 64), ("bf16", "int8"))
    points = list(sweep.points())
    assert len(points) == len(sweep) == 8
    assert [each.cost is None for each in points] == [True] * 4 + [False] * 4
    best, every = sweep.tables(points)
    assert best.title.startswith("decode_step 62b, 62.5 B parameters, context 2048, new tokens 1")
    assert [row[0] for row in best.rows] == ["*"] * len(front(points))
    assert len(every.rows) == 8
    assert every.rows[0][1:5] == ("1", "v4:1x1x1", "16", "bf16")
    assert every.rows[0][-1] == points[0].reason
    cost = points[4].cost
    assert cost is not None
    assert every.rows[4][5] == f"{cost.time_s * 1e3:.4g}" and every.rows[4][-1] == cost.label


# --- what the command line says --------------------------------------------------------------


def test_ranges_double() -> None:
    assert numbers("8..64", "--chips") == (8, 16, 32, 64)
    assert numbers("3..13, 1,6", "--chips") == (3, 6, 12, 1)
    for wrong in ("8..4", "0", "x", "", "4..", "-1"):
        with pytest.raises(UsageError, match="--chips has no numbers in") as caught:
            numbers(wrong, "--chips")
        assert caught.value.hint == "write --chips 8,16,32 or --chips 8..32"


def test_weights() -> None:
    assert weight_dtypes("bf16, int8,bf16") == ("bf16", "int8")
    with pytest.raises(UsageError) as caught:
        weight_dtypes("bf16,int9")
    assert caught.value.message == "--dtype has no weights of 'int9'"
    assert "int8" in caught.value.hint


def test_standard_slices() -> None:
    found = [str(standard_slice(*each)) for each in (("v4", 128), ("v5e", 16), ("h100", 8))]
    assert found == ["v4:4x4x8", "v5e:4x4", "h100:8"]
    with pytest.raises(TargetError, match="is no slice of v4"):
        standard_slice("v4", 24)
    with pytest.raises(TargetError, match="unknown chip 'v9'"):
        standard_slice("v9", 8)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "front.txt"
    path.write_text("old")
    with pytest.raises(KeyError), written_whole(path) as part:
        part.write_text("ne")
        assert part.suffix == ".txt"
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with written_whole(path) as part:
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileError, match="there is no folder"), written_whole(path / "x" / "y"):
        pass
    with pytest.raises(FileError, match="it is a folder"), written_whole(tmp_path):
        pass


def test_a_sweep_for_machines(capsys: Captured) -> None:
    found = json.loads(printed(capsys, *SMALL, "--json"))
    assert [(each["chips"], each["batch"]) for each in found] == [
        *((1, 8), (1, 16), (2, 8), (2, 16), (4, 8), (4, 16))
    ]
    assert {each["topology"] for each in found} == {"v5e:1x1", "v5e:2x1", "v5e:2x2"}
    assert {(each["function"], each["config"]) for each in found} == {("decode_step", "toy")}
    fastest = min(found, key=lambda each: each["cost"]["time_s"])
    cheapest = min(found, key=lambda each: each["cost"]["chip_s_per_token"])
    assert fastest["pareto"] and cheapest["pareto"]


def test_a_sweep_as_tables(capsys: Captured, tmp_path: Path) -> None:
    text = printed(capsys, *SMALL)
    titles = [line for line in text.splitlines() if line.startswith("decode_step toy, ")]
    assert [title.rpartition(": ")[2] for title in titles] == ["the Pareto front", "all"]
    rows = [line.split() for line in text.splitlines() if "v5e:" in line]
    front_rows = rows[:-6]
    assert [row for row in rows[-6:] if row[0] == "*"] and all(r[0] == "*" for r in front_rows)
    path = tmp_path / "front.txt"
    assert printed(capsys, *SMALL, "--out", str(path)) == ""
    assert path.read_text() == text


def test_a_sweep_of_prefill_beside_decode(capsys: Captured) -> None:
    both = (*TOY, "--prefill", f"{PALM}:prefill", "--chips", "4", "--batch", "8", "--json")
    found = json.loads(printed(capsys, *both, "--tokens", "4"))
    assert [(each["function"], each["new_tokens"], each["weights"]) for each in found] == [
        ("decode_step", 1, "bf16"),
        ("decode_step", 1, "int8"),
        ("prefill", 4, "bf16"),
        ("prefill", 4, "int8"),
    ]
    whole = json.loads(printed(capsys, *both))
    assert whole[-1]["new_tokens"] == whole[-1]["context"] == 16


def test_a_plot(capsys: Captured, tmp_path: Path) -> None:
    """A picture of each kind, drawn of both phases; the text in it is what was swept."""
    prefill = ("--prefill", f"{PALM}:prefill", "--dtype", "bf16,int8", "--json")
    for name, first in (("front.png", b"\x89PNG"), ("front.svg", b"<?xml")):
        path = tmp_path / name
        printed(capsys, *SMALL, *prefill, "--plot", str(path))
        assert path.read_bytes().startswith(first)
    drawn = (tmp_path / "front.svg").read_text()
    for text in ("decode_step", "prefill", "toy int8", "Pareto front", "time for 16 tokens"):
        assert f"<!-- {text}" in drawn
    assert sorted(each.name for each in tmp_path.iterdir()) == ["front.png", "front.svg"]


def test_a_plot_needs_matplotlib(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = complaint(capsys, *SMALL, "--plot", str(tmp_path / "front.png"))
    assert 'try: pip install "shardwright[plot]"' in error
    assert printed(capsys, *SMALL, "--json")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--plot", "front"), "no suffix is no picture\n  try: name it front.png, .svg or .pdf"),
        (("--plot", "missing/front.png"), "there is no folder missing"),
        (("--out", "missing/front.txt"), "there is no folder missing"),
        (("--chips", "3"), "is no slice of v5e"),
        (("--batch", "many"), "--batch has no numbers in 'many'"),
        (("--dtype", "bf17"), "--dtype has no weights of 'bf17'\n  try: did you mean bf16"),
        (("--config", "toy,tiny"), "no configuration 'tiny'"),
        (("--chip", "v9"), "unknown chip 'v9'"),
    ],
)
def test_bad_command_lines(capsys: Captured, more: tuple[str, ...], expected: str) -> None:
    assert expected in complaint(capsys, *SMALL, *more)


def test_the_help_says_that_sizes_are_varied_analytically(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "varied analytically: nothing is compiled" in said
