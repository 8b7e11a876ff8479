"""The blocks of a program's decoder: a walk over its products and attentions.

A block is what reads the residual stream at one place. The place of a value is the number of
products on the way to it that add to the residual stream: attention and network of a parallel layer
are in one place (GPT-J, Wang & Komatsuzaki 2021), those of a serial layer in two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dialect.matching.attend_bounds import part_read
from dialect.matching.pools import is_in_pages
from dialect.naming.axes import HEADS, Axes, Axis, Names, leaves_of
from dialect.normal.trips import most_trips
from dialect.ops.attend import names_of, pairs_of
from dialect.ops.control import given_inside, scan_parts
from dialect.ops.scores import loop_axes
from dialect.planning.decoder_shape import Attention, Block, Network
from dialect.planning.latents import with_latents
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import traits
from rewrite.program import Program
from rewrite.signature import Signature, letters

KV_HEADS = ("heads", "kv_heads")
PRODUCTS = ("contract", "ragged_dot_general")


_Read = tuple[Block, set[tuple[Value, int]]]


@dataclass
class _Place:
    """What reads the residual stream at one place."""

    attentions: list[Op] = field(default_factory=list)
    # Products with weights of networks, and with weights fused with those of the heads.
    into: list[tuple[Op, Value]] = field(default_factory=list)
    out: list[tuple[Op, Value]] = field(default_factory=list)
    into_heads: list[Value] = field(default_factory=list)
    out_of_heads: list[Value] = field(default_factory=list)
    # Products that sum over the width of a network and lead to no other width, nor back.
    inside: list[Value] = field(default_factory=list)
    chosen: int = 0  # experts that a token is routed to
    # All products with weights but those of networks.
    weights: list[tuple[Op, Value]] = field(default_factory=list)
    time: int = 1  # new positions per sequence
    read: set[tuple[Value, int]] = field(default_factory=set)  # stored weights, and their layers


@dataclass(frozen=True)
class _Loop:
    """The loops around a graph: their trips, and for every input that they pass to it the value
    outside, with how many such values that holds. `sizes`: those of the program's axes."""

    sizes: dict[str, int]
    trips: int = 1
    outside: dict[Value, tuple[Value, int]] = field(default_factory=dict)

    def within(self, op: Op) -> Iterator[_Loop]:
        """The loops around every region of an op. One whose length nothing bounds is the step that
        it repeats."""
        trips = most_trips(op) or 1
        rows = op.regions[0].inputs[scan_parts(op)[-1]] if op.get("length") is not None else ()
        for given in given_inside(op):
            outside = {
                inner: (arg, trips if inner in rows else 1) for inner, (arg, _) in given.items()
            }
            yield _Loop(self.sizes, self.trips * trips, self.outside | outside)

    def stored(self, value: Value) -> tuple[Value, int]:
        """Where a weight is stored outside the loops, and how many like it are stored there."""
        count = 1
        while value in self.outside or value.op.args:
            if value in self.outside:
                value, more = self.outside[value]
                count *= more
                continue
            facts, source = traits(value.op), value.op.args[0]
            if facts.picks and facts.linear:  # a layer of a stack, cut out by the program
                break
            if facts.picks:  # the layer of a trip
                count *= source.type.size // max(1, value.type.size)
            value = source
        return value, min(count, self.trips)


def decoder_blocks(program: Program, axes: Axes) -> tuple[Block, ...]:
    """The kinds of blocks of a decoder, in the order in which they come first."""
    inputs = frozenset(program.values("param"))
    kinds: dict[Block, Block] = {}
    seen: set[Value] = set()
    for block, read in _blocks_of(program.graph, inputs, axes, _Loop(axes.sizes())):
        new = (count for source, count in read if source not in seen)
        stored = max(new, default=0 if read else block.times)
        seen.update(source for source, _ in read)
        kind = replace(block, times=0, stored=0)
        known = kinds.get(kind, kind)
        kinds[kind] = replace(known, times=known.times + block.times, stored=known.stored + stored)
    return tuple(kinds.values())


