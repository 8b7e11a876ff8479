"""Other values of an attribute: near ones first, since guards are about axes off by one."""

from __future__ import annotations

from random import Random
from typing import Any

from rewrite.ir import Record, Symbol

_DTYPES = ("f32", "bf16", "f16", "i32", "i8", "u8", "bool")
_MODES = ("CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS")
_PRECISIONS = ("DEFAULT", "HIGH", "HIGHEST")
_UNSAID = (("precision", tuple(Symbol(f"Precision.{name}") for name in _PRECISIONS)),)


def other_attribute(name: str, value: Any, random: Random) -> Any:
    """A value that the attribute may have in place of this one; of the same form if it can be."""
    if value is None:
        return random.choice(dict(_UNSAID).get(name, (None,)))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + random.choice((-1, 1, 1, 2))
    if isinstance(value, float):
        return random.choice((value * 2, value * 0.5, -value, 0.0, 1.0, value + 1, 1e9))
    if isinstance(value, str):
        return _other_text(value, random)
    if isinstance(value, Symbol):
        return _other_symbol(value, random)
    if isinstance(value, Record):
        at = random.randrange(len(value.fields))
        fields = list(value.fields)
        fields[at] = (fields[at][0], other_attribute(fields[at][0], fields[at][1], random))
        return Record(value.name, tuple(fields))
    if isinstance(value, tuple):
        return _other_tuple(name, value, random)
    return value


def _other_tuple(name: str, value: tuple, random: Random) -> tuple:
    if not value:
        return random.choice(((0,), (1,)))
    form = random.choice(("one", "one", "order", "fewer", "more"))
    items = list(value)
    if form == "order":
        random.shuffle(items)
    elif form == "fewer":
        items.pop(random.randrange(len(items)))
    elif form == "more" and all(isinstance(item, int) for item in items):
        items.insert(random.randint(0, len(items)), random.randrange(4))
    else:
        at = random.randrange(len(items))
        items[at] = other_attribute(name, items[at], random)
    return tuple(items)


def _other_symbol(value: Symbol, random: Random) -> Symbol:
    kind, dot, _ = value.text.partition(".")
    if not dot:
        return Symbol(random.choice(_DTYPES))
    members = {"GatherScatterMode": _MODES, "Precision": _PRECISIONS}.get(kind)
    return Symbol(f"{kind}.{random.choice(members)}") if members else value


def _other_text(value: str, random: Random) -> str:
    """Another order of one array's axes in a formula such as `b t d, d f -> b t f`."""
    if "->" not in value:
        return value
    head, arrow, tail = value.partition("->")
    parts = [*head.split(","), tail]
    at = random.randrange(len(parts))
    letters = parts[at].split()
    if len(letters) > 1:
        random.shuffle(letters)
    parts[at] = f" {' '.join(letters)} "
    return f"{','.join(parts[:-1])}{arrow}{parts[-1]}".strip()
