"""The collectives of a compiled program: mesh axes, bytes and ideal time.

`Places` maps the device numbers of the HLO text to coordinates on the mesh, which give the names of
the axes, and in the topology, which give the physical links.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dialect.compiled import hlo
from dialect.compiled.hlo import CollectiveInstruction
from dialect.machine.collectives import destination_bytes, transfer_s
from dialect.machine.mesh import MeshSpec, Topology, placement

# Kinds that use the links like another kind.
_LIKE = {"collective-broadcast": "all-gather", "ragged-all-to-all": "all-to-all"}

# (physical axis, direction along it, coordinates of the sender)
Hop = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class Exchanged:
    """One run of a collective, per chip; bytes without padding.

    - axes: the mesh axes along which its groups of chips extend
    - bytes: the output of an all-gather, the input of a reduce-scatter or an all-reduce, the local
      data of an all-to-all or a permute, as in `dialect.planning.plan.Exchange`
    - received_bytes: bytes that arrive at a chip as their destination
    - ideal_s: seconds at full bandwidth, over one physical axis at a time
    - together: the number of physical axes that are used at the same time
    - links: the links that it uses, as (physical axis, direction)
    - hops: steps from chip to chip until the farthest is reached, one axis after the other
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    group_size: int
    bytes: int
    received_bytes: int
    ideal_s: float
    together: int
    links: tuple[tuple[int, int], ...]
    hops: int


class Places:
    """Coordinates of a program's chips: `on_mesh` and `in_machine`, arrays of [chip, axis]."""

    def __init__(self, topology: Topology, mesh: Any = None) -> None:
        self.topology = topology
        axes = topology.mesh_axes().axes if mesh is None else dict(mesh.shape).items()
        self.mesh = MeshSpec(tuple((str(name), int(size)) for name, size in axes))
        count = math.prod(topology.grid)
        if self.mesh.size != count:
            raise ValueError(f"the mesh {self.mesh} has {self.mesh.size} chips, {topology} {count}")
        self.on_mesh = np.stack(np.unravel_index(np.arange(count), self.mesh.sizes), axis=1)
        # The order of `jax_mesh`; a mesh in another order has devices with coordinates.
        numbers = np.arange(count).reshape(topology.grid)
        order = numbers.transpose(placement(topology.grid, self.mesh.sizes)).ravel()
        self.in_machine = np.stack(np.unravel_index(order, topology.grid), axis=1)
        devices = list(mesh.devices.flat) if hasattr(mesh, "devices") else []
        if devices and all(hasattr(device, "coords") for device in devices) and _plain(topology):
            self.in_machine = np.array([device.coords[: len(topology.grid)] for device in devices])

    def axes(self, group: Iterable[int]) -> tuple[str, ...]:
        """The mesh axes along which the chips of a group differ."""
        extents = _extents(self.on_mesh, group)
        return tuple(name for name, extent in zip(self.mesh.names, extents) if extent > 1)

    def extents(self, group: Iterable[int]) -> dict[int, int]:
        """The number of coordinates of a group along every physical axis on which they differ."""
        extents = _extents(self.in_machine, group)
        return {axis: extent for axis, extent in enumerate(extents) if extent > 1}

    def loads(self, pairs: Iterable[tuple[int, ...]]) -> Counter[Hop]:
        """The number of messages of a permutation per hop; a message takes one axis at a time."""
        loads: Counter[Hop] = Counter()
        for source, target in pairs:
            loads.update(self.way(source, target))
        return loads

    def way(self, source: int, target: int) -> Iterator[Hop]:
        """The hops between two chips, the shorter way around a ring."""
        place = self.in_machine[source].tolist()
        for axis, to in enumerate(self.in_machine[target].tolist()):
            run = self.topology.physical[axis]
            apart = to - place[axis]
            around = run.links > 1 and 2 * abs(apart) > run.size
            direction = 1 if (apart > 0) != around else -1
            while place[axis] != to:
                yield axis, direction, tuple(place)
                place[axis] = (place[axis] + direction) % run.size


def _plain(topology: Topology) -> bool:
    """Whether a device's coordinates are its coordinates in `Topology.grid`."""
    return len(topology.grid) == len(topology.shape)


def _extents(places: np.ndarray, group: Iterable[int]) -> list[int]:
    return [len(set(column.tolist())) for column in places[sorted(group)].T]


def exchanged(collective: CollectiveInstruction, places: Places) -> Exchanged:
    """The traffic of one run of a collective. Raises ValueError if its groups cannot be read."""
    groups = hlo.chip_groups(collective.line, len(places.on_mesh))
    if not groups:
        raise ValueError(f"cannot read the replica groups of: {collective.line.strip()[:200]}")
    group = max(groups, key=len)
    arrays = [(hlo.array_bytes(*array), array[0]) for array in hlo.arrays(collective.type)]
    local_bytes, chips = sum(size for size, _ in arrays), len(group)
    physical = places.topology.physical
    kind = _LIKE.get(collective.kind, collective.kind)
    if kind == "reduce-scatter":
        local_bytes *= chips
    if kind == "collective-permute":
        pairs = hlo.permuted(collective.line)
        loads = places.loads(pairs)
        links = tuple({(axis, direction): None for axis, direction, _ in loads})
        received, together = (local_bytes if loads else 0), 1
        hops = max(sum(1 for _ in places.way(*pair)) for pair in pairs)
        runs = [physical[axis] for axis, _ in links]
        # The busiest hop carries its messages one after the other.
        ideal_s = max(loads.values(), default=0) * transfer_s(kind, local_bytes, runs)
    else:
        extents = places.extents(group)
        runs = [physical[axis].part(extent) for axis, extent in extents.items()]
        links = tuple((axis, direction) for axis in extents for direction in (1, -1))
        received, together = int(destination_bytes(kind, local_bytes, chips)), max(1, len(runs))
        ideal_s, hops = transfer_s(kind, local_bytes, runs), sum(run.hops for run in runs)
    return Exchanged(
        kind=collective.kind,
        axes=places.axes(group),
        dtype=max(arrays)[1],
        group_size=chips,
        bytes=local_bytes,
        received_bytes=received,
        ideal_s=ideal_s,
        together=together,
        links=links,
        hops=hops,
    )
