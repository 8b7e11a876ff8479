"""Layouts by hand: rules that name mesh axes for the logical axes of a group of tensors.

    Rules = {"weights": {"d_model": "x", "d_ff": "yz"}, "residual": {"d_model": "xyz"}}

A tensor says its group and its axes, `"weights: layers d_model d_ff"`. Mesh axes are letters, major
first; those that the mesh has not are left out. Axes are served in the order of the rule: each
takes as many of its mesh axes as divide it and nobody took before. A group that the rules do not
name is left to the compiler; one with an empty rule is on every chip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Layouts:
    rules: Rules
    mesh: Mesh

    def constrain(self, value: Array, what: str) -> Array:
        """with_sharding_constraint, where the rules name the tensor's group."""
        if what.partition(":")[0] not in self.rules:
            return value
        return jax.lax.with_sharding_constraint(value, self.sharding(what, value))

    def sharding(self, what: str, value: Any) -> NamedSharding:
        group, _, axes = what.partition(":")
        rule = self.rules.get(group, {})
        return NamedSharding(self.mesh, self.spec(rule, axes.split(), value.shape))

    def free(self, what: str, value: Any) -> Any:
        """The same for an array whose memory layout the compiler may choose."""
        sharding = self.sharding(what, value)
        return Format(Layout.AUTO, sharding) if value.ndim > 1 else sharding

    def spec(
        self, rule: Mapping[str, str], axes: Sequence[str], shape: tuple[int, ...]
    ) -> PartitionSpec:
        left, taken = dict(self.mesh.shape), {axis: () for axis in axes}
        sizes = dict(zip(axes, shape, strict=True))
        for axis, letters in rule.items():
            for letter in letters:
                if axis in sizes and letter in left and sizes[axis] % left[letter] == 0:
                    sizes[axis] //= left.pop(letter)
                    taken[axis] += (letter,)
        return PartitionSpec(*(taken[axis] or None for axis in axes))
