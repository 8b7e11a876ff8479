"""A jax Mesh over the devices of a topology.

    jax_mesh(Topology.parse("v5e:4x4"), MeshSpec.parse("x=4 y=4"))

Its devices are the attached ones if they are this topology, else the compile-only devices of
libtpu.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import math
import os
import re
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from dialect.machine.chips import CHIPS, Chip
from dialect.machine.interconnect import Ring
from dialect.machine.mesh_spec import MeshSpec, TargetError
from dialect.machine.stderr import captured_stderr
from dialect.machine.topology import Topology, cubic, placement
from rewrite.errors import brief

__all__ = [
    "MeshSpec",
    "Ring",
    "TargetError",
    "Topology",
    "by_devices_here",
    "cubic",
    "describe",
    "devices",
    "here",
    "is_here",
    "jax_mesh",
    "must_be_attached",
    "must_be_here",
    "must_fit",
    "placement",
    "prepare_libtpu",
    "quiet_libtpu",
]


_PLANNED = "planned for it is: `shardwright explain --target`, or in Python `step.explain(...)`"


def jax_mesh(topology: Topology, mesh: MeshSpec) -> Mesh:
    """A jax Mesh with Auto axes, laid out along the physical axes. Raises TargetError."""
    must_fit(mesh, topology)
    grid = np.empty(topology.devices, dtype=object)
    grid[:] = devices(topology)
    order = placement(topology.grid, mesh.sizes)
    arranged = grid.reshape(topology.grid).transpose(order).reshape(mesh.sizes)
    return Mesh(arranged, mesh.names, axis_types=(AxisType.Auto,) * len(mesh.axes))


def must_fit(mesh: MeshSpec, topology: Topology) -> None:
    """Raises TargetError for a mesh of another number of devices than the topology has."""
    if mesh.size != topology.devices:
        raise _mismatch(mesh, topology, hint=f"for example: mesh {topology.mesh_axes()}")


def _mismatch(mesh: MeshSpec, topology: Topology, hint: str) -> TargetError:
    here, there = f"{mesh.size} devices", f"{topology} has {topology.devices}"
    return TargetError(f"the mesh {brief(str(mesh))} has {here}, {there}", hint=hint)


def devices(topology: Topology) -> list[Any]:
    """All devices of a topology, in row-major order of `Topology.grid`.

    The attached devices if they are this slice; otherwise, for a TPU, the compile-only devices of
    libtpu's ahead-of-time compiler. Raises TargetError.
    """
    chip = topology.chip
    if chip.platform == "cpu":
        return _cpu_devices(topology.devices)
    if chip.platform == "gpu":
        return _gpu_devices(topology)
    if not chip.libtpu:
        raise TargetError(f"{topology} can be planned for, not compiled for", hint=_PLANNED)
    attached = [device for device in _attached() if device.platform == "tpu"]
    if attached and _is_made_of(topology, attached):
        return sorted(attached, key=_coordinates)
    return sorted(_described_devices(topology), key=_coordinates)


def _is_made_of(topology: Topology, attached: list[Any]) -> bool:
    here_ = _topology_of(Mesh(np.array(attached), ("x",)))
    same = here_.chip.libtpu == topology.chip.libtpu
    return same and (here_.shape, here_.slices) == (topology.shape, topology.slices)


def _gpu_devices(topology: Topology) -> list[Any]:
    """The attached GPUs: XLA tunes its kernels on the device, so it cannot compile without one."""
    kinds, count = topology.chip.device_kinds, topology.devices
    matching = [device for device in _gpus() if device.device_kind in kinds]
    if len(matching) < count:
        message = f"{topology} needs {count} of {' or '.join(kinds)}, {len(matching)} are attached"
        raise TargetError(message, hint=_PLANNED)
    return matching[:count]


def _gpus() -> list[Any]:
    """The GPUs that are attached and that JAX was started with."""
    if not glob.glob("/dev/nvidia[0-9]*"):
        return []
    try:
        return list(jax.devices("gpu"))
    except RuntimeError:  # JAX_PLATFORMS names no GPU, or this JAX was installed without CUDA
        return []


def by_devices_here(name: str) -> str:
    """`cuda:2`  ->  `h200:2`, by the GPUs that are here; any other name stays as it is.

    Raises TargetError where none are.
    """
    match = re.fullmatch(r"(?:gpu|cuda)(?:[:-]([0-9]{1,6}))?", name.strip().lower())
    if match is None:
        return name
    gpus = _gpus()
    if not gpus:
        count = match[1] or 1
        raise TargetError(
            f"{name!r} takes GPUs that are attached, and JAX finds none here",
            hint=f"to plan for GPUs, name their kind: h100:{count}; to run here, cpu:{count}",
        )
    return f"{_chip_of(gpus[0]).name}:{match[1] or len(gpus)}"


def _cpu_devices(count: int) -> list[Any]:
    try:
        available = jax.devices("cpu")
    except RuntimeError as error:
        hint = "leave JAX_PLATFORMS unset, or let it name cpu too"
        raise TargetError(f"JAX was started without its CPU backend: {error}", hint=hint) from None
    if len(available) < count:
        flag = f'XLA_FLAGS="--xla_force_host_platform_device_count={count}"'
        message = f"cpu:{count} needs {count} CPU devices, JAX was started with {len(available)}"
        raise TargetError(message, hint=f"set {flag} before Python starts")
    return list(available[:count])


def _described_devices(topology: Topology) -> list[Any]:
    """The compile-only devices of libtpu for a topology that need not be attached."""
    prepare_libtpu()
    chip = topology.chip
    options: dict[str, Any] = {"wrap": (*topology.wraps, False)[:3]}
    if chip.cores > chip.devices:
        options["chip_config_name"] = "megacore"  # else one device per core, not per chip
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if any(size % 2 for size in topology.shape[:2]):
        options["chips_per_host_bounds"] = (1, 1, 1)  # hosts of 2x2 chips would not tile it
    name = f"{chip.libtpu}:" + "x".join(map(str, topology.shape))
    with captured_stderr() as messages:
        try:
            description = topologies.get_topology_desc(
                topology_name=name, platform="tpu", **options
            )
        except Exception as error:  # jaxlib raises several kinds; all mean the same to the user
            why = messages().strip() or "no further message"
            raise TargetError(f"libtpu cannot compile for {topology}: {error}\n{why}") from error
    return list(description.devices)


def prepare_libtpu() -> None:
    """Sets the environment variables that libtpu needs on a machine without a TPU.

    Does nothing if a TPU is attached: there libtpu must read the machine's metadata. Raises
    TargetError if libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        hint = f'{sys.executable} -m pip install "shardwright[tpu]"'
        raise TargetError("compiling for TPU needs libtpu, which is not installed", hint=hint)
    quiet_libtpu()


