"""Bytes of an array in the tiles of a TPU, and the order of axes that wastes the fewest of them.

An array lies in tiles over its two minor axes: 128 lanes, and 8 rows of four bytes, 16 of two or
32 of one. What an axis lacks to a multiple of these is padding, in memory and on every read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from rewrite.ir import Type, bits

LANES, ROW_BITS = 128, 8 * 32


def tiled_bytes(type_: Type) -> int:
    """Bytes of an array whose last two axes lie in tiles, in the order in which it is written."""
    if type_.rank < 2:
        return type_.bytes
    *major, rows, lanes = type_.shape
    tile = ROW_BITS // bits(type_.dtype)
    padded = (*major, -(-rows // tile) * tile, -(-lanes // LANES) * LANES)
    return Type(type_.dtype, padded).bytes


def order_for_tiles(type_: Type, default: tuple[int, ...], free: Sequence[int]) -> tuple[int, ...]:
    """The permutation with the fewest bytes in tiles; `default` where nothing is smaller.

    `free` are the places whose axes may change.
    """

    def size_bytes(order: tuple[int, ...]) -> int:
        return tiled_bytes(Type(type_.dtype, tuple(type_.shape[d] for d in order)))

    orders = [default]
    for some in permutations([default[place] for place in free]):
        moved = dict(zip(free, some))
        orders.append(tuple(moved.get(place, axis) for place, axis in enumerate(default)))
    return min(orders, key=size_bytes)
