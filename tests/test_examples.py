"""The example decoders: what they compute, and that they are the models they are called after."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from examples import gpt, llama, palm

MODELS = (llama, palm, gpt)
TOY = llama.CONFIGS["toy"]
BATCH, LENGTH, CONTEXT = 2, 7, 12

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def toy(model: ModuleType, unrolled: bool = False) -> tuple[Any, Any, Any]:
    """The toy configuration, its parameters and an empty cache."""
    config = model.CONFIGS["toy"]
    params = model.init_params(config, jax.random.key(1), unrolled)
    return config, params, model.init_cache(config, BATCH, CONTEXT, unrolled)


def tokens_of(config: Any) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (BATCH, LENGTH), 0, config.vocab)


def token_by_token(model: ModuleType, config: Any, params: Any, cache: Any) -> tuple[Any, Any]:
    """All logits [B,T,V], and the cache, of one decode step after the other."""
    step = jax.jit(partial(model.decode_step, config))
    logits = []
    for token in tokens_of(config).T:
        one, cache = step(params, cache, token)
        logits.append(one)
    return jnp.stack(logits, axis=1), cache


def stacked(tree: Any) -> Any:
    """The scanned form of an unrolled tree's layers."""
    if isinstance(tree, list):
        return jax.tree.map(lambda *each: jnp.stack(each), *tree)
    return tree


