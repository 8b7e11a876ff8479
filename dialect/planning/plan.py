"""A plan: over which mesh axes each kind of tensor is split, what that costs, and why so.

A plan is data. It names logical axes and mesh axes, never arrays or devices, so that the same
text gives the same program on every host of a job:

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

import difflib
import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from lark import Lark, Token

from rewrite import runtime
from rewrite.errors import PlanError, nearest
from rewrite.files import written_whole
from rewrite.source import Parsed, Source, grammar, quoted, read_file, whole_number

# The kinds of tensor that a plan decides about.
GROUPS = {
    "weights": "the weights, as they are stored",
    "large": "large weights of which nothing would be split",
    "used": "the weights, as the products read them: gathered where a plan gathers weights",
    "tables": "the embedding, and the weights of the logits: weights with a vocabulary",
    "residual": "the residual stream between the blocks",
    "hidden": "between the two products of the feed-forward layer",
    "attention": "queries, scores and the attention's result",
    "cache": "keys and values of earlier positions",
    "logits": "the result over the vocabulary",
}
# The logical axes that a plan may split.
AXES = (
    *("batch", "time", "context", "d_model", "heads", "kv_heads", "q_per_kv", "d_head"),
    *("d_ff", "vocab", "layers", "experts", "wide"),
)

Split = tuple[tuple[str, tuple[str, ...]], ...]  # (logical axis, its mesh axes, major first)
Layout = tuple[tuple[str, ...], ...]  # mesh axes of each dimension


@dataclass(frozen=True)
class Prediction:
    """What one step is expected to cost on each chip.

    Times are for the whole step: `time_s` is what the user waits; the four others are its
    parts, and overlap. `latency_s` is what collectives cost however small they are. Bytes:
    read and written in HBM, received over the links, and occupied.
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
        return " ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self))


@dataclass(frozen=True)
class Exchange:
    """A collective that the plan asks for, `times` in a step, over these mesh axes.

    `bytes` per chip: the output of an all-gather, the input of a reduce-scatter or an all-reduce,
    the local data of an all-to-all. `part`: what of the decoder needs it.
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
    """What was not chosen: its time in seconds, or None where it is unavailable, and why."""

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
    """The layout of every group of tensors over a mesh.

    `groups` is ordered: in `layout` the axes that stand first get their mesh axes first.
    Raises PlanError where a name is unknown, or something is said twice.
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
        for axis, size in self.mesh:
            if size < 1:
                raise PlanError(f"the mesh axis {axis} has {size} devices")
        for group, split in self.groups:
            _known(group, GROUPS, "group of tensors")
            for axis, mesh_axes in split:
                _known(axis, AXES, "logical axis")
                if not mesh_axes:
                    raise PlanError(f"{group}: {axis} is whole, so leave it out")
                for mesh_axis in mesh_axes:
                    _known(mesh_axis, mesh, "mesh axis")
                if len(set(mesh_axes)) < len(mesh_axes):
                    raise PlanError(f"{group}: {axis} is split twice over one mesh axis")
        listed = [
            ("groups", [group for group, _ in self.groups]),
            ("mesh", [axis for axis, _ in self.mesh]),
        ]
        listed += [(group, [axis for axis, _ in split]) for group, split in self.groups]
        for what, names in listed:
            if len(set(names)) < len(names):
                raise PlanError(f"{what}: one of {', '.join(names)} is given twice")

    def split(self, group: str) -> dict[str, tuple[str, ...]]:
        """The mesh axes of each logical axis in a group; empty where the group is whole."""
        _known(group, GROUPS, "group of tensors")
        return dict(dict(self.groups).get(group, ()))

    def layout(self, group: str, axes: tuple[str | tuple[str, ...], ...]) -> Layout:
        """The mesh axes of each dimension of a tensor.

        `axes` names the logical axis of each dimension; a compound dimension is a tuple of
        names, the major one first. A mesh axis is used once per tensor: by the logical axis that
        the group names first. Axes that the group does not name stay whole.
        """
        names = tuple((each,) if isinstance(each, str) else tuple(each) for each in axes)
        present = {name for dimension in names for name in dimension}
        used: set[str] = set()
        free: dict[str, tuple[str, ...]] = {}
        for axis, mesh_axes in self.split(group).items():
            if axis in present:
                free[axis] = tuple(each for each in mesh_axes if each not in used)
                used.update(free[axis])
        return tuple(
            tuple(each for name in dimension for each in free.pop(name, ())) for dimension in names
        )

    def __str__(self) -> str:
        """`Plan.parse(str(plan)) == plan`."""
        lines = [f"plan {self.label}"]
        lines += [f"target {self.target}"] if self.target else []
        lines.append("mesh " + " ".join(f"{axis}={size}" for axis, size in self.mesh))
        for group, split in self.groups:
            shown = [f"{axis}@{','.join(mesh_axes)}" for axis, mesh_axes in split]
            lines.append(f"{group:10} {' '.join(shown) or 'whole'}")
        lines += [f"predicted  {self.predicted}"] if self.predicted else []
        return "\n".join([*lines, *map(str, self.exchanges), *map(str, self.alternatives)])

    @staticmethod
    def parse(text: str, source: str = "plan") -> Plan:
        """Reads what `str` printed. Raises TextError with the line and a caret."""
        return _Reader(text, source).plan()

    def save(self, path: str | Path) -> None:
        """Writes the text at once: readers see the whole old file or the whole new one."""
        with written_whole(Path(path)) as part:
            part.write_text(f"{self}\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Reads a saved plan. Raises PlanError where there is none, TextError as `parse`."""
        return Plan.parse(read_file(path, "plan", PlanError), source=str(path))

    def explain(self) -> str:
        """What was chosen, what would have been slower, and what was impossible, and why."""
        rows = [("CHOSEN", self.label, _milliseconds(self.predicted), _parts(self.predicted))]
        for each in self.alternatives:
            kind = "UNAVAILABLE" if each.time_s is None else "runner-up"
            rows.append((kind, each.label, _milliseconds(each), each.reason))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
            for row in rows
        ]
        groups = [line for line in str(self).split("\n") if line.split()[0] in GROUPS]
        lines[1:1] = [f"  {line}" for line in groups]
        return "\n".join(lines)


