"""How much units, heads and layers matter on a text, and what `prune` keeps by it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.measured.importance import importance
from dialect.padded.importance import read, written
from dialect.user.usercode import Sizes, Trained
from examples import llama
from rewrite import Pipeline, Program, trace
from rewrite.errors import PipelineError
from rewrite.program import NOTHING_DONE
from tests.kit import assert_close, notes_of, printed, run

ROWS, LENGTH, D, F, LAYERS = 2, 6, 8, 12, 3
TEXT = bytes(np.random.default_rng(0).integers(0, 256, 64).tolist())
FIRST = "normalize, recognize, "


def layer(x: Any, w: Any) -> Any:
    return x + jax.nn.relu(x @ w["up"]) @ w["down"]


def step(params: Any, seen: Any, tokens: Any) -> Any:
    x, layers = params["in"][tokens], params["layers"]
    if isinstance(layers, list):
        for each in layers:
            x = layer(x, each)
    else:
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, layers)
    return x @ params["out"], seen + 1


def decoder(unrolled: bool) -> Trained:
    random = np.random.default_rng(1)
    drawn = {"in": (256, D), "out": (D, 256), "up": (LAYERS, D, F), "down": (LAYERS, F, D)}
    arrays = {
        name: jnp.asarray(random.normal(size=size), "float32") for name, size in drawn.items()
    }
    layers: Any = {name: arrays.pop(name) for name in ("up", "down")}
    if unrolled:
        layers = [{name: each[i] for name, each in layers.items()} for i in range(LAYERS)]
    sizes = Sizes(None, ROWS, LENGTH, None, unrolled)
    return Trained(sizes, arrays | {"layers": layers}, jnp.zeros(ROWS), TEXT, None)


def by_hand(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Of units [layers, d_ff] and of layers, over all tokens that the rows begin with."""
    starts = [at * (len(TEXT) - LENGTH - 1) // (ROWS - 1) for at in range(ROWS)]
    tokens = np.concatenate([np.frombuffer(TEXT, np.uint8)[at : at + LENGTH] for at in starts])
    params = jax.tree.map(lambda each: np.asarray(each, np.float64), trained.params)
    x, units, layers = params["in"][tokens], [], []
    for i in range(LAYERS):
        w = {name: params["layers"][name][i] for name in ("up", "down")}
        hidden = np.maximum(x @ w["up"], 0)
        units.append((hidden**2).sum(0) * (w["down"] ** 2).sum(1))
        y = x + hidden @ w["down"]
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        layers.append((1 - (x * y).sum(1) / lengths).sum())
        x = y
    return np.asarray(units), np.asarray(layers)


@pytest.mark.parametrize("unrolled", [False, True])
def test_it_is_what_adds_to_the_stream_and_what_turns_it(unrolled: bool) -> None:
    trained = decoder(unrolled)
    program = trace(step, trained.params, trained.cache, jnp.zeros(ROWS, jnp.int32))
    found, (units, layers) = importance(program, trained), by_hand(decoder(False))
    arrays = found["d_ff"] if unrolled else found["d_ff"][0]
    np.testing.assert_allclose(arrays, units, rtol=1e-4)
    np.testing.assert_allclose(found["layers"][0], layers, rtol=1e-3)


def test_the_command_measures_heads_too(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "tiny.json"
    decoder = ("eval", "examples/tiny/model.py:prefill", "--config", "mha", "--tokens", "16")
    asked = ("--batch", "2", "--context", "16", "-p", "normalize", "--importance", str(path))
    printed(capsys, *decoder, *asked)
    found = read(str(path))
    assert {name: [each.shape for each in arrays] for name, arrays in found.items()} == {
        "d_ff": [(4, 384)],
        "heads": [(4, 8)],
        "layers": [(4,)],
    }
    assert all((each > 0).all() for arrays in found.values() for each in arrays)


# What is kept by it.

CONFIG = llama.CONFIGS["toy"]
UNITS = {"w_gate": 2, "w_up": 2, "w_down": 1}


def arguments() -> tuple[Any, Any, Any]:
    cache = llama.init_cache(CONFIG, 2, 8)
    return llama.init_params(CONFIG, jax.random.key(0)), cache, jnp.asarray([3, 5], jnp.int32)


def pruned(tmp_path: Path, scores: Any, asked: str) -> Program:
    """By scores that are written and read."""
    path = tmp_path / "scores.json"
    written({name: [np.asarray(each) for each in arrays] for name, arrays in scores.items()}, path)
    passes = f'{FIRST}prune{{{asked}, by=activation, importance="{path}"}}'
    program = trace(partial(llama.decode_step, CONFIG), *jax.eval_shape(arguments))
    return Pipeline.parse(passes).run(program)


def test_the_units_that_matter_most_are_kept(tmp_path: Path) -> None:
    random, (params, cache, tokens) = np.random.default_rng(2), arguments()
    scores = random.random((CONFIG.layers, CONFIG.d_ff))
    program = pruned(tmp_path, {"d_ff": [scores]}, "d_ff=96")
    assert notes_of(program) == ("d_ff 256 -> 96, those that matter most on the text",)
    layers = dict(params["layers"])
    for name, axis in UNITS.items():
        kept = np.sort(np.argsort(-scores, axis=1)[:, :96], axis=1)
        places = np.expand_dims(kept, [d for d in (1, 2) if d != axis])
        layers[name] = np.take_along_axis(np.asarray(layers[name]), places, axis)
    few = params | {"layers": layers}
    wanted, _ = llama.decode_step(replace(CONFIG, d_ff=96), few, cache, tokens)
    assert_close(run(program, params, cache, tokens)[0], wanted)


def test_the_layers_that_matter_least_are_left_out_with_their_cache(tmp_path: Path) -> None:
    params, cache, tokens = arguments()
    program = pruned(tmp_path, {"layers": [[0.3, 0.1, 0.2]]}, "layers=2")
    assert "layers 3 -> 2, those that matter most on the text; layers without: 1" in notes_of(
        program
    )
    kept = np.asarray([0, 2])
    few = params | {"layers": jax.tree.map(lambda each: each[kept], params["layers"])}
    rest = cache | {name: cache[name][kept] for name in "kv"}
    wanted, _ = llama.decode_step(replace(CONFIG, layers=2), few, rest, tokens)
    assert_close(run(program, params, cache, tokens)[0], wanted)
    staged = Pipeline.parse("stage").run(program)
    states = {each.name: each.type.shape for each in staged.step_inputs if each.role == "state"}
    assert states["cache/k"] == (2, *cache["k"].shape[1:])


@pytest.mark.parametrize(
    ("scores", "asked", "told"),
    [
        ({"d_ff": [[[1.0, 2.0]]]}, "d_ff=96", "scores are [1, 2], and the decoder has [3, 256]"),
        ({}, "d_ff=96", "1 sets of weights have it, and scores are of 0"),
        ({"layers": [[1.0, 2.0]]}, "layers=1", "there are 3, and scores of 2"),
        ({"layers": [[1.0, 2.0, 3.0]]}, "layers=3", "layers stay: there are 3"),
    ],
)
def test_scores_of_another_decoder(tmp_path: Path, scores: Any, asked: str, told: str) -> None:
    (remark,) = pruned(tmp_path, scores, asked).history[-1].remarks
    assert told in remark.text and remark.kind == NOTHING_DONE


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"d_ff": 3}', '{"d_ff": [["a"]]}', '{"d_ff": [[NaN]]}']
)
def test_what_is_no_importance_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(PipelineError, match="holds"):
        read(str(path))


def test_by_activation_wants_a_file(tmp_path: Path) -> None:
    program = trace(partial(llama.decode_step, CONFIG), *jax.eval_shape(arguments))
    for asked in ("by=activation", 'importance="scores.json"'):
        with pytest.raises(PipelineError, match="by=activation reads importance=FILE"):
            Pipeline.parse(f"{FIRST}prune{{d_ff=96, {asked}}}").run(program)
    with pytest.raises(PipelineError, match="cannot read the importance 'none.json'"):
        Pipeline.parse(f'{FIRST}prune{{d_ff=96, by=activation, importance="none.json"}}').run(
            program
        )


def test_six_digits_are_written(tmp_path: Path) -> None:
    written({"layers": [np.asarray([1 / 3, 2e-9])]}, tmp_path / "scores.json")
    text = (tmp_path / "scores.json").read_text()
    assert json.loads(text) == {"layers": [[0.333333, 2e-9]]}
