"""retarget: the shardings in a program, kept where they fit the target mesh, else removed.

sharding_constraint(x, P("data") on the program's own mesh)  ->  constrain(x)  where the names fit
                                                             ->  x             where they do not

Likewise `reshard`, `device_put`, the shardings of a `jit` and of explicit axes. A `shard_map` over
axes of the target mesh stays; any other is written out for all its blocks at once. A kernel that
the compiler cannot partition is replicated on every chip. Each reason is noted once, with a line of
the program. A program without shardings does not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from jax.sharding import AxisType, Sharding

from dialect.arrays import primitives
from dialect.arrays.attributes import decode
from dialect.jaxprs.jaxpr import import_jaxpr
from dialect.jaxprs.written_out import written_out
from dialect.ops.control import scan_parts
from dialect.ops.sharding import Misfit, fitted, spec_layout
from rewrite.dataflow import rebuilt
from rewrite.ir import Graph, Op, Opaque, Origin, Value, attrs_of, new_input
from rewrite.opdef import build, make, substitute, with_args
from rewrite.passbase import Pass
from rewrite.program import NOT_DONE, Layout, Program, Remark
from rewrite.target import Target

# Ops that move their arguments and compute nothing, and whether the sharding is a type, which says
# nothing along mesh axes of the kind Auto.
_MOVES = {"sharding_constraint": False, "device_put": False, "reshard": True, "mesh_cast": True}


@dataclass(frozen=True)
class Retarget(Pass):
    """Keeps the program's own shardings where they fit the mesh, removes them where not."""

    shardings: Literal["keep", "remove"] = "keep"

    keeps: ClassVar[str] = "reals"

    def run(self, program: Program, target: Target) -> Program:
        fitting = _Fitting(dict(target.mesh), self.shardings == "keep")
        places = {value: _Place(i) for i, value in enumerate(program.graph.inputs)}
        updated = zip(program.graph.outputs, program.step_outputs, strict=True)
        places |= {v: _Place(output.updates) for v, output in updated if output.updates is not None}
        graph = fitting.graph(program.graph, places)
        inputs = list(program.step_inputs)
        for number, layout in fitting.layouts.items():
            inputs[number] = replace(inputs[number], layout=layout)
        if program.stages is None:
            result = replace(program, graph=graph, inputs=tuple(inputs))
        else:
            stages = replace(program.stages, inputs=tuple(inputs))
            result = replace(program, graph=graph, stages=stages)
        return self.recorded(result, *fitting.lines())


@dataclass(frozen=True)
class _Place:
    """The input of the program that a value is or becomes, without its `scanned` leading axes."""

    number: int
    scanned: int = 0


