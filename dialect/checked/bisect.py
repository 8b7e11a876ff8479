"""The first pass that breaks its claim on numbers, and in it the first firing of a rule that does.

The pass is run again with its rules limited to n firings: a binary search over n finds the firing
with which the results are wrong and without which they are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dialect.arrays.evaluate import evaluate
from dialect.checked.compared import Difference, difference
from dialect.checked.numbers import Numbers
from dialect.checked.samples import array_of, samples
from dialect.checked.tokens import Token, first_token, is_decoder
from rewrite import manager
from rewrite.errors import ShardwrightError
from rewrite.firings import Firing, counted
from rewrite.ir import Graph, Value
from rewrite.manager import Hook, PassReport
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class Blame:
    """A rule that fired wrongly: which firing of how many, and both values at that place."""

    firing: Firing
    number: int
    total: int
    values: Difference | None

    @property
    def source(self) -> str:
        """The user's line: that of the op, or of the nearest op that it reads."""
        op = self.firing.op
        while not op.origin.source and op.args:
            op = op.args[0].op
        return op.origin.source

    def lines(self) -> list[str]:
        """The rule, the op that it rewrote, and the values that differ."""
        rule, op = self.firing.rule, self.firing.op
        lines = [
            f"rule {rule.name}, firing {self.number} of {self.total}: {rule.doc.splitlines()[0]}",
            f"op {op.name} : {', '.join(map(str, op.types))}",
        ]
        return [*lines, f"there, {self.values}"] if self.values else lines


@dataclass(frozen=True)
class Departure:
    """A pass after which the results differ by more than the class that it claims allows."""

    step: Pass
    keeps: str
    difference: Difference
    blame: Blame | None
    token: Token | None
    decoder: bool

    def __str__(self) -> str:
        lines = [f"pass {self.step} claims to keep {self.keeps}, but {self.difference}"]
        if self.blame is None:
            lines.append("no single firing of a rule does it")
        else:
            lines += self.blame.lines()
        if self.decoder:
            lines.append(str(self.token) if self.token else "the tokens of 8 steps agree")
        return "\n  ".join(lines)


class NumbersError(ShardwrightError):
    """A pass changed a number that it claims to keep."""

    failure = "numbers"

    def __init__(self, departure: Departure) -> None:
        self.departure = departure
        where = departure.blame.source if departure.blame else ""
        super().__init__(str(departure), where=where)


def bisect(
    program: Program, passes: Sequence[Pass], target: Target, seed: int = 0
) -> Departure | None:
    """Runs the passes, and returns the first that breaks its claim on numbers, or None.

    The program is run on the arrays that `samples` draws.
    """
    try:
        manager.run(program, passes, target, [VerifyNumbers(target, seed)])
    except NumbersError as error:
        return error.departure
    return None


class VerifyNumbers(Hook):
    """Compares the results before and after every pass; raises NumbersError at the first wrong.

    `blame` looks for the rule and the token too, which takes some dozen runs more.
    """

    def __init__(self, target: Target, seed: int = 0, blame: bool = True) -> None:
        self.target, self.seed, self.blame = target, seed, blame
        self.numbers: Numbers | None = None  # of the program that the next pass gets

    def before(self, step: Pass, program: Program) -> None:
        if self.numbers is None or self.numbers.program is not program:
            self.numbers = Numbers(program, samples(program, self.seed))

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        before, self.numbers = self.numbers, Numbers(program, self.numbers.leaves)
        wrong = before.departure(self.numbers, report.keeps)
        if wrong is None:
            return
        blame = token = None
        if self.blame:
            blame = _Search(step, before, self.target, report.keeps).blame()
            token = first_token(before.program, program, before.leaves)
        facts = (step, report.keeps, wrong, blame, token, is_decoder(before.program))
        raise NumbersError(Departure(*facts))


def first_wrong_firing(
    run: Callable[[], Any], is_wrong: Callable[[Any], bool]
) -> tuple[Firing, int, int] | None:
    """The firing with which the result of `run` is wrong and without which it is right.

    Also its number, and how many firings there are. None where no rule fires, or where the result
    is wrong even if none does.
    """

    def is_wrong_after(limit: int) -> bool:
        try:
            with counted(limit):
                result = run()
            return is_wrong(result)
        except Exception:  # a pass whose rules are cut short may not come to its end
            return False

    with counted() as firings:
        run()
    right, wrong = 0, firings.count
    if not wrong or is_wrong_after(0):
        return None
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if is_wrong_after(middle) else (middle, wrong)
    with counted(wrong) as limited:
        run()
    return limited.last, wrong, firings.count


@dataclass(frozen=True)
class _Search:
    """Finds the firing in one run of a pass."""

    step: Pass
    before: Numbers
    target: Target
    keeps: str

    def blame(self) -> Blame | None:
        result = first_wrong_firing(self.run, self.is_wrong)
        return result and Blame(*result, self.values(result[0]))

    def run(self) -> Program:
        return self.step.run(self.before.program, self.target)

    def is_wrong(self, program: Program) -> bool:
        after = Numbers(program, self.before.leaves)
        return self.before.departure(after, self.keeps) is not None

    def values(self, firing: Firing) -> Difference | None:
        """The first difference between the op's results and the rule's. Inputs of the program have
        their own arrays, those of a loop's body random ones."""
        results = firing.op.results
        inputs = _inputs(Graph((), (*results, *firing.results)))
        drawn = dict(zip(self.before.program.graph.inputs, self.before.leaves))
        random = np.random.default_rng(0)
        arrays = [
            drawn[value] if value in drawn else array_of(value.type, random) for value in inputs
        ]
        computed = evaluate(Graph(inputs, (*results, *firing.results)), arrays)
        expected, got = computed[: len(results)], computed[len(results) :]
        return difference(expected, got, "bits" if self.keeps == "bits" else "reals", 1e-4)


def _inputs(graph: Graph) -> tuple[Value, ...]:
    """The inputs that the outputs of an open graph read."""
    return tuple(Value(op, 0) for op in graph.ops if op.name == "input")
