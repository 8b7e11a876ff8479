"""The least important hidden units and heads are left out of the weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import gpt, llama, palm
from rewrite import Pipeline, Program, auto_shard, trace
from rewrite.errors import PipelineError
from rewrite.program import NOTHING_DONE
from tests.kit import assert_close, notes_of, run

FIRST = "normalize, recognize, "
TOKENS = jnp.asarray([3, 5], jnp.int32)


def arguments(model: ModuleType, config: Any) -> tuple[Any, ...]:
    """Random arguments of a decoding step, a cache that holds something among them."""
    params = model.init_params(config, jax.random.key(0))
    cache = model.init_cache(config, 2, 16) | {"position": jnp.int32(5)}
    keys = iter(jax.random.split(jax.random.key(1), 4))
    cache |= {name: jax.random.normal(next(keys), cache[name].shape) for name in "kv"}
    return params, cache, TOKENS


def pruned(model: ModuleType, config: Any, passes: str) -> tuple[Program, tuple[Any, ...]]:
    args = arguments(model, config)
    program = trace(partial(model.decode_step, config), *args)
    return Pipeline.parse(FIRST + passes).run(program), args


def places(count: int, weights: dict[str, tuple[np.ndarray, int]]) -> np.ndarray:
    """[layers, count]: those of the largest sums of squares of weights along an axis of them."""
    scores = sum(
        np.sum(np.moveaxis(weight, axis, 1) ** 2, axis=tuple(range(2, weight.ndim)))
        for weight, axis in weights.values()
    )
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)


def smaller(params: Any, axes: dict[str, int], count: int) -> Any:
    """The parameters of a decoder with fewer units: {a weight's name: its axis of units}."""
    layers = {name: np.asarray(weight) for name, weight in params["layers"].items()}
    chosen = places(count, {name: (layers[name], axis) for name, axis in axes.items()})
    for name, axis in axes.items():
        shape = [-1 if d in (0, axis) else 1 for d in range(layers[name].ndim)]
        shape[0], shape[axis] = chosen.shape
        layers[name] = np.take_along_axis(layers[name], chosen.reshape(shape), axis)
    return params | {"layers": layers}


UNITS = {
    llama: {"w_gate": 2, "w_up": 2, "w_down": 1},
    palm: {"w_gate": 2, "w_up": 2, "w_down": 1},
    gpt: {"w_up": 2, "b_up": 1, "w_down": 1},
}


@pytest.mark.parametrize("model", UNITS)
def test_fewer_hidden_units(model: ModuleType) -> None:
    """The step is that of a decoder which has the units with the largest weights alone."""
    config = model.CONFIGS["toy"]
    program, (params, *rest) = pruned(model, config, "prune{d_ff=96}")
    assert notes_of(program) == ("d_ff 256 -> 96, those with the largest weights",)
    few = smaller(params, UNITS[model], 96)
    wanted, cache = model.decode_step(replace(config, d_ff=96), few, *rest)
    logits, kept = run(program, params, *rest)
    assert_close(logits, wanted)
    assert_close(kept, cache)


def test_fewer_heads_of_one_key() -> None:
    config = palm.CONFIGS["toy"]
    program, (params, *rest) = pruned(palm, config, "prune{heads=6}")
    few = smaller(params, {"wq": 2, "wo": 1}, 6)
    wanted, _ = palm.decode_step(replace(config, heads=6), few, *rest)
    assert_close(run(program, params, *rest)[0], wanted)


def test_fewer_heads_of_every_group() -> None:
    """Heads whose weights are zero are those that are left out: nothing changes."""
    config = llama.CONFIGS["toy"]
    params, *rest = arguments(llama, config)
    layers = dict(params["layers"])
    group = config.heads // config.kv_heads
    idle = np.arange(config.heads) % group == 1
    layers["wq"] = jnp.where(idle[:, None], 0, layers["wq"])
    layers["wo"] = jnp.where(idle[:, None, None], 0, layers["wo"])
    params |= {"layers": layers}
    function = partial(llama.decode_step, config)
    passes = Pipeline.parse(f"{FIRST}prune{{heads={config.kv_heads}}}")
    program = passes.run(trace(function, params, *rest))
    assert_close(run(program, params, *rest)[0], function(params, *rest)[0])


def test_fewer_layers() -> None:
    """Of every stack of weights the rows of the layers that weigh most; their rows of the cache."""
    config = llama.CONFIGS["toy"]
    params, cache, tokens = arguments(llama, config)
    weight = jnp.asarray([3.0, 1.0, 2.0, 1.5][: config.layers])
    scaled = {
        name: each * weight.reshape(-1, *[1] * (each.ndim - 1))
        for name, each in params["layers"].items()
    }
    params |= {"layers": scaled}
    function = partial(llama.decode_step, config)
    passes = Pipeline.parse(f"{FIRST}carry_cache, prune{{layers=1}}")
    program = passes.run(trace(function, params, cache, tokens))
    few = params | {"layers": {name: each[:1] for name, each in scaled.items()}}
    rest = cache | {name: cache[name][:1] for name in "kv"}
    wanted, new = llama.decode_step(replace(config, layers=1), few, rest, tokens)
    logits, kept = run(program, params, cache, tokens)
    assert_close(logits, wanted)
    assert_close(kept["k"], cache["k"].at[0].set(new["k"][0]))


def test_weights_are_picked_once_and_sharded() -> None:
    """In `prepare`: the step holds fewer weights, on every chip."""
    config = llama.CONFIGS["toy"]
    args = arguments(llama, config)
    function = partial(llama.decode_step, config)
    pipeline = f"{FIRST}prune{{d_ff=128}}, roll, carry_cache, plan, shard, stage, lower"
    step = auto_shard(function, "cpu:8", pipeline=pipeline, donate_state=False)
    program = step.program(*args)
    shapes = {each.name: each.type.shape for each in program.step_inputs}
    assert shapes["params/layers/w_up.picked"] == (config.layers, config.d_model, 128)
    few = smaller(args[0], UNITS[llama], 128)
    wanted, _ = llama.decode_step(replace(config, d_ff=128), few, *args[1:])
    assert_close(step(*args)[0], wanted, 1e-4)


@pytest.mark.parametrize(
    ("model", "passes", "told"),
    [
        (gpt, "prune{heads=4}", "heads stays: a result or the state has it"),
        (llama, "prune{heads=3}", "there are 8 KV heads, and every one keeps as many"),
        (llama, "prune{layers=1}", "layers stay: a cache is scanned: carry_cache in front"),
        (llama, "carry_cache, prune{layers=9}", "layers stay: there are 3"),
        (llama, "prune{d_ff=512}", "d_ff stays: no weight has more than 512 of it"),
    ],
)
def test_what_cannot_be_left_out_is_told(model: ModuleType, passes: str, told: str) -> None:
    program, _ = pruned(model, model.CONFIGS["toy"], passes)
    (remark,) = program.history[-1].remarks
    assert told in remark.text and remark.kind == NOTHING_DONE


def test_two_of_every_four() -> None:
    """Along the axis that a product sums, the last where it sums several; not over a vocabulary."""
    config = llama.CONFIGS["toy"]
    program, (params, *rest) = pruned(llama, config, 'prune{mask="2:4"}')
    summed = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
    layers = dict(params["layers"])
    for name, axis in summed.items():
        moved = np.moveaxis(np.asarray(layers[name]), axis, -1)
        groups = moved.reshape(*moved.shape[:-1], -1, 4)
        least = np.argsort(np.abs(groups), -1)[..., :2]
        np.put_along_axis(groups := groups.copy(), least, 0, -1)
        layers[name] = np.moveaxis(groups.reshape(moved.shape), -1, axis)
    wanted, _ = llama.decode_step(config, params | {"layers": layers}, *rest)
    assert_close(run(program, params, *rest)[0], wanted)
    first, *left = notes_of(program)
    assert first == "7 weights, 2 of every 4 kept"
    assert [note.split(" left alone: ")[1] for note in left] == [
        "it is a table over the vocabulary"
    ]


def test_a_mask_that_does_not_fit_leaves_a_weight_alone() -> None:
    program, _ = pruned(llama, llama.CONFIGS["toy"], 'prune{mask="2:3"}')
    assert any("3 do not divide the 64 that are summed" in note for note in notes_of(program))


@pytest.mark.parametrize("mask", ["4:4", "2", "0:4", "half"])
def test_what_is_no_mask_is_an_error(mask: str) -> None:
    with pytest.raises(PipelineError, match="is no mask"):
        pruned(llama, llama.CONFIGS["toy"], f'prune{{mask="{mask}"}}')


def test_nothing_to_leave_out_is_an_error() -> None:
    with pytest.raises(PipelineError, match="says nothing to leave out"):
        pruned(llama, llama.CONFIGS["toy"], "prune")
