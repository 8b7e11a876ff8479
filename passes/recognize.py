"""recognize: lax ops become the decoder's own vocabulary (see `dialect.nn`).

Recognition is by structure, never by name, and loses nothing: every op carries its reference.
What is not recognised stays as it is and still compiles, shards and quantises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dialect.attention import attend_of_softmax
from dialect.nn import Traced, rms_norm, rope, softmax
from dialect.normal_form import is_splat, normal_form
from rewrite.driver import Report, rewrite
from rewrite.ir import Op, Symbol, Value
from rewrite.opdef import make
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.rules import Miss, Outcome, Rule, local, pattern
from rewrite.target import Target

softmax_by_hand = pattern(
    "softmax",
    "exp(x - max(x)) / sum(exp(x - max(x)))  ->  softmax(x)",
    before=softmax,
    after=Traced["softmax"],
    example=("f32[2,8]",),
    normal=normal_form,
)

rms = pattern(
    "rms_norm",
    "x * rsqrt(mean(x * x) + epsilon)  ->  rms_norm(x)",
    before=lambda x, *, epsilon: rms_norm(x, epsilon=epsilon),
    after=Traced["rms_norm"],
    example=("f32[2,8]",),
    constants={"epsilon": 1e-5},
    normal=normal_form,
)

layer = pattern(
    "layer_norm",
    "rms_norm(x - mean(x))  ->  layer_norm(x)",
    before=lambda x, *, epsilon: Traced["rms_norm"](
        x - jnp.mean(x, axis=-1, keepdims=True), epsilon=epsilon
    ),
    after=Traced["layer_norm"],
    example=("f32[2,8]",),
    constants={"epsilon": 1e-5},
    normal=normal_form,
)

half_split_rope = pattern(
    "rope",
    "concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)  ->  rope(x, cos, sin)",
    before=rope,
    after=Traced["rope"],
    example=("f32[2,8]", "f32[2,4]", "f32[2,4]"),
    normal=normal_form,
)

converted_rope = pattern(
    "rope_converted",
    "rope by hand on halves that are converted one by one  ->  rope(convert(x), cos, sin)",
    before=lambda x, cos, sin: _rope_of_halves(jnp.split(x, 2, axis=-1), cos, sin),
    after=lambda x, cos, sin: Traced["rope"](x.astype(cos.dtype), cos, sin),
    example=("bf16[2,8]", "f32[2,4]", "f32[2,4]"),
    normal=normal_form,
)


def _rope_of_halves(halves: list[jax.Array], cos: jax.Array, sin: jax.Array) -> jax.Array:
    left, right = (half.astype(cos.dtype) for half in halves)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


silu = pattern(
    "silu",
    "x * logistic(x)  ->  activate{kind=silu}(x)",
    before=lambda x: x * jax.nn.sigmoid(x),
    after=lambda x: Traced["activate"](x, kind="silu"),
    example=("f32[2,8]",),
    normal=normal_form,
)

gelu = pattern(
    "gelu",
    "0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))  ->  activate{kind=gelu}(x)",
    before=lambda x: jax.nn.gelu(x, approximate=True),
    after=lambda x: Traced["activate"](x, kind="gelu"),
    example=("f32[2,8]",),
    normal=normal_form,
)


def _gated(name: str, kind: str) -> Rule:
    return pattern(
        name,
        f"activate{{kind={kind}}}(x) * y  ->  gate{{kind={kind}}}(x, y)",
        before=lambda x, y: Traced["activate"](x, kind=kind) * y,
        after=lambda x, y: Traced["gate"](x, y, kind=kind),
        example=("f32[2,8]", "f32[2,8]"),
        normal=normal_form,
    )


gated_silu = _gated("gate", "silu")
gated_gelu = _gated("gate_gelu", "gelu")


@local(
    "gather", example=lambda table, ids: table[ids.astype("int32")], types=("f32[5,4]", "f32[3]")
)
def take_of_gather(op: Op) -> Outcome:
    """gather(table, ids) of whole rows  ->  take(table, ids)"""
    numbers = dict(op["dimension_numbers"].fields)
    table, indices = op.args
    if numbers["operand_batching_dims"] or numbers["start_index_map"] != (0,):
        return None
    if numbers["collapsed_slice_dims"] != (0,) or op["slice_sizes"][1:] != table.type.shape[1:]:
        return Miss("it gathers parts of rows", 2)
    rank = indices.type.rank - 1
    if indices.type.shape[-1:] != (1,) or numbers["offset_dims"] != tuple(
        range(rank, rank + table.type.rank - 1)
    ):
        return Miss("its rows are not the last axes of the result", 2)
    if op.get("fill_value") not in (None, Symbol("nan")):
        return Miss("it fills with a value of its own", 2)
    ids = make("reshape", indices, new_sizes=indices.type.shape[:-1])
    return make("take", table, ids, mode=op["mode"])


@local(
    "dynamic_update_slice",
    example=lambda cache, new: jax.lax.dynamic_update_slice(
        cache, new, (0, jnp.int32(new[0, 0, 0]), 0)
    ),
    types=("f32[2,8,4]", "f32[2,1,4]"),
)
def cache_write_of_update(op: Op) -> Outcome:
    """dynamic_update_slice that starts at 0 along its whole axes  ->  cache_write"""
    cache, new, *start = op.args
    sizes = zip(new.type.shape, cache.type.shape)
    partial = tuple(i for i, (some, whole) in enumerate(sizes) if some != whole)
    if not partial or any(not _is_zero(start[i]) for i in range(len(start)) if i not in partial):
        return Miss("it writes at an offset along an axis that it writes whole", 2)
    return make("cache_write", cache, new, *(start[i] for i in partial), axes=partial)


def _is_zero(value: Value) -> bool:
    return is_splat(value) and value.op["value"] == 0


@local(
    "contract",
    example=lambda q, k, v: softmax(q @ k.T * 0.5) @ v,
    types=("f32[3,4]", "f32[5,4]", "f32[5,4]"),
    keeps="reals",
)
def attend(op: Op) -> Outcome:
    """softmax(mask(scale * (q . k))) . v  ->  attend(q, k, v, mask)"""
    return attend_of_softmax(op)


RULES: tuple[Rule, ...] = tuple(rule for rule in list(globals().values()) if isinstance(rule, Rule))


@dataclass(frozen=True)
class Recognize(Pass):
    """Finds attention, norms, rope, feed-forward units, embeddings and cache writes."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        graph = rewrite(program.graph, RULES, report)
        return self.said(program.with_graph(graph), *report.notes())
