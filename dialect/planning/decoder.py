"""What kind of decoder a program is: its sizes, read off its axes and ops, for the cost model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dialect.matching.values import through
from dialect.naming.axes import Axes, Names, leaves_of
from dialect.ops.quant import FORMS
from dialect.planning.decoder_shape import DecoderShape
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values
from rewrite.ir import Op, Value, bits
from rewrite.program import Program

_NORMS = ("rms_norm", "layer_norm")
_HEADS = ("heads", "kv_heads")
_PRODUCTS = ("contract", "ragged_dot_general")


def decoder_shape(program: Program, axes: Axes) -> DecoderShape:
    """The sizes of the decoder that `program` steps; what was not recognised has size 0."""
    sizes = axes.sizes()
    counted = list(_with_trips(program))
    attentions = sum(trips for op, trips in counted if _is_attention(axes, op))
    layers = attentions or sizes.get("layers", 1)
    inputs = list(zip(program.graph.inputs, program.step_inputs))
    tables = [
        value for value, each in inputs if each.role == "param" and _has(axes.of(value), "vocab")
    ]
    # A prompt as long as the cache makes one axis of both.
    caches = [
        value
        for value, each in inputs
        if each.role == "state" and any(_has(axes.of(value), x) for x in ("context", "time"))
    ]
    products = [(op, trips) for op, trips in counted if op.name in _PRODUCTS]
    factors = next(_factors(products, axes), None)
    norms = sum(trips for op, trips in counted if op.name in _NORMS)
    heads, kv_heads = _heads(sizes, caches, axes) if attentions else (0, 1)
    d_model = sizes.get("d_model", 0)
    joined = sizes.get("d_ff_per_head", 0)  # the feed-forward weights are joined with the heads'
    d_ff = joined * _slots(axes, counted) if joined else sizes.get("d_ff", 0)
    gated = any(op.name == "gate" for op, _ in counted)
    routing = _routing(products, axes)
    experts = sizes.get("experts", 1) if routing else 1
    ffn_weights = _ffn_weights(products, axes) / max(1, experts * d_model * d_ff * layers)
    return DecoderShape(
        batch=sizes.get("batch", 1),
        time=sizes.get("time", 1),
        context=max(sizes.get("context", 0), sizes.get("time", 1)) if attentions else 0,
        layers=layers,
        d_model=d_model,
        d_ff=d_ff,
        heads=heads,
        kv_heads=kv_heads,
        d_head=sizes.get("d_head", 1) if attentions else 0,
        vocab=sizes.get("vocab", 0),
        ffn_matrices=2 + gated if joined else max(2 + gated, round(ffn_weights)),
        experts=experts,
        experts_per_token=(_chosen(axes, counted) or experts) if routing else 1,
        routing=routing,
        parallel=norms - 1 <= layers and not routing,
        logits_time=_logits_time(products, axes, sizes),
        tied_embedding=len(tables) == 1,
        multiplies=_common_form(*factors) if factors else "bf16",
        weight_bytes_per_element=_bytes(factors[1]) if factors else 2,
        embedding_bytes_per_element=_bytes(tables[0]) if tables else 2,
        activation_bytes_per_element=_activation_bytes(counted),
        cache_bytes_per_element=_bytes(caches[0]) if caches else 2,
        unknown=tuple(_unknown(products, axes, sizes)),
    )


def _is_attention(axes: Axes, op: Op) -> bool:
    """Attention, or the weights of one that is not understood."""
    weights = op.name == "softmax" and "context" in axes.of(op.results[0])[-1]
    return weights or op.name == "attend"


def _heads(sizes: dict[str, int], caches: list[Value], axes: Axes) -> tuple[int, int]:
    """(heads, KV heads). Where layers differ in these, the most of each need not divide."""
    heads = sizes.get("heads", sizes.get("kv_heads", 1) * sizes.get("q_per_kv", 1))
    own_heads = any(_has(axes.of(value), "heads") for value in caches)
    kv_heads = sizes.get("kv_heads", heads if own_heads else 1)
    return heads, kv_heads if heads % kv_heads == 0 else heads


def _ffn_weights(products: list[tuple[Op, int]], axes: Axes) -> int:
    """Elements of all weights over d_ff: of all experts, and of fused ones each half."""
    return sum(
        arg.type.size * trips
        for op, trips in products
        for arg in op.args
        if _weight_over(axes, arg, "d_ff")
    )


def _routing(products: list[tuple[Op, int]], axes: Axes) -> str:
    """How a mixture of experts is computed; "" where there is none."""
    mixed = [op for op, _ in products if any(_weight_over(axes, x, "experts") for x in op.args)]
    mixed = [op for op in mixed if any(_weight_over(axes, x, "d_ff") for x in op.args)]
    if any(op.name == "ragged_dot_general" for op in mixed):
        return "ragged"
    if any(not _has(axes.of(op.results[0]), "experts") for op in mixed):
        return "summed"
    return "dense" if mixed else ""


def _chosen(axes: Axes, counted: list[tuple[Op, int]]) -> int:
    """How many of the experts a token is routed to; 0 where none are chosen."""
    found = (
        op.types[0].shape[op["axis"]]
        for op, _ in counted
        if op.name == "top_k" and "experts" in axes.of(op.args[0])[op["axis"]]
    )
    return max(found, default=0)


def _unknown(products: list[tuple[Op, int]], axes: Axes, sizes: dict[str, int]) -> Iterator[str]:
    """What there is of experts that the numbers of a `DecoderShape` do not describe."""
    weights = {x for op, _ in products for x in op.args if _weight_over(axes, x, "d_ff")}
    mixed = {x for x in weights if _has(axes.of(x), "experts")}
    if mixed and mixed != weights:
        yield "feed-forward layers without experts beside those with"
    if "experts" in sizes and not mixed:
        yield f"{sizes['experts']} experts whose weights were not found"


def _slots(axes: Axes, counted: list[tuple[Op, int]]) -> int:
    """Heads among which the hidden values of the feed-forward layer are divided."""
    hidden = [op.results[0] for op, _ in counted if op.name in ("gate", "activate")]
    return max(
        math.prod(leaf.size for leaf in leaves_of(axes.at(value)) if leaf.name in _HEADS)
        for value in hidden
        if _has(axes.of(value), "d_ff_per_head")
    )


def _with_trips(program: Program) -> Iterator[tuple[Op, int]]:
    """Every op of the step with how often it runs; what is done once, in `prepare`, is left out."""
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
    """Positions of each sequence of which the products with the vocabulary give logits."""
    rows = (
        op.results[0].type.size // sizes["vocab"]
        for op, _ in products
        if _has(axes.of(op.results[0]), "vocab")
    )
    return max(1, max(rows, default=1) // sizes.get("batch", 1))


def _factors(products: list[tuple[Op, int]], axes: Axes) -> Iterator[tuple[Value, Value]]:
    """(values, weights) of the products that make up most of a layer, the weights as stored."""
    for op, _ in products:
        x, y = op.args[:2]
        for values, weights in ((y, x), (x, y)):
            if any(_weight_over(axes, weights, name) for name in ("d_ff", *_HEADS)):
                yield values, through(weights, "dequantize")


def _common_form(values: Value, weights: Value) -> str:
    """The form that values are rounded to, if it holds their weights; else they are floats."""
    rounded = through(values, "reshape").op
    form = rounded.get("form", "int8") if rounded.name == "rounded" else ""
    return form if form and FORMS[form].holds(weights.type.dtype) else "bf16"


def _activation_bytes(counted: list[tuple[Op, int]]) -> float:
    """Of what attention gives, or of any product where there is none."""
    made = [op for name in ("attend", "contract") for op, _ in counted if op.name == name]
    return _bytes(made[0].results[0]) if made else 2


def _bytes(value: Value) -> float:
    return bits(value.type.dtype) / 8
