"""Measures the accuracy of a trained decoder after every pass, on held-out text and other tasks.

Every program runs as in serving: parameters are packed once, the state is adapted once, and then
the steps run over the text, reading the state of the step before. So effects on weights,
activations and cache are all in the compared logits. Everything runs on one device: sharding does
not change the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.evaluate import evaluate
from dialect.display.quantities import size
from dialect.display.tables import Table
from dialect.measured.accuracy import Accuracy, accuracy
from dialect.measured.tasks import TEXT, Source, tasks
from dialect.reports.explained import Explained
from dialect.reports.quant_report import Error, error_table, errors
from dialect.user.usercode import Trained, UsageError
from passes.stage import Stage
from rewrite import manager, runtime
from rewrite.ir import Graph, Type
from rewrite.manager import PassReport
from rewrite.passbase import Pass
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target

ORIGINAL = "original"


class Prefixes(Explained):
    """Records (pass, what it keeps, program) before the first pass and after every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[tuple[str, str, Program]] = []

    def before(self, step: Pass, program: Program) -> None:
        """Records the original program."""
        super().before(step, program)
        if not self.programs:
            self.programs.append((ORIGINAL, "", program))

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        """Records the program after a pass."""
        super().after(step, program, report)
        self.programs.append((report.text, report.keeps, program))

    def compare(self, texts: Sequence[str], target: Target) -> None:
        """Keeps the first program and the last, and adds what the passes of each text alone make
        of the last. Raises PipelineError, and what the passes raise."""
        last = self.programs[-1][2]
        so_far = ", ".join(text for text, _, _ in self.programs[1:])
        self.programs = [self.programs[0], (so_far, last.keeps, last)]
        for text in texts:
            passes = Pipeline.parse(text, source="--compare").passes()
            rewritten, _ = manager.run(last, passes, target)
            self.programs.append((text, rewritten.keeps, rewritten))


# Runs a program over a text.


def interface(program: Program) -> tuple[Type, Type]:
    """The types of the tokens and of the logits of one step.

    Raises UsageError if a step has other arguments or results besides parameters and state.
    """
    outputs = zip(program.outputs, program.graph.outputs)
    inputs = [input_ for input_ in program.inputs if input_.role == "arg"]
    outputs_ = [(out.name, value.type) for out, value in outputs if out.updates is None]
    if len(inputs) != 1 or len(outputs_) != 1 or outputs_[0][1].rank not in (2, 3):
        raise UsageError(
            f"the step must take tokens and a cache, and return logits and a cache; {program.name} "
            f"takes {', '.join(input_.name for input_ in inputs)} "
            f"and returns {', '.join(name for name, _ in outputs_)}",
            hint="return the cache as it was passed (structure and types), or name it: --state",
        )
    return inputs[0].type, outputs_[0][1]


def over_text(program: Program, params: Any, cache: Any) -> Callable[[np.ndarray], np.ndarray]:
    """f(tokens i32[steps, batch] or [steps, batch, new]) -> logits f32[steps, batch, predictions,
    vocab]; it is compiled once for all tokens of a shape."""
    results = results_over(program, params, cache)

    def logits(tokens: np.ndarray) -> np.ndarray:
        values = np.asarray(results(tokens)[0], np.float32)
        return values if values.ndim == 4 else values[:, :, None]

    return logits


def results_over(program: Program, params: Any, cache: Any) -> Callable[[np.ndarray], list[Any]]:
    """f(tokens i32[steps, batch] or [steps, batch, new]) -> the results of all steps that are no
    state, [steps, ..], each step reading the state of the one before."""
    leaves = runtime.framework().flatten(program.tree[0], (params, cache, 0))
    packed, state = (program.take(leaves, role) for role in ("param", "state"))
    if program.stages:
        packed = _run(program.stages.prepare, packed)
        state = _run(program.stages.adapt, state)
    places = [i for i, input_ in enumerate(program.step_inputs) if input_.role == "state"]

    @jax.jit
    def steps(packed: list[Any], state: list[Any], tokens: Any) -> Any:
        def step(state: list[Any], tokens: Any) -> tuple[list[Any], Any]:
            groups = {"param": iter(packed), "state": iter(state), "arg": iter([tokens])}
            inputs = [next(groups[input_.role]) for input_ in program.step_inputs]
            results = list(zip(evaluate(program.graph, inputs), program.step_outputs))
            new_values = {out.updates: result for result, out in results}
            given = [result for result, out in results if out.updates is None]
            return [new_values[place] for place in places], given

        return jax.lax.scan(step, state, tokens)[1]

    return lambda tokens: steps(packed, state, jnp.asarray(tokens))


def _run(graph: Graph, arrays: list[Any]) -> list[Any]:
    return jax.jit(lambda arrays: evaluate(graph, arrays))(arrays)


# Pass by pass.


@dataclass(frozen=True)
class Measured:
    """A program after a pass and all passes before: its accuracy, and the bytes of its inputs.

    `accuracy` is that of the text, `tasks` has those of the other tasks by name. `change` is the
    relative change of the bits per byte from the original.
    """

    config: str
    text: str
    keeps: str
    accuracy: Accuracy
    tasks: dict[str, Accuracy]
    change: float
    param_bytes: int
    cache_bytes: int

    def facts(self) -> dict[str, Any]:
        """The row as data for JSON."""
        facts = asdict(self)
        return (
            {"config": facts.pop("config"), "pass": facts.pop("text")}
            | facts.pop("accuracy")
            | facts
        )


