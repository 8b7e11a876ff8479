"""Gemma-2B as published, from shapes alone to an executable for eight TPU v5e chips."""

from __future__ import annotations

from math import prod

import pytest
from axes_tables import TUNIX
from harness import EXACT, built, recognition, recognized, wrong_axes

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import Report, read
from rewrite import auto_shard
from rewrite.program import Program

LAYERS, CHIPS = 18, 8


def test_structure() -> None:
    program = recognized("tunix_models", "gemma_2b", "decode", size="full")
    assert recognition(program) == {
        "embedding": 1,
        "head": 1,
        "attend": LAYERS,
        "ffn": LAYERS,
        "norm": 2 * LAYERS + 1,
        "rope": 2 * LAYERS,
    }
    assert wrong_axes(program, TUNIX["gemma_2b"]) == []


@pytest.fixture(scope="module")
def built_for_tpu() -> tuple[Program, Report, tuple[str, ...]]:
    case = built("tunix_models", "gemma_2b", "decode", size="full")
    step = auto_shard(case.function, "v5e:2x4", pipeline=EXACT)
    program = step.program(*case.args)
    executable, notes = compiled(Compilable(program, step.mesh))
    return program, read(executable, step.mesh), notes


def test_weights_are_split_over_the_chips(built_for_tpu) -> None:
    program, report, _ = built_for_tpu
    sizes = dict(program.plan.mesh)

    def held_bytes(*roles: str) -> float:
        """Of the step's inputs, by their layouts."""
        return sum(
            each.type.bytes / prod(sizes[axis] for axes in each.layout for axis in axes)
            for each in program.step_inputs
            if each.role in roles and each.type.dtype == "bf16"
        )

    weights_bytes = sum(each.type.bytes for each in program.inputs if each.role == "param")
    assert held_bytes("param") < 1.1 * weights_bytes / CHIPS
    compiled_bytes = sum(each.bytes for each in report.parameters if each.dtype == "bf16")
    assert compiled_bytes == pytest.approx(held_bytes("param", "state"), rel=0.01)


def test_the_cache_is_updated_in_place(built_for_tpu) -> None:
    program, report, notes = built_for_tpu
    states = [each for each in program.step_inputs if each.role == "state"]
    assert len(report.aliases) >= len(states)
    assert not [note for note in notes if "rematerialization" in note]
