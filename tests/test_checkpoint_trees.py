"""Checkpoints of others as the parameters of one's own decoder."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.prepared.originals import Lazy
from examples import llama
from rewrite import ShardwrightError, as_tree, auto_shard, read_checkpoint
from tests.kit import arrays_of, assert_close

safetensors = pytest.importorskip("safetensors.numpy")

CONFIG = llama.CONFIGS["toy"]
LAYER = "model.layers.{}."
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layers/attention_norm": LAYER + "input_layernorm.weight",
    "layers/ffn_norm": LAYER + "post_attention_layernorm.weight",
    "layers/wq": LAYER + "self_attn.q_proj.weight",
    "layers/wk": LAYER + "self_attn.k_proj.weight",
    "layers/wv": LAYER + "self_attn.v_proj.weight",
    "layers/wo": LAYER + "self_attn.o_proj.weight",
    "layers/w_gate": LAYER + "mlp.gate_proj.weight",
    "layers/w_up": LAYER + "mlp.up_proj.weight",
    "layers/w_down": LAYER + "mlp.down_proj.weight",
}
TRANSPOSED = ("head", "layers/w*")


def as_torch(params: Any) -> dict[str, np.ndarray]:
    """The arrays of a Llama as Hugging Face stores them: [out, in], a layer at a time."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        name, rows = NAMES[place], np.asarray(leaf)
        for number, row in enumerate(rows if "{}" in name else [rows]):
            flat = (
                row.reshape(row.shape[0], -1)
                if place != "layers/wo"
                else row.reshape(-1, row.shape[-1])
            )
            turned = flat.T if place == "head" or "/w" in place else row
            arrays[name.replace("{}", str(number))] = np.ascontiguousarray(turned)
    return arrays


@pytest.fixture(scope="module")
def llama_of_torch(tmp_path_factory: Any) -> tuple[Any, Path]:
    params, _, _ = arrays_of(llama, CONFIG, 8, 32)
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    more = {"model.rotary.inv_freq": np.ones(4, np.float32)}
    safetensors.save_file({**as_torch(params), **more}, path)
    return params, path


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_a_llama_of_hugging_face(llama_of_torch: Any) -> None:
    params, path = llama_of_torch
    lazy = as_tree(
        shapes_of(params),
        read_checkpoint(path),
        rename=NAMES,
        transpose=TRANSPOSED,
        reshape=("layers/w[qkvo]",),
        ignore="*.inv_freq",
    )
    assert all(isinstance(leaf, Lazy) for leaf in jax.tree.leaves(lazy))
    _, cache, tokens = arrays_of(llama, CONFIG, 8, 32)
    step = auto_shard(partial(llama.decode_step, CONFIG), "cpu:8")
    packed, expected = (step.prepare(each, cache, tokens) for each in (lazy, params))
    for one, other in zip(packed.leaves, expected.leaves):
        np.testing.assert_array_equal(one, other)
    assert_close(
        step(packed, cache, tokens)[0],
        llama.decode_step(CONFIG, *arrays_of(llama, CONFIG, 8, 32))[0],
        1e-4,
    )


def test_each_mistake_names_what_would_mend_it(llama_of_torch: Any) -> None:
    params, path = llama_of_torch
    shapes, arrays = shapes_of(params), read_checkpoint(path)

    def refused(**options: Any) -> ShardwrightError:
        with pytest.raises(ShardwrightError) as caught:
            as_tree(shapes, arrays, **options)
        return caught.value

    assert "there is no array 'embedding'" in refused().message
    error = refused(rename=NAMES)
    assert "head (lm_head.weight) has the shape (256, 64), not (64, 256)" in error.message
    assert "transpose='head'" in error.hint
    error = refused(rename=NAMES, transpose=TRANSPOSED)
    assert "reshape='layers/wk'" in error.hint
    options = {"rename": NAMES, "transpose": TRANSPOSED, "reshape": "layers/w[qkvo]"}
    error = refused(**options)
    assert "no parameter for 1 of the arrays: model.rotary.inv_freq" in error.message
    assert "ignore=" in error.hint
    error = refused(**options | {"rename": NAMES | {"head": "lm_heads.weight"}})
    assert error.message == "there is no array 'lm_heads.weight' for head"
    assert "lm_head.weight" in error.hint
    fewer = jax.tree.map(lambda leaf: leaf, shapes)
    fewer["layers"]["wk"] = jax.ShapeDtypeStruct((2, 64, 8, 8), jnp.float32)
    with pytest.raises(ShardwrightError, match="stacks 2 layers.* are 3"):
        as_tree(fewer, arrays, ignore="*.inv_freq", **options)


def test_casts_are_asked_for_and_told(caplog: Any) -> None:
    wanted = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3) / 3}
    with pytest.raises(ShardwrightError, match="w is float32, and the step takes bfloat16"):
        as_tree(wanted, arrays)
    with caplog.at_level(logging.WARNING, "shardwright"):
        found = as_tree(wanted, arrays, cast=True)["w"]
    assert caplog.messages == ["parameters are cast, float32 -> bfloat16: w"]
    np.testing.assert_array_equal(found[0:2, 1:3], jnp.asarray(arrays["w"], jnp.bfloat16)[:, 1:3])


def test_parts_of_fused_arrays_and_layers_of_an_unrolled_tree() -> None:
    """GPT-2 keeps queries, keys and values in one array. Only what is asked for is read."""
    read: list[Any] = []
    fused = {
        f"h.{n}.c_attn": np.arange(n, n + 4 * 12, dtype=np.float32).reshape(4, 12) for n in (0, 1)
    }

    def lazy(name: str) -> Lazy:
        def part(index: Any) -> Any:
            read.append(index)
            return fused[name][index]

        return Lazy((4, 12), np.dtype("float32"), part, name)

    names = {
        f"layers/{{}}/{which}": ("h.{}.c_attn", np.s_[:, 4 * n : 4 * n + 4])
        for n, which in enumerate("qkv")
    }
    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    tree = as_tree(
        {"layers": [dict.fromkeys("qkv", shape) for _ in range(2)]},
        {name: lazy(name) for name in fused},
        rename=names,
    )
    assert not read
    found = tree["layers"][1]["k"][0:2, 1:3]
    np.testing.assert_array_equal(found, fused["h.1.c_attn"][0:2, 5:7])
    assert read == [(slice(0, 2), slice(5, 7))]
    with pytest.raises(ShardwrightError, match="is no part of h.0.c_attn"):
        as_tree({"q": shape}, {"h.0.c_attn": fused["h.0.c_attn"]}, rename={"q": ("h.0.c_attn", 3)})


def test_names_by_a_function() -> None:
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    arrays = {"decoder.norm.scale": np.ones(2, np.float32)}
    tree = as_tree(
        {"norm": {"scale": shape}},
        arrays,
        rename=lambda path: "decoder." + path.replace("/", "."),
    )
    assert tree["norm"]["scale"] is arrays["decoder.norm.scale"]
