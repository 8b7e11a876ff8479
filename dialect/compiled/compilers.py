"""What is known of the compilers: what XLA makes of a program, and what it must be told.

All of it was seen in compiled programs, today's by libtpu 0.0.42 (docs/measurements.md has the
figures, tests/test_tpu.py the programs). None of it follows from a data sheet or from the meaning
of an op, so a new compiler changes this file and no other.

In windows (a collective matmul, or windowed einsum): the compiler cuts a product in as many pieces
as chips exchange it, and sends a piece while it computes the next. One collective-permute per
window replaces the all-gather of its weights, or the reduce-scatter of its partial sums. Weights
that are gathered so are read by their product without a constraint, which would forbid it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jax import lax

from dialect.machine.chips import MIB, Chip
from dialect.machine.interconnect import Links, Ring
from dialect.machine.tiles import LANES, ROWS
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, with_args
from rewrite.rules import Outcome, local

MeshAxes = tuple[str, ...]
_SHORT = 4  # weights are gathered as a whole around a ring of so few chips
_PIECE = 10e6  # bytes of partial sums that are reduce-scattered at a time
_FEW = 2  # partial sums are scattered as a whole over so few chips


@dataclass(frozen=True)
class Compiler:
    """What the compiler for one chip makes of collectives, and of the memory on the chip.

    - overlaps_gathers: whether the all-gather of weights overlaps with compute
    - gathers_in_windows: whether large weights are gathered in windows, over `windowed_axes`
    - gains_by_blocks: whether attention in blocks is faster than at once
    - window_bytes: of the memory on a chip, what a product reads and writes at a time
    - rows: the partial sums of a layer are reduce-scattered to multiples of so many rows of a chip,
      and all-reduced otherwise
    - copies_pages: whether a block of pages is written to memory, and read again by its products
    """

    overlaps_gathers: bool = True
    gathers_in_windows: bool = False
    gains_by_blocks: bool = True
    window_bytes: int = 16 * MIB
    rows: int = ROWS
    copies_pages: bool = False

    def overlaps(self, may_be_windowed: bool) -> bool:
        """Whether the all-gather of some weights overlaps with compute."""
        return self.overlaps_gathers or (self.gathers_in_windows and may_be_windowed)

    def permutes_of_gather(self, ways: int) -> int:
        """How many permutes replace the all-gather of weights over so many chips. Over a long ring
        they are a loop, which permutes one window before it begins and one after it ends."""
        return ways + 1 if self.gathers_in_windows and ways > _SHORT else 0

    def emitted(self, kind: str, array_axes: int, beside_windows: bool, shard: int) -> int:
        """How many collectives it makes of one that reshards so many axes of its array: it moves
        one at a time and copies the array in HBM in between.

        Beside weights that are gathered in windows an all-reduce becomes a reduce-scatter and an
        all-gather, and a reduce-scatter an all-reduce if its shards of d_model are not two tiles
        wide (a tile for each direction of the ring).
        """
        narrow = kind == "reduce-scatter" and shard % (2 * LANES)
        doubled = self.gathers_in_windows and beside_windows and (kind == "all-reduce" or narrow)
        return array_axes * (2 if doubled else 1)


_TODAY = {
    "v4": Compiler(
        overlaps_gathers=False, gathers_in_windows=True, window_bytes=0, gains_by_blocks=False
    ),
    "v5e": Compiler(),  # would gather in windows too, if not constrained, 4 % slower
    "v5p": Compiler(overlaps_gathers=False, window_bytes=96 * MIB, copies_pages=True),
    "v6e": Compiler(overlaps_gathers=False, gathers_in_windows=True, window_bytes=64 * MIB),
    "tpu7x": Compiler(overlaps_gathers=False),
}
# The cost model is fitted to the programs of arXiv:2211.05102 on v4, which overlap their gathers.
_FITTED = {"v4": Compiler(gathers_in_windows=True)}


def compiler_for(chip: Chip) -> Compiler:
    """The current compiler for a chip; one that is not known overlaps what can be."""
    return _TODAY.get(chip.libtpu, Compiler())


def fitted_compiler(chip: Chip) -> Compiler:
    """The compiler of the programs to which the cost model is fitted."""
    return _FITTED.get(chip.libtpu, compiler_for(chip))


def permutes_of_scatter(links: Sequence[Links], ways: int) -> int:
    """How many permutes replace the reduce-scatter of a product's partial sums over these links,
    where computing hides the windows' reading: only around closed rings, and n permutes where a
    reduce-scatter receives n - 1 shards."""
    closed = all(isinstance(link, Ring) and link.closed for link in links)
    return ways if closed and ways > _FEW else 0


def has_ragged_kernel(chip: Chip) -> bool:
    """Whether a ragged product is a kernel, which reads from memory the matrices that have rows;
    elsewhere it computes all of them."""
    return bool(chip.libtpu)


def scatters_rows(rows: float, columns: float, ways: Sequence[int]) -> bool:
    """Whether partial sums in f32 are reduce-scattered to so many rows of a chip, over axes of so
    many chips; they are all-reduced otherwise.

    A chip's rows must be whole tiles, half of which go in each direction: all at once, or in pieces
    of a half, a quarter ... of at most `_PIECE` bytes. Of several axes one has more than two chips.
    """
    pairs = rows / ROWS * math.ceil(columns / LANES) / 2
    while pairs % 1 == 0 and pairs * math.prod(ways) * 2 * LANES * ROWS * 4 > _PIECE:
        pairs /= 2
    is_line = len(ways) == 1 or sum(count > 2 for count in ways) == 1
    return is_line and rows % ROWS == 0 and pairs % 1 == 0


def hides_reading(rows: float, bytes_per_weight: float, chip: Chip) -> bool:
    """Whether multiplying so many rows takes twice as long as reading the weights, which each
    window does again."""
    return 2 * rows / chip.bf16_flops_per_s >= 2 * bytes_per_weight / chip.hbm_bytes_per_s


def room_on_chip(chip: Chip) -> int:
    """Bytes on a chip for arrays that are made there and read again."""
    return max(0, chip.on_chip_bytes - compiler_for(chip).window_bytes)


def passes_over_logits(*batch: float) -> int:
    """How often the logits of attention that do not fit on the chip are written and read, with so
    many sequences and KV heads on it: the product that writes them finds their largest and their
    sum too, unless there is one of either, when the sum is a pass of its own."""
    return 3 if 1 in batch else 2


def passes_over_gathered(array_axes: int) -> int:
    """How often weights that are gathered along so many of their axes are written and read, before
    they are read by their product."""
    return 1 + 4 * (array_axes - 1)


def windowed_axes(split: Callable[[str], Mapping[str, MeshAxes]]) -> MeshAxes:
    """The mesh axes over which large weights can be gathered in windows; `split` gives the mesh
    axes of each axis in a group of tensors.

    They are the axes over which d_model is gathered, if exactly these shard the batch and d_ff
    stays sharded over others. (Windows along d_ff would arrive in another order; there are none if
    d_ff is not sharded, or if only a part of the batch axes is gathered. Where partial sums are
    scattered over the batch, the compiler would gather over their axes too.)
    """
    stored, used = split("weights"), split("used")
    over = tuple(x for x in stored.get("d_model", ()) if x not in used.get("d_model", ()))
    stays = all(used.get(name) == axes for name, axes in stored.items() if name != "d_model")
    alike = set(over) == set(split("residual").get("batch", ()))
    scattered = set(used.get("d_model", ())) & set(split("hidden").get("batch", ()))
    return over if stays and alike and "d_ff" in used and not scattered else ()


def apart(op: Op, graph: Graph) -> Graph:
    """softmax(q . k) rounded . v  ->  softmax(barrier(q . k)) rounded . v, in the graph of `op`

    The compiler overflows its stack where it may merge the products of a long prefill with what
    rounds the weights of attention.
    """
    if not _is_at_once(op) or op.get("rounds") is None:
        return graph
    logits = _logits(graph)

    def visit(visited: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        results = with_args(visited, args).results
        return [make("optimization_barrier", *results)] if visited is logits else results

    return rebuilt(graph, visit)


def made_first(op: Op, graph: Graph) -> tuple[Value, ...]:
    """quantize(x)  ->  quantize(barrier(x)): the arguments of `op`, of this graph

    The compiler would make x, or a layer of a stacked cache, anew for its maximum and its integers.

    softmax(q . k) . v  ->  softmax(barrier(q) . k) . v

    Into a product that makes its queries as well (rotary positions are fused into it) the compiler
    fuses no softmax: a prefill then writes and reads its logits twice.
    """
    if op.name == "quantize":
        return (make("optimization_barrier", *op.args, origin=op.origin),)
    if not _is_at_once(op):
        return op.args
    query, key, *others = op.args
    if _logits(graph).types[0].size <= key.type.size:  # in decode, which makes few of them
        return op.args
    return (make("optimization_barrier", query, origin=op.origin), key, *others)


def _is_at_once(op: Op) -> bool:
    """Whether an op is attention that is not in blocks."""
    return op.name == "attend" and not op.get("blocks")


def _logits(graph: Graph) -> Op:
    """The product of queries and keys in the reference of attention."""
    return next(op for op in graph.ops if op.name == "dot_general")


@local(
    "reshape",
    example=lambda x: x[:, lax.reshape(lax.slice(lax.iota("int32", 4), (0,), (1,)), ())],
    types=("f32[2,4]",),
)
def hidden_counter(op: Op) -> Outcome:
    """number cut from iota  ->  number cut from barrier(iota)

    The first of several layers must not see that its number is 0: the compiler would give its cache
    another memory layout, and copy the whole cache there and back.
    """
    cut = op.args[0].op
    if op.types[0].rank or cut.name != "slice" or cut.args[0].op.name != "iota":
        return None
    counter = make("optimization_barrier", cut.args[0])
    return with_args(op, with_args(cut, (counter,)).results).results
