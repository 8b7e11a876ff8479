"""Shardings that a program carries: kept where they fit the machine, removed where not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.lax import with_sharding_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dialect.machine.mesh import TargetError
from dialect.reports.op_cost import flops
from rewrite import Pipeline, Program, auto_shard, compile, trace
from rewrite.ir import Graph, new_input
from rewrite.opdef import build, with_args
from rewrite.program import LEFT_ALONE
from rewrite.target import Target
from tests.kit import at_once, notes_of, op_names

P = PartitionSpec
DEVICES = np.array(jax.devices())
ONE = Mesh(DEVICES[:1].reshape(1, 1), ("data", "tensor"))  # on a laptop
SAME = Mesh(DEVICES.reshape(2, 4), ("x", "y"))
FLAT = Mesh(DEVICES, ("tp",))
TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
RANDOM = np.random.default_rng(11)
X, W = (jnp.asarray(RANDOM.standard_normal(shape), jnp.float32) for shape in ((8, 16), (16, 16)))
Step = Callable[[jax.Array, jax.Array], Any]


def retargeted(function: Step, target: Target = TARGET) -> Program:
    return Pipeline.parse("retarget").run(trace(function, W, X, state=()), target)


def ops_but_constants(program: Program) -> list[str]:
    return [name for name in op_names(program) if name != "const"]


def layouts(program: Program) -> list[Any]:
    return [op["layout"] for op, _ in program.graph.walk() if op.name == "constrain"]


def assert_runs_sharded(function: Step, pipeline: str = "retarget, normalize, stage, lower") -> Any:
    """The step on eight devices; its results equal the function's."""
    expected = jax.jit(function)(W, X)
    found = auto_shard(function, "cpu:8", pipeline=pipeline, state=())(W, X)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    return found


def line_of(function: Any, offset: int) -> int:
    return inspect.getsourcelines(function)[1] + offset


# Constraints.


def test_without_shardings_a_program_passes_through_untouched() -> None:
    before = trace(lambda w, x: lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, 3), W, X)
    after = Pipeline.parse("retarget").run(before, TARGET)
    assert after.graph.outputs == before.graph.outputs
    assert (after.inputs, notes_of(after)) == (before.inputs, ())


def test_on_a_mesh_of_one_device_they_mean_nothing() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        x = with_sharding_constraint(x, NamedSharding(ONE, P("data", "tensor")))
        return with_sharding_constraint(x @ w, NamedSharding(ONE, P("data")))

    program = retargeted(function)
    assert ops_but_constants(program) == ["dot_general"]
    (note,) = notes_of(program)
    assert note.startswith(
        "removed shardings: their mesh data=1 tensor=1 has one device (2 times, first at "
        f"{__file__}:{line_of(function, 1)} "
    )


def test_names_that_the_mesh_has_become_constraints() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return with_sharding_constraint(x @ w, NamedSharding(SAME, P("y", ("x",))))

    program = retargeted(function)
    assert ops_but_constants(program) == ["dot_general", "constrain"]
    assert layouts(program) == [(("y",), ("x",))]
    assert notes_of(program)[0].startswith("kept shardings: they fit the mesh (1 times")
    assert assert_runs_sharded(function).sharding.spec == P("y", "x")


def test_a_dimension_may_be_left_to_the_compiler() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return with_sharding_constraint(x @ w, NamedSharding(SAME, P("x", P.UNCONSTRAINED))) + 1

    program = retargeted(function)
    assert layouts(program) == [(("x",), None)]
    assert Program.parse(str(program)) == program
    assert_runs_sharded(function)
    step = auto_shard(function, "cpu:8", pipeline="retarget, normalize", state=())
    assert "_@x" in step.ir(W, X)


