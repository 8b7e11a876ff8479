"""The schema of packed parameters: model, plan, and the dtype, sharding and digest of every array.

It is stored with packed parameters in memory and in files. A step rejects those of another program.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from dialect.ops.sharding import show_layout
from dialect.planning.plan import GROUPS
from dialect.staging.prepare_parts import prepare_of, separated, subgraph
from rewrite.errors import ShardwrightError, brief, cause
from rewrite.ir import Graph
from rewrite.program import Input, Program
from rewrite.text import show_graph

FORMAT = 2  # 1 had no checksums
_SHOWN = 4  # differences of one kind that are listed
_DECISIONS = {"plan", "target", "mesh", *GROUPS}  # the lines of a plan that are not predictions


LIKE = "; with like=packed what both steps have is kept once"  # of parameters in memory


class PackedError(ShardwrightError):
    """Raised for packed parameters of another program, and for files that cannot be read."""


@dataclass(frozen=True)
class Array:
    """An original or packed parameter.

    `type` as `rewrite.ir.Type` prints it. Packed parameters have a `layout`, as `show_layout`
    prints it, and `made`: a digest of the ops that compute them.
    """

    name: str
    type: str
    layout: str = ""
    made: str = ""


@dataclass(frozen=True)
class Schema:
    """The schema of packed parameters. `target` is the kind of chip, and the mesh."""

    program: str
    target: str
    pipeline: tuple[str, ...]
    plan: str
    model: tuple[Array, ...]
    packed: tuple[Array, ...]

    @staticmethod
    def of(program: Program, mesh: Any) -> Schema:
        """The schema of what `prepare` of a program returns on a mesh."""
        originals = [input_ for input_ in program.inputs if input_.role == "param"]
        packed = [input_ for input_ in program.step_inputs if input_.role == "param"]
        axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        digests = _digests(prepare_of(program), originals)
        return Schema(
            program=program.name,
            target=f"{mesh.devices.flat[0].device_kind} {axes}".strip(),
            pipeline=tuple(step.text for step in program.history),
            plan=str(program.plan or ""),
            model=tuple(Array(original.name, str(original.type)) for original in originals),
            packed=tuple(
                Array(array.name, str(array.type), _layout(array), digest)
                for array, digest in zip(packed, digests, strict=True)
            ),
        )

    def __str__(self) -> str:
        """JSON text: `Schema.parse(str(schema)) == schema`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @staticmethod
    def parse(text: str, path: Path) -> Schema:
        """Reads what `str` wrote; `path` is named in errors. Raises PackedError."""
        try:
            data = json.loads(text)
            version = data.pop("format")
            if version == FORMAT:
                arrays = {
                    kind: tuple(Array(**entry) for entry in data.pop(kind))
                    for kind in ("model", "packed")
                }
                pipeline = tuple(data.pop("pipeline"))
                schema = Schema(**arrays, pipeline=pipeline, **data)
                texts = [schema.program, schema.target, schema.plan, *pipeline]
                texts += [x for kind in arrays.values() for array in kind for x in astuple(array)]
                if all(isinstance(text, str) for text in texts):
                    return schema
                raise ValueError("a field is not a text")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PackedError(f"{path}: its schema cannot be read: {cause(error)}") from error
        raise PackedError(
            f"{path} has the format {brief(str(version))}, this version of Shardwright reads "
            f"{FORMAT}",
            hint="read it with the version that wrote it, or pack the originals again",
        )

    def differences(self, other: Schema, whole_plan: bool = False) -> list[str]:
        """How `other` ("here") differs from this schema ("there"); empty if they are compatible.

        Plans may differ in groups that do not affect parameters, unless `whole_plan` is set.
        """
        model = list(_between(self.model, other.model))
        packed = list(_between(self.packed, other.packed))
        plan = list(_plans(self.plan, other.plan))
        if not model and not packed and not (whole_plan and plan):
            return []
        pipeline = list(_pipelines(self.pipeline, other.pipeline))
        if self.target != other.target:
            pipeline.append(f"packed on {self.target}, this is {other.target}")
        parts = (("model", model), ("plan", plan), ("packed", packed), ("pipeline", pipeline))
        return [line for title, lines in parts for line in _few(title, lines)]

    def places(self, other: Schema) -> list[int | None]:
        """Where the arrays of `other` are among those of this one; None for those that are not.

        The same arrays are computed from the same originals by the same ops: names and shardings
        aside.
        """
        if list(_between(self.model, other.model)):
            return [None] * len(other.packed)
        there = {(array.made, array.type): n for n, array in enumerate(self.packed)}
        return [there.get((array.made, array.type)) for array in other.packed]


def refuse(what: str, differences: Sequence[str], more: str = "") -> None:
    """Raises PackedError if there are differences."""
    if differences:
        raise PackedError(
            "\n    ".join([f"{what} was packed for another program", *differences]),
            hint=f"pack the originals for this step: step.prepare(params, *rest){more}",
        )


def _layout(array: Input) -> str:
    return show_layout(array.layout if array.layout is not None else ((),) * array.type.rank)


def _digests(prepare: Graph, originals: Sequence[Input]) -> Iterator[str]:
    """For every packed parameter a digest of the ops that compute it, and of their inputs."""
    graph = separated(prepare)
    for number in range(len(graph.outputs)):
        part, used = subgraph(graph, [number])
        text = "\n".join([*(originals[source].name for source in used), show_graph(part)])
        yield hashlib.sha256(text.encode()).hexdigest()[:16]


def _between(there: Sequence[Array], here: Sequence[Array]) -> Iterator[str]:
    theirs, ours = ({array.name: array for array in arrays} for arrays in (there, here))
    recomputed = []
    for name in dict.fromkeys((*ours, *theirs)):
        before, after = theirs.get(name), ours.get(name)
        if before is None or after is None:
            yield f"{name} is only {'here' if before is None else 'there'}"
        elif before.type != after.type:
            yield f"{name} is {before.type} there, {after.type} here"
        elif before.layout != after.layout:
            sharding = f"{before.layout or '()'} there, {after.layout or '()'} here"
            yield f"{name} has the sharding {sharding}"
        elif before.made != after.made:
            recomputed.append(f"{name} is computed by other ops there")
    yield from recomputed


def _plans(there: str, here: str) -> Iterator[str]:
    theirs, ours = _decisions(there), _decisions(here)
    for key in dict.fromkeys((*ours, *theirs)):
        if theirs.get(key) != ours.get(key):
            before, after = theirs.get(key, "not decided"), ours.get(key, "not decided")
            yield f"{'' if key == 'plan' else f'{key} '}{before} there, {after} here"


def _decisions(plan: str) -> dict[str, str]:
    """`{"weights": "d_model@x d_ff@y,z"}`: a plan's shardings, without predictions."""
    lines = (line.split(maxsplit=1) for line in plan.splitlines())
    return {line[0]: " ".join(line[1:]) for line in lines if line and line[0] in _DECISIONS}


def _pipelines(there: Sequence[str], here: Sequence[str]) -> Iterator[str]:
    for line in difflib.ndiff(there, here):
        if line[0] in "-+":
            yield f"{line[2:]} only {'there' if line[0] == '-' else 'here'}"


def _few(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield from (f"{title}: {line}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"{title}: and {len(lines) - _SHOWN} more"
