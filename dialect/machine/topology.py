"""Topologies: the number, shape and links of chips.

    v5e:4x4             a slice by its shape
    v5e-16, v4-128      a slice by its name, which counts TensorCores
    h100:8, cpu:8       a number of chips
    v5litepod-16        the same, as Google Cloud says it; capital letters are small ones
    2*v5e:4x4           two slices over a data-centre network
    my/edge.machine:4x4 chips that a file describes (`dialect.machine.machine_file`)

A plan or a pipeline names a topology by this text.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from dialect.machine import machine_file
from dialect.machine.chips import ALIASES, CHIPS, Chip
from dialect.machine.interconnect import Links, Network, Ring, Switch
from dialect.machine.mesh_spec import MeshSpec, TargetError
from rewrite.errors import in_quotes, nearest

_MOST_CHARACTERS = 1000
_PLATFORMS = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}  # kinds of chips, and no chip
_TEXT = re.compile(
    rf"(?:(?P<slices>[0-9]{{1,6}})\*)?(?P<chip>.+{re.escape(machine_file.SUFFIX)}|\w+)"
    r"(?P<mark>[:-])(?P<shape>[0-9]{1,6}(?:x[0-9]{1,6}){0,3})"
)


@dataclass(frozen=True)
class Topology:
    """`slices` equal slices, with chips in a grid of this shape."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @staticmethod
    def parse(text: str) -> Topology:
        """Reads what `str` printed, and names such as "v5e-16". Raises TargetError with the nearest
        names, and TextError if a machine file cannot be read.

        A name with a dash counts TensorCores, as Google Cloud and MaxText do: v5e-16 has 16
        chips (4x4), v4-128 and v5p-128 have 64 (4x4x4).
        """
        if len(text) > _MOST_CHARACTERS:
            raise TargetError(f"{in_quotes(text)} is too long for the name of a machine")
        said = text.strip() if machine_file.SUFFIX in text else text.strip().lower()
        match = _TEXT.fullmatch(said)
        chip = _chip(match["chip"] if match else re.split(r"[:-]", said)[0], text)
        shape = tuple(map(int, match["shape"].split("x"))) if match else ()
        slices = int(match["slices"] or 1) if match else 1
        named = match is not None and match["mark"] == "-"
        if named:
            shape = _names(chip).get(f"{chip.name}-{match['shape']}", ())
        if match is None and said in (chip.name, *chip.aliases):
            raise TargetError(f"{text!r} does not say how many chips", hint=_hint(text, chip))
        if not _is_slice(chip, shape):
            raise TargetError(f"{text!r} is no slice of {chip.name}", hint=_hint(text, chip))
        if slices < 1:
            raise TargetError(f"{text!r} has no slices", hint=f"write 2*{Topology(chip, shape)}")
        if slices > 1 and not chip.network_bytes_per_s:
            hint = "give it one: `network 6.25 GB/s, 14 us`"
            raise TargetError(f"{chip.name} has no network that joins slices", hint=hint)
        return Topology(chip, shape, slices)

    def __str__(self) -> str:
        slices = f"{self.slices}*" if self.slices > 1 else ""
        return f"{slices}{self.chip.name}:" + "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        """The number of chips, over all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """The number of JAX devices, which is the size of a mesh."""
        return self.chips * self.chip.devices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which axes of a slice wrap around.

        In a torus: all axes of slices that consist of full cubes; without optical switches the axes
        as long as the largest slice's (cloud.google.com/tpu/docs/system-architecture-tpu-vm).
        """
        chip = self.chip
        if chip.fabric != "torus":
            return (False,) * len(self.shape)
        if chip.cube:
            return (all(size % chip.cube == 0 for size in self.shape),) * len(self.shape)
        return tuple(size == full for size, full in zip(self.shape, chip.largest))

    @property
    def physical(self) -> tuple[Links, ...]:
        """The physical axes, major first: slices, the axes of a slice, the devices of a chip."""
        chip = self.chip
        speed = (chip.link_bytes_per_s, chip.link_hop_s)
        if chip.fabric == "switch":
            inside: list[Links] = [Switch(size, *speed) for size in self.shape]
        else:
            inside = [Ring(size, wraps, *speed) for size, wraps in zip(self.shape, self.wraps)]
        network = [Network(self.slices, chip.network_bytes_per_s, chip.network_hop_s)]
        dies = [Ring(chip.devices, False, chip.die_bytes_per_s, chip.link_hop_s)]
        return (*network[: self.slices > 1], *inside, *dies[: chip.devices > 1])

    @property
    def grid(self) -> tuple[int, ...]:
        """The sizes of the physical axes."""
        return tuple(link.size for link in self.physical)

    def mesh_axes(self) -> MeshSpec:
        """The default mesh: dcn over the slices, x, y and z along the axes of a slice, and core
        over the devices of a chip; without axes of size 1."""
        shape = self.shape if len(self.shape) > 1 else cubic(self.shape[0], 2)
        inside = zip("xyz", [size for size in shape if size > 1])
        axes = (("dcn", self.slices), *inside, ("core", self.chip.devices))
        return MeshSpec(tuple(axis for axis in axes if axis[1] > 1) or (("x", 1),))

    def rings(self, mesh: MeshSpec) -> dict[str, tuple[Links, ...]]:
        """The physical links of every mesh axis, in the order of `jax_mesh`."""
        runs = [self.physical[axis] for axis in placement(self.grid, mesh.sizes)]
        remaining = [run.size for run in runs]
        joins = {}
        for name, size in mesh.axes:
            parts = []
            for number, run in enumerate(runs):
                shared = math.gcd(size, remaining[number])
                if shared > 1:
                    parts.append(run.part(shared))
                    remaining[number] //= shared
                    size //= shared
            joins[name] = tuple(parts)
        return joins


def cubic(count: int, rank: int) -> tuple[int, ...]:
    """The standard slice of `count` chips: the most cubic shape, ascending, ones last.

    16 -> (4, 4); 32 -> (2, 4, 4); 4 -> (2, 2, 1). () where no count of chips is given.
    """
    low = [n for n in range(1, math.isqrt(max(0, count)) + 1) if count % n == 0]
    divisors = sorted({*low, *(count // n for n in low)})
    shapes = [()] if count < 1 else _shapes(count, rank, divisors)
    best = min(shapes, key=lambda shape: (sum(shape), shape))
    return tuple(sorted(best, key=lambda size: (size == 1, size)))


def _shapes(count: int, rank: int, divisors: list[int]) -> list[tuple[int, ...]]:
    if rank == 1:
        return [(count,)]
    return [
        (first, *rest)
        for first in divisors
        if count % first == 0
        for rest in _shapes(count // first, rank - 1, divisors)
    ]


def _chip(name: str, text: str) -> Chip:
    if name.endswith(machine_file.SUFFIX):
        return machine_file.read(name)
    name = ALIASES.get(name, name)
    if name in _PLATFORMS:
        kinds = [chip for chip in CHIPS.values() if chip.platform == _PLATFORMS[name]]
        named = (str(Topology(chip, cubic(8, len(chip.largest)))) for chip in kinds)
        raise TargetError(
            f"{in_quotes(text)} does not say which kind of {_PLATFORMS[name].upper()}",
            hint=f"one of {', '.join(named)} ...; without a mesh, all devices that JAX finds",
        )
    if name not in CHIPS:
        raise TargetError(
            f"unknown chip {in_quotes(name)} in {in_quotes(text)}", hint=nearest(name, CHIPS)
        )
    return CHIPS[name]


def _is_slice(chip: Chip, shape: tuple[int, ...]) -> bool:
    """Whether the shape has the chip's rank and fits into the largest slice; axes of Cloud TPU
    slices have size 1, 2 or a multiple of 4."""
    fits = all(size <= full for size, full in zip(sorted(shape), sorted(chip.largest)))
    cut = chip.platform != "tpu" or all(size in (1, 2) or size % 4 == 0 for size in shape)
    return len(shape) == len(chip.largest) and min(shape) > 0 and fits and cut


def _names(chip: Chip) -> dict[str, tuple[int, ...]]:
    """The standard slices by name; only Cloud TPUs have these names, which count TensorCores."""
    if chip.platform != "tpu":
        return {}
    return {f"{chip.name}-{math.prod(shape) * chip.cores}": shape for shape in _standard(chip)}


def _standard(chip: Chip) -> list[tuple[int, ...]]:
    shapes = [cubic(1 << power, len(chip.largest)) for power in range(13)]
    return [shape for shape in shapes if _is_slice(chip, shape)]


def _hint(text: str, chip: Chip) -> str:
    known = [str(Topology(chip, shape)) for shape in _standard(chip)]
    return nearest(text, [*known, *_names(chip)])


def platform_of(text: str) -> str:
    """The platform of a machine by its name, `h100:8` -> "gpu"; "" where no chip is called so."""
    name = re.split("[:-]", text.strip().lower())[0]
    chip = CHIPS.get(ALIASES.get(name, name))
    return chip.platform if chip else _PLATFORMS.get(name, "")


def placement(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the physical axes whose reshape gives the mesh.

    If the sizes allow it, every mesh axis gets full physical axes; otherwise the order stays, and a
    mesh axis may get a part of a physical axis.
    """
    for owners in itertools.product(range(len(sizes)), repeat=len(shape)):
        products = [1] * len(sizes)
        for owner, size in zip(owners, shape):
            products[owner] *= size
        if tuple(products) == tuple(sizes):
            return tuple(sorted(range(len(shape)), key=lambda axis: owners[axis]))
    return tuple(range(len(shape)))
