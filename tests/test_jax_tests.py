"""The harness that takes JAX's own tests through Shardwright, on a small file like theirs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import pytest

from rewrite import opdef
from rewrite.ir import Graph
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from tests.fuzz.jax_tests import Watch, report, run_files, watched

TESTS = """
import unittest
import jax, jax.numpy as jnp
from jax import jit

class Some(unittest.TestCase):
    def test_jitted(self):
        self.assertEqual(jit(lambda x, n: x * n, static_argnums=1)(jnp.ones(2), 3)[0], 3)

    def test_checked(self):
        self._CompileAndCheck(lambda x: jnp.exp(x) + 1, lambda: [jnp.ones(3)])

    def test_effect(self):
        jax.jit(lambda x: jax.debug.print("{}", x))(1.0)

    def test_subtracts(self):
        self._CheckAgainstNumpy(None, lambda x, y: x - y, lambda: [jnp.ones(2), jnp.zeros(2)])

    def test_not_traceable(self):
        self._CompileAndCheck(lambda x: x if x > 0 else -x, lambda: [1.0])

    def test_fails_by_itself(self):
        self.assertTrue(jax.jit(lambda x: x == 2)(1))
"""


@dataclass(frozen=True)
class TurnsSubtraction:
    """Stands in for a pipeline: a - b  ->  b - a."""

    def run(self, program: Program, target: object) -> Program:
        (value,) = program.graph.outputs
        if value.op.name != "sub":
            return program
        turned = opdef.make("sub", *reversed(value.op.args))
        return replace(program, graph=Graph(program.graph.inputs, (turned,)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "some_test.py").write_text(TESTS)
    return tmp_path


def kinds(watch: Watch) -> dict[str, str]:
    return {outcome.test.rpartition("test_")[2]: outcome.kind for outcome in watch.outcomes}


def test_functions_are_told_by_what_became_of_them(folder) -> None:
    watch = Watch(TurnsSubtraction())
    said = run_files(folder, ["some_test.py"], watch)
    assert kinds(watch) == {
        "jitted": "passed",
        "checked": "passed",
        "effect": "refused",
        "subtracts": "different",
        "not_traceable": "untraceable",
        "fails_by_itself": "passed",
    }
    assert said == {"ok": 5, "failed": 1}
    assert "refused 1: debug_print has side effects" in report(watch, said)
    assert "test_subtracts: after the passes: output 0[0]: 2 of 2 elements differ" in report(
        watch, said
    )


def test_the_true_passes_keep_what_the_planted_one_does_not(folder) -> None:
    watch = Watch(Pipeline.parse("normalize, recognize"))
    run_files(folder, ["some_test.py"], watch, only="subtracts")
    assert kinds(watch) == {"subtracts": "passed"}


@dataclass
class Notes:
    """Stands in for a pipeline: changes nothing and keeps the names of the ops that it saw."""

    names: list[str] = field(default_factory=list)

    def run(self, program: Program, target: object) -> Program:
        self.names += [op.name for op in program.graph.ops]
        return program


def test_what_takes_no_argument_is_an_op_of_the_program_too(folder) -> None:
    (folder / "some_test.py").write_text(TESTS.replace("x - y", "x - jnp.arange(2.0)"))
    notes = Notes()
    run_files(folder, ["some_test.py"], Watch(notes), only="subtracts")
    assert notes.names == ["iota", "sub"]


def test_a_number_that_is_returned_has_the_width_that_it_has_in_jax(folder) -> None:
    (folder / "some_test.py").write_text(TESTS.replace("x - y", "jnp.size(x)"))
    watch = Watch()
    run_files(folder, ["some_test.py"], watch, only="subtracts")
    assert kinds(watch) == {"subtracts": "passed"}


@pytest.mark.parametrize("name", ["grad", "vmap"])
def test_what_is_watched_keeps_its_name(name) -> None:
    with watched(Watch()):
        assert getattr(jax, name).__name__ == name
