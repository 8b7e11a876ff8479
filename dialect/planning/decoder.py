"""The sizes of a program's decoder, read off its named axes and ops, for the cost model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dialect.matching.values import rounding, through
from dialect.naming.axes import HEADS, Axes
from dialect.normal.trips import most_trips
from dialect.ops.control import given_inside
from dialect.ops.quant import FORMS
from dialect.planning.blocks import KV_HEADS, PRODUCTS, decoder_blocks, has, is_planned, weight_over
from dialect.planning.decoder_shape import DecoderShape
from dialect.planning.whole_writes import written_whole
from dialect.staging.binding import region_bound
from dialect.staging.parameter_paths import Paths, parameter_paths, paths_in, paths_inside
from dialect.staging.stored_states import StoredState, stored_states
from rewrite.dataflow import bound_values, dependents
from rewrite.ir import Graph, Op, Value, bits
from rewrite.opdef import traits
from rewrite.program import Program

_SPLIT = ("wide", "batch", "d_ff", "experts", "vocab", *HEADS)  # axes that every plan splits


def decoder_shape(program: Program, axes: Axes) -> DecoderShape:
    """The sizes of the decoder whose step `program` is; a part that was not recognised has size 0.

    `axes`: the named axes of the program's values (`dialect.naming.axes`).
    """
    sizes = axes.sizes()
    counted = list(executions(program))
    products = [(op, trips) for op, trips in counted if op.name in PRODUCTS]
    tables = _inputs_over(program, axes, "param", "vocab")
    # One axis is both `context` and `time` if the prompt is as long as the cache.
    caches = _inputs_over(program, axes, "state", "context", "time", "pages")
    blocks = decoder_blocks(program, axes)
    has_attention = any(block.attention for block in blocks)
    layers = list(_factors(products, axes, _outside(program)))
    others = _other_bytes(program, axes, has_attention)
    shape = DecoderShape(
        batch=sizes.get("batch", 1),
        time=sizes.get("time", 1),
        context=max(sizes.get("context", 0), sizes.get("time", 1)) if has_attention else 0,
        d_model=sizes.get("d_model", 0),
        vocab=sizes.get("vocab", 0),
        blocks=blocks,
        logits_time=_logits_time(products, axes, sizes),
        steps=max(1, sum(trips for op, trips in products if _gives_logits(op, axes))),
        tied_embedding=len(tables) == 1,
        looped_in_f32=any(
            trips > 1 and weights.type.dtype == "f32" and op.get("precision") is None
            for op, trips, _, weights in layers
        ),
        **_dtypes(tables, layers[0][2:] if layers else None, counted, axes),
        **_kept(program, [x for x in caches if x.type.size], axes),
        logits_bytes_per_element=_logits_bytes(products, axes),
        other_bytes=others["param", False] + others["state", False],
        split_bytes=others["param", True] + others["state", True],
        other_state_bytes=others["state", False],
        split_state_bytes=others["state", True],
        unknown=tuple(_unknown(products, axes, sizes)),
    )
    return replace(shape, pooled=_pooled(program, axes, shape))


def _pooled(program: Program, axes: Axes, shape: DecoderShape) -> float:
    """How many times the caches of all rows the pools of pages hold that a program brings."""
    pools = _inputs_over(program, axes, "state", "pages")
    elements = sum(value.type.size for value in pools if has(axes.of(value), "d_head"))
    cached = sum(
        shape.batch * attention.context(shape.context) * attention.kv_width * block.stored
        for attention, block in shape.attentions
    )
    return elements / cached if cached else 0


def _other_bytes(program: Program, axes: Axes, has_attention: bool) -> Counter[tuple[str, bool]]:
    """Bytes of the parameters and the state that no block and no table of a decoder holds, by role
    and by whether plans split them."""
    held = set(_held(program.graph, parameter_paths(program), axes))
    of_caches = ("context", "time", "d_head", *HEADS) if has_attention else ()
    caches = _inputs_over(program, axes, "state", *of_caches)
    read = {*program.graph.users, *program.graph.outputs}
    count = Counter[tuple[str, bool]]()
    for value, declared in zip(program.graph.inputs, program.inputs):
        is_other = value in read and declared.name not in held
        if declared.role == "state":
            is_other = value not in caches
        if is_other and declared.role != "arg":
            is_split = any(has(axes.of(value), name) for name in _SPLIT)
            count[declared.role, is_split] += declared.type.bytes
    return count


def _held(graph: Graph, names: Paths, axes: Axes) -> Iterator[str]:
    """The parameters that products of blocks, and lookups in tables, read."""
    paths = paths_in(graph, names)
    for op in graph.ops:
        for arg in op.args:
            is_table = op.name == "take" and weight_over(axes, arg, "vocab")
            if arg in paths and (is_table or op.name in PRODUCTS and is_planned(axes, arg)):
                yield from paths[arg]
        if op.regions:
            yield from _held(op.regions[-1], paths_inside(op, paths), axes)


def _inputs_over(program: Program, axes: Axes, role: str, *names: str) -> list[Value]:
    """The inputs of this role that have one of these axes."""
    return [
        value
        for value, declared in zip(program.graph.inputs, program.step_inputs)
        if declared.role == role and any(has(axes.of(value), name) for name in names)
    ]


def _dtypes(
    tables: list[Value],
    factors: tuple[Value, Value] | None,
    counted: list[tuple[Op, int]],
    axes: Axes,
) -> dict[str, Any]:
    """The fields of a `DecoderShape` that follow from the dtypes of its arrays."""
    return {
        "multiplies": _common_form(*factors) if factors else "bf16",
        "weight_bytes_per_element": _bytes(factors[1]) if factors else 2,
        "embedding_bytes_per_element": _bytes(tables[0]) if tables else 2,
        "activation_bytes_per_element": _activation_bytes(counted, axes),
    }


def _kept(program: Program, caches: list[Value], axes: Axes) -> dict[str, float]:
    """The fields of a `DecoderShape` that follow from how its caches are kept between steps.

    Their bytes are for an element of the keys and values, as both are kept: these may differ in
    dtype, may have fewer heads than the caller's, and scales or the places of their rows beside.
    """
    if not caches:
        return {}
    states = _behind(program, caches)
    arrays = [state.entering for state in states if not state.is_beside]
    elements = sum(value.type.size for value in arrays if has(axes.of(value), "d_head"))
    largest = max((value.type.size for value in arrays), default=0)
    kept = sum(state.entering.type.bytes for state in states)
    moved = shifted = 0.0
    for state, write in written_whole(program, states, axes):
        bytes_of_each = state.entering.type.bytes / state.entering.type.size
        moved += write.elements * write.moves * bytes_of_each
        shifted = max(shifted, write.is_shifted * state.entering.type.bytes)
    return {
        "cache_bytes_per_element": kept / max(elements, largest),
        "cache_moves": moved / kept,
        "cache_shifted": shifted / kept,
    }


def _behind(program: Program, caches: list[Value]) -> list[StoredState]:
    """The parts of the state that these caches are kept as."""
    behind = dependents(program.graph, caches)
    return [x for x in stored_states(program, program.graph) if x.entering in behind]


def whole_write_notes(program: Program, axes: Axes) -> Iterator[str]:
    """The caches that every step writes whole, by the op that does."""
    states = _behind(program, _inputs_over(program, axes, "state", "context"))
    names: dict[str, list[str]] = {}
    for state, write in written_whole(program, states, axes):
        names.setdefault(write.op.told, []).append(state.name)
    for told, written in names.items():
        shown = ", ".join(dict.fromkeys(written))
        yield f"every step writes all places of {shown}, not the new ones alone: {told}"


def _unknown(products: list[tuple[Op, int]], axes: Axes, sizes: dict[str, int]) -> Iterator[str]:
    """What a `DecoderShape` cannot describe of the program's experts."""
    weights = {x for op, _ in products for x in op.args if weight_over(axes, x, "d_ff")}
    if "experts" in sizes and not any(has(axes.of(x), "experts") for x in weights):
        yield f"{sizes['experts']} experts whose weights were not found"