class Evaluation:
    """Measures configurations of a decoder; the first program of the first one is the original.

    `names`: the tasks besides the text. `errors`: the errors of quantised weights by configuration.
    """

    def __init__(self, function: str, names: Sequence[str] = ()) -> None:
        self.function, self.names, self.about = function, names, ""
        self.measured: list[Measured] = []
        self.errors: dict[str, tuple[Error, ...]] = {}
        self.original: dict[str, np.ndarray] = {}  # its logits, by task

    def measure(self, trained: Trained, prefixes: Prefixes, target: Target) -> Iterator[Measured]:
        """Measures the programs one at a time, since every one has to be compiled."""
        tokens_type, logits_type = interface(prefixes.programs[0][2])
        source, sizes = Source.of(trained, vocab=logits_type.shape[-1]), trained.sizes
        asked = {
            task.name: task.steps(tokens_type, logits_type)
            for task in tasks(self.names, source, sizes.batch, sizes.context)
        }
        self.about = f"{asked[TEXT][1].size} predictions in {sizes.batch} rows"
        config = sizes.config or ""
        if prefixes.quantized:
            self.errors[config] = errors(prefixes.quantized, trained.params)
        last: tuple[Any, dict[str, Accuracy]] | None = None
        for text, keeps, program in prefixes.programs:
            staged = program if text == ORIGINAL else _staged(program, target)
            graphs = tuple(staged.graphs.values())
            if last is None or last[0] != graphs:
                logits = over_text(staged, trained.params, trained.cache)
                of_tasks = {
                    name: self.compared(name, logits(tokens), targets, source.bytes_per_token)
                    for name, (tokens, targets) in asked.items()
                }
                last = graphs, of_tasks
            yield self.record(config, text, keeps, staged, last[1])

    def record(
        self, config: str, text: str, keeps: str, staged: Program, of_tasks: dict[str, Accuracy]
    ) -> Measured:
        """Adds the row of a program and its accuracy in all tasks."""
        of_text = of_tasks[TEXT]
        first = self.measured[0].accuracy if self.measured else of_text
        measured = Measured(
            config=config,
            text=text,
            keeps=keeps,
            accuracy=of_text,
            tasks={name: accuracy for name, accuracy in of_tasks.items() if name != TEXT},
            change=of_text.bits_per_byte / first.bits_per_byte - 1,
            param_bytes=_bytes(staged, "param"),
            cache_bytes=_bytes(staged, "state"),
        )
        self.measured.append(measured)
        return measured

    def compared(
        self, task: str, logits: np.ndarray, targets: np.ndarray, bytes_per_token: float
    ) -> Accuracy:
        """The accuracy of logits in a task; those of its first call are the original's."""
        original = self.original.setdefault(task, logits)
        if original.shape != logits.shape:
            shapes = f"{original.shape} and {logits.shape}"
            raise UsageError(f"logits of the shapes {shapes} cannot be compared")
        return accuracy(logits, original, targets, bytes_per_token)

    def facts(self) -> dict[str, Any]:
        """The evaluation as data for JSON."""
        rows = [row.facts() for row in self.measured]
        facts = {"function": self.function, "measured_on": self.about, "rows": rows}
        errors = [
            {"config": config} | error.facts()
            for config, several in self.errors.items()
            for error in several
        ]
        return facts | {"weight_errors": errors}

    def tables(self) -> list[Table]:
        """The accuracy after every pass, and the errors of quantised weights per configuration."""
        error_tables = [error_table(rows, of=name) for name, rows in self.errors.items() if rows]
        return [self.table(), *error_tables]

    def table(self) -> Table:
        """One row per configuration and pass; of other tasks than the text, what is right."""
        first = self.measured[0].config
        title = f"{self.function}, {self.about}, compared with {first} before any pass"
        columns = (
            *("configuration", "after", "keeps", ">bits per byte", ">change"),
            *(">top-1 agreement", ">KL, nats per byte"),
            *(f">{name}" for name in self.measured[0].tasks),
            *(">parameters", ">cache"),
        )
        return Table(title, columns, tuple(map(_row, self.measured)))


def _staged(program: Program, target: Target) -> Program:
    """The program after `stage`, which is run if the pipeline has not run it yet."""
    if program.stages is not None:
        return program
    return manager.run(program, (Stage(),), target)[0]


def _bytes(program: Program, role: str) -> int:
    return sum(input_.type.bytes for input_ in program.step_inputs if input_.role == role)


def _row(measured: Measured) -> tuple[str, ...]:
    is_original, measured_accuracy = measured.text == ORIGINAL, measured.accuracy
    return (
        measured.config if is_original else "",
        "" if is_original else measured.text,
        measured.keeps,
        f"{measured_accuracy.bits_per_byte:.4f}",
        f"{round(100 * measured.change, 3) + 0.0:+.3f} %",
        f"{100 * measured_accuracy.agreement:.2f} %",
        f"{measured_accuracy.kl_nats_per_byte:.1e}",
        *(f"{100 * task.right:.1f} %" for task in measured.tasks.values()),
        size(measured.param_bytes),
        size(measured.cache_bytes),
    )
