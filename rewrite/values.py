"""Reading: the values of attributes, and types, every distinct text once."""

from __future__ import annotations

import cmath
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from lark import Lark, Token, Transformer

from rewrite import runtime
from rewrite.ir import Opaque, Record, Symbol, Type
from rewrite.source import grammar, whole_number

_LONG = re.compile(r"[0-9]{100,}")
_TYPE = re.compile(r"[^\s:,\[]+\[[^\]]*\]~?")
# The terminals of program.lark as a person would say them.
IN_WORDS = {
    "ARGS": "arguments such as (%x, 0.5:f32)",
    "ATTRS": "attributes such as {axis=0}",
    "INT": "a number",
    "KEEPS": "bits, reals or approx",
    "NAME": "a name",
    "OPAQUE": "a value",
    "PLAN": "a plan, its lines indented by two spaces",
    "RESULT": "an op such as `%1 = add(%0, %0) : f32[2]`",
    "RETURN": "return",
    "ROLE": "param, state or arg",
    "STRING": "a quoted text",
    "TYPES": "a type such as `: f32[8,64]`",
    "VALUE": "a value such as %x",
}


@lru_cache(maxsize=1 << 16)
def types_of(text: str) -> tuple[Type, ...]:
    """The types in a text. Raises ValueError for one that no array has."""
    if long := _LONG.search(text):
        raise ValueError(f"an axis of {len(long[0]):,} digits is too long")
    types = tuple(map(Type.parse, _TYPE.findall(text)))
    for type_ in types:
        runtime.check(type_)
    return types


class _Values(Transformer[Token, Any]):
    """Attribute values, built while they are read."""

    NONE = staticmethod(lambda token: None)
    TRUE = staticmethod(lambda token: True)
    FALSE = staticmethod(lambda token: False)
    INT, NAME = staticmethod(whole_number), str
    TYPE = staticmethod(lambda token: types_of(token)[0])
    STRING = staticmethod(lambda token: json.loads(token, strict=False))
    COMPLEX = staticmethod(lambda token: _finite(complex(token), token))
    sequence = attribute = attributes = tuple

    def FLOAT(self, token: Token) -> float | Symbol:
        value = _finite(float(token), token)
        return Symbol("-0.0") if value == 0 and token.startswith("-") else value

    def QUOTED(self, token: Token) -> str:
        return str(json.loads(f'"{token[1:-1]}"', strict=False))

    def OPAQUE(self, token: Token) -> Opaque:
        return Opaque(token[1:-1].rpartition(" ")[0], None, str(token))

    def symbol(self, children: list[str]) -> Symbol:
        return Symbol(children[0])

    def record(self, children: list[Any]) -> Record:
        name, *fields = children
        if len(dict(fields)) < len(fields):
            raise ValueError(f"a field of {name} is given twice")
        return Record(name, tuple(fields))

    def value(self, children: list[Any]) -> Any:
        return children[0]


@lru_cache(maxsize=1)
def values_parser() -> Lark:
    """The parser of attributes, as they stand behind an op."""
    start, transformer = ["attributes", "value"], _Values()
    return grammar(
        Path(__file__).with_name("program.lark"),
        start=start,
        transformer=transformer,
        propagate_positions=False,
    )


@lru_cache(maxsize=1 << 16)
def parsed(text: str, start: str) -> Any:
    """Attributes or a value by their text, which a program repeats over and over."""
    return values_parser().parse(text, start=start)


def _finite(value: Any, digits: str) -> Any:
    if "inf" not in digits and cmath.isinf(value):
        raise ValueError(f"{digits} is too large for a float")
    return value
