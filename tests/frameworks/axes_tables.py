"""The axes of every parameter and every cache of the cases, written from the models' definitions.

A line is `path: axes`; * stands for a layer's number. Axes are written as `Axes.show` does:
dimension by dimension, major first inside parentheses, 1 for a dimension of size one.
`(kv_heads q_per_kv d_head)` are the queries of grouped attention; with a key head per query the
heads are `heads`, and a single key head is no axis at all. `positions` are the rows of a learned
table, `qkv` and `kv` what a fused projection is cut along.
"""

from __future__ import annotations

_LLAMA = """
params/model/embed_tokens/embedding: vocab d_model
params/model/layers/*/input_layernorm/weight: d_model
params/model/layers/*/self_attn/q_proj/kernel: d_model (kv_heads q_per_kv d_head)
params/model/layers/*/self_attn/k_proj/kernel: d_model (kv_heads d_head)
params/model/layers/*/self_attn/v_proj/kernel: d_model (kv_heads d_head)
params/model/layers/*/self_attn/o_proj/kernel: (kv_heads q_per_kv d_head) d_model
params/model/layers/*/post_attention_layernorm/weight: d_model
params/model/layers/*/mlp/gate_proj/kernel: d_model d_ff
params/model/layers/*/mlp/up_proj/kernel: d_model d_ff
params/model/layers/*/mlp/down_proj/kernel: d_ff d_model
params/model/norm/weight: d_model
params/lm_head/kernel: d_model vocab
cache/model/layers/*/self_attn/cached_key: batch context kv_heads d_head
cache/model/layers/*/self_attn/cached_value: batch context kv_heads d_head
cache/model/layers/*/self_attn/cache_index:
"""

