"""What the axes are: names by what the recognised ops do with them.

An `attend` knows the context and d_head, a `take` the vocabulary, a `gate` d_ff, a product with a
weight per token its experts. The most telling op wins; every name keeps its provenance. A hint of
the user's (`dialect.naming.axis_hints`) comes before all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dialect.matching.values import parts_along, through, unrounded
from dialect.naming.axis import HEADS, Axes, Axis, leaves, leaves_of
from dialect.ops.control import given_inside, scan_parts
from dialect.ops.scores import PAIRS
from dialect.staging.binding import region_bound
from rewrite.dataflow import bound_values, dependents
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import signature, traits
from rewrite.program import Program
from rewrite.signature import Array, Signature, letters

CHOOSE = {"argmax": ("vocab", 20), "top_k": ("experts", 48)}  # what they choose from
_OF_HEADS = (*HEADS, "d_head")  # what stands before them in a dimension is no width
_FUSED = {"d_head": {2: "kv", 3: "qkv"}, "d_ff": {2: "gate_up"}}


def name_axes(axes: Axes, program: Program) -> None:
    """Gives every axis the names that the program's ops, outputs and hints have for it."""
    known = list(_with_bound(program.graph, frozenset(program.values("param"))))
    vectors = _vectors(axes, program)
    _name_tables(axes, program)
    blocks = axes.joined(x for op, bound in known for x in op.results if x not in bound)
    for op, bound in known:
        _name_op(axes, op, bound, blocks)
        _name_width(axes, op, bound, vectors)
    _name_heads(axes, program)
    for op, _ in known:
        if op.name in ("gate", "activate"):
            beside = {x.name for x in leaves_of(axes.at(op.results[0]))} & {"heads", "kv_heads"}
            name = "d_ff_per_head" if beside else "d_ff"
            without_name = [
                unnamed
                for dimension in axes.at(op.results[0])
                if (unnamed := _unnamed(dimension)) and leaves(dimension)[-1].name not in _OF_HEADS
            ]
            for dimension in without_name[:-1]:  # which of as many units it is
                _call(dimension, "experts", 45, op)
            for dimension in without_name[-1:]:
                _call(dimension, name, 45, op)
    _name_outputs(axes, program)
    _name_cuts(axes, [op for op, _ in known])
    _name_vectors(axes, program)


def _with_bound(graph: Graph, params: frozenset[Value]) -> Iterator[tuple[Op, frozenset[Value]]]:
    """Every op, with the values of its graph that depend on parameters alone."""
    bound = bound_values(graph, params)
    for op in graph.ops:
        yield op, bound
        for region in op.regions:
            yield from _with_bound(region, region_bound(op, bound))


def _call(axes: Iterable[Axis], name: str, priority: int, op: Op) -> None:
    for leaf in leaves_of(axes):
        if leaf.size > 1:
            leaf.call(name, priority, op.told)


def _unnamed(axis: Axis) -> list[Axis]:
    """The parts of an axis that come from parameters and have no name."""
    return [x for x in leaves(axis) if x.size > 1 and "param" in x.roles and not x.names]


def _roles(axes: Iterable[Axis]) -> set[str]:
    return {role for leaf in leaves_of(axes) for role in leaf.roles}


def _name_op(axes: Axes, op: Op, bound: frozenset[Value], blocks: set[Axis]) -> None:
    """Names that an op's meaning gives, the most telling ops with the highest priority."""
    if op.name == "attend":
        _name_attend(axes, op)
    elif op.name == "softmax":
        _name_weights(axes, op)
    elif op.name == "scan":
        scanned = op.args[scan_parts(op)[2]]
        _call([axes.at(arg)[0] for arg in scanned], "layers", 60, op)
    elif op.name in ("cache_read", "paged"):  # each says of what it reads some
        _call(axes.at(op.args[0])[:1], *signature(op).inputs[0][0], 60, op)
    elif op.get("page"):  # puts the context in pages
        _call([axes.at(op.args[0])[-1 - op.get("behind", 1)]], "context", 60, op)
    elif op.name in ("rings", "unwound"):
        arrays = zip((*op.args[:-1], *op.results[:-1]), op["axes"] * 2)
        _call([axes.at(value)[axis] for value, axis in arrays], "context", 85, op)
    elif op.name in ("rms_norm", "layer_norm") and not _is_gated(op.args[0]):
        # What is normalised as it comes from a product is no residual stream, unless others say so.
        *others, last = axes.at(op.results[0])
        name, priority = ("latent", 12) if _is_product(op.args[0]) else ("d_model", 30)
        if "param" not in _roles(others):  # else each of them is normalised by itself: heads
            _call([last], name, priority, op)
    elif op.name == "contract":
        _name_experts(axes, op, bound, blocks)
        _name_readers(axes, op, bound)
        if not any(arg in bound for arg in op.args):
            _name_memory(axes, op, Signature.parse(op["spec"]))
    elif _sums_a_product(op):
        _name_memory(axes, op.args[0].op, _as_product(op))
    elif op.name in CHOOSE and op.results[0] not in bound:
        chosen_from = _chosen_from(axes, op)
        if "param" in _roles(chosen_from):
            _call(chosen_from, *CHOOSE[op.name], op)
    elif traits(op).counts:
        _call(axes.at(op.args[1])[-3:-2], "experts", 48, op)  # of stacked layers, too


