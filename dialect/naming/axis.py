"""One axis of a program, and the axes of all its values: a union-find whose members may split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from rewrite.ir import Value

NAMES = (
    "batch time context d_model heads kv_heads q_per_kv d_head d_ff d_ff_per_head vocab layers "
    "experts latent positions pages qkv kv gate_up parts"
).split()
HEADS = ("heads", "kv_heads", "q_per_kv")  # of queries: all in one, or grouped
Names = tuple[tuple[str, ...], ...]  # per dimension, the axes in it, major first


class Axis:
    """One axis: its size, the roles of the inputs it touches, and the names it was given."""

    __slots__ = ("size", "link", "parts", "roles", "names")

    def __init__(self, size: int) -> None:
        self.size = size
        self.link: Axis | None = None
        self.parts: tuple[Axis, ...] = ()
        self.roles: set[str] = set()
        self.names: dict[str, tuple[int, str]] = {}  # name -> (priority, provenance)

    def call(self, name: str, priority: int, provenance: str) -> None:
        """Names the axis; of several names the one of the highest priority stays."""
        known = self.names.get(name)
        if known is None or known[0] < priority:
            self.names[name] = (priority, provenance)

    @property
    def name(self) -> str:
        """The name that the most telling op gave it, or `_`."""
        return max(self.names, key=lambda name: self.names[name][0], default="_")


def leaves(axis: Axis) -> tuple[Axis, ...]:
    """The axes that an axis now consists of."""
    last = axis
    while last.link is not None:
        last = last.link
    while axis.link is not None:  # the next search is short
        axis.link, axis = last, axis.link
    return tuple(leaf for part in last.parts for leaf in leaves(part)) if last.parts else (last,)


def leaves_of(axes: Iterable[Axis]) -> list[Axis]:
    """The leaves of several axes, in order."""
    return [leaf for axis in axes for leaf in leaves(axis)]


def unify(left: Iterable[Axis], right: Iterable[Axis]) -> None:
    """Makes two sequences of axes the same, splitting where one is finer. Torn axes are left."""
    one, other = leaves_of(left), leaves_of(right)
    while one and other:
        a, b = one[0], other[0]
        if a is b:
            pass
        elif a.size == b.size:
            _join(a, b)
        else:
            big, small, rest = (a, b, one) if a.size > b.size else (b, a, other)
            if not small.size or big.size % small.size:
                return
            tail = Axis(big.size // small.size)
            tail.roles |= big.roles
            head = Axis(small.size)
            head.roles |= big.roles
            big.parts = (head, tail)
            _join(head, small)
            rest[0:1] = [head, tail]
        one, other = one[1:], other[1:]


def join_resized(one: Axis, other: Axis) -> None:
    """Makes two axes of different sizes the same, as long as the longer. Torn axes are left."""
    parts = sorted((*leaves(one), *leaves(other)), key=lambda leaf: -leaf.size)
    if len(parts) == 2 and parts[0] is not parts[1]:
        _join(*parts)


def _join(a: Axis, b: Axis) -> None:
    b.link = a
    a.roles |= b.roles
    for name, (priority, provenance) in b.names.items():
        a.call(name, priority, provenance)


def _named(axis: Axis) -> tuple[str, ...]:
    """The names in a dimension; neighbours of one name are one axis that something cut."""
    names = [leaf.name for leaf in leaves(axis)]
    return tuple(name for i, name in enumerate(names) if i == 0 or name != names[i - 1])


@dataclass
class Axes:
    """The axes of every dimension of every value of a program, regions included."""

    dimensions: dict[Value, tuple[Axis, ...]] = field(default_factory=dict)

    def of(self, value: Value) -> Names:
        """Names per dimension: a merged dimension has several, one of size one has none."""
        return tuple(_named(axis) if axis.size > 1 else () for axis in self.at(value))

    def at(self, value: Value) -> tuple[Axis, ...]:
        """The axis of every dimension of a value; a fresh one where none is known."""
        if value not in self.dimensions:
            self.dimensions[value] = tuple(Axis(size) for size in value.type.shape)
        return self.dimensions[value]

    def sizes(self) -> dict[str, int]:
        """The size of every named axis that the program has, the largest where several differ.

        An axis of no elements is nothing to plan for, and left out.
        """
        sizes: dict[str, int] = {}
        for axis in {axis for axes in self.dimensions.values() for axis in axes}:
            for name, group in itertools.groupby(leaves(axis), key=lambda leaf: leaf.name):
                size = math.prod(leaf.size for leaf in group)
                sizes[name] = max(sizes.get(name, 0), size)
        return {name: sizes[name] for name in NAMES if sizes.get(name)}

    def joined(self, values: Iterable[Value]) -> set[Axis]:
        """The axes that are one dimension with others in one of these."""
        dimensions = (leaves(dimension) for value in values for dimension in self.at(value))
        return {leaf for parts in dimensions if len(parts) > 1 for leaf in parts}

    def show(self, value: Value) -> str:
        """`batch time (heads d_head)`."""
        shown = [" ".join(names) if names else "1" for names in self.of(value)]
        return " ".join(f"({text})" if " " in text else text for text in shown)
