"""What the cost model reads of a program's decoder, on decoders of every block."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dialect.machine.mesh import MeshSpec
from dialect.naming.axes import infer_axes
from dialect.planning.changed_states import changed_state_notes
from dialect.planning.decoder import decoder_shape, whole_write_notes
from dialect.planning.decoder_shape import Attention, Block, DecoderShape, Network
from dialect.planning.partitionings import partition
from dialect.planning.workload import Workload
from examples import gpt, llama
from rewrite import Pipeline, trace
from tests.decoder_shapes import LLAMA_8B
from tests.fuzz.decoders import Decoder
from tests.kit import after, shapes_of

PASSES = ("", ", merge_dots, first_layer{budget=10.0}")


def shape_of(function: Any, *args: Any, passes: str = "") -> DecoderShape:
    program = trace(function, *args, params=0, state=1)
    program = Pipeline.parse(f"normalize, recognize{passes}").run(program)
    return decoder_shape(program, infer_axes(program))


@pytest.mark.parametrize("passes", PASSES, ids=["", "merged, first layer"])
@pytest.mark.parametrize("loop", ["written", "scanned"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["", "qk norm"])
@pytest.mark.parametrize("block", ["serial", "parallel", "sandwich", "after"])
def test_a_block_is_parallel_whose_network_does_not_read_its_attention(
    block: str, qk_norm: bool, loop: str, passes: str
) -> None:
    """However many norms it has: counting them took one with query-key norms for serial."""
    decoder = Decoder(block=block, qk_norm=qk_norm, loop=loop, layers=3, gate="gated")
    shape = shape_of(
        decoder.step, decoder.params(), decoder.cache(), decoder.given(), passes=passes
    )
    parts = {block.part for block in shape.blocks}
    assert parts == ({"block"} if block == "parallel" else {"attention", "ffn"})


# Layers that differ in kind.


def normed(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def attended(w: Any, cache: Any, position: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
    """Attention of one token over a cache; x: [batch, d_model]."""
    q, k, v = (jnp.einsum("bd,dhk->bhk", x, w[name]) for name in "qkv")
    cache = {
        name: jax.lax.dynamic_update_slice(cache[name], new[:, None], (0, position, 0, 0))
        for name, new in (("k", k), ("v", v))
    }
    scores = jnp.einsum("bhk,bshk->bhs", q, cache["k"]) / 2.0
    mask = jnp.arange(cache["k"].shape[1]) <= position
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhs,bshk->bhk", weights, cache["v"]), cache


def mixed(params: Any, caches: Any, tokens: jax.Array, position: jax.Array) -> Any:
    """Layers with caches and networks of their own sizes."""
    x, kept = params["embedding"][tokens], []
    for w, cache in zip(params["layers"], caches):
        out, cache = attended(w, cache, position, normed(x))
        x = x + jnp.einsum("bhk,hkd->bd", out, w["o"])
        hidden = jax.nn.silu(normed(x) @ w["gate"]) * (normed(x) @ w["up"])
        x, kept = x + hidden @ w["down"], [*kept, cache]
    return normed(x) @ params["embedding"].T, kept


def mixed_arguments(sizes: list[tuple[int, int]]) -> tuple[Any, ...]:
    """sizes: (context, d_ff) of every layer."""
    d, heads, d_head, batch = 32, 4, 8, 2
    params = {
        "embedding": jnp.ones((64, d)),
        "layers": [
            {name: jnp.ones((d, heads, d_head)) for name in "qkv"}
            | {"o": jnp.ones((heads, d_head, d)), "down": jnp.ones((d_ff, d))}
            | {name: jnp.ones((d, d_ff)) for name in ("gate", "up")}
            for _, d_ff in sizes
        ],
    }
    caches = [
        {name: jnp.ones((batch, context, heads, d_head)) for name in "kv"} for context, _ in sizes
    ]
    return params, caches, jnp.zeros(batch, jnp.int32), jnp.int32(3)


def test_layers_that_differ_are_blocks_of_their_own() -> None:
    """A layer with a window of 8 positions between two that read 16, and a wider network."""
    shape = shape_of(mixed, *mixed_arguments([(16, 48), (8, 48), (16, 96)]))
    attention = Attention(heads=4, kv_heads=4, d_head=8)
    assert shape.blocks == (
        Block(attention, times=2, stored=2),
        Block(networks=(Network(48),), times=2, stored=2),
        Block(Attention(heads=4, kv_heads=4, d_head=8, window=8)),
        Block(networks=(Network(96),)),
    )
    alone = MeshSpec((("x", 1),))
    memory = Workload(shape, alone, partition("ws1d", "heads", shape, alone)).memory()
    assert memory["cache"] == 4 * (16 + 8 + 16) * 2 * (2 * 4 * 8)
    assert memory["weights"] == 4 * 32 * (3 * 4 * 32 + 3 * (48 + 48 + 96))


def test_logits_are_added_up_as_their_product_leaves_them() -> None:
    arguments = mixed_arguments([(16, 48)])
    half = jax.tree.map(lambda x: x.astype("bfloat16") if x.ndim > 1 else x, arguments)
    sizes = [shape_of(mixed, *each).logits_bytes_per_element for each in (arguments, half)]
    assert sizes == [4, 2]


def test_tables_of_positions_and_biases_are_in_no_block() -> None:
    config = gpt.CONFIGS["toy"]
    args = params, _, _ = shapes_of(gpt, config, 8, 64)
    shape = shape_of(partial(gpt.decode_step, config), *args)
    held = {"embedding", "head"} & set(params)
    others = {name: value for name, value in params.items() if name not in (*held, "layers")}
    vectors = [w for name, w in params["layers"].items() if name[0] != "w"]
    split = [
        params["layers"][name] for name in ("bq", "bk", "bv", "b_up") if name in params["layers"]
    ]
    assert shape.split_bytes == sum(w.size * 4 for w in split)
    whole = sum(w.size * 4 for w in (*others.values(), *vectors)) + 4
    assert shape.other_bytes + shape.split_bytes == whole


def test_parameters_that_no_op_reads_are_not_on_the_chips() -> None:
    decoder = Decoder(gate="plain", layers=2)  # its gates are given and not read
    shape = shape_of(decoder.step, decoder.params(), decoder.cache(), decoder.given())
    read = Decoder(gate="gated", layers=2)
    other = shape_of(read.step, read.params(), read.cache(), read.given())
    assert shape.other_bytes == other.other_bytes


def test_a_cache_of_unknown_context_is_counted_once() -> None:
    """Written by a roll it names no context, and was counted as a cache and as other state."""
    rolled, updated = (
        shape_of(decoder.step, decoder.params(), decoder.cache(), decoder.given())
        for decoder in (Decoder(write="roll"), Decoder(write="update"))
    )
    assert rolled.other_bytes == updated.other_bytes


@pytest.mark.parametrize("chosen", [{}, {"write": "scatter"}, {"together": True}], ids=str)
def test_a_cache_has_the_bytes_that_it_is_kept_in(chosen: dict[str, Any]) -> None:
    """Stacked caches in int8 were counted as the floats that they were before `adapt`."""
    decoder = Decoder(layers=2, **chosen)
    traced = trace(
        decoder.step, decoder.params(), decoder.cache(), decoder.given(), params=0, state=1
    )
    program = after(traced, "normalize, recognize, roll, carry_cache, quantize{cache=int8}")
    kept = [x.type for x in after(program, "stage").values("state") if x.type.shape]
    elements = sum(x.size for x in kept if x.dtype == "i8")
    shape = decoder_shape(program, infer_axes(program))
    assert shape.cache_bytes_per_element == sum(x.bytes for x in kept) / elements == 1.5


@pytest.mark.parametrize(
    ("passes", "heads", "bytes_per_element"),
    [
        ("cache_layout{kv_heads=4}", 4, 4),
        ("cache_layout{kv_heads=4}, quantize{cache=int8}", 4, 1.25),
        ("sparq{r=4, k=32, local=8}", 8, 6),  # keys in two orders
    ],
)
def test_a_cache_has_the_elements_that_it_is_kept_in(
    passes: str, heads: int, bytes_per_element: float
) -> None:
    """Merged heads were fewer heads of fewer bytes: their cache was counted as half of itself."""
    config = llama.CONFIGS["toy"]
    params = jax.eval_shape(lambda key: llama.init_params(config, key), jax.random.key(0))
    cache = jax.eval_shape(lambda: llama.init_cache(config, 8, 256))
    step = partial(llama.decode_step, config)
    program = trace(step, params, cache, jax.ShapeDtypeStruct((8,), "int32"), params=0, state=1)
    program = after(program, f"normalize, recognize, carry_cache, {passes}")
    shape = decoder_shape(program, infer_axes(program))
    (attention, _) = next(shape.attentions)
    assert (attention.kv_heads, shape.cache_bytes_per_element) == (heads, bytes_per_element)


@pytest.mark.parametrize("loop", ["written", "scanned"])
@pytest.mark.parametrize(
    ("write", "moves", "shifted"),
    [
        ("update", 0, 0),
        ("scatter", 0, 0),
        ("one_hot", 2, 0),
        ("roll", 6, 0.5),
    ],
)
def test_a_cache_that_is_written_whole_is_read_and_written(
    write: str, moves: float, shifted: float, loop: str
) -> None:
    """A step moves all of it besides what attention reads, which was not counted."""
    decoder = Decoder(write=write, loop=loop, layers=3)
    args = (decoder.params(), decoder.cache(), decoder.given())
    program = after(
        trace(decoder.step, *args, params=0, state=1), "normalize, recognize, roll, carry_cache"
    )
    shape = decoder_shape(program, infer_axes(program))
    assert shape.cache_moves == pytest.approx(moves, rel=0.1)
    assert shape.cache_shifted == pytest.approx(shifted, rel=0.1)
    told = list(whole_write_notes(program, infer_axes(program)))
    assert len(told) == bool(moves)
    assert all(note.startswith("every step writes all places of cache") for note in told)


def test_a_shift_of_all_layers_is_moved_less_than_one_of_each() -> None:
    """New rows are written at a constant place, in bounds, and all is shifted behind the loop."""

    def step(params: Any, cache: Any, x: jax.Array) -> Any:
        def layer(x: jax.Array, given: Any) -> Any:
            weight, keys = given
            keys = keys.at[:, -1:].set((x @ weight)[:, None])
            scores = jax.nn.softmax(jnp.einsum("bd,bsd->bs", x, keys))
            return x + jnp.einsum("bs,bsd->bd", scores, keys) @ weight, keys

        x, keys = jax.lax.scan(layer, x, (params, cache))
        return x, jnp.roll(keys, -1, axis=2)

    args = jnp.ones((3, 8, 8)), jnp.ones((3, 2, 16, 8)), jnp.ones((2, 8))
    program = after(trace(step, *args), "normalize, recognize, carry_cache")
    assert [op.name for op, _ in program.graph.walk()].count("cache_write") == 1
    shape = decoder_shape(program, infer_axes(program))
    assert (shape.cache_moves, shape.cache_shifted) == (4, 1)


def test_a_cache_without_elements_has_no_bytes_per_element() -> None:
    def step(params: Any, cache: Any, x: jax.Array) -> Any:
        scores = jax.nn.softmax(jnp.einsum("bd,bsd->bs", x @ params, cache))
        return jnp.einsum("bs,bsd->bd", scores, cache), cache

    program = trace(step, jnp.ones((4, 4)), jnp.ones((2, 0, 4)), jnp.ones((2, 4)))
    program = Pipeline.parse("normalize, recognize").run(program)
    assert decoder_shape(program, infer_axes(program)).cache_bytes_per_element == 2


def test_one_of_two_networks_is_resized() -> None:
    mixture, beside = Network(384, experts=8, routing="ragged"), Network(1024)
    shape = replace(LLAMA_8B, blocks=(Block(None, (mixture, beside)),))
    widths = [network.d_ff for network, _ in shape.resized("d_ff", 512, 384).networks]
    assert widths == [512, 1024]
    assert [network.d_ff for network, _ in shape.resized("d_ff", 2048).networks] == [384, 2048]


# Weights in f32, which a TPU multiplies in bf16: of a loop it rounds them all before it begins.

HIGHEST = jax.lax.Precision.HIGHEST


def looped(stored: str | None = None, precision: Any = None) -> DecoderShape:
    """The shape of two networks in a loop, whose weights may be converted outside of it."""

    def step(params: Any, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
            hidden = jax.nn.silu(jnp.matmul(normed(x), w["up"], precision=precision))
            return x + jnp.matmul(hidden, w["down"], precision=precision), None

        kept = jax.tree.map(lambda w: w.astype(stored).astype(w.dtype) if stored else w, params)
        return jax.lax.scan(layer, x, kept)[0]

    params = {"up": jnp.ones((2, 16, 64)), "down": jnp.ones((2, 64, 16))}
    program = Pipeline.parse("normalize, recognize").run(trace(step, params, jnp.ones((8, 16))))
    return decoder_shape(program, infer_axes(program))


def test_weights_of_a_loop_are_counted_as_they_are_stored_and_multiplied() -> None:
    shapes = looped(), looped(precision=HIGHEST), looped(stored="bfloat16")
    found = [(shape.looped_in_f32, shape.weight_bytes_per_element) for shape in shapes]
    assert found == [(True, 4), (False, 4), (False, 2)]


def test_rounded_weights_are_a_copy_that_is_written_and_read() -> None:
    """Four bytes are read of each, two are written and read; on other chips four are read. What
    has room on the chip is neither written nor read."""
    mesh = MeshSpec((("x", 1),))
    shape = replace(LLAMA_8B, weight_bytes_per_element=4, looped_in_f32=True)
    alone = shape, mesh, partition("ws1d", "heads", shape, mesh)
    cpu = Workload(*alone)
    weights = cpu.stored_weights()
    for share in (0.0, 0.5, 1.0):
        tpu = Workload(*alone, lanes=128, room=(1 - share) * 2 * weights)
        assert tpu.rounded_weights() == share * weights / 2
        assert tpu.memory()["working set"] - cpu.memory()["working set"] == share * 2 * weights
        assert tpu.hbm_bytes() - cpu.hbm_bytes() == share * 4 * weights
    assert cpu.rounded_weights() == 0


def test_ragged_experts_are_read_as_they_are_stored() -> None:
    mesh, experts = MeshSpec((("x", 1),)), Network(64, experts=4, routing="ragged")
    shape = replace(LLAMA_8B, blocks=(Block(networks=(experts,), times=2, stored=2),))
    shape = replace(shape, weight_bytes_per_element=4, looped_in_f32=True)
    work = Workload(shape, mesh, partition("ws1d", "heads", shape, mesh), lanes=128)
    assert work.looped_weights() == 2 * work.router_weights(experts)


@pytest.mark.parametrize("order, last", [("bshd", False), ("bhsd", False), ("bhds", True)])
def test_where_a_cache_has_its_positions(order: str, last: bool) -> None:
    decoder = Decoder(order=order)
    shape = shape_of(decoder.step, decoder.params(), decoder.cache(), decoder.given())
    (attention,) = {block.attention for block in shape.blocks if block.attention}
    assert attention.positions_last == last


@pytest.mark.parametrize("passes", ["", "quantize{cache=int8}, "])
def test_a_cache_in_pages_is_told(passes: str) -> None:
    config = llama.CONFIGS["toy"]
    cache = llama.init_cache(config, 2, 16)
    params = llama.init_params(config, jax.random.key(0))
    traced = trace(partial(llama.decode_step, config), params, cache, jnp.zeros(2, "int32"))
    rows = after(traced, f"normalize, recognize, carry_cache, {passes}")
    for program, told in ((rows, False), (after(rows, "paged{page=8}"), True)):
        shape = decoder_shape(program, infer_axes(program))
        assert [attention.in_pages for attention, _ in shape.attentions] == [told]


def test_a_state_that_changes_its_dtype_is_told() -> None:
    """It was an argument like any other, whole on every chip, and nobody said why."""
    decoder = Decoder(layers=2)

    def cast(cache: Any, dtype: str) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, cache)

    def step(params: Any, cache: Any, tokens: jax.Array) -> Any:
        logits, new = decoder.step(params, cache, tokens)
        return logits, cast(new, "float32")

    cache = cast(jax.tree.map(jnp.asarray, decoder.cache()), "bfloat16")
    program = after(trace(step, decoder.params(), cache, decoder.given()), "normalize, recognize")
    (note,) = changed_state_notes(program)
    assert "(and 3 more) goes in as bf16[" in note and "and comes back as f32[" in note
    kept = trace(decoder.step, decoder.params(), decoder.cache(), decoder.given())
    assert not list(changed_state_notes(kept))
