"""Arrays of a checkpoint as the parameters of one's own decoder, read when they are packed.

{"model.layers.0.mlp.up_proj.weight": [out, in], ...}  ->  {"layers": {"up": [layers, in, out]}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import prod
from typing import Any

import jax
import numpy as np

from dialect.display.told import tell
from dialect.prepared.originals import Lazy, as_lazy
from rewrite.errors import TraceError, nearest

Source = str | tuple[str, Any]  # a name in the checkpoint, and which part of that array
Renaming = Mapping[str, Source] | Callable[[str], Source]
_EVERY = "{}"  # stands for the number of a layer
_SHOWN = 4


def stacked(arrays: Sequence[Lazy]) -> Lazy:
    """Arrays of one shape and dtype, stacked along a new first axis. Raises TraceError."""
    first = arrays[0]
    alike = (first.shape, first.dtype)
    wrong = next((array for array in arrays if (array.shape, array.dtype) != alike), None)
    if wrong is not None:
        raise TraceError(
            f"{first.name} is {first.dtype}{list(first.shape)}, "
            f"{wrong.name} is {wrong.dtype}{list(wrong.shape)}: they cannot be stacked"
        )

    def read(index: tuple[slice, ...]) -> Any:
        return np.stack([array[index[1:]] for array in arrays[index[0]]])

    return Lazy((len(arrays), *first.shape), first.dtype, read, f"{first.name} and others")


def as_tree(
    shapes: Any,
    arrays: Mapping[str, Any],
    *,
    rename: Renaming | None = None,
    transpose: str | Sequence[str] = (),
    reshape: str | Sequence[str] = (),
    cast: bool | str | Sequence[str] = False,
    ignore: str | Sequence[str] = (),
) -> Any:
    """The pytree `shapes` with arrays in its leaves, by their paths: `layers/wq`.

    Nothing is read but what `step.prepare` asks for, part by part.

    - arrays: by name, as `read_checkpoint` returns them; arrays in memory will do
    - rename: {path: name}, or a function of the path; paths that are not renamed are names. `{}`
      stands for the number of a layer, where only the name has it all layers are stacked. A pair
      (name, np.s_[...]) is a part of an array: fused queries, keys and values
    - transpose: patterns of paths whose last two axes are stored the other way, as torch has them
    - reshape: patterns of paths whose elements, in the same order, have another shape
    - cast: all paths, or patterns of them, whose arrays take the dtype of `shapes`, which is told
    - ignore: patterns of names in the checkpoint that no path needs

    In this order: part, transposed, reshaped, cast, stacked. Raises TraceError for a missing or
    superfluous array, and for one of another shape or dtype, with what would bring it there.
    """
    filling = _Filling(arrays, rename, transpose, reshape, cast)
    tree = jax.tree_util.tree_map_with_path(filling.leaf, shapes)
    unused = {name for name in arrays if not _matches(ignore, name)} - filling.used
    if unused:
        names = ", ".join(sorted(unused)[:_SHOWN])
        raise TraceError(
            f"the step has no parameter for {len(unused)} of the arrays: {names}",
            hint="rename the paths that they are for, or name them in ignore=",
        )
    for how, places in filling.converted.items():
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        tell(f"parameters are cast, {how}: {', '.join(places[:_SHOWN])}{more}")
    return tree


@dataclass(frozen=True)
class _Filling:
    """How leaves are filled: see `as_tree`. What was used of the checkpoint, and what was cast."""

    arrays: Mapping[str, Any]
    rename: Renaming | None
    transpose: str | Sequence[str]
    reshape: str | Sequence[str]
    cast: bool | str | Sequence[str]
    used: set[str] = field(default_factory=set)
    converted: dict[str, list[str]] = field(default_factory=dict)

    def leaf(self, path: Any, wanted: Any) -> Any:
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        name, part = _source(place, self.rename)
        names = list(_names(name, self.arrays, place))
        self.used.update(names)
        shape = tuple(wanted.shape)
        if _EVERY not in name:
            return self.typed(self.row(place, name, part, shape), wanted.dtype, place)
        if len(names) != shape[0]:
            raise TraceError(f"{place} stacks {shape[0]} layers, and {name} are {len(names)}")
        rows = [as_lazy(self.row(place, name, part, shape[1:]), name) for name in names]
        return self.typed(stacked(rows), wanted.dtype, place)

    def row(self, place: str, name: str, part: Any, shape: tuple[int, ...]) -> Any:
        """One array of the checkpoint in the shape that is wanted of it."""
        array = self.arrays[name]
        array = array if part is None else _part(array, part, name)
        array = _transposed(array, name) if _matches(self.transpose, place) else array
        array = _reshaped(array, shape, name) if _matches(self.reshape, place) else array
        _must_have_shape(array, shape, place, name)
        return array

    def typed(self, array: Any, dtype: Any, place: str) -> Any:
        if array.dtype == dtype:
            return array
        if not _matches(self.cast, place):
            raise TraceError(
                f"{place} is {array.dtype}, and the step takes {dtype}",
                hint=f"convert it: cast={place!r}, or cast=True for all; or give the shapes as "
                f"{array.dtype}",
            )
        self.converted.setdefault(f"{array.dtype} -> {dtype}", []).append(place)
        return as_lazy(array, place).astype(dtype)


def _source(place: str, rename: Renaming | None) -> tuple[str, Any]:
    """(name in the checkpoint, which part of that array) of a path."""
    if callable(rename):
        given = rename(place)
    else:
        given = place
        for path, name in (rename or {}).items():
            before, marked, after = path.partition(_EVERY)
            if path == place:
                given = name
            elif marked and place.startswith(before) and place.endswith(after):
                number = place[len(before) : len(place) - len(after)]
                if number.isdecimal():
                    name, part = (name, None) if isinstance(name, str) else name
                    given = (name.replace(_EVERY, number), part)
    return (given, None) if isinstance(given, str) else given


def _names(name: str, arrays: Mapping[str, Any], place: str) -> Iterator[str]:
    """The array of a name, or those of all layers: as many as there are. Raises TraceError."""
    first = name.replace(_EVERY, "0")
    if first not in arrays:
        wanted = f"no array {first!r}" + ("" if first == place else f" for {place}")
        raise TraceError(f"there is {wanted}", hint=nearest(first, arrays))
    if _EVERY not in name:
        yield name
        return
    number = 0
    while (layer := name.replace(_EVERY, str(number))) in arrays:
        yield layer
        number += 1


def _matches(patterns: bool | str | Sequence[str], name: str) -> bool:
    if isinstance(patterns, bool):
        return patterns
    listed = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatch(name, pattern) for pattern in listed)


def _part(array: Any, part: Any, name: str) -> Lazy:
    """A part of an array: one slice per axis, from the first axis on."""
    asked = part if isinstance(part, tuple) else (part,)
    if len(asked) > len(array.shape) or not all(isinstance(bounds, slice) for bounds in asked):
        raise TraceError(f"{part!r} is no part of {name}, {array.dtype}{list(array.shape)}")
    asked = (*asked, *(slice(None),) * (len(array.shape) - len(asked)))
    bounds = [axis.indices(size) for axis, size in zip(asked, array.shape)]
    if any(step != 1 for _, _, step in bounds):
        raise TraceError(f"a part of {name} has steps other than 1: {part!r}")
    source = as_lazy(array, name)

    def read(index: tuple[slice, ...]) -> Any:
        places = zip(index, bounds)
        return source[tuple(slice(x.start + first, x.stop + first) for x, (first, _, _) in places)]

    shape = tuple(max(0, stop - start) for start, stop, _ in bounds)
    return Lazy(shape, source.dtype, read, name)


def _transposed(array: Any, name: str) -> Lazy:
    """The last two axes, the other way round."""
    source = as_lazy(array, name)
    if len(source.shape) < 2:
        raise TraceError(f"{name} has the shape {source.shape}, and no two axes to transpose")

    def read(index: tuple[slice, ...]) -> Any:
        *rest, one, other = index
        return np.swapaxes(source[(*rest, other, one)], -1, -2)

    *rest, one, other = source.shape
    return Lazy((*rest, other, one), source.dtype, read, name)


def _reshaped(array: Any, shape: tuple[int, ...], name: str) -> Any:
    """The same elements in another shape. All of the array is read for a part of it."""
    source = as_lazy(array, name)
    if prod(source.shape) != prod(shape):
        raise TraceError(
            f"{name} has the shape {source.shape}, which cannot be reshaped to {shape}"
        )

    def read(index: tuple[slice, ...]) -> Any:
        whole = source[tuple(slice(0, size) for size in source.shape)]
        return whole.reshape(shape)[index]

    return Lazy(shape, source.dtype, read, name)


def _must_have_shape(array: Any, shape: tuple[int, ...], place: str, name: str) -> None:
    given = tuple(array.shape)
    if given == shape:
        return
    other_way = (*given[:-2], *given[:-3:-1])
    hint = ""
    if other_way == shape:
        hint = f"it is stored the other way, as torch has it: transpose={place!r}"
    elif prod(given) == prod(shape):
        hint = f"for the same elements in this order: reshape={place!r}"
    called = place if name == place else f"{place} ({name})"
    raise TraceError(f"{called} has the shape {given}, not {shape}", hint=hint)
