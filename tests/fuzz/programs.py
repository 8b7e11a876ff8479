"""Random well-typed JAX functions over all of lax, as data.

python -m tests.fuzz.programs --seed 0 --count 1000
"""

from __future__ import annotations

import itertools
import random
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from tests.fuzz import idioms, templates
from tests.fuzz.checks import Failure, Tally, check
from tests.fuzz.drawing import EMPTY, SHAPES, Drawer, Scope, draw_line
from tests.fuzz.nested import nested
from tests.fuzz.pipelines import pipeline
from tests.fuzz.runs import run
from tests.fuzz.shrunk import shrunk
from tests.fuzz.source import Given, Source

_PALETTES = (
    *(("float32", "int32", "bool"),) * 6,
    ("bfloat16", "float32", "int32", "bool"),
    ("float16", "float32", "int32", "bool"),
    ("float32", "bfloat16", "float16", "int32"),
    ("float32", "int8", "uint8", "int32", "bool"),
    ("float32", "int16", "uint16", "uint32"),
    ("float32", "float8_e4m3fn", "float8_e5m2", "int8", "int4"),
    ("float32", "int4", "uint4", "int2", "uint2"),
    ("float32", "complex64", "int32"),
    ("int32", "uint32", "bool"),
)
_WIDE = (
    ("float64", "int64", "bool"),
    ("float32", "float64", "int32", "int64"),
    ("float32", "uint64", "int64", "complex128"),
)
_FEWEST, _MOST, _MOST_OUTPUTS = 2, 12, 4


def _groups() -> list[tuple[float, Sequence[Any]]]:
    return _GROUPS


_GROUPS = [
    (4, templates.OPERATORS),
    (3, templates.LAX_MAPS),
    (2.5, templates.LAX_SHAPES),
    (1.5, templates.LAX_REDUCTIONS),
    (2, templates.LAX_INDEXING),
    (1.5, templates.LAX_PRODUCTS),
    (3, templates.ARRAYS),
    (0.5, templates.RARE),
    (0.8, idioms.NORMS),
    (0.8, idioms.SOFTMAXES),
    (0.8, idioms.ACTIVATIONS),
    (0.4, idioms.ROPES),
    (0.8, idioms.POSITIONS),
    (0.5, idioms.ATTENTION),
    (2, nested(_groups)),
]


def drawn(source: random.Random, seed: int | None = None) -> Source:
    """A program, from nothing but the numbers that `source` gives."""
    x64 = source.random() < 0.15
    with jax.enable_x64(x64):
        return _drawn(source, x64, seed)


def _drawn(source: random.Random, x64: bool, seed: int | None) -> Source:
    dtypes = source.choice(_WIDE if x64 and source.random() < 0.7 else _PALETTES)
    numbers = itertools.count()
    groups = [
        tuple(_given(source, dtypes, f"{letter}{next(numbers)}") for _ in range(count))
        for letter, count in (
            ("p", source.randint(1, 3)),
            ("s", source.choice([0, 0, 1, 2])),
            ("x", source.randint(1, 3)),
        )
    ]
    given = [each for group in groups for each in group]
    made: list[Source] = []

    def traced(*values: Any) -> None:
        scope = Scope(numbers, {each.name: value for each, value in zip(given, values)})
        drawer = Drawer(source, scope, dtypes)
        for _ in range(source.randint(_FEWEST, _MOST)):
            draw_line(drawer, _GROUPS)
        updates = tuple(_update(drawer, each.name) for each in groups[1])
        outputs = _outputs(drawer)
        made.append(Source(*groups, tuple(scope.lines), outputs, updates, x64, seed))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax.eval_shape(traced, *map(_type, given))
    return made[0].live()


def of_seed(seed: int) -> Source:
    """The program of a number."""
    return drawn(random.Random(seed), seed)


def sources() -> st.SearchStrategy[Source]:
    """Programs for hypothesis, which makes what fails smaller."""
    return st.randoms(use_true_random=False).map(drawn)


