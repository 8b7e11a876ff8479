"""Does the checker notice when a rule is broken? Every rule's mutants, and how many survive.

    python -m tests.fuzz.mutants [--rule NAME] [--rules A..B] [--seed N] [--count N]

A mutant is noticed where the checker complains of it (numbers, an exception, an invalid graph),
where too few or too many of the rule's examples fire it, as they are or at other dtypes (see
`reach`), where it leaves more ops of one of them than the rule does, or says more of them
(`longer`: it has lost part of the pattern), and where it does not end; also where one of them loses
something that it does not lose by the rule: one that approximates alone, and any together with the
rules beside it, which read what it leaves. What is not noticed is printed: `fires less` is right,
and finds less.
Mutants that compute the same are left out; `tests/more_examples` lists them with the reason.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from dialect.checked.all_rules import Family, FoundRule
from dialect.checked.compared import difference
from dialect.checked.forms import first_rules
from dialect.checked.neighbours import Neighbour, neighbour
from dialect.checked.reach import reach
from dialect.checked.trial import RuleReport, Trial
from dialect.matching.proofs import beside_parameters
from rewrite.driver import Report, rewrite
from rewrite.ir import Graph, Value
from rewrite.rules import Rule
from tests.fuzz.interpreted import interpreted
from tests.fuzz.mutations import Mutant, compiled, mutants, shared_function
from tests.fuzz.rules import arguments, chosen
from tests.more_examples import EQUAL, every_rule, makes

_MOST_TRIED = 8  # programs for each on which the rule fires
_LONGEST_S = 60
_NOTHING_LOST = 1e-5


@dataclass(frozen=True)
class Case:
    """A program, its parameters, and what the rule as it is leaves of it; None where it does not
    fire."""

    number: int
    program: Neighbour
    parameters: list[Value]
    known: Graph | None


def cases(found: FoundRule, seed: int, fired: int) -> list[Case]:
    """Programs until the rule fired on so many of them, and all of its own; those on which it does
    not are kept too."""
    first, made, left = first_rules(found), [], fired
    for number in range(fired * _MOST_TRIED):
        own = number <= len(found.more)
        program = neighbour(found, first, seed, number) if own or left > 0 else None
        if program is None:
            continue
        report = RuleReport(found.name, found.module, found.rule.keeps, found.rule.needs)
        trial = Trial(found.rule, seed, number, program, report, evaluate=interpreted)
        if trial.violation() is None:  # where the rule itself is wrong, its mutants tell nothing
            try:
                known = _left(found.rule, program, trial.parameters)
            except Exception:  # no program: no reference evaluates it either
                continue
            made.append(Case(number, program, trial.parameters, known))
            left -= known is not None
    return made


def _left(rule: Rule, program: Neighbour, parameters: list[Value]) -> Graph | None:
    report = Report()
    with jax.enable_x64(program.wide), beside_parameters(parameters):
        graph = rewrite(program.graph, [rule], report)
    return graph if report.fired else None


def fate(found: FoundRule, mutant: Mutant, programs: list[Case], seed: int) -> str:
    """How the checker notices a mutant, or `survives`."""
    try:
        with _alarm(_LONGEST_S):
            rule = compiled(found, mutant)
            if rule is None:
                return "gone"
            rule = replace(rule, example=found.rule.example, types=found.rule.types)
            return _fate(found, rule, programs, seed)
    except TimeoutError:
        return "endless"
    except Exception:
        return "gone"  # it is no rule any more


def _fate(found: FoundRule, rule: Rule, programs: list[Case], seed: int) -> str:
    report = RuleReport(rule.name, found.module, rule.keeps, rule.needs)
    first, fewer = first_rules(found), False
    for case in programs:
        trial = Trial(rule, seed, case.number, case.program, report, case.known, interpreted)
        violation = trial.violation()
        if violation is not None:
            return "raises" if "it raises" in violation.what else "differs"
        as_it_is = case.number <= len(found.more)
        if case.known is None:
            if as_it_is and _fires(rule, case):  # tests/golden/left_alone.txt says that it must not
                return "example"
            continue
        if not _fires(rule, case):
            if as_it_is:
                return "example"
            fewer = True
        elif as_it_is and _loses(found, rule, case, trial):
            return "differs"
        elif as_it_is:
            made, word = _left(rule, case.program, case.parameters), makes(found, case.number)
            if word is not None and not word.is_in(made):
                return "example"
            if _length(made) > _length(case.known):
                return "longer"
    if reach(rule, first) != reach(found.rule, first):
        return "reach"
    return "fires less" if fewer else "survives"


def _loses(found: FoundRule, rule: Rule, case: Case, trial: Trial) -> bool:
    """Whether a rule gives other numbers where the rule as it is loses none: alone, or with the
    rules beside it, which read what it leaves (of a sum that is kept beside a cache, say)."""
    beside = tuple(other for other in found.families[0] if other != found.rule)
    ways = ((), beside) if rule.keeps == "approx" else (beside,)
    with jax.enable_x64(case.program.wide), beside_parameters(case.parameters):
        arrays = trial.arrays("plain", np.random.default_rng(trial.seed))
        expected = interpreted(case.program.graph, arrays)

        def is_lost(by: Rule, others: Family) -> bool:
            results = interpreted(rewrite(case.program.graph, (by, *others)), arrays)
            return difference(expected, results, "reals", _NOTHING_LOST) is not None

        return any(not is_lost(found.rule, way) and is_lost(rule, way) for way in ways)


def _length(graph: Graph) -> int:
    """How much a graph says: its ops, and their attributes."""
    return sum(1 + len(op.attrs) for op, _ in graph.walk())


def _fires(rule: Rule, case: Case) -> bool:
    try:
        return _left(rule, case.program, case.parameters) is not None
    except Exception:
        return True


_EVERY_S = 2.0
_DEADLINE = [float("inf")]  # in seconds of CPU: the machine may be busy


def _ring(*_: object) -> None:
    if time.process_time() > _DEADLINE[0]:
        _DEADLINE[0] = float("inf")
        raise TimeoutError


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block once it has run so long."""
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, _EVERY_S, _EVERY_S)
    _DEADLINE[0] = time.process_time() + seconds
    try:
        yield
    finally:
        _DEADLINE[0] = float("inf")
        signal.setitimer(signal.ITIMER_REAL, 0)


