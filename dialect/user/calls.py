"""How a function of the user's is called: its arguments by name, in the order of its signature.

    step(params, tokens=t, cache=c)  ->  ("params", params), ("cache", c), ("tokens", t)

Arguments that are no arrays (a configuration, a name, a function) are static: the function is
traced for their value, as `jax.jit` does with what `static_argnames` lists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from dialect.arrays.notebook_cells import file_or_cell
from rewrite.errors import TraceError, brief, nearest

Where = int | str
_EMPTY = inspect.Parameter.empty
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Roles:
    """Which arguments are parameters, state and static, by number or name, as the user says.

    Without `params`, the first argument holds them that is neither static nor None.
    """

    params: Where | None = None
    state: Where | Sequence[Where] | None = None
    static_argnums: int | Sequence[int] = ()
    static_argnames: str | Sequence[str] = ()

    def of_method(self) -> Roles:
        """Those of a method once it has its object, which is counted where it is named static."""
        numbers = _listed(self.static_argnums)
        if 0 not in numbers:
            return self
        state = self.state if self.state is None else [_one_less(at) for at in _listed(self.state)]
        params = self.params if self.params is None else _one_less(self.params)
        static = [_one_less(number) for number in numbers if number != 0]
        return Roles(params, state, static, self.static_argnames)


@dataclass(frozen=True)
class Call:
    """One call: names and values of its arguments, the first `positional` of them by position.

    static: the numbers of the static ones; params: the number of the parameters.
    """

    function: Callable[..., Any]
    names: tuple[str, ...]
    values: tuple[Any, ...]
    positional: int
    static: frozenset[int]
    params: int

    def result(self) -> Any:
        """What the function returns."""
        n = self.positional
        return self.function(*self.values[:n], **dict(zip(self.names[n:], self.values[n:])))

    def with_values(self, values: Iterable[Any]) -> Call:
        """The same call of other values."""
        return replace(self, values=tuple(values))


class Callee:
    """A function of the user's, by its signature and the roles of its arguments."""

    def __init__(self, function: Callable[..., Any], roles: Roles) -> None:
        self.function, self.roles = function, roles
        try:
            self.signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):
            self.signature = None
        parameters = list(self.signature.parameters.values()) if self.signature else []
        by_place = [p for p in parameters if p.kind in _BY_PLACE]
        self.names = tuple(parameter.name for parameter in by_place)
        self.needed = sum(parameter.default is _EMPTY for parameter in by_place)
        self.needs_names = any(
            p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is _EMPTY for p in parameters
        )
        self.static_numbers = _listed(roles.static_argnums)
        self.static_names = _listed(roles.static_argnames)

    def call(self, args: Sequence[Any], named: Mapping[str, Any]) -> Call:
        """The call with these arguments. Raises TraceError where the function takes others."""
        if not named and self.needed <= len(args) <= len(self.names) and not self.needs_names:
            return self._with_roles(self.names[: len(args)], tuple(args), len(args))
        if self.signature is None:
            names = (*(f"arg{i}" for i in range(len(args))), *named)
            return self._with_roles(names, (*args, *named.values()), len(args))
        try:
            bound = self.signature.bind(*args, **named)
        except TypeError as error:
            takes = self.signature.parameters
            any_name = any(taken.kind is taken.VAR_KEYWORD for taken in takes.values())
            unknown = [name for name in named if name not in takes and not any_name]
            said = f"no argument is called {unknown[0]}" if unknown else str(error)
            raise TraceError(
                f"{name_of(self.function)}: {said}",
                where=first_line(self.function),
                hint=f"it is called as {name_of(self.function)}{brief(str(self.signature))}",
            ) from None
        return self._with_roles(*self._in_order(bound))

    def call_to_prepare(self, args: Sequence[Any], named: Mapping[str, Any]) -> Call:
        """(params, cache, tokens)  ->  the call step(tokens, cache, params)

        A configuration in front says that the arguments are in the order of the step.
        """
        at = self.roles.params
        if not args or (at is None and _is_static("the first argument", args[0])):
            return self.call(args, named)
        params, *rest = args
        if isinstance(at, str) and at not in self.names:
            return self.call(rest, {**named, at: params})
        count = len(args) + len(named)
        place = self.names.index(at) if isinstance(at, str) else (at or 0) % count
        if place > len(rest):
            return self.call(rest, {**named, self.names[place]: params})
        return self.call([*rest[:place], params, *rest[place:]], named)

    def trimmed(self, call: Call, results: Any) -> Any:
        """The results of a call, as the caller gets them."""
        return results

    def _in_order(
        self, bound: inspect.BoundArguments
    ) -> tuple[tuple[str, ...], tuple[Any, ...], int]:
        names: list[str] = []
        values: list[Any] = []
        by_name: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                names += [f"arg{len(names) + i}" for i in range(len(value))]
                values += value
            elif kind is inspect.Parameter.VAR_KEYWORD:
                by_name |= value
            elif kind in _BY_PLACE and self.names.index(name) == len(names):
                names.append(name)
                values.append(value)
            else:
                by_name[name] = value
        return (*names, *by_name), (*values, *by_name.values()), len(names)

    def _with_roles(self, names: tuple[str, ...], values: tuple[Any, ...], positional: int) -> Call:
        if not names:
            raise TraceError(
                "the function is given no argument, and its parameters are one",
                hint="a step is traced as trace(step, params, cache, tokens)",
            )
        static = frozenset(
            number
            for number, (name, value) in enumerate(zip(names, values))
            if number in self.static_numbers or name in self.static_names or _is_static(name, value)
        )
        if self.roles.params is not None:
            params = dynamic(self.roles.params, names, "params", static)
        else:
            params = _first(values, static)
        return Call(self.function, names, values, positional, static, params)


