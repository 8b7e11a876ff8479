"""Axis inference: every dimension of the examples' inputs is named by what is done with it."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import rewrite
from dialect.naming.axes import NAMES, infer_axes, leaves
from rewrite import Pipeline
from rewrite.program import Program
from tests.tiny import CASES, MODELS, Case, arguments, traced

# Written from the models' definitions. Of the layers' parameters `layers` is left out.
TABLES: dict[str, dict[str, str]] = {
    "llama": {
        "params/embedding": "vocab d_model",
        "params/final_norm": "d_model",
        "params/head": "d_model vocab",
        "attention_norm": "d_model",
        "ffn_norm": "d_model",
        "wq": "d_model (kv_heads q_per_kv) d_head",
        "wk": "d_model kv_heads d_head",
        "wv": "d_model kv_heads d_head",
        "wo": "(kv_heads q_per_kv) d_head d_model",
        "w_gate": "d_model d_ff",
        "w_up": "d_model d_ff",
        "w_down": "d_ff d_model",
        "cache": "batch context kv_heads d_head",
    },
    "palm": {
        "params/embedding": "vocab d_model",
        "params/final_norm": "d_model",
        "norm": "d_model",
        "wq": "d_model heads d_head",
        "wk": "d_model d_head",
        "wv": "d_model d_head",
        "wo": "heads d_head d_model",
        "w_gate": "d_model d_ff",
        "w_up": "d_model d_ff",
        "w_down": "d_ff d_model",
        "cache": "batch context d_head",
    },
    "gpt": {
        "params/embedding": "vocab d_model",
        "params/positions": "positions d_model",
        "params/final_norm": "d_model",
        "params/final_norm_bias": "d_model",
        "attention_norm": "d_model",
        "attention_norm_bias": "d_model",
        "wq": "d_model heads d_head",
        "bq": "heads d_head",
        "wk": "d_model heads d_head",
        "bk": "heads d_head",
        "wv": "d_model heads d_head",
        "bv": "heads d_head",
        "wo": "heads d_head d_model",
        "bo": "d_model",
        "ffn_norm": "d_model",
        "ffn_norm_bias": "d_model",
        "w_up": "d_model d_ff",
        "b_up": "d_ff",
        "w_down": "d_ff d_model",
        "b_down": "d_model",
        "cache": "batch context heads d_head",
    },
}
NO_PARENTHESES = str.maketrans("", "", "()")
PREPARED = Pipeline.parse("normalize, recognize")


@cache
def recognized(case: Case) -> Program:
    return PREPARED.run(traced(case))


def shown(program: Program) -> dict[str, str]:
    """The axes of every input by its path, and of every output."""
    axes = infer_axes(program)
    inputs = zip(program.graph.inputs, program.step_inputs)
    found = {each.name: axes.show(value) for value, each in inputs}
    outputs = zip(program.graph.outputs, program.step_outputs)
    return found | {f"out {each.name}": axes.show(value) for value, each in outputs}


def wanted(case: Case) -> dict[str, str]:
    table = TABLES[case.model]
    found = {path: axes for path, axes in table.items() if path.startswith("params/")}
    for i in range(2) if case.unrolled else [None]:
        inner, front = ("", "layers ") if i is None else (f"/{i}", "")
        for name in table:
            if not name.startswith("params/") and name != "cache":
                found[f"params/layers{inner}/{name}"] = front + table[name]
        for name in "kv":
            found[f"cache/{name}{inner}"] = found[f"out 1/{name}{inner}"] = front + table["cache"]
    found |= {"cache/position": "", "out 1/position": "", "out 0": "batch vocab"}
    return found | {"tokens": "batch time" if case.prefill else "batch"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_axis_has_its_name(case: Case) -> None:
    assert shown(recognized(case)) == wanted(case)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("passes", ["carry_cache", "unroll, stage", "carry_cache, stage"])
def test_names_survive_passes(model: str, passes: str) -> None:
    case = Case(model, prefill=True)
    program = Pipeline.parse(passes).run(recognized(case))
    known = wanted(case)
    if "unroll" in passes:
        # A cache that is kept per layer has the axes of the unrolled model's.
        parts = wanted(Case(model, prefill=True, unrolled=True)).items()
        known |= {name.replace("/0", ".0").replace("/1", ".1"): axes for name, axes in parts}
    for name, axes in shown(program).items():
        if name in known:  # `stage` may keep a weight with its merged axes split
            assert (name, axes.translate(NO_PARENTHESES)) == (
                name,
                known[name].translate(NO_PARENTHESES),
            )


@pytest.mark.parametrize("model", MODELS)
def test_sizes(model: str) -> None:
    case = Case(model, prefill=True)
    own = {
        "llama": {"kv_heads": 2, "q_per_kv": 2},
        "palm": {"heads": 4},
        "gpt": {"heads": 4},
    }[model]
    common = {"batch": 2, "time": 4, "context": 16, "d_model": 16, "d_head": 4, "d_ff": 16}
    common |= {"vocab": 16, "layers": 2}
    common |= {"positions": 16} if model == "gpt" else {}
    sizes = infer_axes(recognized(case)).sizes()
    assert sizes == common | own
    assert list(sizes) == [name for name in NAMES if name in sizes]


def test_names_say_where_they_come_from() -> None:
    program = recognized(Case("llama"))
    axes = infer_axes(program)
    place = {each.name: value for value, each in zip(program.graph.inputs, program.inputs)}
    (leaf,) = leaves(axes.at(place["cache/k"])[2])
    _, provenance = leaf.names["context"]
    assert provenance.startswith("attend at ") and "llama.py:" in provenance


def test_nothing_is_named_by_a_path() -> None:
    """Renamed, the same program has the same axes."""
    case = Case("llama")

    def disguised(vocab: Any, heads: Any, d_ff: Any) -> Any:
        return case.function(vocab["d_head"], heads, d_ff)

    params, cache, tokens = arguments(case)
    program = PREPARED.run(rewrite.trace(disguised, {"d_head": params}, cache, tokens))
    found, known = shown(program), shown(recognized(case))
    assert list(found.values()) == list(known.values())


def test_unrecognised_axes_are_unnamed() -> None:
    def step(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["w"]) @ params["u"]

    args = ({"w": jnp.ones((4, 8)), "u": jnp.ones((8, 6))}, jnp.ones((2, 4)))
    program = PREPARED.run(rewrite.trace(step, *args))
    assert shown(program) == {
        "params/u": "_ vocab",
        "params/w": "_ _",
        "x": "_ _",
        "out result": "_ vocab",
    }


def test_reshapes_split_and_merge_axes() -> None:
    """A weight stored with its heads merged shows both axes in one dimension."""

    def step(params: Any, cache: Any, x: jax.Array) -> Any:
        q = (x @ params["wq"]).reshape(2, 4, 4)
        weights = jax.nn.softmax(jnp.einsum("bhk,bshk->bhs", q, cache) * 0.5)
        mixed = jnp.einsum("bhs,bshk->bhk", weights, cache).reshape(2, 16)
        return mixed @ params["wo"]

    params = {"wq": jnp.ones((16, 16)), "wo": jnp.ones((16, 12))}
    args = (params, jnp.ones((2, 8, 4, 4)), jnp.ones((2, 16)))
    found = shown(PREPARED.run(rewrite.trace(step, *args)))
    assert found["params/wq"] == "_ (heads d_head)"
    assert found["params/wo"] == "(heads d_head) vocab"
    assert found["cache"] == "batch context heads d_head"


@pytest.mark.parametrize("passes", ["cache_layout", "plan", "pad"])
def test_an_axis_of_no_elements_is_nothing_to_plan_for(passes: str) -> None:
    def step(params: Any, state: Any, x: Any) -> Any:
        return jax.lax.optimization_barrier((x, params)), (state[0] + 1,)

    program = rewrite.trace(step, jnp.ones(3), (jnp.ones((0, 2)),), jnp.ones((0,)), state=1)
    target = rewrite.Target("cpu:8", (("x", 2), ("y", 4)))
    assert Pipeline.parse(passes).run(program, target).graph == program.graph


def latent_step(params: Any, cache: Any, at: jax.Array, tokens: jax.Array) -> Any:
    """Attention to latents as they are cached, weighted by no softmax: every head has weights of
    its own (`keys`), as an expert has."""
    x = params["embedding"][tokens]
    latents = jax.lax.dynamic_update_slice(cache, (x @ params["down"])[:, None], (0, at, 0))
    query = jnp.einsum("bd,dhn->bhn", x, params["query"])
    query = jnp.einsum("bhn,hnl->bhl", query, params["keys"])
    weights = jnp.tanh(jnp.einsum("bhl,btl->bht", query, latents))
    mixed = jnp.einsum("bht,btl->bhl", weights, latents)
    x = x + jnp.einsum("bhl,hld->bd", mixed, params["out"])
    return x @ params["embedding"].T, latents


def test_heads_that_read_latents_are_no_experts() -> None:
    rows, positions, width, heads, latent = 8, 32, 64, 4, 24
    shapes = {
        "embedding": (96, width),
        "down": (width, latent),
        "query": (width, heads, 16),
        "keys": (heads, 16, latent),
        "out": (heads, latent, width),
    }
    params = {name: jax.ShapeDtypeStruct(shape, "f4") for name, shape in shapes.items()}
    cache = jax.ShapeDtypeStruct((rows, positions, latent), "f4")
    at, tokens = jax.ShapeDtypeStruct((), "i4"), jax.ShapeDtypeStruct((rows,), "i4")
    program = rewrite.trace(latent_step, params, cache, at, tokens, state=1)
    program = Pipeline.parse("normalize, recognize").run(program)
    axes = infer_axes(program)
    named = {x.name: axes.show(v) for v, x in zip(program.graph.inputs, program.inputs)}
    assert named["params/query"] == "d_model heads _"
    assert named["params/keys"] == "heads _ _"
    assert named["params/out"] == "heads _ d_model"


def test_blocks_of_a_width_are_no_experts() -> None:
    """The gates of an RG-LRU (De et al. 2024, arXiv:2402.19427) are block-diagonal matrices."""

    def step(params: Any, state: jax.Array, tokens: jax.Array) -> Any:
        x = params["embedding"][tokens]
        wide = x @ params["into"]
        blocks = jnp.einsum("bnf,nfg->bng", wide.reshape(-1, 4, 8), params["blocks"])
        state = state * jax.nn.sigmoid(blocks.reshape(wide.shape)) + wide
        return (x + state @ params["out"]) @ params["embedding"].T, state

    shapes = {"embedding": (96, 16), "into": (16, 32), "blocks": (4, 8, 8), "out": (32, 16)}
    params = {name: jax.ShapeDtypeStruct(shape, "f4") for name, shape in shapes.items()}
    state, tokens = jax.ShapeDtypeStruct((2, 32), "f4"), jax.ShapeDtypeStruct((2,), "i4")
    program = rewrite.trace(step, params, state, tokens, state=1)
    axes = infer_axes(Pipeline.parse("normalize, recognize").run(program))
    assert axes.sizes() == {"batch": 2, "vocab": 96, "d_model": 16, "d_ff": 32}


def test_what_is_normalised_behind_its_gate_is_no_residual_stream() -> None:
    """As Mamba 2 normalises: its heads were called d_model, and its state gathered."""

    def rms(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * weight

    def step(params: Any, state: jax.Array, tokens: jax.Array) -> Any:
        x = params["embedding"][tokens]
        y = rms(x, params["norm"])
        gate, value = jax.nn.silu(y @ params["z"]), y @ params["v"]
        state = 0.9 * state + value.reshape(-1, 4, 6)
        inner = rms(gate * state.reshape(-1, 24), params["inner"])
        x = rms(x + inner @ params["out"], params["norm"])
        return x @ params["embedding"].T, state

    shapes = {"embedding": (32, 16), "norm": (16,), "inner": (24,)}
    shapes |= {"z": (16, 24), "v": (16, 24), "out": (24, 16)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    program = rewrite.trace(step, params, jnp.ones((2, 4, 6)), jnp.zeros(2, jnp.int32))
    program = Pipeline.parse("normalize, recognize").run(program)
    axes, inputs = infer_axes(program), zip(program.inputs, program.graph.inputs)
    shown = {input_.name: axes.show(value) for input_, value in inputs}
    assert shown["state"] == "batch d_ff d_ff"
    assert shown["params/inner"] == "d_ff" and shown["params/out"] == "d_ff d_model"
    assert shown["params/norm"] == "d_model"


@pytest.mark.parametrize("written_out", [False, True])
def test_the_state_of_a_delta_rule_has_heads(written_out: bool) -> None:
    """Normalised heads were called d_model, gated ones experts, and the axes of the state too."""

    def unit(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def read(state: jax.Array, key: jax.Array) -> jax.Array:
        if written_out:
            return (state * key[..., None]).sum(-2)
        return jnp.einsum("bhkv,bhk->bhv", state, key)

    def step(params: Any, state: jax.Array, tokens: jax.Array) -> Any:
        x = params["embedding"][tokens]
        y = unit(x)
        q, k, v = (jnp.einsum("bd,dhk->bhk", y, params[name]) for name in "qkv")
        q, k, v = jax.nn.silu(q), unit(jax.nn.silu(k)), jax.nn.silu(v)
        state = state + k[..., None] * (v - read(state, k))[..., None, :]
        gate = jax.nn.silu(jnp.einsum("bd,dhk->bhk", y, params["gate"]))
        x = x + jnp.einsum("bhk,hkd->bd", unit(read(state, q)) * gate, params["o"])
        return unit(x) @ params["embedding"].T, state

    shapes = {"embedding": (32, 16), "o": (4, 6, 16)} | dict.fromkeys("qkv", (16, 4, 6))
    params = {name: jnp.ones(shape) for name, shape in {**shapes, "gate": (16, 4, 6)}.items()}
    program = rewrite.trace(step, params, jnp.ones((2, 4, 6, 6)), jnp.zeros(2, jnp.int32))
    program = Pipeline.parse("normalize, recognize").run(program)
    axes, inputs = infer_axes(program), zip(program.inputs, program.graph.inputs)
    shown = {input_.name: axes.show(value) for input_, value in inputs}
    assert shown["state"] == "batch heads d_head d_head"
    assert {shown[f"params/{name}"] for name in ("q", "k", "v", "gate")} == {"d_model heads d_head"}
    assert shown["params/o"] == "heads d_head d_model"
