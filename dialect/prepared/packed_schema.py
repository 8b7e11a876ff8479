"""What packed parameters are: for which model and plan, and how each array was made and lies.

Every packing carries it, in memory and in files, and a step takes none that is another's.
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
from dialect.staging.prepare_parts import alone, loosened, prepare_of
from rewrite.errors import ShardwrightError, brief, cause
from rewrite.ir import Graph
from rewrite.program import Input, Program
from rewrite.text import show_graph

FORMAT = 2  # 1 had no checksums
_SHOWN = 4  # differences of one kind that are told
_DECISIONS = {"plan", "target", "mesh", *GROUPS}  # the lines of a plan that are no predictions


class PackedError(ShardwrightError):
    """Packed parameters that are another program's, or a file of them that cannot be read."""


@dataclass(frozen=True)
class Array:
    """An original or a packed parameter. `layout` and `made`, a digest of how, are of packed ones.

    `type` as `rewrite.ir.Type` prints it, `layout` as `show_layout` does.
    """

    name: str
    type: str
    layout: str = ""
    made: str = ""


@dataclass(frozen=True)
class Schema:
    """What some packed parameters are. `target` is the kind of chip, and the mesh."""

    program: str
    target: str
    pipeline: tuple[str, ...]
    plan: str
    model: tuple[Array, ...]
    packed: tuple[Array, ...]

    @staticmethod
    def of(program: Program, mesh: Any) -> Schema:
        """What `prepare` of this program makes on this mesh."""
        originals = [each for each in program.inputs if each.role == "param"]
        packed = [each for each in program.step_inputs if each.role == "param"]
        axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        made = _digests(prepare_of(program), originals)
        return Schema(
            program=program.name,
            target=f"{mesh.devices.flat[0].device_kind} {axes}".strip(),
            pipeline=tuple(each.text for each in program.history),
            plan=str(program.plan or ""),
            model=tuple(Array(each.name, str(each.type)) for each in originals),
            packed=tuple(
                Array(each.name, str(each.type), _layout(each), digest)
                for each, digest in zip(packed, made, strict=True)
            ),
        )

    def __str__(self) -> str:
        """As text to put into a file: `Schema.parse(str(schema)) == schema`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @staticmethod
    def parse(text: str, path: Path) -> Schema:
        """Reads what `str` wrote; `path` is named in errors. Raises PackedError."""
        try:
            found = json.loads(text)
            version = found.pop("format")
            if version == FORMAT:
                arrays = {
                    kind: tuple(Array(**each) for each in found.pop(kind))
                    for kind in ("model", "packed")
                }
                pipeline = tuple(found.pop("pipeline"))
                schema = Schema(**arrays, pipeline=pipeline, **found)
                texts = [schema.program, schema.target, schema.plan, *pipeline]
                texts += [x for kind in arrays.values() for each in kind for x in astuple(each)]
                if all(isinstance(each, str) for each in texts):
                    return schema
                raise ValueError("what should be text is none")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PackedError(f"{path}: its schema cannot be read: {cause(error)}") from error
        raise PackedError(
            f"{path} has the format {brief(str(version))}, this version of Shardwright reads "
            f"{FORMAT}",
            hint="read it with the version that wrote it, or pack the originals again",
        )

    def differences(self, other: Schema, whole_plan: bool = False) -> list[str]:
        """How `other`, which is here, differs from this, which is there; empty where it fits.

        Plans may differ in what does not touch parameters, unless `whole_plan` is asked for.
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
        return [line for title, found in parts for line in _few(title, found)]


def refuse(what: str, differences: Sequence[str]) -> None:
    """Raises PackedError where there are differences."""
    if differences:
        raise PackedError(
            "\n    ".join([f"{what} was packed for another program", *differences]),
            hint="pack the originals for this step: step.prepare(params, *rest)",
        )


def _layout(each: Input) -> str:
    return show_layout(each.layout if each.layout is not None else ((),) * each.type.rank)


def _digests(prepare: Graph, originals: Sequence[Input]) -> Iterator[str]:
    """For each packed parameter, a digest of the ops that make it and of what they read."""
    graph = loosened(prepare)
    for number in range(len(graph.outputs)):
        own, used = alone(graph, [number])
        text = "\n".join([*(originals[each].name for each in used), show_graph(own)])
        yield hashlib.sha256(text.encode()).hexdigest()[:16]


def _between(there: Sequence[Array], here: Sequence[Array]) -> Iterator[str]:
    theirs, ours = ({each.name: each for each in arrays} for arrays in (there, here))
    otherwise = []
    for name in dict.fromkeys((*ours, *theirs)):
        one, other = theirs.get(name), ours.get(name)
        if one is None or other is None:
            yield f"{name} is only {'here' if one is None else 'there'}"
        elif one.type != other.type:
            yield f"{name} is {one.type} there, {other.type} here"
        elif one.layout != other.layout:
            yield f"{name} lies as {one.layout or '()'} there, as {other.layout or '()'} here"
        elif one.made != other.made:
            otherwise.append(f"{name} is computed otherwise there")
    yield from otherwise


def _plans(there: str, here: str) -> Iterator[str]:
    theirs, ours = _decisions(there), _decisions(here)
    for key in dict.fromkeys((*ours, *theirs)):
        if theirs.get(key) != ours.get(key):
            one, other = theirs.get(key, "not decided"), ours.get(key, "not decided")
            yield f"{'' if key == 'plan' else f'{key} '}{one} there, {other} here"


def _decisions(plan: str) -> dict[str, str]:
    """`{"weights": "d_model@x d_ff@y,z"}`: what a plan decides, without what it predicts."""
    lines = (line.split(maxsplit=1) for line in plan.splitlines())
    return {line[0]: " ".join(line[1:]) for line in lines if line and line[0] in _DECISIONS}


def _pipelines(there: Sequence[str], here: Sequence[str]) -> Iterator[str]:
    for line in difflib.ndiff(there, here):
        if line[0] in "-+":
            yield f"{line[2:]} only {'there' if line[0] == '-' else 'here'}"


def _few(title: str, found: Sequence[str]) -> Iterator[str]:
    yield from (f"{title}: {line}" for line in found[:_SHOWN])
    if len(found) > _SHOWN:
        yield f"{title}: and {len(found) - _SHOWN} more"
