"""What a user's function raised while it was traced, as an error that says what to do.

KeyError: 'wte'  ->  TraceError: step cannot be traced: KeyError: 'wte'; try: did you mean wpe?
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any

import jax

from dialect.arrays.dtypes import type_of
from dialect.arrays.notebook_cells import file_or_cell
from dialect.jaxprs import jaxpr
from dialect.user.calls import Call, first_line, is_array, name_of
from rewrite.errors import TraceError, brief, nearest

_MOST_ARRAYS, _MOST_OF_A_VALUE = 4, 40  # of an argument that are shown; characters of another one
_MOST = 4000  # characters of what JAX says: all of it, but for texts of the user's
# Python looked at the value of an array.
_LOOKED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.UnexpectedTracerError,
)
_PURE = (
    "it must be a pure function of arrays, as jax.jit asks; an argument whose value Python looks "
    "at is named in static_argnames"
)

_STATIC = (
    "what a jax.jit inside has as static is named for auto_shard too: static_argnums=, "
    "static_argnames="
)


def as_trace_error(error: BaseException, call: Call) -> TraceError:
    """The TraceError for what was raised while a call was traced."""
    text = str(error).strip()
    said = f": {text[:_MOST]}" if text else ""
    return TraceError(
        f"{name_of(call.function)} cannot be traced: {type(error).__name__}{said}",
        where=users_line(error),
        hint=_hint(error, call),
    )


def _hint(error: BaseException, call: Call) -> str:
    if isinstance(error, _LOOKED):
        return _PURE
    if isinstance(error, KeyError) and error.args:
        keys = set(_keys(call.values))
        return nearest(str(error.args[0]), keys) if keys else ""
    if "Non-hashable static arguments" in str(error):
        return _STATIC
    if isinstance(error, AttributeError) and "'dict' object" in str(error):
        return f'arguments come as they were given, and this one is a dict: ["{error.name}"]'
    return f"check what it was given: {_given(call)}"


def _given(call: Call) -> str:
    """The arguments of a call: `params 14 arrays, cache/k f32[8,64], tokens i32[8]`."""
    shown = []
    for number, (name, value) in enumerate(zip(call.names, call.values)):
        arrays = jax.tree_util.tree_leaves_with_path(value)
        if number in call.static or not arrays:
            shown.append(f"{name}={brief(repr(value), _MOST_OF_A_VALUE)}")
        elif len(arrays) > _MOST_ARRAYS:
            shown.append(f"{name} {len(arrays)} arrays")
        else:
            shown += [f"{name}{_place(path)} {_kind(leaf)}" for path, leaf in arrays]
    return ", ".join(shown)


def _place(path: Any) -> str:
    return f"/{jax.tree_util.keystr(path, simple=True, separator='/')}" if path else ""


def _kind(leaf: Any) -> str:
    return str(type_of(leaf)) if hasattr(leaf, "dtype") else brief(repr(leaf), _MOST_OF_A_VALUE)


def _keys(values: Iterable[Any]) -> Iterable[str]:
    """The keys of all dicts in the arguments."""
    for path, _ in jax.tree_util.tree_leaves_with_path(tuple(values)):
        for entry in path:
            if isinstance(entry, jax.tree_util.DictKey):
                yield str(entry.key)


def must_be_arrays(result: Any, call: Call) -> None:
    """Raises TraceError for a result that is no pytree of arrays, with its path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(result):
        if not is_array(leaf):
            place = jax.tree_util.keystr(path, simple=True, separator="/") or "0"
            name, shown = name_of(call.function), brief(repr(leaf))
            raise TraceError(
                f"{name} returns {shown}, which is no array, as output {place}",
                where=first_line(call.function),
                hint="a step returns arrays: leave it out, or return it from a function around it",
            )


def users_line(error: BaseException) -> str:
    """The innermost line of the user's code in an error's traceback, or the one it cannot be read
    at."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{file_or_cell(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if jaxpr.is_users(frame.filename)]
    if not frames:
        return ""
    innermost = frames[-1]
    return f"{file_or_cell(innermost.filename)}:{innermost.lineno} ({innermost.name})"
