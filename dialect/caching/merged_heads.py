"""Caches with fewer KV heads: exact where a cache repeats its heads, else by merging heads.

cache  ->  spread_heads(merge_heads(cache)), for the inputs and outputs of the step

`spread_heads` moves from the cache to attention, whose groups of query heads grow. `merge_heads` of
new keys and values moves through linear ops to the weights, where it depends on parameters alone.
So `prepare` merges the weights, and `adapt` an existing cache. Since keys and values are linear in
their weights, that is the cache that merged weights would have written. The weights of queries and
outputs stay.

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
    "heads are merged best by a cache_layout{kv_heads=...} after carry_cache, before merge_dots, "
    "quantize and other layouts"
)


def with_real_heads(program: Program) -> tuple[Program, list[str | Remark]]:
    """`program` with every cache of repeated KV heads storing each head once, and notes.

    Exact for a cache that starts empty and that only the step writes. `adapt` refuses a cache
    whose copies of a head differ (`dialect.prepared.state`).
    """
    counts: dict[int, int] = {}
    axes = infer_axes(program)
    places = dict(_places(program, axes))
    for op, number in writes(program):
        if number in places:
            new = op.args[1]  # of one layer, maybe: then it has fewer axes than the state
            head_axes = _heads(axes, new)
            copies = _copies(new, head_axes[0]) if len(head_axes) == 1 else 1
            counts[number] = gcd(counts.get(number, 0), copies)
    changes = {
        number: merging(places[number], count, "same")
        for number, count in counts.items()
        if count > 1
    }
    result, left_alone = keep_in(program, changes, RULES, "spread_heads")
    merge = next(_merges_inside(result.graph, kept_forms(program)), None)
    if merge is not None:
        result, reason = program, f"{merge.args[0].op.told} may compute different copies"
        left_alone = dict.fromkeys(changes, reason)
    notes = {i: f"stores each head {counts[i]} times; kept once" for i in changes}
    return result, _notes(program, notes, left_alone)


def _merges_inside(graph: Graph, forms: Mapping[int, tuple[Value, Value]]) -> Iterator[Op]:
    """The merges of heads inside a step, other than those of the state that enters it."""
    entering = {value for value, _ in forms.values()}
    for op, _ in graph.walk():
        if op.name == "merge_heads" and op.args[0] not in entering:
            yield op


def with_fewer_heads(
    program: Program, kv_heads: int, by: str
) -> tuple[Program, list[str | Remark]]:
    """`program` with its KV heads merged to `kv_heads` of them, and notes.

    `by` is `mean`, `first` (of every group of neighbours) or `svd` (`shared_heads`, of the weights
    only: an existing cache then gets the mean, which differs from what those weights would write).
    """
    left_alone: dict[int, str] = {}
    changes: dict[int, Change] = {}
    merged, forms = {}, kept_forms(program)
    for number, place in _places(program, infer_axes(program)):
        heads = forms[number][0].type.shape[place]
        if heads == kv_heads:
            left_alone[number] = f"it has {heads} KV heads already"
        elif kv_heads < 1 or heads % kv_heads:
            left_alone[number] = f"its {heads} heads are not divided by {kv_heads}"
        else:
            pooled = "mean" if by == "svd" else by
            changes[number] = merging(place, heads // kv_heads, pooled)
            merged[number] = f"{heads} heads merged to {kv_heads} by {by}"
    result, still_read = keep_in(program, changes, (*RULES, merge_of_part), "spread_heads")
    if result is not program:
        graph = without_unread_parts(result.graph)
        result = result.with_graph(rewrite(graph, [merged_in_common]) if by == "svd" else graph)
    problems = [
        f"heads are merged after {op.args[0].op.told}, in every step"
        for op in _unmoved(result.graph, result.values("param"))
    ]
    if any(op.name in _MERGES and _is_dequantised(op) for op, _ in result.graph.walk()):
        problems.append("merged weights that were quantised are floats again")
    notes = _notes(program, merged, left_alone | still_read) + list(dict.fromkeys(problems))
    if still_read or problems:
        notes.append(_PLACE)
    return result, notes or ["no cache has an axis of KV heads, so none are merged"]


def _is_dequantised(merge: Op) -> bool:
    return merge.args[0].op.name == "dequantize"


def _unmoved(graph: Graph, params: Iterable[Value]) -> Iterator[Op]:
    """The merges that do not depend on parameters alone, other than those of the state."""
    bound = bound_values(graph, params)
    for op in graph.ops:
        inside = op.results[0] not in bound and op.args and op.args[0].op.name != "input"
        if op.name == "merge_heads" and inside:
            yield op
        for region in op.regions:
            yield from _unmoved(region, region_bound(op, bound))


def _places(program: Program, axes: Axes) -> Iterable[tuple[int, int]]:
    """The caches with one axis of heads: the number of the input and that dimension."""
    for number, (value, _) in kept_forms(program).items():
        head_axes = _heads(axes, value)
        if ("context",) in axes.of(value) and len(head_axes) == 1:
            yield number, head_axes[0]


def _heads(axes: Axes, value: Value) -> list[int]:
    """The dimensions of a value that are axes of heads."""
    return [d for d, name in enumerate(axes.of(value)) if name in (("kv_heads",), ("heads",))]


def _notes(
    program: Program, merged: dict[int, str], left_alone: dict[int, str]
) -> list[str | Remark]:
    """A note on every cache, in the order of the inputs."""
    names = {i: program.inputs[i].name for i in merged | left_alone}
    return [
        Remark(left_alone[i], name, LEFT_ALONE) if i in left_alone else f"{name} {merged[i]}"
        for i, name in sorted(names.items())
    ]


def _copies(value: Value, axis: int) -> int:
    """The number of neighbours along an axis that are copies of each other; 1 if none are."""
    op, size = value.op, value.type.shape[axis]
    if size < 2:
        return 1
    if op.name == "broadcast_in_dim":
        source = source_of(op, axis)
        return size if source is None else _copies(op.args[0], source)
    if op.name not in lax.MAPS | {"reshape", "transpose", "rope"}:
        return 1
    signature = opdef.signature(op)
    letters = signature.outputs[0][axis]
    if len(letters) > 1:  # merged from several axes; the elements of the last may be copies
        minor = [d for d, x in enumerate(signature.inputs[0]) if x == letters[-1:]]
        size = op.args[0].type.shape[minor[0]] if minor else 1
        return size if minor and _copies(op.args[0], minor[0]) == size else 1
    sources = [
        (arg, array.index(letters))
        for arg, array in zip(op.args, signature.inputs)
        if letters in array
    ]
    return gcd(*(_copies(arg, d) for arg, d in sources)) if sources else 1
