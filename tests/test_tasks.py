"""What a decoder is measured on besides text: copying, and a needle in its context."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialect.front.cli import main
from dialect.measured.tasks import CODE, CUE, DISTANCES, KEY, Source, Task, copying, needle, tasks
from dialect.user.usercode import UsageError
from rewrite.ir import Type
from tests.kit import complaint, printed

Captured = pytest.CaptureFixture[str]
TEXT = bytes(range(97, 123)) * 200
SOURCE = Source(np.frombuffer(TEXT, np.uint8).astype(np.int32), 1.0, lambda text: [*text.encode()])
ROWS, CONTEXT = 3, 255


def seed() -> np.random.Generator:
    return np.random.default_rng(1)


def answers(task: Task, row: int) -> str:
    """The bytes of a row that are asked for."""
    return bytes(task.tokens[row, 1:][task.asked[row]].tolist()).decode()


def test_a_passage_comes_again() -> None:
    task = copying(SOURCE, ROWS, CONTEXT, 100, seed())
    assert task.tokens.shape == (ROWS, CONTEXT + 1)
    assert (task.tokens[:, 100:] == task.tokens[:, :-100]).all()
    assert len({tuple(row) for row in task.tokens[:, :100]}) == ROWS
    assert not task.asked[:, : 100 + CUE - 1].any() and task.asked[:, 100 + CUE - 1 :].all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_needle_lies_where_it_should(distance: Fraction) -> None:
    task = needle(SOURCE, ROWS, CONTEXT, distance, seed())
    assert task.name == f"needle {distance}"
    codes = set()
    for row in range(ROWS):
        whole, code = bytes(task.tokens[row].tolist()).decode(), answers(task, row)
        assert len(whole) == CONTEXT + 1 and len(code) == CODE and code.isdecimal()
        question = whole[-CODE - KEY - 2 : -CODE]
        assert question[0] == "\n" and question[1:-1].isupper() and question[-1] == "="
        assert whole.index(f"{question}{code}\n") == len(whole) - len(whole) * distance
        assert whole.count(code) == whole.count(question) == 2
        codes.add(code)
    assert len(codes) == ROWS


def test_tasks_are_always_the_same_and_of_one_shape() -> None:
    made, again = (tasks(("copy", "needle"), SOURCE, ROWS, CONTEXT) for _ in range(2))
    names = [task.name for task in made]
    assert names == ["text", "copy", "needle 1/4", "needle 1/2", "needle 1"]
    assert {task.tokens.shape for task in made} == {(ROWS, CONTEXT + 1)}
    assert all((one.tokens == other.tokens).all() for one, other in zip(made, again))
    assert [task.name for task in tasks((), SOURCE, ROWS, CONTEXT)] == ["text"]


def test_targets_are_what_is_asked_for() -> None:
    """In steps of two tokens: of all of them, or of the last where only its logits come back."""
    tokens = np.array([[1, 2, 3, 4, 5]])
    task = Task("task", tokens, np.array([[False, True, False, True]]))
    taken = Type("i32", (1, 2))
    steps, targets = task.steps(taken, Type("f32", (1, 2, 9)))
    assert steps.tolist() == [[[1, 2]], [[3, 4]]]
    assert targets.tolist() == [[[-1, 3]], [[-1, 5]]]
    assert task.steps(taken, Type("f32", (1, 9)))[1].tolist() == [[[3]], [[5]]]
    unseen = Task("first", tokens, np.array([[True, False, True, False]]))
    with pytest.raises(UsageError, match="no logits that the task first asks for"):
        unseen.steps(taken, Type("f32", (1, 9)))


@pytest.mark.parametrize(
    "name, context, told",
    [
        ("copies", 255, "there is no task 'copies'"),
        ("copy", 8, "a context of 8 is too short to copy in"),
        ("needle", 79, "a context of 79 is too short for needle 1/4"),
    ],
)
def test_what_cannot_be_asked_is_said(name: str, context: int, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        tasks((name,), SOURCE, ROWS, context)


# A decoder by hand that predicts what followed the longest match of its last bytes.

MATCHER = """
import jax.numpy as jnp
from jax.lax import dynamic_update_slice