HF_FLAX = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    # One key head; the embedding is the head too.
    "gemma": """
params/model/embed_tokens/embedding: vocab d_model
params/model/layers/*/input_layernorm/weight: d_model
params/model/layers/*/self_attn/q_proj/kernel: d_model (heads d_head)
params/model/layers/*/self_attn/k_proj/kernel: d_model d_head
params/model/layers/*/self_attn/v_proj/kernel: d_model d_head
params/model/layers/*/self_attn/o_proj/kernel: (heads d_head) d_model
params/model/layers/*/post_attention_layernorm/weight: d_model
params/model/layers/*/mlp/gate_proj/kernel: d_model d_ff
params/model/layers/*/mlp/up_proj/kernel: d_model d_ff
params/model/layers/*/mlp/down_proj/kernel: d_ff d_model
params/model/norm/weight: d_model
cache/model/layers/*/self_attn/cached_key: batch context 1 d_head
cache/model/layers/*/self_attn/cached_value: batch context 1 d_head
cache/model/layers/*/self_attn/cache_index:
""",
    "gptj": """
params/transformer/wte/embedding: vocab d_model
params/transformer/h/*/ln_1/scale: d_model
params/transformer/h/*/ln_1/bias: d_model
params/transformer/h/*/attn/q_proj/kernel: d_model (heads d_head)
params/transformer/h/*/attn/k_proj/kernel: d_model (heads d_head)
params/transformer/h/*/attn/v_proj/kernel: d_model (heads d_head)
params/transformer/h/*/attn/out_proj/kernel: (heads d_head) d_model
params/transformer/h/*/mlp/fc_in/kernel: d_model d_ff
params/transformer/h/*/mlp/fc_in/bias: d_ff
params/transformer/h/*/mlp/fc_out/kernel: d_ff d_model
params/transformer/h/*/mlp/fc_out/bias: d_model
params/transformer/ln_f/scale: d_model
params/transformer/ln_f/bias: d_model
params/lm_head/kernel: d_model vocab
params/lm_head/bias: vocab
cache/transformer/h/*/attn/cached_key: batch context heads d_head
cache/transformer/h/*/attn/cached_value: batch context heads d_head
cache/transformer/h/*/attn/cache_index:
""",
    "gpt_neo": """
params/transformer/wte/embedding: vocab d_model
params/transformer/wpe/embedding: positions d_model
params/transformer/h/*/ln_1/scale: d_model
params/transformer/h/*/ln_1/bias: d_model
params/transformer/h/*/attn/attention/q_proj/kernel: d_model (heads d_head)
params/transformer/h/*/attn/attention/k_proj/kernel: d_model (heads d_head)
params/transformer/h/*/attn/attention/v_proj/kernel: d_model (heads d_head)
params/transformer/h/*/attn/attention/out_proj/kernel: (heads d_head) d_model
params/transformer/h/*/attn/attention/out_proj/bias: d_model
params/transformer/h/*/ln_2/scale: d_model
params/transformer/h/*/ln_2/bias: d_model
params/transformer/h/*/mlp/c_fc/kernel: d_model d_ff
params/transformer/h/*/mlp/c_fc/bias: d_ff
params/transformer/h/*/mlp/c_proj/kernel: d_ff d_model
params/transformer/h/*/mlp/c_proj/bias: d_model
params/transformer/ln_f/scale: d_model
params/transformer/ln_f/bias: d_model
cache/transformer/h/*/attn/attention/cached_key: batch context heads d_head
cache/transformer/h/*/attn/attention/cached_value: batch context heads d_head
cache/transformer/h/*/attn/attention/cache_index:
""",
    # FlaxConv1D keeps its kernels as [features out, features in].
    "gpt2": """
params/transformer/wte/embedding: vocab d_model
params/transformer/wpe/embedding: positions d_model
params/transformer/h/*/ln_1/scale: d_model
params/transformer/h/*/ln_1/bias: d_model
params/transformer/h/*/attn/c_attn/kernel: (qkv heads d_head) d_model
params/transformer/h/*/attn/c_attn/bias: (qkv heads d_head)
params/transformer/h/*/attn/c_proj/kernel: d_model (heads d_head)
params/transformer/h/*/attn/c_proj/bias: d_model
params/transformer/h/*/ln_2/scale: d_model
params/transformer/h/*/ln_2/bias: d_model
params/transformer/h/*/mlp/c_fc/kernel: d_ff d_model
params/transformer/h/*/mlp/c_fc/bias: d_ff
params/transformer/h/*/mlp/c_proj/kernel: d_model d_ff
params/transformer/h/*/mlp/c_proj/bias: d_model
params/transformer/ln_f/scale: d_model
params/transformer/ln_f/bias: d_model
cache/transformer/h/*/attn/cached_key: batch context heads d_head
cache/transformer/h/*/attn/cached_value: batch context heads d_head
cache/transformer/h/*/attn/cache_index:
""",
    # The fused product is cut into heads first, and each head into query, key and value.
    "bloom": """
params/transformer/word_embeddings/embedding: vocab d_model
params/transformer/word_embeddings_layernorm/scale: d_model
params/transformer/word_embeddings_layernorm/bias: d_model
params/transformer/h/*/input_layernorm/scale: d_model
params/transformer/h/*/input_layernorm/bias: d_model
params/transformer/h/*/self_attention/query_key_value/kernel: d_model (heads qkv d_head)
params/transformer/h/*/self_attention/query_key_value/bias: (heads qkv d_head)
params/transformer/h/*/self_attention/dense/kernel: (heads d_head) d_model
params/transformer/h/*/self_attention/dense/bias: d_model
params/transformer/h/*/post_attention_layernorm/scale: d_model
params/transformer/h/*/post_attention_layernorm/bias: d_model
params/transformer/h/*/mlp/dense_h_to_4h/kernel: d_model d_ff
params/transformer/h/*/mlp/dense_h_to_4h/bias: d_ff
params/transformer/h/*/mlp/dense_4h_to_h/kernel: d_ff d_model
params/transformer/h/*/mlp/dense_4h_to_h/bias: d_model
params/transformer/ln_f/scale: d_model
params/transformer/ln_f/bias: d_model
cache/transformer/h/*/self_attention/cached_key: batch context heads d_head
cache/transformer/h/*/self_attention/cached_value: batch context heads d_head
cache/transformer/h/*/self_attention/cache_index:
""",
    "opt": """
params/model/decoder/embed_tokens/embedding: vocab d_model
params/model/decoder/embed_positions/embedding: positions d_model
params/model/decoder/layers/*/self_attn_layer_norm/scale: d_model
params/model/decoder/layers/*/self_attn_layer_norm/bias: d_model
params/model/decoder/layers/*/self_attn/q_proj/kernel: d_model (heads d_head)
params/model/decoder/layers/*/self_attn/q_proj/bias: (heads d_head)
params/model/decoder/layers/*/self_attn/k_proj/kernel: d_model (heads d_head)
params/model/decoder/layers/*/self_attn/k_proj/bias: (heads d_head)
params/model/decoder/layers/*/self_attn/v_proj/kernel: d_model (heads d_head)
params/model/decoder/layers/*/self_attn/v_proj/bias: (heads d_head)
params/model/decoder/layers/*/self_attn/out_proj/kernel: (heads d_head) d_model
params/model/decoder/layers/*/self_attn/out_proj/bias: d_model
params/model/decoder/layers/*/final_layer_norm/scale: d_model
params/model/decoder/layers/*/final_layer_norm/bias: d_model
params/model/decoder/layers/*/fc1/kernel: d_model d_ff
params/model/decoder/layers/*/fc1/bias: d_ff
params/model/decoder/layers/*/fc2/kernel: d_ff d_model
params/model/decoder/layers/*/fc2/bias: d_model
params/model/decoder/final_layer_norm/scale: d_model
params/model/decoder/final_layer_norm/bias: d_model
cache/model/decoder/layers/*/self_attn/cached_key: batch context heads d_head
cache/model/decoder/layers/*/self_attn/cached_value: batch context heads d_head
cache/model/decoder/layers/*/self_attn/cache_index:
""",
    # Its positions are sinusoids, which are no parameter.
    "xglm": """
params/model/embed_tokens/embedding: vocab d_model
params/model/layers/*/self_attn_layer_norm/scale: d_model
params/model/layers/*/self_attn_layer_norm/bias: d_model
params/model/layers/*/self_attn/q_proj/kernel: d_model (heads d_head)
params/model/layers/*/self_attn/q_proj/bias: (heads d_head)
params/model/layers/*/self_attn/k_proj/kernel: d_model (heads d_head)
params/model/layers/*/self_attn/k_proj/bias: (heads d_head)
params/model/layers/*/self_attn/v_proj/kernel: d_model (heads d_head)
params/model/layers/*/self_attn/v_proj/bias: (heads d_head)
params/model/layers/*/self_attn/out_proj/kernel: (heads d_head) d_model
params/model/layers/*/self_attn/out_proj/bias: d_model
params/model/layers/*/final_layer_norm/scale: d_model
params/model/layers/*/final_layer_norm/bias: d_model
params/model/layers/*/fc1/kernel: d_model d_ff
params/model/layers/*/fc1/bias: d_ff
params/model/layers/*/fc2/kernel: d_ff d_model
params/model/layers/*/fc2/bias: d_model
params/model/layer_norm/scale: d_model
params/model/layer_norm/bias: d_model
cache/model/layers/*/self_attn/cached_key: batch context heads d_head
cache/model/layers/*/self_attn/cached_value: batch context heads d_head
cache/model/layers/*/self_attn/cache_index:
""",
}