def _blocks_of(graph: Graph, inputs: frozenset[Value], axes: Axes, loop: _Loop) -> Iterator[_Read]:
    """The blocks in order, with the stored weights that they read."""
    bound = bound_values(graph, inputs)
    number: dict[Value, int] = dict.fromkeys(graph.inputs, 0)
    places: dict[int, _Place] = {}
    for op in graph.ops:
        at = max((number[arg] for arg in op.args), default=0)
        if op.results[0] in bound:
            number.update(dict.fromkeys(op.results, at))
            continue
        inner = [
            block
            for region, within in zip(op.regions, loop.within(op))
            for block in _blocks_of(region, region_bound(op, bound), axes, within)
        ]
        if inner:
            yield from (*_blocks_up_to(places, at, axes, loop), *inner)
        place = places.setdefault(at, _Place())
        _note(place, op, axes, bound, loop)
        adds = bool(inner) or (op.name in PRODUCTS and _adds(op, axes))
        number.update(dict.fromkeys(op.results, at + adds))
    yield from _blocks_up_to(places, len(graph.ops), axes, loop)


def _blocks_up_to(places: dict[int, _Place], last: int, axes: Axes, loop: _Loop) -> Iterator[_Read]:
    """The blocks at these places, which are complete."""
    for number in sorted(number for number in places if number < last):
        place = places.pop(number)
        for block in _blocks_at(place, axes, loop):
            yield block, place.read


def _blocks_at(place: _Place, axes: Axes, loop: _Loop) -> Iterator[Block]:
    """One block, and a further one for every attention but the first."""
    attentions = [_attention(op, axes, place.weights, loop.sizes) for op in place.attentions]
    first, *others = attentions or [None]
    fused = _fused_networks(place, first, axes) if first else ()
    networks = (*fused, *_networks(place, axes, loop.sizes))
    time = None if place.time == loop.sizes.get("time", 1) else place.time
    if first or networks:
        yield Block(first, networks, loop.trips, time=time)
    yield from (Block(attention, (), loop.trips, time=time) for attention in others)


def _note(place: _Place, op: Op, axes: Axes, bound: frozenset[Value], loop: _Loop) -> None:
    """Adds to a place what this op says of it."""
    if is_attention(axes, op):
        place.attentions.append(op)
    elif op.name == "top_k" and "experts" in axes.of(op.args[0])[op["axis"]]:
        place.chosen = max(place.chosen, op.types[0].shape[op["axis"]])
    if op.name in PRODUCTS:
        weights = [(op, arg) for arg in op.args if _is_network(axes, arg)]
        fused = [arg for arg in op.args if any(weight_over(axes, arg, name) for name in HEADS)]
        if _adds(op, axes):
            place.out, place.out_of_heads = place.out + weights, place.out_of_heads + fused
        else:
            place.into, place.into_heads = place.into + weights, place.into_heads + fused
        place.inside += [arg for arg in op.args if arg in bound and _is_inside(axes, op, arg)]
        vectors = (arg for arg in op.args if arg in bound and not _has_width(axes, arg))
        place.weights += [(op, arg) for arg in vectors]
        place.read.update(loop.stored(arg) for arg in op.args if arg in bound)
        place.time = max(place.time, _size_of(axes, op.results[0], "time"))


def _is_inside(axes: Axes, op: Op, weight: Value) -> bool:
    """Whether a product sums over the width of a network, to nothing that a plan splits."""
    names = {name for dimension in axes.of(op.results[0]) for name in dimension}
    return has(axes.of(weight), "d_ff") and not names & {"d_ff", "d_model", "experts", "vocab"}


def _adds(op: Op, axes: Axes) -> bool:
    """Whether a product with a weight leads back to the residual stream."""
    inner = ("d_ff", "d_head", *HEADS)
    weights = [arg for arg in op.args if any(weight_over(axes, arg, name) for name in inner)]
    others = [arg for arg in op.args if arg not in weights]
    is_back = has(axes.of(op.results[0]), "d_model")
    return bool(weights) and is_back and not any(has(axes.of(arg), "d_model") for arg in others)


