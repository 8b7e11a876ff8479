"""Draws from a `random.Random`: names that are in scope, attributes that suit them, lines.

Whatever does not type-check is drawn again: a line is kept where JAX can trace it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tests.fuzz.source import Function, Line, namespace

LARGEST = 192  # elements of any array
_HIGHEST_RANK = 4
_TRIES = 12
_KINDS = {
    "f": jnp.floating,
    "c": jnp.inexact,
    "i": jnp.integer,
    "n": jnp.number,
    "b": jnp.bool_,
    "k": jax.dtypes.prng_key,
}
NARROW = ("int2", "int4", "uint2", "uint4", "float4_e2m1fn")
FLOATS = ("float32", "bfloat16", "float16", "float64")
SHAPES = ((), (1,), (3,), (4,), (2, 3), (3, 2), (1, 3), (2, 1), (2, 2), (2, 3, 4), (2, 1, 4))
EMPTY = ((0,), (2, 0), (0, 3))


class Scope:
    """The names in reach, the tracers behind them, and the lines drawn so far.

    Lives inside a trace: a line is run as it is drawn, which says at once what it gives.
    """

    def __init__(self, numbers: Iterator[int], values: dict[str, Any], depth: int = 0) -> None:
        self.numbers, self.values, self.depth = numbers, dict(values), depth
        self.types = {name: jax.typeof(value) for name, value in values.items()}
        self.lines: list[Line] = []

    def inside(self, values: dict[str, Any]) -> Scope:
        """The scope of a function within this one: it may read what lies around it."""
        return Scope(self.numbers, {**self.values, **values}, self.depth + 1)

    def fresh(self, letter: str = "v") -> str:
        return f"{letter}{next(self.numbers)}"

    def run(self, text: str, inner: Sequence[Function] = ()) -> Any:
        """What a text gives. Raises whatever JAX raises on a text that is no program."""
        known = {**namespace(), **self.values}
        exec("\n".join(text for each in inner for text in each.source), known)
        return eval(text, known)

    def add(self, text: str, inner: Sequence[Function] = ()) -> tuple[str, ...] | None:
        """Binds what a text gives to fresh names, or does nothing where it is no program."""
        try:
            made = self.run(text, inner)
        except Exception:
            return None
        several = isinstance(made, (tuple, list))
        values = list(made) if several else [made]
        if not values or not all(map(_small, values)):
            return None
        names = tuple(self.fresh() for _ in values)
        self.values.update(zip(names, values))
        self.types.update(zip(names, map(jax.typeof, values)))
        self.lines.append(Line(names, text, tuple(inner), several))
        return names


def _small(value: Any) -> bool:
    if not isinstance(value, jax.Array) or len(value.shape) > _HIGHEST_RANK:
        return False
    return value.size <= LARGEST and value.dtype != jax.dtypes.float0


class Drawer:
    """What a template draws from: `d.of("f")` names a float, `d.axis` an axis of it."""

    def __init__(self, source: random.Random, scope: Scope, dtypes: Sequence[str]) -> None:
        self.random, self.scope, self.dtypes = source, scope, dtypes
        self.last: Any = jax.typeof(jnp.float32(0))
        self.inner: list[Function] = []

    # Names.

    def of(self, kind: str = "n", rank: int | None = None, least: int = 0) -> str:
        """The name of a value of a kind; of a rank, or of `least` so many axes."""
        fitting = [
            name
            for name, type_ in self.scope.types.items()
            if is_a(type_, kind) and _ranked(type_, rank, least)
        ]
        name = self.recent(fitting) if fitting else self.made(kind, rank, least)
        self.last = self.scope.types[name]
        return name

    def recent(self, names: Sequence[str]) -> str:
        """One of the names, the last ones rather than others, so that programs are chains."""
        return self.random.choice(names[-3:] if self.random.random() < 0.6 else names)

    def made(self, kind: str, rank: int | None, least: int) -> str:
        """A fresh value of a kind that none in scope has."""
        ranks = (max(least, 1),) if rank is None else (rank,)
        shapes = [shape for shape in SHAPES if len(shape) in ranks] or [(2,) * ranks[0]]
        shape = self.random.choice(shapes)
        dtype = {"i": "int32", "b": "bool", "k": "key", "c": "float32"}.get(kind, self.float)
        text = f"jnp.ones({shape}, {dtype!r})"
        if kind == "i":
            text = f"lax.broadcasted_iota({dtype!r}, {shape}, {len(shape) - 1})" if shape else "3"
            text = text if shape else "jnp.int32(1)"
        if kind == "b":
            text = f"lax.broadcasted_iota('int32', {shape}, {len(shape) - 1}) < 1"
            text = text if shape else "jnp.bool_(True)"
        if kind == "k":
            text = "jax.random.key(3)"
        (name,) = self.scope.add(text) or ("",)
        return name

    def like(self) -> str:
        """A value of the same type as the last one, or the number one in its shape."""
        same = [
            name
            for name, type_ in self.scope.types.items()
            if (type_.shape, type_.dtype) == (self.last.shape, self.last.dtype)
        ]
        if same and self.random.random() < 0.8:
            return self.random.choice(same)
        other = self.random.choice(list(self.scope.types))
        if self.random.random() < 0.6 and self.scope.types[other].shape == self.last.shape:
            return f"lax.convert_element_type({other}, {self.dtype_of_last!r})"
        return f"jnp.full({self.last.shape}, {self.number}, {self.dtype_of_last!r})"

    def beside(self, kind: str = "n") -> str:
        """A value that broadcasts against the last one; at times a Python number."""
        if self.random.random() < 0.25:
            return self.number
        shape = self.last.shape
        fitting = [
            name
            for name, type_ in self.scope.types.items()
            if is_a(type_, kind) and _broadcasts(type_.shape, shape)
        ]
        return self.recent(fitting) if fitting else self.number

    # Attributes of the last value.

    @property
    def dtype_of_last(self) -> str:
        return str(self.last.dtype)

    @property
    def axis(self) -> int:
        rank = len(self.last.shape)
        return self.random.randrange(-rank, rank) if rank else 0

    @property
    def axes(self) -> tuple[int, ...]:
        """Some of its axes, in order."""
        rank = len(self.last.shape)
        return tuple(i for i in range(rank) if self.random.random() < 0.5)

    @property
    def axis_or_axes(self) -> Any:
        return self.random.choice([self.axis, self.axis, self.axes, None, -1])

    @property
    def permutation(self) -> tuple[int, ...]:
        order = list(range(len(self.last.shape)))
        self.random.shuffle(order)
        return tuple(order)

    @property
    def shape(self) -> tuple[int, ...]:
        """Another shape of as many elements."""
        size, sizes = self.last.size, []
        if size == 0:
            return self.random.choice([self.last.shape, (0,), (0, 2), (3, 0)])
        for divisor in (2, 3, 4, 1):
            if size % divisor == 0 and self.random.random() < 0.5:
                sizes.append(divisor)
                size //= divisor
        sizes.append(size)
        self.random.shuffle(sizes)
        return tuple(sizes)

    def sizes(self) -> tuple[int, ...]:
        """For each axis a size that is not longer."""
        return tuple(self.random.randint(min(size, 1), size) for size in self.last.shape)

    # Anything else.

    @property
    def flag(self) -> bool:
        return self.random.random() < 0.5

    def one(self, words: str) -> str:
        return self.random.choice(words.split())

    @property
    def float(self) -> str:
        return next((dtype for dtype in self.dtypes if dtype in FLOATS), "float32")

    @property
    def dtype(self) -> str:
        return self.random.choice(self.dtypes)

    @property
    def small(self) -> int:
        return self.random.randint(0, 3)

    def between(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    @property
    def number(self) -> str:
        """A Python scalar as text."""
        numbers = "0 1 2 3 -1 2.0 0.5 1.0 -1.0 0.0 1e-6 1e-5 3.5 100 10.0 0.125 -2.5 1.702 -0.0"
        rare = "inf -inf nan 1e30 -1e9 1e9 65504.0 127 255 -128 True False 1e-30 0.3535533"
        return self.one(rare if self.random.random() < 0.1 else numbers)

    # Functions within.

    def function(
        self, parameters: Sequence[Any], body: Callable[[Drawer], str], above: str = ""
    ) -> str:
        """The name of a fresh inner function of values of these types; `body` draws its result."""
        names = tuple(self.scope.fresh("a") for _ in parameters)

        def traced(*values: Any) -> None:
            inside = self.scope.inside(dict(zip(names, values)))
            results = body(Drawer(self.random, inside, self.dtypes))
            name, lines = self.scope.fresh("f"), tuple(inside.lines)
            self.inner.append(Function(name, names, lines, results, above))

        jax.eval_shape(traced, *map(struct, parameters))
        return self.inner[-1].name


def struct(type_: Any) -> jax.ShapeDtypeStruct:
    """A type as `jax.eval_shape` takes it."""
    return jax.ShapeDtypeStruct(type_.shape, type_.dtype, weak_type=type_.weak_type)


def is_a(type_: Any, kind: str) -> bool:
    """Whether a type is of a kind: f(loat), c(omplex or float), i(nteger), b(ool), k(ey) ...

    `n` are the numbers, `x` whatever is no key.
    """
    key = jnp.issubdtype(type_.dtype, jax.dtypes.prng_key)
    if kind == "x":
        return not key
    narrow = str(type_.dtype) in NARROW or str(type_.dtype).startswith("float8")
    return jnp.issubdtype(type_.dtype, _KINDS[kind]) and not (narrow and kind in "cn")


def _ranked(type_: Any, rank: int | None, least: int) -> bool:
    found = len(type_.shape)
    return found >= least and (rank is None or found == rank)


def _broadcasts(one: Sequence[int], other: Sequence[int]) -> bool:
    pairs = itertools.zip_longest(reversed(one), reversed(other), fillvalue=1)
    return all(a == b or 1 in (a, b) for a, b in pairs)


Template = Callable[[Drawer], str]


def draw_line(drawer: Drawer, groups: Sequence[tuple[float, Sequence[Template]]]) -> bool:
    """Adds one line to the scope; False where a dozen tries gave none."""
    weights = [weight for weight, _ in groups]
    for _ in range(_TRIES):
        ((_, templates),) = drawer.random.choices(groups, weights)
        drawer.inner = []
        text = drawer.random.choice(templates)(drawer)
        if text and drawer.scope.add(text, drawer.inner):
            return True
    return False
