"""An array kept as its parts along an axis, each an array: `joined(*apart(x)) == x`.

A part may be sharded where the whole may not: its length is another one.
"""

from __future__ import annotations

from typing import Any

import jax

from dialect.ops.vocabulary import along, word
from rewrite.ir import Op
from rewrite.opdef import Traits
from rewrite.signature import Array, Signature, numbered


def apart(array: Any, *, axis: int, sizes: tuple[int, ...]) -> list[Any]:
    """[array[:n], array[n : n + m] ..] along an `axis`, for `sizes` n, m ..

    Raises ValueError where these are not all of it.
    """
    return jax.lax.split(array, sizes, axis)


def joined(*parts: Any, axis: int) -> Any:
    """The array that is these parts, one after another along an `axis`.

    Raises TypeError where they differ in dtype.
    """
    return jax.lax.concatenate(parts, axis)


def _arrays(op: Op, count: int) -> tuple[Array, tuple[Array, ...], frozenset[str]]:
    """The axes of the whole, those of every part, and the letters that only one of them has."""
    whole, at = numbered(op.args[0].type.rank), op["axis"]
    names = [f"p{number}" for number in range(count)]
    parts = tuple((*whole[:at], (name,), *whole[at + 1 :]) for name in names)
    return whole, parts, frozenset((*whole[at], *names))


def _apart(op: Op) -> Signature:
    whole, parts, need = _arrays(op, len(op["sizes"]))
    return Signature((whole,), parts, need)


def _joined(op: Op) -> Signature:
    whole, parts, need = _arrays(op, len(op.args))
    return Signature(parts, (whole,), need)


_MOVES = Traits(moves=True, linear="all")
word(apart, _apart, ("axis", "sizes"), inverse=along("joined"), traits=_MOVES)
word(joined, _joined, ("axis",), traits=_MOVES)
