"""A plan: the partition spec of every group of tensors, its predicted cost, and the alternatives.

A plan is data. It names logical axes and mesh axes, never arrays or devices, so the same text gives
the same program on every host of a job:

    plan ws2d/batch
    target v4:4x4x4
    mesh x=4 y=4 z=4
    weights    d_model@x d_ff@y,z heads@y,z vocab@y,z
    residual   d_model@x,y,z
    cache      batch@x,y,z
    predicted  time_s=0.0362 ... memory_bytes=21000000000
    exchange all-gather y,z bytes=589824 times=118 block
    runner-up  ws2d/heads time_s=0.0441 "0.0079 s more, mostly HBM"
    unavailable wg_x/batch "batch (2) does not divide over x=4: ..."
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lark import Lark, Token

from dialect.display.quantities import milliseconds, size
from dialect.planning.label_words import legend
from rewrite import runtime
from rewrite.errors import PlanError, nearest
from rewrite.files import written_whole
from rewrite.source import Parsed, Source, grammar, quoted, read_file, whole_number

# The groups of tensors that a plan shards.
GROUPS = {
    "weights": "the weights, as stored",
    "large": "large weights that `weights` would replicate",
    "used": "the weights, as the matrix products read them: after the all-gather, if there is one",
    "tables": "the embedding and the unembedding: weights over the vocabulary",
    "residual": "the residual stream between the blocks",
    "hidden": "the hidden values between the two products of the feed-forward layer",
    "attention": "queries, scores and the result of attention",
    "cache": "keys and values of earlier positions",
    "logits": "the result over the vocabulary",
}
# The logical axes that a plan may shard.
AXES = (
    *("batch", "time", "context", "d_model", "heads", "kv_heads", "q_per_kv", "d_head"),
    *("d_ff", "vocab", "layers", "experts", "pages", "wide"),
)

Split = tuple[tuple[str, tuple[str, ...]], ...]  # (logical axis, its mesh axes, major first)
Layout = tuple[tuple[str, ...], ...]  # mesh axes of each dimension


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of one step on each chip.

    Times are seconds per step: `time_s` is the latency of the step; the four others are its parts
    and may overlap. `latency_s` is the part of the collectives that does not depend on their size.
    Bytes: HBM traffic, bytes received over the links, and peak memory.
    """

    time_s: float
    compute_s: float
    hbm_s: float
    communication_s: float
    latency_s: float
    hbm_bytes: int
    communication_bytes: int
    memory_bytes: int

    def __str__(self) -> str:
        return " ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))


