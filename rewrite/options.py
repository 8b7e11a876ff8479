"""Options of a pass: how a pipeline writes them, and how they become typed dataclass fields.

`fit` undoes `show`: what a field holds is shown, read by the pipeline's grammar, and fits again.
"""

from __future__ import annotations

import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from rewrite.source import quoted, whole_number

_WORDS = {"true": True, "false": False, "none": None}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_:.-]*")  # what the grammar reads without quotes, at least
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(inf|([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+|%)?)")
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number or a percentage",
    str: "a text",
    NoneType: "none",
}


class Atom(str):
    """A value written without quotes: `int8`, `5%`, `v5e:4x4`. The field decides what it means."""


def show(value: Any) -> str:
    """A value as a pipeline writes it; a string goes without quotes where it can."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))})"
    if isinstance(value, str) and (value in (*_WORDS, "inf") or not _PLAIN.fullmatch(value)):
        return quoted(value)
    return str(value)


def fit(written: Any, wanted: Any) -> Any:
    """`written` as the type that a field is annotated with. Raises ValueError if it does not fit.

    `written` is an `Atom`, a plain `str` where it stood in quotes, or a tuple of these; `wanted`
    is bool, int, float, str, None, or a Literal, union or tuple of them.
    """
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return _first_fit(written, inner)
    if origin is Literal:
        return _chosen(written, inner)
    if origin is tuple:
        return _listed(written, inner)
    if wanted is str and isinstance(written, str):
        return str(written)
    if not isinstance(written, Atom):
        raise ValueError(f"not {describe(wanted)}")
    if wanted in (bool, NoneType) and isinstance(_WORDS.get(written, ""), wanted):
        return _WORDS[written]
    if wanted is int and _WHOLE.fullmatch(written):
        return whole_number(written)
    if wanted is float and _NUMBER.fullmatch(written):
        # Divided as text, so that 33.3% is 0.333 and not the float next to it.
        return float(written.replace("%", "e-2"))
    raise ValueError(f"not {describe(wanted)}")


def _first_fit(written: Any, members: tuple[Any, ...]) -> Any:
    # Every atom fits `str`, and `none` is a word as well, so these two go last and first.
    for member in sorted(members, key=lambda member: (member is str) - (member is NoneType)):
        try:
            return fit(written, member)
        except ValueError:
            continue
    raise ValueError("fits no member")


def _chosen(written: Any, values: tuple[Any, ...]) -> Any:
    for value in values:
        try:
            if fit(written, type(value)) == value:
                return value
        except ValueError:
            continue
    raise ValueError("not one of the choices")


def _listed(written: Any, items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(written, tuple):
        raise ValueError("not a list")
    wanted = items[:1] * len(written) if items[1:] == (...,) else items
    return tuple(fit(text, item) for text, item in zip(written, wanted, strict=True))


def describe(wanted: Any) -> str:
    """What a field takes, in words."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return " or ".join(map(describe, inner))
    if origin is Literal:
        return "one of " + ", ".join(map(show, inner))
    if origin is tuple and inner[1:] == (...,):
        return f"a list in parentheses of which each is {describe(inner[0])}"
    if origin is tuple:
        return f"a list in parentheses of {', '.join(map(describe, inner))}"
    return _NAMES.get(wanted, f"of type {wanted}, which no pipeline can write")


def choices(wanted: Any) -> tuple[str, ...]:
    """The values that a field may have, as far as they can be listed."""
    if get_origin(wanted) is Literal:
        return tuple(map(show, get_args(wanted)))
    if get_origin(wanted) in (Union, UnionType):
        return tuple(choice for member in get_args(wanted) for choice in choices(member))
    return ()