_GROUPED_CACHE = """
cache/layer_*/k: batch context kv_heads d_head
cache/layer_*/v: batch context kv_heads d_head
cache/layer_*/end_index: batch
"""

_DENSE_FFN = """
params/layers/*/mlp/gate_proj/kernel: d_model d_ff
params/layers/*/mlp/up_proj/kernel: d_model d_ff
params/layers/*/mlp/down_proj/kernel: d_ff d_model
"""

_EXPERTS = """
params/layers/*/mlp/router/kernel: d_model experts
params/layers/*/mlp/gate_proj: experts d_model d_ff
params/layers/*/mlp/up_proj: experts d_model d_ff
params/layers/*/mlp/down_proj: experts d_ff d_model
"""

_LLAMA3 = f"""
params/embedder/input_embedding: vocab d_model
params/layers/*/input_layernorm/w: d_model
params/layers/*/attn/q_proj/w: d_model (kv_heads q_per_kv) d_head
params/layers/*/attn/k_proj/w: d_model kv_heads d_head
params/layers/*/attn/v_proj/w: d_model kv_heads d_head
params/layers/*/attn/o_proj/w: (kv_heads q_per_kv) d_head d_model
params/layers/*/post_attention_layernorm/w: d_model
params/final_norm/w: d_model
params/lm_head/w: d_model vocab
{_GROUPED_CACHE}"""

