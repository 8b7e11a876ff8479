"""Machines: topologies of chips, and the logical mesh laid over them.

    Topology.parse("v5e:4x4")    # a slice by its shape; "v5e-16" by its name, "cpu:8" by its count
    MeshSpec.parse("x=4 y=4")    # logical axes, independent of devices
    jax_mesh(topology, spec)     # a jax Mesh of that slice: real devices where attached, else of
                                 # libtpu's compiler for a machine that is not there

The text of a topology is all that a plan or a pipeline needs to name a machine.
"""

from __future__ import annotations

import glob
import importlib.util
import itertools
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from dialect.chips import CHIPS, Chip
from rewrite.errors import PipelineError, nearest


class TargetError(PipelineError):
    """The machine asked for does not exist, is not attached, or cannot be compiled for."""


@dataclass(frozen=True)
class MeshSpec:
    """A logical mesh, independent of devices: (axis, size) pairs, the major axis first."""

    axes: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if not self.axes or any(size < 1 for _, size in self.axes):
            raise TargetError(f"a mesh needs axes of size 1 or more, got {self.axes}")
        if len({name for name, _ in self.axes}) < len(self.axes):
            raise TargetError(f"the mesh {self} names an axis twice")

    @staticmethod
    def parse(text: str) -> MeshSpec:
        """Reads "x=2 y=4". Raises TargetError."""
        found = [re.fullmatch(r"([A-Za-z_]\w*)=([0-9]+)", word) for word in text.split()]
        if not found or None in found:
            raise TargetError(f"cannot read the mesh {text!r}", hint='write it as "x=2 y=4"')
        return MeshSpec(tuple((match[1], int(match[2])) for match in found))

    def __str__(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axes)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for _, size in self.axes)

    @property
    def size(self) -> int:
        """How many chips the mesh has."""
        return math.prod(self.sizes)

    def ways(self, axes: tuple[str, ...]) -> int:
        """Over how many chips a dimension on these axes is split."""
        return math.prod(dict(self.axes)[axis] for axis in axes)


@dataclass(frozen=True)
class Ring:
    """A run of `size` neighbouring chips along one physical axis; `closed` where it wraps."""

    size: int
    closed: bool


@dataclass(frozen=True)
class Topology:
    """A slice: chips in a grid of this shape."""

    chip: Chip
    shape: tuple[int, ...]

    @staticmethod
    def parse(text: str) -> Topology:
        """Reads "v5e:4x4", "v5e-16" or "cpu:8". Raises TargetError with the nearest names.

        A name with a dash counts TensorCores, as Google Cloud and MaxText do: v5e-16 has 16
        chips (4x4), v4-128 and v5p-128 have 64 (4x4x4).
        """
        match = re.fullmatch(r"(\w+)([:-])([0-9]+(?:x[0-9]+)*)", text.strip())
        name = match[1] if match else re.split(r"[:-]", text.strip())[0]
        if name not in CHIPS:
            raise TargetError(f"unknown chip {name!r} in {text!r}", hint=nearest(name, CHIPS))
        chip = CHIPS[name]
        shape = tuple(map(int, match[3].split("x"))) if match else ()
        named = match is not None and match[2] == "-"
        if named and text.strip() in _names(chip):
            shape = _names(chip)[text.strip()]
        elif named or not _is_slice(chip, shape):
            raise TargetError(f"{text!r} is no slice of {name}", hint=nearest(text, _known(chip)))
        return Topology(chip, shape)

    def __str__(self) -> str:
        return f"{self.chip.name}:" + "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which physical axes close into rings: those of whole cubes, or as long as the pod."""
        if self.chip.cube:
            return (all(size % self.chip.cube == 0 for size in self.shape),) * len(self.shape)
        return tuple(size == pod for size, pod in zip(self.shape, self.chip.torus))

    def mesh_axes(self) -> MeshSpec:
        """The default mesh: x, y and z along the physical axes longer than one chip."""
        shape = self.shape if len(self.shape) > 1 else cubic(self.shape[0], 2)
        sizes = [size for size in shape if size > 1] or [1]
        return MeshSpec(tuple(zip("xyz", sizes)))

    def rings(self, mesh: MeshSpec) -> dict[str, tuple[Ring, ...]]:
        """The physical runs of chips under each mesh axis, as `jax_mesh` lays them out."""
        order = placement(self.shape, mesh.sizes)
        runs = [(self.shape[axis], self.wraps[axis]) for axis in order]
        left = [size for size, _ in runs]
        found = {}
        for name, size in mesh.axes:
            parts = []
            for number, (length, wraps) in enumerate(runs):
                shared = math.gcd(size, left[number])
                if shared > 1:
                    parts.append(Ring(shared, wraps and shared == length))
                    left[number] //= shared
                    size //= shared
            found[name] = tuple(parts)
        return found


