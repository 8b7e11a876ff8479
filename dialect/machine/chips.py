"""The data sheets of the chips that programs are planned and compiled for."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """The data sheet of one accelerator.

    Figures are per JAX device, the unit of a mesh. Most chips are one device; a 7x is two
    (`devices`), so its figures are half the chip's.

    - peaks: (dtype, FLOP/s) of dense products of a dtype that the matrix unit supports natively; a
      multiply-add counts as two. See `flops_per_s`
    - hbm_bytes: physical memory; usable_hbm_bytes: what the compiler gives to a program
    - on_chip_bytes: VMEM of a TPU (CMEM of v4), L2 cache of a GPU
    - fabric: the links of a slice: "torus" and "grid" connect neighbours, and axes of a torus may
      wrap around (`Topology.wraps`); "switch" connects all chips
    - largest: shape of the largest slice; its rank is the rank of every slice
    - link_bytes_per_s: one link to a neighbour, or all links to the switch together, one way
    - link_hop_s: one step to a neighbour, or through the switch, independent of bytes
    - network_bytes_per_s, network_hop_s: the same for the data-centre network between slices, with
      the chip's share of its host's interface (0: none)
    - cube: edge of the blocks that optical switches connect (0: none), see `Topology.wraps`
    - cores: TensorCores per chip; slice names such as v4-128 count these
    - devices: JAX devices per chip; die_bytes_per_s: bandwidth between them, one way
    - platform, device_kinds: JAX's names ("" and none: planning only)
    - libtpu: libtpu's name for ahead-of-time compilation ("": none)
    """

    name: str
    peaks: tuple[tuple[str, float], ...]
    hbm_bytes: int
    usable_hbm_bytes: int
    hbm_bytes_per_s: float
    on_chip_bytes: int
    fabric: str
    largest: tuple[int, ...]
    link_bytes_per_s: float
    link_hop_s: float
    network_bytes_per_s: float = 0.0
    network_hop_s: float = 0.0
    cube: int = 0
    cores: int = 1
    devices: int = 1
    die_bytes_per_s: float = 0.0
    platform: str = ""
    device_kinds: tuple[str, ...] = ()
    libtpu: str = ""
    aliases: tuple[str, ...] = ()

    def flops_per_s(self, dtype: str) -> float:
        """Peak FLOP/s of products with both operands of this dtype.

        "bf16", "f32", "int8" or "i8", "fp8" or "f8_e4m3fn", "int4" or "i4". A dtype that the matrix
        unit does not support is computed in bf16: float32, which JAX multiplies in bf16 on a TPU
        (its default precision); int8 weights with bf16 activations, which are widened first.
        """
        peaks = dict(self.peaks)
        return peaks.get(_native(dtype), peaks["bf16"])

    def multiplies(self, dtype: str) -> bool:
        """Whether the matrix unit supports two operands of this dtype natively."""
        return _native(dtype) in dict(self.peaks)

    @property
    def bf16_flops_per_s(self) -> float:
        """Peak of bf16 products."""
        return self.flops_per_s("bf16")

    @property
    def int8_flops_per_s(self) -> float:
        """Peak of int8 products."""
        return self.flops_per_s("int8")


def _native(dtype: str) -> str:
    """The key in `Chip.peaks` of a dtype: the same for signed and unsigned, and for all 8-bit
    floats."""
    integer = re.fullmatch(r"u?i(?:nt)?([48])|u([48])", dtype)
    if integer:
        return f"int{integer[1] or integer[2]}"
    return "fp8" if re.match(r"fp8|f8_|float8_", dtype) else dtype


# Sources. TPU: peak, HBM, torus, pod and network from the Cloud TPU pages of each version
# (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x); int4 from JAX's table of TPUs, twice
# int8; one-way link bandwidth, a hop of 1 us, and the network of v4 and v5e from "How to Scale
# Your Model" (jax-ml.github.io/scaling-book/tpus); v4's 275 TFLOP/s, 32 GiB, 1200 GB/s and
# 270 GB/s over six links also in arXiv:2211.05102, section 4. On-chip memory: VMEM per core as
# Pallas sees it, times cores; of v4 the CMEM (arXiv:2304.01433), in which the compiler keeps
# arrays. usable_hbm_bytes: the limit libtpu reports when a program is too large. A 7x has two dies
# with one device each; its die-to-die link is six times one of its links.
TPU_HOP_S = 1e-6
# GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM, dense; f32 is TF32, which JAX
# takes by default; NVLink one way; the network as in DGX A100 (200 Gb/s InfiniBand per GPU), DGX
# H100 and H200 (400 Gb/s). usable_hbm_bytes: what the driver reports as a GPU's memory.
# Latencies: NCCL's tuning model (src/graph/tuning.cc), NVLink ring LL128, and network ring
# Simple; the latter for TPUs too, of which none is published.
NVLINK_HOP_S = 1.9e-6
NETWORK_HOP_S = 14e-6

_TPUS = (
    Chip(
        name="v4",
        peaks=(("bf16", 275e12),),
        hbm_bytes=32 * GIB,
        usable_hbm_bytes=int(30.75 * GIB),
        hbm_bytes_per_s=1200e9,
        on_chip_bytes=128 * MIB,
        fabric="torus",
        largest=(16, 16, 16),
        link_bytes_per_s=45e9,
        link_hop_s=TPU_HOP_S,
        network_bytes_per_s=6.25e9,
        network_hop_s=NETWORK_HOP_S,
        cube=4,
        cores=2,
        platform="tpu",
        device_kinds=("TPU v4",),
        libtpu="v4",
    ),
    Chip(
        name="v5e",
        peaks=(("bf16", 197e12), ("int8", 394e12), ("int4", 788e12)),
        hbm_bytes=16 * GIB,
        usable_hbm_bytes=int(15.75 * GIB),
        hbm_bytes_per_s=819e9,
        on_chip_bytes=128 * MIB,
        fabric="torus",
        largest=(16, 16),
        link_bytes_per_s=45e9,
        link_hop_s=TPU_HOP_S,
        network_bytes_per_s=3.125e9,
        network_hop_s=NETWORK_HOP_S,
        platform="tpu",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        libtpu="v5e",
        aliases=("v5litepod", "v5lite"),
    ),
    Chip(
        name="v5p",
        peaks=(("bf16", 459e12), ("int8", 918e12), ("int4", 1836e12)),
        hbm_bytes=96 * GIB,
        usable_hbm_bytes=int(95.73 * GIB),
        hbm_bytes_per_s=2765e9,
        on_chip_bytes=2 * 64 * MIB,
        fabric="torus",
        largest=(16, 20, 28),
        link_bytes_per_s=90e9,
        link_hop_s=TPU_HOP_S,
        network_bytes_per_s=6.25e9,
        network_hop_s=NETWORK_HOP_S,
        cube=4,
        cores=2,
        platform="tpu",
        device_kinds=("TPU v5", "TPU v5p"),
        libtpu="v5p",
    ),
    Chip(
        name="v6e",
        peaks=(("bf16", 918e12), ("int8", 1836e12), ("int4", 3672e12)),
        hbm_bytes=32 * GIB,
        usable_hbm_bytes=int(31.24 * GIB),
        hbm_bytes_per_s=1638e9,
        on_chip_bytes=128 * MIB,
        fabric="torus",
        largest=(16, 16),
        link_bytes_per_s=90e9,
        link_hop_s=TPU_HOP_S,
        network_bytes_per_s=12.5e9,
        network_hop_s=NETWORK_HOP_S,
        platform="tpu",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        libtpu="v6e",
        aliases=("trillium",),
    ),
    Chip(
        name="v7x",
        peaks=(("bf16", 2307e12 / 2), ("fp8", 4614e12 / 2)),
        hbm_bytes=192 * GIB // 2,
        usable_hbm_bytes=int(94.74 * GIB),
        hbm_bytes_per_s=7380e9 / 2,
        on_chip_bytes=64 * MIB,
        fabric="torus",
        largest=(16, 24, 24),
        link_bytes_per_s=90e9 / 2,  # both devices of a chip send over its links
        link_hop_s=TPU_HOP_S,
        network_bytes_per_s=12.5e9 / 2,
        network_hop_s=NETWORK_HOP_S,
        cube=4,
        cores=2,
        devices=2,
        die_bytes_per_s=6 * 90e9,
        platform="tpu",
        device_kinds=("TPU7x",),
        libtpu="tpu7x",
        aliases=("7x", "tpu7x", "ironwood"),
    ),
)

_GPUS = (
    Chip(
        name="a100",
        peaks=(("bf16", 312e12), ("f32", 156e12), ("int8", 624e12), ("int4", 1248e12)),
        hbm_bytes=80 * GIB,
        usable_hbm_bytes=80 * GIB,
        hbm_bytes_per_s=2039e9,
        on_chip_bytes=40 * MIB,
        fabric="switch",
        largest=(8,),
        link_bytes_per_s=300e9,
        link_hop_s=NVLINK_HOP_S,
        network_bytes_per_s=25e9,
        network_hop_s=NETWORK_HOP_S,
        platform="gpu",
        device_kinds=("NVIDIA A100-SXM4-80GB",),
    ),
    Chip(
        name="h100",
        peaks=(("bf16", 989.4e12), ("f32", 494.7e12), ("fp8", 1978.9e12), ("int8", 1978.9e12)),
        hbm_bytes=80 * GIB,
        usable_hbm_bytes=81559 * MIB,
        hbm_bytes_per_s=3350e9,
        on_chip_bytes=50 * MIB,
        fabric="switch",
        largest=(8,),
        link_bytes_per_s=450e9,
        link_hop_s=NVLINK_HOP_S,
        network_bytes_per_s=50e9,
        network_hop_s=NETWORK_HOP_S,
        platform="gpu",
        device_kinds=("NVIDIA H100 80GB HBM3",),
    ),
    Chip(
        name="h200",
        peaks=(("bf16", 989.4e12), ("f32", 494.7e12), ("fp8", 1978.9e12), ("int8", 1978.9e12)),
        hbm_bytes=141 * GIB,
        usable_hbm_bytes=143771 * MIB,
        hbm_bytes_per_s=4800e9,
        on_chip_bytes=50 * MIB,
        fabric="switch",
        largest=(8,),
        link_bytes_per_s=450e9,
        link_hop_s=NVLINK_HOP_S,
        network_bytes_per_s=50e9,
        network_hop_s=NETWORK_HOP_S,
        platform="gpu",
        device_kinds=("NVIDIA H200",),
    ),
)

# Nominal figures, so that every plan can be made for virtual CPU devices.
_CPU = Chip(
    name="cpu",
    peaks=(("bf16", 1e12), ("int8", 1e12)),
    hbm_bytes=16 * GIB,
    usable_hbm_bytes=16 * GIB,
    hbm_bytes_per_s=50e9,
    on_chip_bytes=32 * MIB,
    fabric="grid",
    largest=(4096,),
    link_bytes_per_s=10e9,
    link_hop_s=1e-6,
    network_bytes_per_s=1e9,
    network_hop_s=NETWORK_HOP_S,
    platform="cpu",
    device_kinds=("cpu",),
)

CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS, _CPU)}
ALIASES = {alias: chip.name for chip in CHIPS.values() for alias in chip.aliases}
