"""What must hold of any program: passes keep what they claim, texts read back, types stay.

Each pass is compared with the program before it, as it stands and in the reals: the traced program
is lifted to f64, goes through the same passes, and agrees to f64 precision.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from dialect.checked.compared import difference
from dialect.checked.evaluated import as_reals, evaluated_program, typed
from dialect.checked.lifted import NotLiftable, lifted, lifted_type
from dialect.checked.sensitivity import forgiven
from rewrite import Pipeline, Program, Target, manager, trace
from rewrite.errors import InvalidProgram, ShardwrightError
from rewrite.manager import PassError

TARGET = Target("cpu:8", (("x", 2), ("y", 4)))
IN_REALS = 1e-9  # relative; what cancels is forgiven by how much rounding moves it
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
    with warnings.catch_warnings(), np.errstate(all="ignore"):
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


def _imported(
    function: Callable[..., Any], args: tuple[Any, ...], tally: Tally, roles: dict[str, Any]
) -> State | Failure | None:
    """The traced program, its bits those of the function; None where tracing refuses."""
    leaves = jax.tree.leaves(args)
    try:
        program = trace(function, *args, **roles)
    except ShardwrightError as error:
        tally.refused[f"trace: {_first_line(error)}"] += 1
        return None
    except Exception as error:
        return _crashed("trace", (), error)
    wanted = jax.tree.leaves(_alone(function, args))
    try:
        results, _ = evaluated_program(program, leaves)
    except Exception as error:
        return _crashed("export", (), error)
    types = [value.type for value in program.graph.outputs]
    results = [typed(each, type_) for each, type_ in zip(results, types)]
    tally.add("imported")
    found = difference(wanted, results, "bits")
    if found is not None:
        return Failure("differs: import and export, bits", (), str(found))
    return State(program, leaves, results)


def _alone(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The function op by op; where a loop of no iteration forbids that, as it comes."""
    try:
        with jax.disable_jit():
            return function(*args)
    except Exception:
        return function(*args)


def _in_reals(state: State, tally: Tally) -> State | None:
    """The same program lifted, or None where it reads the bits of floats."""
    try:
        graph = lifted(state.program.graph)
    except NotLiftable as error:
        tally.refused[f"lift: {_first_line(error).split(' at ')[0]}"] += 1
        return None
    inputs = tuple(replace(each, type=lifted_type(each.type)) for each in state.program.inputs)
    program = replace(state.program, graph=graph, inputs=inputs)
    leaves = [as_reals(leaf) for leaf in state.leaves]
    results, _ = evaluated_program(program, leaves)
    tally.add("lifted")
    return State(program, leaves, _typed(program, results))


def _typed(program: Program, results: Sequence[Any]) -> list[Any]:
    """Results as arrays: constants that are results may be Python scalars."""
    graphs = program.stages.restore if program.stages else program.graph
    if program.stages is None:
        return [typed(r, value.type) for r, value in zip(results, graphs.outputs)]
    return [each if hasattr(each, "dtype") else jnp.asarray(each) for each in results]


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
            return _crashed(f"pass{kind}", done, error.__cause__ or error)
        except ShardwrightError as error:
            tally.refused[f"{text}: {_first_line(error)}"] += 1
            done.pop()
            continue
        tally.add(f"{text} ran{kind}")
        if made.graph == program.graph and made.stages == program.stages:
            state = replace(state, program=made)
            continue
        try:
            results = _typed(made, evaluated_program(made, state.leaves)[0])
        except Exception as error:
            return _crashed(f"export{kind}", done, error)
        failure = _types_stay(state.results, results, done, kind)
        if failure is None and report.keeps != "approx":
            failure = _kept(state, made, results, report.keeps, done, kind)
        if failure is not None:
            return failure
        tally.add(f"compared {report.keeps}{kind}")
        state = State(made, state.leaves, results)
        if text in ("normalize", "recognize") and "lower" not in done:
            failure = _again_changes_nothing(state, text, done, tally, kind)
        if failure is not None:
            return failure
    return None if kind else _text_reads_back(state, done, tally)


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
        results = forgiven(state.program, state.leaves, state.results, results)
        found = difference(state.results, results, keeps, tolerance)
    return found and Failure(f"differs: {keeps}{kind}", tuple(done), str(found))


def _coarsest(state: State) -> float:
    """The largest epsilon of any float of the program."""
    names = {type_.dtype for op, _ in state.program.graph.walk() for type_ in op.types}
    names |= {value.type.dtype for value in state.program.graph.inputs}
    known = {"bf16": 2.0**-8, "f16": 2.0**-11, "f64": 2.0**-53, "c128": 2.0**-53}
    return max((known.get(name, 2.0**-24) for name in names if name[0] in "bfc"), default=2.0**-24)


def _types_stay(
    before: Sequence[Any], after: Sequence[Any], done: Sequence[str], kind: str
) -> Failure | None:
    for number, (one, two) in enumerate(zip(before, after, strict=True)):
        told = [(x.dtype, x.shape, x.weak_type) for x in (jax.typeof(one), jax.typeof(two))]
        if told[0] != told[1]:
            text = f"output {number} was {told[0]} and is {told[1]}"
            weak = told[0][:2] == told[1][:2]
            return Failure(f"types{' (weak)' if weak else ''}{kind}", tuple(done), text)
    return None


def _again_changes_nothing(
    state: State, text: str, done: Sequence[str], tally: Tally, kind: str
) -> Failure | None:
    try:
        again = step_of(text).run(state.program, TARGET)
    except Exception as error:
        return _crashed(f"twice{kind}", done, error)
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
        tally.refused[f"text: {_first_line(error)}"] += 1
        return None
    except Exception as error:
        return _crashed("text", done, error)
    tally.add("texts read back")
    if again != state.program:
        return Failure("text reads back as another program", tuple(done), "")
    if done or "<" in text:
        return None
    results = _typed(again, evaluated_program(again, state.leaves)[0])
    found = difference(state.results, results, "bits")
    return found and Failure("differs: text read back, bits", tuple(done), str(found))


def _first_line(error: BaseException) -> str:
    return re.sub(r"\d+", "#", str(error).split("\n")[0])[:120]


def _crashed(what: str, done: Sequence[str], error: BaseException) -> Failure:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/jax/" not in f.filename]
    own = [f for f in frames if re.search(r"/(dialect|passes|rewrite)/", f.filename)]
    at = own[-1] if own else None
    where = f"{at.filename.rpartition('/')[2]}:{at.name}" if at else ""
    return Failure(f"{what} crashes", tuple(done), f"{type(error).__name__}: {error}", where)
