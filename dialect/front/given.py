"""What the arguments of a user's function are, as a command line says it.

tokens=i32[8]                       an array
cache={k: f32[2,8,64], at: i32[]}   a dict; [a, b] a list, (a, b) a tuple, [a] * 32 a longer list
params=model.safetensors            the arrays of a checkpoint, of which only shapes are read
cache=init_cache(config, 8, 64)     what a function of the file returns; only shapes are computed
params=init(jax.random.key(0))      its arguments are said in the same way, or as shapes: u32[2]
config=model.json, n=3, kind=SMALL  no arrays: the function is traced for these values
"""

from __future__ import annotations

import ast
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from jax import ShapeDtypeStruct

from dialect.arrays.dtypes import check, is_dtype, struct_of
from dialect.prepared.packed_files import read_checkpoint
from dialect.user.calls import name_of
from dialect.user.traced_errors import users_line
from dialect.user.usercode import UsageError
from rewrite.errors import cause, nearest
from rewrite.ir import Type
from rewrite.source import read_file

_CHECKPOINTS = (".safetensors", ".safetensors.index.json")
_FOR_EXAMPLE = "for example i32[8], {k: f32[2,8]}, init_cache(8, 64), model.safetensors"
_WORDS = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class Given:
    """A function, its arguments or their shapes, and the names of those that are no arrays."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    static: tuple[str, ...] = ()


def given(function: Callable[..., Any], module: ModuleType, texts: Sequence[str]) -> Given:
    """The arguments that NAME=WHAT texts say. Raises UsageError, naming what is missing."""
    parameters = list(inspect.signature(function).parameters.values())
    takes = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [parameter.name for parameter in takes]
    said: dict[str, Any] = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals or not (name in names or takes_any):
            problem = f"{text!r} is no NAME=WHAT" if not equals else f"no argument is called {name}"
            hint = f"the arguments are {', '.join(names)}; for example --shape tokens=i32[8]"
            hint = hint if names else f"{name_of(function)} takes no arguments"
            raise UsageError(problem, hint=hint)
        if not what.strip():
            raise UsageError(f"{name}= says nothing", hint=_FOR_EXAMPLE)
        said[name] = _fitted(_Reader(module, said).read(what), function, name)
    lacking = [p.name for p in takes if p.name not in said and p.default is p.empty]
    if lacking:
        hint = f"--shape {lacking[0]}=i32[8], =init_{lacking[0]}(...), or =FILE.safetensors"
        raise UsageError(f"nothing says what {', '.join(lacking)} is", hint=hint)
    static = tuple(name for name, value in said.items() if not _is_array_tree(value))
    by_place = [p.name for p in takes if p.kind is p.POSITIONAL_ONLY and p.name in said]
    return Given(function, tuple(said.pop(name) for name in by_place), said, static)


def _is_array_tree(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves
    )


def _fitted(value: Any, function: Callable[..., Any], name: str) -> Any:
    """Fields that were read from a file, as the class that the function's annotation names."""
    if not isinstance(value, _Fields):
        return value
    try:
        kind = typing.get_type_hints(function).get(name)
    except (NameError, TypeError):  # an annotation of what is not there when the function runs
        kind = None
    if not inspect.isclass(kind) or kind is dict:
        return dict(value)
    try:
        return kind(**value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be a {kind.__name__}: {cause(error)}") from error


class _Fields(dict[str, Any]):
    """The fields of a configuration file."""


class _Reader:
    """Reads one WHAT. `said`: the arguments before it, which calls may name."""

    def __init__(self, module: ModuleType, said: Mapping[str, Any]) -> None:
        self.module, self.said = module, said

    def read(self, text: str) -> Any:
        """The value that a text says."""
        if text.endswith(_CHECKPOINTS) or Path(text).is_dir():
            return _nested(read_checkpoint(text))
        if text.endswith(".json"):
            return _configuration(text)
        if Path(text).is_file():
            raise UsageError(f"{text!r} says no argument", hint=_FOR_EXAMPLE)
        source = text.replace("[]", "[()]") if not text.startswith("[]") else text
        try:
            tree = ast.parse(source.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:
            raise UsageError(f"{text!r} says no argument", hint=_FOR_EXAMPLE) from error
        return self.value(tree.body)

    def value(self, node: ast.expr) -> Any:
        """The value of an expression: nothing is run but the user's functions."""
        read = self.value
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self.named(node.id)
            case ast.Attribute(value=inner, attr=name):
                return _of(read(inner), name)
            case ast.Subscript(value=ast.Name(id=name)) if name not in vars(self.module):
                return self.array(f"{name}[{self.sizes(node.slice)}]")
            case ast.Subscript(value=inner):
                return _entry(read(inner), read(node.slice))
            case ast.Dict():
                keys = (
                    key.id if isinstance(key, ast.Name) else read(key) for key in node.keys if key
                )
                return dict(zip(keys, map(read, node.values)))
            case ast.List():
                return list(map(read, node.elts))
            case ast.Tuple():
                return tuple(map(read, node.elts))
            case ast.BinOp(op=ast.Mult()):
                return read(node.left) * read(node.right)
            case ast.UnaryOp(op=ast.USub()):
                return -read(node.operand)
            case ast.Call(func=ast.Name() | ast.Attribute()):
                named = {word.arg: read(word.value) for word in node.keywords if word.arg}
                args = list(map(read, node.args))
                return _called(ast.unparse(node.func), read(node.func), args, named)
        raise UsageError(f"{ast.unparse(node)!r} says no argument", hint=_FOR_EXAMPLE)

    def named(self, name: str) -> Any:
        """An argument that was said before, or a variable of the file."""
        _must_be_public(name)
        for known in (_WORDS, self.said, vars(self.module)):
            if name in known:
                return known[name]
        if is_dtype(name):
            raise UsageError(
                f"{name!r} has no shape", hint=f"a number is {name}[], a row {name}[8]"
            )
        hint = nearest(name, [*self.said, *_public(self.module)])
        raise UsageError(f"{self.module.__name__.strip('<>')} has no {name!r}", hint=hint)

    def sizes(self, node: ast.expr) -> str:
        """The sizes of an array, between its brackets."""
        value = self.value(node)
        sizes = value if isinstance(value, tuple) else (value,)
        wrong = next((size for size in sizes if not isinstance(size, int) or size < 0), None)
        if wrong is not None:
            problem = f"an axis cannot have {wrong!r} elements"
            raise UsageError(problem, hint="sizes are whole numbers, such as f32[8,64]")
        return ",".join(map(str, sizes))

    def array(self, text: str) -> Any:
        """`bf16[8,64]` as a shape."""
        type_ = Type.parse(text)
        try:
            check(type_)
        except ValueError as error:
            raise UsageError(f"{text!r} is no type of arrays", hint=cause(error)) from error
        return struct_of(type_)


def _public(value: Any) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]


def _must_be_public(name: str) -> None:
    """Raises UsageError for names of Python itself, as `__builtins__`: a text is no program."""
    if name.startswith("__"):
        raise UsageError(f"{name!r} says no argument", hint=_FOR_EXAMPLE)


def _of(value: Any, name: str) -> Any:
    """`value.name`"""
    _must_be_public(name)
    try:
        return getattr(value, name)
    except AttributeError as error:
        raise UsageError(cause(error), hint=nearest(name, _public(value))) from error


def _entry(value: Any, key: Any) -> Any:
    """`value[key]`, of a dict or a list of the file."""
    try:
        return value[key]
    except (LookupError, TypeError) as error:
        known = map(str, value) if isinstance(value, dict) else ()
        raise UsageError(f"there is no {key!r} in it", hint=nearest(str(key), known)) from error


def _called(name: str, function: Any, args: list[Any], named: dict[str, Any]) -> Any:
    """What a function of the file returns: shapes, or where it makes no arrays, itself.

    Its own arguments may be shapes: `init(u32[2])`, `init_cache(params, 8)`.
    """
    leaves, tree = jax.tree.flatten((args, named))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, ShapeDtypeStruct)]

    def of_shapes(*arrays: Any) -> Any:
        full = list(leaves)
        for place, array in zip(places, arrays):
            full[place] = array
        args, named = jax.tree.unflatten(tree, full)
        return function(*args, **named)

    try:
        return jax.eval_shape(of_shapes, *(leaves[place] for place in places))
    except TypeError:  # no arrays: a configuration
        pass
    except Exception as error:
        raise _failed(name, function, error) from error
    try:
        return function(*args, **named)
    except Exception as error:
        raise _failed(name, function, error) from error


def _failed(name: str, function: Callable[..., Any], error: Exception) -> UsageError:
    """For what a function of the file raised, with how it is called."""
    return UsageError(
        f"{name}(...) failed: {cause(error)}",
        where=users_line(error),
        hint=f"it is called as {name}{inspect.signature(function)}",
    )


def _configuration(path: str) -> _Fields:
    try:
        fields = json.loads(read_file(path, "configuration", UsageError))
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path} holds a {type(fields).__name__}, no fields")
    return _Fields(fields)


def _nested(arrays: Mapping[str, Any]) -> Any:
    """`{"layers/0/wq": array}` as a tree of shapes: by `/`, or by dots where no name has one."""
    split = "/" if any("/" in name for name in arrays) else "."
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, last = name.split(split)
        inner = tree
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))
    return _with_lists(tree)


def _with_lists(tree: Any) -> Any:
    """Dicts whose keys are 0, 1, 2, ... as lists."""
    if not isinstance(tree, dict):
        return tree
    inner = {key: _with_lists(value) for key, value in tree.items()}
    numbers = [str(number) for number in range(len(inner))]
    return [inner[key] for key in numbers] if sorted(inner) == sorted(numbers) else inner
