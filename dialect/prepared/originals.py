"""The original parameters: on a device, in host memory, or still in a file.

`fetched` places one of them, or some of its rows, on the mesh. Arrays in files are read shard by
shard, so that the host never holds more than one device's shard of one array.
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


def is_lazy(leaf: Any) -> bool:
    """Whether a leaf of the parameters is a `Lazy` array."""
    return isinstance(leaf, Lazy)


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


def as_tree(shapes: Any, arrays: dict[str, Any]) -> Any:
    """The pytree `shapes` with arrays in its leaves, by their paths: `layers/wq`.

    Raises TraceError for a missing or superfluous array, and for one of another shape or dtype.
    """
    unused = dict(arrays)

    def filled(path: Any, wanted: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in arrays:
            raise TraceError(f"there is no array {name!r}", hint=nearest(name, arrays))
        array = unused.pop(name)
        if tuple(array.shape) != tuple(wanted.shape):
            raise TraceError(f"{name} has the shape {array.shape}, not {wanted.shape}")
        if array.dtype != wanted.dtype:
            raise TraceError(
                f"{name} is {array.dtype}, and the step takes {wanted.dtype}",
                hint=f"convert it: arrays[{name!r}].astype({str(wanted.dtype)!r}), "
                f"or give the shapes as {array.dtype}",
            )
        return array

    tree = jax.tree_util.tree_map_with_path(filled, shapes)
    if unused:
        names = ", ".join(sorted(unused)[:4])
        raise TraceError(
            f"the step has no parameter for {len(unused)} of the arrays: {names}",
            hint="leave out what it does not need",
        )
    return tree


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
