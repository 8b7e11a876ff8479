"""Mixtures of experts: found in the forms that libraries give them, costed, planned and served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unrecognised import (
    ATTENTION,
    CONTEXT,
    PLANNED,
    TOKENS,
    Case,
    assert_serves_the_same,
    attention,
    kv_cache,
    laid_out,
    plan_notes,
    planned,
    rms_norm,
    weights,
)

from dialect.arrays.evaluate import evaluate
from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.stacked_experts import experts_in_stack
from dialect.front.api import DEFAULT_PIPELINE, resolve
from dialect.jaxprs.jaxpr import trace_graph
from dialect.machine.mesh import MeshSpec, Topology
from dialect.naming.axes import Axes, infer_axes
from dialect.normal.expert_products import experts_of_all_rows
from dialect.planning.cost import must_fit
from dialect.planning.decoder import decoder_shape
from dialect.planning.decoder_shape import Block, DecoderShape, Network
from dialect.planning.fallback_plans import planned_axes
from dialect.planning.partitionings import Unavailable, partition
from dialect.planning.search import choose, searched
from dialect.planning.workload import Workload
from dialect.reports.audit import audit
from dialect.reports.beside_plan import beside_plan
from rewrite import Pipeline, Program, trace
from rewrite.driver import rewrite
from rewrite.errors import PlanError
from rewrite.ir import Value
from rewrite.program import LEFT_ALONE
from rewrite.target import Target
from tests.decoder_shapes import uniform, varied
from tests.kit import assert_close, run

BATCH, D, F, VOCAB, EXPERTS, CHOSEN = 8, 64, 128, 96, 8, 2
ONLY_RAGGED = "pad{heads=off, d_ff=off, vocab=off}"


def routed(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best experts of each token, and their shares: [..., CHOSEN]."""
    share, which = jax.lax.top_k(jax.nn.softmax(scores), CHOSEN)
    return share / jnp.sum(share, axis=-1, keepdims=True), which


def shares(w: Any, x: jax.Array) -> jax.Array:
    """The share of every expert in each token."""
    share, which = routed(x @ w["router"])
    return jnp.einsum("bk,bke->be", share, jax.nn.one_hot(which, w["router"].shape[-1]))


def hidden(w: Any, x: jax.Array) -> jax.Array:
    gate = jax.nn.silu(jnp.einsum("bd,edf->bef", x, w["gate"]))
    return gate * jnp.einsum("bd,edf->bef", x, w["up"])


def dense(w: Any, x: jax.Array) -> jax.Array:
    each = jnp.einsum("bef,efd->bed", hidden(w, x), w["down"])
    return jnp.einsum("bed,be->bd", each, shares(w, x))


def experts_first(w: Any, x: jax.Array) -> jax.Array:
    """As Keras has it."""
    each = jnp.einsum("bef,efd->ebd", hidden(w, x), w["down"])
    return jnp.sum(each * shares(w, x).T[..., None], axis=0)


