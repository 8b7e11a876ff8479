"""What must hold of any program: passes keep what they claim, texts read back, types stay.

Each pass is compared with the program before it, as it stands and in the reals: the traced program
is lifted to f64, goes through the same passes, and agrees to f64 precision.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, reduce
from typing import Any

import jax
import numpy as np

from dialect.checked.arrays import finite
from dialect.checked.bisect import first_wrong_firing
from dialect.checked.compared import difference
from dialect.checked.lifted import NotLiftable, lifted, lifted_type
from dialect.checked.sensitivity import forgiven
from dialect.jaxprs.framework import Jax
from rewrite import Pipeline, Program, Target, manager, runtime, trace
from rewrite.errors import InvalidProgram, ShardwrightError
from rewrite.ir import Graph
from rewrite.manager import PassError
from tests.fuzz.interpreted import (
    as_numpy,
    as_reals,
    interpreted,
    interpreted_function,
    interpreted_program,
)

TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
IN_REALS = 1e-9  # relative; what cancels is forgiven by how much rounding moves it
_WITHOUT_POLES = frozenset(
    "add add_any convert_element_type dot_general exp exp2 mul reduce_sum square sub".split()
)
_STEPS = 256  # of the coarsest float on the way


@dataclass(frozen=True)
class Failure:
    """What does not hold: after which passes, for which of them, and how."""

    what: str
    passes: tuple[str, ...]
    text: str
    where: str = ""

    @property
    def key(self) -> str:
        """Equal for failures that are likely one fault."""
        last = self.passes[-1] if self.passes else ""
        shown = re.sub(r"0x[0-9a-f]+|-?\d+(\.\d+)?(e[+-]?\d+)?", "#", self.text.split("\n")[0])
        if self.what.startswith(("differs", "types")):
            shown = ""
        return f"{self.what} | {last} | {shown[:160]} | {self.where}"


@dataclass
class Tally:
    """What was done, over many programs."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, times: int = 1) -> None:
        self.counts[what] += times


@dataclass(frozen=True)
class State:
    """A program with the arrays it runs on and what it gives."""

    program: Program
    leaves: Sequence[Any]
    results: Sequence[Any]


def check(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    passes: Sequence[str],
    tally: Tally,
    x64: bool = False,
    reals: bool = True,
    **roles: Any,
) -> Failure | None:
    """The first failure of a function on its way through the passes, or None."""
    with warnings.catch_warnings(), np.errstate(all="ignore"), folding_in_numpy():
        warnings.simplefilter("ignore")
        with jax.enable_x64(x64):
            tally.add("programs")
            started = _imported(function, args, tally, roles)
            if not isinstance(started, State):
                return started
            failure = _text_reads_back(started, (), tally) or _through(started, passes, tally, "")
        if failure is not None or not reals:
            return failure
        with jax.enable_x64(True):
            start = _in_reals(started, tally)
            return None if start is None else _through(start, passes, tally, " in the reals")


class _InNumpy(Jax):
    """Constants are folded in numpy as well: XLA would compile each op that folds."""

    def evaluate(self, graph: Graph, arrays: Sequence[Any]) -> list[Any]:
        return interpreted(graph, arrays)


@contextmanager
def folding_in_numpy() -> Iterator[None]:
    """Inside, passes evaluate what they evaluate in numpy."""
    before = runtime.framework()
    runtime.register(_InNumpy())
    try:
        yield
    finally:
        runtime.register(before)


def _imported(
    function: Callable[..., Any], args: tuple[Any, ...], tally: Tally, roles: dict[str, Any]
) -> State | Failure | None:
    """The traced program, its bits those of the function; None where tracing refuses."""
    leaves = [as_numpy(leaf) for leaf in jax.tree.leaves(args)]  # of the width set here
    try:
        wanted = interpreted_function(function, *args)
    except Exception as error:  # what JAX itself cannot run is no program
        tally.refused[f"jax: {type(error).__name__}"] += 1
        return None
    try:
        program = trace(function, *args, **roles)
    except ShardwrightError as error:
        tally.refused[f"trace: {first_line(error)}"] += 1
        return None
    except Exception as error:
        return crashed("trace", (), error)
    try:
        results = interpreted_program(program, leaves)
    except Exception as error:
        return crashed("export", (), error)
    tally.add("imported")
    found = difference(wanted, results, "bits")
    if found is not None:
        return Failure("differs: import and export, bits", (), str(found))
    return State(program, leaves, results)


