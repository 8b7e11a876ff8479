"""The formats that `quantize` is asked for, by parameter: an ordered list, the first match wins.

Rule ::= REGEX ":" FORM ["/" GROUP]          "mlp.*(up|gate): int4/64", "embed: none"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dialect.machine.chips import Chip
from dialect.ops.quant import FORMS
from rewrite.errors import PipelineError, in_quotes, nearest

NONE = "none"
_RULE = re.compile(r"(?P<pattern>.*):\s*(?P<form>\w+)\s*(/\s*(?P<group>\w+)\s*)?", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """A form, or "none" to leave weights alone, and the number of weights along the contracted axes
    that share a scale: None for all of an output channel."""

    form: str
    group: int | None = None

    def __str__(self) -> str:
        return f"{self.form}/{self.group}" if self.group else self.form


@dataclass(frozen=True)
class Rule:
    """One line of the list: a choice, and a pattern of paths."""

    pattern: str
    choice: Choice

    @staticmethod
    def parse(text: str) -> Rule:
        """Reads `REGEX: FORM[/GROUP]`. Raises PipelineError."""
        match = _RULE.fullmatch(text)
        if match is None:
            raise PipelineError(
                f"the rule {text!r} has no form", hint='for example: "mlp.*: int4/64"'
            )
        pattern, form, group = match["pattern"].strip(), match["form"], match["group"]
        if form not in (*FORMS, NONE):
            raise PipelineError(
                f"the rule {text!r} has an unknown form {form!r}",
                hint=nearest(form, (*FORMS, NONE)),
            )
        if group is not None and not (group.isdecimal() and int(group) > 1):
            raise PipelineError(f"the group of the rule {text!r} is no whole number above one")
        return Rule(as_pattern(pattern), Choice(form, int(group) if group else None))

    def __str__(self) -> str:
        return f"{self.pattern}: {self.choice}"

    def matches(self, paths: Iterable[str]) -> bool:
        """Whether the pattern is found in any of these paths."""
        return any(re.search(self.pattern, path) for path in paths)


def as_pattern(text: str) -> str:
    """`text`, which must be a regular expression. Raises PipelineError."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:  # too deep, too often
        raise PipelineError(f"{in_quotes(text)} is no regular expression: {error}") from error
    return text


def form_on(chip: Chip | None, form: str) -> str:
    """The form to use on a chip: fp8 instead of int8 where it multiplies only that."""
    swaps = form == "int8" and chip and chip.multiplies("fp8") and not chip.multiplies("int8")
    return "fp8" if swaps else form


def cut_into_groups(
    sizes: dict[Any, int], group: int
) -> tuple[dict[Any, tuple[int, ...]], tuple[Any, ...]] | None:
    """How contracted axes divide into groups of neighbours, the last axis being the minor one.

    ({axis that is cut: (groups, rest)}, axes inside a group); None where they do not divide.
    """
    inside: list[Any] = []
    for letter, size in reversed(sizes.items()):
        if group == 1:
            break
        if group % size == 0:
            inside.append(letter)
            group //= size
        elif size % group == 0:
            return {letter: (size // group, group)}, tuple(inside)
        else:
            return None
    return ({}, tuple(inside)) if group == 1 else None
