"""A rule on one program: the graphs before and after it, compared.

    bits      both graphs, evaluated op by op, give the same bits
    reals     both graphs, lifted to f64, agree to its precision; in their dtypes, within rounding
    approx    the types are kept, and nothing fails

Whatever it keeps, a rule raises no exception, leaves a valid graph of the same types, and ends. A
violation carries the text of both programs and the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from dialect.checked.arrays import array_of, finite
from dialect.checked.compared import Difference, difference
from dialect.checked.evaluated import Evaluator, means_nothing, op_by_op
from dialect.checked.lifted import NotLiftable, lifted, widened
from dialect.checked.neighbours import Neighbour
from dialect.checked.precision import jumps, step_of_new_constants
from dialect.checked.sensitivity import forgiven
from dialect.matching.proofs import beside_parameters
from rewrite.dataflow import known_values
from rewrite.driver import Report, rewrite
from rewrite.ir import Graph, Value
from rewrite.printer import show_graph
from rewrite.rules import KNOWN, Miss, Outcome, Rule
from rewrite.verify import verify

_IN_F64 = 1e-12  # relative; what cancels is forgiven by how much rounding moves it


@dataclass(frozen=True)
class Violation:
    """A broken claim of a rule: the programs before and after, and the numbers."""

    rule: str
    seed: int
    number: int
    what: str
    before: str
    after: str = ""
    arrays: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.rule}, seed {self.seed}, program {self.number}: {self.what}"
        parts = [head, "before " + self.before]
        parts += ["after " + self.after] if self.after else []
        parts += [f"%{i} = {text}" for i, text in enumerate(self.arrays)]
        return "\n".join(parts)


@dataclass
class RuleReport:
    """What was tried of a rule. `ways` counts comparisons, `refused` the reasons of near misses."""

    name: str
    module: str
    keeps: str
    needs: tuple[str, ...]
    tried: int = 0
    fired: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Trial:
    """A rule on one program.

    `known` is a result that is known to be right; `evaluate` runs graphs.
    """

    rule: Rule
    seed: int
    number: int
    program: Neighbour
    report: RuleReport
    known: Graph | None = None
    evaluate: Evaluator = op_by_op

    @property
    def before(self) -> Graph:
        """The graph that the rule is tried on."""
        return self.program.graph

    def violation(self) -> Violation | None:
        """The claim that the rule breaks on this program; None if it keeps them."""
        with jax.enable_x64(self.program.wide):
            return self._violation()

    def _violation(self) -> Violation | None:
        fired = Report()
        try:
            with beside_parameters(self.parameters):
                after = rewrite(self.before, [self.counted()], fired)
        except Exception as error:  # a rule may raise nothing at all
            raised = f"it raises {type(error).__name__}: {_line(error)}"
            return self.broken(raised) if self.runs() else None
        if not fired.fired or after == self.known or not self.runs():
            return None
        self.report.fired += 1
        try:
            verify(after)
        except Exception as error:
            return self.broken(f"it leaves an invalid graph: {_line(error)}", after)
        types = [[(v.type.dtype, v.type.shape) for v in g.outputs] for g in (self.before, after)]
        if types[0] != types[1]:
            return self.broken(f"it turns {types[0]} into {types[1]}", after)
        try:
            return self.first_difference(after)
        except Exception as error:
            return self.broken(f"what it leaves does not run: {_line(error)}", after)

    def runs(self) -> bool:
        """Whether the program runs at all: some are well typed, and raise."""
        try:
            self.evaluate(self.before, self.sets[0])
            return not KNOWN & set(self.rule.needs) or self.has_finite_parameters()
        except Exception:
            return False

    def has_finite_parameters(self) -> bool:
        """Whether all parameter-only values, computed or marked, are finite."""
        constants = (op.results[0] for op, _ in self.before.walk() if op.name == "const")
        marked = (op.results[0] for op in self.before.ops if op.name == "known")
        static = (*constants, *known_values(self.before, self.parameters), *marked)
        graph = Graph(self.before.inputs, static)
        computed = (self.evaluate(graph, arrays) for arrays in self.sets)
        return all(finite(array).all() for arrays in computed for array in arrays)

    @cached_property
    def sets(self) -> list[list[Any]]:
        """The arrays that the program is tried on."""
        random = np.random.default_rng([self.seed, self.number])
        kinds = (
            "plain",
            "special",
            "normal",
            random.choice(("equal", "zero", "scaled", "special")),
        )
        return [self.arrays(kind, random) for kind in kinds]

    @cached_property
    def parameters(self) -> list[Value]:
        """Inputs that hold finite numbers: all but the activation, which is an example's first
        input, where the rule needs finite parameters; a random set where it has to prove it."""
        if "finite activations" in self.rule.needs:
            return list(self.before.inputs)
        if "finite parameters" in self.rule.needs:
            return list(self.before.inputs[1:])
        random = np.random.default_rng([self.seed, self.number, 1])
        return [value for value in self.before.inputs if self.rule.needs and random.integers(2)]

    def counted(self) -> Rule:
        """The rule, with its reasons for not firing counted."""

        def apply(op: Any) -> Outcome:
            outcome = self.rule.apply(op)
            if isinstance(outcome, Miss):
                self.report.refused[outcome.reason] += 1
            return outcome

        return replace(self.rule, apply=apply)

    def arrays(self, kind: str, random: np.random.Generator) -> list[Any]:
        """Numbers for the inputs, `kind` as in `dialect.checked.samples`."""
        finite = {"special": "scaled"}.get(kind, kind)
        return [
            array_of(value.type, finite if value in self.parameters else kind, random)
            for value in self.before.inputs
        ]

    def first_difference(self, after: Graph) -> Violation | None:
        """The first difference between both graphs, on any of the sets of arrays."""
        for way, arrays, wrong in self.compared(after):
            self.report.ways[way] += 1
            if wrong is not None:
                return self.broken(f"{way}: {wrong}", after, arrays)
        return None

    def compared(self, after: Graph) -> Iterator[tuple[str, list[Any], Difference | None]]:
        """For each set of numbers: how it was compared, the numbers, and the first difference."""
        if self.rule.keeps == "bits":
            for arrays in self.sets:
                yield "bits", arrays, self.in_bits(after, arrays)
        elif self.rule.keeps == "reals":
            yield from self.in_reals(after)
        else:
            self.evaluate(after, self.sets[0])
            yield "types", self.sets[0], None

    def in_bits(self, after: Graph, arrays: list[Any]) -> Difference | None:
        """The first element whose bits differ."""
        return difference(*(self.evaluate(graph, arrays) for graph in (self.before, after)), "bits")

    def in_reals(self, after: Graph) -> Iterator[tuple[str, list[Any], Difference | None]]:
        """As `compared`, both graphs in f64 where they can be lifted."""
        try:
            with jax.enable_x64(True):
                pair = lifted(self.before), lifted(after)
        except NotLiftable:
            pair = None
        if pair is not None:
            rounded = step_of_new_constants(self.before, after)
            for arrays in self.sets:
                with jax.enable_x64(True):
                    yield "reals", arrays, self.in_f64(*pair, arrays, rounded)
        if pair is None or not jumps(self.before):
            for arrays in self.sets[::2]:
                yield "rounded", arrays, self.rounded(after, arrays)

    def in_f64(
        self, before: Graph, after: Graph, arrays: list[Any], rounded: float
    ) -> Difference | None:
        """The first element that differs by more than f64 rounds."""
        wide = [widened(array) for array in arrays]
        wrong = self.unexplained(before, after, wide, rounded)
        if wrong is not None and (means_nothing(before, wide) or means_nothing(after, wide)):
            return None
        return wrong

    def rounded(self, after: Graph, arrays: list[Any]) -> Difference | None:
        """The first difference in their own dtypes that rounding does not explain."""
        wrong = self.unexplained(self.before, after, arrays)
        if wrong is None or means_nothing(self.before, arrays):
            return None
        results = self.evaluate(self.before, arrays)
        return wrong if all(finite(array).all() for array in results) else None

    def unexplained(
        self, before: Graph, after: Graph, arrays: list[Any], rounded: float = 0.0
    ) -> Difference | None:
        """The first difference that rounding on the way to either result does not explain."""
        graphs = (before, after)
        expected, got = (self.evaluate(graph, arrays) for graph in graphs)
        if difference(expected, got, "reals", _IN_F64) is None:
            return None
        runs = [partial(self.evaluate, graph, arrays) for graph in graphs]
        got = forgiven(runs[0], expected, got, rounded)
        expected = forgiven(runs[1], got, expected, rounded)
        return difference(expected, got, "reals", _IN_F64)

    def broken(
        self, fault: str, after: Graph | None = None, arrays: Sequence[Any] = ()
    ) -> Violation:
        """A violation, with the graphs and the numbers that show it."""
        shown = show_graph(after) if after is not None else ""
        texts = tuple(f"{array.dtype}{list(array.shape)} {_shown(array)}" for array in arrays)
        before = show_graph(self.before)
        return Violation(self.rule.name, self.seed, self.number, fault, before, shown, texts)


def _shown(array: Any) -> str:
    return " ".join(np.array2string(np.asarray(array), threshold=64).split())


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else ""