def _in_reals(state: State, tally: Tally) -> State | None:
    """The same program lifted, or None where it reads the bits of floats."""
    try:
        graph = lifted(state.program.graph)
    except NotLiftable as error:
        tally.refused[f"lift: {first_line(error).split(' at ')[0]}"] += 1
        return None
    inputs = tuple(replace(each, type=lifted_type(each.type)) for each in state.program.inputs)
    program = replace(state.program, graph=graph, inputs=inputs)
    leaves = [as_reals(leaf) for leaf in state.leaves]
    results = interpreted_program(program, leaves)
    tally.add("lifted")
    return State(program, leaves, results)


def _through(state: State, passes: Sequence[str], tally: Tally, kind: str) -> Failure | None:
    """The program through one pass after the other, each compared with the one before."""
    done: list[str] = []
    for text in passes:
        done.append(text)
        program = state.program
        step = step_of(text)
        try:
            made, (report,) = manager.run(program, [step], TARGET)
        except (PassError, InvalidProgram) as error:
            return crashed(f"pass{kind}", done, error.__cause__ or error)
        except ShardwrightError as error:
            tally.refused[f"{text}: {first_line(error)}"] += 1
            done.pop()
            continue
        tally.add(f"{text} ran{kind}")
        if made.graph == program.graph and made.stages == program.stages:
            state = replace(state, program=made)
            continue
        try:
            results = interpreted_program(made, state.leaves)
        except Exception as error:
            return crashed(f"export{kind}", done, error)
        if _is_refused(made, state.leaves):
            tally.refused["prepare: a parameter has to be finite"] += 1
            return None
        failure = _compared(state, made, results, report.keeps, done, kind)
        if failure is not None:
            return replace(failure, where=_rule(failure, state, done, kind))
        tally.add(f"compared {report.keeps}{kind}")
        state = State(made, state.leaves, results)
        if text in ("normalize", "recognize") and "lower" not in done:
            failure = _again_changes_nothing(state, text, done, tally, kind)
        if failure is not None:
            return failure
    return None if kind or len(done) % 2 else _text_reads_back(state, done, tally)


def _is_refused(program: Program, leaves: Sequence[Any]) -> bool:
    """Whether `prepare` refuses a leaf, which has to be finite."""
    pairs = zip(program.inputs, leaves, strict=True)
    return any(each.finite and not finite(leaf).all() for each, leaf in pairs)


def _compared(
    state: State, made: Program, results: list[Any], keeps: str, done: Sequence[str], kind: str
) -> Failure | None:
    failure = _types_stay(state.program, made, done, kind)
    if failure is None and keeps != "approx":
        failure = _kept(state, made, results, keeps, done, kind)
    return failure


def _rule(failure: Failure, state: State, done: Sequence[str], kind: str) -> str:
    """The rule that fired wrongly: with the first so many firings of the pass it still fails so."""

    def run() -> Any:
        return manager.run(state.program, [step_of(done[-1])], TARGET)

    def fails(ran: Any) -> bool:
        made, (report,) = ran
        results = interpreted_program(made, state.leaves)
        again = _compared(state, made, results, report.keeps, done, kind)
        return again is not None and again.what == failure.what

    found = first_wrong_firing(run, fails)
    return f"rule {found[0].rule.name}" if found else "no rule"


@lru_cache
def step_of(text: str) -> Any:
    """The pass that a text names."""
    (step,) = Pipeline.parse(text).passes()
    return step


def _kept(
    state: State, made: Program, results: list[Any], keeps: str, done: Sequence[str], kind: str
) -> Failure | None:
    tolerance = IN_REALS if kind else _STEPS * _coarsest(state)
    found = difference(state.results, results, keeps, 0.0 if keeps == "bits" else tolerance)
    if found is None:
        return None
    if keeps == "reals":
        again = partial(interpreted_program, state.program, state.leaves)
        results = forgiven(again, state.results, results)
        found = difference(state.results, results, keeps, tolerance)
        if found is not None and _overflows(state):
            return None  # what is infinite here was rounded
    return found and Failure(f"differs: {keeps}{kind}", tuple(done), str(found))


