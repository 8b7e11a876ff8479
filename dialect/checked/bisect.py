"""The first pass, and in it the first firing of a rule, after which numbers leave the class.

A pass is run again with its rules allowed to fire n times and no more: by halves, n comes down to
the firing with which the results are wrong and without which they are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dialect.checked.compared import Difference, difference
from dialect.checked.numbers import Before
from dialect.checked.samples import array_of, samples
from dialect.checked.tokens import Token, first_token, is_decoder
from dialect.evaluate import evaluate
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
        rule, op = self.firing.rule, self.firing.op
        lines = [
            f"rule {rule.name}, firing {self.number} of {self.total}: {rule.doc.splitlines()[0]}",
            f"op {op.name} : {', '.join(map(str, op.types))}",
        ]
        return [*lines, f"there, {self.values}"] if self.values else lines


@dataclass(frozen=True)
class Departure:
    """A pass after which the results are no longer those of before, in the class it claims."""

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
    """Runs the passes, and gives the first after which numbers leave the class that it claims.

    The program is run on the arrays that `samples` draws. None where all passes keep what they say.
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
        self.program: Program | None = None

    def before(self, step: Pass, program: Program) -> None:
        self.program = program

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        before, leaves = self.program, samples(self.program, self.seed)
        numbers = Before(before, leaves)
        wrong = numbers.departure(program, report.keeps)
        if wrong is None:
            return
        blame = token = None
        if self.blame:
            blame = _Search(step, numbers, self.target, report.keeps).blame()
            token = first_token(before, program, leaves)
        told = (step, report.keeps, wrong, blame, token, is_decoder(before))
        raise NumbersError(Departure(*told))


@dataclass(frozen=True)
class _Search:
    """Finds the firing in one run of a pass."""

    step: Pass
    before: Before
    target: Target
    keeps: str

    def run(self) -> Program:
        return self.step.run(self.before.program, self.target)

    def blame(self) -> Blame | None:
        with counted() as firings:
            self.run()
        right, wrong = 0, firings.count
        if not wrong or self.is_wrong(0):
            return None
        while wrong - right > 1:
            middle = (right + wrong) // 2
            if self.is_wrong(middle):
                wrong = middle
            else:
                right = middle
        with counted(wrong) as limited:
            self.run()
        return Blame(limited.last, wrong, firings.count, self.values(limited.last))

    def is_wrong(self, limit: int) -> bool:
        """Whether the results are wrong when no rule fires after so many."""
        try:
            with counted(limit):
                made = self.run()
            return self.before.departure(made, self.keeps) is not None
        except Exception:  # a pass whose rules are cut short may not come to its end
            return False

    def values(self, firing: Firing) -> Difference | None:
        """The op's results and those of the rule, on the program's own numbers where it reads
        these, and on others of the same types inside of a loop."""
        results = firing.op.results
        inputs = _inputs(Graph((), (*results, *firing.results)))
        given = dict(zip(self.before.program.graph.inputs, self.before.leaves))
        random = np.random.default_rng(0)
        arrays = [
            given[value] if value in given else array_of(value.type, random) for value in inputs
        ]
        made = evaluate(Graph(inputs, (*results, *firing.results)), arrays)
        expected, got = made[: len(results)], made[len(results) :]
        return difference(expected, got, "bits" if self.keeps == "bits" else "reals", 1e-4)


def _inputs(graph: Graph) -> tuple[Value, ...]:
    """The inputs that the outputs of an open graph read."""
    return tuple(Value(op, 0) for op in graph.ops if op.name == "input")
