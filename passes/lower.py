"""lower: from the decoder's vocabulary to what the compiler takes.

Scales move behind their products, so that weights stay integers in memory; every composite is
replaced by its reference; the state is donated, and the compiler chooses its memory layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from dialect import primitives
from dialect.dtypes import struct_of
from dialect.jaxpr import trace_graph
from dialect.nn import Traced
from dialect.normal_form import reshaped
from dialect.quant import dequantize
from dialect.rounding import rounded, steps
from dialect.tensor import contract
from dialect.values import in_dtype
from rewrite import opdef
from rewrite.driver import Report, rewrite
from rewrite.ir import Graph, Op, Symbol, Type, Value
from rewrite.opdef import make, substitute
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Miss, Outcome, Rule, local
from rewrite.signature import Signature, letters
from rewrite.target import Target

_COMPOSITES = (*Traced, "contract", "weight_scale", "quantize", "dequantize")


_contract = primitives.call("contract", contract)
_dequantize = primitives.call("dequantize", dequantize)
_rounded = primitives.call("rounded", rounded)


@local(
    "contract",
    keeps="reals",
    example=lambda x, q, s: _contract(
        _rounded(x, axes=(1,), largest=127.5, least=1e-19),
        _dequantize(q, s, dtype=Symbol("f32")),
        spec="b d, d f -> b f",
        dtype=Symbol("f32"),
    ),
    types=("f32[2,3]", "i8[3,4]", "f32[1,4]"),
)
def integers_multiplied(op: Op) -> Outcome:
    """contract(q * s, r * t) of int8 q and r  ->  contract(q, r) * s * t"""
    if any(not _is_int8(arg.op) for arg in op.args):
        return None
    spec = Signature.parse(op["spec"])
    parts = [_integers(arg.op) for arg in op.args]
    out = letters(spec.outputs[0])
    for (_, scale), array in zip(parts, spec.inputs):
        if any(size > 1 and x not in out for size, (x,) in zip(scale.type.shape, array)):
            return Miss("a scale varies along a summed axis", 2)
    attrs = {**dict(op.attrs), "dtype": Symbol("i32")}
    made = in_dtype(make("contract", *(q for q, _ in parts), **attrs), "f32")
    for (_, scale), array in zip(parts, spec.inputs):
        made = make("mul", made, in_dtype(_aligned(scale, letters(array), out), "f32"))
    return in_dtype(made, op.types[0].dtype)


def _is_int8(op: Op) -> bool:
    """Whether an op gives integers of eight bits times their scale."""
    return op.name == "rounded" or (op.name == "dequantize" and op.args[0].type.dtype == "i8")


def _integers(op: Op) -> tuple[Value, ...]:
    """The integers, and their scale."""
    if op.name == "dequantize":
        return op.args
    graph = _traced(steps, tuple(arg.type for arg in op.args), op.attrs)
    return tuple(substitute(graph, op.args, origin=op.origin))


@local(
    "contract",
    keeps="reals",
    example=lambda x, q, s: _contract(
        x, _dequantize(q, s, dtype=Symbol("f32")), spec="b d, d f -> b f", dtype=Symbol("f32")
    ),
    types=("f32[2,3]", "i8[3,4]", "f32[1,4]"),
)
def scale_behind_product(op: Op) -> Outcome:
    """contract(x, dequantize(q, s))  ->  contract(x, q) * s, where s is one per output channel"""
    for position, arg in enumerate(op.args):
        if arg.op.name != "dequantize":
            continue
        q, scale = arg.op.args
        spec = Signature.parse(op["spec"])
        own, out = letters(spec.inputs[position]), letters(spec.outputs[0])
        if any(size > 1 and x not in out for size, x in zip(scale.type.shape, own)):
            return Miss("a scale varies along a summed axis", 2)
        other = op.args[1 - position]
        args = list(op.args)
        args[position] = in_dtype(q, other.type.dtype)
        product = make("contract", *args, **dict(op.attrs))
        wide = in_dtype(product, "f32")
        scaled = make("mul", wide, in_dtype(_aligned(scale, own, out), "f32"))
        return in_dtype(scaled, op.types[0].dtype)
    return None


def _aligned(scale: Value, own: tuple[str, ...], out: tuple[str, ...]) -> Value:
    """The scale with the axes of the product's result, size one where it does not vary."""
    sizes = dict(zip(own, scale.type.shape))
    kept = [x for x in own if x in out]
    flat = reshaped(scale, tuple(sizes[x] for x in kept))
    order = sorted(range(len(kept)), key=lambda i: out.index(kept[i]))
    if order != list(range(len(kept))):
        flat = make("transpose", flat, permutation=tuple(order))
    return reshaped(flat, tuple(sizes.get(x, 1) for x in out))


def _expand(op: Op) -> Outcome:
    """composite(x)  ->  its reference, in lax"""
    types = tuple(arg.type for arg in op.args)
    graph = _traced(opdef.lookup(op.name).reference, types, op.attrs)
    return substitute(graph, op.args, origin=op.origin)


@lru_cache(maxsize=4096)
def _traced(reference: Callable[..., Any], types: tuple[Type, ...], attrs: tuple) -> Graph:
    def traced(*arrays: object) -> list[object]:
        out = reference(*arrays, **dict(attrs))
        return out if isinstance(out, list) else [out]

    return trace_graph(traced, *map(struct_of, types))


SCALES = (integers_multiplied, scale_behind_product)
EXPAND = Rule(
    name="expand",
    doc=_expand.__doc__ or "",
    roots=frozenset(_COMPOSITES),
    apply=_expand,
    keeps="bits",
    example=lambda x: Traced["softmax"](x),
    types=("f32[2,4]",),
)


@dataclass(frozen=True)
class Lower(Pass):
    """Expands composites into lax, scales behind their products."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        scaled = rewrite(program.graph, SCALES, report)
        left = [op for op, _ in scaled.walk() if op.name == "dequantize"]
        lowered = replace(program, graph=rewrite(scaled, [EXPAND], report))
        if program.stages is not None:
            stages = {
                name: rewrite(getattr(program.stages, name), [EXPAND])
                for name in ("prepare", "adapt", "restore")
            }
            lowered = replace(lowered, stages=replace(program.stages, **stages))
        notes = [
            f"dequantised before its product, so stored wide: {op.origin.source}" for op in left
        ]
        return self.said(lowered, *report.notes(), *notes)
