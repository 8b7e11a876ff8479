"""JAX's own tests as programs: every function that they transform goes through Shardwright.

    python -m tests.fuzz.jax_tests PATH [--files lax_test.py nn_test.py] [--through "normalize"]

PATH is the `tests` folder of a checkout of JAX at the version that is installed; nothing of it is
kept here. Three things of a test are replaced while it runs, and nothing else is patched:

- `jax.jit`, `jax.grad`, `jax.vmap` and their like, whose functions are first compared and then do
  what they always do;
- `self._CompileAndCheck(function, args_maker)` and `self._CheckAgainstNumpy(reference, function,
  args_maker)`, by the comparison alone.

A comparison traces the function on the test's own arguments and imports the jaxpr. Exported, it
must give the bits that the jaxpr gives when it is applied op by op (a compiled one is fused, which
rounds otherwise), and its text must read back. With `--through` it then runs through those passes,
and what comes out must be the same real numbers: both are lifted to f64 and evaluated
(`dialect.checked`).

What JAX's own assertions say has no say in this. A function that a test calls inside a trace has no
values, and one that it calls untransformed is no program: neither is counted. `untraceable` is what
JAX itself refuses: most tests of errors are. Tests draw several cases from each of their tables:
JAX_NUM_GENERATED_CASES says how many.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import time
import unittest
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_NUM_GENERATED_CASES", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "jax" not in sys.modules:  # every function runs once or twice: good machine code is not worth it
    QUICK = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + QUICK

import jax
import jax.numpy as jnp

from dialect.arrays import primitives
from rewrite import Pipeline
from rewrite.errors import ShardwrightError, TraceError
from tests.fuzz.kept import Different, compare, op_by_op

FILES = (
    "lax_test.py lax_numpy_test.py lax_numpy_indexing_test.py lax_numpy_reducers_test.py "
    "lax_numpy_einsum_test.py lax_numpy_operators_test.py lax_numpy_ufuncs_test.py "
    "lax_numpy_setops_test.py lax_numpy_vectorize_test.py lax_control_flow_test.py nn_test.py "
    "api_test.py lax_vmap_test.py lax_vmap_op_test.py lax_autodiff_test.py"
).split()
KINDS = ("passed", "refused", "untraceable", "different", "crashed", "out of time")
FAULTS = ("different", "crashed", "out of time")
CALLS_COMPARED = 2  # of one jitted function: later calls have other numbers, seldom other ops
SECONDS = 60  # a test


@dataclass(frozen=True)
class Outcome:
    """What became of one function: the test that it comes from, one of KINDS, and why."""

    test: str
    kind: str
    why: str = ""


class OutOfTime(BaseException):
    """Raised in a test that takes too long; no `except Exception` of the test's stops it."""


# Watching a test.


@dataclass
class Watch:
    """Compares what the running test jits, and keeps what became of it."""

    passes: Pipeline | None = None
    test: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    busy: bool = False
    seen: list[Any] = field(default_factory=list)

    def compare(self, jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any], static: Any):
        """Notes what becomes of a jitted function on these arguments. Nothing inside a trace."""
        if self.busy or not self.test or _is_staged(args, kwargs, static):
            return
        self.busy = True
        try:
            self.note(*self.judged(jitted, args, kwargs, static))
        finally:
            self.busy = False

    def judged(self, jitted: Any, args: Any, kwargs: Any, static: Any) -> tuple[str, str]:
        try:
            jaxpr = jitted.trace(*args, **kwargs).jaxpr
            leaves = jax.tree.leaves(_without_static(args, kwargs, *static))
            leaves = [leaf if hasattr(leaf, "aval") else jnp.asarray(leaf) for leaf in leaves]
        except Exception as error:
            return "untraceable", type(error).__name__
        try:
            compare(jaxpr, leaves, self.passes)
        except OutOfTime:
            return "out of time", ""
        except TraceError as error:
            return "refused", error.message
        except Different as error:
            return "different", str(error)
        except Exception as error:
            if not isinstance(error, ShardwrightError) and self.fails_alone(jaxpr, leaves):
                return "untraceable", f"JAX itself: {type(error).__name__}"
            return "crashed", f"{type(error).__name__}: {error}"
        return "passed", ""

    def fails_alone(self, jaxpr: Any, leaves: list[Any]) -> bool:
        """Whether JAX cannot run the program either."""
        try:
            op_by_op(*primitives.opened(jaxpr), leaves)
        except Exception:
            return True
        return False

    def note(self, kind: str, why: str) -> None:
        self.outcomes.append(Outcome(self.test, kind, why))
        if kind in FAULTS:
            print(_told(self.outcomes[-1]), file=sys.stderr, flush=True)

    def checked(self, function: Callable[..., Any], args_maker: Callable[[], Any]) -> None:
        """Stands in for both of JAX's own checks; a test often gives one function to both."""
        if not any(function is other for other in self.seen):
            self.seen.append(function)
            self.compare(REAL_JIT(lambda *args: function(*args)), tuple(args_maker()), {}, ((), ()))