# Integers lie as the weights that they stand for; a scale has what the product does not sum over.
_LLAMA3_INT8 = f"""
params/embedder/input_embedding: vocab d_model
params/layers/*/input_layernorm/w: d_model
params/layers/*/attn/q_proj/w/array/qvalue: d_model (kv_heads q_per_kv) d_head
params/layers/*/attn/q_proj/w/array/scale: 1 (kv_heads q_per_kv) d_head
params/layers/*/attn/k_proj/w/array/qvalue: d_model kv_heads d_head
params/layers/*/attn/k_proj/w/array/scale: 1 kv_heads d_head
params/layers/*/attn/v_proj/w/array/qvalue: d_model kv_heads d_head
params/layers/*/attn/v_proj/w/array/scale: 1 kv_heads d_head
params/layers/*/attn/o_proj/w/array/qvalue: (kv_heads q_per_kv) d_head d_model
params/layers/*/attn/o_proj/w/array/scale: 1 1 d_model
params/layers/*/post_attention_layernorm/w: d_model
params/layers/*/mlp/gate_proj/kernel/array/qvalue: d_model d_ff
params/layers/*/mlp/gate_proj/kernel/array/scale: 1 d_ff
params/layers/*/mlp/up_proj/kernel/array/qvalue: d_model d_ff
params/layers/*/mlp/up_proj/kernel/array/scale: 1 d_ff
params/layers/*/mlp/down_proj/kernel/array/qvalue: d_ff d_model
params/layers/*/mlp/down_proj/kernel/array/scale: 1 d_model
params/final_norm/w: d_model
params/lm_head/w/array/qvalue: d_model vocab
params/lm_head/w/array/scale: 1 vocab
{_GROUPED_CACHE}"""

_GEMMA = f"""
params/embedder/input_embedding: vocab d_model
params/layers/*/pre_attention_norm/scale: d_model
params/layers/*/pre_ffw_norm/scale: d_model
params/final_norm/scale: d_model
{_DENSE_FFN}"""

_GROUPED_GEMMA = f"""
{_GEMMA}
params/layers/*/attn/q_einsum/w: (kv_heads q_per_kv) d_model d_head
params/layers/*/attn/kv_einsum/w: kv kv_heads d_model d_head
params/layers/*/attn/attn_vec_einsum/w: (kv_heads q_per_kv) d_head d_model
{_GROUPED_CACHE}"""

_QWEN3 = f"""
{_LLAMA3}
params/layers/*/attn/q_norm/w: d_head
params/layers/*/attn/k_norm/w: d_head
"""

TUNIX = {
    "llama3_70b": _LLAMA3 + _DENSE_FFN,
    "llama3_405b": _LLAMA3 + _DENSE_FFN,
    "llama3_8b_remat": _LLAMA3 + _DENSE_FFN,
    "llama3_70b_w8": _LLAMA3_INT8,
    "llama3_70b_w8a8": _LLAMA3_INT8,
    "llama3_8b_remat_w8": _LLAMA3_INT8,
    "llama3_8b_remat_w8a8": _LLAMA3_INT8,
    # One key head; keys and values come from one array.
    "gemma_2b": f"""
{_GEMMA}
params/layers/*/attn/q_einsum/w: heads d_model d_head
params/layers/*/attn/kv_einsum/w: kv 1 d_model d_head
params/layers/*/attn/attn_vec_einsum/w: heads d_head d_model
cache/layer_*/k: batch context 1 d_head
cache/layer_*/v: batch context 1 d_head
cache/layer_*/end_index: batch
""",
    # A key head per query; all three come from one array.
    "gemma_7b": f"""
{_GEMMA}
params/layers/*/attn/qkv_einsum/w: qkv heads d_model d_head
params/layers/*/attn/attn_vec_einsum/w: heads d_head d_model
cache/layer_*/k: batch context heads d_head
cache/layer_*/v: batch context heads d_head
cache/layer_*/end_index: batch
""",
    "gemma2_9b": f"""
{_GROUPED_GEMMA}
params/layers/*/post_attn_norm/scale: d_model
params/layers/*/post_ffw_norm/scale: d_model
""",
    "gemma3_27b": f"""
{_GROUPED_GEMMA}
params/layers/*/post_attention_norm/scale: d_model
params/layers/*/post_ffw_norm/scale: d_model
params/layers/*/attn/_query_norm/scale: d_head
params/layers/*/attn/_key_norm/scale: d_head
""",
    "qwen2p5_7b": f"""
{_LLAMA3}
{_DENSE_FFN}
params/layers/*/attn/q_bias: (kv_heads q_per_kv d_head)
params/layers/*/attn/k_bias: (kv_heads d_head)
params/layers/*/attn/v_bias: (kv_heads d_head)
""",
    "qwen3_32b": _QWEN3 + _DENSE_FFN,
    "qwen3_30b_a3b": _QWEN3 + _EXPERTS,
}


def axes_of(table: str) -> dict[str, str]:
    """path -> axes."""
    lines = (line.partition(":") for line in table.splitlines() if line)
    return {path: axes.strip() for path, _, axes in lines}
