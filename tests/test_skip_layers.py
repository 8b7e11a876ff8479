"""Layers that are left out of the residual stream, and what becomes of their cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import llama
from examples.tiny import model
from rewrite import Program, auto_shard, trace
from rewrite.errors import PipelineError
from rewrite.program import NOTHING_DONE
from tests import stateful_decoders
from tests.kit import after, assert_close, assert_same_bits, notes_of, run

CONFIG = replace(
    model.CONFIGS["mha"], layers=4, d_model=16, heads=2, kv_heads=2, d_head=8, d_ff=8, vocab=16
)
TOKENS = jnp.asarray([3, 5], jnp.int32)
FOUND, SKIP = "normalize, recognize, ", 'skip_layers{layers="1 3"}'
KEPT = np.asarray([0, 2])


def arguments(unrolled: bool) -> tuple[Any, ...]:
    """Of a decoding step, a cache that holds something among them."""
    params = model.init_params(CONFIG, jax.random.key(0), unrolled)
    cache = model.init_cache(CONFIG, 2, 8, unrolled) | {"position": jnp.int32(3)}
    keys = jax.random.split(jax.random.key(1), 2)
    for name, key in zip("kv", keys):
        leaves, tree = jax.tree.flatten(cache[name])
        drawn = [jax.random.normal(key, leaf.shape) for leaf in leaves]
        cache[name] = jax.tree.unflatten(tree, drawn)
    return params, cache, TOKENS


def some(layers: Any, unrolled: bool) -> Any:
    """The layers that are kept, of weights or of a cache."""
    return [layers[i] for i in KEPT] if unrolled else jax.tree.map(lambda x: x[KEPT], layers)


def smaller(params: Any, cache: Any, unrolled: bool) -> tuple[Any, Any]:
    """The arguments of a decoder that has the layers which are kept alone."""
    few = {name: some(cache[name], unrolled) for name in "kv"}
    return params | {"layers": some(params["layers"], unrolled)}, cache | few


def skipped(passes: str, unrolled: bool) -> Program:
    shapes = jax.eval_shape(partial(arguments, unrolled))
    return after(trace(partial(model.decode_step, CONFIG), *shapes), FOUND + passes)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("before", ["", "roll, carry_cache, "])
def test_the_others_are_a_decoder(before: str, unrolled: bool) -> None:
    params, cache, tokens = arguments(unrolled)
    program = skipped(before + SKIP, unrolled)
    few = replace(CONFIG, layers=2)
    wanted, _ = model.decode_step(few, *smaller(params, cache, unrolled), tokens)
    assert_close(run(program, params, cache, tokens)[0], wanted)
    assert program.keeps == "approx"


@pytest.mark.parametrize("unrolled", [False, True])
def test_behind_carry_cache_their_cache_stays_as_it_came(unrolled: bool) -> None:
    params, cache, tokens = arguments(unrolled)
    _, new = run(skipped(f"roll, carry_cache, {SKIP}", unrolled), params, cache, tokens)
    _, wanted = model.decode_step(
        replace(CONFIG, layers=2), *smaller(params, cache, unrolled), tokens
    )
    for name in "kv":
        for layer in (1, 3):
            assert_same_bits(new[name][layer], cache[name][layer])
        assert_close(some(new[name], unrolled), wanted[name])


def test_in_front_of_carry_cache_it_leaves_the_state() -> None:
    params, cache, tokens = arguments(False)
    program = skipped(f"{SKIP}, roll, carry_cache, stage, lower", False)
    states = {each.name: each.type.shape for each in program.step_inputs if each.role == "state"}
    assert states == {"cache/k": (2, 2, 8, 2, 8), "cache/position": (), "cache/v": (2, 2, 8, 2, 8)}
    _, new = run(program, params, cache, tokens)
    assert not np.any(new["k"][1]) and not np.any(new["v"][3])


def test_a_cache_that_is_not_read_is_named() -> None:
    first, *others = notes_of(skipped(SKIP, True))
    assert first == "layers without: 1, 3"
    told = [f"cache/{name}/{layer}" for name in "kv" for layer in (1, 3)]
    assert others == [f"{each} left alone: it stays as it came, and is not read" for each in told]


def test_it_is_sharded() -> None:
    config = llama.CONFIGS["toy"]
    params = llama.init_params(config, jax.random.key(0))
    cache, tokens = llama.init_cache(config, 8, 16), jnp.arange(8, dtype=jnp.int32)
    pipeline = f'{FOUND}skip_layers{{layers="0"}}, roll, carry_cache, plan, shard, stage, lower'
    function = partial(llama.decode_step, config)
    step = auto_shard(function, "cpu:8", pipeline=pipeline, donate_state=False)
    logits, _ = step(step.prepare(params, cache, tokens), step.adapt(cache), tokens)
    few = {**params, "layers": jax.tree.map(lambda x: x[1:], params["layers"])}
    rest = {**cache, **{name: cache[name][1:] for name in "kv"}}
    fewer = replace(config, layers=config.layers - 1)
    assert_close(logits, llama.decode_step(fewer, few, rest, tokens)[0], 1e-4)


# Loops of other kinds.

STACK = jax.ShapeDtypeStruct((4, 8, 8), "float32")
X = jax.ShapeDtypeStruct((2, 8), "float32")
CACHE = jax.ShapeDtypeStruct((4, 2, 8), "float32")


def counted(w: Any, cache: Any, x: Any) -> Any:
    """Layers are numbered: their weights, what they write, and what they multiply with."""

    def layer(i: Any, carried: Any) -> Any:
        x, cache = carried
        x = x + jnp.tanh(x @ w[i]) * (i + 1)
        return x, jax.lax.dynamic_update_index_in_dim(cache, x, i, 0)

    return jax.lax.fori_loop(0, 4, layer, (x, cache))


def drawn(*shapes: jax.ShapeDtypeStruct) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(2), len(shapes))
    return [jax.random.normal(key, each.shape) for key, each in zip(keys, shapes)]


def test_a_layer_keeps_its_number() -> None:
    w, cache, x = drawn(STACK, CACHE, X)
    program = after(trace(counted, STACK, CACHE, X, state=1), FOUND + SKIP)
    wanted, rows = x, list(cache)
    for i in KEPT:
        wanted = wanted + jnp.tanh(wanted @ w[i]) * (i + 1)
        rows[i] = wanted
    found, new = run(program, w, cache, x)
    assert_close(found, wanted)
    assert_close(new, jnp.stack(rows))


def all_hidden(w: Any, x: Any) -> Any:
    return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), jnp.tanh(x)), x, w)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ("4", "there is no layer 4: they are 0 to 3"),
        ("0-3", "all 4 layers would be left out"),
    ],
)
@pytest.mark.parametrize("unrolled", [False, True])
def test_layers_that_cannot_be_left_out(layers: str, told: str, unrolled: bool) -> None:
    program = skipped(f'skip_layers{{layers="{layers}"}}', unrolled)
    (remark,) = program.history[-1].remarks
    assert remark.text == f"all layers stay: {told}" and remark.kind == NOTHING_DONE


def test_what_else_reads_a_layer_is_told() -> None:
    program = after(trace(all_hidden, STACK, X), FOUND + SKIP)
    (remark,) = program.history[-1].remarks
    assert remark.kind == NOTHING_DONE and "tanh at" in remark.text
    assert "of every layer is read behind the loop" in remark.text


def test_layers_that_share_more_than_the_stream_go_together() -> None:
    """Layer 2 attends to what layer 1 keeps."""
    params, state, tokens = stateful_decoders.arguments(*["attention"] * 4)

    def step(params: Any, state: Any, tokens: Any) -> Any:
        x, new = params["embedding"][tokens], list(state)
        for i, w in enumerate(params["layers"]):
            x, new[i] = stateful_decoders.attention(w, new[1] if i == 2 else state[i], x)
        return x @ params["embedding"].T, new

    program = after(trace(step, params, state, tokens), FOUND + SKIP)
    (remark,) = program.history[-1].remarks
    assert "layers 1 and 2 are left out together" in remark.text


def test_a_state_that_is_computed_anew_stays_as_it_came() -> None:
    kinds = ("attention", "linear attention", "state space", "delta rule")
    params, state, tokens = stateful_decoders.arguments(*kinds)
    program = after(trace(stateful_decoders.decoder(*kinds), params, state, tokens), FOUND + SKIP)
    few = params | {"layers": [params["layers"][i] for i in KEPT]}
    step = stateful_decoders.decoder(*(kinds[i] for i in KEPT))
    wanted, some_new = step(few, [state[i] for i in KEPT], tokens)
    logits, new = run(program, params, state, tokens)
    assert_close(logits, wanted)
    assert_close([new[i] for i in KEPT], some_new)
    assert_same_bits([new[1], new[3]], [state[1], state[3]])


def test_a_trip_of_two_layers_goes_as_a_whole() -> None:
    params, cache, tokens = arguments(True)
    params["layers"] = [
        layer
        | {"w_gate": layer["w_gate"] if i % 2 else layer["w_gate"][:, :4]}
        | ({} if i % 2 else {"w_up": layer["w_up"][:, :4], "w_down": layer["w_down"][:4]})
        for i, layer in enumerate(params["layers"])
    ]
    program = after(
        trace(partial(model.decode_step, CONFIG), params, cache, tokens),
        f'{FOUND}roll, skip_layers{{layers="1"}}',
    )
    (remark,) = program.history[-1].remarks
    assert "layers 0 and 1 are left out together, or not at all" in remark.text
    whole = after(
        trace(partial(model.decode_step, CONFIG), params, cache, tokens),
        f'{FOUND}roll, carry_cache, skip_layers{{layers="2-3"}}',
    )
    few = params | {"layers": params["layers"][:2]}
    rest = cache | {name: cache[name][:2] for name in "kv"}
    wanted, _ = model.decode_step(replace(CONFIG, layers=2), few, rest, tokens)
    assert_close(run(whole, params, cache, tokens)[0], wanted)


@pytest.mark.parametrize("left_out", ["0", "2", "0 3"])
def test_layers_in_front_of_a_loop_are_told_apart(left_out: str) -> None:
    """The first layer has fewer hidden units than the others, which are a loop."""
    params, cache, tokens = arguments(True)
    first, *others = params["layers"]
    few = {"w_gate": first["w_gate"][:, :4], "w_up": first["w_up"][:, :4]}
    params["layers"] = [first | few | {"w_down": first["w_down"][:4]}, *others]
    traced, skip = trace(partial(model.decode_step, CONFIG), params, cache, tokens), "skip_layers"
    apart, looped = (
        after(traced, f'{FOUND}{before}{skip}{{layers="{left_out}"}}')
        for before in ("", "roll, carry_cache, ")
    )
    assert [op.name for op in looped.graph.ops].count("scan") == 1
    assert_close(run(looped, params, cache, tokens)[0], run(apart, params, cache, tokens)[0])


@pytest.mark.parametrize("layers", ["", "two", "3-1", "-1", "1-"])
def test_what_is_no_layer_is_an_error(layers: str) -> None:
    with pytest.raises(PipelineError, match="skip_layers|neither a layer nor a range"):
        skipped(f'skip_layers{{layers="{layers}"}}', False)