@dataclass
class _Fitting:
    """Rewrites graphs for a mesh, and collects notes on what was done and why."""

    mesh: dict[str, int]
    keeps: bool
    layouts: dict[int, Layout] = field(default_factory=dict)
    notes: dict[tuple[str, str], list[Origin]] = field(default_factory=dict)

    def note(self, text: str, op: Op, kind: str = "") -> None:
        self.notes.setdefault((text, kind), []).append(op.origin)

    def lines(self) -> Iterator[Remark]:
        """Each note once, with its count and first source line."""
        for (text, kind), origins in self.notes.items():
            source = next((origin.source for origin in origins if origin.source), "")
            first = f", first at {source}" if source else ""
            yield Remark(f"{text} ({len(origins)} times{first})", kind=kind)

    def graph(self, graph: Graph, places: dict[Value, _Place]) -> Graph:
        """The graph for the mesh; `places` are inputs of the program, and their updated values."""

        def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
            regions = tuple(self.graph(*region) for region in _regions(op, args, places))
            homes = [places.get(x) for x in op.results]
            if op.name in _MOVES:
                homes = [places.get(arg, home) for arg, home in zip(args, homes)]
            return self.rewritten(with_args(op, args, regions), homes)

        return rebuilt(graph, visit)

    def rewritten(self, op: Op, homes: list[_Place | None]) -> tuple[Value, ...]:
        """New results of an op; `homes` are the inputs of the program that these are."""
        if op.name == "shard_map":
            return self.mapped(op)
        if op.name == "pallas_call" and not op.get("interpret"):
            return self.kernel(op)
        if op.name in _MOVES or _shardings(op):
            return self.placed(op, homes)
        return op.results

    def placed(self, op: Op, homes: list[_Place | None]) -> tuple[Value, ...]:
        """The op without its shardings, and constraints where these fit."""
        shardings = _shardings(op)
        if op.name in _MOVES:
            values = op.args
            shardings = shardings or [*decode(op.get("devices", (None,) * len(values)))]
        else:
            values = _without_shardings(op).results
        return tuple(
            self.constrained(op, *triple) for triple in zip(values, shardings, homes, strict=True)
        )

    def constrained(self, op: Op, value: Value, sharding: Any, home: _Place | None) -> Value:
        if not self.keeps:
            self.note("removed shardings, as asked for", op)
            return value
        try:
            layout = fitted(sharding, value.type.shape, self.mesh)
        except Misfit as misfit:
            self.note(f"removed shardings: {misfit}", op)
            return value
        if _MOVES.get(op.name) and AxisType.Auto in sharding.mesh.axis_types:
            layout = tuple(axes or None for axes in layout)
        explicit = op.name not in _MOVES and not any(layout)  # its type: nothing was asked for
        if explicit or all(axes is None for axes in layout):
            return value
        if home is not None and None not in layout:
            outer = ((),) * home.scanned + layout
            if self.layouts.setdefault(home.number, outer) == outer:
                self.note("kept shardings of inputs, which have them from the start", op)
                return value
        self.note("kept shardings: they fit the mesh", op)
        why = "the program asks for it"
        return make("constrain", value, layout=layout, why=why, origin=op.origin)

    def kernel(self, op: Op) -> tuple[Value, ...]:
        """pallas_call  ->  whole(pallas_call)"""
        if math.prod(self.mesh.values()) == 1:
            return op.results
        self.note("kernels are replicated on every chip; to split one, use jax.shard_map", op)
        inputs = tuple(new_input(arg.type) for arg in op.args)
        region = Graph(inputs, with_args(op, inputs).results)
        return build("whole", *op.args, regions=(region,), origin=op.origin).results

    def mapped(self, op: Op) -> tuple[Value, ...]:
        """shard_map  ->  mapped, over axes that the mesh has; else its body over all blocks."""
        sizes = dict(op["mesh"].payload.shape)
        manual = op["newly_manual_axes"].payload
        axes = tuple((name, size) for name, size in sizes.items() if name in manual)
        body = _unplaced(import_jaxpr(op["jaxpr"].payload))
        inputs, outputs = (
            tuple(spec_layout(spec.payload, value.type.rank) for spec, value in zip(specs, values))
            for specs, values in ((op["in_specs"], op.args), (op["out_specs"], op.results))
        )
        over = " ".join(f"{name}={size}" for name, size in axes)
        splits = any(size > 1 for _, size in axes)
        if splits and all(self.mesh.get(name) == size for name, size in axes):
            self.note(f"kept shard_map over {over}", op)
            attrs = {"body": Opaque("graph", body, body.key), "axes": axes}
            attrs |= {"inputs": inputs, "outputs": outputs}
            return build("mapped", *op.args, origin=op.origin, **attrs).results
        try:
            graph = written_out(body, axes, inputs, outputs, [arg.type for arg in op.args])
        except Exception as error:  # whatever JAX raises for a collective that it cannot batch
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            self.note(
                f"left a shard_map over {over} as it is, which compiles for its own mesh only: it "
                f"cannot be written out ({reason}); trace it under a mesh of one device, or with "
                "the target's axes",
                op,
                NOT_DONE,
            )
            return op.results
        self.note(f"wrote out a shard_map over {over}, all its blocks at once", op)
        written = substitute(graph, op.args, origin=op.origin if splits else None)
        return self.graph(Graph(op.args, tuple(written)), {}).outputs


def _regions(
    op: Op, args: tuple[Value, ...], places: dict[Value, _Place]
) -> Iterator[tuple[Graph, dict[Value, _Place]]]:
    """The regions of an op, each with its values that are inputs of the program."""
    for region in op.regions:
        inner: dict[Value, _Place] = {}
        if op.name == "scan":
            consts, _, xs = scan_parts(op)
            carried = slice(0, op["carry"]), slice(op["carry"], None)
            for scanned, into, out in ((0, consts, carried[0]), (1, xs, carried[1])):
                pairs = [*zip(args[into], region.inputs[into])]
                pairs += zip(op.results[out], region.outputs[out])
                inputs = ((x, places[value]) for value, x in pairs if value in places)
                inner |= {x: _Place(at.number, at.scanned + scanned) for x, at in inputs}
        yield region, inner


def _shardings(op: Op) -> list[Sharding]:
    """The shardings that the op's own parameters give to its results; none if they do not."""
    for _, value in op.attrs:
        if isinstance(value, Opaque) and isinstance(value.payload, Sharding):
            return [value.payload] * len(op.types)
    return []


def _without_shardings(op: Op) -> Op:
    """The op as it would be without explicit axes."""
    kept_attrs = {
        name: value
        for name, value in op.attrs
        if not (isinstance(value, Opaque) and isinstance(value.payload, Sharding))
    }
    gone = {name for name, _ in op.attrs} - set(kept_attrs) - set(primitives.unsaid(op.name))
    attrs = attrs_of({**kept_attrs, **dict.fromkeys(gone)})
    return Op(op.name, op.args, attrs, op.types, op.regions, op.origin)


def _unplaced(graph: Graph) -> Graph:
    """The body of a `shard_map` without its shardings, which are only hints there."""

    def visit(op: Op, args: tuple[Value, ...]) -> Sequence[Value]:
        if op.name in _MOVES:
            return args
        attrs, regions = _without_shardings(op).attrs, tuple(map(_unplaced, op.regions))
        return Op(op.name, args, attrs, op.types, regions, op.origin).results

    return rebuilt(graph, visit)
