"""Rules from a file: the formula itself, in the ops of the IR.

    rule silu keeps reals (x: f32[2,8]):
      mul(x, logistic(x)) -> activate{kind="silu"}(x)

A parameter with a type stands for any array (the type is the example at which the rule is
tested), one with a number for any constant. What is read is data: nothing of it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lark import Lark, Token, Tree, UnexpectedInput

from rewrite import runtime
from rewrite.errors import TextError, caret, nearest
from rewrite.ir import Graph
from rewrite.program import KEEPS
from rewrite.rules import Rule, pattern

Number = int | float


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    path = Path(__file__).with_name("rules.lark")
    return Lark(path.read_text(encoding="utf-8"), parser="lalr", propagate_positions=True)


def read_rules(
    text: str, source: str = "rules", normal: Callable[[Graph], Graph] = lambda graph: graph
) -> tuple[Rule, ...]:
    """The rules of a text; `normal` normalises what their left sides trace to.

    Raises TextError with the line and a caret.
    """
    try:
        tree = _grammar().parse(text)
    except UnexpectedInput as error:
        raise _complaint(text, source, error.line, error.column, "expected another word") from error
    return tuple(_Reader(text, source, normal).rule(each) for each in tree.children)


class _Reader:
    def __init__(self, text: str, source: str, normal: Callable[[Graph], Graph]) -> None:
        self.text, self.source, self.normal = text, source, normal

    def rule(self, tree: Tree) -> Rule:
        name, *rest = tree.children
        keeps = "reals"
        if rest and isinstance(rest[0], Tree) and rest[0].data == "keeps":
            keeps = self.keeps(rest.pop(0).children[0])
        *parameters, before, after = (each for each in rest if each is not None)
        arrays = {str(p.children[0]): str(p.children[1]) for p in parameters if p.data == "array"}
        constants = {
            str(p.children[0]): _number(p.children[1]) for p in parameters if p.data == "constant"
        }
        known = [*arrays, *constants]
        self.check(before, known)
        self.check(after, known)
        return pattern(
            str(name),
            f"{_shown(before)}  ->  {_shown(after)}",
            before=_function(before, list(arrays)),
            after=_function(after, list(arrays)),
            example=tuple(kind.replace(" ", "") for kind in arrays.values()),
            normal=self.normal,
            keeps=keeps,
            constants=constants,
        )

    def keeps(self, word: Token) -> str:
        if word not in KEEPS:
            raise self.complaint(word, f"a rule keeps {', '.join(KEEPS)}, not {word}")
        return str(word)

    def check(self, tree: Tree, known: list[str]) -> None:
        """Every name on either side must be a parameter of the rule."""
        for each in tree.iter_subtrees():
            if each.data == "name" and each.children[0] not in known:
                word = each.children[0]
                raise self.complaint(word, f"{word} is no parameter; {nearest(word, known)}")

    def complaint(self, word: Token, message: str) -> TextError:
        return _complaint(self.text, self.source, word.line, word.column, message, len(word))


def _function(tree: Tree, names: list[str]) -> Callable[..., Any]:
    """An expression as a function of arrays (in order) and constants (by name)."""

    def apply(*arrays: Any, **constants: Any) -> Any:
        return _evaluate(tree, {**dict(zip(names, arrays)), **constants})

    return apply


def _evaluate(tree: Tree, known: dict[str, Any]) -> Any:
    if tree.data == "name":
        return known[str(tree.children[0])]
    if tree.data == "number":
        return _number(tree.children[0])
    name, *rest = (each for each in tree.children if each is not None)
    attrs = {}
    if rest and rest[0].data == "attributes":
        pairs = rest.pop(0).children
        attrs = {str(key): _value(value) for key, value in zip(pairs[::2], pairs[1::2])}
    return runtime.framework().apply(str(name), [_evaluate(each, known) for each in rest], attrs)


def _value(tree: Tree) -> Number | str:
    word = tree.children[0]
    return _number(word) if tree.data == "number" else str(word)[1:-1]


def _number(word: str) -> Number:
    return int(word) if word.lstrip("-").isdigit() else float(word)


def _shown(tree: Tree) -> str:
    if tree.data in ("name", "number"):
        return str(tree.children[0])
    name, *rest = (each for each in tree.children if each is not None)
    if rest and rest[0].data == "attributes":
        pairs = rest.pop(0).children
        inside = ", ".join(f"{k}={v.children[0]}" for k, v in zip(pairs[::2], pairs[1::2]))
        name = f"{name}{{{inside}}}"
    return f"{name}({', '.join(map(_shown, rest))})"


def _complaint(
    text: str, source: str, line: int, column: int, message: str, width: int = 1
) -> TextError:
    lines = text.splitlines() or [""]
    row = lines[line - 1] if 0 < line <= len(lines) else lines[-1]
    column = max(column, 1) if line > 0 else len(row) + 1
    where = f"{source}:{line if line > 0 else len(lines)}"
    return TextError(f"{message}\n{caret(row, column, width)}", where=where)
