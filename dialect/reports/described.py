"""Descriptions of recognised pieces: `grouped, 64 heads on 8 KV heads of 128, masked`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from dialect.matching.values import through
from dialect.naming.axis import HEADS, Axes
from dialect.reports.attribution import (
    ATTENTION,
    EXPERTS,
    FEED_FORWARD,
    LOGITS,
    PRODUCT,
    PRODUCTS,
    STATE,
    Piece,
    is_layout,
)
from dialect.reports.mask_bounds import describe_attend
from rewrite import opdef
from rewrite.ir import Op, Value
from rewrite.program import Input
from rewrite.signature import Signature, letters


class Describer:
    """Describes pieces. `inputs` are those of the program; `enter` adds the arguments of a loop."""

    def __init__(self, axes: Axes, inputs: Mapping[Value, Input]) -> None:
        self.axes, self.inputs = axes, inputs
        self.given: dict[Value, Value] = {}
        self.tables: set[Value] = set()
        self.kind_of = {
            ATTENTION: self._attention,
            FEED_FORWARD: self._feed_forward,
            EXPERTS: self._mixture,
            LOGITS: self._logits,
            PRODUCT: self._product,
            "norm": self._norm,
            "rotary positions": self._rope,
            "embedding": self._table,
            "position embedding": self._table,
            STATE: self._updated,
            "cache write": self._state,
        }

    def enter(self, given: Mapping[Value, tuple[Value, bool]]) -> None:
        """Records the arguments of a loop body."""
        self.given |= {inner: arg for inner, (arg, _) in given.items()}

    def source(self, value: Value) -> Value:
        """The array that a value is a form of: if possible an input of the program."""
        while True:
            while _is_form(value.op):
                value = value.op.args[0]
            if value not in self.given:
                return value
            value = self.given[value]

    def name_and_kind(self, piece: Piece, members: Sequence[Op]) -> tuple[str, str]:
        """(name, description) of a piece with the ops `members`."""
        name = piece.name
        if name == FEED_FORWARD and self._experts(members):
            name = EXPERTS
        elif name == FEED_FORWARD and sum(op.name in PRODUCTS for op in members) < 2:
            name = "activation"
        describe = self.kind_of.get(piece.name)
        return name, describe(piece.anchor, members) if describe else ""

    def _attention(self, op: Op, members: Sequence[Op]) -> str:
        spec = Signature.parse(op["axes"])
        sizes = {
            axes[0]: size
            for value, array in zip(op.args, spec.inputs)
            for size, axes in zip(value.type.shape, array)
            if axes and size > 1
        }
        named = zip(spec.inputs[0], self.axes.of(op.args[0]))
        heads = {axes[0] for axes, names in named if axes and set(HEADS) & set(names)}
        queries = math.prod(sizes[axis] for axis in heads)
        # Libraries repeat KV heads for grouped queries.
        key = op.args[1]
        repeats = key.type.size // through(key, "reshape", "broadcast_in_dim").type.size
        kv_heads = math.prod(sizes[axis] for axis in heads & set(letters(spec.inputs[1])))
        kv_heads //= repeats
        if kv_heads == queries:
            kind = f"multi-head, {queries} heads"
        elif kv_heads == 1:
            kind = f"multi-query, {queries} heads on one KV head"
        else:
            kind = f"grouped, {queries} heads on {kv_heads} KV heads"
        words = [f"{kind} of {sizes.get('k', 1)}", *describe_attend(op)]
        words += [f"soft-cap {op['cap']:g}"] if op.get("cap") is not None else []
        return ", ".join(words)

    def _feed_forward(self, op: Op, members: Sequence[Op]) -> str:
        units = [unit for unit in members if unit.name in ("gate", "activate")]
        forms = ("gated" if unit.name == "gate" else "plain" for unit in units)
        words = [f"{f} {u['kind']}, {u.types[0].shape[-1]} wide" for f, u in zip(forms, units)]
        experts = [f"{count} experts" for count in sorted(self._experts(members))]
        return ", ".join([*experts, *dict.fromkeys(words)])

    def _mixture(self, op: Op, members: Sequence[Op]) -> str:
        return f"{op['k']} of {self._feed_forward(op, members)}"

    def _experts(self, members: Sequence[Op]) -> set[int]:
        """The numbers of experts in the weights of the products."""
        return {
            axis.size
            for op in members
            if op.name in PRODUCTS
            for arg in op.args
            for axis, names in zip(self.axes.at(arg), self.axes.of(arg))
            if names == ("experts",)
        }

    def _logits(self, op: Op, members: Sequence[Op]) -> str:
        tied = any(self.source(arg) in self.tables for arg in op.args)
        words = [f"{op.types[0].shape[-1]} wide", "tied" if tied else "not tied"]
        words += ["soft-capped"] if any(op_.name == "tanh" for op_ in members) else []
        return ", ".join(words)

    def _product(self, op: Op, members: Sequence[Op]) -> str:
        for arg in op.args:
            declared = self.inputs.get(self.source(arg))
            if declared is not None and declared.role == "param":
                return f"{unnumbered(declared.name)} {arg.type}"
        return str(op.types[0])

    def _norm(self, op: Op, members: Sequence[Op]) -> str:
        form = "RMS" if op.name == "rms_norm" else "layer"
        return f"{form} over {' '.join(self.axes.of(op.results[0])[-1])}"

    def _rope(self, op: Op, members: Sequence[Op]) -> str:
        turned = op.get("turned") or op.types[0].shape[-1]
        return f"{turned} of {op.types[0].shape[-1]} turned, pairs are {op.get('pairs', 'halves')}"

    def _table(self, op: Op, members: Sequence[Op]) -> str:
        return " x ".join(map(str, op.args[0].type.shape))

    def _updated(self, op: Op, members: Sequence[Op]) -> str:
        sources = (self.source(arg) for member in members for arg in member.args)
        for source in sources:
            declared = self.inputs.get(source)
            if declared is not None and declared.role == "state":
                return f"{unnumbered(declared.name)} {source.type}, {self.axes.show(source)}"
        return str(op.types[0])

    def _state(self, op: Op, members: Sequence[Op]) -> str:
        source = self.source(op.args[0])
        declared = self.inputs.get(source)
        return f"{unnumbered(declared.name)} {source.type}" if declared else str(op.types[0])


def unnumbered(path: str) -> str:
    """A path with `*` for the layer numbers in it; digits in the last name stay."""
    *above, last = path.split("/")
    above = [re.sub(r"\d+", "*", part) for part in above]
    return "/".join([*above, "*" if last.isdigit() else last])


def _is_form(op: Op) -> bool:
    """Whether an op returns another form of its first argument, or writes to it."""
    written = opdef.traits(op).writes or op.name == "dequantize"
    return bool(op.args) and (bool(written) or is_layout(op))
