"""absorb: keys and values that a weight expands from a latent are not expanded.

attend(q, x . w, x . u)  ->  attend(q . w, x, x) . u

The weight of the keys goes to the query, that of the values to the result, so that attention reads
the latents as they are cached, which all heads share (DeepSeek-AI 2024, arXiv:2405.04434, section
2.1). Where a key has another part beside an expanded one, such as a rotary key that all heads
share, each part is a pair of query and key of its own.

In decode, nearly all work is to expand the latents of the whole context for one new position. In a
long prefill each is expanded for many, whose queries would become as wide as a latent. So both
forms are priced, by the longer of computing and reading each product on the chip; by FLOPs where
the chip is not known. The cheaper one is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import jax.numpy as jnp

from dialect.machine.mesh import Topology
from dialect.matching.operands import Operand, bare
from dialect.matching.values import REALS, cut, parts_along
from dialect.ops.attend import names_of, pairs_of
from dialect.ops.nn import Traced
from dialect.ops.scores import CONTEXT, PAIRS
from dialect.recognition.expansions import expansion, multiplied, one_context, parts_of_context
from dialect.reports.op_cost import cost_of
from rewrite.dataflow import rebuilt
from rewrite.driver import rewrite
from rewrite.ir import Graph, Op, Value
from rewrite.opdef import make, with_args
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Signature, letters
from rewrite.target import Target


@dataclass(frozen=True)
class Absorb(Pass):
    """Attends latents as they are cached, where that costs less than expanding them."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        notes: list[str] = []
        graph = rewrite(_with_latents(program.graph, target, notes), ())  # equal ops are one
        notes = notes or ["no keys or values are expanded from a latent"]
        return self.recorded(program.with_graph(graph), *dict.fromkeys(notes))


def _with_latents(graph: Graph, target: Target, notes: list[str]) -> Graph:
    """`graph` with latents attended where it pays, in the bodies of loops too."""
    chosen = {op for op in graph.ops if _pays(op, graph, target, notes)}

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        regions = tuple(_with_latents(region, target, notes) for region in op.regions)
        moved = with_args(op, args, regions)
        return (_absorbed(moved),) if op in chosen else moved.results

    return rebuilt(graph, visit)


def _absorbed(op: Op) -> Value:
    """What stands for an attention after all rules; its own result where none applies."""
    value = op.results[0]
    for rule in RULES:
        after = rule.apply(value.op) if value.op.name in rule.roots else None
        value = after if isinstance(after, Value) else value
    return value


# What both forms cost.


def _pays(op: Op, graph: Graph, target: Target, notes: list[str]) -> bool:
    """Whether to attend latents costs less than to expand them; with a note on both."""
    value = _absorbed(op)
    if value == op.results[0]:
        return False
    absorbed, expanded = (
        _cost(ops, target) for ops in (_added(value, graph), _no_longer_read(op, graph))
    )
    unit, is_less = "us on one chip" if target.topology else "FLOPs", absorbed < expanded
    form = "attended as they are" if is_less else "left expanded"
    notes.append(
        f"latents are {form}: {absorbed:,.0f} {unit} as they are, {expanded:,.0f} expanded"
    )
    return is_less


def _cost(ops: Iterator[Op], target: Target) -> float:
    """The longer of computing and reading each op, in microseconds of one chip; FLOPs where the
    chip is not known."""
    costs = [cost_of((op,)) for op in ops]
    if not target.topology:
        return sum(cost.flops for cost in costs)
    chip = Topology.parse(target.topology).chip
    return 1e6 * sum(
        max(cost.flops / chip.bf16_flops_per_s, cost.bytes / chip.hbm_bytes_per_s) for cost in costs
    )


def _added(value: Value, graph: Graph) -> Iterator[Op]:
    """The ops of a value that a graph does not have."""
    seen, stack = set(graph.ops), [value.op]
    while stack:
        op = stack.pop()
        if op.args and op not in seen:
            seen.add(op)
            yield op
            stack += [arg.op for arg in op.args]


def _no_longer_read(op: Op, graph: Graph) -> Iterator[Op]:
    """An op and those of which nothing else is read, were it to go."""
    gone, stack = {op}, [op]
    while stack:
        yield (last := stack.pop())
        for source in dict.fromkeys(arg.op for arg in last.args if arg.op.args):
            users = {user for value in source.results for user, _ in graph.users.get(value, ())}
            is_output = not {*graph.outputs}.isdisjoint(source.results)
            if source not in gone and users <= gone and not is_output:
                gone.add(source)
                stack.append(source)


# Rules: weights move from keys and values to queries and results.

_FINITE = ("finite parameters", "finite activations")  # sums are taken in another order


def _example(q: Any, x: Any, w: Any, u: Any) -> Any:
    keys, values = (jnp.einsum("bsc,chk->bshk", x, weight) for weight in (w, u))
    axes = "b t h k, b s h k, b s h v -> b t h v"
    return Traced["attend"](q, keys, values, axes=axes)


def _example_in_parts(q: Any, x: Any, w: Any, r: Any, v: Any) -> Any:
    keys = jnp.einsum("bsc,chk->bshk", x, w)
    shared = jnp.broadcast_to(r[:, :, None], (*keys.shape[:3], r.shape[-1]))
    axes = "b t h k, b s h k, b s h v -> b t h v"
    return Traced["attend"](q, jnp.concatenate([keys, shared], -1), v, axes=axes)


