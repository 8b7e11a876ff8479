"""The plan beside the compiled program: figures of both, and what is said where they differ."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dialect.compiled.compiling import Compilable, compiled
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.reports.beside_plan import NOTABLE_BYTES, Beside, beside_plan, differences, plan_table
from examples import llama
from rewrite import Pipeline, Program, auto_shard, trace
from rewrite.target import Target
from tests.kit import arrays_of, shapes_of

GIB = 1 << 30
PASSES = "normalize, recognize, roll, carry_cache, {plan}, shard, stage, lower"


def on_v5e(function: Any, *args: Any, plan: str = "plan") -> tuple[Program, list[Beside]]:
    topology = Topology.parse("v5e:2x4")
    target = Target(str(topology), topology.mesh_axes().axes)
    program = trace(function, *args, params=0, state=1)
    program = Pipeline.parse(PASSES.format(plan=plan)).run(program, target)
    mesh = jax_mesh(topology, MeshSpec(target.mesh))
    executable, _ = compiled(Compilable(program, mesh))
    return program, beside_plan(program, executable, mesh)


@pytest.mark.parametrize(
    ("planned", "found", "differs"),
    [
        (GIB, 1.05 * GIB, False),
        (GIB, 1.2 * GIB, True),
        (1.2 * GIB, GIB, True),
        (0.0, NOTABLE_BYTES / 2, False),
        (0.0, 2 * NOTABLE_BYTES, True),
    ],
)
def test_a_tenth_is_much_if_it_is_more_than_a_mebibyte(
    planned: float, found: float, differs: bool
) -> None:
    assert Beside("memory", planned, found).differs == differs


def test_a_difference_says_how_much_and_why() -> None:
    row = Beside("memory", GIB, 2 * GIB, "1.00 GiB of it are padding of inputs to tiles")
    assert differences([row, Beside("received in a step", GIB, GIB, "unused")]) == [
        "not as planned: memory: compiled 2.00 GiB, planned 1.00 GiB (2.00 times): "
        "1.00 GiB of it are padding of inputs to tiles"
    ]
    assert plan_table([row]).rows == (("memory", "1.00 GiB", "2.00 GiB", "2.00"),)


def test_decode_compiles_as_planned() -> None:
    config = replace(llama.CONFIGS["8b"], layers=8)
    _, rows = on_v5e(partial(llama.decode_step, config), *shapes_of(llama, config, 16, 2048))
    assert [row.what for row in rows] == [
        "memory",
        "received in a step",
        "HBM traffic in a step",
    ]
    assert differences(rows) == []
    assert all(row.compiled == pytest.approx(row.planned, rel=0.05) for row in rows)


def test_an_unplanned_collective_is_named() -> None:
    """A cache that the program looks up by a table of its own is gathered."""

    def shuffled(params: Any, cache: Any, tokens: jax.Array) -> Any:
        cache = {**cache, "k": cache["k"][:, jnp.roll(jnp.argsort(tokens), 1)]}
        return llama.decode_step(config, params, cache, tokens)

    config = replace(llama.CONFIGS["8b"], layers=2)
    args = shapes_of(llama, config, 16, 2048)
    _, rows = on_v5e(shuffled, *args, plan="plan{ffn=ws1d, attention=batch}")
    (received,) = (text for text in differences(rows) if "received" in text)
    assert "not planned: all-gather over x y, once 128.00 MiB" in received


def test_explain_begins_with_differences_once_the_step_is_compiled() -> None:
    config = llama.CONFIGS["toy"]
    args = arrays_of(llama, config, 8, 64)
    step = auto_shard(partial(llama.decode_step, config), "cpu:8", donate_state=False)
    assert "the plan beside the compiled program" not in step.details(*args)
    step(*args)
    assert "the plan beside the compiled program" in step.details(*args)