def _type(each: Given) -> Any:
    if each.scalar:
        aval = jax.typeof(each.array)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
    if each.dtype == "key":
        return jax.eval_shape(lambda: jax.random.key(0)).update(shape=each.shape)
    return jax.ShapeDtypeStruct(each.shape, each.dtype)


def _given(source: random.Random, dtypes: Sequence[str], name: str) -> Given:
    if source.random() < 0.06 and name[0] == "x":
        return Given(name, "", (), (source.choice([2, 0.5, True, -3, 1e-3]),), scalar=True)
    shape = source.choice(EMPTY if source.random() < 0.08 else SHAPES)
    size = int(np.prod(shape))
    if source.random() < 0.03:
        shape = source.choice(((), (2,)))
        words = tuple(source.randrange(1 << 32) for _ in range(2 * int(np.prod(shape))))
        return Given(name, "key", shape, words)
    dtype = source.choice(dtypes)
    wild = source.random() < 0.15
    return Given(name, dtype, shape, tuple(_number(source, dtype, wild) for _ in range(size)))


def _number(source: random.Random, dtype: str, wild: bool) -> Any:
    """A number of a dtype as Python has it; at times the largest, the smallest, NaN ..."""
    kind = np.dtype(jax.numpy.dtype(dtype))
    if dtype == "bool":
        return source.random() < 0.5
    extreme = wild and source.random() < 0.4
    if dtype.startswith(("int", "uint")):
        info = jax.numpy.iinfo(kind)
        if extreme:
            return source.choice([int(info.min), int(info.max), 0, int(info.max) // 2])
        return source.randint(max(int(info.min), -3), min(int(info.max), 6))
    if dtype.startswith("complex"):
        return complex(source.gauss(0, 1), source.gauss(0, 1))
    number = source.choice([source.gauss(0, 1), source.gauss(0, 1), source.randint(-3, 3)])
    if extreme:
        info = jax.numpy.finfo(kind)
        large = float(info.max)
        number = source.choice(
            [large, -large, float(info.tiny), 0.0, -0.0, np.nan, np.inf, -np.inf]
        )
    return float(np.array(number, kind).astype("float64"))


def _update(drawer: Drawer, name: str) -> str:
    """A new value for a state: of its type, or made so."""
    type_ = drawer.scope.types[name]
    same = [
        each
        for each, known in drawer.scope.types.items()
        if (known.shape, known.dtype) == (type_.shape, type_.dtype)
    ]
    chosen = drawer.recent(same)
    if chosen == name and drawer.flag:
        for text in (f"{name} + 1", f"{name} * 0.5", f"{name}"):
            made = drawer.scope.add(f"({text}).astype({name}.dtype)")
            if made:
                return made[0]
    return chosen


def _outputs(drawer: Drawer) -> tuple[str, ...]:
    """What nothing reads, and at times an input, or a value twice."""
    names = list(drawer.scope.types)
    read = set().union(*(line.reads for line in drawer.scope.lines))
    made = [name for line in drawer.scope.lines for name in line.names if name not in read]
    outputs = made[-_MOST_OUTPUTS:]
    more = drawer.random.random() < 0.3 or not outputs
    return tuple([*outputs, drawer.random.choice(names)] if more else outputs)


def checked(seed: int, tally: Tally) -> tuple[Source, Failure | None]:
    """One program through one pipeline, both of a seed."""
    source = of_seed(seed)
    return source, failure_of(source, pipeline(random.Random(seed)), tally)


def failure_of(source: Source, passes: Sequence[str], tally: Tally) -> Failure | None:
    """What does not hold of a program on its way through the passes."""
    roles = {"state": 1 if source.state else None}
    return check(source.function.compiled(), source.arrays, passes, tally, source.x64, **roles)


def made_smaller(source: Source, failure: Failure) -> tuple[Source, Failure]:
    """The program cut down to what still fails alike."""
    small, _, found = shrunk(source, failure, lambda one, some: failure_of(one, some, Tally()))
    return small, found


if __name__ == "__main__":
    sys.exit(bool(run("python -m tests.fuzz.programs", checked, made_smaller)))
