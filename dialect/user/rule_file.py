"""Rules from a file: the formula itself, in the ops of the IR.

    rule silu keeps reals (x: f32[2,8]):
      mul(x, logistic(x)) -> activate{kind="silu"}(x)

A parameter with a type stands for any array (the type is the example at which the rule is
tested), one with a number for any constant. What is read is data: nothing of it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dialect.arrays import dtypes
from dialect.jaxprs import jaxpr
from dialect.ops.nn import Traced
from rewrite.errors import TextError, cause, nearest
from rewrite.ir import Graph, Type
from rewrite.program import KEEPS
from rewrite.rules import Rule, pattern
from rewrite.source import Parsed, Source, Token, Tree, grammar, whole_number

Number = int | float
_MOST = 1 << 16  # characters of a file: each of its rules is traced
_IN_WORDS = {"NAME": "a name", "NUMBER": "a number", "TYPE": "a type such as f32[2,8]"}


@lru_cache(maxsize=1)
def _grammar() -> Any:
    return grammar(Path(__file__).with_name("rules.lark"))


def read_rules(
    text: str, source: str = "rules", normal: Callable[[Graph], Graph] = lambda graph: graph
) -> tuple[Rule, ...]:
    """The rules of a text; `normal` normalises what their left sides trace to.

    Raises TextError with the line and a caret.
    """
    reader = _Reader(Source(text, source, _MOST), normal)
    return tuple(map(reader.rule, reader.source.tree(_grammar(), _IN_WORDS).children))


class _Reader:
    def __init__(self, source: Source, normal: Callable[[Graph], Graph]) -> None:
        self.source, self.normal = source, normal

    def rule(self, tree: Parsed) -> Rule:
        name, *rest = tree.children
        keeps = "reals"
        if rest and isinstance(rest[0], Tree) and rest[0].data == "keeps":
            keeps = self.keeps(rest.pop(0).children[0])
        *parameters, before, after = (part for part in rest if part is not None)
        arrays = self.named(part for part in parameters if part.data == "array")
        constants = self.named(part for part in parameters if part.data == "constant")
        known = [*arrays, *constants]
        if len(set(known)) < len(known):
            self.source.fail(name, f"a parameter of {name} is given twice")
        self.check(before, known)
        self.check(after, known)
        sides = _function(before, list(arrays)), _function(after, list(arrays))
        self.try_out(name, sides, arrays, constants)
        return pattern(
            str(name),
            f"{_shown(before)}  ->  {_shown(after)}",
            before=sides[0],
            after=sides[1],
            example=tuple(map(str, arrays.values())),
            normal=self.normal,
            keeps=keeps,
            constants=constants,
        )

    def named(self, parameters: Iterable[Parsed]) -> dict[str, Any]:
        """The types of arrays, or the values of constants, by their names."""
        values = {}
        for name, text in (part.children for part in parameters):
            if name in values:
                self.source.fail(name, f"{name} is given twice")
            read = _number if text.type == "NUMBER" else Type.parse
            try:
                values[str(name)] = read(text.replace(" ", ""))
            except ValueError as error:
                self.source.fail(text, str(error))
        return values

    def try_out(
        self,
        name: Token,
        sides: tuple[Callable[..., Any], ...],
        arrays: dict[str, Type],
        constants: dict[str, Number],
    ) -> None:
        """Both sides of a rule mean something at its example, and are of one type."""
        types = list(arrays.values())
        try:
            for type_ in types:
                dtypes.check(type_)
            structs = list(map(dtypes.struct_of, types))
            (one,), (other,) = (
                jaxpr.trace_graph(
                    lambda *given, side=side: [side(*given, **constants)], *structs
                ).outputs
                for side in sides
            )
        except Exception as error:  # of the ops that it names, whatever they raise
            hint = getattr(error, "hint", "")
            self.source.fail(name, f"{name} cannot be tried: {cause(error)}", hint)
        one, other = one.type, other.type
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            self.source.fail(name, f"{name} would turn {one} into {other}")

    def keeps(self, word: Token) -> str:
        if word not in KEEPS:
            self.source.fail(word, f"a rule keeps {', '.join(KEEPS)}, not {word}")
        return str(word)

    def check(self, tree: Parsed, known: list[str]) -> None:
        """Every name on either side must be a parameter of the rule."""
        for part in tree.iter_subtrees():
            if part.data == "name" and part.children[0] not in known:
                word = part.children[0]
                self.source.fail(word, f"{word} is no parameter", nearest(word, known))


def _function(tree: Parsed, names: list[str]) -> Callable[..., Any]:
    """An expression as a function of arrays (in order) and constants (by name)."""

    def apply(*arrays: Any, **constants: Any) -> Any:
        return _evaluate(tree, {**dict(zip(names, arrays)), **constants})

    return apply


def _evaluate(tree: Parsed, known: dict[str, Any]) -> Any:
    if tree.data == "name":
        return known[str(tree.children[0])]
    if tree.data == "number":
        return _number(tree.children[0])
    name, *rest = (part for part in tree.children if part is not None)
    attrs = {}
    if rest and rest[0].data == "attributes":
        pairs = rest.pop(0).children
        if len(set(pairs[::2])) < len(pairs[::2]):
            raise ValueError(f"an attribute of {name} is given twice")
        attrs = {str(key): _value(value) for key, value in zip(pairs[::2], pairs[1::2])}
    return _applied(str(name), [_evaluate(part, known) for part in rest], attrs)


def _applied(name: str, arrays: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """The op `name` of arrays and numbers: a word of the decoder's vocabulary, or of `jax.lax`."""
    if name in Traced:
        return Traced[name](*arrays, **attrs)
    function = getattr(jax.lax, name, None)
    if name.startswith("_") or isinstance(function, type) or not callable(function):
        known = nearest(name, [*Traced, *dir(jax.lax)])
        raise TextError(f"there is no op {name!r}", hint=known)
    dtype = next((array.dtype for array in arrays if _has_dtype(array)), None)
    return function(*(jnp.asarray(array, dtype) for array in arrays), **attrs)


def _has_dtype(array: Any) -> bool:
    """Whether an array has a dtype of its own: numbers, and scalars that stand for one, do not."""
    return isinstance(array, jax.Array) and not jax.typeof(array).weak_type


def _value(tree: Parsed) -> Number | str:
    word = tree.children[0]
    return _number(word) if tree.data == "number" else str(word)[1:-1]


def _number(word: str) -> Number:
    return whole_number(word) if word.lstrip("-").isdigit() else float(word)


def _shown(tree: Parsed) -> str:
    if tree.data in ("name", "number"):
        return str(tree.children[0])
    name, *rest = (part for part in tree.children if part is not None)
    if rest and rest[0].data == "attributes":
        pairs = rest.pop(0).children
        inside = ", ".join(f"{k}={v.children[0]}" for k, v in zip(pairs[::2], pairs[1::2]))
        name = f"{name}{{{inside}}}"
    return f"{name}({', '.join(map(_shown, rest))})"