@dataclass(frozen=True)
class Exchange:
    """A collective over `axes` that the plan implies, `times` per step.

    `bytes` per chip: the output of an all-gather, the input of a reduce-scatter or an all-reduce,
    the local data of an all-to-all. `part`: the part of the decoder that needs it.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    times: int
    part: str

    def __str__(self) -> str:
        axes = ",".join(self.axes)
        return f"exchange {self.kind} {axes} bytes={self.bytes} times={self.times} {self.part}"


@dataclass(frozen=True)
class Alternative:
    """A plan that was not chosen: its seconds per step (None if unavailable) and the reason."""

    label: str
    time_s: float | None
    reason: str

    def __str__(self) -> str:
        reason = quoted(self.reason)
        if self.time_s is None:
            return f"unavailable {self.label} {reason}"
        return f"runner-up {self.label} time_s={self.time_s!r} {reason}"


@dataclass(frozen=True)
class Plan:
    """The sharding of every group of tensors over a mesh.

    `groups` is ordered: in `layout` the axes that come first get their mesh axes first.
    Raises PlanError for an unknown or repeated name.
    """

    label: str
    mesh: tuple[tuple[str, int], ...]
    groups: tuple[tuple[str, Split], ...]
    target: str = ""
    predicted: Prediction | None = None
    exchanges: tuple[Exchange, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    def __post_init__(self) -> None:
        mesh = dict(self.mesh)
        for axis, count in self.mesh:
            if count < 1:
                raise PlanError(f"the mesh axis {axis} has {count} devices")
        for group, split in self.groups:
            _known(group, GROUPS, "group of tensors")
            for axis, mesh_axes in split:
                _known(axis, AXES, "logical axis")
                if not mesh_axes:
                    raise PlanError(f"{group}: {axis} has no mesh axis; leave it out")
                for mesh_axis in mesh_axes:
                    _known(mesh_axis, mesh, "mesh axis")
                if len(set(mesh_axes)) < len(mesh_axes):
                    raise PlanError(f"{group}: {axis} names a mesh axis twice")
        listed = [
            ("groups", [group for group, _ in self.groups]),
            ("mesh", [axis for axis, _ in self.mesh]),
        ]
        listed += [(group, [axis for axis, _ in split]) for group, split in self.groups]
        for what, names in listed:
            if len(set(names)) < len(names):
                raise PlanError(f"{what}: one of {', '.join(names)} is given twice")

    def split(self, group: str) -> dict[str, tuple[str, ...]]:
        """The mesh axes of each logical axis in a group; empty if the group is replicated."""
        _known(group, GROUPS, "group of tensors")
        return dict(dict(self.groups).get(group, ()))

    def layout(self, group: str, axes: tuple[str | tuple[str, ...], ...]) -> Layout:
        """The partition spec of a tensor: the mesh axes of each dimension.

        `axes` names the logical axis of each dimension; a compound dimension is a tuple of
        names, major first. A mesh axis is used once per tensor: by the logical axis that the
        group names first. Axes that the group does not name are not sharded.
        """
        names = tuple((name,) if isinstance(name, str) else tuple(name) for name in axes)
        present = {name for dimension in names for name in dimension}
        used: set[str] = set()
        free: dict[str, tuple[str, ...]] = {}
        for axis, mesh_axes in self.split(group).items():
            if axis in present:
                free[axis] = tuple(name for name in mesh_axes if name not in used)
                used.update(free[axis])
        return tuple(
            tuple(mesh_axis for name in dimension for mesh_axis in free.pop(name, ()))
            for dimension in names
        )

    def with_pages(self) -> Plan:
        """The plan in which the chips that own rows have the pages of these rows, and no others."""
        split = self.split("cache")
        pages = (("pages", split["batch"]),) if "batch" in split else ()
        groups = dict(self.groups) | {"cache": (*split.items(), *pages)}
        return replace(self, groups=tuple(groups.items())) if pages else self

    def __str__(self) -> str:
        """The text that `Plan.parse` reads: `Plan.parse(str(plan)) == plan`."""
        lines = [f"plan {self.label}"]
        lines += [f"target {self.target}"] if self.target else []
        lines.append("mesh " + " ".join(f"{axis}={count}" for axis, count in self.mesh))
        for group, split in self.groups:
            shown = [f"{axis}@{','.join(mesh_axes)}" for axis, mesh_axes in split]
            lines.append(f"{group:10} {' '.join(shown) or 'whole'}")
        lines += [f"predicted  {self.predicted}"] if self.predicted else []
        return "\n".join([*lines, *map(str, self.exchanges), *map(str, self.alternatives)])

    @staticmethod
    def parse(text: str, source: str = "plan") -> Plan:
        """The plan of a text that `str` printed. Raises TextError with the line and a caret."""
        return _Reader(text, source).plan()

    def save(self, path: str | Path) -> None:
        """Writes the text atomically: a reader sees the old file or the new one, never a part."""
        with written_whole(Path(path)) as part:
            part.write_text(f"{self}\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Reads a saved plan. Raises PlanError if the file cannot be read, TextError as `parse`."""
        return Plan.parse(read_file(path, "plan", PlanError), source=str(path))

    def explain(self) -> str:
        """The chosen plan with its shardings, the slower ones, and the unavailable ones, with
        reasons."""
        rows = [("CHOSEN", self.label, _milliseconds(self.predicted), _parts(self.predicted))]
        for alternative in self.alternatives:
            kind = "UNAVAILABLE" if alternative.time_s is None else "runner-up"
            rows.append((kind, alternative.label, _milliseconds(alternative), alternative.reason))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
            for row in rows
        ]
        groups = [line for line in str(self).split("\n") if line.split()[0] in GROUPS]
        lines[1:1] = [f"  {line}" for line in groups]
        words = legend([label for _, label, *_ in rows])
        lines += [f"({words})"] if words else []
        return "\n".join(lines)


def _milliseconds(timed: Prediction | Alternative | None) -> str:
    return "-" if timed is None or timed.time_s is None else milliseconds(timed.time_s)


def _parts(predicted: Prediction | None) -> str:
    if predicted is None:
        return "not costed"
    parts = ("compute_s", "hbm_s", "communication_s", "latency_s")
    times = [f"{part[:-2]} {milliseconds(getattr(predicted, part))}" for part in parts]
    return ", ".join(times) + f"; {size(predicted.memory_bytes)} per chip"


