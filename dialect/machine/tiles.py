"""TPU tiles: the bytes of a tiled array, and the order of axes with the least padding.

A tile covers the two minor axes of an array: 128 lanes, and 8 rows of four bytes, 16 of two or 32
of one. Both axes are padded to full tiles, in memory and on every read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from dialect.machine.chips import Chip
from rewrite.ir import Type, bits

LANES, ROWS = 128, 8  # of four bytes
ROW_BITS = ROWS * 32


def lanes_of(chip: Chip) -> int:
    """The number of elements to which a chip pads the last axis of an array: 1 but on a TPU."""
    return LANES if chip.platform == "tpu" else 1


def tiled_bytes(type_: Type) -> int:
    """Bytes of an array with its last two axes padded to full tiles."""
    if type_.rank < 2:
        return type_.bytes
    *major, rows, lanes = type_.shape
    tile = ROW_BITS // bits(type_.dtype)
    padded = (*major, -(-rows // tile) * tile, -(-lanes // LANES) * LANES)
    return Type(type_.dtype, padded).bytes


def order_for_tiles(type_: Type, default: tuple[int, ...], free: Sequence[int]) -> tuple[int, ...]:
    """The permutation of axes with the fewest bytes in tiles; `default` if none is smaller.

    `free`: the positions of `default` that may be permuted.
    """

    def size_bytes(order: tuple[int, ...]) -> int:
        return tiled_bytes(Type(type_.dtype, tuple(type_.shape[d] for d in order)))

    orders = [default]
    for order in permutations([default[place] for place in free]):
        moved = dict(zip(free, order))
        orders.append(tuple(moved.get(place, axis) for place, axis in enumerate(default)))
    return min(orders, key=size_bytes)