def assert_close(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    same = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(same, found, expected)


@each_model
@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
def test_decode_equals_prefill(model: ModuleType, unrolled: bool) -> None:
    config, params, cache = toy(model, unrolled)
    decoded, by_token = token_by_token(model, config, params, cache)
    prefill = jax.jit(partial(model.prefill, config))
    for length in (1, 4, LENGTH):
        logits, at_once = prefill(params, cache, tokens_of(config)[:, :length])
        assert logits.dtype == jnp.float32
        assert logits.shape == (BATCH, config.vocab)
        assert_close(logits, decoded[:, length - 1])
    assert_close(at_once, by_token)
    assert at_once["position"] == LENGTH
    assert jnp.std(decoded) > 0.3


@each_model
def test_prefill_goes_on_where_it_stopped(model: ModuleType) -> None:
    config, params, cache = toy(model)
    tokens = tokens_of(config)
    whole = model.prefill(config, params, cache, tokens)
    _, half = model.prefill(config, params, cache, tokens[:, :3])
    assert_close(model.prefill(config, params, half, tokens[:, 3:]), whole)


@each_model
def test_scanned_equals_unrolled(model: ModuleType) -> None:
    config, params, cache = toy(model)
    _, params_list, cache_list = toy(model, unrolled=True)
    assert isinstance(params_list["layers"], list) and isinstance(cache_list["k"], list)
    np.testing.assert_equal(
        jax.tree.map(np.asarray, params | {"layers": stacked(params_list["layers"])}),
        jax.tree.map(np.asarray, params),
    )
    logits, cache = token_by_token(model, config, params, cache)
    same, cache_list = token_by_token(model, config, params_list, cache_list)
    assert_close(same, logits)
    assert_close({name: stacked(value) for name, value in cache_list.items()}, cache)


@each_model
def test_every_parameter_matters(model: ModuleType) -> None:
    """And so does each layer's slice of it."""
    config, params, cache = toy(model)
    tokens = tokens_of(config)
    spread = jax.grad(lambda params: jnp.std(model.prefill(config, params, cache, tokens)[0]))
    for path, slope in jax.tree.leaves_with_path(spread(params)):
        layers = slope.reshape(config.layers, -1) if len(path) > 1 else slope.reshape(1, -1)
        assert np.all(np.max(np.abs(layers), axis=1) > 1e-7), jax.tree_util.keystr(path)


@each_model
def test_later_tokens_and_other_sequences_do_not_matter(model: ModuleType) -> None:
    config, params, cache = toy(model)
    tokens = tokens_of(config)
    changed = tokens.at[1].add(1)
    before, after = (model.prefill(config, params, cache, t)[0] for t in (tokens, changed))
    assert_close(after[0], before[0])
    assert jnp.max(jnp.abs(after[1] - before[1])) > 0.1
    stale = cache | {name: jax.tree.map(lambda x: x + 9, cache[name]) for name in ("k", "v")}
    assert_close(model.prefill(config, params, stale, tokens)[0], before)


@each_model
def test_bfloat16_is_close_to_float32(model: ModuleType) -> None:
    config, params, cache = toy(model)
    narrow = replace(config, dtype="bfloat16")
    narrow_params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    tokens = tokens_of(config)
    wide, _ = model.prefill(config, params, cache, tokens)
    logits, new = model.prefill(
        narrow, narrow_params, model.init_cache(narrow, BATCH, CONTEXT), tokens
    )
    assert new["k"].dtype == new["v"].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert jnp.sqrt(jnp.mean(jnp.square(logits - wide))) < 0.05 * jnp.std(wide)


# ---- The models written once more, in float64 and as the papers write them: no cache, no batch ------


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One query at a time. q: [T,H,K], k and v: [T,G,K], head h reads group h * G // H."""
    mixed = np.zeros_like(q)
    for t, h in np.ndindex(q.shape[:2]):
        g = h * k.shape[1] // q.shape[1]
        weights = np.exp(k[: t + 1, g] @ q[t, h] / np.sqrt(q.shape[2]))
        mixed[t, h] = weights @ v[: t + 1, g] / np.sum(weights)
    return mixed


def turned(x: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions as complex numbers. x: [T,heads,K]; its halves are real and imaginary."""
    half = x.shape[2] // 2
    angles = np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half))
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None, :]
    return np.concatenate([z.real, z.imag], axis=2)


def rms(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gated = x @ gate
    return (gated / (1 + np.exp(-gated)) * (x @ up)) @ down


def llama_by_hand(params: Any, tokens: np.ndarray) -> np.ndarray:
    """From a Hugging Face checkpoint, by its names."""
    tensors = hugging_face(params)
    x = tensors["model.embed_tokens.weight"][tokens]
    for i in range(TOY.layers):
        w = {
            name.split(".")[-2]: tensor.T
            for name, tensor in tensors.items()
            if name.startswith(f"model.layers.{i}.")
        }
        normed = rms(x, w["input_layernorm"], 1e-5)
        q, k, v = (
            (normed @ w[name]).reshape(len(x), -1, TOY.d_head)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = attention(turned(q, 500_000.0), turned(k, 500_000.0), v)
        x = x + mixed.reshape(len(x), -1) @ w["o_proj"]
        normed = rms(x, w["post_attention_layernorm"], 1e-5)
        x = x + swiglu(normed, w["gate_proj"], w["up_proj"], w["down_proj"])
    return rms(x, tensors["model.norm.weight"], 1e-5) @ tensors["lm_head.weight"].T


def palm_by_hand(params: Any, tokens: np.ndarray) -> np.ndarray:
    x = params["embedding"][tokens]
    for w in params["layers"]:
        normed = rms(x, w["norm"], 1e-6)
        q = turned(np.tensordot(normed, w["wq"], 1), 10_000.0)
        k = turned((normed @ w["wk"])[:, None], 10_000.0)
        mixed = attention(q, k, (normed @ w["wv"])[:, None])
        ffn = swiglu(normed, w["w_gate"], w["w_up"], w["w_down"])
        x = x + np.tensordot(mixed, w["wo"], 2) + ffn
    return rms(x, params["final_norm"], 1e-6) @ params["embedding"].T / 8


def gpt_by_hand(params: Any, tokens: np.ndarray) -> np.ndarray:
    def norm(x: np.ndarray, w: Any, name: str) -> np.ndarray:
        centred = x - np.mean(x, axis=-1, keepdims=True)
        return rms(centred, w[name], 1e-5) + w[f"{name}_bias"]

    x = params["embedding"][tokens] + params["positions"][: len(tokens)]
    for w in params["layers"]:
        normed = norm(x, w, "attention_norm")
        q, k, v = (np.tensordot(normed, w[f"w{each}"], 1) + w[f"b{each}"] for each in "qkv")
        x = x + np.tensordot(attention(q, k, v), w["wo"], 2) + w["bo"]
        up = norm(x, w, "ffn_norm") @ w["w_up"] + w["b_up"]
        hidden = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + hidden @ w["w_down"] + w["b_down"]
    return norm(x, params, "final_norm") @ params["embedding"].T


@pytest.mark.parametrize(
    "model, by_hand",
    [(llama, llama_by_hand), (palm, palm_by_hand), (gpt, gpt_by_hand)],
    ids=lambda each: each.__name__,
)
def test_the_model_is_the_formula(model: ModuleType, by_hand: Any) -> None:
    """Every logit of token-by-token decoding."""
    config, params, cache = toy(model)
    decoded, _ = token_by_token(model, config, params, cache)
    exact = params if model is llama else toy(model, unrolled=True)[1]
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), exact)
    for found, tokens in zip(decoded, np.asarray(tokens_of(config))):
        assert_close(found, by_hand(exact, tokens))


# ---- Sizes -----------------------------------------------------------------------------------------


# In billions: Llama 3 from its model cards, PaLM from its Table 1, GPT-2 XL counted by hand.
@pytest.mark.parametrize(
    "model, name, billions",
    [
        (llama, "8b", 8.030),
        (llama, "70b", 70.554),
        (palm, "8b", 8.63),
        (palm, "62b", 62.50),
        (palm, "540b", 540.35),
        (palm, "540b_padded", 540.35 + 17.82),
        (gpt, "xl", 1.5576),
    ],
)
def test_full_size(model: ModuleType, name: str, billions: float) -> None:
    config = model.CONFIGS[name]
    params = jax.eval_shape(partial(model.init_params, config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e9 == pytest.approx(billions, 2e-4)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    cache = jax.eval_shape(partial(model.init_cache, config, 4, 64))
    tokens = jax.ShapeDtypeStruct((4,), jnp.int32)
    logits, new = jax.eval_shape(partial(model.decode_step, config), params, cache, tokens)
    assert (logits.shape, logits.dtype) == ((4, config.vocab), jnp.float32)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), cache
    )


def test_shapes_of_the_unrolled_form() -> None:
    config = llama.CONFIGS["8b"]
    params = jax.eval_shape(
        partial(llama.init_params, config, unrolled=True), jax.random.key(0)
    )
    cache = jax.eval_shape(partial(llama.init_cache, config, 4, 64, unrolled=True))
    assert [layer["wq"].shape for layer in params["layers"]] == [(4096, 32, 128)] * 32
    assert [keys.shape for keys in cache["k"]] == [(4, 64, 8, 128)] * 32


def test_learned_positions_run_out() -> None:
    with pytest.raises(ValueError, match="a context of 1025 exceeds the 1024 learned positions"):
        gpt.init_cache(gpt.CONFIGS["toy"], 1, 1025)


def test_a_multiquery_cache_has_no_axis_of_heads() -> None:
    assert palm.init_cache(palm.CONFIGS["toy"], 2, 5)["k"].shape == (3, 2, 5, 8)


@each_model
def test_an_example_is_short(model: ModuleType) -> None:
    lines = Path(model.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 100


# ---- Checkpoints ---------------------------------------------------------------------------------


def hugging_face(params: Any) -> dict[str, np.ndarray]:
    """A checkpoint of the toy Llama as Hugging Face writes it: matrices [out, in], heads flat."""
    tensors = {
        "model.embed_tokens.weight": params["embedding"],
        "model.norm.weight": params["final_norm"],
        "lm_head.weight": params["head"].T,
    }
    for i in range(TOY.layers):
        layer = {name: stack[i] for name, stack in params["layers"].items()}
        tensors |= {
            f"model.layers.{i}.{name}.weight": tensor
            for name, tensor in {
                "input_layernorm": layer["attention_norm"],
                "self_attn.q_proj": layer["wq"].reshape(64, 128).T,
                "self_attn.k_proj": layer["wk"].reshape(64, 64).T,
                "self_attn.v_proj": layer["wv"].reshape(64, 64).T,
                "self_attn.o_proj": layer["wo"].reshape(128, 64).T,
                "post_attention_layernorm": layer["ffn_norm"],
                "mlp.gate_proj": layer["w_gate"].T,
                "mlp.up_proj": layer["w_up"].T,
                "mlp.down_proj": layer["w_down"].T,
            }.items()
        }
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, Any, dict[str, np.ndarray]]:
    """A folder with a checkpoint in two files, its parameters, and its tensors."""
    params = llama.init_params(TOY, jax.random.key(3))
    tensors = hugging_face(params)
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = tmp_path / f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, file)
    return tmp_path, params, tensors


def test_a_checkpoint_is_read(checkpoint: tuple[Path, Any, Any]) -> None:
    folder, params, _ = checkpoint
    loaded = llama.load_params(folder, TOY)
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool(jnp.all(x == y)), loaded, params)
    assert jax.tree.all(same)
    cache, tokens = llama.init_cache(TOY, BATCH, CONTEXT), tokens_of(TOY)
    found, _ = llama.prefill(TOY, loaded, cache, tokens)
    expected, _ = llama.prefill(TOY, params, cache, tokens)
    np.testing.assert_array_equal(found, expected)


def test_a_bfloat16_checkpoint_in_one_file(tmp_path: Path) -> None:
    params = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), llama.init_params(TOY, jax.random.key(3))
    )
    save_file(hugging_face(params), tmp_path / "model.safetensors")
    config = replace(TOY, dtype="bfloat16")
    loaded = llama.load_params(str(tmp_path), config)
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool(jnp.all(x == y)), loaded, params)
    assert jax.tree.all(same)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj.weight", "lm_head.weight"])
def test_a_missing_tensor(tmp_path: Path, checkpoint: tuple[Path, Any, Any], name: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    tensors = {key: tensor for key, tensor in checkpoint[2].items() if key != name}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"damaged: {name} should have .*, found no such tensor"):
        llama.load_params(folder, TOY)


def test_a_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight .* no such tensor"):
        llama.load_params(tmp_path, TOY)


def test_a_wrong_shape(tmp_path: Path) -> None:
    tensors = hugging_face(llama.init_params(TOY, jax.random.key(3)))
    name = "model.layers.2.self_attn.o_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, tmp_path / "model.safetensors")
    message = rf"{name} should have the shape \[64, 128\], found \[128, 64\]"
    with pytest.raises(ValueError, match=message):
        llama.load_params(tmp_path, TOY)


def test_a_checkpoint_of_a_larger_model(checkpoint: tuple[Path, Any, Any]) -> None:
    """A tensor that nobody reads would mean another function than the checkpoint's."""
    with pytest.raises(ValueError, match=r"model\.layers\.2\.\S+ has no place in this model"):
        llama.load_params(checkpoint[0], replace(TOY, layers=2))
