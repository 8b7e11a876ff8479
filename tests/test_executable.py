"""Executables, for the CPU at hand and for a TPU far away: what XLA built, and what it said."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dialect.compiled import hlo
from dialect.compiled.executable import (
    Alias,
    Collective,
    DoesNotFit,
    Parameter,
    compile_quietly,
    read,
)

AUTO = (AxisType.Auto, AxisType.Auto)
LAYERS, BATCH, WIDTH, HIDDEN = 3, 8, 256, 512


@pytest.fixture(scope="module")
def cpu() -> Mesh:
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=AUTO)


@pytest.fixture(scope="module")
def tpu() -> Mesh:
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return jax.make_mesh((2, 2), ("x", "y"), devices=topology.devices, axis_types=AUTO)


def lowered(
    mesh: Mesh, function: Any, shapes: Any, specs: Any, out: Any = None, **options: Any
) -> Any:
    """`function` for the platform of a mesh, with partition specs for what goes in and out."""

    def sharding(spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(mesh, spec)

    inputs, outputs = jax.tree.map(sharding, (specs, out), is_leaf=is_spec)
    jitted = jax.jit(function, in_shardings=inputs, out_shardings=outputs, **options)
    platform = mesh.devices.flat[0].platform
    return jitted.trace(*shapes).lower(lowering_platforms=(platform,))


def is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def layers(mesh: Mesh, dtype: Any) -> Any:
    """Quantised layers in a loop, split over y, and a cache that is updated in place."""
    whole = NamedSharding(mesh, PartitionSpec())

    def step(weights: Any, cache: Any, x: Any, at: Any) -> Any:
        def layer(x: Any, weights: Any) -> Any:
            up, down = (weight.astype(x.dtype) for weight in weights)
            return lax.with_sharding_constraint(jnp.tanh(x @ up) @ down, whole), None

        x, _ = lax.scan(layer, x, weights)
        return x, lax.dynamic_update_slice(cache, x[None], (at, 0, 0))

    struct, spec = jax.ShapeDtypeStruct, PartitionSpec
    up, down = struct((LAYERS, WIDTH, HIDDEN), jnp.int8), struct((LAYERS, HIDDEN, WIDTH), jnp.int8)
    cache, x = struct((4, BATCH, WIDTH), dtype), struct((BATCH, WIDTH), dtype)
    shapes = ((up, down), cache, x, struct((), jnp.int32))
    specs = ((spec(None, None, "y"), spec(None, "y")), spec(), spec(), spec())
    return lowered(mesh, step, shapes, specs, (spec(), spec()), donate_argnums=1)


def test_cpu_executable(cpu: Mesh) -> None:
    compiled, notes = compile_quietly(layers(cpu, jnp.float32))
    report = read(compiled, cpu)
    assert notes == ()
    assert report.parameters == (
        Parameter("s8", (3, 256, 128), 98304),
        Parameter("s8", (3, 128, 256), 98304),
        Parameter("f32", (4, 8, 256), 32768),
        Parameter("f32", (8, 256), 8192),
        Parameter("s32", (), 4),
    )
    assert report.by_dtype() == {"f32": (2, 40960), "s32": (1, 4), "s8": (2, 196608)}
    assert report.aliases == (Alias(parameter=2, output=1),)
    assert report.memory.argument_bytes == 40960 + 4 + 196608
    assert report.memory.alias_bytes == 32768
    (reduce,) = report.collectives
    assert (reduce.kind, reduce.dtype, reduce.result_bytes) == ("all-reduce", "f32", 8192)
    assert (reduce.group_size, reduce.axes) == (4, ("y",))
    assert (reduce.trip_count, reduce.count) == (LAYERS, 1)
    assert reduce.source.endswith("dot_general")


def test_tpu_executable(tpu: Mesh) -> None:
    compiled, notes = compile_quietly(layers(tpu, jnp.bfloat16))
    report = read(compiled, tpu)
    assert notes == ()
    assert report.by_dtype() == {"bf16": (2, 20480), "s32": (1, 4), "s8": (2, 393216)}
    assert report.aliases == (Alias(parameter=2, output=1),)
    assert report.memory.alias_bytes == 16384
    # Its output apart from the cache: x, and the table of a tuple of two.
    assert report.memory.output_bytes - report.memory.alias_bytes - 4096 in range(0, 1025)
    assert report.memory.total_bytes > report.memory.argument_bytes > 393216
    (reduce,) = report.collectives
    assert (reduce.kind, reduce.dtype, reduce.result_bytes) == ("all-reduce", "bf16", 4096)
    assert (reduce.group_size, reduce.axes) == (2, ("y",))
    assert (reduce.trip_count, reduce.count) == (LAYERS, 1)


def test_collectives_without_a_mesh_have_no_axes(cpu: Mesh) -> None:
    (reduce,) = read(compile_quietly(layers(cpu, jnp.float32))[0]).collectives
    assert (reduce.group_size, reduce.axes) == (4, None)


@pytest.mark.parametrize("place", ["cpu", "tpu"])
def test_kinds_and_axes(place: str, request: pytest.FixtureRequest) -> None:
    mesh: Mesh = request.getfixturevalue(place)
    spec, y = PartitionSpec, mesh.shape["y"]

    def reshard(x: Any) -> Any:
        return lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, spec("x", "y")))

    shape = (jax.ShapeDtypeStruct((256, 512), jnp.float32),)
    gathered = lowered(mesh, jnp.sin, shape, (spec("x", "y"),), spec("x"))
    exchanged = lowered(mesh, reshard, shape, (spec(("x", "y")),))
    (gather,) = read(compile_quietly(gathered)[0], mesh).collectives
    (exchange,) = read(compile_quietly(exchanged)[0], mesh).collectives
    assert (gather.kind, gather.axes, gather.group_size) == ("all-gather", ("y",), y)
    assert gather.result_bytes == 128 * 512 * 4
    assert (exchange.kind, exchange.axes, exchange.group_size) == ("all-to-all", ("y",), y)
    assert exchange.result_bytes == 256 * 512 * 4 // mesh.size


# What the compiler says.


def test_full_rematerialization_becomes_a_note(
    tpu: Mesh, capfd: pytest.CaptureFixture[str]
) -> None:
    column = NamedSharding(tpu, PartitionSpec(None, "x"))
    capfd.readouterr()
    for rows in (64, 128):  # what was said before is not said again

        def reshard(x: Any) -> Any:
            return lax.with_sharding_constraint(jnp.sin(x), column) * 2

        shape = (jax.ShapeDtypeStruct((rows, 64), jnp.float32),)
        _, (note,) = compile_quietly(lowered(tpu, reshard, shape, (PartitionSpec(("x", "y")),)))
        assert note.startswith("[SPMD] Involuntary full rematerialization.")
        assert f"f32[{rows // 4},64]" in note
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("needed", "available"), [(20, 15.75), (40, 15.75)])
def test_what_does_not_fit(tpu: Mesh, needed: float, available: float) -> None:
    half = jax.ShapeDtypeStruct((needed // 2, 1 << 14, 1 << 14), jnp.float32)
    step = lowered(tpu, jnp.sin, (half,), (PartitionSpec(),), PartitionSpec())
    with pytest.raises(DoesNotFit) as caught:
        compile_quietly(step)
    missing = needed - available
    assert caught.value.missing_bytes == missing * (1 << 30)
    assert caught.value.needed_bytes == needed << 30
    assert caught.value.message == (
        f"the program does not fit: every chip needs {needed:.2f} GiB of HBM and has 15.75 GiB; "
        f"{missing:.2f} GiB are missing"
    )
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)


class Compiler:
    """Stands in for a Lowered: writes to stderr as C++ does, then fails or succeeds."""

    def __init__(self, text: str, error: Exception | None = None) -> None:
        self.text, self.error = text, error

    def compile(self) -> str:
        os.write(2, self.text.encode())
        if self.error is not None:
            raise self.error
        return "executable"


def test_what_is_not_noise_is_a_note(capfd: pytest.CaptureFixture[str]) -> None:
    text = (
        "WARNING: Logging before InitGoogle() is written to STDERR\n"
        "W1121 03:02:05.468766   10372 spmd_partitioner.cc:654] [SPMD] Involuntary full remat\n"
        "2025-04-14 17:55:24.092274: E external/xla/spmd_partitioner.cc:621] something else\n"
        "2025-04-14 17:55:24.092275: E external/xla/spmd_partitioner.cc:621] something else\n"
        "I1121 03:02:05.468766   10372 compiler.cc:654] Number of unique slow barriers: 1\n"
        "no prefix\n"
    )
    executable, notes = compile_quietly(Compiler(text))
    assert executable == "executable"
    assert notes == ("[SPMD] Involuntary full remat", "something else", "no prefix")
    os.write(2, b"the screen is back")
    assert capfd.readouterr() == ("", "the screen is back")


def test_errors_keep_their_notes_and_give_the_screen_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="broken") as caught:
        compile_quietly(Compiler("said before it broke\n", ValueError("broken")))
    assert caught.value.__notes__ == ["said before it broke"]
    os.write(2, b"the screen is back")
    assert capfd.readouterr() == ("", "the screen is back")


def test_too_large_after_scheduling() -> None:
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.95G of 15.48G hbm."
    with pytest.raises(DoesNotFit, match="6.47 GiB are missing"):
        compile_quietly(Compiler("", jax.errors.JaxRuntimeError(said)))


# HLO that these small programs do not show.

MODULE = """\
HloModule m, is_scheduled=true, input_output_alias={ {}: (1, {}, must-alias) }, \
entry_computation_layout={(pred[3]{0}, /*index=1*/s4[5,1]{1,0:T(8,128)})->s4[5,1]{1,0}}, \
num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (in: f32[64]) -> f32[32] {
  %in = f32[64]{0} parameter(0)
  %all-reduce.1 = f32[64]{0} all-reduce(%in), channel_id=1, replica_groups={{0,1},{2,3}}, \
to_apply=%add
  ROOT %slice = f32[32]{0} slice(%all-reduce.1), slice={[0:32]}
}

