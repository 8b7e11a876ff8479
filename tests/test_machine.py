"""The machine model: data sheets, what collectives cost, and machines of one's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dialect.machine import collectives, machine_file
from dialect.machine.chips import CHIPS, GIB, MIB, Chip
from dialect.machine.interconnect import Links
from dialect.machine.mesh import MeshSpec, TargetError, Topology, devices
from rewrite.errors import PlanError, TextError

ROOT = Path(__file__).parents[1]
GB, US = 1e9, 1e-6


def joins(topology: str, mesh: str) -> tuple[Links, ...]:
    """What joins the chips under all axes of a mesh."""
    found = Topology.parse(topology).rings(MeshSpec.parse(mesh))
    return tuple(each for under in found.values() for each in under)


# Data sheets.


def test_data_sheets_agree_with_their_sources() -> None:
    """Peak FLOP/s, HBM and links as in Pope et al. 2022, section 4, the Cloud TPU pages and
    NVIDIA's data sheets; of a 7x, half of it in each of two devices."""
    v4 = CHIPS["v4"]
    assert (v4.bf16_flops_per_s, v4.hbm_bytes, v4.hbm_bytes_per_s) == (275e12, 32 * GIB, 1200e9)
    assert 6 * v4.link_bytes_per_s == 270e9
    per_chip = {name: chip.devices * chip.bf16_flops_per_s for name, chip in CHIPS.items()}
    assert {name: peak / 1e12 for name, peak in per_chip.items()} == {
        **{"v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "v7x": 2307},
        **{"a100": 312, "h100": 989.4, "h200": 989.4, "cpu": 1},
    }
    pods = {name: math.prod(chip.largest) for name, chip in CHIPS.items()}
    assert pods == {
        **{"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "v7x": 9216},
        **{"a100": 8, "h100": 8, "h200": 8, "cpu": 4096},
    }
    hbm = {name: chip.devices * chip.hbm_bytes_per_s / GB for name, chip in CHIPS.items()}
    assert hbm == {
        **{"v4": 1200, "v5e": 819, "v5p": 2765, "v6e": 1638, "v7x": 7380},
        **{"a100": 2039, "h100": 3350, "h200": 4800, "cpu": 50},
    }
    seven = CHIPS["v7x"]
    assert (2 * seven.hbm_bytes, 2 * seven.link_bytes_per_s) == (192 * GIB, 90 * GB)
    assert 2 * seven.network_bytes_per_s == CHIPS["v6e"].network_bytes_per_s == 100e9 / 8


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_every_data_sheet_is_whole(chip: Chip) -> None:
    assert 0.9 * chip.hbm_bytes < chip.usable_hbm_bytes <= chip.hbm_bytes
    assert chip.flops_per_s("bf16") > 0
    assert min(chip.on_chip_bytes, chip.hbm_bytes_per_s) > 0
    # HBM is faster than a link, a link than the network; a step over the network takes longest.
    assert chip.hbm_bytes_per_s > chip.link_bytes_per_s > chip.network_bytes_per_s > 0
    assert chip.network_hop_s > chip.link_hop_s > 0
    assert (chip.devices > 1) == (chip.die_bytes_per_s > 0)


@pytest.mark.parametrize(
    ("chip", "dtype", "tera"),
    [
        ("v4", "int8", 275),  # not faster than bf16
        ("v4", "f32", 275),  # JAX multiplies it in bf16
        ("v5e", "int8", 394),
        ("v5e", "i8", 394),  # as programs spell it
        ("v5e", "u8", 394),
        ("v5e", "i4", 788),
        ("v5p", "int8", 918),
        ("v6e", "f8_e4m3fn", 918),  # not native
        ("v6e", "uint4", 3672),
        ("v7x", "f8_e4m3fn", 2307),
        ("v7x", "float8_e5m2", 2307),
        ("v7x", "int8", 1153.5),  # not native
        ("a100", "f32", 156),
        ("a100", "fp8", 312),
        ("h100", "fp8", 1978.9),
        ("h200", "i8", 1978.9),
        ("h200", "int4", 989.4),
        ("h100", "f16", 989.4),
    ],
)
def test_peak_by_dtype(chip: str, dtype: str, tera: float) -> None:
    assert CHIPS[chip].flops_per_s(dtype) / 1e12 == tera


# Collectives.


@pytest.mark.parametrize(
    ("topology", "mesh", "kind", "size", "transfer_s", "latency_s"),
    [
        # A closed ring of 4: three quarters of 9 GB, over two links of 45 GB/s; three steps.
        ("v4:4x4x4", "x=4 rest=16", "all-gather", 9 * GB, 6.75 / 90, 3 * US),
        ("v4:4x4x4", "x=4 rest=16", "reduce-scatter", 9 * GB, 6.75 / 90, 3 * US),
        ("v4:4x4x4", "x=4 rest=16", "all-reduce", 9 * GB, 2 * 6.75 / 90, 6 * US),
        ("v4:4x4x4", "x=4 rest=16", "all-to-all", 9 * GB, 9 / 90, 3 * US),
        ("v4:4x4x4", "x=4 rest=16", "collective-permute", 9 * GB, 9 / 45, 1 * US),
        # An open one: over one link; the last chip's message goes all the way back.
        ("v5e:4x4", "x=4 rest=4", "all-gather", 9 * GB, 6.75 / 45, 3 * US),
        ("v5e:4x4", "x=4 rest=4", "all-to-all", 9 * GB, 9 / 45, 3 * US),
        ("v5e:4x4", "x=4 rest=4", "collective-permute", 9 * GB, 9 / 45, 3 * US),
        # A switch: seven eighths of 8 GB, or of the queries, at 450 GB/s, in one step.
        ("h100:8", "x=8 rest=1", "all-gather", 8 * GB, 7 / 450, 1.9 * US),
        ("h100:8", "x=8 rest=1", "all-reduce", 8 * GB, 14 / 450, 3.8 * US),
        ("h100:8", "x=8 rest=1", "all-to-all", 8 * GB, 7 / 450, 1.9 * US),
        ("h100:8", "x=8 rest=1", "collective-permute", 9 * GB, 9 / 450, 1.9 * US),
        # A network: half of it.
        ("2*v5e:4x4", "x=2 rest=16", "all-gather", 1 * GB, 0.5 / 3.125, 14 * US),
        # Nothing to exchange.
        ("v4:4x4x4", "x=1 rest=64", "all-reduce", 9 * GB, 0, 0),
        ("v4:4x4x4", "x=1 rest=64", "collective-permute", 9 * GB, 0, 0),
    ],
)
def test_a_collective_over_one_axis(
    topology: str, mesh: str, kind: str, size: float, transfer_s: float, latency_s: float
) -> None:
    under = Topology.parse(topology).rings(MeshSpec.parse(mesh))["x"]
    assert collectives.transfer_s(kind, size, under) == pytest.approx(transfer_s)
    assert collectives.latency_s(kind, under) == pytest.approx(latency_s)


def test_a_collective_over_several_axes_of_a_torus() -> None:
    """As fast as over one ring of as many chips: (K - 1) / K of the bytes, whatever the axes."""
    three = joins("v4:4x4x4", "x=4 y=4 z=4")
    assert collectives.received_bytes("all-gather", 64 * GB, three) == pytest.approx(63 * GB)
    assert collectives.transfer_s("all-gather", 64 * GB, three) == pytest.approx(63 / 90)
    assert collectives.transfer_s("all-reduce", 64 * GB, three) == pytest.approx(126 / 90)
    assert collectives.latency_s("all-reduce", three) == pytest.approx(18 * US)
    # Each message goes a quarter of the way round each of the three rings.
    assert collectives.received_bytes("all-to-all", 64 * GB, three) == pytest.approx(192 * GB)
    assert collectives.transfer_s("all-to-all", 64 * GB, three) == pytest.approx(192 / 90)
    assert collectives.latency_s("all-to-all", three) == pytest.approx(9 * US)


def test_the_slowest_links_carry_the_least() -> None:
    """2 slices of 4 x 4 chips: 32 GB are gathered over the network first, 1 GB from each chip."""
    links = joins("2*v5e:4x4", "dcn=2 x=4 y=4")
    gathered_s = 1 / 3.125 + (2 * 3 + 8 * 3) / 45
    for order in (links, links[::-1]):
        assert collectives.transfer_s("all-gather", 32 * GB, order) == pytest.approx(gathered_s)
        assert collectives.received_bytes("all-gather", 32 * GB, order) == pytest.approx(31 * GB)
        assert collectives.latency_s("all-gather", order) == pytest.approx((14 + 3 + 3) * US)
        exchanged_s = 16 / 3.125 + (32 + 32) / 45
        assert collectives.transfer_s("all-to-all", 32 * GB, order) == pytest.approx(exchanged_s)
        assert collectives.transfer_s("collective-permute", 32 * GB, order) == pytest.approx(10.24)


def test_devices_of_one_chip_gather_last_and_fast() -> None:
    links = joins("v7x:4x4x4", "x=4 y=4 z=4 core=2")
    expected_s = 63 / (2 * 45) + 64 / 540
    assert collectives.transfer_s("all-gather", 128 * GB, links) == pytest.approx(expected_s)


def test_fitted_constants_replace_ideal_ones() -> None:
    ring = joins("v4:4x4x4", "x=4 rest=16")[:1]
    assert collectives.transfer_s("all-gather", 9 * GB, ring, 0.87) == pytest.approx(
        6.75 / (0.87 * 45)
    )
    assert collectives.latency_s("all-gather", ring, hop_s=3.3e-6) == pytest.approx(9.9 * US)
    assert collectives.transfer_s("all-reduce", 9 * GB, ring, 1.0) == pytest.approx(2 * 6.75 / 45)
    assert collectives.latency_s("all-reduce", ring, hop_s=3.3e-6) == pytest.approx(2 * 9.9 * US)
    # A hop measured on rings says nothing of a switch or a network.
    assert collectives.latency_s("all-gather", joins("h100:8", "x=8"), hop_s=3.3e-6) == 1.9e-6


def test_an_unknown_collective() -> None:
    with pytest.raises(PlanError) as caught:
        collectives.latency_s("allreduce", ())
    assert caught.value.message == "unknown collective 'allreduce'"
    assert caught.value.hint.startswith("did you mean all-reduce")


# Machines from a file.

TEXT = """\
bf16  400 TFLOP/s
hbm   64 GiB at 3.2 TB/s
links 100 GB/s, 1 us
torus 16x16
"""


def test_a_machine_of_ones_own() -> None:
    chip = machine_file.parse(
        TEXT + "int8 0.8 POP/s # dense\nusable 62GiB\n\ncube 4\n", "my.machine"
    )
    assert chip == Chip(
        name="my.machine",
        peaks=(("bf16", 400e12), ("int8", 800e12)),
        hbm_bytes=64 * GIB,
        usable_hbm_bytes=62 * GIB,
        hbm_bytes_per_s=3.2e12,
        on_chip_bytes=0,
        fabric="torus",
        largest=(16, 16),
        link_bytes_per_s=100 * GB,
        link_hop_s=1 * US,
        cube=4,
    )
    switched = machine_file.parse(TEXT.replace("torus 16x16", "switch 8"), "my.machine")
    assert (switched.fabric, switched.largest, switched.usable_hbm_bytes) == (
        "switch",
        (8,),
        64 * GIB,
    )


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    topology = Topology.parse("examples/edge.machine:8x8")
    assert str(topology) == "examples/edge.machine:8x8"
    assert Topology.parse(str(topology)) == topology
    assert (topology.chips, topology.wraps) == (64, (True, True))
    assert Topology.parse("examples/edge.machine:4x8").wraps == (False, True)
    assert str(Topology.parse("3*examples/edge.machine:3x5").mesh_axes()) == "dcn=3 x=3 y=5"
    chip = topology.chip
    assert (chip.flops_per_s("i8"), chip.usable_hbm_bytes) == (400e12, int(46.5 * GIB))
    assert (chip.on_chip_bytes, chip.network_hop_s) == (64 * MIB, 14e-6)
    with pytest.raises(TargetError) as caught:
        devices(topology)
    assert caught.value.message == "examples/edge.machine:8x8 can be planned for, not compiled for"
    assert "step.explain(...)" in caught.value.hint
    with pytest.raises(TargetError, match="'examples/edge.machine:9x9' is no slice") as caught:
        Topology.parse("examples/edge.machine:9x9")
    assert "examples/edge.machine:8x8" in caught.value.hint


def test_a_known_chip_with_other_figures(tmp_path: Path) -> None:
    path = tmp_path / "slow.machine"
    path.write_text("like v5e\nhbm 16 GiB at 500 GB/s\nint4 100 TFLOP/s\n")
    topology = Topology.parse(f"{path}:2x4")
    v5e = CHIPS["v5e"]
    assert topology.chip.hbm_bytes_per_s == 500 * GB
    assert topology.chip.usable_hbm_bytes == 16 * GIB
    assert [topology.chip.flops_per_s(each) / 1e12 for each in ("bf16", "i8", "i4")] == [
        197,
        394,
        100,
    ]
    assert topology.chip.link_bytes_per_s == v5e.link_bytes_per_s
    # libtpu knows what it is like.
    assert {device.device_kind for device in devices(topology)} <= set(v5e.device_kinds)


def test_a_machine_without_a_network_is_one_slice(tmp_path: Path) -> None:
    path = tmp_path / "lonely.machine"
    path.write_text(TEXT)
    with pytest.raises(TargetError, match="has no network that joins slices") as caught:
        Topology.parse(f"2*{path}:4x4")
    assert "network 6.25 GB/s, 14 us" in caught.value.hint


def test_a_machine_file_that_is_not_there() -> None:
    with pytest.raises(TargetError, match="cannot read the machine 'none.machine'"):
        Topology.parse("none.machine:4x4")


@pytest.mark.parametrize(
    ("line", "shown", "hint"),
    [
        ("lins 3", "unknown word 'lins'\n    lins 3\n    ^^^^", "did you mean links"),
        ("link 3 GB/s, 1 us", "unknown word 'link'", "did you mean links"),
        ("hbm 64 GiB", "expected 'at' here\n    hbm 64 GiB\n              ^", "hbm 64 GiB at 3.2"),
        ("hbm 64 GiB, 3 TB/s", "expected 'at' here\n    hbm 64 GiB, 3 TB/s\n              ^", "at"),
        ("hbm 64 GIB at 3 TB/s", "'GIB' is no unit of a size\n    hbm 64 GIB", "did you mean GB"),
        ("hbm 64 GB/s at 3 TB/s", "'GB/s' is no unit of a size", "GB"),
        ("bf16", "expected a peak here\n    bf16\n        ^", "`bf16 400 TFLOP/s`"),
        ("bf16 400 # unit?", "expected a unit here\n    bf16 400 # unit?\n            ^", "400 T"),
        ("bf16 many TFLOP/s", "expected a peak here\n    bf16 many TFLOP/s\n         ^^^^", "400"),
        ("bf16 0 TFLOP/s", "expected a peak here", "400"),
        ("bf16 1e999 TFLOP/s", "expected a peak here", "400"),
        ("bf16 -4 TFLOP/s", "expected a peak here", "400"),
        ("bf16 4 TFLOP/s twice", "did not expect 'twice' here", "400"),
        ("torus 4x4x4x4", "expected a shape here\n    torus 4x4x4x4\n          ^^^^^^^", "16x16"),
        ("torus 4 x 4", "did not expect 'x' here", "16x16"),
        ("cube four", "expected a whole number here", "cube 4"),
        ("like v5", "unknown chip 'v5'", "v5p or v5e"),
        ("links 3 GB/s", "expected ',' here", "links 100 GB/s, 1 us"),
    ],
)
def test_a_line_that_cannot_be_read(line: str, shown: str, hint: str) -> None:
    with pytest.raises(TextError) as caught:
        machine_file.parse(f"# mine\n{line}\n", "my.machine")
    assert caught.value.where == "my.machine:2"
    assert shown in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        (TEXT + "hbm 1 GiB at 1 TB/s", "hbm is given twice", "my.machine:5"),
        (TEXT + "switch 8", "torus or grid or switch is given twice", "my.machine:5"),
        ("bf16 1 TFLOP/s\n", "the machine has no hbm, links, torus", "my.machine:2"),
        ("", "the machine has no bf16, hbm, links, torus", "my.machine:1"),
        (TEXT + "usable 65 GiB", "`usable` is more than `hbm`", "my.machine:5"),
    ],
)
def test_a_machine_that_makes_no_sense(text: str, message: str, where: str) -> None:
    with pytest.raises(TextError) as caught:
        machine_file.parse(text, "my.machine")
    assert message in caught.value.message
    assert caught.value.where == where
    assert caught.value.hint or "twice" in message
