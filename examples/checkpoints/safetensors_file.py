"""Weights of Hugging Face's Llama from a .safetensors file, read as a step's chips need them.

    python -m examples.checkpoints.safetensors_file model.safetensors

Names have dots, and torch keeps matrices as [out, in]: both are said once per path. The packed
parameters are kept in a file of their own, from which the next start reads them.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from examples import llama
from rewrite import as_tree, auto_shard, read_checkpoint

CONFIG, BATCH, CONTEXT = llama.CONFIGS["toy"], 8, 64
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layers/attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers/ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    **{f"layers/w{n}": f"model.layers.{{}}.self_attn.{n}_proj.weight" for n in "qkvo"},
    **{f"layers/w_{n}": f"model.layers.{{}}.mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
}


def lazy_params(path):
    """The parameters of llama.py, none of them read yet."""
    shapes = jax.eval_shape(partial(llama.init_params, CONFIG), jax.random.key(0))
    how = {"rename": NAMES, "transpose": ["layers/w*", "head"], "reshape": "layers/w?"}
    return as_tree(shapes, read_checkpoint(path), **how, cast=True)


def packed_params(step, path, cache, tokens):
    """The packed parameters: from where they were kept, else from the checkpoint."""
    kept = Path(path).with_suffix(".packed.safetensors")
    params = lazy_params(path)
    if not kept.exists():
        step.prepare(params, cache, tokens).save(kept)
    return step.load(kept, params, cache, tokens)


if __name__ == "__main__":
    cache, tokens = llama.init_cache(CONFIG, BATCH, CONTEXT), jnp.arange(BATCH)
    step = auto_shard(partial(llama.decode_step, CONFIG))
    packed = packed_params(step, sys.argv[1], cache, tokens)
    logits, state = step(packed, step.adapt(cache), tokens)
    print(packed, logits.argmax(-1))
