"""Whether a rule keeps what it claims, tried on programs in its neighbourhood."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dialect.checked.all_rules import Family, FoundRule, all_rules
from dialect.checked.evaluated import op_by_op
from dialect.checked.forms import first_rules
from dialect.checked.neighbours import neighbour
from dialect.checked.trial import Evaluator, RuleReport, Trial
from dialect.user.usercode import UsageError
from rewrite.errors import nearest

_A_RULE = "rules are made by `pattern` or `local`, or written in a file that ends in .rules"
_TRIED_PER_FIRED = 40  # how many programs are drawn at most for each on which the rule shall fire


def check(
    checked_rule: FoundRule,
    seed: int = 0,
    instances: int = 20,
    seconds: float = 60.0,
    first: Family | None = None,
    most_violations: int = 3,
    evaluators: Sequence[Evaluator] = (op_by_op,),
) -> RuleReport:
    """Tries a rule until it fired on `instances` programs, or used up its `seconds` of CPU.

    Programs are run by the evaluators in turn. A violation must be one for all of them and in JAX,
    which alone hides how a composite rounds inside; others may be wrong themselves.
    """
    rule, started = checked_rule.rule, time.process_time()
    report = RuleReport(rule.name, checked_rule.module, rule.keeps, rule.needs)
    first = first_rules(checked_rule) if first is None else first
    for number in range(instances * _TRIED_PER_FIRED):
        late = time.process_time() - started > seconds
        if report.fired >= instances or late or len(report.violations) >= most_violations:
            break
        tried = neighbour(checked_rule, first, seed, number)
        if tried is None:
            continue
        report.tried += 1
        first_to_run = evaluators[number % len(evaluators)]
        trial = Trial(rule, seed, number, tried, report, evaluate=first_to_run)
        violation = trial.violation()
        for other in {*evaluators, op_by_op} - {first_to_run}:
            if violation is not None:
                violation = replace(trial, evaluate=other).violation()
        if violation is not None:
            report.violations.append(violation)
    report.seconds = time.process_time() - started
    return report


def checked_rules(
    places: Sequence[str], name: str | None, seed: int, instances: int, seconds: float = 60.0
) -> Iterator[RuleReport]:
    """Checks every rule of these places, or the one of this name. Raises UsageError where there
    is none."""
    rules = [rule for rule in all_rules(*places) if name in (None, rule.name)]
    if not rules:
        known = {rule.name for rule in all_rules(*places)}
        hint = nearest(name, known) if name and known else _A_RULE
        named = f"no rule {name!r}" if name else "no rule"
        raise UsageError(f"there is {named} in {', '.join(places)}", hint=hint)
    for checked_rule in rules:
        yield check(checked_rule, seed, instances, seconds)
