"""paged: caches in pages of a pool, found through a table (see `dialect.ops.pages`).

cache  ->  paged(pool, table), for the inputs and outputs of the step

A row of a cache takes room for the longest context; in pages it takes room for its own, and rows
that begin alike can share them (PagedAttention, Kwon et al. 2023, section 4). The table is part of
the state. It gives every row its pages in order until a server fills it, so that the program
computes what it did. Attention reads a block of pages at a time, without a copy of the cache.

A row may take any page, so every chip has all pages, of the heads that it owns: owners are asked to
be heads. `paged{groups=true}` asks for nothing. Chips that own rows then have the pages of their
rows, and whoever fills the table gives a row pages of its group: of g groups, the first has the
first rows and the first pages. What the groups are follows from the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dialect.caching import narrow_cache, paged_cache, quantized_cache, transposed_cache
from dialect.caching.narrow_cache import without
from dialect.caching.paged_cache import in_pages, keys_of_block
from dialect.caching.state_forms import keep_in, stacked_forms
from dialect.caching.transposed_cache import Order, in_order
from dialect.naming.axes import infer_axes
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import build, with_args
from rewrite.passbase import Pass
from rewrite.program import LEFT_ALONE, NOTHING_DONE, Program, Remark, Step, remarks
from rewrite.target import Target

_ORDER_RULES = (*transposed_cache.RULES, *quantized_cache.RULES)
_NARROW_RULES = (*narrow_cache.RULES, *quantized_cache.RULES)
_RULES = (*paged_cache.RULES, *quantized_cache.RULES)


@dataclass(frozen=True)
class Paged(Pass):
    """Keeps every cache in pages of `page` places."""

    page: int = 128
    groups: bool = False  # whether a row takes pages of its own chips alone

    keeps: ClassVar[str] = "reals"  # attention sums a cache in another order

    def run(self, program: Program, target: Target) -> Program:
        given, (program, wide) = program, _narrow(program)
        caches = {
            number: wide.get(number) or self.cache(names, value)
            for number, names, value in _caches(program)
        }
        alone = {number: why for number, why in caches.items() if isinstance(why, str)}
        wanted = {number: entry for number, entry in caches.items() if isinstance(entry, _Cache)}
        orders = {number: in_order(cache.order) for number, cache in wanted.items()}
        forms = stacked_forms(program)
        ordered, _ = keep_in(program, orders, _ORDER_RULES, forms=forms)
        forms = stacked_forms(ordered)
        alone |= {
            number: f"its order stays {list(shape)}, where an axis of one moves"
            for number, cache in wanted.items()
            if (shape := forms[number][0].type.shape)[-len(cache.last) :] != cache.last
        }
        wanted = {number: cache for number, cache in wanted.items() if number not in alone}
        changes = {
            number: in_pages(page=self.page, **cache.form) for number, cache in wanted.items()
        }
        changed, left = keep_in(ordered, changes, _RULES, "paged", ("attend",), forms)
        kept = {number: cache for number, cache in wanted.items() if number not in left}
        notes: list[str | Remark] = [
            f"{program.inputs[number].name} kept in {cache.told(self.page)}"
            for number, cache in kept.items()
        ]
        notes += [
            Remark(why, program.inputs[number].name, LEFT_ALONE)
            for number, why in (alone | left).items()
        ]
        if not kept:
            notes.append(Remark("no cache was found that pages can hold", kind=NOTHING_DONE))
            return self.recorded(given, *notes)
        asked = (("pages", "groups"),) if self.groups else (("owner", "heads"), ("pages", "whole"))
        step = Step(str(self), self.keeps, remarks(tuple(notes)), asked)
        blocked = changed.with_graph(self.in_blocks(changed.graph))
        return replace(blocked, history=(*program.history, step))

    def cache(self, names: Sequence[str], value: Value) -> _Cache | str:
        """A cache whose dimensions have these names; or why pages cannot hold it."""
        if "batch" not in names:
            return "it has no axis batch"
        sizes = dict(zip(names, value.type.shape))
        if sizes["context"] % self.page:
            return f"pages of {self.page} places do not divide its {sizes['context']}"
        front = [names.index(name) for name in ("layers", "batch") if name in names]
        back = [names.index(name) for name in ("context", "d_head") if name in names]
        heads = [number for number in range(len(names)) if number not in front + back]
        return _Cache((*front, *heads, *back), sizes)

    def in_blocks(self, graph: Graph) -> Graph:
        """`graph` with attention over pages in blocks, of all queries and some pages of keys."""

        def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
            moved = with_args(op, args, tuple(map(self.in_blocks, op.regions)))
            if [op.name, *(arg.op.name for arg in args[1:2])] != ["attend", "paged"]:
                return moved.results
            blocks = op.get("blocks")
            if not blocks or blocks[1] % self.page:
                blocks = (args[0].type.size, keys_of_block(args[1]))
            attrs = dict(op.attrs) | {"blocks": blocks}
            return build("attend", *args, origin=op.origin, **attrs).results

        return rebuilt(graph, visit)


@dataclass(frozen=True)
class _Cache:
    """The order of a cache's dimensions as [layers, batch, heads.., context, d_head], and the sizes
    of those that have a name."""

    order: Order
    sizes: dict[str, int]

    @property
    def last(self) -> tuple[int, ...]:
        return tuple(self.sizes[name] for name in ("context", "d_head") if name in self.sizes)

    @property
    def layers(self) -> int:
        return self.sizes.get("layers", 0)

    @property
    def form(self) -> dict[str, int]:
        """The attributes of its `pages`; scales have no d_head behind their places."""
        return {"layers": self.layers} | ({} if "d_head" in self.sizes else {"behind": 0})

    def told(self, page: int) -> str:
        count = self.sizes["batch"] * self.sizes["context"] // page
        layers = f" for each of {self.layers} layers" if self.layers else ""
        return f"{count} pages of {page} places{layers}"


def _narrow(program: Program) -> tuple[Program, dict[int, str]]:
    """The program with its caches stored without axes of size one, and why some are not."""
    wide: dict[int, str] = {}
    while True:
        ones = {
            number: without(places[0])
            for number, names, value in _caches(program)
            if number not in wide and (places := _ones(names, value))
        }
        if not ones:
            return program, wide
        forms = stacked_forms(program)
        program, left = keep_in(program, ones, _NARROW_RULES, "axis_of_one", forms=forms)
        wide |= left


def _ones(names: Sequence[str], value: Value) -> list[int]:
    """The axes of size one of a cache, but those that all caches have."""
    known = ("layers", "batch", "context", "d_head")
    sizes = enumerate(zip(names, value.type.shape))
    return [place for place, (name, size) in sizes if size == 1 and name not in known]


def _caches(program: Program) -> list[tuple[int, Sequence[str], Value]]:
    """The states over the context, by number, with the names of their dimensions."""
    axes = infer_axes(program)
    named = (
        (number, [name[0] if len(name) == 1 else "" for name in axes.of(value)], value)
        for number, (value, _) in stacked_forms(program).items()
    )
    return [cache for cache in named if "context" in cache[1]]
