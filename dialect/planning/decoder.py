"""The sizes of a program's decoder, read off its named axes and ops, for the cost model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from dialect.matching.values import through
from dialect.naming.axes import Axes, Names, leaves_of
from dialect.ops.quant import FORMS
from dialect.planning.decoder_shape import DecoderShape
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values, dependents
from rewrite.ir import Graph, Op, Value, bits
from rewrite.program import Program

_HEADS = ("heads", "kv_heads")
_PRODUCTS = ("contract", "ragged_dot_general")


def decoder_shape(program: Program, axes: Axes) -> DecoderShape:
    """The sizes of the decoder whose step `program` is; a part that was not recognised has size 0.

    `axes`: the named axes of the program's values (`dialect.naming.axes`).
    """
    sizes = axes.sizes()
    counted = list(_with_trips(program))
    products = [(op, trips) for op, trips in counted if op.name in _PRODUCTS]
    tables = _inputs_over(program, axes, "param", "vocab")
    # One axis is both `context` and `time` if the prompt is as long as the cache.
    caches = _inputs_over(program, axes, "state", "context", "time")
    attentions = sum(trips for op, trips in counted if _is_attention(axes, op))
    layers = attentions or sizes.get("layers", 1)
    heads, kv_heads = _heads(sizes, caches, axes) if attentions else (0, 1)
    factors = next(_factors(products, axes), None)
    routing = _routing(products, axes)
    experts = sizes.get("experts", 1) if routing else 1
    d_ff, ffn_matrices = _ffn(axes, counted, experts * layers)
    return DecoderShape(
        batch=sizes.get("batch", 1),
        time=sizes.get("time", 1),
        context=max(sizes.get("context", 0), sizes.get("time", 1)) if attentions else 0,
        layers=layers,
        d_model=sizes.get("d_model", 0),
        d_ff=d_ff,
        heads=heads,
        kv_heads=kv_heads,
        d_head=sizes.get("d_head", 1) if attentions else 0,
        vocab=sizes.get("vocab", 0),
        ffn_matrices=ffn_matrices,
        experts=experts,
        experts_per_token=(_experts_chosen(axes, counted) or experts) if routing else 1,
        routing=routing,
        parallel=not routing and not _is_serial(program.graph, axes),
        logits_time=_logits_time(products, axes, sizes),
        tied_embedding=len(tables) == 1,
        **_dtypes(tables, caches, factors, counted),
        unknown=tuple(_unknown(products, axes, sizes)),
    )


def _inputs_over(program: Program, axes: Axes, role: str, *names: str) -> list[Value]:
    """The inputs of this role that have one of these axes."""
    return [
        value
        for value, declared in zip(program.graph.inputs, program.step_inputs)
        if declared.role == role and any(_has(axes.of(value), name) for name in names)
    ]


def _ffn(axes: Axes, counted: list[tuple[Op, int]], networks: int) -> tuple[int, int]:
    """(d_ff, matrices) of one of so many feed-forward networks."""
    sizes = axes.sizes()
    least = 2 + any(op.name == "gate" for op, _ in counted)
    if "d_ff_per_head" in sizes:  # the feed-forward weights are fused with those of the heads
        return sizes["d_ff_per_head"] * _head_slots(axes, counted), least
    d_ff = sizes.get("d_ff", 0)
    elements = sum(  # a fused pair of matrices counts as two
        arg.type.size * trips
        for op, trips in counted
        if op.name in _PRODUCTS
        for arg in op.args
        if _weight_over(axes, arg, "d_ff")
    )
    per_matrix = max(1, networks * sizes.get("d_model", 0) * d_ff)
    return d_ff, max(least, round(elements / per_matrix))


def _dtypes(
    tables: list[Value],
    caches: list[Value],
    factors: tuple[Value, Value] | None,
    counted: list[tuple[Op, int]],
) -> dict[str, Any]:
    """The fields of a `DecoderShape` that follow from the dtypes of its arrays."""
    return {
        "multiplies": _common_form(*factors) if factors else "bf16",
        "weight_bytes_per_element": _bytes(factors[1]) if factors else 2,
        "embedding_bytes_per_element": _bytes(tables[0]) if tables else 2,
        "activation_bytes_per_element": _activation_bytes(counted),
        "cache_bytes_per_element": _bytes(caches[0]) if caches else 2,
    }


def _is_attention(axes: Axes, op: Op) -> bool:
    """Attention, or the softmax of attention that was not recognised."""
    weights = op.name == "softmax" and "context" in axes.of(op.results[0])[-1]
    return weights or op.name == "attend"


def _is_serial(graph: Graph, axes: Axes) -> bool:
    """Whether the feed-forward network of a layer reads the layer's attention.

    In a parallel block it does not: both read the same activations, as in GPT-J (Wang & Komatsuzaki
    2021). The ops of a graph stand behind their arguments, so the last of a kind are those of the
    last layer: the first may have been precomputed.
    """
    attentions = [op for op in graph.ops if _is_attention(axes, op)]
    hidden = [op for op in graph.ops if _is_hidden(axes, op)]
    if attentions and hidden:
        return hidden[-1].results[0] in dependents(graph, attentions[-1].results)
    return any(_is_serial(region, axes) for op in graph.ops for region in op.regions)


def _is_hidden(axes: Axes, op: Op) -> bool:
    """Whether an op gives the hidden values of a feed-forward network."""
    product = op.name in _PRODUCTS and any(_weight_over(axes, arg, "d_ff") for arg in op.args)
    gives = product and _has(axes.of(op.results[0]), "d_ff")
    return gives or op.name in ("gate", "activate")


def _heads(sizes: dict[str, int], caches: list[Value], axes: Axes) -> tuple[int, int]:
    """(heads, KV heads). Layers may differ in both, so the maxima need not divide."""
    heads = sizes.get("heads", sizes.get("kv_heads", 1) * sizes.get("q_per_kv", 1))
    is_multi_head = any(_has(axes.of(value), "heads") for value in caches)
    kv_heads = sizes.get("kv_heads", heads if is_multi_head else 1)
    return heads, kv_heads if heads % kv_heads == 0 else heads


def _routing(products: list[tuple[Op, int]], axes: Axes) -> str:
    """How a mixture of experts is computed (`ROUTINGS`); "" if there is none."""
    mixed = [op for op, _ in products if any(_weight_over(axes, x, "experts") for x in op.args)]
    mixed = [op for op in mixed if any(_weight_over(axes, x, "d_ff") for x in op.args)]
    if any(op.name == "ragged_dot_general" for op in mixed):
        return "ragged"
    if any(not _has(axes.of(op.results[0]), "experts") for op in mixed):
        return "summed"
    return "dense" if mixed else ""


def _experts_chosen(axes: Axes, counted: list[tuple[Op, int]]) -> int:
    """The number of experts that a token is routed to; 0 if none are chosen."""
    counts = (
        op.types[0].shape[op["axis"]]
        for op, _ in counted
        if op.name == "top_k" and "experts" in axes.of(op.args[0])[op["axis"]]
    )
    return max(counts, default=0)


def _unknown(products: list[tuple[Op, int]], axes: Axes, sizes: dict[str, int]) -> Iterator[str]:
    """What a `DecoderShape` cannot describe of the program's experts."""
    weights = {x for op, _ in products for x in op.args if _weight_over(axes, x, "d_ff")}
    mixed = {x for x in weights if _has(axes.of(x), "experts")}
    if mixed and mixed != weights:
        yield "some feed-forward layers have experts and some have none"
    if "experts" in sizes and not mixed:
        yield f"{sizes['experts']} experts whose weights were not found"


