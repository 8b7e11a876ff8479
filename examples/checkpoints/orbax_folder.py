"""Weights that a training run kept with Orbax, read as a step's chips need them.

    python -m examples.checkpoints.orbax_folder checkpoint/

Needs orbax: pip install "shardwright[orbax]". A folder is written by all hosts of a slice, and
read by all of them: each takes what its own chips hold.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from examples import llama
from rewrite import as_tree, auto_shard, read_checkpoint

CONFIG, BATCH, CONTEXT = llama.CONFIGS["toy"], 8, 64


def keep(folder, params):
    """What a training run does, in the form of its own parameters."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).resolve(), params)


def lazy_params(folder):
    """The parameters of llama.py, none of them read yet."""
    shapes = jax.eval_shape(partial(llama.init_params, CONFIG), jax.random.key(0))
    return as_tree(shapes, read_checkpoint(folder))


if __name__ == "__main__":
    folder = sys.argv[1]
    if not Path(folder).exists():
        keep(folder, llama.init_params(CONFIG, jax.random.key(0)))
    cache, tokens = llama.init_cache(CONFIG, BATCH, CONTEXT), jnp.arange(BATCH)
    step = auto_shard(partial(llama.decode_step, CONFIG))
    packed = step.prepare(lazy_params(folder), cache, tokens)
    logits, state = step(packed, step.adapt(cache), tokens)
    print(packed, logits.argmax(-1))
