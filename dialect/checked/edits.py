"""Small edits of a graph that keep it well typed: programs near the one that a rule is made for.

An edit takes a graph and a random generator, and returns another graph, or None where it does not
apply. Types downstream are inferred again; an op that does not take them raises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Any

import numpy as np

from dialect.arrays import attributes
from dialect.arrays.dtypes import dtype_of
from dialect.checked.attribute_edits import other_attribute
from dialect.checked.reads import Reads, first_reader, rebuilt, replaced, some_reads, with_read
from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import in_dtype
from dialect.ops.lax import MAPS
from rewrite.ir import Graph, Op, Symbol, Type, Value, new_input
from rewrite.opdef import build, make, with_args

Edit = Callable[[Graph, Random], Graph | None]

NARROW = ("f32", "bf16", "f16", "f8_e4m3fn", "i8", "i16", "i32", "u8", "u32", "bool")
WIDE = ("f64", "i64", "u64")
_KIN = (
    ("add", "sub", "mul", "max", "min", "div"),
    ("eq", "ne", "lt", "le", "gt", "ge"),
    ("and", "or", "xor"),
    ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"),
    ("exp", "exp2", "log", "tanh", "logistic", "sin", "cos", "abs", "neg", "square", "sign"),
    ("sqrt", "rsqrt", "cbrt"),
    ("floor", "ceil"),
)
_UNARY = ("neg", "abs", "square", "sqrt", "exp", "log", "floor", "sign", "not", "tanh", "logistic")
_NUMBERS = (0, 1, -1, 2, 0.5, 1e-8, 1e-3, 255, 256, 300, 1e4, 1e9, -1e9, 1e30)
_ENDLESS = (float("inf"), -float("inf"), float("nan"), -0.0)


def _op(graph: Graph, random: Random, fits: Callable[[Op], bool]) -> Op | None:
    ops = [op for op in graph.ops if fits(op)]
    return random.choice(ops) if ops else None


# What is read.


def swapped(graph: Graph, random: Random) -> Graph | None:
    """Two arguments of an op change places, whether it commutes or not."""
    op = _op(graph, random, lambda op: len(op.args) > 1)
    if op is None:
        return None
    one, two = random.sample(range(len(op.args)), 2)
    args = list(op.args)
    args[one], args[two] = args[two], args[one]
    return replaced(graph, op, with_args(op, tuple(args)))


def shared(graph: Graph, random: Random) -> Graph | None:
    """Another value of the graph is read, one of the same type where there is one."""
    reads = some_reads(graph, random)
    known, before = reads.value, graph.ops[: first_reader(graph, reads)]
    values = [*graph.inputs, *(value for op in before for value in op.results)]
    candidates = [value for value in values if value.type == known.type and value != known]
    if random.random() < 0.2:
        candidates = [value for value in values if value.type.dtype == known.type.dtype]
    return with_read(graph, reads, random.choice(candidates)) if candidates else None


def unshared(graph: Graph, random: Random) -> Graph:
    """A fresh input is read in place of another value."""
    reads = some_reads(graph, random)
    fresh = new_input(reads.value.type)
    return with_read(graph, reads, fresh, [fresh])


def thinner(graph: Graph, random: Random) -> Graph | None:
    """A fresh input that is broadcast, by an op or by its reader."""
    reads = some_reads(graph, random)
    type_ = reads.value.type
    shape = tuple(size if random.random() < 0.5 else 1 for size in type_.shape)
    fresh = new_input(Type(type_.dtype, random.choice([shape, shape, ()])))
    value = fresh if random.random() < 0.4 else _broadcast(fresh, type_.shape)
    return with_read(graph, reads, value, [fresh])


def one_thin(graph: Graph, random: Random) -> Graph | None:
    """One argument of an elementwise op is broadcast; the others have the shape of the result."""
    op = _op(
        graph, random, lambda op: op.name in MAPS and len(op.args) > 1 and op.types[0].rank > 0
    )
    if op is None:
        return None
    thin, shape = random.randrange(len(op.args)), op.types[0].shape
    thin_shape = random.choice(((), tuple(random.choice((1, size)) for size in shape)))
    fresh = new_input(Type(op.args[thin].type.dtype, thin_shape))
    args = [_broadcast(arg, shape) if arg.type.shape != shape else arg for arg in op.args]
    args[thin] = fresh
    return replaced(graph, op, with_args(op, tuple(args)), [fresh])


def _broadcast(value: Value, shape: tuple[int, ...]) -> Value:
    places = tuple(range(len(shape) - value.type.rank, len(shape)))
    return make("broadcast_in_dim", value, shape=shape, broadcast_dimensions=places)


def constant_read(graph: Graph, random: Random) -> Graph | None:
    """A constant is read: a scalar, a scalar broadcast, an array, a counter, a mask as a number."""
    reads = some_reads(graph, random)
    type_ = reads.value.type
    if type_.dtype.startswith(("key", "c")):
        return None
    scalar = constant(number_for(type_.dtype, random), Type(type_.dtype, ()))
    form = random.choice(("scalar", "splat", "array", "iota"))
    if form == "scalar":
        return with_read(graph, reads, scalar)
    if form == "splat":
        return with_read(graph, reads, _broadcast(scalar, type_.shape))
    if form == "iota" and type_.shape and type_.dtype != "bool":
        axis = random.randrange(type_.rank)
        attrs = {"dtype": Symbol(type_.dtype), "shape": type_.shape, "dimension": axis}
        return with_read(graph, reads, make("iota", **attrs, sharding=None))
    numbers = [number_for(type_.dtype, random) for _ in range(type_.size)]
    array = np.asarray(numbers).astype(dtype_of(type_.dtype)).reshape(type_.shape)
    return with_read(graph, reads, constant(array, Type(type_.dtype, type_.shape)))


def number_for(dtype: str, random: Random) -> Any:
    """A number that the dtype holds, one of those that guards are about."""
    kind = dtype_of(dtype)
    if dtype == "bool":
        return np.asarray(random.random() < 0.5)
    pool = _NUMBERS if dtype[0] in "iu" else (*_NUMBERS, *_ENDLESS)
    with np.errstate(all="ignore"):
        picked = random.choice(pool)
        if dtype[0] in "iu":
            limits = np.iinfo(kind)
            return np.asarray(int(min(max(picked, limits.min), limits.max)), kind)
        return np.asarray(picked).astype(kind)


def through(graph: Graph, random: Random) -> Graph | None:
    """One more op on the way to a reader."""
    reads = some_reads(graph, random)
    value = _after_one_more(reads.value, random)
    return None if value is None else with_read(graph, reads, value)


def _after_one_more(value: Value, random: Random) -> Value | None:
    type_ = value.type
    scalar = (
        constant(number_for(type_.dtype, random), Type(type_.dtype, ())) if _plain(type_) else None
    )
    form = random.choice(
        ("unary", "unary", "binary", "clip", "barrier", "reshape", "order", "rows")
    )
    if form == "unary":
        return make(random.choice(_UNARY), value)
    if form == "binary" and scalar is not None:
        pair = (value, scalar) if random.random() < 0.7 else (scalar, value)
        return make(random.choice(("mul", "add", "sub", "max", "min", "div")), *pair)
    if form == "clip" and scalar is not None:
        low = constant(np.asarray(0).astype(dtype_of(type_.dtype)), Type(type_.dtype, ()))
        return make("clamp", low, value, scalar)
    if form == "barrier":
        return make(random.choice(("optimization_barrier", "stop_gradient", "copy")), value)
    if form == "reshape":
        at = random.randint(0, type_.rank)
        sizes = (*type_.shape[:at], 1, *type_.shape[at:])
        wider = make("reshape", value, new_sizes=sizes, dimensions=None, sharding=None)
        if random.random() < 0.3:
            return wider
        return make("reshape", wider, new_sizes=type_.shape, dimensions=None, sharding=None)
    if form == "order" and type_.rank > 1:
        order = list(range(type_.rank))
        random.shuffle(order)
        return make("transpose", value, permutation=tuple(order))
    if form == "rows" and type_.rank:
        if random.random() < 0.5:
            return make("rev", value, dimensions=(random.randrange(type_.rank),))
        axis = random.randrange(type_.rank)
        row = make("slice", value, **_cut(type_.shape, axis))
        return _broadcast(row, type_.shape) if random.random() < 0.7 else row
    return None


def _cut(shape: tuple[int, ...], axis: int) -> dict[str, Any]:
    limits = tuple(min(1, size) if d == axis else size for d, size in enumerate(shape))
    return {"start_indices": (0,) * len(shape), "limit_indices": limits, "strides": None}


def _plain(type_: Type) -> bool:
    return not type_.dtype.startswith(("key", "c"))


def converted(wide: bool) -> Edit:
    """A conversion on the way to a reader, mostly there and back, so that precision is lost."""

    def edit(graph: Graph, random: Random) -> Graph | None:
        reads = some_reads(graph, random)
        value = reads.value
        dtype = random.choice(NARROW + WIDE if wide else NARROW)
        if not _plain(value.type) or dtype == value.type.dtype:
            return None
        cast = in_dtype(value, dtype)
        result = cast if random.random() < 0.25 else in_dtype(cast, value.type.dtype)
        return with_read(graph, reads, result)

    return edit


# What is computed.


def another_constant(graph: Graph, random: Random) -> Graph | None:
    """A constant, a little off or another altogether."""
    op = _op(graph, random, lambda op: op.name == "const" and not op.types[0].shape)
    if op is None or not _plain(op.types[0]):
        return None
    type_, old = op.types[0], op["value"]
    if type_.dtype == "bool" or not isinstance(old, (int, float)):
        return replaced(graph, op, constant(number_for(type_.dtype, random), type_).op)
    near = (old + 1, old - 1, old * 2, -old, old * 1.01, old * 0.99, old * 1.00001)
    kind = dtype_of(type_.dtype)
    with np.errstate(all="ignore"):
        number = random.choice(near) if random.random() < 0.6 else number_for(type_.dtype, random)
        if type_.dtype[0] in "iu":
            limits = np.iinfo(kind)
            number = int(min(max(int(number), limits.min), limits.max))
        return replaced(graph, op, constant(np.asarray(number).astype(kind), type_).op)


def constant_spelled(graph: Graph, random: Random) -> Graph | None:
    """A constant scalar in another form: broadcast, as an array, reshaped, converted."""
    op = _op(graph, random, lambda op: op.name == "const" and op.types[0].rank == 0)
    reader = _op(graph, random, lambda reader: op is not None and op.results[0] in reader.args)
    if reader is None or not _plain(op.types[0]):
        return None
    (value,), shape, dtype = op.results, reader.types[0].shape, op.types[0].dtype
    form = random.choice(("broadcast", "array", "reshaped", "converted"))
    if form == "broadcast":
        value = _broadcast(value, random.choice((shape, (1,) * len(shape))))
    elif form == "array":
        number = np.asarray(attributes.decode(op["value"]))
        value = constant(np.full(shape, number.astype(dtype_of(dtype))), Type(dtype, shape))
    elif form == "reshaped":
        value = make("reshape", value, new_sizes=(1,) * len(shape), dimensions=None, sharding=None)
    else:
        value = in_dtype(in_dtype(value, random.choice(NARROW)), dtype)
    places = frozenset((reader, i) for i, arg in enumerate(reader.args) if arg.op is op)
    return with_read(graph, Reads(op.results[0], places), value)


def renamed(graph: Graph, random: Random) -> Graph | None:
    """An op becomes another of its kind."""
    op = _op(graph, random, lambda op: _kin(op.name) != ())
    if op is None:
        return None
    name = random.choice([name for name in _kin(op.name) if name != op.name])
    other = build(name, *op.args, **_attributes_of(name, op))
    return replaced(graph, op, other)


def another_root(roots: Collection[str]) -> Edit:
    """An op at which a rule is tried becomes another one at which it is tried."""

    def edit(graph: Graph, random: Random) -> Graph | None:
        op = _op(graph, random, lambda op: op.name in roots and len(op.types) == 1)
        names = [] if op is None else [name for name in sorted(roots) if name != op.name]
        if not names:
            return None
        name = random.choice(names)
        attrs = dict(op.attrs) if random.random() < 0.5 else {}
        return replaced(graph, op, build(name, *op.args, **attrs))

    return edit


def _kin(name: str) -> tuple[str, ...]:
    return next((group for group in _KIN if name in group), ())


def _attributes_of(name: str, op: Op) -> dict[str, Any]:
    """The attributes of `op` that another op of its kind takes."""
    reduces = name.startswith("reduce_")
    return {key: value for key, value in op.attrs if reduces}


def other_attributes(graph: Graph, random: Random) -> Graph | None:
    """An axis, an order, a dtype, a mode or a number among an op's attributes becomes another.

    Sometimes it does on every op of that name: a pattern may ask for equal attributes.
    """
    op = _op(graph, random, lambda op: bool(op.attrs) and op.name != "const")
    if op is None:
        return None
    name, value = random.choice(op.attrs)
    changed, everywhere = other_attribute(name, value, random), random.random() < 0.4

    def change(old: Op, args: tuple[Value, ...]) -> Op:
        same = everywhere and old.name == op.name and old.get(name) == value
        if old is not op and not same:
            return with_args(old, args)
        return build(old.name, *args, regions=old.regions, **{**dict(old.attrs), name: changed})

    return rebuilt(graph, change)


# Who else reads it.


def read_elsewhere(graph: Graph, random: Random) -> Graph | None:
    """What was computed on the way is a result as well."""
    op = _op(graph, random, lambda op: op.name != "const")
    return None if op is None else Graph(graph.inputs, (*graph.outputs, random.choice(op.results)))


def inside(edit: Edit) -> Edit:
    """The edit in the body of a loop or a branch."""

    def edited(graph: Graph, random: Random) -> Graph | None:
        op = _op(graph, random, lambda op: bool(op.regions))
        if op is None:
            return None
        place = random.randrange(len(op.regions))
        body = edit(op.regions[place], random)
        if body is None or len(body.inputs) != len(op.regions[place].inputs):
            return None
        regions = (*op.regions[:place], body, *op.regions[place + 1 :])
        changed = build(op.name, *op.args, regions=regions, **dict(op.attrs))
        return replaced(graph, op, changed) if changed.types == op.types else None

    return edited


def edits(graph: Graph, wide: bool, roots: Collection[str]) -> list[tuple[Edit, float]]:
    """Every edit of such a graph and how often it is drawn.

    `wide` where 64 bits are on; `roots` are the ops at which the rule is tried.
    """
    flat = [
        (swapped, 1.0),
        (shared, 1.5),
        (unshared, 1.0),
        (thinner, 1.0),
        (one_thin, 1.0),
        (constant_read, 1.5),
        (through, 2.0),
        (converted(wide), 1.5),
        (another_constant, 1.5),
        (constant_spelled, 0.7),
        (renamed, 1.0),
        (another_root(roots), 1.5 if len(roots) > 1 else 0.0),
        (other_attributes, 1.5),
        (read_elsewhere, 0.3),
    ]
    loops = any(op.regions for op in graph.ops)
    return flat + [(inside(edit), weight) for edit, weight in flat if loops]
