"""Caches with fewer KV heads: those that repeat their heads, exactly; others by merging them.

cache  ->  spread_heads(merge_heads(cache)), at the boundary, in and out

`spread_heads` moves inward to attention, whose groups of queries grow. `merge_heads` of what is
written moves outward, through whatever is linear, to the weights of keys and values, where it
depends on parameters alone. So the weights are merged in `prepare`, a live cache is by `adapt`,
and since keys and values are linear in their weights, the cache is then what merged weights would
have written. Queries and outputs keep their weights.

Multi-head to grouped-query attention by the mean is Ainslie et al. 2023 (arXiv:2305.13245).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import gcd

from dialect.caching.fused_heads import merge_of_part, without_unread_parts
from dialect.caching.head_rules import RULES, merged_in_common, merging, source_of
from dialect.caching.state_forms import Change, keep_in, kept_forms, writes
from dialect.naming.axes import Axes, infer_axes
from dialect.ops import lax
from dialect.staging.binding import region_bound
from rewrite import opdef
from rewrite.dataflow import bound_values
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op, Value
from rewrite.program import LEFT_ALONE, Program, Remark

_MERGES = ("merge_heads", "shared_heads")
_PLACE = (
    "heads are merged best by a cache_layout{kv_heads=...} behind carry_cache, before merge_dots, "
    "quantize and other layouts"
)


def with_real_heads(program: Program) -> tuple[Program, list[str | Remark]]:
    """`program` with every cache of repeated KV heads keeping each once, and notes.

    Exact for what the step itself writes into an empty cache. Of another one whose copies differ
    `adapt` would take the first, and refuses it (`dialect.prepared.state`).
    """
    counts: dict[int, int] = {}
    axes = infer_axes(program)
    places = dict(_places(program, axes))
    for op, number in writes(program):
        if number in places:
            own = _heads(axes, op.args[1])  # of a layer, maybe, that has fewer axes than the state
            copies = _copies(op.args[1], own[0]) if len(own) == 1 else 1
            counts[number] = gcd(counts.get(number, 0), copies)
    changes = {
        number: merging(places[number], count, "same")
        for number, count in counts.items()
        if count > 1
    }
    made, alone = keep_in(program, changes, RULES, "spread_heads")
    merged = next(_merged_inside(made.graph, kept_forms(program)), None)
    if merged is not None:
        made, why = program, f"{merged.args[0].op.told} may tell its copies apart"
        alone = dict.fromkeys(changes, why)
    told = {i: f"stores each head {counts[i]} times; kept once" for i in changes}
    return made, _notes(program, told, alone)


def _merged_inside(graph: Graph, forms: Mapping[int, tuple[Value, Value]]) -> Iterator[Op]:
    """The merges of heads in a step, those of its state as it comes in apart."""
    entering = {value for value, _ in forms.values()}
    for op, _ in graph.walk():
        if op.name == "merge_heads" and op.args[0] not in entering:
            yield op


def with_fewer_heads(
    program: Program, kv_heads: int, by: str
) -> tuple[Program, list[str | Remark]]:
    """`program` with its KV heads merged to `kv_heads` of them, and notes.

    `by` is `mean`, `first` (of each group of neighbours) or `svd` (`shared_heads`, of the weights
    alone: a live cache then gets the mean, which is not quite what those weights would write).
    """
    alone: dict[int, str] = {}
    changes: dict[int, Change] = {}
    told, forms = {}, kept_forms(program)
    for number, place in _places(program, infer_axes(program)):
        found = forms[number][0].type.shape[place]
        if found == kv_heads:
            alone[number] = f"it has {found} KV heads as it is"
        elif kv_heads < 1 or found % kv_heads:
            alone[number] = f"its {found} heads are not divided by {kv_heads}"
        else:
            pooled = "mean" if by == "svd" else by
            changes[number] = merging(place, found // kv_heads, pooled)
            told[number] = f"{found} heads merged to {kv_heads} by {by}"
    made, left = keep_in(program, changes, (*RULES, merge_of_part), "spread_heads")
    if made is not program:
        graph = without_unread_parts(made.graph)
        made = made.with_graph(rewrite(graph, [merged_in_common]) if by == "svd" else graph)
    stuck = [
        f"heads merged behind {op.args[0].op.told}, in every step"
        for op in _unmoved(made.graph, made.values("param"))
    ]
    if any(op.name in _MERGES and _is_dequantised(op) for op, _ in made.graph.walk()):
        stuck.append("merged weights that were quantised are floats again")
    notes = _notes(program, told, alone | left) + list(dict.fromkeys(stuck))
    if left or stuck:
        notes.append(_PLACE)
    return made, notes or ["no cache has an axis of KV heads, so none are merged"]


def _is_dequantised(merge: Op) -> bool:
    return merge.args[0].op.name == "dequantize"


def _unmoved(graph: Graph, params: Iterable[Value]) -> Iterator[Op]:
    """The merges that do not depend on parameters alone, those of the state apart."""
    bound = bound_values(graph, params)
    for op in graph.ops:
        inside = op.results[0] not in bound and op.args and op.args[0].op.name != "input"
        if op.name == "merge_heads" and inside:
            yield op
        for region in op.regions:
            yield from _unmoved(region, region_bound(op, bound))


def _places(program: Program, axes: Axes) -> Iterable[tuple[int, int]]:
    """The caches that have heads: the number of the input, and the dimension of its heads."""
    for number, (value, _) in kept_forms(program).items():
        own = _heads(axes, value)
        if ("context",) in axes.of(value) and len(own) == 1:
            yield number, own[0]


def _heads(axes: Axes, value: Value) -> list[int]:
    """The dimensions of a value that are heads."""
    return [d for d, name in enumerate(axes.of(value)) if name in (("kv_heads",), ("heads",))]


def _notes(program: Program, merged: dict[int, str], alone: dict[int, str]) -> list[str | Remark]:
    """What became of every cache, in the order of the inputs."""
    names = {i: program.inputs[i].name for i in merged | alone}
    return [
        Remark(alone[i], name, LEFT_ALONE) if i in alone else f"{name} {merged[i]}"
        for i, name in sorted(names.items())
    ]


def _copies(value: Value, axis: int) -> int:
    """How many neighbours along an axis are copies of each other, as `merge_heads` will see."""
    op, size = value.op, value.type.shape[axis]
    if size < 2:
        return 1
    if op.name == "broadcast_in_dim":
        source = source_of(op, axis)
        return size if source is None else _copies(op.args[0], source)
    if op.name not in lax.MAPS | {"reshape", "transpose", "rope"}:
        return 1
    found = opdef.signature(op)
    own = found.outputs[0][axis]
    if len(own) > 1:  # merged of several, the last of which may be all copies
        inside = [d for d, each in enumerate(found.inputs[0]) if each == own[-1:]]
        last = op.args[0].type.shape[inside[0]] if inside else 1
        return last if inside and _copies(op.args[0], inside[0]) == last else 1
    places = [(arg, array.index(own)) for arg, array in zip(op.args, found.inputs) if own in array]
    return gcd(*(_copies(*each) for each in places)) if places else 1