def _is_product(value: Value) -> bool:
    """Whether a value is a product, rounded or not."""
    known = traits(unrounded(value).op)
    return known.sums and known.linear == "each"


def _is_gated(value: Value) -> bool:
    """Whether a value is one activation times another, element by element: within a block."""
    op = unrounded(value).op
    return op.name in ("gate", "mul") and all(x.type.shape == value.type.shape for x in op.args)


def _name_experts(axes: Axes, op: Op, bound: frozenset[Value], blocks: set[Axis]) -> None:
    """Where each weight meets activations of its own, the weights are experts; where these are
    blocks of one width, they are block-diagonal."""
    spec = Signature.parse(op["spec"])
    for weight, array in zip(op.args, spec.inputs):
        if weight not in bound or op.results[0] in bound:
            continue
        shared = set(letters(spec.inputs[0])) & set(letters(spec.inputs[1]))
        of_vector = _called(axes, weight, array, shared & set(letters(spec.outputs[0])))
        if len(array) > len(of_vector) + 1:  # a matrix for each; a scale has none
            _call((leaf for leaf in leaves_of(of_vector) if leaf not in blocks), "experts", 48, op)


def _name_readers(axes: Axes, op: Op, bound: frozenset[Value]) -> None:
    """Axes of activations that are multiplied by a state, but not its own: heads that read it. They
    meet weights of their own, too, where what is kept is latents, and are no experts for that."""
    if any(arg in bound for arg in op.args):
        return
    spec = Signature.parse(op["spec"])
    pairs = list(zip(op.args, spec.inputs))
    for (value, array), (other, array_of_other) in (pairs, pairs[::-1]):
        alone = set(letters(array)) - set(letters(array_of_other))
        of_state = set(letters(array_of_other)) - set(letters(array))
        if "state" not in _roles(_called(axes, other, array_of_other, of_state)):
            continue
        for leaf in leaves_of(_called(axes, value, array, alone)):
            if "param" in leaf.roles and "state" not in leaf.roles and leaf.size > 1:
                leaf.call("heads", 49, op.told)


def _name_memory(axes: Axes, op: Op, spec: Signature) -> None:
    """Axes of a state with a matrix of keys and values for each head, as linear attention and delta
    rules have it, by the product that reads it: "b h k, b h k v -> b h v"."""
    kept = set(letters(spec.outputs[0]))
    for memory, reader in ((0, 1), (1, 0)):
        array, other = spec.inputs[memory], set(letters(spec.inputs[reader]))
        made = [
            (axis, dimension[0])
            for axis, dimension in zip(axes.at(op.args[memory]), array)
            if dimension and axis.size > 1 and {"param", "state"} <= _roles([axis])
        ]
        heads = [axis for axis, letter in made if letter in other & kept]
        keys = [axis for axis, letter in made if letter in other - kept]
        values = [axis for axis, letter in made if letter in kept - other]
        if heads and keys and values:
            _call(heads, "heads", 47, op)
            _call([*keys, *values], "d_head", 47, op)


def _vectors(axes: Axes, program: Program) -> set[Axis]:
    """The axes of the states that are a vector for each sequence."""
    states = (axes.at(value) for value in program.values("state"))
    return {leaf for held in states if len(held) == 2 for leaf in leaves_of(held[1:])}


def _name_width(axes: Axes, op: Op, bound: frozenset[Value], vectors: set[Axis]) -> None:
    """The width of a state of a vector, by the product that leads from it back to the stream."""
    known = traits(op)
    is_product = known.sums and known.linear == "each" and op.results[0] not in bound
    if is_product and _has(axes, op.results[0], "d_model"):
        for weight, array in zip(op.args, signature(op).inputs):
            if weight in bound:
                summed = _called(axes, weight, array, set(signature(op).summed))
                _call([leaf for leaf in leaves_of(summed) if leaf in vectors], "d_ff", 8, op)


