"""The rule checker finds wrong rules of every kind, and finds nothing wrong with right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dialect.checked.all_rules import FoundRule, all_rules
from dialect.checked.arrays import array_of
from dialect.checked.compared import difference
from dialect.checked.evaluated import op_by_op
from dialect.checked.forms import after_rules, example_graph, fires, first_rules
from dialect.checked.neighbours import neighbour
from dialect.checked.rule_check import check
from dialect.checked.trial import RuleReport
from dialect.jaxprs.jaxpr import constant
from dialect.matching.values import in_dtype, number, reshaped
from rewrite.driver import rewrite
from rewrite.ir import Op, Type
from rewrite.opdef import make, with_args
from rewrite.rules import Outcome, Rule, local
from tests.fuzz.interpreted import interpreted
from tests.more_examples import every_rule, is_left_alone, makes

SEED = 1


def checked(rule: Rule, instances: int) -> RuleReport:
    found = FoundRule(rule, __name__, ((rule,),))
    evaluators = (interpreted, interpreted, op_by_op)
    return check(found, SEED, instances, 30, most_violations=1, evaluators=evaluators)


# The rules that there are.

RULES = every_rule()


@pytest.mark.parametrize("found", RULES, ids=lambda found: found.name)
def test_a_rule_keeps_what_it_claims_in_its_neighbourhood(found: FoundRule) -> None:
    report = check(found, SEED, 4, 20, evaluators=(interpreted,))
    assert not report.violations and report.fired


LEFT_ALONE = [
    (found, number)
    for found in RULES
    for number in range(1, len(found.more) + 1)
    if is_left_alone(found, number)
]


@pytest.mark.parametrize(
    ("found", "number"), LEFT_ALONE, ids=lambda each: getattr(each, "name", str(each))
)
def test_a_rule_leaves_alone_what_it_would_make_dearer(found: FoundRule, number: int) -> None:
    assert not fires_on(found, number)


def fires_on(found: FoundRule, number: int) -> bool:
    """Whether a rule fires on its further example of this number."""
    program = neighbour(found, first_rules(found), SEED, number)
    assert program is not None
    with jax.enable_x64(program.wide):
        return fires(found.rule, program.graph)


def test_which_examples_a_rule_leaves_alone(golden: Callable[[str, str], None]) -> None:
    """All of them: a guard too few fires on one more, even where its numbers stay right."""
    lines = []
    for found in RULES:
        left = [str(n) for n in range(1, len(found.more) + 1) if not fires_on(found, n)]
        lines += [f"{found.name}: {' '.join(left)} of {len(found.more)}"] if left else []
    golden("\n".join(lines), "left_alone.txt")


MAKES = [
    (found, number)
    for found in RULES
    for number in range(1, len(found.more) + 1)
    if makes(found, number) is not None
]


@pytest.mark.parametrize(
    ("found", "number"), MAKES, ids=lambda each: getattr(each, "name", str(each))
)
def test_a_rule_makes_the_word_that_it_is_for(found: FoundRule, number: int) -> None:
    program = neighbour(found, first_rules(found), SEED, number)
    assert program is not None
    with jax.enable_x64(program.wide):
        made = rewrite(program.graph, [found.rule])
    assert makes(found, number).is_in(made)


APPROXIMATE = [found for found in RULES if found.rule.keeps == "approx"]


@pytest.mark.parametrize("found", APPROXIMATE, ids=lambda found: found.name)
def test_an_approximate_rule_has_an_example_that_loses_nothing(found: FoundRule) -> None:
    before = after_rules(example_graph(found.rule), first_rules(found))
    random = np.random.default_rng(SEED)
    arrays = [array_of(value.type, "plain", random) for value in before.inputs]
    expected = interpreted(before, arrays)
    ways = ([found.rule], found.families[0])  # alone, or where what it makes cancels
    got = [interpreted(rewrite(before, rules), arrays) for rules in ways]
    assert any(difference(expected, each, "reals", 1e-5) is None for each in got)


# Wrong rules, each as somebody might write it.


@local("div", example=lambda x: jnp.sum(x, 1) / 4, types=("f32[3,4]",), keeps="reals")
def mean_by_about_the_count(op: Op) -> Outcome:
    """sum(x) / n  ->  sum(x * (1 / n)), for a count that is nearly n"""
    total, count = op.args[0].op, number(op.args[1])
    if total.name != "reduce_sum" or not isinstance(count, float):
        return None
    source = total.args[0]
    size = source.type.size / max(1, op.types[0].size)
    if not size or abs(count - size) > 0.3 * size:
        return None
    share = constant(np.asarray(1 / size).astype("float32"), Type("f32", ()))
    scaled = make("mul", source, in_dtype(share, source.type.dtype))
    return make("reduce_sum", scaled, **dict(total.attrs))


@local("reshape", example=lambda x: x.T.reshape(12), types=("f32[3,4]",))
def transpose_lost(op: Op) -> Outcome:
    """reshape(transpose(x))  ->  reshape(x)"""
    inner = op.args[0].op
    return reshaped(inner.args[0], op.types[0].shape) if inner.name == "transpose" else None


@local(
    "convert_element_type",
    example=lambda x: x.astype("int16").astype("float32"),
    types=("i32[4]",),
)
def wrap_lost(op: Op) -> Outcome:
    """convert(convert(x))  ->  convert(x)"""
    inner = op.args[0].op
    converts = inner.name == "convert_element_type"
    return with_args(op, inner.args).results[0] if converts else None


@local("div", example=lambda x, y: -x / y, types=("f32[4]", "f32[4]"))
def sign_over_division(op: Op) -> Outcome:
    """(-x) / y  ->  -(x / y)"""
    inner = op.args[0].op
    return make("neg", make("div", *inner.args, op.args[1])) if inner.name == "neg" else None


@local("mul", example=lambda x: x * 0.0, types=("f32[4]",), keeps="reals")
def nothing_times(op: Op) -> Outcome:
    """x * 0  ->  0"""
    if number(op.args[1]) != 0 or op.args[0].type.shape != op.types[0].shape:
        return None
    zero = constant(np.asarray(0), Type(op.types[0].dtype, ()))
    return make("broadcast_in_dim", zero, shape=op.types[0].shape, broadcast_dimensions=())


@local(
    "select_n",
    example=lambda m, x: jnp.where(m > 0, jnp.where(m > 0, x, 0.0), 1.0),
    types=("f32[4]", "f32[4]"),
)
def mask_lost(op: Op) -> Outcome:
    """select(m, y, select(m, z, x))  ->  select(m, z, x)"""
    inner = op.args[-1].op
    return inner.results[0] if inner.name == "select_n" else None


@local("rev", example=lambda x: lax.rev(lax.rev(x, (1,)), (1,)), types=("f32[3,4]",))
def axis_forgotten(op: Op) -> Outcome:
    """rev(rev(x))  ->  x"""
    return op.args[0].op.args[0] if op.args[0].op.name == "rev" else None


@local("pow", example=lambda x: x**2.0, types=("f32[4]",), keeps="reals")
def shape_forgotten(op: Op) -> Outcome:
    """x ** 2  ->  x * x"""
    return make("mul", op.args[0], op.args[0]) if number(op.args[1]) == 2 else None


@local(
    "convert_element_type",
    example=lambda x, y: (x + y).astype("bfloat16"),
    types=("f32[4]", "f32[4]"),
)
def rounding_moved(op: Op) -> Outcome:
    """convert(x + y)  ->  convert(x) + convert(y)"""
    inner, dtype = op.args[0].op, op.types[0].dtype
    return make("add", *(in_dtype(x, dtype) for x in inner.args)) if inner.name == "add" else None


@local("add", example=lambda x, y: x * 2.0 + x * y, types=("f32[4]", "f32[4]"), keeps="reals")
def distributed(op: Op) -> Outcome:
    """x * a + x * b  ->  x * (a + b)"""
    left, right = (arg.op for arg in op.args)
    if left.name != "mul" or right.name != "mul" or left.args[0] != right.args[0]:
        return None
    return make("mul", left.args[0], make("add", left.args[1], right.args[1]))


@local("mul", example=lambda x: x * 2.0 * 4.0, types=("f32[4]",), keeps="reals")
def folded_in_floats(op: Op) -> Outcome:
    """x * a * b  ->  x * (a * b)"""
    inner, last = op.args[0].op, number(op.args[1])
    first = number(inner.args[1]) if inner.name == "mul" else None
    if first is None or last is None:
        return None
    with np.errstate(all="ignore"):
        both = np.asarray(round(float(first) * float(last), 3))
    return make("mul", inner.args[0], constant(both, Type(op.types[0].dtype, ())))


@local("unstack", example=lambda x, y: jnp.unstack(jnp.stack([x, y]))[0], types=("f32[4]",) * 2)
def results_swapped(op: Op) -> Outcome:
    """unstack(stack(x, y))  ->  y, x"""
    inner = op.args[0].op
    same = inner.name == "stack" and inner["axis"] == op["axis"]
    return list(reversed(inner.args)) if same else None


@local("neg", example=lambda x: -x, types=("f32[4]",))
def endless(op: Op) -> Outcome:
    """-x  ->  -(-(-x))"""
    return make("neg", make("neg", make("neg", op.args[0])))


@local("reduce_max", example=lambda x: jnp.max(jnp.flip(x, 0), 0), types=("f32[3,4]",))
def no_array_of_zeros(op: Op) -> Outcome:
    """max(rev(x))  ->  max(x)"""
    inner = op.args[0].op
    if inner.name != "rev" or 12 % inner.types[0].shape[-1] > 12:  # how often it goes into 12
        return None
    return make("reduce_max", *inner.args, **dict(op.attrs))


WRONG = [value for value in vars().values() if isinstance(value, Rule)]


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.name)
def test_a_wrong_rule_is_found(rule: Rule) -> None:
    (violation,) = checked(rule, 80).violations
    assert violation.rule == rule.name and violation.before.startswith("graph (")


# The same, right.


@local(
    "reshape",
    example=lambda x: x.T.reshape(1, 4, 3),
    types=("f32[3,4]",),
)
def reshape_inward(op: Op) -> Outcome:
    """reshape(transpose(x))  ->  transpose of x with one more axis in front"""
    inner, shape = op.args[0].op, op.types[0].shape
    if inner.name != "transpose" or shape != (1, *inner.types[0].shape):
        return None
    order = (0, *(place + 1 for place in inner["permutation"]))
    source = inner.args[0]
    return make("transpose", reshaped(source, (1, *source.type.shape)), permutation=order)


@local("div", example=lambda x, y: -x / y, types=("f32[4]", "f32[4]"))
def sign_over_float_division(op: Op) -> Outcome:
    """(-x) / y  ->  -(x / y), of floats"""
    inner = op.args[0].op
    if inner.name != "neg" or op.types[0].dtype[0] in "iu":
        return None
    return make("neg", make("div", *inner.args, op.args[1]))


@local("rev", example=lambda x: lax.rev(lax.rev(x, (1,)), (1,)), types=("f32[3,4]",))
def same_axes(op: Op) -> Outcome:
    """rev(rev(x))  ->  x"""
    inner = op.args[0].op
    same = inner.name == "rev" and set(inner["dimensions"]) == set(op["dimensions"])
    return inner.args[0] if same else None


@local("mul", example=lambda x, y: (x * 2.0) * y, types=("f32[4]", "f32[4]"), keeps="reals")
def reassociated(op: Op) -> Outcome:
    """(x * a) * y  ->  x * (a * y), of floats"""
    inner = op.args[0].op
    if inner.name != "mul" or op.types[0].dtype[0] in "iub":
        return None
    if number(inner.args[1]) is None or abs(number(inner.args[1])) > 1e4:
        return None
    return make("mul", inner.args[0], make("mul", inner.args[1], op.args[1]))


RIGHT = [v for v in vars().values() if isinstance(v, Rule) and v not in WRONG]


@pytest.mark.parametrize("rule", RIGHT, ids=lambda rule: rule.name)
def test_a_right_rule_is_not_complained_of(rule: Rule) -> None:
    report = checked(rule, 12)
    assert report.violations == [] and report.fired == 12


# Finding them.


def test_every_rule_of_a_module_is_found_once() -> None:
    found = all_rules(__name__)
    assert sorted(each.name for each in found) == sorted(rule.name for rule in WRONG + RIGHT)
    assert {each.module for each in found} == {__name__}


def test_programs_are_drawn_again_from_their_seed() -> None:
    def texts(report: RuleReport) -> Any:
        return [str(each) for each in report.violations]

    assert texts(checked(distributed, 40)) == texts(checked(distributed, 40)) != []
