"""A decoder written with Equinox, one sequence at a time; `jax.vmap` makes a batch of it.

    python examples/libraries/equinox_decoder.py
    shardwright explain examples/libraries/equinox_decoder.py:step --shape "params=init_params()" \
        --shape "cache=init_cache(8)" --shape "tokens=i32[8]" --target v5e:2x2
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from rewrite import auto_shard

WIDTH, HEADS, LAYERS, CONTEXT, VOCAB = 64, 4, 2, 32, 256


class Layer(eqx.Module):
    norms: tuple
    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    mlp: eqx.nn.MLP

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.norms = tuple(eqx.nn.RMSNorm(WIDTH, use_bias=False) for _ in range(2))
        self.qkv = eqx.nn.Linear(WIDTH, 3 * WIDTH, key=a)
        self.out = eqx.nn.Linear(WIDTH, WIDTH, key=b)
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 4 * WIDTH, 1, jax.nn.gelu, key=c)

    def __call__(self, x, keys, values, at):
        q, k, v = (part.reshape(HEADS, -1) for part in jnp.split(self.qkv(self.norms[0](x)), 3))
        keys, values = keys.at[at].set(k), values.at[at].set(v)
        scores = jnp.einsum("hd,thd->ht", q, keys) / jnp.sqrt(WIDTH // HEADS)
        scores = jnp.where(jnp.arange(CONTEXT) <= at, scores, -jnp.inf)
        x = x + self.out(jnp.einsum("ht,thd->hd", jax.nn.softmax(scores), values).reshape(WIDTH))
        return x + self.mlp(self.norms[1](x)), keys, values


class Decoder(eqx.Module):
    table: eqx.nn.Embedding
    layers: list
    head: eqx.nn.Linear

    def __init__(self, key):
        first, last, *keys = jax.random.split(key, LAYERS + 2)
        self.table = eqx.nn.Embedding(VOCAB, WIDTH, key=first)
        self.layers = [Layer(key) for key in keys]
        self.head = eqx.nn.Linear(WIDTH, VOCAB, key=last)

    def __call__(self, token, caches, at):
        x, written = self.table(token), []
        for layer, (keys, values) in zip(self.layers, caches):
            x, keys, values = layer(x, keys, values, at)
            written.append((keys, values))
        return self.head(x), written


# What is no array (activations, sizes) stays here; a step gets the arrays.
STATIC = eqx.partition(eqx.filter_eval_shape(Decoder, jax.random.key(0)), eqx.is_array_like)[1]


def init_params():
    return eqx.filter(Decoder(jax.random.key(0)), eqx.is_array)


def init_cache(batch):
    empty = jnp.zeros((batch, CONTEXT, HEADS, WIDTH // HEADS))
    return {"layers": [(empty, empty)] * LAYERS, "at": jnp.int32(0)}


def step(params, cache, tokens):
    decoder = eqx.combine(params, STATIC)
    logits, layers = jax.vmap(decoder, (0, 0, None))(tokens, cache["layers"], cache["at"])
    return logits, {"layers": layers, "at": cache["at"] + 1}


if __name__ == "__main__":
    params, cache, tokens = init_params(), init_cache(8), jnp.arange(8)
    sharded = auto_shard(step)  # on all devices there are; or auto_shard(step, "v5e:2x2")
    packed = sharded.prepare(params, cache, tokens)
    logits, state = sharded(packed, sharded.adapt(cache), tokens)
    print(sharded.explain())
