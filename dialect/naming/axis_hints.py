"""What a user says of axes that cannot be inferred: `{"params/.../wq": "d (h k)"}`.

The path may hold `*` for anything within a name and `...` for any names between. An axis is a
name or the letter that the field uses for it; `_` leaves it to inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dialect.naming.axis import NAMES, Axes, Axis, leaves, unify
from rewrite.errors import TextError, TraceError, in_quotes, nearest
from rewrite.ir import Type, Value
from rewrite.program import Program
from rewrite.signature import Array, parse_array, show_array

LETTERS = {
    "b": "batch",
    "t": "time",
    "s": "context",
    "d": "d_model",
    "h": "heads",
    "g": "kv_heads",
    "q": "q_per_kv",
    "k": "d_head",
    "f": "d_ff",
    "v": "vocab",
    "l": "layers",
    "e": "experts",
}
_HINTED = 100  # the priority of a user's word over every op's
_WHERE = "a hint of the user"


def hints_for(
    hints: Mapping[str, str], paths: Sequence[str], types: Sequence[Type]
) -> dict[str, str]:
    """The hinted axes of paths, in full names. Raises TraceError for a hint that fits nothing."""
    axes: dict[str, str] = {}
    for pattern, text in hints.items():
        hint = f"axes={{{in_quotes(pattern)}: {in_quotes(text)}}}"
        matching = [i for i, path in enumerate(paths) if _matches(pattern, path)]
        if not matching:
            raise TraceError(f"{hint} names no argument", hint=nearest(pattern, paths))
        array = _parsed(text, hint)
        for i in matching:
            if len(array) != types[i].rank:
                raise TraceError(f"{hint} has {len(array)} axes, but {paths[i]} is {types[i]}")
            axes[paths[i]] = show_array(array)
    return axes


def _matches(pattern: str, path: str) -> bool:
    """Whether a path is one that the pattern means: `*` is within a name, `...` any names."""
    places = {0}  # in `path`, where the parts up to here may end
    for part in re.split(r"(\.\.\.|\*)", pattern):
        if part == "...":
            places = set(range(min(places, default=len(path) + 1), len(path) + 1))
        elif part == "*":
            places = {end for at in places for end in range(at, _name_end(path, at) + 1)}
        else:
            places = {at + len(part) for at in places if path.startswith(part, at)}
    return len(path) in places


def _name_end(path: str, at: int) -> int:
    end = path.find("/", at)
    return end if end >= 0 else len(path)


def _parsed(text: str, hint: str) -> Array:
    try:
        array = parse_array(text)
    except TextError as error:
        raise TraceError(f"{hint}: {error.message}") from None
    full = tuple(tuple(LETTERS.get(x, x) for x in dimension) for dimension in array)
    for name in (name for dimension in full for name in dimension):
        if name not in NAMES and name != "_":
            raise TraceError(
                f"{hint}: there is no axis {in_quotes(name)}", hint=nearest(name, NAMES)
            )
    return full


def place_hints(axes: Axes, program: Program) -> None:
    """Names the axes that the user spoke of. Raises TraceError where a cut cannot be placed."""
    inputs = zip(program.graph.inputs, program.step_inputs)
    hinted = [(value, declared) for value, declared in inputs if declared.axes]
    for value, declared in hinted:
        for axis, names in zip(axes.at(value), parse_array(declared.axes)):
            parts = leaves(axis)
            for leaf, name in zip(parts, names * len(parts) if len(names) == 1 else names):
                if name != "_" and len(names) in (1, len(parts)):
                    leaf.call(name, _HINTED, _WHERE)
    sizes = axes.sizes() if hinted else {}
    for value, declared in hinted:
        for axis, names in zip(axes.at(value), parse_array(declared.axes)):
            if len(names) > 1 and len(names) != len(leaves(axis)):
                _cut(axis, names, sizes, declared.name, value)


def _cut(
    axis: Axis, names: tuple[str, ...], sizes: dict[str, int], path: str, value: Value
) -> None:
    """Cuts an axis into named ones, of which all but one have a size elsewhere."""
    known = [sizes.get(name, 0) for name in names]
    rest = axis.size
    for size in known:
        rest = rest // size if size and rest % size == 0 else rest
    if known.count(0) > 1 or (0 not in known and rest != 1):
        raise TraceError(
            f"cannot cut an axis of {axis.size} of {path} : {value.type} into {' '.join(names)}",
            hint="give the axes of another input that has them apart, or reshape it in the model",
        )
    parts = [Axis(size or rest) for size in known]
    unify(parts, [axis])
    for part, name in zip(parts, names):
        for leaf in leaves(part):
            leaf.call(name, _HINTED, _WHERE)