def _has(axes: Axes, value: Value, name: str) -> bool:
    return any(leaf.name == name for leaf in leaves_of(axes.at(value)))


def _sums_a_product(op: Op) -> bool:
    """Whether an op sums, along axes, what two arrays are multiplied to: a contraction written
    out."""
    known = traits(op)
    if not (known.sums and known.linear == "all" and op.get("axes") and op.args):
        return False
    inner = traits(op.args[0].op)
    return inner.linear == "each" and inner.commutes


def _as_product(op: Op) -> Signature:
    """What a sum of elementwise products contracts, by the axes of its factors that are not 1."""
    factors = [
        tuple((f"d{number}",) if size > 1 else () for number, size in enumerate(arg.type.shape))
        for arg in op.args[0].op.args
    ]
    result = [(f"d{n}",) for n in range(op.args[0].type.rank) if n not in op["axes"]]
    return Signature(tuple(factors), (tuple(result),))


def _called(axes: Axes, value: Value, array: Array, names: set[str]) -> list[Axis]:
    """The axes of a value that a signature calls by these letters."""
    pairs = zip(axes.at(value), array)
    return [axis for axis, dimension in pairs if dimension and dimension[0] in names]


def _name_attend(axes: Axes, op: Op) -> None:
    signature = Signature.parse(op["axes"])
    named: dict[str, Axis] = {}
    for value, array in zip((*op.args, *op.results), (*signature.inputs, *signature.outputs)):
        for axis, dimension in zip(axes.at(value), array):
            if dimension and axis.size > 1:
                named.setdefault(dimension[0], axis)
    query, key = (set(letters(array)) for array in signature.inputs[:2])
    shared = [
        x for x in letters(signature.inputs[0]) if x in query & key and x != "k" and x in named
    ]
    alone = [x for x in letters(signature.inputs[0]) if x not in key and x in named]
    heads = {x for x in (*shared, *alone) if "param" in _roles([named[x]])}
    for letter in (*PAIRS.values(), "v"):
        if letter in named:
            _call([named[letter]], "d_head", 90, op)
    if "s" in named:
        _call([named["s"], *_parts_of_context(axes, op)], "context", 90, op)
    grouped = any(x in heads for x in shared)
    for letter in shared:
        several = any(x in heads for x in alone)
        name = ("kv_heads" if several else "heads") if letter in heads else "batch"
        _call([named[letter]], name, 90, op)
    for letter in alone:
        name = ("q_per_kv" if grouped else "heads") if letter in heads else "time"
        _call([named[letter]], name, 90, op)


def _parts_of_context(axes: Axes, op: Op) -> Iterator[Axis]:
    """The contexts that the operands of an attention hold one after another."""
    for value, array in zip(op.args, Signature.parse(op["axes"]).inputs):
        for place in (place for place, axis in enumerate(array) if axis == ("s",)):
            yield from (axes.at(part)[place] for part in parts_along(value, place))


def _name_weights(axes: Axes, op: Op) -> None:
    """A softmax over places of the state: the weights of an attention that is not understood.

    Of its axes, those that parameters made are heads, and those of them that the state has too
    are KV heads; of the rest the state has the batch.
    """
    *others, context = axes.at(op.args[0])
    if "state" not in _roles([context]):
        return
    _call([context], "context", 40, op)
    heads = [leaf for leaf in leaves_of(others) if "param" in leaf.roles]
    kept = [leaf for leaf in heads if "state" in leaf.roles]
    for leaf in leaves_of(others):
        if leaf not in heads:
            _call([leaf], "batch" if "state" in leaf.roles else "time", 40, op)
        elif leaf in kept:
            _call([leaf], "kv_heads" if len(kept) < len(heads) else "heads", 40, op)
        else:
            _call([leaf], "q_per_kv" if kept else "heads", 40, op)


def _name_heads(axes: Axes, program: Program) -> None:
    """What a state over the context has besides, and parameters made: the values of a head."""
    for value, input_ in zip(program.graph.inputs, program.step_inputs):
        here = leaves_of(axes.at(value)) if input_.role == "state" else []
        if any(leaf.name == "context" for leaf in here):
            for leaf in here:
                if "param" in leaf.roles and leaf.size > 1:
                    leaf.call("d_head", 35, f"state {input_.name}")


