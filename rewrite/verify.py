"""The verifier: is this a valid program, and if not, where did it go wrong."""

from __future__ import annotations

from weakref import WeakSet

from rewrite import opdef
from rewrite.errors import InvalidProgram, brief, cause
from rewrite.ir import Graph, Op, Opaque, Record, Symbol, Type, Value

_WIDTH = 200  # characters of an op in an error
# Ops never change: each is checked once in its life, alone, and once with its regions.
_CHECKED: WeakSet[Op] = WeakSet()
_VERIFIED: WeakSet[Op] = WeakSet()


class InvalidOp(InvalidProgram):
    """An op of the program is wrong: `op`, and the reason alone, which the message begins with."""

    def __init__(self, op: Op, reason: str, hint: str = "", message: str = "") -> None:
        super().__init__(message or reason, where=op.origin.source, hint=hint)
        self.op, self.reason = op, reason


def verify(graph: Graph, blame: str = "") -> None:
    """Raises InvalidProgram unless every op is defined, closed over and rightly typed.

    `blame` names the pass (or rule) that made the graph. The message shows the op with the lines
    around it and the user's source line.
    """
    inputs = set(graph.inputs)
    if len(inputs) != len(graph.inputs):
        raise InvalidProgram(_told(blame, "a graph has the same input twice"))
    for op in graph.ops:
        if op.name == "input":
            continue
        if any(arg.op.name == "input" and arg not in inputs for arg in op.args):
            raise _shown(
                graph, op, blame, f"op {op.name} reads an input that belongs to another graph"
            )
        if op in _VERIFIED:
            continue
        try:
            check(op)
        except InvalidOp as error:
            raise _shown(graph, op, blame, error.reason, error.hint) from error.__cause__
        for region in op.regions:
            verify(region, blame)
        _VERIFIED.add(op)
    for value in graph.outputs:
        if value.op.name == "input" and value not in inputs:
            raise InvalidProgram(_told(blame, "an output is the input of another graph"))


def check(op: Op) -> None:
    """Raises InvalidOp unless an op is defined and gives what it says; regions are not asked."""
    if op in _CHECKED:
        return
    try:
        definition = opdef.lookup(op.name)
    except InvalidProgram as error:
        raise InvalidOp(op, error.message, error.hint) from None
    for name, value in op.attrs:
        if definition.attrs is not None and name not in definition.attrs:
            raise InvalidOp(op, f"op {op.name} takes no attribute {name!r}")
        if not _printable(value):
            bare = f"attribute {name!r} is a bare {type(value).__name__}; wrap it"
            raise InvalidOp(op, f"op {op.name} {bare}")
    wanted = definition.regions
    if len(op.regions) != wanted and (wanted is not None or not op.regions):
        count = "one or more" if wanted is None else wanted
        raise InvalidOp(op, f"op {op.name} has {len(op.regions)} regions, and takes {count}")
    try:
        types = opdef.infer(op)
    except Exception as error:  # whatever it asks of attributes and shapes that it did not expect
        message = f"op {op.name} does not accept its arguments: {cause(error)}"
        raise InvalidOp(op, message) from error
    if _strong(types) != _strong(op.types):
        declared, inferred = (", ".join(map(str, group)) for group in (op.types, types))
        raise InvalidOp(
            op, f"op {op.name} says its results are {declared}, but they are {inferred}"
        )
    _CHECKED.add(op)


def _strong(types: tuple[Type, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    # Weakness only steers later promotion, which is over once a program is traced.
    return tuple((type_.dtype, type_.shape) for type_ in types)


def _printable(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_printable(item) for item in value)
    if isinstance(value, Record):
        return all(_printable(item) for _, item in value.fields)
    known = (type(None), bool, int, float, complex, str, Symbol, Opaque, Type)
    return isinstance(value, known)


def _told(blame: str, text: str) -> str:
    return f"{blame}: {text}" if blame else text


def _shown(graph: Graph, op: Op, blame: str, reason: str, hint: str = "") -> InvalidOp:
    lines = [_told(blame, reason)]
    lines += [f"  made by rule: {op.origin.rules[-1]}"] if op.origin.rules else []
    return InvalidOp(op, reason, hint, "\n".join([*lines, window(graph, op)]))


def window(graph: Graph, op: Op, lines_around: int = 5) -> str:
    """The IR around `op`, the op itself marked."""
    names: dict[Value, str] = {value: f"%i{n}" for n, value in enumerate(graph.inputs)}
    for number, other in enumerate(graph.ops):
        names |= {value: f"%{number}.{value.index}" for value in other.results}
    at = graph.ops.index(op)
    shown = []
    for other in graph.ops[max(0, at - lines_around) : at + lines_around + 1]:
        args = ", ".join(names.get(arg, "%?") for arg in other.args)
        types = ", ".join(map(str, other.types))
        mark = ">>" if other is op else "  "
        head = names[other.results[0]] if other.types else "()"
        shown.append(brief(f"  {mark} {head} = {other.name}({args}) : {types}", _WIDTH))
    return "\n".join(shown)
