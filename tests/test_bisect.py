"""A wrong rule is named by `bisect`; a failure is written as a file, repeated and made smaller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest

from dialect.checked.bisect import bisect
from dialect.checked.failures import Rerun
from dialect.checked.numbers import Numbers
from dialect.checked.reproducer import Failure
from dialect.checked.samples import samples
from dialect.front import api
from dialect.front.cli import main
from examples import llama
from rewrite import manager
from rewrite.pipeline import Pipeline
from rewrite.target import Target
from tests import planted_rules
from tests.kit import traced_step

TARGET = Target("cpu:8", (("x", 8),))
TOY = ("examples/llama.py:decode_step", "--config", "toy", "--batch", "2", "--context", "8")


PROGRAM = traced_step(llama, replace(llama.CONFIGS["toy"], layers=1), 2, 8)
pytestmark = pytest.mark.usefixtures("probe_passes")


@pytest.mark.parametrize("rule", planted_rules.RULES, ids=lambda rule: rule.name)
def test_bisect_names_the_pass_and_the_rule(rule) -> None:
    steps = Pipeline.parse(f"normalize, planted{{rule={rule.name}}}, recognize").passes()
    if not rule_fires_in_normal_form(rule):
        steps = steps[1:]
    found = bisect(PROGRAM, steps, TARGET)
    assert found is not None and found.step.pass_name() == "planted"
    assert found.blame.firing.rule.name == rule.name
    assert 1 <= found.blame.number <= found.blame.total
    assert "llama.py:" in found.blame.source
    assert "firing" in str(found) and "expected" in str(found)


def rule_fires_in_normal_form(rule) -> bool:
    return any(op.name in rule.roots for op, _ in NORMAL.graph.walk())


NORMAL = Pipeline.parse("normalize").run(PROGRAM)


def test_passes_that_keep_what_they_claim_are_not_blamed() -> None:
    steps = Pipeline.parse("retarget, normalize, recognize, carry_cache").passes()
    assert bisect(PROGRAM, steps, TARGET) is None


def test_the_first_token_that_differs_is_told() -> None:
    steps = Pipeline.parse("planted{rule=planted_flip}").passes()
    assert "the first token that differs is token 0 of sequence 0" in str(
        bisect(PROGRAM, steps, TARGET)
    )


def crash(pipeline: str) -> Failure:
    steps = Pipeline.parse(pipeline).passes()
    with pytest.raises(manager.PassError) as raised:
        manager.run(PROGRAM, steps, TARGET)
    return Failure.of("pass", PROGRAM, steps, TARGET, raised.value, seed=7)


@pytest.mark.parametrize("op", ["exp", "scan", "dynamic_update_slice", "logistic"])
def test_a_crash_is_reduced_to_a_few_ops(op: str) -> None:
    failure = Failure.parse(str(crash(f"retarget, planted{{crash={op}}}, normalize")))
    mesh = api.resolve(None, None, failure.pipeline)[0]
    smaller = Rerun(failure, mesh, TARGET).reduced(30.0, lambda program, passes: None)
    assert smaller.program.graph.op_count <= 10
    assert [each.pass_name() for each in smaller.pipeline.passes()] == ["planted"]
    again = Failure.parse(str(smaller))
    with pytest.raises(manager.PassError, match=f"KeyError: '{op}'"):
        manager.run(again.program, again.pipeline.passes(), TARGET)


def test_wrong_numbers_are_reduced_with_their_rule() -> None:
    steps = Pipeline.parse("normalize, planted{rule=planted_base}").passes()
    failure = Failure.of("numbers", PROGRAM, steps, TARGET, "wrong")
    smaller = Rerun(failure, None, TARGET).reduced(30.0, lambda program, passes: None)
    assert smaller.program.graph.op_count <= 10
    again = bisect(smaller.program, smaller.pipeline.passes(), TARGET, smaller.seed)
    assert again.blame.firing.rule.name == "planted_base"


def test_a_reproducer_reads_back() -> None:
    failure = crash("planted{crash=exp}")
    again = Failure.parse(str(failure))
    assert (again.kind, again.seed, again.error) == ("pass", 7, failure.error)
    assert "jax " in again.versions and "python " in again.versions
    assert again.program.graph == PROGRAM.graph
    assert str(again.pipeline) == "target cpu:8\nmesh x=8\nplanted{crash=exp}"


def test_a_large_constant_becomes_a_parameter_of_the_reproducer() -> None:
    table = jnp.arange(4096.0)
    program = api.trace(lambda x: jnp.exp(x) + table, jnp.ones(4096))
    steps = Pipeline.parse("planted{crash=exp}").passes()
    again = Failure.parse(str(Failure.of("pass", program, steps, TARGET, "broken")))
    assert [each.role for each in again.program.inputs] == ["param", "param"]
    with pytest.raises(manager.PassError):
        manager.run(again.program, steps, TARGET)


def test_verify_numerics_stops_at_the_wrong_pass_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "wrong.ir"
    wrong = "normalize, planted{rule=planted_base}"
    command = ["show", *TOY, "-p", wrong, "--target", "cpu:8", "--verify-numerics"]
    assert main([*command, "--crash-reproducer", str(path)]) == 1
    failure = Failure.parse(path.read_text())
    assert failure.kind == "numbers" and "planted" in failure.error
    assert main(["reproduce", str(path)]) == 1


def test_the_bisect_command_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bisect", *TOY, "--target", "cpu:8", "-p"]
    assert main([*command, "normalize"]) == 0
    assert "all 1 passes keep what they claim" in capsys.readouterr().out
    assert main([*command, "normalize, planted{rule=planted_base}"]) == 1
    error = capsys.readouterr().err
    assert "rule planted_base, firing" in error and "llama.py:" in error


def test_a_reproducer_that_no_longer_fails_says_so(tmp_path, capsys) -> None:
    path = tmp_path / "mended.ir"
    steps = Pipeline.parse("normalize").passes()
    path.write_text(str(Failure.of("pass", PROGRAM, steps, TARGET, "broken")))
    assert main(["reproduce", str(path)]) == 0
    assert "does not fail any more" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_numbers() -> None:
    one, two = samples(PROGRAM, 3), samples(PROGRAM, 3)
    assert all((jnp.asarray(a) == jnp.asarray(b)).all() for a, b in zip(one, two))
    assert Numbers(PROGRAM, one).departure(Numbers(PROGRAM, two), "bits") is None