def cubic(count: int, rank: int) -> tuple[int, ...]:
    """The standard slice of `count` chips: the most cubic shape, ascending, ones last.

    16 -> (4, 4); 32 -> (2, 4, 4); 4 -> (2, 2, 1). () where no count of chips is given.
    """
    factors = range(1, count + 1)
    shapes = [()] if count < 1 else _shapes(count, rank, [n for n in factors if count % n == 0])
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


def _is_slice(chip: Chip, shape: tuple[int, ...]) -> bool:
    """Whether the shape has the chip's rank, fits into the pod, and is made of 1, 2 or 4s."""
    fits = all(size <= pod for size, pod in zip(sorted(shape), sorted(chip.torus)))
    cut = len(shape) == 1 or all(size in (1, 2) or size % 4 == 0 for size in shape)
    return len(shape) == len(chip.torus) and min(shape) > 0 and fits and cut


def _names(chip: Chip) -> dict[str, tuple[int, ...]]:
    """The standard slices by the names that count TensorCores; none for a chip without a torus."""
    rank = len(chip.torus)
    counts = [1 << power for power in range(13) if rank > 1]
    shapes = {f"{chip.name}-{count * chip.cores}": cubic(count, rank) for count in counts}
    return {name: shape for name, shape in shapes.items() if _is_slice(chip, shape)}


def _known(chip: Chip) -> list[str]:
    """The standard slices by shape and by name, for hints."""
    names = _names(chip)
    return [str(Topology(chip, shape)) for shape in names.values()] + list(names) or ["cpu:8"]


