"""Rules from files: read, applied, reported, and refused with a caret."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dialect.arrays.dtypes import struct_of
from dialect.arrays.evaluate import evaluate
from dialect.jaxprs.jaxpr import trace_graph
from dialect.normal.normal_form import normal_form
from dialect.user.rule_file import read_rules
from rewrite import Pipeline, ShardwrightError, trace
from rewrite.driver import Report, rewrite
from rewrite.errors import TextError
from rewrite.ir import Type

OWN = Path(__file__).parent.parent / "examples" / "own.rules"
RULES = read_rules(OWN.read_text(encoding="utf-8"), "own.rules", normal_form)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_every_rule_of_the_example_fires_and_keeps_the_value(rule, dtype):
    types = [Type(dtype, Type.parse(text).shape) for text in rule.types]
    graph = normal_form(trace_graph(lambda *a: [rule.example(*a)], *map(struct_of, types)))
    report = Report()
    rewritten = rewrite(graph, [rule], report)
    assert report.fired == {rule.name: 1}
    assert rewritten != graph
    arrays = [jnp.abs(jnp.arange(t.size, dtype="float32").reshape(t.shape) - 3) + 1 for t in types]
    arrays = [array.astype(struct_of(t).dtype) for array, t in zip(arrays, types)]
    (found,), (expected,) = evaluate(rewritten, arrays), evaluate(graph, arrays)
    np.testing.assert_allclose(
        found.astype("float32"), expected.astype("float32"), rtol=2e-2 if dtype == "bf16" else 1e-6
    )


def test_the_pass_applies_them_and_says_what_it_keeps():
    program = trace(lambda params, x: jnp.log(jnp.exp(abs(abs(x)))) * params, 2.0, jnp.ones((2, 3)))
    made = Pipeline.parse(f'normalize, rules{{file="{OWN}"}}').run(program)
    assert [op.name for op in made.graph.ops] == ["abs", "mul"]
    assert made.history[-1].keeps == "reals"
    assert set(made.history[-1].notes) == {"size_of_size: 1", "log_of_exp: 1"}
    exact = Pipeline.parse(f'rules{{file="{OWN}"}}').run(
        trace(lambda p, x: -(-x) * p, 1.0, jnp.ones(3))
    )
    assert exact.history[-1].keeps == "bits"


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("rule a (x: f32[4]):\n  neg(y) -> x", "y is no parameter", "mine:2"),
        ("rule a (x: f32[4]):\n  neg(x -> x", r"expected '\)' or ',', found '-'", "mine:2"),
        ("rule a keeps all (x: f32[4]): neg(x) -> x", "keeps bits, reals, approx", "mine:1"),
    ],
)
def test_mistakes_are_shown_where_they_are(text, message, line):
    with pytest.raises(TextError, match=message) as error:
        read_rules(text, "mine")
    assert f"at: {line}" in str(error.value) and "^" in str(error.value)


def test_an_unknown_op_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "mine.rules"
    path.write_text("rule a (x: f32[4]):\n  negg(x) -> x\n")
    program = trace(lambda params, x: -x * params, 2.0, jnp.ones((4,)))
    with pytest.raises(ShardwrightError, match="there is no op 'negg'\n(.*\n)*.*did you mean neg"):
        Pipeline.parse(f'rules{{file="{path}"}}').run(program)
    with pytest.raises(ShardwrightError, match="there is no rule file"):
        Pipeline.parse("rules{file=nowhere}").run(program)
