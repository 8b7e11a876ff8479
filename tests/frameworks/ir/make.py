"""Writes the programs of this folder: small decoders of libraries that the tests do not install.

    pip install keras-hub penzai dm-haiku equinox tensorflow torch==2.9.1 torchax==0.0.11
    KERAS_BACKEND=jax python tests/frameworks/ir/make.py

Each is one decode step (or, named so, a prefill) as it was traced, before any pass. Two layers;
batch 2, vocab 64, d_model 32, 4 heads of 8 (2 key heads where queries are grouped), d_ff 48, a
cache of 16. MaxText traces under a mesh of its own, which no text holds: its programs are behind
`retarget`, and without the random keys that its loops hand through.
Made with JAX 0.10.2, keras-hub 0.32.0, penzai 0.2.5, dm-haiku 0.0.17, equinox 0.13.8, and torch
2.9.1 with torchax 0.0.11 and transformers 4.57.6; with JAX 0.12.0, MaxText 0.2.5.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from dialect.normal.layout_rules import convert_to_same  # noqa: E402
from dialect.normal.loop_rules import unchanged_by_loop  # noqa: E402
from rewrite import Pipeline, Program, trace  # noqa: E402
from rewrite.driver import rewrite  # noqa: E402

BATCH, VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, D_HEAD, D_FF, CONTEXT = 2, 64, 32, 2, 4, 2, 8, 48, 16
TOKENS = jax.ShapeDtypeStruct((BATCH, 1), jnp.int32)
NUMBER = jax.ShapeDtypeStruct((), jnp.int32)
Made = tuple[str, Callable[..., Any], tuple[Any, ...]]  # file, step(params, cache, ...), shapes


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def keras_hub() -> Iterator[Made]:
    """One array [batch, layer, 2, context, head, d_head] is the whole cache."""
    import keras
    import keras_hub

    def made(name: str, model: Any, kv_heads: int) -> Made:
        def step(params: Any, cache: Any, tokens: Any, index: Any) -> Any:
            values = [(each, params[each.path]) for each in model.variables]
            with keras.StatelessScope(state_mapping=values):
                logits, _, cache = model.call_with_cache(tokens, cache, index)
            return logits, cache

        params = {each.path: each.value for each in model.variables}
        cache = jax.ShapeDtypeStruct((BATCH, LAYERS, 2, CONTEXT, kv_heads, D_HEAD), jnp.float32)
        return name, step, (shapes(params), cache, TOKENS, NUMBER)

    plain = dict(vocabulary_size=VOCAB, num_layers=LAYERS, hidden_dim=WIDTH, intermediate_dim=D_FF)
    equal = {**plain, "num_heads": HEADS}
    grouped = {**plain, "num_query_heads": HEADS, "num_key_value_heads": KV_HEADS}
    capped = dict(attention_logit_soft_cap=50.0, final_logit_soft_cap=30.0)
    after = dict(use_post_ffw_norm=True, use_post_attention_norm=True)
    experts = dict(num_experts=4, top_k=2)
    models = {
        "llama": ("Llama", grouped, KV_HEADS),
        "gemma": ("Gemma", {**grouped, **capped, **after, "head_dim": D_HEAD}, KV_HEADS),
        "gpt2": ("GPT2", {**equal, "max_sequence_length": CONTEXT}, HEADS),
        "gpt_neo_x": ("GPTNeoX", equal, HEADS),
        "opt": ("OPT", {**equal, "max_sequence_length": CONTEXT}, HEADS),
        "bloom": ("Bloom", equal, HEADS),
        "falcon": ("Falcon", {**plain, "num_attention_heads": HEADS}, HEADS),
        "phi3": ("Phi3", grouped, KV_HEADS),
        "qwen": ("Qwen", grouped, KV_HEADS),
        "mixtral": ("Mixtral", {**grouped, **experts}, KV_HEADS),
        "gpt_oss": ("GptOss", {**grouped, **experts, "head_dim": D_HEAD}, KV_HEADS),
    }
    for name, (prefix, sizes, kv_heads) in models.items():
        backbone = getattr(keras_hub.models, f"{prefix}Backbone")(**sizes)
        model = getattr(keras_hub.models, f"{prefix}CausalLM")(backbone=backbone, preprocessor=None)
        yield made(f"keras_hub_{name}", model, kv_heads)


def penzai() -> Iterator[Made]:
    """Named arrays; caches and the tokens so far are variables. Positions come from the tokens."""
    from penzai import pz
    from penzai.models.transformer.sampling_mode import KVCachingTransformerLM
    from penzai.models.transformer.variants import llamalike_common as common

    def renewed(variable: Any, value: Any) -> Any:
        return replace(variable.freeze(), value=value).unfreeze_as_copy()

    def named(value: Any) -> bool:
        return isinstance(value, pz.nx.NamedArrayBase)

    def ordered(value: Any, like: Any) -> Any:
        """A loop over layers gives its caches back with the axes in another order."""
        return value.order_as(*like.named_axes) if named(like) else value

    def made(name: str, config: Any) -> Made:
        model = common.build_llamalike_transformer(config, jax.random.key(0))
        cached = KVCachingTransformerLM.from_uncached(model, CONTEXT, {"batch": BATCH}, pad_id=-1)
        bare, params = pz.unbind_params(cached)
        bare, state = pz.unbind_state_vars(bare)

        def step(weights: Any, cache: Any, tokens: Any) -> Any:
            bound = [renewed(each, weights[each.label]) for each in params]
            held = [renewed(each, value) for each, value in zip(state, cache)]
            run = pz.bind_variables(bare, [*bound, *held])
            logits = run(pz.nx.wrap(tokens).tag("batch", "seq"))
            after = jax.tree.map(ordered, [each.value for each in held], cache, is_leaf=named)
            return logits.unwrap("batch", "seq", "vocabulary"), after

        weights = {each.label: each.value for each in params}
        return name, step, (*shapes((weights, [each.value for each in state])), TOKENS)

    sizes = dict(
        embedding_dim=WIDTH,
        projection_dim=D_HEAD,
        mlp_hidden_dim=D_FF,
        num_decoder_blocks=LAYERS,
        vocab_size=VOCAB,
    )
    grouped = dict(num_kv_heads=KV_HEADS, query_head_multiplier=HEADS // KV_HEADS)
    single = dict(num_kv_heads=1, query_head_multiplier=HEADS)
    llama = dict(mlp_variant="swiglu", tie_embedder_and_logits=False, **grouped, **sizes)
    gemma = dict(mlp_variant="geglu_approx", tie_embedder_and_logits=True, **single, **sizes)
    config = common.LlamalikeTransformerConfig
    yield made("penzai_llama", config(**llama))
    yield made("penzai_llama_scanned", config(**llama, use_layer_stack=True))
    yield made("penzai_gemma", config(**gemma))


def haiku() -> Iterator[Made]:
    """Haiku has layers, not models: a decoder that keeps its cache in Haiku's state."""
    import haiku as hk

    def attention(x: jax.Array, index: jax.Array) -> jax.Array:
        """hk.MultiHeadAttention keeps no cache; this is one, of hk.Linear."""
        heads = (BATCH, 1, HEADS, D_HEAD)
        query, key, value = (hk.Linear(WIDTH, name=n)(x).reshape(heads) for n in ("q", "k", "v"))
        held = []
        for name, new in (("keys", key), ("values", value)):
            old = hk.get_state(name, (BATCH, CONTEXT, HEADS, D_HEAD), init=jnp.zeros)
            held.append(jax.lax.dynamic_update_slice_in_dim(old, new, index, axis=1))
            hk.set_state(name, held[-1])
        logits = jnp.einsum("bthd,bThd->bhtT", query, held[0]) / jnp.sqrt(D_HEAD)
        seen = jnp.arange(CONTEXT) <= index
        weights = jax.nn.softmax(jnp.where(seen, logits, -1e30))
        mixed = jnp.einsum("bhtT,bThd->bthd", weights, held[1]).reshape(BATCH, 1, WIDTH)
        return hk.Linear(WIDTH, name="out")(mixed)

    def decoder(tokens: jax.Array, index: jax.Array) -> jax.Array:
        norm = partial(hk.LayerNorm, axis=-1, create_scale=True, create_offset=True)
        x = hk.Embed(VOCAB, WIDTH)(tokens)
        x += hk.get_parameter("positions", (CONTEXT, WIDTH), init=jnp.zeros)[index]
        for layer in range(LAYERS):
            x += hk.to_module(attention)(f"attention_{layer}")(norm()(x), index)
            hidden = jax.nn.gelu(hk.Linear(D_FF)(norm()(x)))
            x += hk.Linear(WIDTH)(hidden)
        return hk.Linear(VOCAB, with_bias=False)(norm()(x))

    model = hk.without_apply_rng(hk.transform_with_state(decoder))
    params, state = jax.eval_shape(model.init, jax.random.key(0), TOKENS, NUMBER)
    yield "haiku_gpt", model.apply, (params, state, TOKENS, NUMBER)


