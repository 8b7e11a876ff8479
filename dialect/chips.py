"""The chips that programs are planned and compiled for, by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Chip:
    """One accelerator, by its data sheet.

    - bf16_flops_per_s, int8_flops_per_s: peak of the matrix unit, a multiply-add counts as two
    - hbm_bytes: what is soldered on; usable_hbm_bytes: what the compiler lets a program have
    - link_bytes_per_s: one inter-chip link, one way
    - torus: the largest slice; its rank is the rank of every slice ("" of one: no torus)
    - cube: edge of the block that optical switches join (0: none), see `Topology.wraps`
    - cores: TensorCores per chip; slice names such as v4-128 count these
    - device_kinds: how JAX calls the chip
    """

    name: str
    bf16_flops_per_s: float
    int8_flops_per_s: float
    hbm_bytes: int
    usable_hbm_bytes: int
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    vmem_bytes: int
    torus: tuple[int, ...]
    cube: int
    cores: int
    device_kinds: tuple[str, ...]


# Sources: peak, HBM, torus and pod from the Cloud TPU pages of each version
# (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e); one-way link bandwidth from "How to Scale Your
# Model" (jax-ml.github.io/scaling-book/tpus); v4's 275 TFLOP/s, 32 GiB, 1200 GB/s and 270 GB/s
# over six links also in arXiv:2211.05102, section 4. On-chip memory: VMEM per core as Pallas sees
# it, times cores. usable_hbm_bytes: the limit libtpu reports when a program is too large.
# "cpu" is nominal: it lets every decision be made and printed on virtual devices.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            bf16_flops_per_s=275e12,
            int8_flops_per_s=275e12,
            hbm_bytes=32 * GIB,
            usable_hbm_bytes=int(30.75 * GIB),
            hbm_bytes_per_s=1200e9,
            link_bytes_per_s=45e9,
            vmem_bytes=2 * 16 * MIB,
            torus=(16, 16, 16),
            cube=4,
            cores=2,
            device_kinds=("TPU v4",),
        ),
        Chip(
            name="v5e",
            bf16_flops_per_s=197e12,
            int8_flops_per_s=394e12,
            hbm_bytes=16 * GIB,
            usable_hbm_bytes=int(15.75 * GIB),
            hbm_bytes_per_s=819e9,
            link_bytes_per_s=45e9,
            vmem_bytes=128 * MIB,
            torus=(16, 16),
            cube=0,
            cores=1,
            device_kinds=("TPU v5 lite", "TPU v5e"),
        ),
        Chip(
            name="v5p",
            bf16_flops_per_s=459e12,
            int8_flops_per_s=918e12,
            hbm_bytes=96 * GIB,
            usable_hbm_bytes=int(95.73 * GIB),
            hbm_bytes_per_s=2765e9,
            link_bytes_per_s=90e9,
            vmem_bytes=2 * 64 * MIB,
            torus=(16, 20, 28),
            cube=4,
            cores=2,
            device_kinds=("TPU v5", "TPU v5p"),
        ),
        Chip(
            name="v6e",
            bf16_flops_per_s=918e12,
            int8_flops_per_s=1836e12,
            hbm_bytes=32 * GIB,
            usable_hbm_bytes=int(31.24 * GIB),
            hbm_bytes_per_s=1638e9,
            link_bytes_per_s=90e9,
            vmem_bytes=128 * MIB,
            torus=(16, 16),
            cube=0,
            cores=1,
            device_kinds=("TPU v6 lite", "TPU v6e"),
        ),
        Chip(
            name="cpu",
            bf16_flops_per_s=1e12,
            int8_flops_per_s=1e12,
            hbm_bytes=16 * GIB,
            usable_hbm_bytes=16 * GIB,
            hbm_bytes_per_s=50e9,
            link_bytes_per_s=10e9,
            vmem_bytes=32 * MIB,
            torus=(4096,),
            cube=0,
            cores=1,
            device_kinds=("cpu",),
        ),
    )
}