WIDE = Mesh(DEVICES.reshape(2, 2, 2), ("x", "z", "one"))
REASONS = {
    "the mesh x=2 y=4 has no axis tp": NamedSharding(FLAT, P("tp")),
    "the mesh x=2 y=4 has no axis one or z": NamedSharding(WIDE, P("z", "one")),
    "the mesh x=2 y=4 has no axis tp (": NamedSharding(FLAT, P()),  # whole along what is not there
    "an axis of 3 does not divide over x=2": NamedSharding(SAME, P(None, None, "x")),
    "a SingleDeviceSharding names no mesh axes": SingleDeviceSharding(DEVICES[0]),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_does_not_fit_is_removed_with_its_reason(reason: str) -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        y = jnp.broadcast_to((x @ w)[..., None], (8, 16, 3))
        return lax.with_sharding_constraint(y, REASONS[reason]).sum()

    program = retargeted(function)
    assert {"sharding_constraint", "constrain"}.isdisjoint(ops_but_constants(program))
    (note,) = notes_of(program)
    assert f"removed shardings: {reason}" in note


def test_without_a_target_mesh_all_are_removed() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return with_sharding_constraint(x @ w, NamedSharding(SAME, P("x")))

    program = retargeted(function, Target())
    assert ops_but_constants(program) == ["dot_general"]
    assert "there is no mesh to lay them over" in notes_of(program)[0]


def test_an_axis_of_one_device_is_left_out_where_the_mesh_has_it_not() -> None:
    mesh = Mesh(DEVICES.reshape(4, 1, 2), ("y", "expert", "x"))

    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return with_sharding_constraint(x @ w, NamedSharding(mesh, P(("y", "expert"), "x")))

    assert layouts(retargeted(function)) == [(("y",), ("x",))]


def test_a_partition_spec_under_a_mesh() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return with_sharding_constraint(x @ w, P("x", "y"))

    with jax.set_mesh(SAME):
        assert layouts(retargeted(function)) == [(("x",), ("y",))]


def test_device_put_and_reshard() -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        here = jax.device_put(x @ w, DEVICES[0]) + jax.device_put(x)
        return jax.device_put(here, NamedSharding(SAME, P("x")))

    program = retargeted(function)
    assert ops_but_constants(program) == ["dot_general", "add", "constrain"]
    assert [note.partition(" (")[0] for note in notes_of(program)] == [
        "removed shardings: a Device names no mesh axes",
        "removed shardings: they name no devices",
        "kept shardings: they fit the mesh",
    ]
    assert_runs_sharded(function)


@pytest.mark.parametrize("axes", ["x y", "d t"])
def test_explicit_axes(axes: str) -> None:
    """The types of explicit axes are constraints too; whole ones ask for nothing."""
    mesh = jax.make_mesh((2, 4), tuple(axes.split()), axis_types=(AxisType.Explicit,) * 2)
    one, other = axes.split()

    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        x, w = jax.sharding.reshard(x, P(one, other)), jax.sharding.reshard(w, P(other, None))
        y = jnp.einsum("ab,bc->ac", x, w, out_sharding=P(one, None))
        return jax.sharding.reshard(jax.nn.silu(y) + jnp.ones(16), P())

    with jax.set_mesh(mesh):
        program = retargeted(function)
        assert_runs_sharded(function)
    attributes = [value for op, _ in program.graph.walk() for _, value in op.attrs]
    assert not [value for value in attributes if "Sharding" in str(getattr(value, "kind", ""))]
    kept = [((("x",), ()), ((), ())), ()][axes != "x y"]
    assert tuple(layouts(program)) == kept


def test_functions_of_auto_axes_ask_for_their_results_alone() -> None:
    """Inside of `jax.sharding.auto_axes` the compiler may lay out arguments as it likes."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)

    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        x = jax.sharding.reshard(x, P("x", "y"))
        return jax.sharding.auto_axes(lambda w, x: x @ w, out_sharding=P("x", None))(w, x)

    with jax.set_mesh(mesh):
        program = retargeted(function)
        assert_runs_sharded(function)
    assert program.inputs[1].layout == (("x",), ("y",))
    assert layouts(program) == [(("x",), ())]


# Inputs: what is constrained where it comes in lies so from the start.


def test_the_shardings_of_a_jit_become_layouts_and_constraints() -> None:
    shardings = [NamedSharding(SAME, spec) for spec in (P(None, "y"), P("x"), P("x", "y"))]
    function = jax.jit(
        lambda w, x: x @ w, in_shardings=tuple(shardings[:2]), out_shardings=shardings[2]
    )
    program = retargeted(function)
    assert [each.layout for each in program.inputs] == [((), ("y",)), (("x",), ())]
    assert layouts(program) == [(("x",), ("y",))]
    assert assert_runs_sharded(function).sharding.spec == P("x", "y")


def test_a_jit_inside_the_program_keeps_its_shardings() -> None:
    inner = jax.jit(jnp.sin, out_shardings=NamedSharding(SAME, P("y")))
    program = retargeted(lambda w, x: inner(x @ w) + 1)
    assert ops_but_constants(program) == ["dot_general", "sin", "constrain", "add"]
    program = retargeted(lambda w, x: jax.jit(jnp.sin)(x @ w) + 1)
    assert ops_but_constants(program) == ["dot_general", "sin", "add"]


def test_weights_constrained_in_a_loop_over_layers_lie_so() -> None:
    def function(stacked: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return x @ with_sharding_constraint(w, NamedSharding(SAME, P(None, "y"))), None

        return lax.scan(layer, x, stacked)[0]

    stacked = jnp.stack([W, W])
    program = Pipeline.parse("retarget, normalize, stage").run(trace(function, stacked, X), TARGET)
    assert program.inputs[0].layout == ((), (), ("y",))
    assert program.step_inputs[0].layout == ((), (), ("y",))
    assert "constrain" not in ops_but_constants(program)


@pytest.mark.parametrize("scanned", [False, True])
def test_state_lies_as_its_new_value_is_constrained(scanned: bool) -> None:
    def write(cache: jax.Array, new: jax.Array) -> jax.Array:
        cache = lax.dynamic_update_slice(cache, new, (0, 3))
        return with_sharding_constraint(cache, NamedSharding(SAME, P("y", None)))

    def function(w: jax.Array, cache: jax.Array) -> Any:
        if not scanned:
            return jnp.sum(w), write(cache, w[:8, :1])
        layers = (cache, jnp.stack([w[:8, :1]] * 3))
        return lax.scan(lambda c, each: (c, write(*each)), jnp.sum(w), layers)

    cache = jnp.zeros((3, 8, 16) if scanned else (8, 16))
    program = Pipeline.parse("retarget").run(trace(function, W, cache, state=1), TARGET)
    assert program.inputs[1].layout == ((),) * scanned + (("y",), ())
    assert layouts(program) == []


def test_a_second_layout_of_an_input_is_a_constraint() -> None:
    """Stored over x and gathered where it is used (FSDP)."""

    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        stored = with_sharding_constraint(w, NamedSharding(SAME, P("x", "y")))
        return x @ with_sharding_constraint(stored, NamedSharding(SAME, P(None, "y")))

    program = retargeted(function)
    assert program.inputs[0].layout == (("x",), ("y",))
    assert layouts(program) == [((), ("y",))]
    assert Program.parse(str(program)) == program


# The plan: what the program says itself wins.


def decoder(place: Callable[..., jax.Array]) -> Callable[..., Any]:
    """A small decoder's step; `place(x, *mesh_axes)` is its library's way to constrain."""

    def norm(x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    def step(params: Any, cache: Any, tokens: jax.Array) -> Any:
        x = place(params["embedding"][tokens], "x", None)
        q, k, v = (
            place(jnp.einsum("bd,dhk->bhk", norm(x), params[name]), "x", "y", None)
            for name in ("wq", "wk", "wv")
        )
        at = cache["position"]
        keys = lax.dynamic_update_slice(cache["k"], k[:, None], (0, at, 0, 0))
        values = lax.dynamic_update_slice(cache["v"], v[:, None], (0, at, 0, 0))
        keys, values = (place(each, "x", None, "y", None) for each in (keys, values))
        logits = jnp.einsum("bhk,bshk->bhs", q, keys) * 8**-0.5
        logits = jnp.where(jnp.arange(16) <= at, logits, -jnp.inf)
        mixed = jnp.einsum("bhs,bshk->bhk", jax.nn.softmax(logits, axis=-1), values)
        x = place(x + jnp.einsum("bhk,hkd->bd", mixed, params["wo"]), "x", None)
        hidden = place(jax.nn.silu(norm(x) @ params["gate"]) * (norm(x) @ params["up"]), "x", "y")
        x = place(x + hidden @ params["down"], "x", None)
        return norm(x) @ params["embedding"].T, {"k": keys, "v": values, "position": at + 1}

    return step


def constrained_on(mesh: Mesh, names: dict[str, str]) -> Callable[..., jax.Array]:
    def place(x: jax.Array, *axes: str | None) -> jax.Array:
        spec = P(*(names.get(axis) for axis in axes))
        return with_sharding_constraint(x, NamedSharding(mesh, spec))

    return place


@cache
def arguments() -> tuple[Any, Any, jax.Array]:
    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(RANDOM.standard_normal(shape) * shape[-1] ** -0.5, jnp.float32)

    params = {name: normal(64, 8, 8) for name in ("wq", "wk", "wv")} | {"wo": normal(8, 8, 64)}
    params |= {name: normal(64, 128) for name in ("gate", "up")} | {"down": normal(128, 64)}
    params |= {"embedding": normal(96, 64)}
    cache = {"k": normal(8, 16, 8, 8), "v": normal(8, 16, 8, 8), "position": jnp.int32(5)}
    return params, cache, jnp.arange(8, dtype=jnp.int32)


RECOGNIZE = "retarget, normalize, recognize"
SERVE = RECOGNIZE + ", carry_cache, plan{ffn=ws1d, attention=heads}, shard, stage, lower"


def test_removed_constraints_leave_the_program_as_if_they_had_never_been() -> None:
    there = decoder(constrained_on(ONE, {"x": "data", "y": "tensor"}))
    never = decoder(lambda x, *axes: x)
    one, other = (
        Pipeline.parse(RECOGNIZE).run(trace(step, *arguments()), TARGET) for step in (there, never)
    )
    assert one.graph == other.graph
    assert "attend" in ops_but_constants(one)


def test_what_the_program_constrains_is_left_alone_by_the_plan() -> None:
    step = decoder(constrained_on(SAME, {"x": "x", "y": "y"}))
    program = Pipeline.parse(SERVE.partition(", stage")[0]).run(trace(step, *arguments()), TARGET)
    asked = [op for op, _ in program.graph.walk() if op.name == "constrain"]
    assert {op["why"] for op in asked} == {"the program asks for it"}
    planned = [op for op, _ in program.graph.walk() if op.name == "exchange"]
    assert len(asked) == 7
    assert [each.layout for each in program.inputs if each.name in ("cache/k", "cache/v")] == [
        (("x",), (), ("y",), ())
    ] * 2
    read = {arg for op in asked for arg in op.args} | {op.results[0] for op in asked}
    assert not [op for op in planned if op.args[0] in read or op.results[0] in read]
    assert len(planned) == 11  # the products that it says nothing of, and what they read


OWN = "plan: the program's own shardings left alone: "
FREE = SERVE.replace("plan{ffn=ws1d, attention=heads}", "plan")


def test_the_plan_agrees_with_what_the_program_constrains() -> None:
    step = decoder(constrained_on(SAME, {"x": "x", "y": "y"}))
    program = Pipeline.parse(FREE).run(trace(step, *arguments()), TARGET)
    free = Pipeline.parse(FREE).run(trace(decoder(lambda x, *axes: x), *arguments()), TARGET)
    assert program.plan is not None and free.plan is not None
    assert program.plan.split("residual") == {"batch": ("x",)}
    assert program.plan.split("attention") == {"batch": ("x",), "heads": ("y",)}
    assert free.plan.groups != program.plan.groups
    (left,) = program.remarks_of(LEFT_ALONE)
    assert left.startswith(f"{OWN}without them {free.plan.label}, ")
    assert left.endswith(" (retarget{shardings=remove})")
    removed = FREE.replace("retarget", "retarget{shardings=remove}")
    as_free = Pipeline.parse(removed).run(trace(step, *arguments()), TARGET)
    assert as_free.graph == free.graph and as_free.plan == free.plan


def test_constraints_that_no_partitioning_has_are_told() -> None:
    """The residual stream split otherwise than queries: the bytes of one of both are resharded."""
    mesh = {"x": "x", "y": "y"}
    place = constrained_on(SAME, mesh)
    other = constrained_on(SAME, {"x": "y", "y": "x"})
    step = decoder(lambda x, *axes: (place if x.ndim == 2 else other)(x, *axes))
    program = Pipeline.parse(FREE).run(trace(step, *arguments()), TARGET)
    told = program.remarks_of(LEFT_ALONE)
    assert told[0].startswith(
        OWN + "no partitioning has all of them, 10.00 KiB a step lie otherwise"
    )


def test_a_product_with_weights_that_the_program_lays_out_is_left_alone() -> None:
    def step(params: Any, cache: Any, tokens: jax.Array) -> Any:
        gate = with_sharding_constraint(params["gate"], NamedSharding(SAME, P("y", "x")))
        return decoder(lambda x, *axes: x)({**params, "gate": gate}, cache, tokens)

    program = Pipeline.parse(SERVE).run(trace(step, *arguments()), TARGET)
    laid = {each.name: each.layout for each in program.step_inputs}
    assert laid["params/gate"] == (("y",), ("x",))
    assert laid["params/up"] == ((), ("x", "y"))


@pytest.mark.parametrize("mesh", [ONE, SAME, FLAT], ids=["one", "same", "flat"])
def test_constrained_decoders_serve_the_same(mesh: Mesh) -> None:
    names = {"one": ("data", "tensor"), "same": ("x", "y"), "flat": (None, "tp")}
    kind = {ONE: "one", SAME: "same", FLAT: "flat"}[mesh]
    step = decoder(constrained_on(mesh, dict(zip("xy", names[kind]))))
    expected, _ = jax.jit(decoder(lambda x, *axes: x))(*arguments())
    sharded = auto_shard(step, "cpu:8", pipeline=SERVE, donate_state=False)
    found, _ = sharded(*arguments())
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


# shard_map.


def mean_over_y(x: jax.Array) -> jax.Array:
    return lax.pmean(x, "y")


BODIES: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "psum": (lambda x: lax.psum(x, "y"), P("x", "y"), P("x", None)),
    "psum of both": (lambda x: lax.psum(x * 2, ("x", "y")), P("x", "y"), P()),
    "psum of a constant": (lambda x: x / lax.psum(1, "y"), P("x", "y"), P("x", "y")),
    "pmax and pmin": (lambda x: lax.pmax(x, "x") - lax.pmin(x, "x"), P("x", "y"), P(None, "y")),
    "pmean": (mean_over_y, P("x", "y"), P("x", None)),
    "all_gather": (
        lambda x: lax.all_gather(x, "y", axis=1, tiled=True)[:, :4],
        P("x", "y"),
        P("x", "y"),
    ),
    "all_gather stacked": (lambda x: lax.all_gather(x, "x").sum(0), P("x", "y"), P("x", "y")),
    "psum_scatter": (
        lambda x: lax.psum_scatter(x, "y", scatter_dimension=0, tiled=True),
        P(None, "y"),
        P("y", None),
    ),
    "all_to_all": (lambda x: lax.all_to_all(x, "y", 0, 1, tiled=True), P(None, "y"), P(None, "y")),
    "ppermute": (
        lambda x: lax.ppermute(x, "y", [(i, (i + 1) % 4) for i in range(4)]),
        P("x", "y"),
        P("x", "y"),
    ),
    "axis_index": (lambda x: x * lax.axis_index("y"), P("x", None), P("x", "y")),
    "both axes on one": (lambda x: x[:1] * lax.axis_index("x"), P(("y", "x")), P(("x", "y"))),
    "scan": (
        lambda x: lax.scan(lambda c, a: (c + lax.psum(a, "y"), None), x[0] * 0, x)[0],
        P("x", "y"),
        P("y"),
    ),
    "cond": (
        lambda x: lax.cond(lax.axis_index("y") > 1, lambda x: x * 2, lambda x: -x, x),
        P("x", "y"),
        P("x", "y"),
    ),
}


def mapped(name: str, mesh: Any, check: bool = False) -> Step:
    body, inputs, outputs = BODIES[name]
    function = jax.shard_map(body, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=check)
    return lambda w, x: function(x)


@pytest.mark.parametrize("name", BODIES)
def test_shard_map_over_the_targets_axes_stays_one(name: str) -> None:
    program = retargeted(mapped(name, SAME))
    assert ops_but_constants(program) == ["mapped"]
    assert notes_of(program)[0].startswith("kept shard_map over x=2 y=4 (1 times, first at ")
    assert_runs_sharded(mapped(name, SAME))


@pytest.mark.parametrize("name", BODIES)
def test_without_a_mesh_it_means_the_same(name: str) -> None:
    """`mapped` is evaluated over all blocks at once."""
    function = mapped(name, SAME)
    found, wanted = (at_once(each, W, X) for each in (retargeted(function), function))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", BODIES)
def test_shard_map_over_other_axes_is_written_out(name: str) -> None:
    function = mapped(name, SAME)
    program = retargeted(function, Target("cpu:8", (("a", 2), ("y", 4))))
    assert {"mapped", "shard_map"}.isdisjoint(ops_but_constants(program))
    assert notes_of(program)[0].startswith("wrote out a shard_map over x=2 y=4, all its blocks at")
    np.testing.assert_allclose(at_once(program, W, X), at_once(function, W, X), atol=1e-5)


@pytest.mark.parametrize("target", [TARGET, Target("cpu:8", (("tp", 8),))], ids=["same", "other"])
def test_shard_map_that_checks_what_varies(target: Target) -> None:
    function = jax.shard_map(
        lambda x, w: jnp.tanh(lax.psum(x @ w, "y")) * lax.axis_index("x"),
        mesh=SAME,
        in_specs=(P("x", "y"), P("y", None)),
        out_specs=P("x", None),
    )
    program = retargeted(lambda w, x: function(x, w), target)
    np.testing.assert_allclose(at_once(program, W, X), at_once(function, X, W), atol=1e-5)
    assert_runs_sharded(lambda w, x: function(x, w))


def test_shard_map_over_one_device_is_its_body() -> None:
    function = jax.shard_map(
        lambda x, w: lax.psum(jnp.tanh(x @ w), ("data", "tensor")),
        mesh=ONE,
        in_specs=(P("data", "tensor"), P("tensor", None)),
        out_specs=P("data", None),
    )
    retarget = Pipeline.parse("retarget, normalize")
    program = retarget.run(trace(lambda w, x: function(x, w), W, X, state=()), TARGET)
    plain = retarget.run(trace(lambda w, x: jnp.tanh(x @ w), W, X, state=()), TARGET)
    assert program.graph == plain.graph


LONE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "its number": lambda x: x + lax.axis_index("data") + lax.axis_index(("data", "tensor")),
    "sums": lambda x: lax.psum(x, ("data", "tensor")) - lax.pmean(2 * x, "data"),
    "extremes": lambda x: lax.pmax(x, "data") * lax.pmin(x, "tensor"),
    "all_gather": lambda x: lax.all_gather(x, "data", axis=1)[:, 0] * lax.all_gather(x, "data")[0],
    "all_gather tiled": lambda x: lax.all_gather(x, ("data", "tensor"), axis=1, tiled=True),
    "psum_scatter": lambda x: lax.psum_scatter(x[None], "tensor"),
    "all_to_all": lambda x: lax.all_to_all(x, "data", 0, 1, tiled=True),
    "ppermute": lambda x: lax.ppermute(x, "data", [(0, 0)]),
    "in a loop": lambda x: lax.fori_loop(0, 3, lambda i, y: y + lax.psum(x, "data"), x),
    "a ragged product": lambda x: lax.ragged_dot(
        x, jnp.ones((3, 16, 4)), jnp.array([2, 1, 5]) + lax.axis_index("data")
    ),
}


@pytest.mark.parametrize("name", LONE)
def test_exchanges_over_an_axis_of_one_chip_give_back_what_they_get(name: str) -> None:
    function = jax.shard_map(
        LONE[name], mesh=ONE, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    program = retargeted(lambda w, x: function(x))
    assert not {"mapped", "shard_map", "axis_index"} & set(ops_but_constants(program))
    np.testing.assert_array_equal(program(W, X), jax.jit(function)(X))


def test_an_axis_of_one_chip_beside_others_is_left_out_of_their_exchanges() -> None:
    mesh = jax.make_mesh((1, 8), ("one", "tp"), axis_types=(AxisType.Auto,) * 2)
    function = jax.shard_map(
        lambda x: lax.psum(x * (1 + lax.axis_index("one")), ("one", "tp")),
        mesh=mesh,
        in_specs=P("one", "tp"),
        out_specs=P("one"),
    )
    program = retargeted(lambda w, x: function(x))
    assert notes_of(program)[0].startswith("wrote out a shard_map over one=1 tp=8")
    np.testing.assert_allclose(program(W, X), jax.jit(function)(X), atol=1e-5)


def test_an_exchange_over_one_chip_that_is_not_known_stays_with_its_reason() -> None:
    function = jax.shard_map(
        lambda x: lax.ppermute(x, "data", []),  # nobody sends: zeros
        mesh=ONE,
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=False,
    )
    program = retargeted(lambda w, x: function(x))
    assert ops_but_constants(program) == ["shard_map"]
    assert "NotImplementedError: ppermute over a mesh axis of one chip" in notes_of(program)[0]
    np.testing.assert_array_equal(program(W, X), jnp.zeros_like(X))


def test_constraints_inside_a_shard_map_are_dropped() -> None:
    function = jax.shard_map(
        lambda x: with_sharding_constraint(x * 2, P(None, "y")),
        mesh=SAME,
        in_specs=P("x"),
        out_specs=P("x"),
        axis_names={"x"},
    )
    assert_runs_sharded(lambda w, x: function(x))


HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "body",
    [
        lambda x: lax.psum(x, "tp", axis_index_groups=HALVES),
        lambda x: lax.ppermute(x, "tp", [(0, 1), (1, 2)]),
    ],
    ids=["groups", "some blocks dropped"],
)
def test_what_cannot_be_written_out_stays_and_says_what_to_do(body: Step) -> None:
    function = jax.shard_map(body, mesh=FLAT, in_specs=P("tp"), out_specs=P("tp"), check_vma=False)
    program = retargeted(lambda w, x: function(x))
    assert ops_but_constants(program) == ["shard_map"]
    (note,) = notes_of(program)
    assert "left a shard_map over tp=8 as it is, which compiles for its own mesh only" in note
    assert "trace it under a mesh of one device, or with the target's axes" in note
    np.testing.assert_allclose(program(W, X), jax.jit(function)(X), atol=1e-5)
    with pytest.raises(TargetError) as caught:
        auto_shard(lambda w, x: function(x), "v5e:2x4", state=()).lower(W, X)
    assert "retarget: left a shard_map over tp=8" in caught.value.hint


def test_the_cost_of_a_function_of_blocks_is_that_of_all_blocks() -> None:
    """Counted on one block: `ragged_dot` and others have no rule for a batch of blocks."""
    inside = jax.shard_map(jnp.dot, mesh=SAME, in_specs=(P("x"), P()), out_specs=P("x"))
    (op,) = (op for op, _ in retargeted(lambda w, x: inside(x, w)).graph.walk() if op.results)
    rows, columns = op.args[0].type.shape, op.types[0].shape[1]
    ways = 8 // 2  # the rows are split in two, and every half is multiplied on four chips
    assert flops(op) == 2 * rows[0] * rows[1] * columns * ways


# Kernels.


def twice(x: jax.Array, interpret: bool = False) -> jax.Array:
    def kernel(x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...] * 2

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=interpret)(x)


def test_a_kernel_runs_whole_on_every_chip() -> None:
    program = retargeted(lambda w, x: twice(x @ w) + 1)
    assert ops_but_constants(program) == ["dot_general", "whole", "add", "pallas_call"]
    (note,) = notes_of(program)
    assert note.startswith("kernels are replicated on every chip; to split one, use jax.shard_map")


def test_where_the_compiler_can_take_it_a_kernel_stays_as_it_is() -> None:
    interpreted = retargeted(lambda w, x: twice(x @ w, interpret=True))
    alone = retargeted(lambda w, x: twice(x @ w), Target("v5e:1x1", (("x", 1),)))
    inside = retargeted(
        lambda w, x: jax.shard_map(
            twice, mesh=SAME, in_specs=P("x", "y"), out_specs=P("x", "y"), check_vma=False
        )(x)
    )
    assert (
        ops_but_constants(interpreted) == ops_but_constants(alone) == ["dot_general", "pallas_call"]
    )
    assert ops_but_constants(inside) == ["mapped"]


def test_whole_means_what_its_region_means() -> None:
    """Around a kernel that a CPU can run, on one device and on eight."""
    program = retargeted(lambda w, x: twice(x @ w, interpret=True))
    (kernel,) = (op for op in program.graph.ops if op.name == "pallas_call")
    inner = new_input(kernel.types[0])
    region = Graph((inner,), with_args(kernel, (inner,)).results)
    wrapped = build("whole", kernel.args[0], regions=(region,))
    program = program.with_graph(Graph(program.graph.inputs, wrapped.results))
    np.testing.assert_allclose(program(W, X), 2 * (X @ W), atol=1e-5)
    found = compile(Pipeline.parse("stage").run(program, TARGET), "cpu:8")([W], [], [], [X])[0]
    np.testing.assert_allclose(found, 2 * (X @ W), atol=1e-5)


def test_compiles_for_a_machine_that_is_not_there() -> None:
    """Constraints of two meshes, a shard_map and a kernel, on eight chips."""
    block = jax.shard_map(
        lambda x: lax.psum(x, "y"), mesh=SAME, in_specs=P("x", "y"), out_specs=P("x", None)
    )

    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        y = with_sharding_constraint(x @ w, NamedSharding(ONE, P("data")))
        y = with_sharding_constraint(twice(y), NamedSharding(SAME, P("x", "y")))
        return block(y)

    shapes = jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((8, 512), X.dtype)
    step = auto_shard(function, "v5e:2x4", pipeline="retarget, normalize, stage, lower", state=())
    text = step.lower(*shapes).compile().as_text()
    assert "tpu_custom_call" in text
    assert "all-reduce" in text


@pytest.mark.parametrize("kind", ["sharding", "shard_map", "kernel"])
def test_without_retarget_the_error_says_what_to_do(kind: str) -> None:
    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        if kind == "kernel":
            return twice(x @ w)
        if kind == "sharding":
            return with_sharding_constraint(x @ w, NamedSharding(ONE, P("data")))
        return jax.shard_map(jnp.sin, mesh=FLAT, in_specs=P("tp"), out_specs=P("tp"))(x @ w)

    held = {"sharding": "sharding_constraint", "kernel": "pallas_call"}.get(kind, kind)

    step = auto_shard(function, "v5e:2x4", pipeline="normalize, stage, lower", state=())
    shapes = jax.ShapeDtypeStruct((128, 128), X.dtype), jax.ShapeDtypeStruct((8, 128), X.dtype)
    with pytest.raises(TargetError, match="which may be bound to other devices") as caught:
        step.lower(*shapes).compile()
    assert f"it contains {held}, which" in str(caught.value)
    assert "put `retarget` first in the pipeline" in str(caught.value)
