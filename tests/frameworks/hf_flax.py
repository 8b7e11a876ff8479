"""Decoders of Hugging Face transformers 4.x, its Flax linen classes. Nothing is downloaded."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import transformers
from case import Case, shape, shapes

_ALTERNATING = ["global", "local"]

# model -> (prefix of its classes, suffix of the one with a head, small and full configuration)
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # Grouped queries, half-split rope, RMSNorm, SwiGLU; full: Llama-2-70B.
    "llama": (
        "Llama",
        "ForCausalLM",
        dict(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=128,
        ),
        dict(
            vocab_size=32000,
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            max_position_embeddings=4096,
        ),
    ),
    # Grouped queries, sliding window; full: Mistral-7B.
    "mistral": (
        "Mistral",
        "ForCausalLM",
        dict(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=448,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=128,
            sliding_window=32,
        ),
        dict(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=32768,
            sliding_window=4096,
        ),
    ),
    # One key head, tied embedding, GeGLU; full: Gemma-7B, with as many key heads as queries.
    "gemma": (
        "Gemma",
        "ForCausalLM",
        dict(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=128,
        ),
        dict(
            vocab_size=256000,
            hidden_size=3072,
            intermediate_size=24576,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=256,
            max_position_embeddings=8192,
        ),
    ),
    # Interleaved rope on part of a head, parallel block; full: GPT-J-6B.
    "gptj": (
        "GPTJ",
        "ForCausalLM",
        dict(vocab_size=512, n_embd=128, n_layer=2, n_head=8, n_positions=64, rotary_dim=8),
        dict(vocab_size=50400, n_embd=4096, n_layer=28, n_head=16, n_positions=2048, rotary_dim=64),
    ),
    # Learned positions, attention global and local by turns; full: GPT-Neo-2.7B.
    "gpt_neo": (
        "GPTNeo",
        "ForCausalLM",
        dict(
            vocab_size=512,
            hidden_size=128,
            num_layers=2,
            num_heads=8,
            max_position_embeddings=64,
            window_size=32,
            attention_types=[[_ALTERNATING, 1]],
        ),
        dict(
            vocab_size=50257,
            hidden_size=2560,
            num_layers=32,
            num_heads=20,
            max_position_embeddings=2048,
            window_size=256,
            attention_types=[[_ALTERNATING, 16]],
        ),
    ),
    # Fused query, key, value; learned positions, tied embedding; full: GPT-2 XL.
    "gpt2": (
        "GPT2",
        "LMHeadModel",
        dict(vocab_size=512, n_embd=128, n_layer=2, n_head=8, n_positions=64),
        dict(vocab_size=50257, n_embd=1600, n_layer=48, n_head=25, n_positions=1024),
    ),
    # Fused query, key, value; ALiBi; full: BLOOM-7B1 (176B cannot be built: for a number of heads
    # that is no power of two transformers calls a function that JAX does not have).
    "bloom": (
        "Bloom",
        "ForCausalLM",
        dict(vocab_size=512, hidden_size=128, n_layer=2, n_head=8),
        dict(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32),
    ),
    # Learned positions from the third row on, ReLU; full: OPT-175B.
    "opt": (
        "OPT",
        "ForCausalLM",
        dict(
            vocab_size=512,
            hidden_size=128,
            word_embed_proj_dim=128,
            ffn_dim=512,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=64,
        ),
        dict(
            vocab_size=50272,
            hidden_size=12288,
            word_embed_proj_dim=12288,
            ffn_dim=49152,
            num_hidden_layers=96,
            num_attention_heads=96,
            max_position_embeddings=2048,
        ),
    ),
    # Sinusoidal positions, exact GELU; full: XGLM-7.5B.
    "xglm": (
        "XGLM",
        "ForCausalLM",
        dict(
            vocab_size=512,
            d_model=128,
            ffn_dim=512,
            num_layers=2,
            attention_heads=8,
            max_position_embeddings=64,
        ),
        dict(
            vocab_size=256008,
            d_model=4096,
            ffn_dim=16384,
            num_layers=32,
            attention_heads=32,
            max_position_embeddings=2048,
        ),
    ),
}


def build(
    model: str,
    *,
    size: str = "small",
    phase: str = "decode",
    batch: int | None = None,
    max_len: int | None = None,
    dtype: Any = None,
) -> Case:
    """`phase` decode, prefill, or generate: the library's own greedy loop, prefill and a while.

    small is float32, batch 2, with a cache of 64; full bfloat16, batch 16, and a cache of up to
    2048.
    """
    prefix, suffix, small, full = MODELS[model]
    config = getattr(transformers, f"{prefix}Config")(**(small if size == "small" else full))
    dtype = dtype or (jnp.float32 if size == "small" else jnp.bfloat16)
    longest = min(2048, getattr(config, "max_position_embeddings", 2048))
    batch = batch or (2 if size == "small" else 16)
    max_len = max_len or (64 if size == "small" else longest)
    net = getattr(transformers, f"Flax{prefix}{suffix}")(config, dtype=dtype, _do_init=False)

    def step(params: Any, cache: Any, tokens: jax.Array, positions: Any = None) -> Any:
        mask = jnp.ones((batch, max_len), jnp.int32)  # as `generate` gives it
        more = {} if positions is None else {"position_ids": positions}
        out = net(tokens, attention_mask=mask, params=params, past_key_values=cache, **more)
        return out.logits, out.past_key_values

    def generate(params: Any, tokens: jax.Array) -> jax.Array:
        return net.generate(
            tokens,
            params=params,
            max_length=max_len,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        ).sequences

    weights = jax.eval_shape(lambda: net.init_weights(jax.random.key(0), (1, 1)))
    params = shapes(weights, dtype)
    tokens = shape(batch, 1 if phase == "decode" else max_len // 2)
    if phase == "generate":
        return Case(generate, config.vocab_size, params, tokens)
    cache = jax.eval_shape(lambda: net.init_cache(batch, max_len))  # some keep it in float32
    takes_positions = "position_ids" in inspect.signature(net.__call__).parameters
    positions = tokens if takes_positions else None
    return Case(step, config.vocab_size, params, tokens, cache, positions)