def equinox() -> Iterator[Made]:
    """Equinox has layers, not models: each written for one token, and mapped over the batch."""
    import equinox as eqx

    class Layer(eqx.Module):
        norms: tuple[eqx.nn.RMSNorm, eqx.nn.RMSNorm]
        query: eqx.nn.Linear
        key: eqx.nn.Linear
        value: eqx.nn.Linear
        out: eqx.nn.Linear
        gate: eqx.nn.Linear
        up: eqx.nn.Linear
        down: eqx.nn.Linear

        def __init__(self, key: jax.Array) -> None:
            keys = iter(jax.random.split(key, 7))
            linear = partial(eqx.nn.Linear, use_bias=False)
            self.norms = (eqx.nn.RMSNorm(WIDTH), eqx.nn.RMSNorm(WIDTH))
            self.query = linear(WIDTH, HEADS * D_HEAD, key=next(keys))
            self.key = linear(WIDTH, KV_HEADS * D_HEAD, key=next(keys))
            self.value = linear(WIDTH, KV_HEADS * D_HEAD, key=next(keys))
            self.out = linear(HEADS * D_HEAD, WIDTH, key=next(keys))
            self.gate = linear(WIDTH, D_FF, key=next(keys))
            self.up = linear(WIDTH, D_FF, key=next(keys))
            self.down = linear(D_FF, WIDTH, key=next(keys))

        def __call__(self, x: jax.Array, cache: Any, index: jax.Array) -> tuple[jax.Array, Any]:
            h = self.norms[0](x)
            keys = cache["keys"].at[index].set(self.key(h).reshape(KV_HEADS, D_HEAD))
            values = cache["values"].at[index].set(self.value(h).reshape(KV_HEADS, D_HEAD))
            attend = jax.vmap(self.one_head, in_axes=(0, 1, 1, None))
            query = self.query(h).reshape(KV_HEADS, HEADS // KV_HEADS, D_HEAD)
            mixed = jax.vmap(attend, in_axes=(1, None, None, None), out_axes=1)(
                query, keys, values, index
            )
            x = x + self.out(mixed.reshape(HEADS * D_HEAD))
            h = self.norms[1](x)
            x = x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))
            return x, {"keys": keys, "values": values}

        def one_head(self, query: Any, keys: Any, values: Any, index: Any) -> jax.Array:
            logits = jnp.where(jnp.arange(CONTEXT) <= index, keys @ query * D_HEAD**-0.5, -jnp.inf)
            return jax.nn.softmax(logits) @ values

    class Decoder(eqx.Module):
        embedding: eqx.nn.Embedding
        layers: list[Layer]
        norm: eqx.nn.RMSNorm
        head: eqx.nn.Linear

        def __init__(self, key: jax.Array) -> None:
            keys = jax.random.split(key, LAYERS + 2)
            self.embedding = eqx.nn.Embedding(VOCAB, WIDTH, key=keys[0])
            self.layers = [Layer(each) for each in keys[1:-1]]
            self.norm = eqx.nn.RMSNorm(WIDTH)
            self.head = eqx.nn.Linear(WIDTH, VOCAB, use_bias=False, key=keys[-1])

        def __call__(self, cache: Any, token: jax.Array, index: jax.Array) -> tuple[jax.Array, Any]:
            x, held = self.embedding(token), []
            for layer, own in zip(self.layers, cache):
                x, own = layer(x, own, index)
                held.append(own)
            return self.head(self.norm(x)), held

    params = eqx.filter_eval_shape(Decoder, jax.random.key(0))
    kept = jax.ShapeDtypeStruct((BATCH, CONTEXT, KV_HEADS, D_HEAD), jnp.float32)
    cache = [{"keys": kept, "values": kept} for _ in range(LAYERS)]
    each = jax.ShapeDtypeStruct((BATCH,), jnp.int32)

    def step(params: Any, cache: Any, tokens: Any, index: Any) -> Any:
        return jax.vmap(params, in_axes=(0, 0, 0))(cache, tokens, index)

    yield "equinox_llama", step, (params, cache, each, each)


