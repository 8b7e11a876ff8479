"""A user's parameters, wherever they lie: on a device, in the host's memory, or still in a file.

`fetched` brings any of them, or some of its rows, onto the mesh. What lies in a file is read as
each device needs it, so that the host never holds more than one device's share of one array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of, type_of
from rewrite.errors import TraceError, nearest
from rewrite.ir import Type

Rows = tuple[int, int]  # from, up to: along the first axis


@dataclass(frozen=True, eq=False)
class Lazy:
    """An array that is read when it is needed, a leaf of parameters given to `step.prepare`.

    `read` gets a slice for each axis, with start and stop, and returns that part as a numpy array.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[tuple[slice, ...]], Any]
    name: str = "an array"

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        found = np.asarray(self.read(index))
        wanted = tuple(each.stop - each.start for each in index)
        if found.shape != wanted or found.dtype != np.dtype(self.dtype):
            raise TraceError(
                f"{self.name} was read as {found.dtype}{list(found.shape)}, "
                f"and should be {np.dtype(self.dtype)}{list(wanted)}",
                hint="`read` gets one slice for each axis and returns just that part",
            )
        return found

    def astype(self, dtype: Any) -> Lazy:
        """The array in another dtype: each part is converted when it is read."""
        wanted = np.dtype(dtype)
        return Lazy(self.shape, wanted, lambda index: self[index].astype(wanted), self.name)


def is_lazy(leaf: Any) -> bool:
    """Whether a leaf of the parameters is still to be read."""
    return isinstance(leaf, Lazy)


def stacked(arrays: Sequence[Lazy]) -> Lazy:
    """Arrays of one shape as one with a new first axis: a layer for each."""
    first = arrays[0]
    alike = (first.shape, first.dtype)
    wrong = next((each for each in arrays if (each.shape, each.dtype) != alike), None)
    if wrong is not None:
        raise TraceError(
            f"{first.name} is {first.dtype}{list(first.shape)}, "
            f"{wrong.name} is {wrong.dtype}{list(wrong.shape)}: they cannot be stacked"
        )

    def read(index: tuple[slice, ...]) -> Any:
        return np.stack([each[index[1:]] for each in arrays[index[0]]])

    return Lazy((len(arrays), *first.shape), first.dtype, read, f"{first.name} and others")


def as_tree(shapes: Any, arrays: dict[str, Any]) -> Any:
    """The pytree `shapes` filled from arrays by their paths: `layers/wq`.

    Raises TraceError for a path that is missing, for an array that has no place, and for one of
    another shape or dtype.
    """
    left = dict(arrays)

    def filled(path: Any, wanted: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in arrays:
            raise TraceError(f"there is no array {name!r}", hint=nearest(name, arrays))
        found = left.pop(name)
        if tuple(found.shape) != tuple(wanted.shape):
            raise TraceError(f"{name} has the shape {found.shape}, and not {wanted.shape}")
        if found.dtype != wanted.dtype:
            raise TraceError(
                f"{name} is {found.dtype}, and the step takes {wanted.dtype}",
                hint=f"convert it: arrays[{name!r}].astype({str(wanted.dtype)!r}), "
                f"or give the shapes as {found.dtype}",
            )
        return found

    tree = jax.tree_util.tree_map_with_path(filled, shapes)
    if left:
        names = ", ".join(sorted(left)[:4])
        raise TraceError(
            f"the step has no parameter for {len(left)} of the arrays: {names}",
            hint="leave out what it does not need",
        )
    return tree


def original_type(leaf: Any) -> Type:
    """The Type that a parameter has inside a program: as JAX would take it, 64 bits cut to 32."""
    if not is_lazy(leaf) and not isinstance(leaf, np.ndarray):
        return type_of(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return type_of(jax.ShapeDtypeStruct(tuple(leaf.shape), dtype))


def shape_of_lazy(leaf: Any) -> Any:
    """A leaf as tracing takes it: shapes for what is still to be read."""
    if not is_lazy(leaf):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def fetched(original: Any, type_: Type, rows: Rows | None, sharding: Any) -> jax.Array:
    """`original`, or its rows, laid out on the mesh; of an array on a device perhaps the same.

    What comes from the host's memory is copied: the user's arrays may change afterwards.
    """
    if is_lazy(original) or isinstance(original, np.ndarray):
        return _read(original, type_, rows or (0, *type_.shape[:1]), sharding)
    array = original if isinstance(original, jax.Array) else jnp.asarray(original)
    if rows is not None:
        array = _rows(array, rows[0], count=rows[1] - rows[0])
    return jax.device_put(array, sharding)


def _read(original: Any, type_: Type, rows: Rows, sharding: Any) -> jax.Array:
    first = rows[0]
    shape = (rows[1] - first, *type_.shape[1:]) if type_.shape else ()
    dtype = dtype_of(type_.dtype)

    def share(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [each.indices(size)[:2] for each, size in zip(index, shape)]
        own = [slice(start, stop) for start, stop in bounds]
        if own:
            own[0] = slice(own[0].start + first, own[0].stop + first)
        return np.array(original[tuple(own)], dtype)

    return jax.make_array_from_callback(shape, sharding, share)


@partial(jax.jit, static_argnames="count")
def _rows(array: jax.Array, first: int, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, first, count)


def nbytes(leaf: Any) -> int:
    """Bytes of a parameter where they occupy memory that can be freed: on devices."""
    return prod(leaf.shape) * leaf.dtype.itemsize if isinstance(leaf, jax.Array) else 0
