"""Decoders of Google's Tunix: Flax NNX, layers written out. Nothing is downloaded.

`llama3_8b_remat` wraps attention and feed-forward unit of every layer in `jax.checkpoint`, which
the library leaves on for inference. A suffix `_w8` or `_w8a8` has Qwix quantise the model: int8
weights, and int8 activations; Qwix itself can do so for Llama only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from case import Case, shape, shapes
from flax import nnx
from tunix.models.gemma import model as gemma
from tunix.models.gemma3 import model as gemma3
from tunix.models.llama3 import model as llama3
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen3 import model as qwen3

_SMALL = dict(num_layers=2, embed_dim=128, hidden_dim=352, num_heads=8, head_dim=16, num_kv_heads=2)
_LLAMA, _QWEN3 = llama3.ModelConfig, qwen3.ModelConfig

# model -> (class, full configuration, what the small one has besides _SMALL, what both have)
MODELS: dict[str, tuple[Any, Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "llama3_70b": (llama3.Llama3, _LLAMA.llama3p1_70b, {}, {}),
    "llama3_405b": (
        llama3.Llama3,
        _LLAMA.llama3p1_405b,
        dict(num_heads=16, num_kv_heads=8, head_dim=8),
        {},
    ),
    "llama3_8b_remat": (
        llama3.Llama3,
        _LLAMA.llama3p1_8b,
        {},
        dict(remat_config=llama3.RematConfig.BLOCK),
    ),
    "gemma_2b": (gemma.Gemma, gemma.ModelConfig.gemma_2b, dict(num_kv_heads=1), {}),
    "gemma_7b": (gemma.Gemma, gemma.ModelConfig.gemma_7b, dict(num_kv_heads=8), {}),
    "gemma2_9b": (gemma.Gemma, gemma.ModelConfig.gemma2_9b, dict(sliding_window_size=32), {}),
    "gemma3_27b": (
        gemma3.Gemma3,
        gemma3.ModelConfig.gemma3_27b_it,
        dict(num_layers=6, sliding_window_size=32),  # the sixth layer is the first global one
        {},
    ),
    "qwen2p5_7b": (qwen2.Qwen2, qwen2.ModelConfig.qwen2p5_7b, {}, {}),
    "qwen3_32b": (qwen3.Qwen3, _QWEN3.qwen3_32b, {}, {}),
    "qwen3_30b_a3b": (
        qwen3.Qwen3,
        _QWEN3.qwen3_30b_a3b,
        dict(hidden_dim=64, num_experts=4, num_experts_per_tok=2),
        {},
    ),
}
QUANTIZED = ("llama3_70b_w8", "llama3_70b_w8a8", "llama3_8b_remat_w8", "llama3_8b_remat_w8a8")


def build(
    model: str,
    *,
    size: str = "small",
    phase: str = "decode",
    batch: int | None = None,
    max_len: int | None = None,
    dtype: Any = None,
) -> Case:
    """`phase` decode or prefill.

    small is float32, batch 2, with a cache of 64; full bfloat16, batch 16, and a cache of 2048.
    """
    base, _, quantized = model.partition("_w8")
    dtype = dtype or (jnp.float32 if size == "small" else jnp.bfloat16)
    config = _config(base, size, dtype)
    vocab = getattr(config, "vocab_size", None) or config.num_embed
    batch = batch or (2 if size == "small" else 16)
    max_len = max_len or (64 if size == "small" else 2048)

    def make() -> nnx.Module:
        net = MODELS[base][0](config, rngs=nnx.Rngs(0))
        return _quantize(net, quantized == "a8") if "_w8" in model else net

    definition, state = nnx.split(nnx.eval_shape(make))

    def step(params: Any, cache: Any, tokens: jax.Array, positions: jax.Array) -> Any:
        weights = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(weights, params)
        mask = jnp.arange(max_len) <= positions[..., None]
        return nnx.merge(definition, weights)(tokens, positions, cache, mask)

    params = shapes(nnx.to_pure_dict(state), dtype)
    keys = shape(batch, max_len, config.num_kv_heads, config.head_dim, dtype=dtype)
    layer = {"k": keys, "v": keys, "end_index": shape(batch)}
    cache = {f"layer_{i}": layer for i in range(config.num_layers)}
    tokens = shape(batch, 1 if phase == "decode" else max_len // 2)
    return Case(step, vocab, params, tokens, cache, positions=tokens)


def _config(base: str, size: str, dtype: Any) -> Any:
    _, make, small, both = MODELS[base]
    full = make()
    fields = {field.name for field in dataclasses.fields(full)}
    changes = dict(both) | {name: dtype for name in ("dtype", "param_dtype") if name in fields}
    if size == "small":
        vocab = "vocab_size" if "vocab_size" in fields else "num_embed"
        changes |= {**_SMALL, vocab: 512, **small}
    return dataclasses.replace(full, **changes)


def _quantize(net: nnx.Module, activations: bool) -> nnx.Module:
    rule = qwix.QuantizationRule(weight_qtype=jnp.int8, act_qtype=jnp.int8 if activations else None)
    ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)
    return qwix.quantize_model(net, qwix.PtqProvider([rule]), ids, ids, None, mask)