def diff(before: Plan, after: Plan) -> str:
    """The lines of two plans that differ, with - and +; empty where none does."""
    lines = difflib.ndiff(str(before).split("\n"), str(after).split("\n"))
    return "\n".join(line for line in lines if line[0] in "-+")


def _milliseconds(timed: Prediction | Alternative | None) -> str:
    return "-" if timed is None or timed.time_s is None else f"{timed.time_s * 1e3:.4g} ms"


def _parts(predicted: Prediction | None) -> str:
    if predicted is None:
        return "not costed"
    parts = ("compute_s", "hbm_s", "communication_s", "latency_s")
    times = [f"{part[:-2]} {getattr(predicted, part) * 1e3:.4g} ms" for part in parts]
    return ", ".join(times) + f"; {predicted.memory_bytes / 2**30:.2f} GiB per chip"


def _known(name: str, known: Any, what: str) -> None:
    if name not in known:
        raise PlanError(f"unknown {what} {name!r}", hint=nearest(name, known))


_MOST = 1 << 63  # bytes, devices, times
_IN_WORDS = {
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
    """Turns one text into a `Plan`; every error points into the text."""

    def __init__(self, text: str, source: str) -> None:
        self.source = Source(text, source)
        self.tree = self.source.tree(_grammar(), _IN_WORDS)

    def plan(self) -> Plan:
        label, *parts = self.tree.children
        by_kind: dict[str, list[Parsed]] = {}
        for part in parts:
            kind = "alternative" if part.data == "runner_up" else part.data
            by_kind.setdefault(kind, []).append(part)
        axes = self.pairs(by_kind["mesh"][0])
        mesh = tuple((name, self.number(field, size, int)) for field, name, size in axes)
        groups = tuple(self.group(each, dict(mesh)) for each in by_kind.get("group", ()))
        try:
            return Plan(
                label=str(label),
                mesh=mesh,
                groups=groups,
                target="".join(str(each.children[0]) for each in by_kind.get("target", ())),
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
        names = [each.name for each in fields(Prediction)]
        types = {name: float if name.endswith("_s") else int for name in names}
        found = {}
        for field, name, value in self.pairs(tree):
            self.check(field, name, types, "quantity")
            found[name] = self.number(field, value, types[name])
        missing = [name for name in types if name not in found]
        if missing:
            self.source.fail(tree.children[-1], f"the prediction lacks {', '.join(missing)}")
        return Prediction(**found)

    def exchange(self, tree: Parsed, mesh: dict[str, int]) -> Exchange:
        kind, over, *numbers, part = tree.children
        axes = tuple(over.split(","))
        for axis in axes:
            self.check(over, axis, mesh, "mesh axis")
        found = {}
        for field, wanted in zip(numbers, ("bytes", "times")):
            name, value = field.split("=", 1)
            self.check(field, name, (wanted,), "quantity")
            found[wanted] = self.number(field, value, int)
        return Exchange(str(kind), axes, found["bytes"], found["times"], str(part))

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