def placement(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """An order of the physical axes in which reshaping them gives the mesh.

    Mesh axes get whole physical axes where sizes allow it; else the order stays and a mesh axis
    may take a part of a physical one.
    """
    for owners in itertools.product(range(len(sizes)), repeat=len(shape)):
        products = [1] * len(sizes)
        for owner, size in zip(owners, shape):
            products[owner] *= size
        if tuple(products) == tuple(sizes):
            return tuple(sorted(range(len(shape)), key=lambda axis: owners[axis]))
    return tuple(range(len(shape)))


def jax_mesh(topology: Topology, mesh: MeshSpec) -> Mesh:
    """A jax Mesh with Auto axes, its axes along physical ones. Raises TargetError."""
    if mesh.size != topology.chips:
        message = f"the mesh {mesh} has {mesh.size} devices, {topology} has {topology.chips} chips"
        raise TargetError(message, hint=f"for example: mesh {topology.mesh_axes()}")
    grid = np.empty(topology.chips, dtype=object)
    grid[:] = devices(topology)
    order = placement(topology.shape, mesh.sizes)
    arranged = grid.reshape(topology.shape).transpose(order).reshape(mesh.sizes)
    return Mesh(arranged, mesh.names, axis_types=(AxisType.Auto,) * len(mesh.axes))


def devices(topology: Topology) -> list[Any]:
    """One jax device per chip, in row-major order of the chips' coordinates.

    The attached devices where they are this very slice; for a TPU else the devices of libtpu's
    ahead-of-time compiler, which compile but do not run. Raises TargetError.
    """
    if topology.chip.name == "cpu":
        return _cpu_devices(topology.chips)
    attached = [each for each in _attached() if each.platform == "tpu"]
    if attached and describe(Mesh(np.array(attached), ("x",)))[0] == topology:
        return sorted(attached, key=_coordinates)
    return sorted(_described_devices(topology), key=_coordinates)


def _cpu_devices(count: int) -> list[Any]:
    try:
        found = jax.devices("cpu")
    except RuntimeError as error:
        hint = "leave JAX_PLATFORMS unset, or let it name cpu too"
        raise TargetError(f"JAX was started without its CPU backend: {error}", hint=hint) from None
    if len(found) < count:
        flag = f'XLA_FLAGS="--xla_force_host_platform_device_count={count}"'
        message = f"cpu:{count} needs {count} CPU devices, JAX was started with {len(found)}"
        raise TargetError(message, hint=f"set {flag} before Python starts")
    return list(found[:count])


def _described_devices(topology: Topology) -> list[Any]:
    """Devices to compile for; nothing of the kind need be attached."""
    prepare_libtpu()
    options: dict[str, Any] = {"wrap": (*topology.wraps, False)[:3]}
    if topology.chip.cores > 1:
        options["chip_config_name"] = "megacore"  # else one device per core, not per chip
    if any(size % 2 for size in topology.shape[:2]):
        options["chips_per_host_bounds"] = (1, 1, 1)  # hosts of 2x2 chips would not tile it
    with _stderr_kept() as said:
        try:
            found = topologies.get_topology_desc(
                topology_name=str(topology), platform="tpu", **options
            )
        except Exception as error:  # jaxlib raises several kinds; all mean the same to the user
            why = said() or "no further message"
            raise TargetError(f"libtpu cannot compile for {topology}: {error}\n{why}") from error
    return list(found.devices)


def prepare_libtpu() -> None:
    """Makes libtpu loadable, and silent, where no TPU is attached.

    Does nothing where one is: there libtpu must read the machine's own metadata.
    Raises TargetError where libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        hint = f'{sys.executable} -m pip install "shardwright[tpu]"'
        raise TargetError("compiling for TPU needs libtpu, which is not installed", hint=hint)
    if _tpu_attached():
        return
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to wait for
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second process aborts
    # Any valid pair will do; without one libtpu complains at every start.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def _attached() -> list[Any]:
    """The devices of this machine; none where asking for them would only start libtpu in vain."""
    return jax.devices() if _tpu_attached() else []


def _tpu_attached() -> bool:
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


@contextmanager
def _stderr_kept() -> Iterator[Any]:
    """Keeps what native code writes to standard error; the yielded function reads it."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:

        def said() -> str:
            kept.seek(0)
            return kept.read().decode(errors="replace").strip()

        os.dup2(kept.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _coordinates(device: Any) -> tuple[int, ...]:
    return (*device.coords, device.core_on_chip)


def describe(mesh: Any, target: str | None = None) -> tuple[Topology, MeshSpec]:
    """What a jax Mesh or AbstractMesh consists of. Raises TargetError.

    `target` names the machine; an AbstractMesh, which has no devices, needs it.
    """
    shape = getattr(mesh, "shape", None)
    if not hasattr(shape, "items"):
        hint = 'give a jax Mesh, an AbstractMesh, or a topology such as "v5e:4x4"'
        raise TargetError(f"expected a mesh, got {type(mesh).__name__}", hint=hint)
    spec = MeshSpec(tuple((str(name), int(size)) for name, size in shape.items()))
    topology = Topology.parse(target) if target else _topology_of(mesh)
    if topology.chips != spec.size:
        message = f"the mesh {spec} has {spec.size} devices, {topology} has {topology.chips} chips"
        raise TargetError(message, hint="name a target with as many chips as the mesh")
    return topology, spec


def _topology_of(mesh: Any) -> Topology:
    if not isinstance(mesh, Mesh):
        hint = 'say which machine it stands for: target="v5e:2x4"'
        raise TargetError(f"the {type(mesh).__name__} has no devices", hint=hint)
    flat = list(mesh.devices.flat)
    kind = flat[0].device_kind
    chip = next((each for each in CHIPS.values() if kind in each.device_kinds), None)
    if chip is None:
        hint = 'say which machine to plan for: target="cpu:8" (known: ' + ", ".join(CHIPS) + ")"
        raise TargetError(f"no figures are known for the device {kind!r}", hint=hint)
    shape = cubic(len(flat), len(chip.torus))
    if chip.name != "cpu":
        spans = [len(set(place)) for place in zip(*(device.coords for device in flat))]
        spanned = tuple(spans[: len(chip.torus)])
        shape = spanned if math.prod(spanned) == len(flat) else shape
    return Topology(chip, shape)


def here() -> str:
    """The topology of all devices there are, as text. Raises TargetError for unknown devices."""
    return str(_topology_of(Mesh(np.array(jax.devices()), ("x",))))
