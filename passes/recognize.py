"""recognize: lax ops become the decoder's own vocabulary (see `dialect.nn`).

Recognition is by structure, never by name, and loses nothing: every op carries its reference.
What is not recognised stays as it is and still compiles, shards and quantises.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from dialect import activations, indexing, norms, rotary
from dialect.attention import attend_of_softmax
from dialect.nn import softmax
from dialect.normal_form import RULES as NORMAL_FORM
from dialect.normal_form import normal_form, rules_of
from dialect.values import is_splat
from dialect.projections import cut_projections
from dialect.vocabulary import Traced
from rewrite.driver import Report, rewrite
from rewrite.ir import Op, Value
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


RULES: tuple[Rule, ...] = rules_of(sys.modules[__name__], norms, rotary, activations, indexing)


@dataclass(frozen=True)
class Recognize(Pass):
    """Finds attention, norms, rope, feed-forward units, embeddings and cache writes."""

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        report = Report()
        rules = (*NORMAL_FORM, *RULES)
        graph = rewrite(program.graph, rules, report)
        cut = cut_projections(graph, program.values("param"))
        graph = rewrite(cut, rules, report) if cut is not graph else graph
        return self.said(program.with_graph(graph), *report.notes())
