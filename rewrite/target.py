"""What a program is compiled for: a machine's topology and the logical mesh laid over it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """`topology` as text ("v5e:4x4", "cpu:8", "" where unknown); `mesh` as (axis, size) pairs."""

    topology: str = ""
    mesh: tuple[tuple[str, int], ...] = ()

    @property
    def chips(self) -> int:
        """How many chips the mesh has."""
        count = 1
        for _, size in self.mesh:
            count *= size
        return count
