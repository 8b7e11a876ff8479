"""One layer of a stack, of which only parts are read.

What `cache_read` gives, a compiler stores before it cuts a part out of it, so that all of the layer
is read and written first. A part that is cut out of the stack is read once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jax import lax

from dialect.ops.caches import in_int32


@dataclass(frozen=True)
class LayerArray:
    """A layer of `stack` [layers, ..], or the elements of it from `starts` on.

    A part along the dimension `context` is an array; along another it is one of these again.
    """

    stack: Any
    layer: Any
    starts: tuple[Any, ...]
    shape: tuple[int, ...]
    context: int

    @staticmethod
    def of(stack: Any, layer: Any, context: int) -> LayerArray:
        """The whole of a layer; as `cache_read` gives it."""
        shape = stack.shape[1:]
        return LayerArray(stack, layer, (0,) * len(shape), shape, context)

    @property
    def dtype(self) -> Any:
        """That of the stack."""
        return self.stack.dtype

    def squeeze(self, axes: tuple[int, ...]) -> LayerArray:
        """Without these axes, of size one."""
        kept = [number for number in range(len(self.shape)) if number not in axes]
        starts, shape = (tuple(facts[d] for d in kept) for facts in (self.starts, self.shape))
        stack = self.stack.squeeze(tuple(d + 1 for d in axes))
        context = kept.index(self.context)
        return LayerArray(stack, self.layer, starts, shape, context)

    def part(self, start: Any, size: int, axis: int) -> Any:
        """So many elements of an axis, from `start` on."""
        starts = (*self.starts[:axis], self.starts[axis] + start, *self.starts[axis + 1 :])
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        if axis != self.context:
            return replace(self, starts=starts, shape=shape)
        places = [in_int32(place) for place in (self.layer, *starts)]
        cut = lax.dynamic_slice(self.stack, places, (1, *shape))
        return cut.squeeze(0)
