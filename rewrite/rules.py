"""Rules: a value is replaced by an equal one.

A rule reads like the formula it is. Most are two plain functions of the framework,

    silu = pattern("x * logistic(x)  ->  silu(x)",
        before=lambda x: x * logistic(x),
        after=lambda x: silu(x),
        example=("f32[2,8]",))

traced and normalised by the same code as the program. `before` is first matched by structure
alone, then traced again at the types of the match and compared exactly, so that one rule
serves every rank and dtype. Keyword-only parameters stand for numbers: constants of the program,
which are scalar inputs while the structure is traced, and attributes of its ops.

Where the formula depends on shapes, a rule is a function of one op (`local`). Either way it has a
name, a docstring *before -> after*, what it keeps, and an example that is its test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewrite import runtime
from rewrite.ir import Graph, Op, Type, Value
from rewrite.opdef import substitute, traits

FLOATS = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class Miss:
    """Why a rule nearly fired and did not: the reason, and how many of its ops had matched."""

    reason: str
    depth: int = 1


# Asked without a proof: what an infinite one takes part in is no number, if perhaps another.
KNOWN = frozenset({"finite parameters", "finite activations"})
_NO_CONSTANTS: Mapping[str, float] = {}
Outcome = Value | Sequence[Value] | Miss | None


@dataclass(frozen=True)
class Rule:
    """One rewrite. `apply(op)` gives the new results of `op`, a Miss, or None.

    `needs` names what the rule asks of its operands beyond their types (`"finite"`: no NaN and no
    infinity; `"in range"`: no index out of bounds). `apply` proves it at the op, or does not fire;
    what is `KNOWN` needs no proof.
    """

    name: str
    doc: str
    roots: Iterable[str]
    apply: Callable[[Op], Outcome] = field(compare=False)
    keeps: str = "bits"
    example: Callable[..., Any] | None = None
    types: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def local(
    *roots: str,
    keeps: str = "bits",
    needs: tuple[str, ...] = (),
    example: Callable[..., Any],
    types: tuple[str, ...],
) -> Callable[[Callable[[Op], Outcome]], Rule]:
    """Makes a rule of a function of one op whose name is among `roots`."""

    def wrap(function: Callable[[Op], Outcome]) -> Rule:
        doc = inspect.getdoc(function) or ""
        name = function.__name__
        return Rule(name, doc, frozenset(roots), function, keeps, example, types, needs)

    return wrap


def pattern(
    name: str,
    doc: str,
    *,
    before: Callable[..., Any],
    after: Callable[..., Any],
    example: tuple[str, ...],
    normal: Callable[[Graph], Graph] = lambda graph: graph,
    guard: Callable[..., str | None] = lambda *args, **constants: None,
    keeps: str = "reals",
    constants: dict[str, float] | None = None,
    attributes: dict[str, Any] | None = None,
    needs: tuple[str, ...] = (),
) -> Rule:
    """A rule from two functions of arrays.

    `example` gives the types at which `before` is traced to find its structure, and the types of
    the rule's test. Keyword-only parameters are `constants`, with a number for the test, which
    the program has as constants where `before` computes with them; or `attributes`, which the
    ops of the program have under the same name. `guard` gets the matched types and all of these,
    and returns a reason not to fire. `normal` normalises the graph that `before` traces to.
    """
    constants, attributes = constants or {}, attributes or {}
    compiled = _Pattern(before, after, example, normal, guard, constants, attributes)

    def shown(*arrays: Any) -> Any:
        return before(*arrays, **constants, **attributes)

    return Rule(name, doc, _Roots(compiled), compiled.apply, keeps, shown, example, needs)


class _Roots:
    """The roots of a pattern, which is traced when they are first asked for."""

    def __init__(self, compiled: _Pattern) -> None:
        self.compiled = compiled

    def __iter__(self) -> Iterator[str]:
        return iter({self.compiled.graph(dtype).outputs[0].op.name for dtype in FLOATS})


class _Pattern:
    def __init__(
        self,
        before: Callable[..., Any],
        after: Callable[..., Any],
        example: tuple[str, ...],
        normal: Callable[[Graph], Graph],
        guard: Callable[..., str | None],
        constants: dict[str, float],
        attributes: dict[str, Any],
    ) -> None:
        self.before, self.after = before, after
        self.normal, self.guard = normal, guard
        self.example = tuple(Type.parse(text) for text in example)
        self.constants, self.attributes = constants, attributes
        self._graphs: dict[str, Graph] = {}
        self._traced: dict[tuple[Any, ...], Graph] = {}

    def graph(self, dtype: str) -> Graph:
        """The graph of `before` at floats of this dtype; narrow ones have conversions.

        Its inputs are the arrays and then the constants. A rule whose example mixes float dtypes is
        about conversions, and is traced at its example.
        """
        floats = {type_.dtype for type_ in self.example if type_.dtype in FLOATS}
        if dtype not in FLOATS or len(floats) > 1:
            dtype = ""
        if dtype not in self._graphs:
            types = tuple(
                Type(dtype, type_.shape) if dtype and type_.dtype in FLOATS else type_
                for type_ in self.example
            )
            self._graphs[dtype] = self.trace(self.before, types, self.attributes, self.constants)
        return self._graphs[dtype]

    def trace(
        self,
        function: Callable[..., Any],
        types: tuple[Type, ...],
        options: dict[str, Any],
        constants: Mapping[str, float] = _NO_CONSTANTS,
    ) -> Graph:
        """The graph of a function of arrays, and of constants as scalars of no fixed dtype."""

        def traced(*inputs: Any) -> list[Any]:
            arrays, scalars = inputs[: len(types)], inputs[len(types) :]
            return [function(*arrays, **options, **dict(zip(constants, scalars)))]

        dtypes = ("i32" if isinstance(number, int) else "f32" for number in constants.values())
        scalar_types = (Type(dtype, (), weak=True) for dtype in dtypes)
        return self.normal(runtime.framework().trace(traced, (*types, *scalar_types)))

    def apply(self, op: Op) -> Outcome:
        root = op.results[0]
        graph = self.graph(root.type.dtype)
        arrays, scalars = graph.inputs[: len(self.example)], graph.inputs[len(self.example) :]
        search = _Search(graph, frozenset(scalars), frozenset(self.attributes))
        bound = next(search.match(graph.outputs[0], root, {}), None)
        if bound is None:
            deep = search.deepest >= max(4, graph.op_count // 2)
            return Miss(search.reason, search.deepest) if deep else None
        if any(value not in bound for value in graph.inputs):
            return Miss("its normal form does not read every parameter", graph.op_count)
        args = [bound[value] for value in arrays]
        types = tuple(arg.type for arg in args)
        options = {name: bound[value].op["value"] for name, value in zip(self.constants, scalars)}
        options |= {name: bound.get(name, given) for name, given in self.attributes.items()}
        reason = self.guard(*types, **options)
        if reason:
            return Miss(reason, graph.op_count)
        try:
            exact = self.traced_at(self.before, types, options)
        except (TypeError, ValueError) as error:
            return Miss(f"the rule does not hold at these types: {error}", graph.op_count)
        strict = _Search(exact, strict=True)
        if next(strict.match(exact.outputs[0], root, dict(zip(exact.inputs, args))), None) is None:
            return Miss(strict.reason, graph.op_count)
        return self.inserted(self.traced_at(self.after, types, options), args, root)

    def traced_at(self, function: Any, types: tuple[Type, ...], options: dict[str, Any]) -> Graph:
        key = (function is self.before, types, tuple(options.items()))
        if key not in self._traced:
            self._traced[key] = self.trace(function, types, options)
        return self._traced[key]

    def inserted(self, graph: Graph, args: list[Value], root: Value) -> Outcome:
        (result,) = substitute(graph, args, origin=root.op.origin)
        same = (result.type.dtype, result.type.shape) == (root.type.dtype, root.type.shape)
        return result if same else Miss(f"it would turn {root.type} into {result.type}")


Bound = dict[Any, Any]  # values of the pattern, and names of attributes, with those of the program


class _Search:
    """Finds a pattern in a program, trying both orders of commutative ops.

    `constants` are the inputs of the pattern that stand for numbers; `attributes` are names, whose
    values are read off the program. A `strict` search compares types, attributes and constants.
    """

    def __init__(
        self,
        graph: Graph,
        constants: frozenset[Value] = frozenset(),
        attributes: frozenset[str] = frozenset(),
        strict: bool = False,
    ) -> None:
        self.inputs = set(graph.inputs)
        self.constants, self.attributes, self.strict = constants, attributes, strict
        self.deepest, self.reason = 0, "nothing matched"

    def match(self, want: Value, have: Value, bound: Bound, depth: int = 1) -> Iterator[Bound]:
        constant = _unconverted(want)
        if constant in self.constants:
            number = _unconverted(have)
            if _is_number(number):
                yield {**bound, constant: number}
            else:
                self.missed(depth, "expected a constant", have)
            return
        if want in bound:
            if bound[want] == have or self.same_const(want, have):
                yield bound
            return
        if want in self.inputs:
            yield {**bound, want: have}
            return
        if want.op.name == "const":
            if self.same_const(want, have):
                yield {**bound, want: have}
            else:
                self.missed(depth, f"expected the constant {want.op['value']}", have)
            return
        if not self.same_op(want, have, depth):
            return
        orders = [tuple(zip(want.op.args, have.op.args))]
        if traits(want.op).commutes:
            orders.append(tuple(zip(want.op.args, reversed(have.op.args))))
        attributes = {name: value for name, value in have.op.attrs if name in self.attributes}
        for pairs in orders:
            yield from self.match_all(pairs, {**bound, want: have, **attributes}, depth + 1)

    def match_all(
        self, pairs: tuple[tuple[Value, Value], ...], bound: Bound, depth: int
    ) -> Iterator[Bound]:
        if not pairs:
            yield bound
            return
        (want, have), *rest = pairs
        for more in self.match(want, have, bound, depth):
            yield from self.match_all(tuple(rest), more, depth)

    def same_op(self, want: Value, have: Value, depth: int) -> bool:
        one, two = ((value.op.name, value.index, len(value.op.args)) for value in (want, have))
        if one != two:
            self.missed(depth, f"expected {want.op.name}", have)
            return False
        if self.strict and (want.op.attrs, want.op.regions) != (have.op.attrs, have.op.regions):
            self.missed(depth, f"{want.op.name} has other attributes than the rule's", have)
            return False
        if self.strict and (want.type.dtype, want.type.shape) != (have.type.dtype, have.type.shape):
            self.missed(depth, f"expected {want.type}", have)
            return False
        return True

    def same_const(self, want: Value, have: Value) -> bool:
        if want.op.name != "const" or have.op.name != "const":
            return False
        return not self.strict or want.op["value"] == have.op["value"]

    def missed(self, depth: int, reason: str, have: Value) -> None:
        if depth > self.deepest:
            shown = f"{have.op['value']}" if have.op.name == "const" else have.op.name
            self.deepest, self.reason = depth, f"{reason}, found {shown}"


def _unconverted(value: Value) -> Value:
    while traits(value.op).converts:
        value = value.op.args[0]
    return value


def _is_number(value: Value) -> bool:
    return value.op.name == "const" and isinstance(value.op["value"], (int, float))
