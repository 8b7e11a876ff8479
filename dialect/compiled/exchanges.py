"""What the collectives of a compiled program exchange: over which axes, how much, for how long.

`Places` knows where a program's chips are, by the numbers that its text gives them: on the mesh,
for the names of the axes, and in the machine, for the links that lie under them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dialect.compiled import hlo
from dialect.compiled.hlo import Found
from dialect.machine.collectives import own_bytes, transfer_s
from dialect.machine.mesh import MeshSpec, Topology, placement

# Kinds that take the links as another does.
_LIKE = {"collective-broadcast": "all-gather", "ragged-all-to-all": "all-to-all"}

# (axis of the machine, direction along it, the place from which)
Hop = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class Exchanged:
    """One run of a collective, per chip; bytes without padding.

    - axes: the mesh axes along which its groups of chips extend
    - bytes: the output of an all-gather, the input of a reduce-scatter or an all-reduce, the local
      data of an all-to-all or a permute, as in `dialect.planning.plan.Exchange`
    - received_bytes: what arrives at the chip and is meant for it
    - ideal_s: how long that takes at full bandwidth, over one axis of the machine at a time
    - together: how many of these axes work at once
    - links: the links it takes, as (axis of the machine, direction)
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
    """Where the chips of a program are: `on_mesh` and `in_machine`, arrays of [chip, axis]."""

    def __init__(self, topology: Topology, mesh: Any = None) -> None:
        self.topology = topology
        axes = topology.mesh_axes().axes if mesh is None else dict(mesh.shape).items()
        self.mesh = MeshSpec(tuple((str(name), int(size)) for name, size in axes))
        count = math.prod(topology.grid)
        if self.mesh.size != count:
            raise ValueError(f"the mesh {self.mesh} has {self.mesh.size} chips, {topology} {count}")
        self.on_mesh = np.stack(np.unravel_index(np.arange(count), self.mesh.sizes), axis=1)
        # As `jax_mesh` lays a mesh over a machine; a mesh of another order says so itself.
        numbers = np.arange(count).reshape(topology.grid)
        laid = numbers.transpose(placement(topology.grid, self.mesh.sizes)).ravel()
        self.in_machine = np.stack(np.unravel_index(laid, topology.grid), axis=1)
        devices = list(mesh.devices.flat) if hasattr(mesh, "devices") else []
        if devices and all(hasattr(device, "coords") for device in devices) and _plain(topology):
            self.in_machine = np.array([each.coords[: len(topology.grid)] for each in devices])

    def axes(self, group: Iterable[int]) -> tuple[str, ...]:
        """The mesh axes along which the chips of a group differ."""
        extents = _extents(self.on_mesh, group)
        return tuple(name for name, extent in zip(self.mesh.names, extents) if extent > 1)

    def extents(self, group: Iterable[int]) -> dict[int, int]:
        """How many places a group takes along each axis of the machine that it extends along."""
        extents = _extents(self.in_machine, group)
        return {axis: extent for axis, extent in enumerate(extents) if extent > 1}

    def loads(self, pairs: Iterable[tuple[int, ...]]) -> Counter[Hop]:
        """How many messages of a permutation take each hop, one axis after the other."""
        found: Counter[Hop] = Counter()
        for source, target in pairs:
            found.update(self.way(source, target))
        return found

    def way(self, source: int, target: int) -> Iterator[Hop]:
        """The hops between two chips, round a ring the shorter way."""
        at = self.in_machine[source].tolist()
        for axis, to in enumerate(self.in_machine[target].tolist()):
            run = self.topology.physical[axis]
            apart = to - at[axis]
            around = run.links > 1 and 2 * abs(apart) > run.size
            direction = 1 if (apart > 0) != around else -1
            while at[axis] != to:
                yield axis, direction, tuple(at)
                at[axis] = (at[axis] + direction) % run.size


def _plain(topology: Topology) -> bool:
    """Whether a device's coordinates say all there is to its place."""
    return len(topology.grid) == len(topology.shape)


def _extents(places: np.ndarray, group: Iterable[int]) -> list[int]:
    return [len(set(column.tolist())) for column in places[sorted(group)].T]


def exchanged(found: Found, places: Places) -> Exchanged:
    """What one run of a collective moves. Raises ValueError where its groups cannot be read."""
    groups = hlo.chip_groups(found.line, len(places.on_mesh))
    if not groups:
        raise ValueError(f"which chips take part is not known: {found.line.strip()[:200]}")
    group = max(groups, key=len)
    arrays = [(hlo.array_bytes(*array), array[0]) for array in hlo.arrays(found.type)]
    held, chips = sum(size for size, _ in arrays), len(group)
    physical = places.topology.physical
    kind = _LIKE.get(found.kind, found.kind)
    if kind == "reduce-scatter":
        held *= chips
    if kind == "collective-permute":
        pairs = hlo.permuted(found.line)
        loads = places.loads(pairs)
        links = tuple({(axis, direction): None for axis, direction, _ in loads})
        received, together = (held if loads else 0), 1
        hops = max(sum(1 for _ in places.way(*pair)) for pair in pairs)
        runs = [physical[axis] for axis, _ in links]
        # The busiest hop carries all that pass it, one after the other.
        ideal_s = max(loads.values(), default=0) * transfer_s(kind, held, runs)
    else:
        extents = places.extents(group)
        runs = [physical[axis].part(extent) for axis, extent in extents.items()]
        links = tuple((axis, direction) for axis in extents for direction in (1, -1))
        received, together = int(own_bytes(kind, held, chips)), max(1, len(runs))
        ideal_s, hops = transfer_s(kind, held, runs), sum(run.hops for run in runs)
    return Exchanged(
        kind=found.kind,
        axes=places.axes(group),
        dtype=max(arrays)[1],
        group_size=chips,
        bytes=held,
        received_bytes=received,
        ideal_s=ideal_s,
        together=together,
        links=links,
        hops=hops,
    )
