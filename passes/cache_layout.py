"""cache_layout: caches are stored in the form, and the axis order, that the machine reads best.

cache  ->  back(forth(cache)), for the inputs and outputs of the step

`forth` and `back` move through reads, writes, attention and loops until they cancel
(`dialect.caching.state_forms`). `stage` then stores the cache in the new form, and `adapt` converts
the user's once. Conversions that do not cancel stay in the program, where they can be seen.

- A cache with repeated KV heads stores each once (`dialect.caching.merged_heads`).
- `cache_layout{kv_heads=1}` merges KV heads, which changes the decoder's results: only on request.
- The axes are transposed to `order` (`dialect.caching.transposed_cache`).

`owner`, the sharding of the cache, is a request to the `plan` that follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from dialect.caching import quantized_cache, transposed_cache
from dialect.caching.merged_heads import with_fewer_heads, with_real_heads
from dialect.caching.state_forms import keep_in, stacked_forms
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
    """Stores every cache with its axes in `order`; axes that a cache lacks are ignored.

    `order=auto` takes the order with the least padding in the tiles of a TPU. `kv_heads` is the
    number of heads to merge to, by the `mean` of neighbours, their `first`, or an `svd` of weights.
    """

    order: str = _ORDER
    kv_heads: int = 0  # as many as the decoder has
    merge: Literal["mean", "first", "svd"] = "mean"
    owner: Literal["auto", "heads", "batch"] = "auto"

    # Attention sums a cache in another order. With merged heads the step is approximate.
    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        if self.kv_heads:
            merged, notes = with_fewer_heads(program, self.kv_heads, self.merge)
        else:
            merged, notes = with_real_heads(program)
        reordered, more = self.reordered(merged)
        changed = "approx" if self.kv_heads and merged is not program else "reals"
        asked = () if self.owner == "auto" else (("owner", self.owner),)
        keeps = "bits" if reordered is program else changed
        step = Step(str(self), keeps, remarks((*notes, *more)), asked)
        return replace(reordered, history=(*program.history, step))

    def reordered(self, program: Program) -> tuple[Program, list[str]]:
        """The program with its caches in the wanted order, and a note on each."""
        axes, forms, changes, notes = infer_axes(program), stacked_forms(program), {}, []
        for number, (value, _) in forms.items():
            order = self.wanted(axes, value)
            if order is None or order == tuple(range(len(order))):
                continue
            changes[number] = in_order(order)
            names = axes.show(value).split()
            shown = " ".join(names[place] for place in order)
            before, after = (tiled_bytes(form.type) for form in (value, transposed(value, order)))
            tiles = f", {before:,} -> {after:,} bytes in a TPU's tiles" if before != after else ""
            notes.append(f"{program.inputs[number].name} kept as {shown}{tiles}")
        result, _ = keep_in(program, changes, _RULES, forms=forms)
        return result, notes

    def wanted(self, axes: Axes, value: Value) -> Order | None:
        """The permutation of a cache's dimensions; None if the value is no cache.

        Dimensions of size one do not move.
        """
        names = [name[0] if len(name) == 1 else "" for name in axes.of(value)]
        order = (_ORDER if self.order == "auto" else self.order).split()
        slots = [i for i, size in enumerate(value.type.shape) if size > 1]
        if "context" not in names or any(names[i] not in order for i in slots):
            return None
        moved = dict(zip(slots, sorted(slots, key=lambda i: order.index(names[i]))))
        permutation = tuple(moved.get(i, i) for i in range(len(names)))
        if self.order != "auto":
            return permutation
        # Layers and sequences stay in front, for `cache_put`.
        free = [i for i in slots if names[permutation[i]] not in ("layers", "batch")]
        return order_for_tiles(value.type, permutation, free)
