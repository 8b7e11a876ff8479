"""The program as data: an immutable, acyclic graph of ops.

    Graph ::= inputs, outputs                     closed: an op sees only what it is given
    Op    ::= name, args, attrs, types, regions   one node, one or several results
    Value ::= op, index                           one result of one op
    Type  ::= dtype, shape, weak                  concrete sizes

Nothing here is ever mutated. A rewrite is a function from value to equal value; whatever it no
longer reaches is dead, and order is whatever the arrows ask for. Equality of graphs is
structural, equality of ops is identity, so an analysis may be cached by the object it read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

_BITS = {"bool": 8, "i2": 2, "u2": 2, "i4": 4, "u4": 4, "f4_e2m1fn": 4, "c64": 64, "c128": 128}


@dataclass(frozen=True, slots=True)
class Type:
    """An array type: dtype by its short name (`bf16`, `f32`, `i8`, `key<fry>`), and shape."""

    dtype: str
    shape: tuple[int, ...]
    weak: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{'~' if self.weak else ''}"

    @staticmethod
    def parse(text: str) -> Type:
        """`"f32[2,8]"`, a trailing `~` making it weak: the inverse of `str`."""
        dtype, _, sizes = text.rstrip("]~").partition("[")
        shape = tuple(int(size) for size in sizes.split(",") if size)
        return Type(dtype, shape, text.endswith("~"))

    @property
    def rank(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in memory, int4 packed two to a byte."""
        return -(-self.size * bits(self.dtype) // 8)


def bits(dtype: str) -> int:
    """Bits of one element of a dtype named as in `Type`."""
    if dtype in _BITS:
        return _BITS[dtype]
    if dtype.startswith("key"):
        return 64
    digits = dtype.split("_")[0].lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits)


@dataclass(frozen=True, slots=True)
class Symbol:
    """An attribute value that prints as a bare word: a dtype (`f32`) or `Enum.MEMBER`."""

    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """An attribute value with named fields: `GatherDimensionNumbers(offset_dims=(1,), ...)`."""

    name: str
    fields: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """An attribute that can be carried but not printed: a kernel, a mesh, a large constant.

    Two handles are equal when their `key` is: a content digest, or the payload's identity.
    """

    kind: str
    payload: Any = field(compare=False, repr=False)
    key: Any

    @staticmethod
    def of(payload: Any) -> Opaque:
        """A handle compared by the identity of what it holds."""
        return Opaque(type(payload).__name__, payload, id(payload))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an op came from: the user's source line, and the rules that made it from there."""

    source: str = ""
    rules: tuple[str, ...] = ()

    def then(self, rule: str) -> Origin:
        """The same origin, one rule later."""
        return self if self.rules[-1:] == (rule,) else Origin(self.source, (*self.rules, rule))


NOWHERE = Origin()
Attrs = tuple[tuple[str, Any], ...]


class Value(NamedTuple):
    """The `index`-th result of `op`."""

    op: Op
    index: int  # type: ignore[assignment]  # which tuple.index gives way to

    @property
    def type(self) -> Type:
        """The type that its op gives it."""
        return self.op.types[self.index]

    def __repr__(self) -> str:
        return f"{self.op.name}#{self.index}:{self.type}"


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Op:
    """One node. `attrs` are sorted (name, value) pairs; `origin` never counts for equality."""

    name: str
    args: tuple[Value, ...]
    attrs: Attrs
    types: tuple[Type, ...]
    regions: tuple[Graph, ...] = ()
    origin: Origin = NOWHERE

    def __getitem__(self, attr: str) -> Any:
        for name, value in self.attrs:
            if name == attr:
                return value
        raise KeyError(f"{self.name} has no attribute {attr!r}")

    def get(self, attr: str, default: Any = None) -> Any:
        """An attribute, or `default` where the op lacks it."""
        return next((value for name, value in self.attrs if name == attr), default)

    @property
    def results(self) -> tuple[Value, ...]:
        """One value for each result type."""
        if len(self.types) == 1:
            return (Value(self, 0),)
        return tuple(Value(self, i) for i in range(len(self.types)))

    @property
    def told(self) -> str:
        """Its name, and the user's line where it is known: `slice at FILE:LINE`."""
        return f"{self.name} at {self.origin.source}" if self.origin.source else self.name

    def __repr__(self) -> str:
        return f"Op({self.name}: {', '.join(map(str, self.types))})"