def _overflows(state: State) -> bool:
    """Whether an op without poles makes infinity, or NaN, of finite numbers, an exp zero, a power
    NaN; or whether the bits of what is not finite are read."""
    overflowed = False

    def watch(name: str, args: list[Any], results: list[Any]) -> list[Any]:
        nonlocal overflowed
        overflowed |= name in _WITHOUT_POLES and _overflowed(args, results)
        overflowed |= name in ("exp", "exp2") and _vanished(args[0], results[0])
        overflowed |= name == "pow" and _leaves_its_domain(args, results[0])
        overflowed |= name == "bitcast_convert_type" and not finite(args[0]).all()  # NaN's sign
        return results

    interpreted_program(state.program, state.leaves, watch)
    return overflowed


def _overflowed(args: Sequence[Any], results: Sequence[Any]) -> bool:
    """Whether an element is not finite where those at its place are, or where all are."""
    given, (made,) = [finite(array) for array in args], map(finite, results)
    if any(array.shape not in ((), made.shape) for array in given):
        given = [array.all() for array in given]
    return bool((reduce(np.logical_and, given) & ~made).any())


def _vanished(exponent: Any, result: Any) -> bool:
    """Whether an exp is zero where none is: a softmax that shifts nothing divides 0 by 0 there."""
    return bool((finite(exponent) & (np.asarray(result) == 0)).any())


def _leaves_its_domain(args: Sequence[Any], power: Any) -> bool:
    """Whether a power of finite numbers is NaN: a rounded exponent is no whole number any more."""
    return bool((reduce(np.logical_and, map(finite, args)) & np.isnan(np.asarray(power))).any())


def _coarsest(state: State) -> float:
    """The largest epsilon of any float of the program."""
    names = {type_.dtype for op, _ in state.program.graph.walk() for type_ in op.types}
    names |= {value.type.dtype for value in state.program.graph.inputs}
    known = {"bf16": 2.0**-8, "f16": 2.0**-11, "f64": 2.0**-53, "c128": 2.0**-53}
    return max((known.get(name, 2.0**-24) for name in names if name[0] in "bfc"), default=2.0**-24)


def _types_stay(before: Program, after: Program, done: Sequence[str], kind: str) -> Failure | None:
    for number, (one, two) in enumerate(zip(_types(before), _types(after), strict=True)):
        if one != two:
            weak = (one.dtype, one.shape) == (two.dtype, two.shape)
            text = f"output {number} was {one} and is {two}"
            return Failure(f"types{' (weak)' if weak else ''}{kind}", tuple(done), text)
    return None


def _types(program: Program) -> list[Any]:
    """The types of the user's results."""
    if program.stages is None:
        return [value.type for value in program.graph.outputs]
    pairs = zip(program.graph.outputs, program.step_outputs)
    plain = iter([value.type for value, out in pairs if out.updates is None])
    restored = iter([value.type for value in program.stages.restore.outputs])
    return [next(plain if out.updates is None else restored) for out in program.outputs]


def _again_changes_nothing(
    state: State, text: str, done: Sequence[str], tally: Tally, kind: str
) -> Failure | None:
    try:
        again = step_of(text).run(state.program, TARGET)
    except Exception as error:
        return crashed(f"twice{kind}", done, error)
    tally.add(f"{text} twice{kind}")
    if again.graph == state.program.graph:
        return None
    notes = "; ".join(again.history[-1].notes)
    return Failure(f"{text} twice is not once{kind}", tuple(done), notes)


def _text_reads_back(state: State, done: Sequence[str], tally: Tally) -> Failure | None:
    try:
        text = str(state.program)
        again = Program.parse(text)
    except ShardwrightError as error:
        tally.refused[f"text: {first_line(error)}"] += 1
        return None
    except Exception as error:
        return crashed("text", done, error)
    tally.add("texts read back")
    if again != state.program:
        return Failure("text reads back as another program", tuple(done), "")
    if done or "<" in text:
        return None
    results = interpreted_program(again, state.leaves)
    found = difference(state.results, results, "bits")
    return found and Failure("differs: text read back, bits", tuple(done), str(found))


def first_line(error: BaseException) -> str:
    return re.sub(r"\d+", "#", str(error).split("\n")[0])[:120]


def crashed(what: str, done: Sequence[str], error: BaseException) -> Failure:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/jax/" not in f.filename]
    own = [f for f in frames if re.search(r"/(dialect|passes|rewrite)/", f.filename)]
    at = own[-1] if own else None
    where = f"{at.filename.rpartition('/')[2]}:{at.name}" if at else ""
    return Failure(f"{what} crashes", tuple(done), f"{type(error).__name__}: {error}", where)
