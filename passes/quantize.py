"""quantize: weights that only products read become integers, with scales of their own.

    contract(x, w)  ->  contract(x, rounded(w))             weights
    contract(x, w)  ->  contract(rounded(x), rounded(w))    and activations, per token
    take(w, ids)    ->  dequantize(take(quantize(w), ids))  rows of a table

rounded(x) being dequantize(quantize(x)). That of a weight depends on parameters alone, so `stage`
quantises once; `lower` moves the scales behind the products, so that integers are multiplied as
they are stored (`dialect/quantized/scaled_products.py`). What is left alone is reported with the
reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from dialect.caching.quantized_cache import with_quantized_cache
from dialect.machine.chips import Chip
from dialect.machine.mesh import Topology
from dialect.matching.values import reshaped, rounding, through
from dialect.naming.axes import Axes, infer_axes
from dialect.normal.cuts import cut
from dialect.quantized.deciding_products import deciding_products
from dialect.quantized.quant_choice import NONE, Choice, Rule, as_pattern, cut_into_groups, form_on
from dialect.quantized.ragged_products import summed_axis
from dialect.staging.parameter_paths import (
    Paths,
    parameter_paths,
    paths_in,
    paths_inside,
    shown,
)
from rewrite.dataflow import rebuilt
from rewrite.driver import rewrite
from rewrite.errors import PipelineError
from rewrite.ir import Graph, Op, Symbol, Value
from rewrite.opdef import build, make, with_args
from rewrite.passbase import Pass
from rewrite.program import LEFT_ALONE, NOT_DONE, NOTHING_DONE, Program, Remark
from rewrite.signature import Signature, letters
from rewrite.target import Target

_FLOATS = {"f32", "bf16", "f16"}
_LEAST = 1e-30  # below this scale, activations are zero


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantises weights, activations and caches, symmetric.

    - `weights` and `group`: the form of all weights; one scale per output channel, or per
      `group` of neighbours along the summed axes
    - `activations`: of products with quantised weights, one scale per token, computed as it comes
    - `cache`: one scale per token and head
    - `rules`: for parameters whose path matches, in place of `weights` and `group`: texts
      `REGEX: FORM[/GROUP]`, of which the first match wins; FORM may be none
    - `skip`: a regular expression; parameters whose path matches are left alone

    Weights over the vocabulary (tables and head) are left alone unless a rule names them, or
    `vocab` all of them; routers, by whose products a top_k chooses, unless a rule names them.
    Raises PipelineError for a rule that cannot be read.
    """

    weights: Literal["int8", "int4", "fp8"] | None = "int8"
    group: int | None = None
    activations: Literal["int8"] | None = None
    cache: Literal["int8"] | None = None
    rules: tuple[str, ...] = ()
    skip: str = ""
    vocab: bool = False

    keeps: ClassVar[str] = "approx"

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 2:
            raise PipelineError(f"a group of {self.group} weights", hint="64 and 128 are usual")
        as_pattern(self.skip)
        for text in self.rules:
            Rule.parse(text)

    def run(self, program: Program, target: Target) -> Program:
        notes: list[str] = []
        if self.cache:
            program, notes = with_quantized_cache(program, self.cache)
        chip = Topology.parse(target.topology).chip if target.topology else None
        quantized = _Quantized(self, infer_axes(program), chip)
        names = parameter_paths(program)
        graph = rewrite(quantized.graph(program.graph, names), ())  # what is asked for twice is one
        unmatched = quantized.unmatched({name for paths in names.values() for name in paths})
        caches = [note for note in notes if not isinstance(note, Remark)]
        if self.cache and not caches:
            notes.append(Remark("no cache is quantised", f"cache={self.cache}", NOT_DONE))
        before = any(op.name == "dequantize" for op, _ in program.graph.walk())
        if not (quantized.quantised or before or caches):
            reason = "nothing is quantised: no product reads a parameter that may be"
            notes.append(Remark(reason, kind=NOTHING_DONE))
        return self.recorded(program.with_graph(graph), *quantized.lines(), *unmatched, *notes)


