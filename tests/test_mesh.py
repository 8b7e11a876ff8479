"""Chips, topologies and meshes: by text, as devices, and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh

from dialect.machine.interconnect import Network, Ring, Switch
from dialect.machine.mesh import (
    MeshSpec,
    TargetError,
    Topology,
    by_devices_here,
    cubic,
    describe,
    devices,
    here,
    jax_mesh,
    placement,
    prepare_libtpu,
)
from dialect.machine.topology import platform_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "canonical", "chips", "mesh"),
    [
        ("v4:4x4x4", "v4:4x4x4", 64, "x=4 y=4 z=4"),
        ("v4-128", "v4:4x4x4", 64, "x=4 y=4 z=4"),  # TensorCores: two per chip
        ("v4-8", "v4:2x2x1", 4, "x=2 y=2"),
        ("v4:2x2x4", "v4:2x2x4", 16, "x=2 y=2 z=4"),
        ("v5p-16", "v5p:2x2x2", 8, "x=2 y=2 z=2"),
        ("v5e-16", "v5e:4x4", 16, "x=4 y=4"),
        ("v5e-8", "v5e:2x4", 8, "x=2 y=4"),
        ("v5litepod-8", "v5e:2x4", 8, "x=2 y=4"),
        ("V5E:2X4", "v5e:2x4", 8, "x=2 y=4"),
        ("CPU:8", "cpu:8", 8, "x=2 y=4"),
        ("Trillium-8", "v6e:2x4", 8, "x=2 y=4"),
        ("v6e-256", "v6e:16x16", 256, "x=16 y=16"),
        ("v5e:4x2", "v5e:4x2", 8, "x=4 y=2"),
        ("v5e:1x1", "v5e:1x1", 1, "x=1"),
        ("cpu:8", "cpu:8", 8, "x=2 y=4"),
        ("cpu:6", "cpu:6", 6, "x=2 y=3"),
        ("cpu:7", "cpu:7", 7, "x=7"),
        ("v7x:2x2x1", "v7x:2x2x1", 4, "x=2 y=2 core=2"),  # two devices per chip
        ("7x-16", "v7x:2x2x2", 8, "x=2 y=2 z=2 core=2"),
        ("tpu7x:4x4x4", "v7x:4x4x4", 64, "x=4 y=4 z=4 core=2"),
        ("h100:8", "h100:8", 8, "x=2 y=4"),
        ("a100:1", "a100:1", 1, "x=1"),
        ("2*v5e:4x4", "2*v5e:4x4", 32, "dcn=2 x=4 y=4"),
        ("4*v4-128", "4*v4:4x4x4", 256, "dcn=4 x=4 y=4 z=4"),
        ("1*v6e:1x1", "v6e:1x1", 1, "x=1"),
        ("2*h200:8", "2*h200:8", 16, "dcn=2 x=2 y=4"),
    ],
)
def test_a_topology_by_shape_name_or_count(
    text: str, canonical: str, chips: int, mesh: str
) -> None:
    topology = Topology.parse(text)
    assert str(topology) == canonical
    assert Topology.parse(str(topology)) == topology
    assert topology.chips == chips
    assert str(topology.mesh_axes()) == mesh
    assert topology.mesh_axes().size == topology.devices == chips * topology.chip.devices


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("v9:4x4", "unknown chip 'v9' in 'v9:4x4'", "v4"),
        ("v5:2x4", "unknown chip 'v5' in 'v5:2x4'", "v5p or v5e"),
        ("v5e:3x4", "'v5e:3x4' is no slice of v5e", "v5e:2x4"),
        ("v5e:4x4x4", "'v5e:4x4x4' is no slice of v5e", "v5e:4x4"),
        ("v5e:32x32", "'v5e:32x32' is no slice of v5e", "v5e:2x2"),
        ("v4:2x2", "'v4:2x2' is no slice of v4", "v4:2x2x1"),
        ("v5e-12", "'v5e-12' is no slice of v5e", "v5e-128"),
        ("v5e:4by4", "'v5e:4by4' is no slice of v5e", "v5e:4x4"),
        ("cpu:0", "'cpu:0' is no slice of cpu", "cpu:8"),
        ("h100:9", "'h100:9' is no slice of h100", "h100:8"),
        ("h100-8", "'h100-8' is no slice of h100", "h100:8"),
        ("h100:2x4", "'h100:2x4' is no slice of h100", "h100:4"),
        ("7x:2x2", "'7x:2x2' is no slice of v7x", "v7x:2x2x2"),
        ("0*v5e:4x4", "'0*v5e:4x4' has no slices", "2*v5e:4x4"),
        ("2*v9:4x4", "unknown chip 'v9' in '2*v9:4x4'", "v4"),
        ("v5e", "'v5e' does not say how many chips", "v5e-8"),
        ("tpu", "'tpu' does not say which kind of TPU", "v5e:2x4"),
        ("gpu:8", "'gpu:8' does not say which kind of GPU", "h100:8"),
        ("cuda:1", "'cuda:1' does not say which kind of GPU", "without a mesh, all devices"),
        ("", "unknown chip ''", "known: a100, cpu, h100, h200, v4, v5e, v5p, v6e, v7x"),
    ],
)
def test_an_unknown_topology_gets_the_nearest_names(text: str, message: str, hint: str) -> None:
    with pytest.raises(TargetError) as caught:
        Topology.parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_standard_shapes_are_the_most_cubic() -> None:
    assert [cubic(4 << n, 3) for n in range(7)] == [
        (2, 2, 1),
        (2, 2, 2),
        (2, 2, 4),
        (2, 4, 4),
        (4, 4, 4),
        (4, 4, 8),
        (4, 8, 8),
    ]
    assert [cubic(1 << n, 2) for n in (0, 2, 3, 4, 5, 6, 7, 8)] == [
        *((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    ]


@pytest.mark.parametrize(
    ("text", "wraps"),
    [
        ("v4:4x4x4", (True, True, True)),  # whole cubes: optical switches close all three rings
        ("v4:4x4x8", (True, True, True)),
        ("v4:2x4x4", (False, False, False)),
        ("v5p:2x2x2", (False, False, False)),
        ("v5e:4x4", (False, False)),
        ("v5e:8x16", (False, True)),  # only along a full 16
        ("v6e:16x16", (True, True)),
        ("v7x:4x4x8", (True, True, True)),
        ("v7x:2x2x1", (False, False, False)),
        ("2*v6e:16x16", (True, True)),
        ("cpu:8", (False,)),
        ("cpu:4096", (False,)),
        ("h100:8", (False,)),
    ],
)
def test_which_axes_are_rings(text: str, wraps: tuple[bool, ...]) -> None:
    assert Topology.parse(text).wraps == wraps


def test_rings_under_mesh_axes() -> None:
    cube, rectangle = Topology.parse("v4:4x4x4"), Topology.parse("v5e:4x4")
    closed, open_4, open_2 = (
        Ring(size, closes, bytes_per_s=45e9, hop_s=1e-6)
        for size, closes in ((4, True), (4, False), (2, False))
    )
    assert cube.rings(MeshSpec.parse("x=4 y=16")) == {"x": (closed,), "y": (closed, closed)}
    assert cube.rings(MeshSpec.parse("model=64")) == {"model": (closed, closed, closed)}
    # A part of a ring is open.
    assert rectangle.rings(MeshSpec.parse("x=2 y=8")) == {"x": (open_2,), "y": (open_2, open_4)}
    assert rectangle.rings(MeshSpec.parse("a=1 b=16")) == {"a": (), "b": (open_4, open_4)}
    assert Topology.parse("v6e:16x16").rings(MeshSpec.parse("x=32 y=8")) == {
        "x": (Ring(16, True, 90e9, 1e-6), Ring(2, False, 90e9, 1e-6)),
        "y": (Ring(8, False, 90e9, 1e-6),),
    }


def test_a_switch_joins_any_chips_alike() -> None:
    box = Topology.parse("h100:8")
    assert box.rings(MeshSpec.parse("x=8")) == {"x": (Switch(8, 450e9, 1.9e-6),)}
    assert box.rings(MeshSpec.parse("x=2 y=4")) == {
        "x": (Switch(2, 450e9, 1.9e-6),),
        "y": (Switch(4, 450e9, 1.9e-6),),
    }


def test_slices_are_joined_by_a_network() -> None:
    two = Topology.parse("2*v5e:4x4")
    network, ring = Network(2, 3.125e9, 14e-6), Ring(4, False, 45e9, 1e-6)
    found = two.rings(MeshSpec.parse("dcn=2 x=4 y=4"))
    assert found == {"dcn": (network,), "x": (ring,), "y": (ring,)}
    assert two.rings(MeshSpec.parse("data=8 model=4")) == {
        "data": (network, ring),
        "model": (ring,),
    }
    assert network != Switch(2, 3.125e9, 14e-6)


def test_two_devices_of_a_chip_share_its_links() -> None:
    pair = Ring(2, False, bytes_per_s=540e9, hop_s=1e-6)
    ring = Ring(4, True, bytes_per_s=45e9, hop_s=1e-6)
    assert Topology.parse("v7x:4x4x4").rings(MeshSpec.parse("x=4 y=4 z=8")) == {
        "x": (ring,),
        "y": (ring,),
        "z": (ring, pair),
    }


def test_mesh_axes_get_whole_physical_axes_where_sizes_allow() -> None:
    assert placement((2, 4), (4, 2)) == (1, 0)
    assert placement((4, 2, 2), (2, 8)) == (1, 0, 2)
    assert placement((4, 4), (4, 4)) == (0, 1)
    assert placement((4, 4), (2, 8)) == (0, 1)  # none fits: the order stays


def test_a_mesh_as_text() -> None:
    mesh = MeshSpec((("x", 2), ("y", 4)))
    assert str(mesh) == "x=2 y=4"
    assert MeshSpec.parse(" x=2  y=4 ") == mesh
    assert (mesh.names, mesh.sizes, mesh.size) == (("x", "y"), (2, 4), 8)
    assert mesh.ways(("y", "x")) == 8
    assert mesh.ways(()) == 1


@pytest.mark.parametrize("text", ["", "x", "x=", "x=two", "x=0", "x=2 x=4", "x=2,y=4", "2=x"])
def test_a_mesh_that_cannot_be_read(text: str) -> None:
    with pytest.raises(TargetError, match="mesh"):
        MeshSpec.parse(text)


@pytest.mark.parametrize(
    "text",
    ["v4:4x4x4", "v4:2x2x1", "v4:2x2x4", "v5e:2x4", "v5e:4x4", "v5e:1x1", "v5e:8x16"]
    + ["v5p:2x2x2", "v5p:4x4x4", "v6e:4x4"],
)
def test_one_device_per_chip(text: str) -> None:
    topology = Topology.parse(text)
    found = devices(topology)
    assert len(found) == topology.chips
    assert {device.core_on_chip for device in found} == {0}
    assert {device.device_kind for device in found} <= set(topology.chip.device_kinds)
    places = [tuple(device.coords[: len(topology.shape)]) for device in found]
    assert places == list(np.ndindex(*topology.shape))


def test_two_devices_per_chip_and_several_slices() -> None:
    found = devices(Topology.parse("2*v7x:2x2x1"))
    places = [(each.slice_index, *each.coords, each.core_on_chip) for each in found]
    assert places == list(np.ndindex(2, 2, 2, 1, 2))
    assert {device.device_kind for device in found} == {"TPU7x"}


def test_slices_lie_along_the_outermost_axis() -> None:
    mesh = jax_mesh(Topology.parse("2*v5e:2x4"), MeshSpec.parse("dcn=2 x=4 y=2"))
    for (dcn, x, y), device in np.ndenumerate(mesh.devices):
        assert (device.slice_index, *device.coords[:2]) == (dcn, y, x)


def test_mesh_axes_run_along_physical_axes() -> None:
    cube = jax_mesh(Topology.parse("v4:4x4x4"), MeshSpec.parse("x=4 y=16"))
    for (x, y), device in np.ndenumerate(cube.devices):
        assert device.coords == [x, y // 4, y % 4]
    turned = jax_mesh(Topology.parse("v5e:2x4"), MeshSpec.parse("x=4 y=2"))
    for (x, y), device in np.ndenumerate(turned.devices):
        assert device.coords[:2] == [y, x]


@pytest.mark.parametrize(
    "text",
    ["v4:4x4x4", "v5e:2x4", "v5p:2x2x2", "v6e:4x4", "v7x:2x2x1", "v7x:1x1x1", "2*v4:2x2x1"]
    + ["2*v7x:2x2x1", "cpu:8"],
)
def test_a_mesh_tells_what_it_is_made_of(text: str) -> None:
    topology = Topology.parse(text)
    mesh = jax_mesh(topology, topology.mesh_axes())
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert describe(mesh) == (topology, topology.mesh_axes())


def test_a_cpu_mesh_computes() -> None:
    mesh = jax_mesh(Topology.parse("cpu:8"), MeshSpec.parse("x=2 y=4"))
    spread = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("y", "x"))
    array = jax.device_put(np.arange(32.0).reshape(8, 4), spread)
    assert array.addressable_shards[0].data.shape == (2, 2)
    assert float(array.sum()) == 496.0


def test_all_devices_there_are() -> None:
    assert here() == "cpu:8"


def test_too_few_cpu_devices_names_the_flag() -> None:
    with pytest.raises(TargetError) as caught:
        devices(Topology.parse("cpu:16"))
    assert caught.value.message == "cpu:16 needs 16 CPU devices, JAX was started with 8"
    assert 'XLA_FLAGS="--xla_force_host_platform_device_count=16"' in caught.value.hint


def test_a_mesh_of_another_size_than_the_slice() -> None:
    with pytest.raises(TargetError) as caught:
        jax_mesh(Topology.parse("v5e:4x4"), MeshSpec.parse("x=2 y=4"))
    assert caught.value.message == "the mesh x=2 y=4 has 8 devices, v5e:4x4 has 16"
    assert caught.value.hint == "for example: mesh x=4 y=4"


def test_an_abstract_mesh_needs_a_target() -> None:
    mesh = AbstractMesh((2, 4), ("x", "y"))
    assert describe(mesh, "v5e:2x4") == (Topology.parse("v5e:2x4"), MeshSpec.parse("x=2 y=4"))
    with pytest.raises(TargetError) as caught:
        describe(mesh)
    assert caught.value.message == "the AbstractMesh has no devices"
    assert 'target="v5e:2x4"' in caught.value.hint
    with pytest.raises(TargetError, match="x=2 y=4 has 8 devices, v5e:4x4 has 16"):
        describe(mesh, "v5e:4x4")


def test_a_mesh_may_be_planned_as_another_machine() -> None:
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))
    assert describe(mesh) == (Topology.parse("cpu:8"), MeshSpec.parse("data=2 model=4"))
    for text in ("v5e:2x4", "h100:8", "v7x:2x2x1", "2*v4:2x2x1"):
        assert describe(mesh, text)[0] == Topology.parse(text)


def test_virtual_slices() -> None:
    found = devices(Topology.parse("2*cpu:4"))
    assert found == jax.devices()[:8]


def test_gpus_that_are_not_attached_can_be_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    with pytest.raises(TargetError) as caught:
        devices(Topology.parse("h100:8"))
    wanted = "h100:8 needs 8 of NVIDIA H100 80GB HBM3, 0 are attached"
    assert caught.value.message == wanted
    assert caught.value.hint.startswith("planned for it is: `shardwright explain --target`")


def test_gpus_that_are_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["NVIDIA H200"] * 2 + ["NVIDIA T4"] + ["NVIDIA H200"]
    attached = [SimpleNamespace(device_kind=kind, id=n) for n, kind in enumerate(kinds)]
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(jax, "devices", lambda backend: attached)
    assert [each.id for each in devices(Topology.parse("h200:2"))] == [0, 1]
    with pytest.raises(TargetError, match="h200:4 needs 4 of NVIDIA H200, 3 are attached"):
        devices(Topology.parse("h200:4"))


def test_a_gpu_need_not_be_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = [SimpleNamespace(device_kind="NVIDIA H200", id=n) for n in range(4)]
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(jax, "devices", lambda backend: attached)
    names = ("cuda:2", "gpu-1", "GPU", "cuda", "h100:8", "v5e:2x4")
    known = [by_devices_here(name) for name in names]
    assert known == ["h200:2", "h200:1", "h200:4", "h200:4", "h100:8", "v5e:2x4"]
    attached[0].device_kind = "NVIDIA T4"
    with pytest.raises(TargetError, match="no figures are known for .* 'NVIDIA T4'") as told:
        by_devices_here("cuda:1")
    assert 'auto_shard(step, mesh, target="cpu:8")' in told.value.hint


@pytest.mark.parametrize(
    ("name", "platform"),
    [("h100:8", "gpu"), ("CUDA:1", "gpu"), ("v5e-8", "tpu"), ("cpu:8", "cpu"), ("a.machine:8", "")],
)
def test_the_platform_of_a_machine(name: str, platform: str) -> None:
    assert platform_of(name) == platform


def test_a_gpu_that_jax_was_started_without_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(backend: str) -> list[Any]:
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(TargetError, match="cuda:1' takes GPUs that are attached, and J") as told:
        by_devices_here("cuda:1")
    assert told.value.hint.startswith("to plan for GPUs, name their kind: h100:1")
    with pytest.raises(TargetError, match="h100:1 needs 1 of NVIDIA H100 80GB HBM3, 0 are attach"):
        devices(Topology.parse("h100:1"))


def test_what_is_no_mesh() -> None:
    with pytest.raises(TargetError, match="expected a mesh, got int"):
        describe(8)


def test_libtpu_missing_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(TargetError) as caught:
        devices(Topology.parse("v5e:2x4"))
    assert caught.value.message == "compiling for TPU needs libtpu, which is not installed"
    assert caught.value.hint.endswith('-m pip install "shardwright[tpu]"')


def test_the_users_own_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    prepare_libtpu()
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"


def test_a_fresh_process_needs_no_settings_and_prints_nothing_else() -> None:
    """Without any variable set, libtpu loads, and keeps quiet."""
    code = (
        "from dialect.machine.mesh import Topology, devices, here\n"
        "print(len(devices(Topology.parse('v4:4x4x4'))), here())\n"
    )
    keep = {k: v for k, v in os.environ.items() if "TPU" not in k and k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=keep | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("64 cpu:1\n", "")