def _head_slots(axes: Axes, counted: list[tuple[Op, int]]) -> int:
    """The number of heads over which fused feed-forward hidden values are distributed."""
    hidden = [op.results[0] for op, _ in counted if op.name in ("gate", "activate")]
    return max(
        math.prod(leaf.size for leaf in leaves_of(axes.at(value)) if leaf.name in _HEADS)
        for value in hidden
        if _has(axes.of(value), "d_ff_per_head")
    )


def _with_trips(program: Program) -> Iterator[tuple[Op, int]]:
    """(op, executions per step) for every op that does not run once in `prepare`."""
    stack = [(program.graph, frozenset(program.values("param")), 1)]
    while stack:
        graph, inputs, trips = stack.pop()
        bound = bound_values(graph, inputs)
        for op in graph.ops:
            if op.results[0] in bound:
                continue
            yield op, trips
            inner = region_bound(op, bound)
            stack += [(region, inner, trips * op.get("length", 1)) for region in op.regions]


def _has(names: Names, name: str) -> bool:
    return any(name in dimension for dimension in names)


def _weight_over(axes: Axes, value: Value, name: str) -> bool:
    names = axes.of(value)
    return _has(names, name) and not _has(names, "batch") and _has(names, "d_model")


def _logits_time(products: list[tuple[Op, int]], axes: Axes, sizes: dict[str, int]) -> int:
    """Positions per sequence for which logits are computed."""
    rows = (
        op.results[0].type.size // sizes["vocab"]
        for op, _ in products
        if _has(axes.of(op.results[0]), "vocab")
    )
    return max(1, max(rows, default=1) // sizes.get("batch", 1))


def _factors(products: list[tuple[Op, int]], axes: Axes) -> Iterator[tuple[Value, Value]]:
    """(activations, stored weights) of the products of a layer."""
    for op, _ in products:
        x, y = op.args[:2]
        for values, weights in ((y, x), (x, y)):
            if any(_weight_over(axes, weights, name) for name in ("d_ff", *_HEADS)):
                yield values, through(weights, "dequantize")


def _common_form(values: Value, weights: Value) -> str:
    """The integer form that both factors have: activations rounded to it and weights stored in it.
    Otherwise "bf16"."""
    rounded = through(values, "reshape").op
    form = rounded.get("form", "int8") if rounded.name == "rounded" else ""
    return form if form and FORMS[form].holds(weights.type.dtype) else "bf16"


def _activation_bytes(counted: list[tuple[Op, int]]) -> float:
    """Bytes per element of the result of attention, or of any product if there is none."""
    ops = [op for name in ("attend", "contract") for op, _ in counted if op.name == name]
    return _bytes(ops[0].results[0]) if ops else 2


def _bytes(value: Value) -> float:
    return bits(value.type.dtype) / 8
