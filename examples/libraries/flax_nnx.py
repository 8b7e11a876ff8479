"""A decoder written with Flax NNX: its weights are one argument of the step, its caches another.

    python examples/libraries/flax_nnx.py
    shardwright explain examples/libraries/flax_nnx.py:step --shape "params=init_params()" \
        --shape "cache=init_cache(8)" --shape "tokens=i32[8]" --target v5e:2x2
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rewrite import auto_shard

WIDTH, HEADS, LAYERS, CONTEXT, VOCAB = 64, 4, 2, 32, 256


class Layer(nnx.Module):
    def __init__(self, rngs):
        head = (HEADS, WIDTH // HEADS)
        self.before, self.behind = nnx.RMSNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        self.q, self.k, self.v = (nnx.LinearGeneral(WIDTH, head, rngs=rngs) for _ in range(3))
        self.out = nnx.LinearGeneral(head, WIDTH, axis=(-2, -1), rngs=rngs)
        self.gate, self.up = (nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs) for _ in range(2))
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, keys, values, at):
        h = self.before(x)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, self.k(h)[:, None], at, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(values, self.v(h)[:, None], at, axis=1)
        seen = jnp.arange(CONTEXT) <= at
        mixed = nnx.dot_product_attention(self.q(h)[:, None], keys, values, mask=seen)
        x = x + self.out(mixed[:, 0])
        h = self.behind(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h)), keys, values


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])

    def __call__(self, tokens, cache):
        x, written = self.table(tokens), []
        for layer, (keys, values) in zip(self.layers, cache["layers"]):
            x, keys, values = layer(x, keys, values, cache["at"])
            written.append((keys, values))
        return self.table.attend(x), {"layers": written, "at": cache["at"] + 1}


GRAPH = nnx.split(nnx.eval_shape(lambda: Decoder(nnx.Rngs(0))))[0]


def init_params():
    return nnx.state(Decoder(nnx.Rngs(0)))


def init_cache(batch):
    empty = jnp.zeros((batch, CONTEXT, HEADS, WIDTH // HEADS))
    return {"layers": [(empty, empty)] * LAYERS, "at": jnp.int32(0)}


def step(params, cache, tokens):
    return nnx.merge(GRAPH, params)(tokens, cache)


if __name__ == "__main__":
    params, cache, tokens = init_params(), init_cache(8), jnp.arange(8)
    sharded = auto_shard(step)  # on all devices there are; or auto_shard(step, "v5e:2x2")
    packed = sharded.prepare(params, cache, tokens)
    logits, state = sharded(packed, sharded.adapt(cache), tokens)
    print(sharded.explain())