def _known(name: str, known: Any, what: str) -> None:
    if name not in known:
        raise PlanError(f"unknown {what} {name!r}", hint=nearest(name, known))


_MOST = 1 << 63  # bytes, devices, times
_TERMINALS = {  # how an error message names what the grammar expects
    "FIELD": "a figure such as x=4",
    "NAME": "a name",
    "SPLIT": "an axis such as d_ff@x",
    "STRING": "a quoted text",
    "WORD": "a word",
}


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    return grammar(Path(__file__).with_name("plan.lark"), maybe_placeholders=False)


class _Reader:
    """Parses one text into a `Plan`; every error points into the text."""

    def __init__(self, text: str, source: str) -> None:
        self.source = Source(text, source)
        self.tree = self.source.tree(_grammar(), _TERMINALS)

    def plan(self) -> Plan:
        label, *parts = self.tree.children
        by_kind: dict[str, list[Parsed]] = {}
        for part in parts:
            kind = "alternative" if part.data == "runner_up" else part.data
            by_kind.setdefault(kind, []).append(part)
        axes = self.pairs(by_kind["mesh"][0])
        mesh = tuple((name, self.number(field, count, int)) for field, name, count in axes)
        groups = tuple(self.group(group, dict(mesh)) for group in by_kind.get("group", ()))
        try:
            return Plan(
                label=str(label),
                mesh=mesh,
                groups=groups,
                target="".join(str(target.children[0]) for target in by_kind.get("target", ())),
                predicted=next(map(self.predicted, by_kind.get("predicted", ())), None),
                exchanges=tuple(self.exchange(e, dict(mesh)) for e in by_kind.get("exchange", ())),
                alternatives=tuple(map(self.alternative, by_kind.get("alternative", ()))),
            )
        except PlanError as error:
            self.source.fail(label, error.message, error.hint)

    def group(self, tree: Parsed, mesh: dict[str, int]) -> tuple[str, Split]:
        name, *entries = tree.children
        self.check(name, str(name), GROUPS, "group of tensors")
        split = []
        for entry in entries:
            axis, mesh_axes = entry.split("@")
            self.check(entry, axis, AXES, "logical axis")
            for mesh_axis in mesh_axes.split(","):
                self.check(entry, mesh_axis, mesh, "mesh axis")
            split.append((axis, tuple(mesh_axes.split(","))))
        return str(name), tuple(split)

    def predicted(self, tree: Parsed) -> Prediction:
        names = [field.name for field in fields(Prediction)]
        types = {name: float if name.endswith("_s") else int for name in names}
        figures = {}
        for field, name, value in self.pairs(tree):
            self.check(field, name, types, "quantity")
            figures[name] = self.number(field, value, types[name])
        missing = [name for name in types if name not in figures]
        if missing:
            self.source.fail(tree.children[-1], f"the prediction lacks {', '.join(missing)}")
        return Prediction(**figures)

    def exchange(self, tree: Parsed, mesh: dict[str, int]) -> Exchange:
        kind, over, *numbers, part = tree.children
        axes = tuple(over.split(","))
        for axis in axes:
            self.check(over, axis, mesh, "mesh axis")
        figures = {}
        for field, wanted in zip(numbers, ("bytes", "times")):
            name, value = field.split("=", 1)
            self.check(field, name, (wanted,), "quantity")
            figures[wanted] = self.number(field, value, int)
        return Exchange(str(kind), axes, figures["bytes"], figures["times"], str(part))

    def alternative(self, tree: Parsed) -> Alternative:
        label, *time, reason = tree.children
        time_s = None
        if time:
            name, value = time[0].split("=", 1)
            self.check(time[0], name, ("time_s",), "quantity")
            time_s = self.number(time[0], value, float)
        return Alternative(str(label), time_s, self.source.string(reason))

    def pairs(self, tree: Parsed) -> list[tuple[Token, str, str]]:
        return [(field, *field.split("=", 1)) for field in tree.children]

    def number(self, field: Token, text: str, kind: type) -> Any:
        try:
            value = whole_number(text) if kind is int else float(text)
        except ValueError:
            value = -1
        most = _MOST if kind is int else math.inf
        if not 0 <= value <= most or not text.isascii() or "_" in text:
            wanted = "a whole number" if kind is int else "a number"
            self.source.fail(field, f"{text!r} is not {wanted}")
        return value

    def check(self, place: Token, name: str, known: Any, what: str) -> None:
        try:
            _known(name, known, what)
        except PlanError as error:
            self.source.fail(place, error.message, error.hint)


runtime.read_plans(Plan.parse)
