"""What of the traffic of a compiled program was not recognised."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dialect.compiled.compiling import Compilable, compiled
from dialect.machine.mesh import MeshSpec, Topology, jax_mesh
from dialect.reports.coverage import Coverage, Part, Unrecognised
from dialect.reports.explained import Explained
from dialect.reports.moved_bytes import moved_table
from dialect.reports.op_cost import Cost
from examples import llama
from rewrite import Pipeline, trace
from rewrite.target import Target
from tests.kit import shapes_of

PASSES = "normalize, recognize, roll, carry_cache, plan, shard, stage, lower"


def test_lines_are_recognised_or_not_or_both() -> None:
    groups = (
        Unrecognised("sort", "/my/own.py:7 (step)", 1, Cost(), None),
        Unrecognised("tanh, mul", "/my/own.py:5 (step)", 1, Cost(), None),
    )
    part = Part("the whole step", "", 1, (), groups)
    report = Coverage((part,), 0, Cost(), 0, ("/my/own.py:3 (step)", "/my/own.py:5 (step)"))
    moved = Counter({"own.py:3": 6 << 20, "own.py:7": 2 << 20, "own.py:5": 1 << 20, "": 1 << 20})
    table = moved_table(report, moved)
    assert table.title == "moved by the compiled program: 2.00 MiB of 10.00 MiB not recognised"
    assert table.rows == (
        ("recognised", "6.00 MiB", "60.0 %"),
        ("NOT RECOGNISED: sort at own.py:7", "2.00 MiB", "20.0 %"),
        ("lines with both", "1.00 MiB", "10.0 %"),
        ("other lines, and what the compiler moves for none", "1.00 MiB", "10.0 %"),
    )


def test_a_gather_by_a_table_of_its_own_is_said_with_its_bytes() -> None:
    """A cache that the program sorts in every step: 16 MiB a layer read and written."""
    config = replace(llama.CONFIGS["8b"], layers=2)

    def shuffled(params: Any, cache: Any, tokens: jax.Array) -> Any:
        cache = {**cache, "k": jnp.sort(cache["k"], axis=1)}
        return llama.decode_step(config, params, cache, tokens)

    step = partial(llama.decode_step, config)
    unknown = []
    for function in (step, shuffled):
        topology, explained = Topology.parse("v5e:2x4"), Explained()
        target = Target(str(topology), topology.mesh_axes().axes)
        program = trace(function, *shapes_of(llama, config, 16, 512), params=0, state=1)
        program = Pipeline.parse(PASSES).run(program, target, hooks=(explained,))
        mesh = jax_mesh(topology, MeshSpec(target.mesh))
        executable, _ = compiled(Compilable(program, mesh))
        (table,) = explained.moved(executable, mesh)
        unknown.append([what for what, *_ in table.rows if "NOT RECOGNISED" in what])
    assert unknown[0] == []
    assert any("sort" in what for what in unknown[1])
