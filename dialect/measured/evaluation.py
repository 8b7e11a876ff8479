"""What rewriting costs in accuracy, measured on a trained decoder and a text that it never saw.

Every program is run as it would serve: parameters packed once, the state adapted once, then step
by step over the text, each step reading the state that the one before it wrote. So what a pass
does to weights, activations or cache is in the logits that are compared. All is run on
one device, whatever the target: how a program is laid out over a mesh changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialect.arrays.evaluate import evaluate
from dialect.display.quantities import size
from dialect.display.tables import Table
from dialect.measured.accuracy import Accuracy, accuracy
from dialect.measured.held_out import Rows
from dialect.reports.explained import Explained
from dialect.reports.quant_report import Error, error_table, errors
from dialect.user.usercode import Trained, UsageError
from passes.stage import Stage
from rewrite import manager, runtime
from rewrite.ir import Graph, Type
from rewrite.manager import PassReport
from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target

ORIGINAL = "original"


class Prefixes(Explained):
    """Keeps the program before the first pass, and after each, with the pass and what it keeps."""

    def __init__(self) -> None:
        self.programs: list[tuple[str, str, Program]] = []

    def before(self, step: Pass, program: Program) -> None:
        if not self.programs:
            self.programs.append((ORIGINAL, "", program))

    def after(self, step: Pass, program: Program, report: PassReport) -> None:
        super().after(step, program, report)
        self.programs.append((report.text, report.keeps, program))


# Running a program over a text.


def interface(program: Program) -> tuple[Type, Type]:
    """The types of the tokens and of the logits of one step.

    Raises UsageError unless these are all that goes in and comes out beside parameters and state.
    """
    outputs = zip(program.outputs, program.graph.outputs)
    taken = [each for each in program.inputs if each.role == "arg"]
    given = [(out.name, value.type) for out, value in outputs if out.updates is None]
    if len(taken) != 1 or len(given) != 1 or given[0][1].rank not in (2, 3):
        raise UsageError(
            f"what is measured takes tokens and returns logits, beside its cache; {program.name} "
            f"takes {', '.join(each.name for each in taken)} "
            f"and returns {', '.join(name for name, _ in given)}",
            hint="a cache comes back as it went in, in structure and types; or name it: --state",
        )
    return taken[0].type, given[0][1]


def logits(program: Program, params: Any, cache: Any, tokens: np.ndarray) -> np.ndarray:
    """f32[steps, batch, predictions, vocab] for tokens i32[steps, batch] or [steps, batch, new]."""
    leaves = runtime.framework().flatten(program.tree[0], (params, cache, tokens[0]))
    packed, state = (program.take(leaves, role) for role in ("param", "state"))
    if program.stages:
        packed = _run(program.stages.prepare, packed)
        state = _run(program.stages.adapt, state)
    places = [i for i, each in enumerate(program.step_inputs) if each.role == "state"]

    def over_text(packed: list[Any], state: list[Any], tokens: Any) -> Any:
        def step(state: list[Any], tokens: Any) -> tuple[list[Any], Any]:
            groups = {"param": iter(packed), "state": iter(state), "arg": iter([tokens])}
            inputs = [next(groups[each.role]) for each in program.step_inputs]
            results = evaluate(program.graph, inputs)
            left = {out.updates: each for each, out in zip(results, program.step_outputs)}
            return [left[place] for place in places], left[None]

        return jax.lax.scan(step, state, tokens)[1]

    found = np.asarray(jax.jit(over_text)(packed, state, jnp.asarray(tokens)), np.float32)
    return found if found.ndim == 4 else found[:, :, None]


def _run(graph: Graph, arrays: list[Any]) -> list[Any]:
    return jax.jit(lambda arrays: evaluate(graph, arrays))(arrays)


# Pass by pass.


@dataclass(frozen=True)
class Measured:
    """A program after a pass and all before it: its accuracy, and the bytes that a step reads.

    `change` is that of the bits per byte, as a share of the original's.
    """

    config: str
    text: str
    keeps: str
    accuracy: Accuracy
    change: float
    param_bytes: int
    cache_bytes: int

    def facts(self) -> dict[str, Any]:
        told = asdict(self)
        return (
            {"config": told.pop("config"), "pass": told.pop("text")} | told.pop("accuracy") | told
        )


class Evaluation:
    """Measures configurations of a decoder; the first program of the first is the original.

    `errors` are those of the quantised weights, by configuration.
    """

    def __init__(self, function: str) -> None:
        self.function, self.about = function, ""
        self.measured: list[Measured] = []
        self.errors: dict[str, tuple[Error, ...]] = {}
        self.original: np.ndarray | None = None  # its logits

    def measure(self, trained: Trained, prefixes: Prefixes, target: Target) -> Iterator[Measured]:
        """The programs one by one, since each has to be compiled."""
        taken, given = interface(prefixes.programs[0][2])
        rows = Rows.of(trained, vocab=given.shape[-1])
        tokens, targets = rows.steps(taken, given)
        self.about = f"{targets.size} predictions in {len(rows.tokens)} rows"
        config = trained.sizes.config or ""
        if prefixes.quantized:
            self.errors[config] = errors(prefixes.quantized, trained.params)
        last: tuple[Any, Accuracy] | None = None
        for text, keeps, program in prefixes.programs:
            staged = program if text == ORIGINAL else _staged(program, target)
            graphs = tuple(staged.graphs.values())
            if last is None or last[0] != graphs:
                made = logits(staged, trained.params, trained.cache, tokens)
                last = graphs, self.beside_original(made, targets, rows.bytes_per_token)
            first = self.measured[0].accuracy if self.measured else last[1]
            found = Measured(
                config=config,
                text=text,
                keeps=keeps,
                accuracy=last[1],
                change=last[1].bits_per_byte / first.bits_per_byte - 1,
                param_bytes=_bytes(staged, "param"),
                cache_bytes=_bytes(staged, "state"),
            )
            self.measured.append(found)
            yield found

    def beside_original(
        self, made: np.ndarray, targets: np.ndarray, bytes_per_token: float
    ) -> Accuracy:
        """The accuracy of logits; the first that come are the original's."""
        self.original = made if self.original is None else self.original
        if self.original.shape != made.shape:
            shapes = f"{self.original.shape} and {made.shape}"
            raise UsageError(f"logits of the shapes {shapes} cannot be compared")
        return accuracy(made, self.original, targets, bytes_per_token)

    def facts(self) -> dict[str, Any]:
        """For machines."""
        rows = [each.facts() for each in self.measured]
        told = {"function": self.function, "measured_on": self.about, "rows": rows}
        errors = [
            {"config": config} | each.facts()
            for config, several in self.errors.items()
            for each in several
        ]
        return told | {"weight_errors": errors}

    def tables(self) -> list[Table]:
        """What each pass costs; and how far off quantised weights are, of each configuration."""
        found = [error_table(rows, of=name) for name, rows in self.errors.items() if rows]
        return [self.table(), *found]

    def table(self) -> Table:
        """One row for each configuration and pass."""
        first = self.measured[0].config
        title = f"{self.function}, {self.about}, beside {first} as it was written"
        columns = (
            *("configuration", "and after", "keeps", ">bits per byte", ">change"),
            *(">top-1 agreement", ">KL, nats per byte", ">parameters", ">cache"),
        )
        return Table(title, columns, tuple(map(_row, self.measured)))


def _staged(program: Program, target: Target) -> Program:
    """Before the pass `stage` has run: what it would make of the program as it is."""
    if program.stages is not None:
        return program
    return manager.run(program, (Stage(),), target)[0]


def _bytes(program: Program, role: str) -> int:
    return sum(each.type.bytes for each in program.step_inputs if each.role == role)


def _row(measured: Measured) -> tuple[str, ...]:
    is_original, found = measured.text == ORIGINAL, measured.accuracy
    return (
        measured.config if is_original else "",
        "" if is_original else measured.text,
        measured.keeps,
        f"{found.bits_per_byte:.4f}",
        f"{round(100 * measured.change, 3) + 0.0:+.3f} %",
        f"{100 * found.agreement:.2f} %",
        f"{found.kl_nats_per_byte:.1e}",
        size(measured.param_bytes),
        size(measured.cache_bytes),
    )
