"""Rules: a value is replaced by an equal one.

A rule reads like the formula it is. Most are two plain functions of the framework,

    silu = pattern("x * logistic(x)  ->  silu(x)",
        before=lambda x: x * logistic(x),
        after=lambda x: silu(x),
        example=("f32[2,8]",))

traced and normalised by the same code as the program. `before` is first matched by structure
alone, then traced again at the types of the match and compared exactly, so that one rule
serves every rank and dtype. Keyword-only parameters stand for constants.

Where the formula depends on shapes, a rule is a function of one op (`local`). Either way it has a
name, a docstring *before -> after*, what it keeps, and an example that is its test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class Constant:
    """Stands in a pattern for a constant that a keyword-only parameter of the rule names."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        # Hardly a program holds it by accident, and every float dtype holds it exactly.
        self.sentinel = 161.0 + 2 * number


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
    needs: tuple[str, ...] = (),
) -> Rule:
    """A rule from two functions of arrays.

    `example` gives the types at which `before` is traced to find its structure, and, with
    `constants`, the rule's test. `guard` gets the matched types and constants, and returns a
    reason not to fire. `normal` normalises what `before` traces to.
    """
    compiled = _Pattern(name, before, after, example, normal, guard, constants or {})

    def shown(*arrays: Any) -> Any:
        return before(*arrays, **(constants or {}))

    return Rule(name, doc, _Roots(compiled), compiled.apply, keeps, shown, example, needs)


class _Roots:
    """The roots of a pattern, known once it has been traced; tracing waits for the first use."""

    def __init__(self, compiled: _Pattern) -> None:
        self.compiled = compiled

    def __iter__(self) -> Iterator[str]:
        return iter({self.compiled.graph(dtype).outputs[0].op.name for dtype in FLOATS})


class _Pattern:
    def __init__(
        self,
        name: str,
        before: Callable[..., Any],
        after: Callable[..., Any],
        example: tuple[str, ...],
        normal: Callable[[Graph], Graph],
        guard: Callable[..., str | None],
        constants: dict[str, float],
    ) -> None:
        self.name, self.before, self.after = name, before, after
        self.normal, self.guard = normal, guard
        self.example = tuple(Type.parse(text) for text in example)
        self.constants = [Constant(key, i) for i, key in enumerate(constants)]
        self._graphs: dict[str, Graph] = {}
        self._traced: dict[tuple[Any, ...], Graph] = {}

    def graph(self, dtype: str) -> Graph:
        """What `before` traces to where its floats have this dtype: narrow ones are converted.

        A rule whose example mixes float dtypes is about conversions, and is traced as it stands.
        """
        floats = {type_.dtype for type_ in self.example if type_.dtype in FLOATS}
        if dtype not in FLOATS or len(floats) > 1:
            dtype = ""
        if dtype not in self._graphs:
            types = tuple(
                Type(dtype, type_.shape) if dtype and type_.dtype in FLOATS else type_
                for type_ in self.example
            )
            sentinels = {constant.name: constant.sentinel for constant in self.constants}
            self._graphs[dtype] = self.trace(self.before, types, sentinels)
        return self._graphs[dtype]

    def trace(self, function: Any, types: tuple[Type, ...], constants: dict[str, Any]) -> Graph:
        def traced(*arrays: Any) -> list[Any]:
            return [function(*arrays, **constants)]

        return self.normal(runtime.framework().trace(traced, types))

    def apply(self, op: Op) -> Outcome:
        root = op.results[0]
        graph = self.graph(root.type.dtype)
        search = _Search(graph, {constant.sentinel: constant.name for constant in self.constants})
        bound = next(search.match(graph.outputs[0], root, {}), None)
        if bound is None:
            deep = search.deepest >= max(4, graph.op_count // 2)
            return Miss(search.reason, search.deepest) if deep else None
        if any(constant.name not in search.constants for constant in self.constants):
            return Miss("a constant of the rule is no constant there", graph.op_count)
        args = [bound[value] for value in graph.inputs]
        types = tuple(arg.type for arg in args)
        reason = self.guard(*types, **search.constants)
        if reason:
            return Miss(reason, graph.op_count)
        try:
            exact = self.traced_at(self.before, types, search.constants)
        except (TypeError, ValueError) as error:
            return Miss(f"the rule does not hold at these types: {error}", graph.op_count)
        strict = _Search(exact, {}, strict=True)
        if next(strict.match(exact.outputs[0], root, dict(zip(exact.inputs, args))), None) is None:
            return Miss(strict.reason, graph.op_count)
        return self.inserted(self.traced_at(self.after, types, search.constants), args, root)

    def traced_at(self, function: Any, types: tuple[Type, ...], constants: dict[str, Any]) -> Graph:
        key = (function is self.before, types, tuple(constants.items()))
        if key not in self._traced:
            self._traced[key] = self.trace(function, types, constants)
        return self._traced[key]

    def inserted(self, graph: Graph, args: list[Value], root: Value) -> Outcome:
        (result,) = substitute(graph, args, origin=root.op.origin)
        same = (result.type.dtype, result.type.shape) == (root.type.dtype, root.type.shape)
        return result if same else Miss(f"it would turn {root.type} into {result.type}")


class _Search:
    """Finds a pattern in a program, trying both orders of commutative ops."""

    def __init__(self, graph: Graph, names: dict[float, str], strict: bool = False) -> None:
        self.inputs = set(graph.inputs)
        self.names, self.strict = names, strict
        self.constants: dict[str, Any] = {}
        self.deepest, self.reason = 0, "nothing matched"

    def match(
        self, want: Value, have: Value, bound: dict[Value, Value], depth: int = 1
    ) -> Iterator[dict[Value, Value]]:
        if want in bound:
            if bound[want] == have or (self.is_const(want) and self.same_const(want, have)):
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
        for pairs in orders:
            yield from self.match_all(pairs, {**bound, want: have}, depth + 1)

    def match_all(
        self, pairs: tuple[tuple[Value, Value], ...], bound: dict[Value, Value], depth: int
    ) -> Iterator[dict[Value, Value]]:
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
        given = dict(have.op.attrs)
        for key, value in want.op.attrs:
            name = self.sentinel(value)
            if name is not None:
                self.constants[name] = given.get(key)
        return True

    def is_const(self, value: Value) -> bool:
        return value.op.name == "const"

    def same_const(self, want: Value, have: Value) -> bool:
        if have.op.name != "const":
            return False
        name = self.sentinel(want.op["value"])
        if name is not None:
            self.constants[name] = have.op["value"]
            return isinstance(have.op["value"], (int, float))
        return not self.strict or want.op["value"] == have.op["value"]

    def sentinel(self, value: Any) -> str | None:
        """The rule's constant that this value of the pattern stands for."""
        if not isinstance(value, float):
            return None
        return self.names.get(value)

    def missed(self, depth: int, reason: str, have: Value) -> None:
        if depth > self.deepest:
            shown = f"{have.op['value']}" if have.op.name == "const" else have.op.name
            self.deepest, self.reason = depth, f"{reason}, found {shown}"