def _name_tables(axes: Axes, program: Program) -> None:
    """Rows taken by what the caller gives: the vocabulary's, or those of learned positions.

    The vocabulary is the table that has as many rows as there are logits, or the largest one.
    """
    given = _dependents(program.graph, program.values("arg"))
    taken = [
        op
        for op, _ in program.graph.walk()
        if op.name == "take" and "param" in _roles(axes.at(op.args[0])[:1])
    ]
    rows = {op: leaves(axes.at(op.args[0])[0]) for op in taken if op.args[1] in given}
    logits = [
        leaves(axes.at(value)[-1])
        for value, out in zip(program.graph.outputs, program.step_outputs)
        if out.updates is None and value.type.rank
    ]
    sizes = {sum(leaf.size for leaf in last) for last in logits}
    largest = max((op.args[0].type.shape[0] for op in rows), default=0)
    same = [op for op in rows if rows[op] in logits]
    same = same or [op for op in rows if op.args[0].type.shape[0] in sizes]
    same = same or [op for op in rows if op.args[0].type.shape[0] == largest]
    for op in same:
        for axis, name in zip(axes.at(op.args[1]), ("batch", "time")):
            _call([axis], name, 5, op)
    for op in taken:
        _call(axes.at(op.args[0])[:1], "vocab" if op in same else "positions", 50, op)
        _call(axes.at(op.args[0])[1:], "d_model", 15, op)


def _dependents(graph: Graph, of: Iterable[Value]) -> frozenset[Value]:
    """The values that depend on any of these, in loops and choices too."""
    reached = dependents(graph, of)
    for op in graph.ops:
        for region, given in zip(op.regions, given_inside(op) if op.regions else ()):
            reached |= _dependents(region, [x for x, (arg, _) in given.items() if arg in reached])
    return reached


def _chosen_from(axes: Axes, op: Op) -> Sequence[Axis]:
    """The axis whose largest elements an op finds."""
    (place,) = op.get("axes") or (op["axis"],)
    return axes.at(op.args[0])[place : place + 1]


def _name_outputs(axes: Axes, program: Program) -> None:
    """The logits: an output that is no state. Its last axis is the vocabulary, or that which it was
    chosen from."""
    for value, out in zip(program.graph.outputs, program.step_outputs):
        if out.updates is not None:
            continue
        op = through(value, "reshape", "convert_element_type").op
        is_choice = op.name in CHOOSE
        over = _chosen_from(axes, op) if is_choice else axes.at(value)[-1:]
        for leaf in leaves_of(over):
            if "param" in leaf.roles and leaf.size > 1:
                leaf.call("vocab", 49 if is_choice else 20, f"output {out.name}")


def _name_cuts(axes: Axes, ops: list[Op]) -> None:
    """What fused parameters are cut along: query, key and value; gate and up; layers."""
    layers = sum(op.name == "attend" for op in ops)
    places: dict[Axis, set] = {}
    cuts = [(op, leaf) for op in ops for leaf in _cut_along(axes, op)]
    uneven = {leaf for op, leaf in cuts if _is_slice(op) and _parts_in(op, axes, leaf) > 1}
    for op, leaf in cuts:
        places.setdefault(leaf, set()).add(op.get("start_indices", "every"))
    for op, leaf in cuts:
        single = places[leaf] != {"every"} and len(places[leaf]) == 1
        if leaf.names or single or not leaf.roles & {"param", "state"}:
            continue
        beside = {x.name for x in leaves_of(axes.at(op.args[0]))}
        fused = (parts.get(leaf.size) for name, parts in _FUSED.items() if name in beside)
        name = next((other for other in fused if other and leaf not in uneven), None)
        if name is None:
            name = "layers" if leaf.size == layers > 1 else "parts"
        _call([leaf], name, 10, op)


def _is_slice(op: Op) -> bool:
    return op.name == "slice"


def _parts_in(op: Op, axes: Axes, leaf: Axis) -> int:
    """How many places along the first part of an axis a slice takes."""
    sizes = zip(axes.at(op.args[0]), op.types[0].shape)
    return max(size * leaf.size // axis.size for axis, size in sizes if leaf is leaves(axis)[0])


def _cut_along(axes: Axes, op: Op) -> tuple[Axis, ...]:
    """The axes of which an op takes single places, or parts."""
    if op.name == "unstack":
        return leaves(axes.at(op.args[0])[op["axis"]])
    if not _is_slice(op):
        return ()
    sizes = zip(axes.at(op.args[0]), op.types[0].shape)
    return tuple(leaves(axis)[0] for axis, size in sizes if axis.size != size)


def _name_vectors(axes: Axes, program: Program) -> None:
    """A state of one number per sequence: a vector as long as the batch."""
    batch = axes.sizes().get("batch", 0)
    for value, input_ in zip(program.graph.inputs, program.step_inputs):
        if input_.role == "state" and value.type.rank == 1:
            for leaf in leaves(axes.at(value)[0]):
                if not leaf.names and leaf.size == batch > 0:
                    leaf.call("batch", 1, "as long as the batch")
