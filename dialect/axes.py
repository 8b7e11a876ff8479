"""Axis inference: which dimensions of a program are the same axis, and what each one is.

Every op's signature says which of its dimensions belong together. Joining them over the whole
program (a union-find whose members split where a reshape cuts a dimension) leaves a few dozen
axes; the recognised ops then say what they are: an `attend` knows the context and d_head, a
`take` the vocabulary, a `gate` d_ff. A name comes with its provenance, never from a path.

    batch time context d_model heads kv_heads q_per_kv d_head d_ff vocab layers
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dialect.binding import dependents
from dialect.control import scan_parts
from rewrite import opdef
from rewrite.ir import Graph, Op, Value
from rewrite.program import Program
from rewrite.signature import Signature, letters

NAMES = "batch time context d_model heads kv_heads q_per_kv d_head d_ff vocab layers".split()
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
        known = self.names.get(name)
        if known is None or known[0] < priority:
            self.names[name] = (priority, provenance)

    @property
    def name(self) -> str:
        """The name that the most telling op gave it, or `_`."""
        return max(self.names, key=lambda name: self.names[name][0], default="_")


def leaves(axis: Axis) -> tuple[Axis, ...]:
    """The axes that an axis now consists of."""
    while axis.link is not None:
        axis = axis.link
    return tuple(leaf for part in axis.parts for leaf in leaves(part)) if axis.parts else (axis,)


def _leaves(axes: Iterable[Axis]) -> list[Axis]:
    return [leaf for axis in axes for leaf in leaves(axis)]


def _unify(left: Iterable[Axis], right: Iterable[Axis]) -> None:
    """Makes two sequences of axes the same, splitting where one is finer. Torn axes are left."""
    one, other = _leaves(left), _leaves(right)
    while one and other:
        a, b = one[0], other[0]
        if a is b:
            pass
        elif a.size == b.size:
            _join(a, b)
        else:
            big, small, rest = (a, b, one) if a.size > b.size else (b, a, other)
            if big.size % small.size:
                return
            tail = Axis(big.size // small.size)
            tail.roles |= big.roles
            head = Axis(small.size)
            head.roles |= big.roles
            big.parts = (head, tail)
            _join(head, small)
            rest[0:1] = [head, tail]
        one, other = one[1:], other[1:]


def _join(a: Axis, b: Axis) -> None:
    b.link = a
    a.roles |= b.roles
    for name, (priority, provenance) in b.names.items():
        a.call(name, priority, provenance)


@dataclass
class Axes:
    """The axes of every dimension of every value of a program, regions included."""

    dimensions: dict[Value, tuple[Axis, ...]] = field(default_factory=dict)

    def of(self, value: Value) -> Names:
        """Names per dimension: a merged dimension has several, one of size one has none."""
        return tuple(
            tuple(leaf.name for leaf in leaves(axis)) if axis.size > 1 else ()
            for axis in self.at(value)
        )

    def at(self, value: Value) -> tuple[Axis, ...]:
        found = self.dimensions.get(value)
        if found is None:
            found = tuple(Axis(size) for size in value.type.shape)
            self.dimensions[value] = found
        return found

    def sizes(self) -> dict[str, int]:
        """The size of each named axis that the program has, the largest where several differ."""
        found: dict[str, int] = {}
        for axes in self.dimensions.values():
            for leaf in _leaves(axes):
                if leaf.names:
                    found[leaf.name] = max(found.get(leaf.name, 0), leaf.size)
        return {name: found[name] for name in NAMES if name in found}

    def show(self, value: Value) -> str:
        """`batch time (heads d_head)`."""
        shown = [" ".join(names) if names else "1" for names in self.of(value)]
        return " ".join(f"({text})" if " " in text else text for text in shown)


def infer_axes(program: Program) -> Axes:
    """The axes of a program's step. Linear in its size."""
    axes = Axes()
    for value, declared in zip(program.graph.inputs, program.step_inputs):
        for axis in axes.at(value):
            axis.roles.add(declared.role)
    _join_graph(axes, program.graph)
    _name_tables(axes, program)
    for pass_over in (_name_op, _name_rest):
        for op, _ in program.graph.walk():
            pass_over(axes, op)
    _name_outputs(axes, program)
    return axes


def _join_graph(axes: Axes, graph: Graph) -> None:
    for op in graph.ops:
        if op.name == "scan":
            _join_scan(axes, op)
        elif op.regions:
            _join_regions(axes, op)
        else:
            _join_op(axes, op)


def _join_op(axes: Axes, op: Op) -> None:
    signature = opdef.signature(op)
    known: dict[str, list[Axis]] = {}
    arrays = list(zip((*op.args, *op.results), (*signature.inputs, *signature.outputs)))
    for value, array in arrays:
        for axis, dimension in zip(axes.at(value), array):
            if len(dimension) != 1 or axis.size == 1:
                continue
            if dimension[0] in known:
                _unify(known[dimension[0]], [axis])
            else:
                known[dimension[0]] = [axis]
    for value, array in arrays:
        for axis, dimension in zip(axes.at(value), array):
            if len(dimension) > 1 and all(letter in known for letter in dimension):
                _unify([leaf for letter in dimension for leaf in known[letter]], [axis])


