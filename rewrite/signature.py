"""Axis signatures: what an op does to each axis of its arrays, in einsum letters.

    Signature ::= arrays "->" arrays [";" "need" letters]
    arrays    ::= array {"," array}
    array     ::= {letter | "1" | "(" letters ")"}           (h k): two axes in one dimension

The kind of an axis is what sharding it costs:

- *map*: it goes from an input to an output untouched, and may be sharded for free;
- *reduce*: it is summed away, and sharding it costs an all-reduce or a reduce-scatter;
- *need*: the op must see it whole (a sort, a softmax, a gather's table).

A letter such as `s'` names some places of the axis `s`: what a slice reads of it, what a cache is
written at.

One declaration drives type inference, recognition, quantisation, first-layer precompute,
sharding and cost. (Shardy calls the same thing a factor rule.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_lowercase

from rewrite.errors import TextError, in_quotes

_MOST_CHARACTERS = 4096
Dimension = tuple[str, ...]  # letters, major first; () is a dimension of size one
Array = tuple[Dimension, ...]


@dataclass(frozen=True)
class Signature:
    """The axes of every input and output of an op, and which of them it needs whole."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    need: frozenset[str] = frozenset()

    @staticmethod
    def parse(text: str) -> Signature:
        """Reads `"b t d, d (h k) -> b t h k; need d"`. Raises TextError with the text."""
        return _parse(text)

    def kind(self, letter: str) -> str:
        """`map`, `reduce` or `need`."""
        if letter in self.need:
            return "need"
        return "map" if any(letter in letters(array) for array in self.outputs) else "reduce"

    def free_letters(self) -> Iterator[str]:
        """Letters that no array of it uses, in the order of the alphabet."""
        taken = set(self.letters)
        return (x for x in ascii_lowercase if x not in taken)

    @property
    def letters(self) -> tuple[str, ...]:
        """Every letter once, in order of appearance."""
        seen = (x for array in (*self.inputs, *self.outputs) for x in letters(array))
        return tuple(dict.fromkeys(seen))

    @property
    def summed(self) -> tuple[str, ...]:
        """The `reduce` letters, in order of appearance."""
        return tuple(letter for letter in self.letters if self.kind(letter) == "reduce")

    @property
    def row_wise(self) -> frozenset[str]:
        """Letters that index independent rows: `map` axes that every output has."""
        common = [set(letters(array)) for array in self.outputs]
        return frozenset(set.intersection(*common) - self.need) if common else frozenset()

    def along(self) -> Signature:
        """The same, each dimension named for the axis that it lies along.

        `s'` lies along `s`; of the letters of one dimension those count that both sides have, so
        that both sides of `(g n) -> g` lie along `g`.
        """
        sides = (self.inputs, self.outputs)
        ends = ({_axis(x) for array in side for x in letters(array)} for side in sides)
        through = set.intersection(*ends)

        def axis(dimension: Dimension) -> Dimension:
            alone = len(dimension) == 1
            return tuple(_axis(x) for x in dimension if alone or _axis(x) in through)

        inputs, outputs = (tuple(tuple(map(axis, array)) for array in side) for side in sides)
        return Signature(inputs, outputs, frozenset(map(_axis, self.need)))

    def results(self, arguments: Sequence[Array]) -> tuple[Array, ...]:
        """The axes of the results, where the arguments have these. Raises ValueError where they
        are not as many, or others pair."""
        names: dict[str, str] = {}
        for named, given in zip(self.inputs, arguments, strict=True):
            for mine, other in zip(named, given, strict=True):
                for letter, name in zip(mine, other, strict=True):
                    if names.setdefault(letter, name) != name:
                        raise ValueError(f"{letter} would be {names[letter]} and {name}")
        return tuple(
            tuple(tuple(names.get(x, x) for x in dimension) for dimension in array)
            for array in self.outputs
        )

    def __str__(self) -> str:
        text = f"{_show(self.inputs)} -> {_show(self.outputs)}"
        return text + (f"; need {' '.join(sorted(self.need))}" if self.need else "")


def numbered(rank: int, prefix: str = "x") -> Array:
    """A letter for every dimension: `x0 x1 x2`."""
    return tuple((f"{prefix}{i}",) for i in range(rank))


def letters(array: Array) -> tuple[str, ...]:
    """The letters of one array, compound dimensions flattened."""
    return tuple(letter for dimension in array for letter in dimension)


def _axis(letter: str) -> str:
    return letter.partition("'")[0]


def opaque(ranks_in: tuple[int, ...], ranks_out: tuple[int, ...]) -> Signature:
    """The signature of an op of which nothing is known: every axis its own, all needed whole."""

    def fresh(prefix: str, ranks: tuple[int, ...]) -> tuple[Array, ...]:
        return tuple(numbered(rank, f"{prefix}{i}_") for i, rank in enumerate(ranks))

    inputs, outputs = fresh("i", ranks_in), fresh("o", ranks_out)
    need = frozenset(x for array in (*inputs, *outputs) for x in letters(array))
    return Signature(inputs, outputs, need)


def _show(arrays: tuple[Array, ...]) -> str:
    return ", ".join(show_array(array) for array in arrays)


def show_array(array: Array) -> str:
    """`b t (h k)`, the text of one array's axes."""
    return " ".join(_show_dimension(dimension) for dimension in array)


def _show_dimension(axes: tuple[str, ...]) -> str:
    return f"({' '.join(axes)})" if len(axes) > 1 else axes[0] if axes else "1"


@lru_cache(maxsize=1 << 14)
def parse_array(text: str) -> Array:
    """Reads one array's axes, the inverse of `show_array`."""
    _must_be_short(text)
    dimensions: list[Dimension] = []
    group: list[str] | None = None
    for word in text.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(" and group is None:
            group = []
        elif word == ")" and group is not None:
            dimensions.append(tuple(group))
            group = None
        elif not (word.isascii() and word.replace("_", "x").isalnum()):
            raise TextError(f"bad axis {in_quotes(word)} in signature {in_quotes(text)}")
        elif group is not None:
            group += [] if word == "1" else [word]  # one of size one is no axis
        else:
            dimensions.append(() if word == "1" else (word,))
    if group is not None:
        raise TextError(f"unclosed parenthesis in signature {in_quotes(text)}")
    return tuple(dimensions)


def _must_be_short(text: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise TextError(f"a signature has at most {_MOST_CHARACTERS} characters, not {len(text)}")


@lru_cache(maxsize=1 << 14)
def _parse(text: str) -> Signature:
    _must_be_short(text)
    arrays, _, need = text.partition(";")
    left, arrow, right = arrays.partition("->")
    if not arrow:
        raise TextError(f"no '->' in signature {in_quotes(text)}")
    if need and need.split()[:1] != ["need"]:
        raise TextError(f"expected 'need' after ';' in signature {in_quotes(text)}")
    inputs = tuple(parse_array(part) for part in left.split(",")) if left.strip() else ()
    outputs = tuple(parse_array(part) for part in right.split(","))
    return Signature(inputs, outputs, frozenset(need.split()[1:]))