def executions(program: Program) -> Iterator[tuple[Op, int]]:
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
            often = trips * (most_trips(op) or 1)
            stack += [(region, inner, often) for region in op.regions]


def loop_notes(program: Program) -> Iterator[str]:
    """What is assumed of loops that end by a condition, if they have products."""
    for op, _ in executions(program):
        if op.get("cond_consts") is None or not any(_inside(op)):
            continue
        most = most_trips(op)
        assumed = f"as {most} trips, the most that its counter allows" if most else "as one trip"
        yield f"a loop that ends by a condition is planned {assumed}: {op.told}"


def _inside(op: Op) -> Iterator[Op]:
    """The products in the regions of an op."""
    return (inner for region in op.regions for inner, _ in region.walk() if inner.name in PRODUCTS)


def _logits_time(products: list[tuple[Op, int]], axes: Axes, sizes: dict[str, int]) -> int:
    """Positions per sequence for which logits are computed."""
    rows = (
        op.results[0].type.size // sizes["vocab"] for op, _ in products if _gives_logits(op, axes)
    )
    return max(1, max(rows, default=1) // sizes.get("batch", 1))


def _logits_bytes(products: list[tuple[Op, int]], axes: Axes) -> float:
    """Bytes of a logit as the product leaves it, in which its partial sums are added."""
    return max((_bytes(op.results[0]) for op, _ in products if _gives_logits(op, axes)), default=4)


def _gives_logits(op: Op, axes: Axes) -> bool:
    return has(axes.of(op.results[0]), "vocab")


def _factors(
    products: list[tuple[Op, int]], axes: Axes, outside: Mapping[Value, Value]
) -> Iterator[tuple[Op, int, Value, Value]]:
    """(product, its trips, activations, stored weights) of the products of a layer."""
    for op, trips in products:
        x, y = op.args[:2]
        for values, weights in ((y, x), (x, y)):
            if any(weight_over(axes, weights, name) for name in ("d_ff", *KV_HEADS)):
                yield op, trips, values, _stored(weights, outside)


def _outside(program: Program) -> dict[Value, Value]:
    """What every input of a loop or a branch is given, outside of it."""
    regions = (given for op, _ in program.graph.walk() for given in given_inside(op))
    return {inner: value for given in regions for inner, (value, _) in given.items()}


def _stored(weight: Value, outside: Mapping[Value, Value]) -> Value:
    """The narrowest value that a weight is converted from: what `stage` keeps of it."""
    narrowest = weight
    while (source := outside.get(weight, _source(weight))) != weight:
        weight = source
        if bits(weight.type.dtype) < bits(narrowest.type.dtype):
            narrowest = weight
    return narrowest


def _source(weight: Value) -> Value:
    """What a weight is in another dtype or in another order; itself if it is neither."""
    op, known = weight.op, traits(weight.op)
    is_form = known.converts or known.moves and len(op.args) == 1
    return op.args[0] if is_form else through(weight, "dequantize")


def _common_form(values: Value, weights: Value) -> str:
    """The integer form that both factors have: activations rounded to it and weights stored in it.
    Otherwise "bf16"."""
    steps = rounding(through(values, "reshape"))
    form = steps["form"] if steps else ""
    return form if form and FORMS[form].holds(weights.type.dtype) else "bf16"


def _activation_bytes(counted: list[tuple[Op, int]], axes: Axes) -> float:
    """Bytes per element of a product's result in the residual stream, in which its partial sums are
    added; without one of the result of attention, or of any product."""
    ops = [op for name in ("attend", "contract") for op, _ in counted if op.name == name]
    in_stream = [op for op in ops if has(axes.of(op.results[0]), "d_model")]
    return _bytes((in_stream or ops)[0].results[0]) if ops else 2


def _bytes(value: Value) -> float:
    return bits(value.type.dtype) / 8