def _attention(
    op: Op, axes: Axes, weights: list[tuple[Op, Value]], sizes: dict[str, int]
) -> Attention:
    """The heads of an `attend`; of attention that was not recognised, those of the program."""
    if op.name != "attend":
        heads = sizes.get("heads", sizes.get("kv_heads", 1) * sizes.get("q_per_kv", 1))
        return Attention(heads, _dividing(sizes.get("kv_heads", 1), heads), sizes.get("d_head", 1))
    query, key = op.args[:2]
    heads, kv_heads = _size_of(axes, query, *HEADS), _size_of(axes, key, "kv_heads")
    if not has(axes.of(key), "kv_heads"):
        kv_heads = _size_of(axes, key, "heads")
    read = _context_of(op)
    longest = max(sizes.get("context", 0), sizes.get("time", 1))
    attention = Attention(
        heads,
        _dividing(kv_heads, heads),
        _width_of_query(op, axes),
        *(read if read < longest else 0, *_in_parts(op, read)),
        positions_last=Signature.parse(op["axes"]).inputs[1][-1] == ("s",)
        or bool(op.get("visits")),
        in_pages=is_in_pages(key),
    )
    return with_latents(attention, op, axes, weights)


def _width_of_query(op: Op, axes: Axes) -> int:
    """The elements of a query of one head, of all pairs of queries and keys."""
    named = dict(zip(names_of(op), op.args))
    return sum(_size_of(axes, named[f"query{pair}"], "d_head") for pair in pairs_of(op))


def _has_width(axes: Axes, value: Value) -> bool:
    """Whether this is over the width of a network, or the vocabulary."""
    return any(has(axes.of(value), name) for name in ("d_ff", "experts", "vocab"))


def _in_parts(op: Op, keys: int) -> tuple[float, float, float]:
    """(how often it reads all of its keys in blocks, the part of its scores that it computes, and
    that of its keys which it reads)"""
    if not op.get("blocks"):
        part = part_read(op, keys)
        return 0, part, part
    queries = _queries_of(op)
    rows, columns = (min(block, size) for block, size in zip(op["blocks"], (queries, keys)))
    visits = op.get("visits") or queries // rows * (keys // columns)
    return visits * columns / keys, visits * rows * columns / (queries * keys), 1


def _queries_of(op: Op) -> int:
    """The number of positions of which an `attend` has queries."""
    named = Signature.parse(op["axes"])
    arrays = zip(op.args, named.inputs)
    sizes = {axis: size for arg, axes in arrays for axis, size in zip(axes, arg.type.shape)}
    time = loop_axes(named, sizes).time
    return sizes[time] if time else 1


def _dividing(kv_heads: int, heads: int) -> int:
    return kv_heads if heads % kv_heads == 0 else heads


def _context_of(op: Op) -> int:
    """The number of positions that an `attend` reads."""
    named = Signature.parse(op["axes"])
    (query, key, *_), (out,) = named.inputs, named.outputs
    others = {*letters(query), *letters(out)}
    shape = zip(op.args[1].type.shape, key)
    return math.prod(size for size, dimension in shape if not others & set(dimension))


def _size_of(axes: Axes, value: Value, *names: str) -> int:
    """The product of a value's axes with one of these names."""
    return math.prod(leaf.size for leaf in leaves_of(axes.at(value)) if leaf.name in names)


