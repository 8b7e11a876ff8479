"""A Llama of Hugging Face's Flax classes, as it is: the class is the decoder, its cache the state.

    python examples/libraries/hugging_face.py
    shardwright explain examples/libraries/hugging_face.py:step --shape "params=init_params()" \
        --shape "cache=init_cache(8)" --shape "tokens=i32[8]" --target v5e:2x2
"""

import jax.numpy as jnp
from transformers import FlaxLlamaForCausalLM, LlamaConfig

from rewrite import auto_shard

CONTEXT = 32
# A small one with random weights; FlaxLlamaForCausalLM.from_pretrained(...) has those of others.
MODEL = FlaxLlamaForCausalLM(
    LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
)


def init_params():
    return MODEL.params


def init_cache(batch):
    return {"layers": MODEL.init_cache(batch, CONTEXT), "at": jnp.zeros((), jnp.int32)}


def step(params, cache, tokens):
    at = jnp.broadcast_to(cache["at"], (*tokens.shape, 1))
    seen = jnp.broadcast_to(jnp.arange(CONTEXT) <= cache["at"], (*tokens.shape, CONTEXT))
    out = MODEL(
        tokens[:, None],
        params=params,
        past_key_values=cache["layers"],
        attention_mask=seen.astype(jnp.int32),
        position_ids=at,
    )
    return out.logits[:, 0], {"layers": out.past_key_values, "at": cache["at"] + 1}


if __name__ == "__main__":
    params, cache, tokens = init_params(), init_cache(8), jnp.arange(8)
    sharded = auto_shard(step)  # on all devices there are; or auto_shard(step, "v5e:2x2")
    packed = sharded.prepare(params, cache, tokens)
    logits, state = sharded(packed, sharded.adapt(cache), tokens)
    print(sharded.explain())
