"""cache_layout: what a cache keeps, and in which order, is what the machine wants to read.

cache  ->  back(forth(cache)), at the boundary, in and out

`forth` and `back` are pushed through reads, writes, attention and loops until they cancel
(`dialect.caching.state_forms`); `stage` then keeps the cache in the new form, and `adapt` turns the
user's around once. What does not cancel stays in the program, where it can be seen.

- A cache that repeats its KV heads keeps each once (`dialect.caching.merged_heads`).
- `cache_layout{kv_heads=1}` merges KV heads, which changes what the decoder computes. Only when
  named.
- The axes are put in `order` (`dialect.caching.transposed_cache`).

Which chips own what of the cache is a plan: `owner` is asked of the `plan` that follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from dialect.caching import quantized_cache, transposed_cache
from dialect.caching.merged_heads import with_fewer_heads, with_real_heads
from dialect.caching.state_forms import keep_in, kept_forms
from dialect.caching.transposed_cache import Order, in_order, transposed
from dialect.machine.tiles import order_for_tiles, tiled_bytes
from dialect.naming.axes import Axes, infer_axes
from rewrite.ir import Value
from rewrite.passbase import Pass
from rewrite.program import Program, Step, remarks
from rewrite.target import Target

_ORDER = "layers batch kv_heads heads context d_head"
_RULES = (*transposed_cache.RULES, *quantized_cache.RULES)


@dataclass(frozen=True)
class CacheLayout(Pass):
    """Keeps every cache with its axes in `order`; axes that a cache lacks are passed over.

    `order=auto` takes the order with the least padding in the tiles of a TPU. `kv_heads` merges
    the heads to so many, by the `mean` of neighbours, the `first` or, of the weights, `svd`.
    """

    order: str = _ORDER
    kv_heads: int = 0  # as many as the decoder has
    merge: Literal["mean", "first", "svd"] = "mean"
    owner: Literal["auto", "heads", "batch"] = "auto"

    keeps: ClassVar[str] = "reals"  # attention sums a cache in another order; `approx` merged

    def run(self, program: Program, target: Target) -> Program:
        if self.kv_heads:
            merged, notes = with_fewer_heads(program, self.kv_heads, self.merge)
        else:
            merged, notes = with_real_heads(program)
        made, more = self.reordered(merged)
        changed = "approx" if self.kv_heads and merged is not program else "reals"
        asked = () if self.owner == "auto" else (("owner", self.owner),)
        keeps = "bits" if made is program else changed
        step = Step(str(self), keeps, remarks((*notes, *more)), asked)
        return replace(made, history=(*program.history, step))

    def reordered(self, program: Program) -> tuple[Program, list[str]]:
        """The caches in the order that is wanted, and what each is kept as."""
        axes, changes, notes = infer_axes(program), {}, []
        for number, (kept, _) in kept_forms(program).items():
            order = self.wanted(axes, kept)
            if order is None or order == tuple(range(len(order))):
                continue
            changes[number] = in_order(order)
            names = axes.show(kept).split()
            shown = " ".join(names[place] for place in order)
            before, after = (tiled_bytes(each.type) for each in (kept, transposed(kept, order)))
            tiles = f", {before:,} -> {after:,} bytes in a TPU's tiles" if before != after else ""
            notes.append(f"{program.inputs[number].name} kept as {shown}{tiles}")
        made, _ = keep_in(program, changes, _RULES)
        return made, notes

    def wanted(self, axes: Axes, kept: Value) -> Order | None:
        """The permutation of a cache's dimensions, or None where it is no cache.

        A dimension of size one stays where it is.
        """
        names = [name[0] if len(name) == 1 else "" for name in axes.of(kept)]
        order = (_ORDER if self.order == "auto" else self.order).split()
        slots = [i for i, size in enumerate(kept.type.shape) if size > 1]
        if "context" not in names or any(names[i] not in order for i in slots):
            return None
        moved = dict(zip(slots, sorted(slots, key=lambda i: order.index(names[i]))))
        found = tuple(moved.get(i, i) for i in range(len(names)))
        if self.order != "auto":
            return found
        # What is written at places of its own for each sequence has layers and sequences in front.
        free = [i for i in slots if names[found[i]] not in ("layers", "batch")]
        return order_for_tiles(kept.type, found, free)
