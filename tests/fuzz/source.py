"""Random functions as data: inputs, lines of Python, results; shown as source text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_NAME = re.compile(r"\b[a-z]\d+\b")
HEAD = """\
import functools
import jax, jax.numpy as jnp, numpy as np
from jax import lax
nan, inf, P, mesh = np.nan, np.inf, jax.P, jax.make_mesh((1,), ("m",))
"""


@functools.cache
def namespace() -> dict[str, Any]:
    """What the text of a function may name."""
    known: dict[str, Any] = {}
    exec(HEAD, known)
    return known


@dataclass(frozen=True)
class Line:
    """`names = text`; the text may call the functions of `inner`, which stand before it.

    `several`: the text gives a tuple, even where that is of one.
    """

    names: tuple[str, ...]
    text: str
    inner: tuple[Function, ...] = ()
    several: bool = False

    @property
    def reads(self) -> set[str]:
        """The names it reads, those of its inner functions included."""
        return set(_NAME.findall(self.text)).union(*(each.reads for each in self.inner))

    def lines(self) -> Iterator[str]:
        for each in self.inner:
            yield from each.source
        yield f"{_tupled(self.names) if self.several else self.names[0]} = {self.text}"


@dataclass(frozen=True)
class Function:
    """`def name(parameters): lines; return results`, a wrapper such as `jax.jit` above it."""

    name: str
    parameters: tuple[str, ...]
    lines: tuple[Line, ...]
    results: str
    above: str = ""

    @property
    def reads(self) -> set[str]:
        """The names that it takes from the functions around it."""
        bound = {name for line in self.lines for name in line.names}
        inside = set(_NAME.findall(f"{self.results} {self.above}"))
        inside = inside.union(*(line.reads for line in self.lines))
        return inside - bound - set(_NAME.findall(" ".join(self.parameters)))

    @property
    def source(self) -> list[str]:
        """The lines of its text."""
        lines = [self.above] if self.above else []
        lines.append(f"def {self.name}({', '.join(self.parameters)}):")
        body = [text for line in self.lines for text in line.lines()]
        return [*lines, *(f"    {text}" for text in (*body, f"return {self.results}"))]

    @property
    def size(self) -> int:
        """The number of lines, those of inner functions included."""
        return sum(1 + sum(each.size for each in line.inner) for line in self.lines)

    def compiled(self) -> Any:
        """The Python function."""
        known = dict(namespace())
        exec("\n".join(self.source), known)
        return known[self.name]


@dataclass(frozen=True)
class Given:
    """One input: an array of a dtype and shape, or a Python scalar, and its numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]
    scalar: bool = False

    @property
    def array(self) -> Any:
        if self.scalar:
            return self.values[0]
        if self.dtype == "key":
            return jax.random.wrap_key_data(np.array(self.values, "uint32").reshape(*self.shape, 2))
        return np.array(self.values, jnp.dtype(self.dtype)).reshape(self.shape)

    @property
    def source(self) -> str:
        if self.scalar:
            return f"{self.name} = {self.values[0]!r}"
        numbers = ", ".join(map(_shown, self.values))
        if self.dtype == "key":
            words = f'np.array([{numbers}], "uint32").reshape{(*self.shape, 2)}'
            return f"{self.name} = jax.random.wrap_key_data({words})"
        kind = "bool" if self.dtype == "bool" else f"jnp.{self.dtype}"
        return f"{self.name} = np.array([{numbers}], {kind}).reshape({self.shape})"


def _shown(number: Any) -> str:
    return repr(number.item() if hasattr(number, "item") else number)


@dataclass(frozen=True)
class Source:
    """A program: `step(params, state, args) -> (outputs, new state)`, and its inputs.

    The groups are tuples of arrays; `x64` says with which integers and floats it is traced.
    """

    params: tuple[Given, ...]
    state: tuple[Given, ...]
    args: tuple[Given, ...]
    lines: tuple[Line, ...]
    outputs: tuple[str, ...]
    updates: tuple[str, ...]
    x64: bool = False
    seed: int | None = None

    @property
    def groups(self) -> tuple[tuple[Given, ...], ...]:
        return self.params, self.state, self.args

    @property
    def arrays(self) -> tuple[tuple[Any, ...], ...]:
        """(params, state, args)."""
        return tuple(tuple(each.array for each in group) for group in self.groups)

    @property
    def function(self) -> Function:
        parameters = ("params", "state", "args")
        unpacked = tuple(
            Line(tuple(each.name for each in group), whole, several=True)
            for group, whole in zip(self.groups, parameters)
        )
        results = f"{_tupled(self.outputs)}, {_tupled(self.updates)}"
        return Function("step", parameters, (*unpacked, *self.lines), results)

    @property
    def size(self) -> int:
        return sum(1 + sum(each.size for each in line.inner) for line in self.lines)

    def __str__(self) -> str:
        """A script that defines the function and its inputs."""
        groups = [
            f"{whole} = {_tupled(each.name for each in group)}"
            for whole, group in zip(("params", "state", "args"), self.groups)
        ]
        given = [each.source for group in self.groups for each in group]
        x64 = ['jax.config.update("jax_enable_x64", True)'] if self.x64 else []
        return "\n".join([HEAD, *x64, *given, *groups, "", *self.function.source])

    def live(self) -> Source:
        """Without the lines that nothing reads, and the inputs that nothing reads."""
        needed, kept = set(self.outputs) | set(self.updates), []
        for line in reversed(self.lines):
            if needed & set(line.names):
                kept.append(line)
                needed |= line.reads
        return replace(self, lines=tuple(reversed(kept)))


def _tupled(names: Any) -> str:
    names = tuple(names)
    return f"({names[0]},)" if len(names) == 1 else f"({', '.join(names)})"


__all__ = ["Function", "Given", "Line", "Source", "lax", "namespace"]