def attrs_of(mapping: dict[str, Any]) -> Attrs:
    """The canonical form of an op's attributes."""
    return tuple(sorted(mapping.items()))


def new_input(type: Type, origin: Origin = NOWHERE) -> Value:
    """A fresh graph input. Inputs are told apart by identity, and by position in a graph."""
    return Value(Op("input", (), (), (type,), (), origin), 0)


@dataclass(frozen=True, eq=False)
class Graph:
    """A closed program: everything an output reaches is an op or one of `inputs`."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every op, arguments before users, in an order that depends on structure alone."""
        order: list[Op] = []
        seen: set[Op] = {value.op for value in self.inputs}
        stack: list[tuple[Op, int]] = []
        for output in self.outputs:
            if output.op not in seen:
                seen.add(output.op)
                stack.append((output.op, 0))
            while stack:
                op, position = stack.pop()
                args = op.args
                while position < len(args) and args[position].op in seen:
                    position += 1
                if position == len(args):
                    order.append(op)
                    continue
                stack.append((op, position + 1))
                seen.add(args[position].op)
                stack.append((args[position].op, 0))
        return tuple(order)

    @cached_property
    def users(self) -> dict[Value, tuple[tuple[Op, int], ...]]:
        """For each value, the (op, argument number) pairs that read it; outputs not counted."""
        users: dict[Value, list[tuple[Op, int]]] = {}
        for op in self.ops:
            for position, arg in enumerate(op.args):
                users.setdefault(arg, []).append((op, position))
        return {value: tuple(readers) for value, readers in users.items()}

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """The graph with every op named by its place: equal exactly for equal structures.

        A constant is its content: whether two readers share it makes no difference.
        """
        place: dict[Value, Any] = {value: (-1, i) for i, value in enumerate(self.inputs)}
        rows: list[tuple[Any, ...]] = []
        for op in self.ops:
            if op.name == "const":
                place[Value(op, 0)] = ("const", op.attrs, op.types)
                continue
            args = tuple(place[arg] for arg in op.args)
            for i in range(len(op.types)):
                place[Value(op, i)] = (len(rows), i)
            rows.append((op.name, args, op.attrs, op.types, tuple(r.key for r in op.regions)))
        return (
            tuple(value.type for value in self.inputs),
            tuple(rows),
            tuple(place[value] for value in self.outputs),
        )

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and (self is other or self.key == other.key)

    def __hash__(self) -> int:
        return self._hash

    def walk(self) -> Iterator[tuple[Op, tuple[Op, ...]]]:
        """Every op of the graph and of its regions, each with the ops that enclose it."""
        stack: list[tuple[Graph, tuple[Op, ...]]] = [(self, ())]
        while stack:
            graph, parents = stack.pop()
            for op in graph.ops:
                yield op, parents
                stack += [(region, (*parents, op)) for region in op.regions]

    @cached_property
    def op_count(self) -> int:
        """Number of ops, those of regions included, each region counted once."""
        return sum(1 + sum(region.op_count for region in op.regions) for op in self.ops)


def replace_values(graph: Graph, mapping: dict[Value, Value]) -> Graph:
    """`graph` with values replaced; ops that do not depend on them are kept as they are."""
    memo = dict(mapping)
    for op in graph.ops:
        args = tuple(memo.get(arg, arg) for arg in op.args)
        if args == op.args:
            continue
        moved = Op(op.name, args, op.attrs, op.types, op.regions, op.origin)
        for old, new in zip(op.results, moved.results):
            memo.setdefault(old, new)
    return Graph(graph.inputs, tuple(memo.get(value, value) for value in graph.outputs))