def _join_scan(axes: Axes, op: Op) -> None:
    body = op.regions[0]
    fixed, carried, scanned = scan_parts(op)
    whole = slice(fixed.start, carried.stop)
    _same(axes, op.args[whole], body.inputs[whole])
    layers = Axis(op["length"])
    for arg, inner in zip(op.args[scanned], body.inputs[scanned]):
        outer = axes.at(arg)
        _unify([layers], [outer[0]])
        _pair(outer[1:], axes.at(inner))
    _join_graph(axes, body)
    carry = op["carry"]
    _same(axes, body.outputs[:carry], op.results[:carry])
    _same(axes, body.outputs[:carry], op.args[carried])
    for inner, result in zip(body.outputs[carry:], op.results[carry:]):
        outer = axes.at(result)
        _unify([layers], [outer[0]])
        _pair(axes.at(inner), outer[1:])


def _join_regions(axes: Axes, op: Op) -> None:
    """while and cond: every region sees the last arguments, and gives the results."""
    for region in op.regions:
        count = min(len(region.inputs), len(op.args))
        _same(axes, op.args[len(op.args) - count :], region.inputs[len(region.inputs) - count :])
        _join_graph(axes, region)
        if len(region.outputs) == len(op.results):
            _same(axes, region.outputs, op.results)


def _same(axes: Axes, left: Sequence[Value], right: Sequence[Value]) -> None:
    for one, other in zip(left, right):
        if one.type.shape == other.type.shape:
            _pair(axes.at(one), axes.at(other))


def _pair(left: Sequence[Axis], right: Sequence[Axis]) -> None:
    for one, other in zip(left, right):
        _unify([one], [other])


# What the axes are.


def _call(axes: Iterable[Axis], name: str, priority: int, op: Op) -> None:
    for leaf in _leaves(axes):
        if leaf.size > 1:
            leaf.call(
                name, priority, f"{op.name} at {op.origin.source}" if op.origin.source else op.name
            )


def _name_op(axes: Axes, op: Op) -> None:
    """Names that an op's meaning gives, the most telling ops with the highest priority."""
    if op.name == "attend":
        _name_attend(axes, op)
    elif op.name == "scan":
        scanned = op.args[scan_parts(op)[2]]
        _call([axes.at(arg)[0] for arg in scanned], "layers", 60, op)
    elif op.name in ("cache_read",):
        _call(axes.at(op.args[0])[:1], "layers", 60, op)
    elif op.name in ("rms_norm", "layer_norm"):
        _call(axes.at(op.results[0])[-1:], "d_model", 30, op)


def _name_tables(axes: Axes, program: Program) -> None:
    """Rows taken by what the caller gives are the vocabulary's; by anything else, positions'."""
    given = dependents(program.graph, program.values("arg"))
    for op in program.graph.ops:
        if op.name == "take" and "param" in _roles(axes.at(op.args[0])):
            table = axes.at(op.args[0])
            _call(table[:1], "vocab" if op.args[1] in given else "context", 50, op)
            _call(table[1:], "d_model", 15, op)


def _name_rest(axes: Axes, op: Op) -> None:
    """Names by exclusion, once the others stand."""
    if op.name in ("gate", "activate"):
        own = [x for x in _leaves(axes.at(op.results[0])) if "param" in x.roles and not x.names]
        _call(own, "d_ff", 45, op)


def _name_attend(axes: Axes, op: Op) -> None:
    signature = Signature.parse(op["axes"])
    found: dict[str, Axis] = {}
    for value, array in zip((*op.args, *op.results), (*signature.inputs, *signature.outputs)):
        for axis, dimension in zip(axes.at(value), array):
            if dimension and axis.size > 1:
                found.setdefault(dimension[0], axis)
    query, key = (set(letters(array)) for array in signature.inputs[:2])
    shared = [
        x for x in letters(signature.inputs[0]) if x in query & key and x != "k" and x in found
    ]
    alone = [x for x in letters(signature.inputs[0]) if x not in key and x in found]
    heads = {x for x in (*shared, *alone) if "param" in _roles([found[x]])}
    for letter in ("k", "v"):
        if letter in found:
            _call([found[letter]], "d_head", 90, op)
    if "s" in found:
        _call([found["s"]], "context", 90, op)
    grouped = any(x in heads for x in shared)
    for letter in shared:
        several = any(x in heads for x in alone)
        own = ("kv_heads" if several else "heads") if letter in heads else "batch"
        _call([found[letter]], own, 90, op)
    for letter in alone:
        own = ("q_per_kv" if grouped else "heads") if letter in heads else "time"
        _call([found[letter]], own, 90, op)


def _roles(axes: Iterable[Axis]) -> set[str]:
    return {role for leaf in _leaves(axes) for role in leaf.roles}


def _name_outputs(axes: Axes, program: Program) -> None:
    """The logits: an output that is no state. Its last axis is the vocabulary."""
    for value, out in zip(program.graph.outputs, program.step_outputs):
        if out.updates is None and value.type.rank:
            for leaf in _leaves(axes.at(value)[-1:]):
                if "param" in leaf.roles and leaf.size > 1:
                    leaf.call("vocab", 20, f"output {out.name}")