def summed(w: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("bef,efd->bd", hidden(w, x) * shares(w, x)[..., None], w["down"])


def ragged(w: Any, x: jax.Array) -> jax.Array:
    share, which = routed(x @ w["router"])
    order = jnp.argsort(which.reshape(-1))
    counts = jnp.bincount(which.reshape(-1), length=w["router"].shape[-1])
    rows = x[order // CHOSEN]
    gate, up = (jax.lax.ragged_dot(rows, w[name], counts) for name in ("gate", "up"))
    each = jax.lax.ragged_dot(jax.nn.silu(gate) * up, w["down"], counts)
    return jnp.einsum("bkd,bk->bd", each[jnp.argsort(order)].reshape(*which.shape, -1), share)


def soft(w: Any, x: jax.Array) -> jax.Array:
    """Every expert, by a softmax over all: by its formula attention, with the router for keys."""
    share = jax.nn.softmax(x @ w["router"])
    return jnp.einsum("bef,efd,be->bd", hidden(w, x), w["down"], share)


def shared_too(w: Any, x: jax.Array) -> jax.Array:
    """With a network that every token passes besides."""
    return dense(w, x) + jax.nn.silu(x @ w["shared_up"]) @ w["shared_down"]


Mixture = Callable[[Any, jax.Array], jax.Array]


def decode(mixture: Mixture, params: Any, cache: Any, tokens: jax.Array) -> Any:
    x = params["embedding"][tokens]
    out, cache = attention(params, cache, rms_norm(x))
    x = x + out
    x = x + mixture(params, rms_norm(x))
    return rms_norm(x) @ params["embedding"].T, cache


def case(mixture: Mixture, experts: int = EXPERTS, width: int = F) -> Case:
    shapes = {name: (experts, D, width) for name in ("gate", "up")}
    shapes |= {"down": (experts, width, D), "router": (D, experts)}
    if mixture is shared_too:
        shapes |= {"shared_up": (D, F), "shared_down": (F, D)}
    params = weights(embedding=(VOCAB, D), **ATTENTION, **shapes)
    return Case(partial(decode, mixture), (params, kv_cache(), TOKENS), "")


def shape_of(made: Case) -> DecoderShape:
    program = trace(made.function, *made.args, params=0, state=1)
    program = Pipeline.parse("normalize, recognize").run(program)
    return decoder_shape(program, infer_axes(program))


# What is found.


@pytest.mark.parametrize(
    ("mixture", "routing"),
    [(dense, "summed"), (experts_first, "dense"), (summed, "summed"), (ragged, "ragged")],
)
def test_the_shape_of_a_mixture(mixture: Mixture, routing: str) -> None:
    shape = shape_of(case(mixture))
    ((network, _),) = shape.networks
    assert network == Network(F, 2, 1, EXPERTS, CHOSEN, routing)
    assert shape.d_model == D and shape.is_costed
    assert network.experts_computed == (CHOSEN if routing == "ragged" else EXPERTS)


def test_a_soft_mixture_is_no_attention() -> None:
    """Its router was taken for keys, and its axes for those of heads: nothing was sharded."""
    shape = shape_of(case(soft))
    ((network, _),) = shape.networks
    assert network == Network(F, 2, 1, EXPERTS, EXPERTS, "summed")
    assert len(list(shape.attentions)) == 1 and shape.is_costed


def test_a_shared_expert_is_a_network_beside_the_mixture() -> None:
    shape = shape_of(case(shared_too))
    (mixture, block), (shared, other) = shape.networks
    assert mixture == Network(F, 2, 1, EXPERTS, CHOSEN, "summed")
    assert shared == Network(F, 1, 1) and block == other
    assert shape.is_costed
    attention, _ = shape.blocks
    only = replace(shape, blocks=(attention, Block(None, (mixture,))))
    assert work(shape).hbm_bytes() - work(only).hbm_bytes() == 4 * 2 * D * F / 8


def test_rows_that_a_mixture_sorts_are_no_table() -> None:
    """Which expert of a token it is was called a position, or d_ff where it is summed."""
    made = case(ragged)
    program = trace(made.function, *made.args, params=0, state=1)
    axes = planned_axes(Pipeline.parse("normalize, recognize").run(program), MESH.axes)
    assert "positions" not in axes.sizes() and axes.sizes()["d_ff"] == F
    assert all(value.type.shape[d] == F for value, d in _having(axes, "d_ff"))


def _having(axes: Axes, name: str) -> Iterator[tuple[Value, int]]:
    """The dimensions that have this name."""
    for value in axes.dimensions:
        yield from ((value, d) for d, names in enumerate(axes.of(value)) if name in names)


# What it costs, by hand: 8 experts of 512, 2 of them for each token, on 8 chips.

MOE = uniform(
    batch=64,
    time=1,
    context=2048,
    layers=10,
    d_model=1024,
    d_ff=512,
    heads=16,
    kv_heads=8,
    d_head=64,
    vocab=4096,
    experts=8,
    experts_per_token=2,
    routing="dense",
)
MESH, V5E = MeshSpec.parse("x=2 y=4"), Topology.parse("v5e:2x4")
MATRIX = 1024 * 512
PROJECTIONS = 1024 * (2 * 16 + 2 * 8) * 64
ROUTER = 1024 * 8


def work(shape: DecoderShape, name: str = "ws1d", attention: str = "heads") -> Workload:
    return Workload(shape, MESH, partition(name, attention, shape, MESH))


@pytest.mark.parametrize(("routing", "computed"), [("dense", 8), ("summed", 8), ("ragged", 2)])
def test_flops_are_those_of_the_experts_that_compute(routing: str, computed: int) -> None:
    weights = (computed * 3 * MATRIX + PROJECTIONS) / 8 + ROUTER
    scores = 4 * 64 * 1024 * 2048 * 10 / 8
    logits = 2 * 64 * 4096 * 1024 / 8
    found = work(varied(MOE, routing=routing))
    assert found.flops() == 2 * 64 * weights * 10
    assert found.other_flops() == scores + logits


@pytest.mark.parametrize(("routing", "batch"), [("dense", 1), ("ragged", 1), ("ragged", 64)])
def test_the_weights_that_are_read_are_those_of_the_experts_that_are_met(
    routing: str, batch: int
) -> None:
    met = 8 * (1 - 0.75**batch) if routing == "ragged" else 8
    weights = 10 * ((met * 3 * MATRIX + PROJECTIONS) / 8 + ROUTER)
    cache = 10 * batch * 2048 * 2 * 8 * 64 / 8
    found = work(varied(MOE, routing=routing, batch=batch))
    assert found.hbm_bytes() == pytest.approx(2 * (weights + 4096 * 1024 / 8 + cache))
    assert found.memory()["weights"] == 2 * 10 * ((24 * MATRIX + PROJECTIONS) / 8 + ROUTER)


def test_ragged_experts_that_fill_no_lanes_are_copied() -> None:
    """48 of d_ff on a chip, written and then read as 128."""
    shape = varied(MOE, routing="ragged", d_ff=384, d_head=128)
    partitioning, met = partition("ws1d", "heads", shape, MESH), 8 * (1 - 0.75**64)
    narrow, wide = (Workload(shape, MESH, partitioning, lanes) for lanes in (1, 128))
    into = 2 * 8 * 1024 * 384 / 8
    more = into + into * 128 / 48 + met / 8 * into * (128 / 48 - 1)
    assert wide.hbm_bytes() - narrow.hbm_bytes() == pytest.approx(2 * 10 * more)
    assert wide.memory()["working set"] > 2 * 10 * into * 128 / 48


def collectives(shape: DecoderShape, name: str = "ws1d") -> list[tuple[str, str, float, str]]:
    found = work(shape, name).collectives()
    return [
        (each.kind, "".join(each.axes), each.bytes, each.part)
        for each in found
        if each.part in ("ffn", "router")
    ]


STREAM = 64 * 1024 * 2


def test_what_a_mixture_exchanges() -> None:
    over_both = [("all-reduce", "xy", STREAM, "ffn")]
    assert collectives(MOE) == collectives(varied(MOE, routing="summed")) == over_both
    assert collectives(varied(MOE, routing="ragged")) == [("all-reduce", "xy", 2 * STREAM, "ffn")]
    # Two chips divide two experts, four the width of each: a sum in every result comes first.
    two = varied(MOE, experts=2)
    assert collectives(two) == [
        ("all-reduce", "x", STREAM, "ffn"),
        ("all-reduce", "y", STREAM, "ffn"),
    ]
    assert collectives(varied(two, routing="summed")) == over_both
    over_d_model = collectives(MOE, "ws2d")
    inner = 2 * 8 / 4 * 512 * 64 * 2  # two of them, of two of the experts; never scattered
    assert ("all-reduce", "x", inner, "ffn") in over_d_model
    assert ("all-reduce", "x", 64 * 8 * 2, "router") in over_d_model


def test_the_results_of_every_expert_are_held() -> None:
    """Beside their hidden values, where these are fewer than the gate's and the other's."""
    many = replace(MOE, batch=1, time=4096, context=64)
    assert work(many).memory()["working set"] == 4096 * 2 * (512 + 7 * 1024 / 8)
    assert work(varied(many, d_ff=4096)).memory()["working set"] == 4096 * 2 * 2 * 4096
    assert work(varied(many, routing="summed")).memory()["working set"] == 4096 * 2 * 2 * 512


# What is chosen.

MIXTRAL = varied(MOE, layers=32, d_model=4096, d_ff=14336, heads=32, d_head=128, vocab=32000)


def test_of_few_tokens_the_experts_are_split_and_of_many_the_batch() -> None:
    topology = Topology.parse("v5p:2x2x2")
    mesh = topology.mesh_axes()
    few = choose(MIXTRAL, topology, mesh)
    assert few.split("weights")["experts"] == few.split("used")["experts"] == ("x", "y", "z")
    assert few.split("residual") == {}
    many = choose(replace(MIXTRAL, batch=16, time=2048), topology, mesh)
    assert len(many.split("residual")["batch"]) >= 2
    assert len(many.split("used").get("experts", ())) <= 1


def test_ragged_rows_are_not_split() -> None:
    shape = varied(MIXTRAL, routing="ragged", batch=16, time=2048)
    topology = Topology.parse("v5p:2x2x2")
    mesh = topology.mesh_axes()
    found = searched(shape, topology, mesh)
    assert all(each.partitioning.axes("residual", "batch") == () for each in found.candidates)
    assert all("experts" not in each.partitioning.split("weights") for each in found.candidates)
    with pytest.raises(Unavailable, match="sort the tokens of all sequences"):
        must_fit(shape, topology, mesh, partition("wg_xyz", "batch", shape, mesh))


# How it lies, and what it gives.


def test_experts_take_what_they_can_and_their_width_the_rest() -> None:
    plan = "plan{ffn=ws1d, attention=heads}"
    for experts, layouts in ((8, ("xy _ _", "xy _ _")), (2, ("x _ y", "x y _"))):
        made = case(dense, experts)
        found = laid_out(planned(made.function, *made.args, state=(1,), plan=plan))
        assert (found["params/gate"], found["params/down"]) == layouts
        assert found["params/up"] == found["params/gate"] and found["params/router"] == "_ _"
    made = case(ragged)
    found = laid_out(planned(made.function, *made.args, state=(1,), plan=plan))
    assert (found["params/gate"], found["params/down"]) == ("_ _ xy", "_ xy _")


@pytest.mark.parametrize(
    ("mixture", "plan"),
    [
        (dense, "plan"),
        (dense, "plan{ffn=ws2d, attention=batch}"),
        (dense, "plan{ffn=wg_x, attention=heads}"),
        (experts_first, "plan{ffn=ws1d, attention=heads}"),
        (summed, "plan{ffn=ws2d, attention=heads}"),
        (summed, "plan{ffn=wg_xyz, attention=batch}"),
        (ragged, "plan"),
        (ragged, "plan{ffn=ws2d, attention=batch}"),
    ],
)
def test_eight_devices_give_the_same(mixture: Mixture, plan: str) -> None:
    program = assert_serves_the_same(case(mixture), PLANNED.replace("plan", plan))
    told = [note for note in plan_notes(program) if note.startswith("8 experts, 2 per token")]
    assert len(told) == 1


def test_what_does_not_divide_stays_whole_and_gives_the_same() -> None:
    program = assert_serves_the_same(case(dense, experts=6, width=30))
    assert len(program.plan.split("weights").get("experts", ())) <= 1


# What the TPU compiler makes of it.


def scanned(mixture: Mixture, params: Any, cache: Any, tokens: jax.Array) -> Any:
    """Layers of heads and 64 experts."""

    def layer(x: jax.Array, each: Any) -> tuple[jax.Array, Any]:
        w, k, v = each
        out, kept = attention(w, {"k": k, "v": v, "position": cache["position"]}, rms_norm(x))
        x = x + out
        return x + mixture(w, rms_norm(x)), (kept["k"], kept["v"])

    x, (k, v) = jax.lax.scan(
        layer, params["embedding"][tokens], (params["layers"], cache["k"], cache["v"])
    )
    cache = {"k": k, "v": v, "position": cache["position"] + 1}
    return rms_norm(x) @ params["embedding"].T, cache


def large(mixture: Mixture, f: int = 512) -> Program:
    def array(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    d, heads, d_head, experts, layers = 1024, 16, 128, 64, 4
    layer = {name: array(layers, d, heads, d_head) for name in ("wq", "wk", "wv")}
    layer |= {"wo": array(layers, heads, d_head, d), "router": array(layers, d, experts)}
    layer |= {name: array(layers, experts, d, f) for name in ("gate", "up")}
    layer |= {"down": array(layers, experts, f, d)}
    params = {"embedding": array(16384, d), "layers": layer}
    cache = {name: array(layers, 64, CONTEXT, heads, d_head) for name in "kv"}
    cache |= {"position": array(dtype="int32")}
    step = partial(scanned, mixture)
    return trace(step, params, cache, array(64, dtype="int32"), params=0, state=1)


def test_the_compiler_exchanges_what_is_planned() -> None:
    target = Target("v5p:2x2x2", Topology.parse("v5p:2x2x2").mesh_axes().axes)
    pipeline = "normalize, recognize, carry_cache, plan, shard, stage, lower"
    program = Pipeline.parse(pipeline).run(large(dense), target)
    assert program.plan.split("weights")["experts"] == ("x", "y", "z")
    found = audit(program, target)
    assert found.unplanned_above(0.01) == ()
    assert found.compiled_bytes == pytest.approx(found.planned_bytes, rel=0.02)


def test_ragged_experts_are_read_where_their_layers_are_stacked() -> None:
    """A layer cut out of its stack would be copied first: 1.13 times the bytes."""
    mesh, target = resolve("v5e:2x2", None, pipeline := Pipeline.parse(DEFAULT_PIPELINE))
    program = pipeline.run(large(ragged), target)
    products = [op for op, _ in program.graph.walk() if op.name == "expert_product_of_layer"]
    assert [op.args[1].type.shape[:2] for op in products] == [(4, 64)] * 3
    executable, _ = compiled(Compilable(program, mesh))
    (traffic,) = (row for row in beside_plan(program, executable, mesh) if "HBM" in row.what)
    assert traffic.compiled == pytest.approx(traffic.planned, rel=0.05)


@pytest.mark.parametrize("padded", [False, True])
def test_experts_that_fill_no_lanes_are_copied_in_every_step_unless_padded(padded: bool) -> None:
    """Their kernel takes them with d_ff last, 80 on a chip, which is not how they are stored."""
    passes = DEFAULT_PIPELINE if padded else DEFAULT_PIPELINE.replace(f"{ONLY_RAGGED}, ", "")
    mesh, target = resolve("v5e:2x2", None, pipeline := Pipeline.parse(passes))
    program = pipeline.run(large(ragged, f=320), target)
    executable, _ = compiled(Compilable(program, mesh))
    for row in beside_plan(program, executable, mesh):
        assert row.compiled == pytest.approx(row.planned, rel=0.05), row
    (told,) = [note for note in plan_notes(program) if "lanes" in note] or [""]
    assert told.endswith("" if padded else "(pad{ragged_d_ff=auto} before plan)")
    experts = next(op for op, _ in program.graph.walk() if op.name == "expert_product_of_layer")
    assert experts.args[1].type.shape == (4, 64, 1024, 512 if padded else 320)


@pytest.mark.parametrize("f", [320, 1024])
def test_ragged_experts_are_padded_to_whole_lanes_as_their_plan_prices_it(f: int) -> None:
    target = Target("v5e:2x2", (("x", 2), ("y", 2)))
    program = Pipeline.parse("normalize, recognize, carry_cache").run(large(ragged, f), target)
    padded = Pipeline.parse(ONLY_RAGGED).run(program, target)
    (told,) = padded.history[-1].notes
    if f == 1024:
        assert told == "ragged_d_ff (1024) divides as it is" and padded.graph == program.graph
        return
    assert told.startswith("d_ff 320 -> 512 of ragged experts: ")
    assert told.endswith(", 576.00 MiB more weights")  # 4 layers of 64 experts of 3 matrices in f32
    shapes = [decoder_shape(each, infer_axes(each)) for each in (program, padded)]
    assert shapes[1] == shapes[0].resized("d_ff", 512, 320)


@pytest.mark.parametrize("mixture", [dense, summed])
def test_experts_of_other_products_are_not_padded(mixture: Mixture) -> None:
    target = Target("v5e:2x2", (("x", 2), ("y", 2)))
    program = Pipeline.parse("normalize, recognize").run(large(mixture, 320), target)
    padded = Pipeline.parse(ONLY_RAGGED).run(program, target)
    assert padded.graph == program.graph
    assert padded.history[-1].notes == ("no experts are ragged",)


@pytest.mark.parametrize("before", ["", ", roll, carry_cache"])
def test_padded_ragged_experts_give_the_same(before: str) -> None:
    """In two layers, written out or in a loop."""
    params, cache, _ = case(ragged, width=30).args

    def step(params: Any, cache: Any, tokens: jax.Array) -> Any:
        x = params[0]["embedding"][tokens]
        for w in params:
            x = x + ragged(w, rms_norm(x))
        return rms_norm(x) @ params[0]["embedding"].T, cache

    args = ([params, params], cache, TOKENS)
    program = Pipeline.parse(f"normalize, recognize{before}").run(trace(step, *args))
    assert ("scan" in [op.name for op in program.graph.ops]) == bool(before)
    padded = Pipeline.parse("pad{ragged_d_ff=48}").run(program)
    weights_ = [op.args[1] for op, _ in padded.graph.walk() if op.name == "ragged_dot_general"]
    assert {value.type.shape for value in weights_} == {(EXPERTS, D, 48), (EXPERTS, 48, D)}
    assert_close(run(padded, *args), run(program, *args))


def test_a_size_that_is_asked_for_says_which_network_it_reached() -> None:
    made = case(shared_too, width=96)  # and a network of 128 beside
    program = Pipeline.parse("normalize, recognize").run(trace(made.function, *made.args, state=1))
    told = Pipeline.parse("pad{d_ff=160}").run(program).history[-1].notes[0]
    assert told.startswith("d_ff 128 -> 160, the widest of 128, 96, as asked: ")
    with pytest.raises(PlanError, match="cannot pad ragged_d_ff to 160: this program has 0"):
        Pipeline.parse("pad{ragged_d_ff=160}").run(program)


def test_experts_in_stacks_give_the_same() -> None:
    """In a loop that runs backwards, and beside a reader of another kind."""

    def layers(stacks: Any, x: jax.Array, counts: jax.Array) -> Any:
        def layer(x: jax.Array, w: Any) -> tuple[jax.Array, jax.Array]:
            inside = jax.lax.ragged_dot(x, w["in"], counts)
            return jax.lax.ragged_dot(jnp.tanh(inside), w["out"], counts), w["in"][0]

        return jax.lax.scan(layer, x, stacks, reverse=True)

    drawn = jax.random.normal
    a, b, c = jax.random.split(jax.random.key(0), 3)
    stacks = {"in": drawn(a, (3, 4, 8, 16)), "out": drawn(b, (3, 4, 16, 8))}
    arrays = (stacks["in"], stacks["out"], drawn(c, (6, 8)), jnp.array([1, 0, 3, 1]))
    graph = trace_graph(lambda i, o, *rest: layers({"in": i, "out": o}, *rest), *arrays)
    moved = rewrite(graph, [experts_of_all_rows, experts_in_stack])
    names = [op.name for op, _ in moved.walk()]
    assert (names.count("expert_product_of_layer"), names.count("expert_product")) == (2, 0)
    for one, other in zip(evaluate(graph, arrays), evaluate(moved, arrays)):
        np.testing.assert_allclose(one, other, atol=1e-5)


# What is quantised: a router chooses, and a small error in it takes another expert.


@pytest.mark.parametrize("mixture", [dense, experts_first, summed, ragged])
def test_a_router_is_left_alone_unless_named(mixture: Mixture) -> None:
    made = case(mixture)
    program = trace(made.function, *made.args, params=0, state=1)
    found = Pipeline.parse("normalize, recognize").run(program)

    def quantised(options: str) -> tuple[list[str], list[str]]:
        done = Pipeline.parse(f"quantize{{{options}}}").run(found)
        reasons = [text for text in done.remarks_of(LEFT_ALONE) if "params/router" in text]
        whole = Pipeline.parse("stage, lower").run(done)
        names = [each.name for each in whole.step_inputs if each.type.dtype == "i8"]
        return names, reasons

    names, reasons = quantised("weights=int8")
    assert "params/gate.quantized" in names and "params/router.quantized" not in names
    assert len(reasons) == 1 and "top_k chooses by its product" in reasons[0]
    named, none = quantised('weights=int8, rules=("router: int8",)')
    assert set(named) == {*names, "params/router.quantized"} and not none


def test_a_router_inside_a_loop_over_layers_is_left_alone() -> None:
    layers = weights(**{"router": (3, D, EXPERTS), "gate": (3, D, EXPERTS)})

    def function(layers: Any, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
            share, which = routed(x @ w["router"])
            one_hot = jnp.sum(jax.nn.one_hot(which, EXPERTS) * share[..., None], axis=1)
            return x + (one_hot * (x @ w["gate"])) @ w["gate"].T, None

        return jax.lax.scan(layer, x, layers)[0]

    program = trace(function, layers, jnp.ones((BATCH, D)))
    done = Pipeline.parse("normalize, recognize, quantize").run(program)
    (left,) = done.remarks_of(LEFT_ALONE)
    assert "layers/router left alone: top_k chooses by its product" in left


def test_a_head_that_argmax_reads_is_a_weight_over_the_vocabulary() -> None:
    def greedy(params: Any, x: jax.Array) -> jax.Array:
        return jnp.argmax(x @ params["up"] @ params["head"], axis=-1)

    program = trace(greedy, weights(up=(D, D), head=(D, VOCAB)), jnp.ones((BATCH, D)))
    found = Pipeline.parse("normalize, recognize").run(program)
    (left,) = Pipeline.parse("quantize").run(found).remarks_of(LEFT_ALONE)
    assert "params/head left alone: it is a table over the vocabulary" in left
    assert not Pipeline.parse("quantize{vocab=true}").run(found).remarks_of(LEFT_ALONE)
