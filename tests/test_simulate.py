"""Loads, the clock, and `shardwright simulate`."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from dialect.front.cli import main
from dialect.machine.mesh import Topology
from dialect.planning.cost import estimate
from dialect.serving.policy import Policy, ServingError
from dialect.serving.shapes import rows_alone
from dialect.simulated.arrivals import (
    Arrival,
    Fresh,
    Lengths,
    at_rate,
    drawn,
    read_trace,
    spread,
)
from dialect.simulated.demand import Demand
from dialect.simulated.figures import quantiles
from dialect.simulated.methods import METHODS
from dialect.simulated.placement import Placement, Typical
from dialect.simulated.simulator import simulate
from examples import llama
from tests import published
from tests.decoder_shapes import LLAMA_8B
from tests.kit import Captured, printed

TRACES = Path(__file__).parent / "data" / "traces"
AZURE, MOONCAKE = TRACES / "azure_conv_2023.csv", TRACES / "mooncake_conversation.jsonl"
LLAMA = f"{os.path.relpath(llama.__file__)}:decode_step"
CHAT = Typical(prompt=161, new=338, held=330, longest=8192)
EIGHT = (LLAMA, "--config", "8b", "--mesh", "v5e:2x2")


# --- loads -----------------------------------------------------------------------------------


def test_a_trace_of_azure() -> None:
    arrivals = read_trace(AZURE)
    assert len(arrivals) == 300
    assert [(a.length, a.new) for a in arrivals[:2]] == [(374, 44), (396, 109)]
    assert [round(a.at, 3) for a in arrivals[:2]] == [0.0, 4.315]
    assert len(read_trace(AZURE, 7)) == 7
    tokens = [token for a in arrivals for piece in a.prompt for token in piece]
    assert len(set(tokens)) == len(tokens), "nothing is shared by chance"


def test_a_trace_of_mooncake_says_which_blocks_are_the_same() -> None:
    first, second = read_trace(MOONCAKE, 2)
    assert (first.length, first.new) == (6758, 500)
    assert (first.prompt[0], len(first.prompt[-1])) == (range(512), 6758 - 13 * 512)
    assert second.prompt[0] == first.prompt[0] and second.prompt[1] != first.prompt[1]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.txt", "", "is no trace"),
        ("a.csv", "", "holds no request"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,x,1\n", "line 2"),
        ("a.csv", "a,b\n1,2\n", "line 2: not a request of a trace .'TIMESTAMP'."),
        ("a.jsonl", "{", "line 1: not a request"),
        ("a.jsonl", '{"timestamp": 0}\n', "line 1: not a request"),
        ("a.jsonl", '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 3}', "1"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ServingError, match=why):
        read_trace(tmp_path / name)
    with pytest.raises(ServingError, match="cannot read the trace"):
        read_trace(tmp_path / "absent.csv")


def test_lengths_have_their_mean_after_the_cut() -> None:
    lengths = Lengths(338, 1.0, 1500).draw(4000, random.Random(0))
    assert abs(statistics.mean(lengths) - 338) < 1 and max(lengths) == 1500 and min(lengths) >= 1
    arrivals = drawn(500, Lengths(161, 1.2, 2000), Lengths(338, 1.0, 2000), 2048, (3, 40))
    assert max(a.length + a.new for a in arrivals) <= 2048
    assert len({a.prompt[0] for a in arrivals}) == 3 and len(arrivals[0].prompt[0]) == 40


@pytest.mark.parametrize("burst", [1.0, 3.0])
def test_bursts(burst: float) -> None:
    times = [a.at for a in spread([Arrival(0.0, (range(1),), 1)] * 20_000, 5.0, burst)]
    gaps = [after - before for before, after in zip(times, times[1:])]
    mean = statistics.mean(gaps)
    assert abs(mean - 0.2) < 0.01
    assert abs(statistics.pstdev(gaps) / mean / burst - 1) < 0.1


def test_a_trace_at_another_rate_keeps_its_rhythm() -> None:
    arrivals = read_trace(AZURE)
    faster = at_rate(arrivals, 30.0)
    assert math.isclose(faster[-1].at, 10.0)
    assert math.isclose(faster[7].at / faster[9].at, arrivals[7].at / arrivals[9].at)


# --- the clock -------------------------------------------------------------------------------


def one_a_token(demand: Demand) -> float:
    """A second and a hundredth for every token of the step."""
    return 1 + demand.tokens / 100


def test_times_of_two_requests() -> None:
    arrivals = [Arrival(0.0, (range(100, 120),), 3), Arrival(1.0, (range(200, 210),), 2)]
    done = simulate(Policy(pages=50, page=4, rows=2, chunk=100), arrivals, one_a_token)
    assert (done.requests, done.steps, done.refused) == (2, 3, 0)
    # Steps of 20 tokens, of 1 and 10, of 1 and 1.
    assert done.first_token_s == pytest.approx((1.2, 1.31, 1.31))
    assert done.seconds == pytest.approx(1.2 + 1.11 + 1.02)


def test_step_times_are_those_of_the_cost_model() -> None:
    """A step of decoding, and one of a prompt, without attention beside those of the planner."""
    topology = Topology.parse("v5e:2x2")
    placed = Placement.best(LLAMA_8B, topology, CHAT, 256, owner="heads")
    shape = replace(LLAMA_8B, batch=64, context=2048)
    planned = estimate(shape, topology, placed.mesh, placed.partitioning).time_s
    positions = 64 * 2048
    assert placed.seconds(Demand(64, 64, 64, positions, positions)) == pytest.approx(planned, 0.01)
    assert placed.groups == 1 and placed.chunk == 1024
    # 15.75 GiB, less 5 %, weights, embeddings and what a step needs; 32 KiB a token and chip.
    assert placed.tokens == pytest.approx((0.95 * 15.75 * 2**30 - 16.06e9 / 4) / 2**15, rel=0.02)


def test_a_window_bounds_what_is_read() -> None:
    block, network = LLAMA_8B.blocks
    windowed = replace(block, attention=replace(block.attention, window=512))
    shape = replace(LLAMA_8B, blocks=(windowed, network))
    placed = Placement.best(shape, Topology.parse("v5e:2x2"), CHAT)
    times = [placed.seconds(Demand(64, 64, 64, 64 * c, 64 * c)) for c in (256, 512, 4096)]
    assert times[0] < times[1] == times[2]


def test_the_batch_owns_pages_in_groups() -> None:
    topology = Topology.parse("v5e:2x2")
    heads, batch = (Placement.best(LLAMA_8B, topology, CHAT, owner=o) for o in ("heads", "batch"))
    assert heads.groups == 1 < batch.groups and batch.tokens < heads.tokens
    with pytest.raises(ServingError, match="no plan leaves room for 8192 tokens on v5e:1x1"):
        Placement.best(LLAMA_8B, Topology.parse("v5e:1x1"), CHAT)


def test_quantiles_are_values_that_occurred() -> None:
    assert quantiles([float(n) for n in range(100, 0, -1)]) == (50.0, 90.0, 99.0)
    assert quantiles([3.0]) == (3.0, 3.0, 3.0) and quantiles([]) == (0.0, 0.0, 0.0)


# --- what others published -------------------------------------------------------------------


def test_pages_beat_slots_and_static_batches() -> None:
    """On the beginning of Azure's trace; `benchmarks/serving.py` runs all of it, where the end, at
    which few requests are left, counts for less."""
    arrivals = [replace(a, at=0.0) for a in read_trace(AZURE)]
    placed = Placement.best(LLAMA_8B, Topology.parse("v5e:2x2"), CHAT, owner="heads")
    policy = Policy(placed.tokens // 128, 128, chunk=placed.chunk)
    static, slots, pages = (
        METHODS[name](policy, arrivals, placed.seconds, 8192)
        for name in ("static", "slots", "pages")
    )
    assert pages.new_per_s > 3.8 * static.new_per_s and pages.new_per_s > 1.3 * slots.new_per_s
    assert pages.used > 0.9 > 0.2 > slots.used > static.used
    assert static.requests == slots.requests == pages.requests == 300


def test_a_static_batch_by_hand() -> None:
    """Two rows: prompts of 8 and 4 padded to 8, answers of 1 and 3; then one of a row alone."""
    arrivals = [Arrival(0.0, (range(n),), new) for n, new in ((8, 1), (4, 3), (2, 1))]
    done = METHODS["static"](Policy(pages=32, page=1), arrivals, one_a_token, 16)
    first, second, third = 1 + 2 * 8 / 100, 1 + 2 / 100, 1 + 2 * 2 / 100
    assert done.seconds == pytest.approx(first + 2 * second + third)
    assert done.first_token_s[0] == pytest.approx(first)
    assert done.batch == pytest.approx((2 * first + 2 * second + third) / done.seconds)


@pytest.mark.parametrize("load", [published.few_shot, published.chats, published.thoughts])
def test_trees_are_hit_nearly_as_often_as_can_be(load: published.Workload) -> None:
    """At least 96 % of the optimum, as Figure 13 of arXiv:2312.07104 has it."""
    draw = random.Random(0)
    arrivals = load(draw, Fresh())[:600]
    draw.shuffle(arrivals)
    policy = Policy(30_000 // 16, 16, rows=64, chunk=1024, patience=1e9)
    done = simulate(policy, arrivals, published.a100)
    assert done.hit_rate >= 0.96 * published.best_hit_rate(arrivals, 16)


def test_orcas_reservations_by_the_paper() -> None:
    """Figure 13a of arXiv:2309.06180, its first ten minutes: within 10 %."""
    chat = drawn(1200, Lengths(161.31, 1.2, 1024), Lengths(337.99, 0.9, 2000), 2048, seed=1)
    for system, batch in (("Orca (Max)", 7.00), ("Orca (Oracle)", 13.62)):
        done = simulate(published.a100_policy(system), spread(chat, 2.0), published.a100)
        assert done.batch == pytest.approx(batch, rel=0.1)


# --- the command -----------------------------------------------------------------------------


def test_the_command_compares(capsys: Captured) -> None:
    text = printed(
        capsys, "simulate", *EIGHT, "--trace", str(AZURE), "--rate", "max", "--page", "16,128"
    )
    title, names, *rows = text.strip().splitlines()
    assert title.startswith("azure_conv_2023.csv: 300 requests, on average ")
    assert title.endswith(", all at once")
    assert [row.split()[1] for row in rows] == ["static", "slots", "pages", "pages"]
    assert "1.00x" in rows[0] and names.split()[:3] == ["mesh", "batching", "page"]


def test_the_command_for_machines(capsys: Captured, tmp_path: Path) -> None:
    plot = tmp_path / "latency.png"
    load = ("--requests", "40", "--rate", "2,4", "--prefixes", "1x512", "--longest", "4096")
    arguments = ("--batching", "pages", "--owner", "heads,batch", "--plot", str(plot), "--json")
    runs = json.loads(printed(capsys, "simulate", *EIGHT, *load, *arguments))
    assert [(run["rate"], run["groups"] > 1) for run in runs] == [
        *((2.0, False), (2.0, True), (4.0, False), (4.0, True)),
    ]
    assert all(run["figures"]["requests"] == 40 for run in runs)
    assert all(0.3 < run["figures"]["hit_rate"] < 0.9 for run in runs)
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--trace", "absent.csv"), "cannot read the trace"),
        (("--rate", "0"), "--rate takes positive numbers, not '0'"),
        (("--batching", "slot"), "no batching 'slot'"),
        (("--owner", "chips"), "no owner 'chips'"),
        (("--spread", "1"), "--spread takes two numbers"),
        (("--prompt", "9000"), "do not fit into 8192 tokens"),
        (("--requests", "0"), "--requests is 0"),
        (("--rate", "max", "--plot", "a.png"), "--plot draws latencies over rates"),
        (("--chunk", "8", "--rows", "16"), "16 rows cannot decode in steps of 8 tokens"),
    ],
)
def test_what_cannot_be_simulated(capsys: Captured, arguments: tuple[str, ...], why: str) -> None:
    assert main(["simulate", *EIGHT, *arguments]) == 1
    assert why in capsys.readouterr().err


# --- drafts ----------------------------------------------------------------------------------


def test_drafts_take_fewer_steps_where_they_are_right() -> None:
    """A step of 8 rows that verifies drafts costs no more than without: then all there is room for
    are, and a request needs as many steps as Leviathan et al. 2023, equation 1, says."""
    policy = Policy(pages=1000, page=16, rows=8, chunk=64, drafts=7, steps=((rows_alone(64), 1.0),))
    plain = [Arrival(0.0, (range(at * 10, at * 10 + 8),), 400) for at in range(8)]
    guessed = [replace(arrival, guessed=0.8) for arrival in plain]
    without, drafted = (simulate(policy, load, lambda _: 1.0) for load in (plain, guessed))
    assert (without.requests, without.steps) == (8, 400)
    assert drafted.requests == 8 and drafted == simulate(policy, guessed, lambda _: 1.0)
    tokens = (1 - 0.8**8) / (1 - 0.8)
    assert 400 / tokens < drafted.steps < 1.2 * 400 / tokens
    assert math.isclose(drafted.seconds, drafted.steps, rel_tol=1e-3)


def test_drafts_are_verified_as_the_cost_model_has_it() -> None:
    """Few requests: the weights are read anyway. Many: a step with drafts takes longer."""
    placed = Placement.best(LLAMA_8B, Topology.parse("v5e:2x4"), CHAT, rows=64)
    steps = placed.steps(CHAT)
    assert steps[-1][0] == rows_alone(-(-placed.chunk // placed.groups))
    assert list(steps) == sorted(steps) and steps[0][1] <= steps[-1][1]