def _first(values: Sequence[Any], static: frozenset[int]) -> int:
    """The number of the first argument that may hold arrays. Raises TraceError if there is none."""
    for number, value in enumerate(values):
        if number not in static and value is not None:
            return number
    raise TraceError("the function is given no arrays, and its parameters are some")


def _listed(given: Any) -> tuple[Any, ...]:
    """One or several, as `jax.jit` takes numbers and names."""
    return (given,) if isinstance(given, (int, str)) else tuple(given)


def _one_less(where: Where) -> Where:
    return where - 1 if isinstance(where, int) and where > 0 else where


def argument_number(where: Where, names: Sequence[str], what: str) -> int:
    """The number of an argument given by number or name. Raises TraceError with the names."""
    if isinstance(where, int) and -len(names) <= where < len(names):
        return where % len(names)
    if isinstance(where, str) and where in names:
        return names.index(where)
    raise TraceError(
        f"{what}={where!r} is no argument of the function, which has {', '.join(names)}",
        hint=nearest(where, names) if isinstance(where, str) else "give a name or a number",
    )


def dynamic(where: Where, names: Sequence[str], what: str, static: frozenset[int]) -> int:
    """The number of an argument that is traced. Raises TraceError for a static one."""
    number = argument_number(where, names, what)
    if number in static:
        raise TraceError(f"{what}={where!r} is static", hint=f"name the argument that holds {what}")
    return number


def is_array(leaf: Any) -> bool:
    """Whether a leaf of an argument is traced: an array, the shape of one, or a number."""
    if isinstance(leaf, type):
        return False
    is_typed = hasattr(leaf, "dtype") and isinstance(getattr(leaf, "shape", None), tuple)
    return is_typed or hasattr(leaf, "__jax_array__") or isinstance(leaf, (int, float, complex))


def _is_static(name: str, value: Any) -> bool:
    """Whether an argument is no pytree of arrays. Raises TraceError for one that mixes both."""
    leaves = {type(leaf): leaf for leaf in jax.tree.leaves(value)}.values()  # one of every type
    others = [leaf for leaf in leaves if not is_array(leaf)]
    if others and any(hasattr(leaf, "dtype") and is_array(leaf) for leaf in leaves):
        paths = jax.tree_util.tree_leaves_with_path(value)
        path = next(path for path, leaf in paths if type(leaf) is type(others[0]))
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        raise TraceError(
            f"{name}/{place} is {brief(repr(others[0]))}, among arrays",
            hint="hand it over as an argument of its own, or close over it",
        )
    return bool(others)


def frozen(value: Any) -> Hashable:
    """A static value as a key: equal for equal contents, also of what can be changed in place.

    Raises TraceError for a value that has neither a hash nor contents.
    """
    kind = type(value)
    if isinstance(value, np.ndarray):
        return kind, value.dtype, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return kind, tuple((key, frozen(value[key])) for key in value)
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(frozen, value))
    try:
        hash(value)
    except TypeError:
        if hasattr(value, "__dict__"):
            return kind, frozen(vars(value))
        raise TraceError(
            f"{brief(repr(value))} is static and has no hash",
            hint="close over it: auto_shard(partial(step, config), ...)",
        ) from None
    return kind, value


def must_be_callable(function: Any) -> None:
    """Raises TraceError for what is no function."""
    if not callable(function):
        raise TraceError(
            f"expected a function, got {type(function).__name__} {brief(repr(function))}",
            hint='auto_shard(step, "cpu:8"), or @auto_shard(mesh="cpu:8") above the function',
        )


def unbound(function: Any) -> Any:
    """The function that a partial application is of."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    return function


def name_of(function: Any) -> str:
    """The name of a function, as a user knows it."""
    return getattr(unbound(function), "__name__", type(function).__name__)


def first_line(function: Any) -> str:
    """Where a function of the user's begins: `file:line (name)`, or nothing where none is known."""
    code = getattr(inspect.unwrap(unbound(function)), "__code__", None)
    if code is None:
        return ""
    return f"{file_or_cell(code.co_filename)}:{code.co_firstlineno} ({code.co_name})"