def groups(rules: Sequence[FoundRule]) -> list[list[FoundRule]]:
    """The rules by what makes them: one that shares a function stands for all that share it."""
    every, found = every_rule(), {}
    for each in rules:
        shared = shared_function(each)
        alike = [o for o in every if (o.module, shared_function(o)) == (each.module, shared)]
        found[each.module, shared or each.name] = alike if shared else [each]
    return list(found.values())


def group_fate(mutant: Mutant, programs: Sequence[tuple[FoundRule, list[Case]]], seed: int) -> str:
    """How the checker notices a mutant of what these rules share; at one of them is enough."""
    fates = []
    for found, own in programs:
        fates.append(fate(found, mutant, own, seed))
        if fates[-1] not in ("survives", "fires less"):
            return fates[-1]
    return max(fates, key=lambda each: each == "fires less")


def main() -> None:
    args = arguments(__doc__)
    total: Counter[str] = Counter()
    for group in groups(chosen(args)):
        started = time.process_time()
        programs = [(found, cases(found, args.seed, args.count)) for found in group]
        unchanged, *changed = mutants(group[0]) or [None]
        name = f"{group[0].module}.{shared_function(group[0]) or group[0].name}"
        if unchanged is None or group_fate(unchanged, programs, args.seed) != "survives":
            print(f"{name}: its source alone does not make it")
            continue
        equal = {what for found in group for what in EQUAL.get(found.name, {})}
        changed = [mutant for mutant in changed if mutant.what not in equal]
        fates = {mutant: group_fate(mutant, programs, args.seed) for mutant in changed}
        counts = Counter(fates.values())
        total += counts
        spent = time.process_time() - started
        print(f"{name}: {_shown(counts)} ({spent:.0f} s)", flush=True)
        for mutant, what in fates.items():
            if what in ("survives", "fires less"):
                print(f"    {what}: {mutant}", flush=True)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a late one would end the process
    print(f"in all: {_shown(total)}")


def _shown(counts: Counter[str]) -> str:
    alive = counts["survives"] + counts["fires less"]
    killed = counts.total() - alive
    parts = ", ".join(f"{what} {count}" for what, count in counts.most_common())
    return f"{killed} of {counts.total()} noticed ({parts})"


if __name__ == "__main__":
    main()