@dataclass
class _Quantized:
    """The rewriting of one program, and what there is to say of it, by parameter."""

    asked: Quantize
    axes: Axes
    chip: Chip | None
    quantised: dict[str, None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, None] = field(default_factory=dict)
    deciding: dict[Op, Op] = field(default_factory=dict)

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(map(Rule.parse, self.asked.rules))

    def lines(self) -> Iterator[str | Remark]:
        yield f"{len(self.quantised)} weights quantised: {', '.join(self.quantised)}"
        for name, reason in self.skipped.items():
            if name not in self.quantised:
                yield Remark(reason, name, LEFT_ALONE)
        yield from self.remarks

    def unmatched(self, paths: set[str]) -> Iterator[Remark]:
        for rule in self.rules:
            if not rule.matches(paths):
                yield Remark(f"no parameter matches {rule}", kind=NOT_DONE)

    # What is rewritten.

    def graph(self, graph: Graph, names: Paths) -> Graph:
        """`names` gives the parameters that every parameter-only input of the graph comes from."""
        self.deciding |= deciding_products(graph)
        paths = paths_in(graph, names)
        return rebuilt(graph, lambda op, args: self.op(op, args, paths).results)

    def op(self, op: Op, args: tuple[Value, ...], paths: Paths) -> Op:
        """An op, its weight quantised where it has one, and the loops in it."""
        regions = op.regions
        if op.name == "scan":
            regions = (self.graph(op.regions[0], paths_inside(op, paths)),)
        elif op.regions:
            self.left_inside(op, paths)
        moved = with_args(op, args, regions)
        if op.name == "contract":
            return self.product(op, moved, paths)
        if op.name == "ragged_dot_general" and op.args[1] in paths:
            return self.ragged(op, moved, paths[op.args[1]])
        if op.name == "take" and op.args[0] in paths and op.args[1] not in paths:
            return self.rows(op, moved, paths[op.args[0]])
        return moved

    def product(self, op: Op, moved: Op, paths: Paths) -> Op:
        """The product with its weight, if it has one, quantised."""
        weights = [i for i, arg in enumerate(op.args) if arg in paths]
        if len(weights) != 1:
            self.left_constants(op)
            return moved
        (position,) = weights
        weight = op.args[position]
        paths_of = paths[weight]
        spec = Signature.parse(op["spec"])
        inside, out = letters(spec.inputs[position]), letters(spec.outputs[0])
        sizes = dict(zip(inside, weight.type.shape))
        summed = {x: n for x, n in sizes.items() if x not in out}
        choice = (
            _kept(weight, len(summed), len(inside))
            or self.decides(op, weight, paths_of)
            or self.choice(paths_of, weight)
        )
        name = shown(paths_of)
        if isinstance(choice, str):
            self.skipped[name] = choice
            return moved
        self.quantised[name] = None
        parts, shared = self.groups(name, summed, choice.group)
        if parts:
            parts = {(letter,): sizes for letter, sizes in parts.items()}
            moved = replace(cut(moved, parts), origin=op.origin)
        spec = Signature.parse(moved["spec"])
        inner, rows = letters(spec.inputs[position]), letters(spec.inputs[1 - position])
        axes = tuple(d for d, x in enumerate(inner) if x in shared or x not in inside)
        form = self.form(choice.form)
        args = list(moved.args)
        args[position] = _rounded(args[position], axes, form)
        summed_rows = tuple(d for d, x in enumerate(rows) if x not in letters(spec.outputs[0]))
        args[1 - position] = self.activation(args[1 - position], summed_rows)
        return with_args(moved, tuple(args))

    def decides(self, op: Op, weight: Value, paths_of: frozenset[str]) -> str | None:
        """Why the weight of a product by which something is chosen is left alone, or None."""
        if op not in self.deciding or self.over_vocab(weight) or self.rule(paths_of) is not None:
            return None
        choice = self.deciding[op].name
        return f"{choice} chooses by its product (a rule that names it takes it too)"

    def left_constants(self, op: Op) -> None:
        """Notes the constants that a product multiplies with."""
        for arg in op.args:
            source = through(arg, "reshape", "transpose", "broadcast_in_dim").op
            if source.name == "const" and arg.type.size > 1:
                self.skipped[f"constant {arg.type} of {op.told}"] = "it is no parameter"

    def left_inside(self, op: Op, paths: Paths) -> None:
        """Notes the parameters that a branch or a loop reads whose length is not known."""
        for arg in op.args:
            if arg in paths:
                self.skipped.setdefault(shown(paths[arg]), f"it is read inside a {op.name}")

    def groups(
        self, name: str, summed: dict[Any, int], group: int | None
    ) -> tuple[dict[Any, tuple[int, ...]], tuple[Any, ...]]:
        """The axes to cut, and those along which weights share a scale."""
        if group is None:
            return {}, tuple(summed)
        cut = cut_into_groups(summed, group)
        if cut is None:
            shown = " ".join(map(str, summed.values()))
            self.say(
                f"{name} has one scale per output channel: there are no groups of {group} in the "
                f"axes that are summed ({shown})"
            )
        return cut or ({}, tuple(summed))

    def activation(self, value: Value, axes: tuple[int, ...]) -> Value:
        """The activations that a product sums along `axes`, in steps of eight bits, every token by
        itself."""
        asked = self.asked.activations
        if asked is None or value.type.dtype not in _FLOATS or rounding(value):
            return value
        return _rounded(value, axes, self.form(asked), least=_LEAST, origin=value.op.origin)

    def ragged(self, op: Op, moved: Op, paths_of: frozenset[str]) -> Op:
        """Experts' matrices, times the rows of their tokens: a scale per output channel."""
        weight, axis = op.args[1], summed_axis(op)
        choice = _kept(weight, axis is not None, weight.type.rank) or self.choice(paths_of, weight)
        name = shown(paths_of)
        if isinstance(choice, Choice):
            # The compiler's kernel takes eight bits as they are where the chip multiplies them,
            # and rows of int8 then; it widens the whole weight elsewhere, and takes no int4.
            form = self.form("int8" if choice.form == "int4" else choice.form)
            if self.chip and not self.chip.multiplies(form):
                choice = f"{self.chip.name} would store it widened for its ragged product"
        if isinstance(choice, str):
            self.skipped[name] = choice
            return moved
        self.quantised[name] = None
        if choice != Choice(choice.form) or choice.form == "int4":
            self.say(f"{name} is {form}, one scale per output channel: its product is ragged")
        stored = _rounded(moved.args[1], (axis,), form)
        rows = self.activation(moved.args[0], (1,)) if form == "int8" else moved.args[0]
        if self.asked.activations and form != "int8":
            self.say(f"activations that meet {name} stay as they are: its product is ragged")
        return with_args(moved, (rows, stored, *moved.args[2:]))

    def rows(self, op: Op, moved: Op, paths_of: frozenset[str]) -> Op:
        """Rows of a table that is named: the rows of its integers, and those of its scales."""
        table, name = op.args[0], shown(paths_of)
        choice = self.of_rows(op, table, paths_of)
        if isinstance(choice, str):
            self.skipped.setdefault(name, choice)
            return moved
        self.quantised[name] = None
        row = dict(enumerate(table.type.shape[1:], 1))
        parts, shared = self.groups(name, row, choice.group)
        shape, axes = [table.type.shape[0]], []
        for d, size in row.items():
            axes += [len(shape)] * (d in shared)
            shape += parts.get(d, (size,))
            axes += [len(shape) - 1] * (d in parts)
        ids, form = moved.args[1], self.form(choice.form)
        cut = reshaped(moved.args[0], tuple(shape)) if parts else moved.args[0]
        stored = _rounded(cut, tuple(axes), form).op
        taken = [make("take", array, ids, **dict(op.attrs)) for array in stored.args]
        attrs = {**dict(stored.attrs), "axes": tuple(d + ids.type.rank - 1 for d in axes)}
        value = make("dequantize", *taken, origin=op.origin, **attrs)
        return (reshaped(value, op.types[0].shape) if parts else value).op

    def of_rows(self, op: Op, table: Value, paths_of: frozenset[str]) -> Choice | str:
        """What a table becomes of which rows are taken, or why it is left alone."""
        named = self.asked.vocab and self.over_vocab(table) or self.rule(paths_of) is not None
        if op.get("fill") is not None:
            return "its rows are filled with a number where there are none"
        if not named and not self.over_vocab(table):
            return "rows are taken of it (a rule that names it takes it too)"
        return _kept(table, 1, table.type.rank) or self.choice(paths_of, table)

    # What is asked.

    def choice(self, paths_of: frozenset[str], weight: Value) -> Choice | str:
        """What a weight becomes, or why it is left alone."""
        asked, rule = self.asked, self.rule(paths_of)
        if asked.skip and any(re.search(asked.skip, path) for path in paths_of):
            return f"its path matches skip={asked.skip!r}"
        if rule is not None:
            return f"the rule {str(rule)!r}" if rule.choice.form == NONE else rule.choice
        if not asked.vocab and self.over_vocab(weight):
            return "it is a table over the vocabulary (quantize{vocab=true} takes it too)"
        return Choice(asked.weights, asked.group) if asked.weights else "weights=none"

    def rule(self, paths_of: frozenset[str]) -> Rule | None:
        return next((rule for rule in self.rules if rule.matches(paths_of)), None)

    def over_vocab(self, value: Value) -> bool:
        return any("vocab" in names for names in self.axes.of(value))

    def form(self, asked: str) -> str:
        """The form asked for, or what the chip has in its place."""
        form = form_on(self.chip, asked)
        if form != asked:
            self.say(f"{self.chip.name} does not multiply {asked}: {form} is taken instead")
        return form

    def say(self, note: str) -> None:
        self.remarks[note] = None


def _kept(weight: Value, summed: int, rank: int) -> str | None:
    """Why a product's weight cannot be quantised, or None."""
    if not weight.type.size:
        return "it has no elements"
    stored = through(weight, "convert_element_type", "reshape", "transpose").type.dtype
    if stored not in _FLOATS:
        return f"it is {stored} already"
    if weight.op.name == "dequantize":
        return "it is quantised already"
    if not 0 < summed < rank:
        return "the product does not sum one of its axes and keep another"
    return None


def _rounded(x: Value, axes: tuple[int, ...], form: str, **how: Any) -> Value:
    """What numbers are once they are kept in `form`, one scale for all along `axes`."""
    parts = build("quantize", x, axes=axes, form=form, **how).results
    attrs = {"axes": axes, "dtype": Symbol(x.type.dtype)}
    return make("dequantize", *parts, origin=parts[0].op.origin, **attrs)
