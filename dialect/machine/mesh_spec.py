"""Logical meshes: named axes and their sizes, independent of devices."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

from rewrite.errors import PipelineError, brief, in_quotes

_MOST_AXES = 10


class TargetError(PipelineError):
    """Raised if a topology does not exist, is not attached, or cannot be compiled for."""


@dataclass(frozen=True)
class MeshSpec:
    """A logical mesh, independent of devices: (axis, size) pairs, major first.

    Raises TargetError for no axes, too many, an axis without devices, or a repeated name.
    """

    axes: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.axes) <= _MOST_AXES:
            raise TargetError(f"a mesh has 1 to {_MOST_AXES} axes, not {len(self.axes)}")
        if any(size < 1 for _, size in self.axes):
            raise TargetError(f"a mesh needs axes of size 1 or more, got {self.axes}")
        if len({name for name, _ in self.axes}) < len(self.axes):
            raise TargetError(f"the mesh {brief(str(self))} names an axis twice")

    @staticmethod
    def parse(text: str) -> MeshSpec:
        """Reads "x=2 y=4". Raises TargetError."""
        axis = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([0-9]{1,9})")
        matches = list(map(axis.fullmatch, text.split()))
        if not matches or None in matches:
            message = f"cannot read the mesh {in_quotes(text)}"
            raise TargetError(message, hint='write it as "x=2 y=4"')
        return MeshSpec(tuple((match[1], int(match[2])) for match in matches))

    def __str__(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the axes."""
        return tuple(name for name, _ in self.axes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(size for _, size in self.axes)

    @property
    def size(self) -> int:
        """The number of devices."""
        return math.prod(self.sizes)

    def ways(self, axes: tuple[str, ...]) -> int:
        """The number of shards over these axes."""
        return math.prod([self._size_of[axis] for axis in axes])

    @cached_property
    def _size_of(self) -> dict[str, int]:
        return dict(self.axes)