LONGEST = 6
CONFIGS = {"everything": 256, "window": 96}

def init_params(config, key, unrolled=False):
    return {"weight": jnp.ones(())}

trained_params = lambda config, unrolled: init_params(config, None)

def init_cache(config, batch, context, unrolled=False):
    return {"seen": jnp.full((batch, LONGEST + context), -1), "position": jnp.int32(0)}

def step(config, params, cache, tokens):
    now = cache["position"] + LONGEST
    seen = dynamic_update_slice(cache["seen"], tokens[:, None], (0, now))
    places = jnp.arange(seen.shape[1])
    same, length = True, 0
    for back in range(LONGEST):
        last = jnp.take(seen, now - back, axis=1)[:, None]
        same &= (jnp.roll(seen, back, axis=1) == last) & (places >= back)
        length += same
    visible = (places < now) & (places >= now - config)
    best = jnp.argmax(jnp.where(visible, length, -1), axis=1)
    follows = jnp.take_along_axis(seen, best[:, None] + 1, axis=1)
    logits = params["weight"] * (jnp.arange(256) == follows)
    return logits, {"seen": seen, "position": cache["position"] + 1}

def held_out():
    return bytes(range(97, 123)) * 200
"""
DISTANT = ["needle 1/2", "needle 1"]


def evaluated(folder: Path, config: str, *argv: str) -> tuple[str, ...]:
    path = folder / "matcher.py"
    path.write_text(MATCHER)
    named = ("eval", f"{path}:step", "--config", config, "--batch", "3", "--context", "255")
    return (*named, "-p", "normalize", "--tasks", "copy, needle", *argv)


@pytest.mark.parametrize("config, lost", [("everything", []), ("window", ["copy", *DISTANT])])
def test_what_is_not_seen_is_not_found(
    config: str, lost: list[str], tmp_path: Path, capsys: Captured
) -> None:
    (original, _) = json.loads(printed(capsys, *evaluated(tmp_path, config, "--json")))["rows"]
    right = {name: accuracy["right"] for name, accuracy in original["tasks"].items()}
    assert list(right) == ["copy", "needle 1/4", "needle 1/2", "needle 1"]
    assert {name for name, part in right.items() if part < 0.5} == set(lost)
    assert all(right[name] == 1 for name in set(right) - set(lost))


def test_the_table_has_a_column_for_every_task(tmp_path: Path, capsys: Captured) -> None:
    _, columns, row, _ = printed(capsys, *evaluated(tmp_path, "everything")).strip().split("\n")
    headings = "KL, nats per byte copy needle 1/4 needle 1/2 needle 1 parameters cache"
    assert columns.split()[-len(headings.split()) :] == headings.split()
    assert row.split()[7:15] == ["100.0", "%"] * 4


def test_passes_are_compared_and_drawn(tmp_path: Path, capsys: Captured) -> None:
    """Each alone behind those of -p; what does nothing is said."""
    compared = ("carry_cache", "quantize{weights=int4}")
    argv = evaluated(tmp_path, "window", "--compare", *compared)
    plot = tmp_path / "plot.png"
    out = printed(capsys, *argv, "--plot", str(plot))
    assert "not done: quantize{weights=int4}: nothing is quantised" in out
    rows: list[dict[str, Any]] = json.loads(printed(capsys, *argv, "--json"))["rows"]
    assert [row["pass"] for row in rows] == ["original", "normalize", *compared]
    assert [row["keeps"] for row in rows] == ["", "reals", "reals", "approx"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn(tmp_path: Path, capsys: Captured) -> None:
    argv = evaluated(tmp_path, "window", "--plot", str(tmp_path / "plot.txt"))
    assert "is no picture" in complaint(capsys, *argv)


def test_passes_that_are_none(tmp_path: Path, capsys: Captured) -> None:
    assert "quantise" in complaint(capsys, *evaluated(tmp_path, "window", "--compare", "quantise"))
    assert main(evaluated(tmp_path, "window", "--strict", "--compare", "quantize")) == 1
    assert "not all that was asked for was done" in capsys.readouterr().err
