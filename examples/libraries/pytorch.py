"""A Llama of Hugging Face's PyTorch classes, as it is: torchax traces it, its cache is the state.

    pip install 'shardwright[pytorch]'
    python examples/libraries/pytorch.py
    shardwright explain examples/libraries/pytorch.py:step --shape "params=init_params()" \
        --shape "cache=init_cache(8)" --shape "tokens=i32[8]" --target v5e:2x2
"""

import jax.numpy as jnp
import torchax
from torchax.interop import JittableModule
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from rewrite import auto_shard

CONTEXT = 32
# A small one with random weights; LlamaForCausalLM.from_pretrained(...) has those of others.
CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
)
MODULE = JittableModule(LlamaForCausalLM(CONFIG).eval())
TORCH = torchax.default_env()


def init_params():
    return {
        "weights": TORCH.t2j_copy(dict(MODULE.params)),
        "buffers": TORCH.t2j_copy(dict(MODULE.buffers)),
    }


def init_cache(batch, context=CONTEXT):
    heads, d_head = CONFIG.num_key_value_heads, CONFIG.head_dim
    empty = jnp.zeros((batch, heads, context, d_head))
    return {"layers": [(empty, empty)] * CONFIG.num_hidden_layers, "at": jnp.zeros((), jnp.int32)}


def step(params, cache, tokens):
    given = params, cache["layers"], tokens[:, None], cache["at"][None]
    params, layers, ids, at = TORCH.j2t_iso(given)
    weights, buffers = params["weights"], params["buffers"]
    held = StaticCache(CONFIG, max_cache_len=layers[0][0].shape[2])
    with TORCH:
        for layer, (layer.keys, layer.values) in zip(held.layers, layers):
            layer.is_initialized = True
        how = dict(cache_position=at, past_key_values=held, return_dict=False)
        logits, *_ = MODULE.functional_call("forward", weights, buffers, ids, **how)
        layers = [(layer.keys, layer.values) for layer in held.layers]
    logits, layers = TORCH.t2j_iso((logits, layers))
    return logits[:, 0], {"layers": layers, "at": cache["at"] + 1}


if __name__ == "__main__":
    params, cache, tokens = init_params(), init_cache(8), jnp.arange(8)
    sharded = auto_shard(step)  # on all devices there are; or auto_shard(step, "v5e:2x2")
    packed = sharded.prepare(params, cache, tokens)
    logits, state = sharded(packed, sharded.adapt(cache), tokens)
    print(sharded.explain())
