"""The example decoders: what they compute, and that they are the models they are called after."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from examples import checkpoint, gpt, llama, palm
from tests.kit import assert_close

MODELS = (llama, palm, gpt)
TOY = llama.CONFIGS["toy"]
BATCH, LENGTH, CONTEXT = 2, 8, 12

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


@cache
def toy(model: ModuleType, unrolled: bool = False) -> tuple[Any, Any, Any]:
    """The toy configuration, its parameters and an empty cache."""
    config = model.CONFIGS["toy"]
    params = model.init_params(config, jax.random.key(1), unrolled)
    return config, params, model.init_cache(config, BATCH, CONTEXT, unrolled)


@cache
def prefill_of(model: ModuleType) -> Any:
    return jax.jit(partial(model.prefill, model.CONFIGS["toy"]))


def tokens_of(config: Any) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (BATCH, LENGTH), 0, config.vocab)


@cache
def decoded(model: ModuleType, unrolled: bool = False) -> tuple[jax.Array, Any]:
    """All logits [B,T,V], and the cache, of one decode step after the other."""
    config, params, cache = toy(model, unrolled)
    step = jax.jit(partial(model.decode_step, config))
    logits = []
    for token in tokens_of(config).T:
        one, cache = step(params, cache, token)
        logits.append(one)
    return jnp.stack(logits, axis=1), cache


def stacked(tree: Any) -> Any:
    """The scanned form of an unrolled tree: its lists of layers stacked."""
    layers = {name: part for name, part in tree.items() if isinstance(part, list)}
    return tree | {
        name: jax.tree.map(lambda *each: jnp.stack(each), *part) for name, part in layers.items()
    }


def assert_identical(found: Any, expected: Any) -> None:
    def same(x: jax.Array, y: jax.Array) -> None:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)

    jax.tree.map(same, found, expected)


@each_model
@pytest.mark.parametrize("unrolled", [False, True], ids=["scanned", "unrolled"])
def test_decode_equals_prefill(model: ModuleType, unrolled: bool) -> None:
    config, params, cache = toy(model, unrolled)
    logits, at_once = prefill_of(model)(params, cache, tokens_of(config))
    every_logit, by_token = decoded(model, unrolled)
    assert logits.dtype == jnp.float32
    assert logits.shape == (BATCH, config.vocab)
    assert_close(logits, every_logit[:, -1])
    assert_close(at_once, by_token)
    assert at_once["position"] == LENGTH


@each_model
def test_prefill_goes_on_where_it_stopped(model: ModuleType) -> None:
    config, params, cache = toy(model)
    tokens = tokens_of(config)
    logits, half = prefill_of(model)(params, cache, tokens[:, :4])
    assert_close(logits, decoded(model)[0][:, 3])
    logits, whole = prefill_of(model)(params, half, tokens[:, 4:])
    assert_close((logits, whole), (decoded(model)[0][:, -1], decoded(model)[1]))


@each_model
def test_scanned_equals_unrolled(model: ModuleType) -> None:
    assert isinstance(toy(model, unrolled=True)[1]["layers"], list)
    assert isinstance(toy(model, unrolled=True)[2]["v"], list)
    assert_identical(stacked(toy(model, unrolled=True)[1]), toy(model)[1])
    logits, cache = decoded(model, unrolled=True)
    assert_close((logits, stacked(cache)), decoded(model))


@each_model
def test_a_sequence_sees_its_own_past_only(model: ModuleType) -> None:
    """Neither the other sequence of the batch nor what the cache holds beyond its position."""
    config, params, cache = toy(model)
    tokens = tokens_of(config)
    before, _ = prefill_of(model)(params, cache, tokens)
    after, _ = prefill_of(model)(params, cache, tokens.at[1].add(1))
    assert_close(after[0], before[0])
    assert jnp.max(jnp.abs(after[1] - before[1])) > 0.1
    stale = cache | {"k": cache["k"] + 9, "v": cache["v"] + 9}
    assert_close(prefill_of(model)(params, stale, tokens)[0], before)


@each_model
def test_bfloat16_is_close_to_float32(model: ModuleType) -> None:
    config, params, cache = toy(model)
    config = replace(config, dtype="bfloat16")
    params, cache = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, (params, cache)
    )
    prefill = jax.jit(partial(model.prefill, config))
    logits, new = prefill(params, cache, tokens_of(config))
    exact = decoded(model)[0][:, -1]
    assert new["k"].dtype == new["v"].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert jnp.std(logits - exact) < 0.05 * jnp.std(exact)


# The models once more, in float64 and as the papers write them: no cache, no batch.


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
    config, params, _ = toy(model, unrolled=True)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for logits, tokens in zip(decoded(model)[0], np.asarray(tokens_of(config))):
        assert_close(logits, by_hand(exact, tokens).astype("float32"))
        assert np.std(logits) > 0.3


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
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) / 1e9 == pytest.approx(billions, rel=5e-4)
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
    cache = jax.eval_shape(partial(model.init_cache, config, 4, 64))
    tokens = jax.ShapeDtypeStruct((4,), jnp.int32)
    logits, new = jax.eval_shape(partial(model.decode_step, config), params, cache, tokens)
    assert (logits.shape, logits.dtype) == ((4, config.vocab), jnp.float32)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), cache
    )


def test_shapes_of_the_unrolled_form() -> None:
    config = llama.CONFIGS["8b"]
    params = jax.eval_shape(partial(llama.init_params, config, unrolled=True), jax.random.key(0))
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


def hugging_face(params: Any) -> dict[str, np.ndarray]:
    """A checkpoint of the toy Llama as Hugging Face writes it: matrices [out, in], heads flat."""
    tensors = {
        "model.embed_tokens.weight": params["embedding"],
        "model.norm.weight": params["final_norm"],
        "lm_head.weight": params["head"].T,
    }
    for i, layer in enumerate(params["layers"]):
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


def save(tensors: dict[str, np.ndarray], folder: Path, files: int = 1) -> Path:
    """Writes the tensors, dealt out over several files."""
    folder.mkdir(exist_ok=True)
    for i in range(files):
        part = {name: tensors[name] for name in sorted(tensors)[i::files]}
        save_file(part, folder / f"model-{i + 1:05}-of-{files:05}.safetensors")
    return folder


def loaded(place: Path | str, config: llama.Config = TOY) -> Any:
    return checkpoint.load_params(place, llama.PARAMS, config)


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_read(tmp_path: Path, files: int, dtype: str) -> None:
    _, params, cache = toy(llama, unrolled=True)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    folder = save(hugging_face(params), tmp_path, files)
    assert_identical(loaded(folder, replace(TOY, dtype=dtype)), stacked(params))


def save_gguf(params: Any, path: Path, weights: str = "F32", tied: bool = False) -> Path:
    """The unrolled toy Llama as GGUF has it: matrices quantised, neighbours of q and k rotated."""

    def neighbours(tensor: np.ndarray) -> np.ndarray:
        halves = tensor.reshape(-1, 2, TOY.d_head // 2, TOY.d_model)
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, TOY.layers)
    writer = gguf.GGUFWriter(path, "llama")
    for name, tensor in hugging_face(params).items():
        if tied and name == "lm_head.weight":
            continue
        tensor = neighbours(tensor) if name.endswith(("q_proj.weight", "k_proj.weight")) else tensor
        kind = gguf.GGMLQuantizationType[weights if tensor.ndim > 1 else "F32"]
        stored = gguf.quantize(tensor, kind)
        writer.add_tensor(names.get_name(name, (".weight",)), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# The largest error of a weight, as a part of the largest weight of its block of 32.
@pytest.mark.parametrize(
    "weights, error", [("F32", 0), ("F16", 5e-4), ("Q8_0", 0.005), ("Q4_1", 0.07)]
)
def test_a_gguf_file_is_read(tmp_path: Path, weights: str, error: float) -> None:
    params = toy(llama, unrolled=True)[1]
    read = loaded(save_gguf(params, tmp_path / "toy.gguf", weights))

    def near(found: jax.Array, wanted: jax.Array) -> None:
        largest = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=error * largest)

    jax.tree.map(near, read, stacked(params))


def test_a_gguf_file_without_a_head_has_the_embedding_as_its_head(tmp_path: Path) -> None:
    read = loaded(save_gguf(toy(llama, unrolled=True)[1], tmp_path / "tied.gguf", tied=True))
    np.testing.assert_array_equal(read["head"], read["embedding"].T)


def test_a_gguf_file_of_another_model(tmp_path: Path) -> None:
    path = save_gguf(toy(llama, unrolled=True)[1], tmp_path / "toy.gguf")
    message = r"blk\.2\.\w+\.weight has no place in this model; does the config fit?"
    with pytest.raises(ValueError, match=message):
        loaded(path, replace(TOY, layers=2))


def test_a_loaded_model_computes_the_same(tmp_path: Path) -> None:
    params = loaded(str(save(hugging_face(toy(llama, unrolled=True)[1]), tmp_path)))
    logits, _ = prefill_of(llama)(params, toy(llama)[2], tokens_of(TOY))
    assert_close(logits, decoded(llama)[0][:, -1])


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj.weight", "lm_head.weight"])
def test_a_missing_tensor(tmp_path: Path, name: str) -> None:
    tensors = hugging_face(toy(llama, unrolled=True)[1])
    del tensors[name]
    message = rf"{tmp_path}: {name} should have the shape \[\d+, 64\], found no such tensor"
    with pytest.raises(ValueError, match=message):
        loaded(save(tensors, tmp_path))


def test_a_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight .* no such tensor"):
        loaded(tmp_path)


def test_a_wrong_shape(tmp_path: Path) -> None:
    tensors = hugging_face(toy(llama, unrolled=True)[1])
    name = "model.layers.2.self_attn.o_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    message = rf"{name} should have the shape \[64, 128\], found \[128, 64\]"
    with pytest.raises(ValueError, match=message):
        loaded(save(tensors, tmp_path))


def test_a_tensor_without_a_place(tmp_path: Path) -> None:
    """A checkpoint of a deeper model, or one with biases, is another function."""
    tensors = hugging_face(toy(llama, unrolled=True)[1])
    name = "model.layers.0.self_attn.q_proj.bias"
    tensors[name] = np.zeros(128, np.float32)
    with pytest.raises(ValueError, match=f"{name} has no place in this model"):
        loaded(save(tensors, tmp_path))