def torch() -> Iterator[Made]:
    """Hugging Face's PyTorch by torchax, in the sizes of the example; also behind `per_row`."""
    from examples.libraries import pytorch
    from rewrite import per_row

    params, tokens = shapes(pytorch.init_params()), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    yield "torch_llama", pytorch.step, (params, shapes(pytorch.init_cache(BATCH)), tokens)
    rows = per_row(pytorch.step, pytorch.init_cache, once=True)
    yield "torch_llama_rows", rows, (params, shapes(rows.init(BATCH)), tokens)


def maxtext() -> Iterator[Made]:
    """Flax NNX. Decode attends to the keys of the prompt and to those of the answer apart."""
    import maxtext as library
    from flax import nnx
    from flax.linen import logical_axis_rules
    from maxtext.common.common_types import MODEL_MODE_AUTOREGRESSIVE, MODEL_MODE_PREFILL
    from maxtext.configs import pyconfig
    from maxtext.utils import maxtext_utils, model_creation_utils

    sizes = dict(
        base_emb_dim=WIDTH,
        base_num_query_heads=HEADS,
        base_num_kv_heads=KV_HEADS,
        base_mlp_dim=D_FF,
        base_num_decoder_layers=LAYERS,
        head_dim=D_HEAD,
        vocab_size=VOCAB,
        per_device_batch_size=BATCH,
        max_prefill_predict_length=CONTEXT // 2,
        max_target_length=CONTEXT,
    )
    plain = dict(
        override_model_config=True,
        attention="dot_product",
        dtype="float32",
        weight_dtype="float32",
        enable_checkpointing=False,
        skip_jax_distributed_system=True,
        run_name="text",
        log_config=False,
    )

    def filled(leaf: Any) -> jax.Array:
        """Keys of dropouts, and their counters."""
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key = jax.random.key(0)
            return jax.random.split(key, leaf.shape) if leaf.shape else key
        return jnp.zeros(leaf.shape, leaf.dtype)

    def made(name: str, model: str, prefill: bool = False, **more: Any) -> Made:
        yml = str(Path(library.__file__).parent / "configs" / "base.yml")
        config = pyconfig.initialize(["", yml], model_name=model, **plain, **(sizes | more))
        mesh = maxtext_utils.get_mesh_from_config(config, jax.devices()[:1])
        mode = MODEL_MODE_PREFILL if prefill else MODEL_MODE_AUTOREGRESSIVE
        create = model_creation_utils.get_nnx_create_model_fn(config, mesh=mesh, model_mode=mode)
        with mesh, logical_axis_rules(config.logical_axis_rules):
            parts = nnx.split(nnx.eval_shape(create), nnx.Param, nnx.Cache, ...)
        definition, *states, rest = parts
        rest = jax.tree.map(filled, rest)

        def step(params: Any, cache: Any, tokens: Any, positions: Any) -> Any:
            held = [jax.tree.map(lambda leaf: leaf, state) for state in (*states, rest)]
            for state, values in zip(held, (params, cache)):
                nnx.replace_by_pure_dict(state, values)
            net = nnx.merge(definition, *held, copy=True)
            segments = jnp.ones_like(tokens) if prefill else None
            options = dict(decoder_segment_ids=segments, enable_dropout=False, model_mode=mode)
            with mesh, logical_axis_rules(config.logical_axis_rules):
                logits = net(tokens, positions, **options)
            return logits, nnx.to_pure_dict(nnx.state(net, nnx.Cache))

        given = [shapes(nnx.to_pure_dict(state)) for state in states]
        rows = jax.ShapeDtypeStruct((1, CONTEXT // 2) if prefill else (BATCH, 1), jnp.int32)
        return f"maxtext_{name}", step, (*given, rows, rows)

    apart = dict(scan_layers=False)
    experts = dict(num_experts=4, base_moe_mlp_dim=D_FF, sparse_matmul=False, megablox=False)
    yield made("llama", "llama2-70b", **apart)
    yield made("llama_prefill", "llama2-70b", prefill=True, **apart)
    yield made("llama_scanned", "llama2-70b", scan_layers=True)
    yield made("gpt3", "gpt3-175b", base_num_kv_heads=HEADS, **apart)
    yield made("gemma2", "gemma2-27b", sliding_window_size=8, scan_layers=True)
    yield made("qwen3", "qwen3-32b", **apart)
    yield made("mixtral", "mixtral-8x7b", **experts, **apart)


def for_text(program: Program) -> Program:
    """A program under a mesh without it, and without the rows that its loops only hand through."""
    if "<Mesh" not in str(program):
        return program
    program = Pipeline.parse("retarget").run(program)
    graph = rewrite(program.graph, (unchanged_by_loop, convert_to_same))
    return replace(program.with_graph(graph), history=())


def on_dicts(step: Callable[..., Any], params: Any, cache: Any) -> tuple[Any, dict, dict]:
    """The same step on dicts of arrays by their paths: of other pytrees no text is read back."""
    trees = [jax.tree.flatten_with_path(tree) for tree in (params, cache)]
    paths = [
        [jax.tree_util.keystr(path, simple=True, separator="/") or "all" for path, _ in leaves]
        for leaves, _ in trees
    ]

    def plain(params: dict, cache: dict, *rest: Any) -> Any:
        given = zip((params, cache), paths, trees)
        whole = (jax.tree.unflatten(tree, [d[p] for p in own]) for d, own, (_, tree) in given)
        out, cache = step(*whole, *rest)
        return out, dict(zip(paths[1], jax.tree.leaves(cache), strict=True))

    params, cache = (
        {path: leaf for path, (_, leaf) in zip(own, leaves)}
        for own, (leaves, _) in zip(paths, trees)
    )
    return plain, params, cache


def main() -> None:
    wanted = sys.argv[1:] or ["keras_hub", "penzai", "haiku", "equinox", "torch", "maxtext"]
    for library in wanted:
        for name, step, (params, cache, *rest) in globals()[library]():
            plain, params, cache = on_dicts(step, params, cache)
            program = trace(plain, params, cache, *rest, params=0, state=1)
            text = str(replace(for_text(program), name=name))
            (HERE / f"{name}.ir").write_text(f"{text}\n", encoding="utf-8")
            print(name, program.graph.op_count)


if __name__ == "__main__":
    main()