_TYPES = ("f32[2,3,4,5]", "f32[2,7,6]", "f32[6,4,5]", "f32[6,4,8]")


@local(
    "attend",
    keeps="reals",
    example=_example_in_parts,
    types=("f32[2,3,4,7]", "f32[2,9,6]", "f32[6,4,5]", "f32[2,9,2]", "f32[2,9,4,8]"),
)
def key_in_parts(op: Op) -> Outcome:
    """attend(concat(q, p), concat(x . w, r), v)  ->  attend(q, x . w, v){query_2=p, key_2=r}"""
    operands, sizes = _operands(op), _sizes(op)
    query, key, *_ = operands.values()
    keys = _key_parts(key, sizes) if ("k",) in key.axes else []
    if not any(expansion(part, part.sizes, "k") for part in keys) or pairs_of(op) != [""]:
        return None
    taken = {x for operand in operands.values() for x in letters(operand.axes)}
    if len(keys) > len(PAIRS) or taken & {*PAIRS.values()} != {"k"}:
        return Miss("its keys have too many parts", 4)
    widths = [part.value.type.shape[part.along("k")] for part in keys]
    queries = _cut_along(query.value, query.along("k"), widths)
    for pair, part, new in zip(PAIRS, queries, keys):
        operands[f"query{pair}"] = _called(Operand(part, query.axes), "k", PAIRS[pair])
        operands[f"key{pair}"] = _called(new, "k", PAIRS[pair])
    return _attend(op, operands, given=" ".join([*operands][3:]))


@local("attend", keeps="reals", needs=_FINITE, example=_example, types=_TYPES)
def key_of_latent(op: Op) -> Outcome:
    """attend(q, x . w, v)  ->  attend(q . w, x, v), for every pair of query and key"""
    operands = _operands(op)
    for pair in pairs_of(op):
        query, key, width = operands[f"query{pair}"], operands[f"key{pair}"], PAIRS[pair]
        source = expansion(key, _sizes(op), width)
        if source and f"key_scale{pair}" not in operands and query.value.type.dtype in REALS:
            wide = multiplied(query, source, width, source.summed)
            operands[f"query{pair}"] = replace(query, value=wide)
            operands[f"key{pair}"] = _called(source.latent, source.summed, width)
    return None if operands == _operands(op) else _attend(op, operands)


@local("attend", keeps="reals", needs=_FINITE, example=_example, types=_TYPES)
def value_of_latent(op: Op) -> Outcome:
    """attend(q, k, x . u)  ->  attend(q, k, x) . u"""
    operands = _operands(op)
    source = expansion(operands["value"], _sizes(op), "v")
    if source is None or "value_scale" in operands or op.types[0].dtype not in REALS:
        return None
    operands["value"] = _called(source.latent, source.summed, "v")
    mixed, (out,) = _attend(op, operands), Signature.parse(op["axes"]).outputs
    inner = _called(Operand(mixed, out), "v", source.summed)
    return multiplied(inner, source, source.summed, "v")


RULES: tuple[Rule, ...] = (key_in_parts, key_of_latent, value_of_latent)


def _operands(op: Op) -> dict[str, Operand]:
    """The operands of an `attend` by name, query, key and value first."""
    arrays = zip(op.args, Signature.parse(op["axes"]).inputs)
    return {name: Operand(value, axes) for name, (value, axes) in zip(names_of(op), arrays)}


def _attend(op: Op, operands: Mapping[str, Operand], **more: str) -> Value:
    """The attention with these operands, and with `more` attributes."""
    values, axes = zip(*((operand.value, operand.axes) for operand in operands.values()))
    named = str(Signature(axes, Signature.parse(op["axes"]).outputs))
    return make("attend", *values, **dict(op.attrs) | {"axes": named} | more, origin=op.origin)


def _sizes(op: Op) -> dict[str, int]:
    """The sizes of the axes of an `attend`."""
    return {x: n for operand in _operands(op).values() for x, n in operand.sizes.items()}


def _key_parts(key: Operand, sizes: Mapping[str, int]) -> list[Operand]:
    """What a key holds one after another along its width, in all parts of its context."""
    contexts = parts_of_context(key) or [key]
    rows = [parts_along(part.value, part.along("k")) for part in contexts]
    if len({tuple(part.type.shape[key.along("k")] for part in row) for row in rows}) > 1:
        return []
    columns = [
        [_shared(Operand(part, key.axes), sizes) for part in column] for column in zip(*rows)
    ]
    return [c[0] if len(c) == 1 else one_context(c, contexts) for c in columns]


def _shared(key: Operand, sizes: Mapping[str, int]) -> Operand:
    """A part of a key without the axes along which it is repeated, but for those of every key."""
    known = bare(key, sizes | key.sizes)
    return known if {("k",), CONTEXT} <= {*known.axes} else key


def _called(operand: Operand, old: str, new: str) -> Operand:
    """The operand with another letter for one of its axes."""
    axes = tuple((new,) if axis == (old,) else axis for axis in operand.axes)
    return replace(operand, axes=axes)


def _cut_along(value: Value, dimension: int, sizes: Sequence[int]) -> Sequence[Value]:
    """The value in parts of these sizes along a dimension: those that it is put together of."""
    parts = parts_along(value, dimension)
    if [part.type.shape[dimension] for part in parts] == [*sizes]:
        return parts
    return [cut(value, dimension, *ends) for ends in pairwise(accumulate(sizes, initial=0))]
