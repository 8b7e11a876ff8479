"""Programs as text: the exact form, what goes out comes back, and what an error shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from dialect import control, framework, lax as lax_dialect, nn, tensor  # noqa: F401  (ops)
from dialect.jaxpr import constant, trace_graph
from dialect.tracing import trace
from rewrite import opdef
from rewrite.errors import InvalidProgram, TextError
from rewrite.ir import (
    Attrs,
    Graph,
    Op,
    Opaque,
    Origin,
    Record,
    Symbol,
    Type,
    Value,
    attrs_of,
    new_input,
)
from rewrite.opdef import OpDef, make
from rewrite.pipeline import Pipeline
from rewrite.plan import Alternative, Plan, Prediction
from rewrite.program import Input, Output, Program, Stages, Step
from rewrite.signature import Signature
from rewrite.text import parse_graph, parse_program, show_graph, show_program, show_value

F4 = Type("f32", (4,))

for name, lead in (("test_text.holds", None), ("test_text.led", "lead"), ("test_text odd!", None)):
    opdef.define(
        OpDef(
            name=name,
            signature=lambda op: Signature.parse("a -> a"),
            infer=lambda types, attrs, regions: types,
            reference=lambda x, **attrs: x,
            lead=lead,
        )
    )


def struct(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def flat(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda *args: jax.tree.leaves(function(*args))


def assert_reads_back(graph: Graph) -> None:
    """Equality takes 1 for True and for 1.0, text does not: both must hold."""
    text = show_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert show_graph(again) == text


def holding(**attrs: Any) -> Graph:
    """A graph of one op that has these attributes."""
    x = new_input(F4)
    op = Op("test_text.holds", (x,), attrs_of(attrs), (F4,))
    return Graph((x,), op.results)


def small_program() -> Program:
    """What a decoder's step is made of, as small as it gets."""

    def step(embed: Any, weights: Any, cache: Any, tokens: Any) -> list[Any]:
        x = jnp.take(embed, tokens, axis=0, mode="clip")
        carry, rows = lax.scan(lambda h, w: (h * w + 0.5, h.sum()), x[0], weights)
        return [carry, cache.at[0].set(rows[1]), jnp.float32([1, -0.0, jnp.nan])]

    shapes = (struct(8, 4), struct(2, 4), struct(3), struct(2, dtype="int32"))
    graph = trace_graph(step, *shapes)
    names = ("params/embed", "params/w 1", "cache", "0")
    layouts = ((("x", "y"), ()), None, ((),), None)
    roles = ("param", "param", "state", "arg")
    return Program(
        name="decode_step",
        graph=graph,
        inputs=tuple(
            Input(name, value.type, role, layout)
            for name, value, role, layout in zip(names, graph.inputs, roles, layouts)
        ),
        outputs=(Output("logits"), Output("cache", updates=2), Output("")),
        tree=(({"embed": 0, "w 1": 1}, [2, None], (3,)), (0, 1, 2)),
        history=(
            Step("normalize"),
            Step("quantize{weights=int8}", "approx", ('skipped "norm"', "2\nlines")),
        ),
    )