def _fused_networks(place: _Place, attention: Attention, axes: Axes) -> Iterator[Network]:
    """The network whose weights are fused with those of the heads: what these have more than
    attention needs."""
    widths = (attention.q_width + attention.kv_width, attention.q_width)
    into, out = (
        sum(weight.type.size // _size_of(axes, weight, "d_model") for weight in weights) - width
        for weights, width in zip((place.into_heads, place.out_of_heads), widths)
    )
    if any(_is_fused(axes, weight) for weight in place.out_of_heads) and out > 0:
        yield Network(out, into=max(0, round(into / out)))


def _is_fused(axes: Axes, value: Value) -> bool:
    """Whether a weight over heads has another axis than those of a head."""
    return not {leaf.name for leaf in leaves_of(axes.at(value))} <= {"d_model", "d_head", *HEADS}


def _is_network(axes: Axes, value: Value) -> bool:
    """Whether this is a weight of a feed-forward network: one of no heads, vocabulary or router."""
    names = {name for dimension in axes.of(value) for name in dimension}
    is_router = names == {"d_model", "experts"}
    others = {"vocab", "d_head", *HEADS}
    return "d_model" in names and not is_router and not names & {"batch", "time", *others}


def _networks(place: _Place, axes: Axes, sizes: dict[str, int]) -> Iterator[Network]:
    """The feed-forward networks at a place, one for every width and number of experts.

    Matrices are counted by their elements, so that a fused pair counts as two. One whose width is
    not known belongs to a network with as many experts.
    """
    kinds: dict[tuple[int, int], list[Op]] = {}
    for op, weight in (*place.out, *place.into):
        if has(axes.of(weight), "d_ff"):
            kinds.setdefault(_kind(axes, weight), []).append(op)
    into, out = (Counter[tuple[int, int]]() for _ in range(2))
    for count, weights in ((into, place.into), (out, place.out)):
        for _, weight in weights:
            kind = _kind(axes, weight)
            alike = (other for other in kinds if other[0] == kind[0])
            count[kind if kind in kinds else next(alike, kind)] += weight.type.size
    d_model = sizes.get("d_model", 0)
    led_back = {leaf for _, weight in place.out for leaf in leaves_of(axes.at(weight))}
    for kind, products in kinds.items():
        experts, d_ff = kind
        routing = _routing(products, axes)
        yield Network(
            d_ff,
            into=round(into[kind] / (experts * d_ff * d_model)),
            out=round(out[kind] / (experts * d_ff * d_model)),
            experts=experts if routing else 1,
            experts_per_token=(place.chosen or experts) if routing else 1,
            routing=routing,
            inside=sum(x.type.size // d_ff for x in place.inside if _kind(axes, x) == kind),
            is_gathered=not out[kind] and not any(led_back & _widths(axes, op) for op in products),
        )


def _widths(axes: Axes, op: Op) -> set[Axis]:
    """The axes of a product's result that are the width of a network."""
    return {leaf for leaf in leaves_of(axes.at(op.results[0])) if leaf.name == "d_ff"}


def _kind(axes: Axes, weight: Value) -> tuple[int, int]:
    """(experts, width) of a weight of a network."""
    return _size_of(axes, weight, "experts"), _size_of(axes, weight, "d_ff")


def _routing(products: list[Op], axes: Axes) -> str:
    """How a mixture of experts is computed (`ROUTINGS`); "" if there is none."""
    mixed = [op for op in products if any(weight_over(axes, x, "experts") for x in op.args)]
    if any(traits(op).counts for op in mixed):
        return "ragged"
    if any(not has(axes.of(op.results[0]), "experts") for op in mixed):
        return "summed"
    return "dense" if mixed else ""


def is_attention(axes: Axes, op: Op) -> bool:
    """Attention, or the softmax of attention that was not recognised."""
    weights = op.name == "softmax" and "context" in axes.of(op.results[0])[-1]
    return weights or op.name == "attend"


def has(names: Names, name: str) -> bool:
    """Whether a dimension has this name."""
    return any(name in dimension for dimension in names)


def weight_over(axes: Axes, value: Value, name: str) -> bool:
    """Whether this is a weight that leads from or to the residual stream along this axis."""
    names = axes.of(value)
    return has(names, name) and not has(names, "batch") and has(names, "d_model")


def is_planned(axes: Axes, value: Value) -> bool:
    """Whether this is a weight or a table of which the plan knows an axis."""
    named = any(weight_over(axes, value, name) for name in ("vocab", "experts", "d_head", *HEADS))
    return named or _is_network(axes, value)
