"""A program: a graph with the names, roles and pytrees of the function it was traced from.

    unpack . graph . pack == the original function, up to the weakest `keeps` in the history.

Until it is staged, a program is one graph from the user's inputs to the user's outputs. Staged,
it is four: `prepare` runs once on the parameters, `adapt` once on the state, the graph itself
every step, and `restore` gives the user's state back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from rewrite import runtime
from rewrite.errors import InvalidProgram
from rewrite.ir import Graph, Type, Value
from rewrite.verify import verify

ROLES = ("param", "state", "arg")
KEEPS = ("bits", "reals", "approx")  # from strongest to weakest
# Kinds of remarks: an input that a pass could have changed; what was asked for by name and did not
# happen; a pass of which nothing happened, which is an error at the door.
LEFT_ALONE, NOT_DONE, NOTHING_DONE = "left alone", "not done", "nothing done"
Layout = tuple[tuple[str, ...], ...]  # mesh axes of every dimension: a partition spec


@dataclass(frozen=True)
class Input:
    """One array that goes in: its path in the user's pytree, its type, its role.

    `layout` gives the mesh axes of every dimension once a plan has decided them. `axes` is the
    user's hint (`"d_model (heads d_head)"`) where axes cannot be inferred. `finite` is set where a
    rewrite holds only if no element is NaN or infinite: `prepare` sees to that.
    """

    name: str
    type: Type
    role: str
    layout: Layout | None = None
    axes: str = ""
    finite: bool = False


@dataclass(frozen=True)
class Output:
    """One array that comes out. `updates` is the number of the input whose new value it is."""

    name: str
    updates: int | None = None


@dataclass(frozen=True)
class Stages:
    """The graphs around the step, and the step's inputs and outputs.

    - prepare: parameters -> packed parameters
    - adapt: state -> packed state;  restore: packed state -> state
    """

    prepare: Graph
    adapt: Graph
    restore: Graph
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Remark:
    """What a pass has to tell; where it is about one input, of which one, and what became of that.

    `params/head left alone: a table` is Remark("a table", "params/head", "left alone").
    """

    text: str
    of: str = ""
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.of} {self.kind}: {self.text}" if self.of else self.text


@dataclass(frozen=True)
class Step:
    """One pass in a program's history: its canonical text, what it keeps, what it has to say.

    `requests` is what it asks of later passes, such as ("owner", "batch").
    """

    text: str
    keeps: str = "bits"
    remarks: tuple[Remark, ...] = ()
    requests: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The pass: `quantize` of `quantize{weights=int8}`."""
        return self.text.partition("{")[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """The remarks as people read them."""
        return tuple(map(str, self.remarks))


def remarks(notes: Iterable[str | Remark]) -> tuple[Remark, ...]:
    """Notes, the plain ones as remarks about no input."""
    return tuple(Remark(note) if isinstance(note, str) else note for note in notes)


@dataclass(frozen=True)
class Program:
    """A rewritable function. `tree` is (arguments, results), each a pytree description.

    `rewrite.text`, which knows the grammar, adds `str(program)` and its inverse, `parse`.
    """

    parse: ClassVar[Callable[[str], Program]]

    name: str
    graph: Graph
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    tree: tuple[Any, Any]
    stages: Stages | None = None
    plan: Any = None  # the dialect reads and prints it
    history: tuple[Step, ...] = ()

    def __hash__(self) -> int:
        return hash((self.name, self.graph))

    def requested(self, what: str) -> str | None:
        """What the passes ask of later ones, the last of them first: `requested("owner")`."""
        asked = (dict(step.requests) for step in reversed(self.history))
        return next((requests[what] for requests in asked if what in requests), None)

    def remarks_of(self, *kinds: str) -> list[str]:
        """The remarks of these kinds, each with its pass."""
        said = ((step.text, remark) for step in self.history for remark in step.remarks)
        return [f"{text}: {remark}" for text, remark in said if remark.kind in kinds]

    @property
    def step_inputs(self) -> tuple[Input, ...]:
        """The inputs of `graph`: the user's, or the packed ones of a staged program."""
        return self.stages.inputs if self.stages else self.inputs

    @property
    def step_outputs(self) -> tuple[Output, ...]:
        """The outputs of `graph`: the user's, or the packed ones of a staged program."""
        return self.stages.outputs if self.stages else self.outputs

    def values(self, role: str) -> list[Value]:
        """The inputs of `graph` that have this role."""
        pairs = zip(self.graph.inputs, self.step_inputs)
        return [value for value, source in pairs if source.role == role]

    @property
    def keeps(self) -> str:
        """The weakest promise in the history: `bits`, `reals` or `approx`."""
        return max((step.keeps for step in self.history), key=KEEPS.index, default="bits")

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """Every graph of the program by its name."""
        named = {"step": self.graph}
        if self.stages:
            named |= {n: getattr(self.stages, n) for n in ("prepare", "adapt", "restore")}
        return named

    def with_graph(self, graph: Graph) -> Program:
        """The program with another graph, of the same inputs and outputs."""
        return replace(self, graph=graph)

    def verify(self, blame: str = "") -> None:
        """Raises InvalidProgram unless all graphs are valid and fit their declared inputs."""
        for graph in self.graphs.values():
            verify(graph, blame)
        wrong = self._misfit(self.graph, self.step_inputs, self.step_outputs)
        wrong = wrong or (self._staged_misfit(self.stages) if self.stages else None)
        if wrong:
            raise InvalidProgram(f"{blame}: {wrong}" if blame else wrong)

    @staticmethod
    def _misfit(graph: Graph, inputs: tuple[Input, ...], outputs: tuple[Output, ...]) -> str | None:
        """What does not fit between the step's graph and its declared inputs and outputs."""
        if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
            return (
                f"the step takes {len(graph.inputs)} arrays and gives {len(graph.outputs)}, "
                f"but {len(inputs)} inputs and {len(outputs)} outputs are declared"
            )
        for value, source in zip(graph.inputs, inputs):
            if (value.type.dtype, value.type.shape) != (source.type.dtype, source.type.shape):
                return f"input {source.name} is declared {source.type}, the step takes {value.type}"
            if source.layout is not None and len(source.layout) != source.type.rank:
                return f"input {source.name} has a layout of {len(source.layout)} dimensions"
        updated = [out.updates for out in outputs if out.updates is not None]
        if len(set(updated)) < len(updated):
            return "two outputs update the same input"
        for value, out in zip(graph.outputs, outputs):
            if out.updates is None:
                continue
            if not 0 <= out.updates < len(inputs) or inputs[out.updates].role != "state":
                return f"output {out.name} updates input {out.updates}, which is no state"
            state = inputs[out.updates].type
            if (value.type.dtype, value.type.shape) != (state.dtype, state.shape):
                return f"output {out.name} is {value.type}, the state that it updates is {state}"
        return None

    def _staged_misfit(self, stages: Stages) -> str | None:
        """What does not fit between the stages: what one gives another takes."""
        packed = {role: _types(x for x in stages.inputs if x.role == role) for role in ROLES}
        users = {role: _types(x for x in self.inputs if x.role == role) for role in ROLES}
        updated = [stages.inputs[x.updates] for x in stages.outputs if x.updates is not None]
        back = [self.inputs[x.updates] for x in self.outputs if x.updates is not None]
        for name, takes, gives in (
            ("prepare", users["param"], packed["param"]),
            ("adapt", users["state"], packed["state"]),
            ("restore", _types(updated), _types(back)),
        ):
            graph = self.graphs[name]
            for what, values, wanted in (
                ("takes", graph.inputs, takes),
                ("gives", graph.outputs, gives),
            ):
                if _types(values) != wanted:
                    return f"{name} {what} {_types(values)}, and should be {wanted}"
        return None

    def __call__(self, *args: Any) -> Any:
        """Evaluates the program, all stages included, with the signature it was traced from."""
        framework = runtime.framework()
        leaves = framework.flatten(self.tree[0], args)
        return framework.unflatten(self.tree[1], self.run(leaves))

    def run(self, leaves: list[Any]) -> list[Any]:
        """`__call__` on flat lists of arrays."""
        evaluate = runtime.framework().evaluate
        if self.stages is None:
            return evaluate(self.graph, leaves)
        by_role = {role: self.take(leaves, role) for role in ROLES}
        packed = evaluate(self.stages.prepare, by_role["param"])
        state = evaluate(self.stages.adapt, by_role["state"])
        results = evaluate(self.graph, [*packed, *state, *by_role["arg"]])
        return self.restored(results)

    def take(self, leaves: list[Any], role: str) -> list[Any]:
        """The leaves of the user's inputs that have this role."""
        return [leaf for leaf, source in zip(leaves, self.inputs) if source.role == role]

    def restored(self, results: list[Any]) -> list[Any]:
        """The step's results with the packed state turned back into the user's state."""
        assert self.stages is not None
        plain = iter([r for r, out in zip(results, self.step_outputs) if out.updates is None])
        state = [r for r, out in zip(results, self.step_outputs) if out.updates is not None]
        restored = iter(runtime.framework().evaluate(self.stages.restore, state))
        return [next(plain if out.updates is None else restored) for out in self.outputs]


def _types(typed: Iterable[Input | Value]) -> str:
    return ", ".join(f"{value.type.dtype}{list(value.type.shape)}" for value in typed) or "nothing"
