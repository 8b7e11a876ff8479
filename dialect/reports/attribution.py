"""Op attribution: the part of the decoder that an op belongs to (attention, a norm, ...).

An *anchor* is an op that identifies a part (a piece). Any other op belongs to the piece of an
anchor

- that reads it as a mask, as rotary angles, or as indices;
- whose result it scales, shifts or reshapes;
- that is nearest to it, if the op is a product with weights;
- that routes it, between a router and the residual stream.

An op without an anchor is not recognised. A static op, which depends on parameters only, runs once
and belongs to no piece. Linear in the size of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dialect.matching.values import number
from dialect.naming.axis import Axes, leaves_of
from dialect.ops.control import given_inside
from dialect.ops.lax import ELEMENTWISE
from rewrite import opdef
from rewrite.dataflow import bound_values, known_values
from rewrite.ir import Graph, Op, Value

ATTENTION, FEED_FORWARD, EXPERTS = "attention", "feed-forward", "mixture of experts"
LOGITS, RESIDUAL, PRODUCT = "logits", "residual", "product with weights"
STATE = "state update"
_ANCHORS = {
    "attend": ATTENTION,
    "gate": FEED_FORWARD,
    "activate": FEED_FORWARD,
    "rms_norm": "norm",
    "layer_norm": "norm",
    "rope": "rotary positions",
    "quantize": "rounding to int8",
    "cache_write": "cache write",
    "cache_put": "cache write",
}
_TABLES = {"vocab": "embedding", "positions": "position embedding"}
# The first side argument of an anchor, and what the side arguments are.
_SIDES = {
    "attend": (3, "mask"),
    "rope": (1, "rotary angles"),
    "cache_write": (2, "indices"),
    "cache_put": (2, "indices"),
    "cache_read": (1, "indices"),
    "take": (1, "indices"),
}
PRODUCTS = frozenset({"contract", "dot_general", "ragged_dot_general"})
SIDES = frozenset(name for _, name in _SIDES.values())
_COUNTS = ("i", "u", "b")  # dtypes of indices and masks; bf16 alone begins like bool


def is_layout(op: Op) -> bool:
    """Whether an op only moves elements: reshapes, transposes, converts, slices."""
    known = opdef.traits(op)
    moves = known.moves and not known.writes and op.name not in ("gather", "take")
    return moves or op.name == "convert_element_type"


def _is_map(op: Op) -> bool:
    """Whether an op is elementwise."""
    return op.name in ELEMENTWISE


class Piece(NamedTuple):
    """A part of the decoder: its name, and the op that identifies it."""

    name: str
    anchor: Op


def is_index(op: Op) -> bool:
    """Whether an op computes with integers and booleans only, and is not a product."""
    values = (*op.args, *op.results)
    return op.name not in PRODUCTS and not op.regions and all(map(_counts, values))


def _has_context(axes: Axes, value: Value) -> bool:
    return any("context" in names for names in axes.of(value))


def _multiplies(op: Op) -> bool:
    """Whether this is a product of arrays."""
    known = opdef.traits(op)
    return known.sums and known.linear == "each"


def _counts(value: Value) -> bool:
    return value.type.dtype[0] in _COUNTS and value.type.dtype != "bf16"


class Pieces:
    """`of`: {op: its piece} for a graph; `inside`: {loop: the Pieces of its bodies}.

    `fixed` are the inputs that are the same in all steps, and `params` those of them that are
    parameters. Values that depend only on `fixed` are `known` and belong to no piece. Several
    sweeps over the graph; an op keeps its first piece.
    """

    def __init__(
        self, graph: Graph, fixed: Sequence[Value], params: Sequence[Value], axes: Axes
    ) -> None:
        self.graph, self.axes = graph, axes
        self.known, self.weights = known_values(graph, fixed), bound_values(graph, params)
        self.ops = [op for op in graph.ops if op.results[0] not in self.known]
        self.inside = {op: self._inside(op) for op in self.ops if op.regions}
        self.outputs = set(graph.outputs)
        self.of: dict[Op, Piece] = {}
        self._find_routing()
        self._find_anchors()
        self._find_states()
        self._find_sides()
        self._find_products()
        self._find_epilogues()
        self._find_prologues()
        self._join_experts()

    def place(self, op: Op) -> Op:
        """The op whose layer an op belongs to: its anchor, or itself if layers may share it."""
        piece = self.of.get(op)
        return op if piece is None or piece.name in SIDES else piece.anchor

    def _inside(self, op: Op) -> list[Pieces]:
        bodies = []
        for region, given in zip(op.regions, given_inside(op)):
            kept = {inner: arg for inner, (arg, carried) in given.items() if not carried}
            fixed = [inner for inner, arg in kept.items() if arg in self.known]
            params = [inner for inner, arg in kept.items() if arg in self.weights]
            bodies.append(Pieces(region, fixed, params, self.axes))
        return bodies

    def _unknown(self, op: Op) -> list[Value]:
        return [arg for arg in op.args if arg not in self.known]

    def _readers(self, value: Value) -> tuple[tuple[Op, int], ...]:
        return self.graph.users.get(value, ())

    def _takes_weights(self, op: Op) -> bool:
        return op.name in PRODUCTS and any(arg in self.weights for arg in op.args)

    # Anchors.

    def _find_anchors(self) -> None:
        for op in self.ops:
            name = self._anchor(op)
            if name:
                self.of.setdefault(op, Piece(name, op))

    def _anchor(self, op: Op) -> str:
        """The name of the piece that an op identifies, or ""."""
        if op.name in _ANCHORS:
            return _ANCHORS[op.name]
        if op.name == "take" and op.args[0] in self.weights:
            return _TABLES.get(self._axis(op.args[0], 0), "")
        if op.name == "top_k":
            return EXPERTS if self._axis(op.args[0], op["axis"]) == "experts" else ""
        if self._takes_weights(op):
            return LOGITS if self._axis(op.results[0], -1) == "vocab" else ""
        return RESIDUAL if self._joins_residual(op) else ""

    def _axis(self, value: Value, axis: int) -> str:
        names = self.axes.of(value)[axis] if value.type.shape else ()
        return names[0] if len(names) == 1 else ""

    def _joins_residual(self, op: Op) -> bool:
        both = op.name == "add" and len(self._unknown(op)) == 2
        return both and any("d_model" in names for names in self.axes.of(op.results[0]))

    # Routing: everything that depends on the chosen experts, up to the residual stream.

    def _find_routing(self) -> None:
        for op in self.ops:
            if op.name == "top_k" and self._anchor(op):
                self.of[op] = Piece(EXPERTS, op)
                continue
            routed = [self.of[arg.op] for arg in op.args if arg.op in self.of]
            ends = op.regions or (self._joins_residual(op) and len(routed) < 2)
            if routed and not ends:
                self.of[op] = routed[0]

    # States that no context is in, such as those of linear attention and of state spaces: what
    # computes the new one of the old one without a product with weights, and what reads either. One
    # that is replaced, as the input of the step before is, has only what reads it.

    def _find_states(self) -> None:
        for new in filter(self._is_state, self.graph.outputs):
            update = self._behind(new.op)
            old = [x for op in update for x in op.args if x.type == new.type and not x.op.args]
            if not old:
                continue
            held = {old[0], *(value for op in update for value in op.results)}
            reads = [op for op in self.ops if _multiplies(op) and not held.isdisjoint(op.args)]
            members = (*update, *(behind for op in reads for behind in self._behind(op)))
            self.of |= dict.fromkeys(members, Piece(STATE, new.op))
        for old in filter(self._is_state, self.graph.inputs):
            reads = self._ahead(old)
            members = (*reads, *(behind for op in reads for behind in self._behind(op)))
            if reads:
                self.of |= dict.fromkeys(members, Piece(STATE, reads[0]))

    def _is_state(self, value: Value) -> bool:
        """Whether this may be the state of a layer, all of whose axes a state has."""
        leaves = [leaf for leaf in leaves_of(self.axes.at(value)) if leaf.size > 1]
        held = leaves and all("state" in leaf.roles for leaf in leaves)
        return bool(held) and not _counts(value) and not _has_context(self.axes, value)

    def _ahead(self, value: Value) -> list[Op]:
        """The elementwise ops that a value leads to, up to what belongs to a piece."""
        ahead, held = [], {value}
        for op in self.ops:
            is_own = op not in self.of and (_is_map(op) or is_layout(op))
            if is_own and not held.isdisjoint(op.args):
                ahead.append(op)
                held.update(op.results)
        return ahead

    def _behind(self, op: Op) -> list[Op]:
        """An op and those behind it, up to what belongs to a piece and to products with weights."""
        behind, stack = {}, [op]
        while stack:
            op = stack.pop()
            is_own = op.args and op not in self.of and op.results[0] not in self.known
            if is_own and op not in behind and not op.regions and not self._takes_weights(op):
                behind[op] = None
                stack += [arg.op for arg in op.args]
        return list(behind)

    # Sides: values that are read only as masks, rotary angles or indices.

    def _find_sides(self) -> None:
        for op in reversed(self.ops):
            taken = op in self.of or self._takes_weights(op) or op.regions
            if taken or not self.outputs.isdisjoint(op.results):
                continue
            sides = [self._sides_of(value) for value in op.results if self._readers(value)]
            if sides and all(sides):
                self.of[op] = sides[0]
            elif op.name == "take" and self._holds_positions(op.args[0]):
                self.of[op] = Piece(_TABLES["positions"], op)

    def _holds_positions(self, table: Value) -> bool:
        """Whether a value is a constant table of positions, such as a sinusoidal one."""
        return table in self.known and table.type.rank == 2 and self._axis(table, 0) == "positions"

    def _sides_of(self, value: Value) -> Piece | None:
        """The piece that all readers of a value read it as a side of, if any."""
        sides = [self._side(value, *reader) for reader in self._readers(value)]
        return sides[0] if sides and all(sides) else None

    def _side(self, value: Value, reader: Op, position: int) -> Piece | None:
        first, name = _SIDES.get(reader.name, (len(reader.args), ""))
        if position >= first:
            return Piece(name, reader)
        if reader.regions:
            return self._side_of_loop(value, reader)
        piece = self.of.get(reader)
        if piece is None or piece.anchor is reader and piece.name != EXPERTS:
            return None
        return None if piece.name == EXPERTS and reader.name in PRODUCTS else piece

    def _side_of_loop(self, value: Value, loop: Op) -> Piece | None:
        sides = [
            None if carried or inner in pieces.outputs else pieces._sides_of(inner)
            for pieces, given in zip(self.inside[loop], given_inside(loop))
            for inner, (arg, carried) in given.items()
            if arg == value
        ]
        return sides[0] if sides and all(sides) else None

    # Products with weights: the nearest piece after or before them.

    def _find_products(self) -> None:
        before = self._before_pieces()
        behind: dict[Op, Piece] = {}
        for op in self.ops:
            nearest = next((behind[arg.op] for arg in self._unknown(op) if arg.op in behind), None)
            if self._takes_weights(op) and op not in self.of:
                self.of[op] = before.get(op) or nearest or Piece(PRODUCT, op)
            elif self._has_products(op):
                behind[op] = self.of[op]
            elif nearest and op.name not in PRODUCTS and not self._is_residual(op):
                behind[op] = nearest

    def _before_pieces(self) -> dict[Op, Piece]:
        """{op: the piece that it flows into without another product in between}."""
        pieces: dict[Op, Piece] = {}
        for op in reversed(self.ops):
            if self._has_products(op):
                pieces[op] = self.of[op]
                continue
            if self._is_residual(op):
                continue
            readers = (reader for value in op.results for reader in self._readers(value))
            for reader, position in readers:
                is_side = position >= _SIDES.get(reader.name, (len(reader.args), ""))[0]
                if reader in pieces and reader.name not in PRODUCTS and not is_side:
                    pieces[op] = pieces[reader]
                    break
        return pieces

    def _has_products(self, op: Op) -> bool:
        piece = self.of.get(op)
        return piece is not None and piece.name in (ATTENTION, FEED_FORWARD, EXPERTS, STATE)

    def _is_residual(self, op: Op) -> bool:
        piece = self.of.get(op)
        return piece is not None and piece.name == RESIDUAL

    # Epilogues of a piece: layout, scales and biases; everything after the logits.

    def _find_epilogues(self) -> None:
        passing: dict[Op, None] = {}  # ops that may belong to an unrecognised reader
        for op in self.ops:
            args = self._unknown(op)
            if op in self.of or not args or any(arg.op not in self.of for arg in args):
                continue
            pieces, is_map = [self.of[arg.op] for arg in args], _is_map(op)
            piece = next((other for other in pieces if other.name == STATE), pieces[0])
            if piece.name == STATE and is_map:  # what is added to what it gives
                self.of[op] = piece
                continue
            linear = is_map and opdef.traits(op).linear
            if linear and len(args) == 1 and not is_layout(op):
                if all(number(arg) is not None for arg in op.args if arg not in args):
                    passing[op] = None
            elif not is_layout(op) and not (piece.name == LOGITS and is_map):
                continue
            if any(arg.op in passing for arg in args):
                passing[op] = None
            self.of[op] = piece
        for op in reversed(passing):
            readers = (reader for value in op.results for reader, _ in self._readers(value))
            if self.outputs.isdisjoint(op.results) and not any(r in self.of for r in readers):
                del self.of[op]

    # Prologues of a piece: layout. Experts: feed-forward units with results that routing reads.

    def _find_prologues(self) -> None:
        for op in reversed(self.ops):
            readers = [reader for value in op.results for reader, _ in self._readers(value)]
            plain = op not in self.of and is_layout(op) and len(self._unknown(op)) == 1
            if plain and readers and self.outputs.isdisjoint(op.results):
                if all(reader in self.of for reader in readers):
                    self.of[op] = self.of[readers[0]]

    def _join_experts(self) -> None:
        joined = {}
        for op, piece in self.of.items():
            if piece.name == EXPERTS:
                behind = (self.of.get(arg.op) for arg in op.args)
                joined |= {other: piece for other in behind if other and other.name == FEED_FORWARD}
        self.of = {op: joined.get(piece, piece) for op, piece in self.of.items()}
