"""The original parameters: on a device, in host memory, or still in a file.

`fetched` places one of them, or some of its rows, on the mesh. Arrays in files are read shard by
shard, so that the host never holds more than one device's shard of one array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.dtypes import dtype_of, type_of
from rewrite.errors import TraceError
from rewrite.ir import Type

Rows = tuple[int, int]  # (start, stop) along the first axis


@dataclass(frozen=True, eq=False)
class Lazy:
    """An array that is read on demand: a leaf of the parameters given to `step.prepare`.

    `read` takes one slice per axis, with start and stop, and returns that part as a numpy array.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[tuple[slice, ...]], Any]
    name: str = "an array"

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        part = np.asarray(self.read(index))
        wanted = tuple(bounds.stop - bounds.start for bounds in index)
        if part.shape != wanted or part.dtype != np.dtype(self.dtype):
            raise TraceError(
                f"{self.name} was read as {part.dtype}{list(part.shape)}, "
                f"and should be {np.dtype(self.dtype)}{list(wanted)}",
                hint="`read` takes one slice per axis and returns just that part",
            )
        return part

    def astype(self, dtype: Any) -> Lazy:
        """The array in another dtype, converted part by part when it is read."""
        wanted = np.dtype(dtype)
        return Lazy(self.shape, wanted, lambda index: self[index].astype(wanted), self.name)


def as_lazy(array: Any, name: str) -> Lazy:
    """An array, in memory or lazy, as a lazy one."""
    if isinstance(array, Lazy):
        return array
    return Lazy(tuple(array.shape), np.dtype(array.dtype), lambda index: array[index], name)


def is_lazy(leaf: Any) -> bool:
    """Whether a leaf of the parameters is a `Lazy` array."""
    return isinstance(leaf, Lazy)


def original_type(leaf: Any) -> Type:
    """The Type of a parameter inside a program: JAX's, with 64-bit dtypes cut to 32 bits."""
    if not is_lazy(leaf) and not isinstance(leaf, np.ndarray):
        return type_of(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return type_of(jax.ShapeDtypeStruct(tuple(leaf.shape), dtype))


def shape_of_lazy(leaf: Any) -> Any:
    """A leaf for tracing: a ShapeDtypeStruct if it is lazy, else the leaf."""
    if not is_lazy(leaf):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def fetched(original: Any, type_: Type, rows: Rows | None, sharding: Any) -> jax.Array:
    """`original`, or some of its rows, with this sharding; an array on devices may be returned as
    it is.

    Arrays in host memory are copied, since the user may change them later.
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

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [axis.indices(size)[:2] for axis, size in zip(index, shape)]
        slices = [slice(start, stop) for start, stop in bounds]
        if slices:
            slices[0] = slice(slices[0].start + first, slices[0].stop + first)
        return np.array(original[tuple(slices)], dtype)

    return jax.make_array_from_callback(shape, sharding, shard)


@partial(jax.jit, static_argnames="count")
def _rows(array: jax.Array, first: int, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, first, count)


def nbytes(leaf: Any) -> int:
    """Bytes of a parameter on devices, which can be freed; 0 for any other."""
    return prod(leaf.shape) * leaf.dtype.itemsize if isinstance(leaf, jax.Array) else 0