def quiet_libtpu() -> None:
    """Tells libtpu that there is no TPU, where there is none: it would look for one, and tell."""
    if _tpu_attached():
        return
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to wait for
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a second process aborts
    # Any valid pair will do; without one libtpu complains at every start.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def _attached() -> list[Any]:
    """The devices of this machine, without starting libtpu if no TPU is attached."""
    return jax.devices() if _tpu_attached() else []


def _tpu_attached() -> bool:
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


@functools.lru_cache(maxsize=64)
def is_here(mesh: Mesh) -> bool:
    """Whether a mesh is of devices that run programs, not of such that are only compiled for."""
    device = mesh.devices.flat[0]
    try:
        return device in jax.devices(device.platform)
    except RuntimeError:  # no such backend
        return False


def must_be_here(mesh: Mesh) -> None:
    """Raises TargetError for a mesh of devices that are only compiled for."""
    if not is_here(mesh):
        raise _not_here(mesh.size, mesh.devices.flat[0].device_kind)


def must_be_attached(topology: Topology) -> None:
    """Raises TargetError for TPUs that are not attached, without asking libtpu."""
    if topology.chip.platform == "tpu" and not _tpu_attached():
        raise _not_here(topology.devices, topology.chip.device_kinds[0])


def _not_here(count: int, kind: str) -> TargetError:
    return TargetError(
        f"there are no {count} {kind} here to run on: the step is for them",
        hint="step.lower(...).compile() and step.explain(...) need none; to run, make the step "
        'for devices that are here: auto_shard(step, "cpu:8")',
    )


def _coordinates(device: Any) -> tuple[int, ...]:
    return (_slice_of(device), *device.coords, device.core_on_chip)


def _slice_of(device: Any) -> int:
    """The slice of a device; JAX may give None on a single slice."""
    return getattr(device, "slice_index", None) or 0


def describe(mesh: Any, target: str | None = None) -> tuple[Topology, MeshSpec]:
    """The topology and the axes of a jax Mesh or AbstractMesh. Raises TargetError.

    `target` names the topology; an AbstractMesh needs it, since it has no devices.
    """
    shape = getattr(mesh, "shape", None)
    if not hasattr(shape, "items"):
        hint = 'give a jax Mesh, an AbstractMesh, or a topology such as "v5e:4x4"'
        raise TargetError(f"expected a mesh, got {type(mesh).__name__}", hint=hint)
    spec = MeshSpec(tuple((str(name), int(size)) for name, size in shape.items()))
    topology = Topology.parse(target) if target else _topology_of(mesh)
    if topology.devices != spec.size:
        raise _mismatch(spec, topology, hint="name a target with as many devices as the mesh")
    return topology, spec


def _topology_of(mesh: Any) -> Topology:
    if not isinstance(mesh, Mesh):
        hint = 'name its topology: target="v5e:2x4"'
        raise TargetError(f"the {type(mesh).__name__} has no devices", hint=hint)
    flat = list(mesh.devices.flat)
    chip = _chip_of(flat[0])
    slices = len(set(map(_slice_of, flat)))
    count = len(flat) // slices // chip.devices
    shape = cubic(count, len(chip.largest))
    if chip.platform == "tpu":
        spans = [len(set(place)) for place in zip(*(device.coords for device in flat))]
        spanned = tuple(spans[: len(shape)])
        shape = spanned if math.prod(spanned) == count else shape
    return Topology(chip, shape, slices)


def _chip_of(device: Any) -> Chip:
    """The chip that a device is. Raises TargetError where nothing is known of its kind."""
    kind = device.device_kind
    chip = next((known for known in CHIPS.values() if kind in known.device_kinds), None)
    if chip is None:
        hint = (
            "give a mesh, and a machine to plan for that is like it: auto_shard(step, mesh, "
            f'target="cpu:8") (known: {", ".join(CHIPS)}, and files of machines)'
        )
        raise TargetError(f"no figures are known for the device {kind!r}", hint=hint)
    return chip


def here() -> str:
    """The topology of all attached devices, as text. Raises TargetError for unknown devices."""
    return str(_topology_of(Mesh(np.array(jax.devices()), ("x",))))