REAL_JIT = jax.jit
TRANSFORMATIONS = "grad value_and_grad vmap jacfwd jacrev hessian".split()


class Watched:
    """A transformed function while tests run: its first calls are compared, else it is itself."""

    def __init__(self, watch: Watch, function: Any, real: Any, jitted: Any, static: Any) -> None:
        self.watch, self.real, self.jitted, self.static = watch, real, jitted, static
        self.calls, self.__wrapped__ = 0, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.calls < CALLS_COMPARED:
            self.calls += 1
            self.watch.compare(self.jitted, args, kwargs, self.static)
        return self.real(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else lambda *a, **k: self(instance, *a, **k)


def _static(function: Any, options: dict[str, Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The static arguments of a jitted function, by number and by name."""
    numbers, names = options.get("static_argnums"), options.get("static_argnames")
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers or ())
    names = (names,) if isinstance(names, str) else tuple(names or ())
    try:
        known = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return numbers, names
    named = {known[i] for i in numbers if -len(known) <= i < len(known)} | set(names)
    return (*numbers, *(i for i, name in enumerate(known) if name in names)), tuple(named)


def _without_static(args: Any, kwargs: Any, numbers: Any, names: Any) -> Any:
    gone = {number % max(len(args), 1) for number in numbers}
    return (
        [arg for i, arg in enumerate(args) if i not in gone],
        {name: value for name, value in sorted(kwargs.items()) if name not in names},
    )


def _is_staged(args: Any, kwargs: Any, static: Any) -> bool:
    """Whether a call lies in a trace, where nothing has a value to compare."""
    leaves = jax.tree.leaves(_without_static(args, kwargs, *static))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (*leaves, jnp.zeros(())))


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Transformations replaced. Test files are imported inside: they may say `from jax import
    jit`."""
    real = {name: getattr(jax, name) for name in ("jit", *TRANSFORMATIONS)}

    def jit(function: Any = None, /, **options: Any) -> Any:
        if function is None:
            return lambda function: jit(function, **options)
        jitted = REAL_JIT(function, **options)
        return Watched(watch, function, jitted, jitted, _static(function, options))

    def transformation(name: str) -> Callable[..., Any]:
        @wraps(real[name])  # tests are named by what they transform with
        def transform(function: Any, *args: Any, **options: Any) -> Any:
            made = real[name](function, *args, **options)
            return Watched(watch, function, made, REAL_JIT(made), ((), ()))

        return transform

    replaced = {name: transformation(name) for name in TRANSFORMATIONS} | {"jit": jit}
    try:
        vars(jax).update(replaced)
        yield
    finally:
        vars(jax).update(real)


# Running tests.


def tests_of(path: Path) -> list[unittest.TestCase]:
    """The tests of a file, which is imported under its own name."""
    sys.path[:0] = [] if str(path.parent) in sys.path else [str(path.parent)]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(_flat(unittest.defaultTestLoader.loadTestsFromModule(module)))


def _flat(suite: Any) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _flat(item)
        else:
            yield item


def run_test(test: unittest.TestCase, watch: Watch, seconds: float = SECONDS) -> str:
    """Runs one test; returns what it says by itself: `ok`, `skipped`, `failed`."""
    watch.test, watch.seen = test.id(), []
    test._CompileAndCheck = lambda function, maker, **_: watch.checked(function, maker)
    test._CheckAgainstNumpy = lambda _, function, maker, **__: watch.checked(function, maker)
    result = unittest.TestResult()
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        test.run(result)
    except OutOfTime:
        watch.note("out of time", "")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.test, watch.busy = "", False
    if result.skipped:
        return "skipped"
    return "ok" if result.wasSuccessful() else "failed"


def _out_of_time(*_: Any) -> None:
    raise OutOfTime


def run_files(
    folder: Path,
    files: Sequence[str],
    watch: Watch,
    select: tuple[int, int] = (0, 1),
    only: str = "",
    seconds: float = SECONDS,
) -> dict[str, int]:
    """Runs the tests of these files; returns how many are ok, skipped, and failed by themselves.

    `select` (k, n) takes every n-th test from the k-th on, `only` those whose name it is found in.
    """
    said: Counter[str] = Counter()
    with watched(watch):
        for file in files:
            chosen = tests_of(folder / file)[select[0] :: select[1]]
            chosen = [test for test in chosen if re.search(only, test.id())]
            started = time.monotonic()
            for number, test in enumerate(chosen):
                said[run_test(test, watch, seconds)] += 1
                if number % 50 == 49:
                    jax.clear_caches()
            spent = f"{time.monotonic() - started:.0f} s"
            print(f"{file}: {len(chosen)} tests, {spent}", file=sys.stderr, flush=True)
    return dict(said)


# Telling.


def report(watch: Watch, said: dict[str, int]) -> str:
    """The counts, why functions were refused, and each difference and crash by its test."""
    counts = Counter(outcome.kind for outcome in watch.outcomes)
    lines = [f"{len(watch.outcomes)} functions: " + _listed(counts, KINDS)]
    for kind in ("refused", "untraceable"):
        reasons = Counter(_reason(o.why) for o in watch.outcomes if o.kind == kind)
        lines += [f"  {kind} {count}: {reason}" for reason, count in reasons.most_common()]
    for kind in FAULTS:
        lines += [_told(outcome) for outcome in watch.outcomes if outcome.kind == kind]
    return "\n".join([*lines, "tests by themselves: " + _listed(said, sorted(said))])


def _listed(counts: dict[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{counts.get(name, 0)} {name}" for name in names)


def _reason(why: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "N", why.splitlines()[0] if why else "")[:120]


def _told(outcome: Outcome) -> str:
    return f"{outcome.kind}: {outcome.test}: {' | '.join(outcome.why.splitlines()[:3])[:400]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the `tests` folder of a checkout of JAX")
    parser.add_argument("--files", nargs="*", default=FILES)
    parser.add_argument("--through", default="", help="passes, as in a pipeline")
    parser.add_argument("--select", default="0/1", help="K/N: every N-th test, from the K-th on")
    parser.add_argument("--only", default="", help="a regular expression that names must match")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="at most, for one test")
    parser.add_argument("--json", action="store_true", help="every outcome, instead of the counts")
    asked = parser.parse_args()
    sys.argv[1:] = []  # JAX's tests read flags of their own
    watch = Watch(Pipeline.of(asked.through) if asked.through else None)
    first, every = map(int, asked.select.split("/"))
    said = run_files(asked.path, asked.files, watch, (first, every), asked.only, asked.seconds)
    outcomes = [asdict(outcome) for outcome in watch.outcomes]
    print(json.dumps({"tests": said, "functions": outcomes}) if asked.json else report(watch, said))
    return int(any(outcome.kind in FAULTS[:2] for outcome in watch.outcomes))


if __name__ == "__main__":
    sys.exit(main())
