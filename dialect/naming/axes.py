"""Axis inference: which dimensions of a program are the same axis, and what they are.

Every op's signature says which of its dimensions belong together. Joining them over the whole
program (a union-find whose members split where a reshape cuts a dimension) leaves a few dozen
axes; the recognised ops then say what they are (`dialect.naming.axis_names`). A name comes with its
provenance, never from a path; what cannot be inferred, a user's hint says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dialect.matching.values import is_iota
from dialect.naming.axis import (  # noqa: F401
    HEADS,
    NAMES,
    Axes,
    Axis,
    Names,
    join_resized,
    leaves,
    leaves_of,
    unify,
)
from dialect.naming.axis_hints import place_hints
from dialect.naming.axis_names import name_axes
from dialect.ops.control import scan_parts
from rewrite import opdef
from rewrite.ir import Graph, Op, Value
from rewrite.program import Program


def infer_axes(program: Program) -> Axes:
    """The axes of a program's step. Linear in its size."""
    axes = Axes()
    for value, declared in zip(program.graph.inputs, program.step_inputs):
        for axis in axes.at(value):
            axis.roles.add(declared.role)
    _join_graph(axes, program.graph)
    name_axes(axes, program)
    place_hints(axes, program)
    return axes


def _join_graph(axes: Axes, graph: Graph) -> None:
    for op in graph.ops:
        if op.name == "scan":
            _join_scan(axes, op)
        elif op.regions:
            _join_regions(axes, op)
        elif op.name in ("padded", "unpadded"):
            _join_padded(axes, op)
        else:
            _join_op(axes, op, graph.users)


def _join_op(axes: Axes, op: Op, users: Mapping[Value, Sequence[Any]]) -> None:
    signature = opdef.signature(op)
    known: dict[str, list[Axis]] = {}
    arrays = list(zip((*op.args, *op.results), (*signature.inputs, *signature.outputs)))
    compound = []
    for value, array in arrays:
        if is_iota(value) and len(users.get(value, ())) > 1:
            continue  # counts along axes that may have but their length in common
        for axis, dimension in zip(axes.at(value), array):
            if len(dimension) > 1:
                compound.append((axis, dimension))
            elif not dimension or axis.size == 1:
                continue
            elif dimension[0] in known:
                unify(known[dimension[0]], [axis])
            else:
                known[dimension[0]] = [axis]
    for axis, dimension in compound:
        _join_compound(known, axis, dimension)
    if op.name in ("slice", "concatenate"):
        _inherit_roles(axes, op)


def _inherit_roles(axes: Axes, op: Op) -> None:
    """A part of an axis, or a longer one, is another axis, and comes from where the axis came."""
    for arg in op.args:
        for before, after in zip(axes.at(arg), axes.at(op.results[0])):
            if before.size != after.size:
                roles = {role for leaf in leaves(before) for role in leaf.roles}
                for leaf in leaves(after):
                    leaf.roles |= roles


def _join_padded(axes: Axes, op: Op) -> None:
    """A padded axis is the axis it was, as long as it is with its padding."""
    for axis, (before, after) in enumerate(zip(axes.at(op.args[0]), axes.at(op.results[0]))):
        if axis == op["axis"]:
            join_resized(before, after)
        else:
            unify([before], [after])


def _join_compound(known: dict[str, list[Axis]], axis: Axis, dimension: tuple[str, ...]) -> None:
    """Cuts an axis into the letters of its dimension; one that nothing else has is the rest."""
    fresh = [letter for letter in dimension if letter not in known]
    others = math.prod(leaf.size for name in dimension for leaf in known.get(name, ()))
    if len(fresh) > 1 or others == 0:
        return
    for letter in fresh:
        known[letter] = [Axis(axis.size // others)]
    unify([part for letter in dimension for part in known[letter]], [axis])


def _join_scan(axes: Axes, op: Op) -> None:
    body = op.regions[0]
    fixed, carried, scanned = scan_parts(op)
    whole = slice(fixed.start, carried.stop)
    _same(axes, op.args[whole], body.inputs[whole])
    layers = Axis(op["length"])
    for arg, inner in zip(op.args[scanned], body.inputs[scanned]):
        outer = axes.at(arg)
        unify([layers], [outer[0]])
        _pair(outer[1:], axes.at(inner))
    _join_graph(axes, body)
    carry = op["carry"]
    _same(axes, body.outputs[:carry], op.results[:carry])
    _same(axes, body.outputs[:carry], op.args[carried])
    for inner, result in zip(body.outputs[carry:], op.results[carry:]):
        outer = axes.at(result)
        unify([layers], [outer[0]])
        _pair(axes.at(inner), outer[1:])


def _join_regions(axes: Axes, op: Op) -> None:
    """while and cond: every region sees the last arguments, and gives the results."""
    for region in op.regions:
        count = min(len(region.inputs), len(op.args))
        _same(axes, op.args[len(op.args) - count :], region.inputs[len(region.inputs) - count :])
        _join_graph(axes, region)
        if len(region.outputs) == len(op.results):
            _same(axes, region.outputs, op.results)
    if op.get("body_consts") is not None:  # a while gives what it carries
        _same(axes, op.args[len(op.args) - len(op.results) :], op.results)


def _same(axes: Axes, left: Sequence[Value], right: Sequence[Value]) -> None:
    for one, other in zip(left, right):
        if one.type.shape == other.type.shape:
            _pair(axes.at(one), axes.at(other))


def _pair(left: Sequence[Axis], right: Sequence[Axis]) -> None:
    for one, other in zip(left, right):
        unify([one], [other])