%start (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %all-gather.1 = f32[32]{0} all-gather(%p), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %call.1 = f32[8]{0} custom-call(%all-gather.1), custom_call_target="Start"
}

%done (p: f32[8]) -> f32[32] {
  %q = f32[8]{0} parameter(0)
  ROOT %all-gather.2 = f32[32]{0} all-gather(%q), channel_id=2, replica_groups=[1,4]<=[4], \
dimensions={0}
}

%test (s: (s32[], f32[64], s32[])) -> pred[] {
  %s = (s32[], f32[64]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=2
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (t: (s32[], f32[64], s32[])) -> (s32[], f32[64], s32[]) {
  %t = (s32[], f32[64]{0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%t), index=0
  %k = s32[] get-tuple-element(%t), index=2
  %copied = s32[] copy(%j)
  %two = s32[] constant(2)
  %next = s32[] add(%copied, %two)
  %x = f32[64]{0} get-tuple-element(%t), index=1
  %send = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=4, \
source_target_pairs={{0,2},{2,0},{1,3},{3,1}}, metadata={op_name="send"}
  %sent = f32[64]{0} collective-permute-done(%send)
  ROOT %state = (s32[], f32[64]{0}, s32[]) tuple(%next, %sent, %k)
}

ENTRY %main (u: pred[3], v: s4[5,1]) -> f32[32] {
  %u = pred[3]{0} parameter(0)
  %v = s4[5,1]{1,0:T(8,128)} parameter(1)
  %w = f32[64]{0} constant({...})
  %zero = s32[] constant(0)
  %limit = s32[] constant(LIMIT)
  %init = (s32[], f32[64]{0}, s32[]) tuple(%zero, %w, %limit)
  %loop = (s32[], f32[64]{0}, s32[]) while(%init), condition=%test, body=%body
  %y = f32[64]{0} get-tuple-element(%loop), index=1
  %e = f32[8]{0} slice(%y), slice={[0:8]}
  %fusion.1 = f32[8]{0} fusion(%e), kind=kCustom, calls=%start
  %fusion.2 = f32[32]{0} fusion(%fusion.1), kind=kCustom, calls=%done
  ROOT %fusion.3 = f32[32]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1, \
metadata={op_name="scattered"}
}
"""


def report_of(text: str) -> Any:
    sizes = ("argument", "output", "temp", "alias", "generated_code")
    memory = SimpleNamespace(**{f"{size}_size_in_bytes": 0 for size in sizes})
    compiled = SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: memory)
    return read(compiled, SimpleNamespace(shape={"x": 2, "y": 2}))


def test_asynchronous_scattered_and_looped() -> None:
    report = report_of(MODULE.replace("LIMIT", "7"))
    assert report.parameters == (Parameter("pred", (3,), 3), Parameter("s4", (5, 1), 3))
    assert report.aliases == (Alias(parameter=1, output=0),)
    assert report.collectives == (
        Collective("all-gather", "f32", 128, 4, ("x", "y"), 1, ""),
        Collective("collective-permute", "f32", 256, 2, ("x",), 4, "send"),
        Collective("reduce-scatter", "f32", 128, 2, ("y",), 1, "scattered"),
    )


def test_a_loop_that_cannot_be_counted_says_so() -> None:
    text = MODULE.replace("constant(LIMIT)", "add(%zero, %zero)")
    permutes = [each for each in report_of(text).collectives if "permute" in each.kind]
    assert [each.trip_count for each in permutes] == [None]


def test_of_several_conditions_the_most_that_one_allows_is_counted() -> None:
    """while (i + 1 < 7 and flag) steps by 2: three trips at most."""
    text = MODULE.replace("LIMIT", "7").replace(
        "ROOT %less = pred[] compare(%i, %n), direction=LT",
        """%one = s32[] constant(1)
  %i1 = s32[] add(%i, %one)
  %less = pred[] compare(%i1, %n), direction=LT
  %flag = pred[] constant(true)
  ROOT %both = pred[] and(%less, %flag)""",
    )
    permutes = [each for each in report_of(text).collectives if "permute" in each.kind]
    assert [each.trip_count for each in permutes] == [3]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={}", [{0, 1, 2, 3, 4, 5, 6, 7}]),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", [{0, 4}, {1, 5}, {2, 6}, {3, 7}]),
        ("replica_groups=[2,4]<=[8]", [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [{0, 4}, {1, 5}, {2, 6}, {3, 7}]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y','x'}", [{0, 1, 2, 3, 4, 5, 6, 7}]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}", [{0, 1}, {2, 3}, {4, 5}, {6, 7}]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(1)2}", [{0, 2}, {1, 3}, {4, 6}, {5, 7}]),
        (
            "replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}",
            [{0, 1, 2, 3}, {4, 5, 6, 7}],
        ),
        ("source_target_pairs={{0,1},{1,0},{2,2}}", [{0, 1}, {2}]),
        ("source_target_pairs={{0,1},{2,3},{1,2}}", [{0, 1, 2, 3}]),
        ("replica_groups=something new", None),
    ],
)
def test_groups_of_chips(text: str, groups: list[set[int]] | None) -> None:
    assert hlo.chip_groups(f"all-reduce(%x), channel_id=1, {text}, to_apply=%add", 8) == groups
