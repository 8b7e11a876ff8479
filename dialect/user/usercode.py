"""The user's code as a command line names it: `FILE.py:FUNCTION` or `package.module:FUNCTION`.

A function is traced from arguments of which only the shapes matter. A decoder written as those in
`examples/` shows how: a file with CONFIGS, init_params and init_cache has all of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from dialect.user.traced_errors import users_line
from rewrite.errors import ShardwrightError, nearest
from rewrite.source import read_file

Function = Callable[..., Any]
_AS_IN_EXAMPLES = "this wants a file with all of them, such as examples/llama.py of Shardwright"


class UsageError(ShardwrightError):
    """The user's code is not at the place that was named, or returns something else."""


@dataclass(frozen=True)
class Sizes:
    """What to call a decoder with: tokens i32[batch], or i32[batch, tokens] where that is set.

    `config` is a name in its CONFIGS; `context` counts the positions of the cache; `unrolled`
    asks for layers one by one instead of stacked.
    """

    config: str | None
    batch: int
    context: int
    tokens: int | None
    unrolled: bool


def decoder(text: str, sizes: Sizes) -> tuple[Function, tuple[Any, ...]]:
    """f(params, cache, tokens) and the shapes of its arguments, without allocating any.

    Raises UsageError where the file lacks what tells them, or has no such configuration.
    """
    module, function, config = _configured(text, sizes.config)
    shape = (sizes.batch, sizes.tokens) if sizes.tokens else (sizes.batch,)

    def arguments() -> tuple[Any, ...]:
        params = module.init_params(config, jax.random.key(0), sizes.unrolled)
        cache = module.init_cache(config, sizes.batch, sizes.context, sizes.unrolled)
        return params, cache, jnp.zeros(shape, jnp.int32)

    with _blamed(f"the arguments of {text} cannot be made"):
        return functools.partial(function, config), jax.eval_shape(arguments)


def _how_to_say(names: Iterable[str]) -> str:
    """How arguments of these names are said on a command line."""
    first, *others = [*names, "params"]
    shapes = " ".join(f"--shape {name}=i32[8]" for name in others[:-1])
    return (
        f'say what each is: --shape "{first}=FUNCTION()" of the same file, or {first}=FILE'
        f".safetensors, {shapes}; or all as a tuple: --args FILE.py:FUNCTION"
    )


def _configured(text: str, name: str | None, hint: str = "") -> tuple[ModuleType, Function, Any]:
    """The file, the function, and the configuration of that name."""
    module, function = named(text)
    lacks = [n for n in ("CONFIGS", "init_params", "init_cache") if not hasattr(module, n)]
    if lacks:
        names = ", ".join(inspect.signature(function).parameters)
        raise UsageError(
            f"{text} comes without {', '.join(lacks)}, so its arguments ({names}) are unknown",
            hint=hint or _how_to_say(inspect.signature(function).parameters),
        )
    if name is not None and name.endswith(".json"):
        return module, function, _from_fields(module, name)
    if name not in module.CONFIGS:
        asked = f"no configuration {name!r}" if name else "several configurations"
        hint = f"--config NAME, {nearest(name or '', module.CONFIGS)}"
        raise UsageError(f"{text} has {asked}", hint=hint)
    return module, function, module.CONFIGS[name]


def _from_fields(module: ModuleType, path: str) -> Any:
    """A configuration as those in CONFIGS, of the fields in a file of JSON."""
    kind = type(next(iter(module.CONFIGS.values())))
    with _blamed(f"{path} is no {kind.__name__}"):
        return kind(**json.loads(read_file(path, "configuration", UsageError)))


@dataclass(frozen=True)
class Trained:
    """What a decoder is measured with: its trained parameters, an empty cache, its text.

    `encode` turns text into token numbers; None where the tokens are the text's bytes.
    """

    sizes: Sizes
    params: Any
    cache: Any
    text: bytes
    encode: Callable[[bytes], Any] | None


def trained(text: str, sizes: Sizes, files: Sequence[str] = ()) -> Trained:
    """Of a decoder whose file has `trained_params(config, unrolled)` and `held_out() -> bytes`.

    The text is that of `files` where there are any. Raises UsageError where a function is not
    there, and where the parameters are not of the types that init_params gives.
    """
    module, _, config = _configured(text, sizes.config, _AS_IN_EXAMPLES)
    if not hasattr(module, "trained_params"):
        hint = "write trained_params(config, unrolled), which returns them as init_params does"
        raise UsageError(f"{text} comes without trained_params", hint=hint)
    if not files and not hasattr(module, "held_out"):
        hint = "write held_out(), which returns bytes, or name files: --text FILE ..."
        raise UsageError(f"{text} comes without held_out, the text to measure on", hint=hint)
    with _blamed(f"trained_params of {text} failed"):
        params = module.trained_params(config, sizes.unrolled)
    key = jax.random.key(0)
    expected = jax.eval_shape(lambda: module.init_params(config, key, sizes.unrolled))
    _must_fit(params, expected, f"trained_params of {text}")
    with _blamed(f"the text of {text} cannot be had"):
        text_bytes = b"".join(map(_bytes_of, files)) or module.held_out()
    if not isinstance(text_bytes, bytes):
        raise UsageError(f"held_out of {text} returns {type(text_bytes).__name__}, not bytes")
    cache = module.init_cache(config, sizes.batch, sizes.context, sizes.unrolled)
    return Trained(sizes, params, cache, text_bytes, getattr(module, "encode", None))


def _bytes_of(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the text {file!r}: {error.strerror}") from error


@dataclass(frozen=True)
class Served:
    """What a decoder is served with: step(params, cache, tokens), the shapes of its parameters,
    init_cache(batch, context); and what else its file offers."""

    text: str
    step: Function
    shapes: Any
    init_cache: Function
    module: ModuleType
    config: Any

    def params(self, function: str, *args: Any) -> Any:
        """The parameters that a function of the file returns for a configuration and these
        arguments. Raises UsageError where they are not of the types that init_params gives."""
        with _blamed(f"{function} of {self.text} failed"):
            params = getattr(self.module, function)(self.config, *args)
        _must_fit(params, self.shapes, f"{function} of {self.text}")
        return params

    def offered(self, function: str, otherwise: Any) -> Any:
        """What a function of the file returns that takes nothing, where there is one."""
        if not hasattr(self.module, function):
            return otherwise
        with _blamed(f"{function} of {self.text} failed"):
            return getattr(self.module, function)()


def served(text: str, name: str | None) -> Served:
    """A decoder as in `examples/`, with its configuration of that name. Raises UsageError."""
    module, function, config = _configured(text, name, _AS_IN_EXAMPLES)
    with _blamed(f"init_params of {text} failed"):
        shapes = jax.eval_shape(lambda: module.init_params(config, jax.random.key(0)))
    step, init_cache = (functools.partial(part, config) for part in (function, module.init_cache))
    return Served(text, step, shapes, init_cache, module, config)


def _must_fit(params: Any, expected: Any, what: str) -> None:
    """Raises UsageError unless the arrays are of the structure and types that are expected."""
    if jax.tree.structure(params) != jax.tree.structure(expected):
        structure = jax.tree.structure(params)
        raise UsageError(f"{what} returns {structure}, init_params {jax.tree.structure(expected)}")
    pairs = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected))
    for (path, leaf), wanted in pairs:
        if (leaf.shape, leaf.dtype) != (wanted.shape, wanted.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UsageError(
                f"{what} returns {name} as {leaf.dtype}{list(leaf.shape)}, "
                f"init_params as {wanted.dtype}{list(wanted.shape)}"
            )


def function(text: str, arguments: str) -> tuple[Function, tuple[Any, ...]]:
    """The function that `text` names, and what the one that `arguments` names returns: a tuple.

    Raises UsageError where one is not there, or fails, or returns something else.
    """
    function, maker = named(text)[1], named(arguments)[1]
    with _blamed(f"{arguments} failed"):
        shapes = maker()
    if not isinstance(shapes, tuple):
        raise UsageError(f"{arguments} returns {type(shapes).__name__}, not a tuple of arguments")
    return function, shapes


def named(text: str) -> tuple[ModuleType, Function]:
    """The file or module, and the function in it, that FILE.py:FUNCTION names."""
    place, _, name = text.rpartition(":")
    if not place or not name:
        hint = "write FILE.py:FUNCTION or package.module:FUNCTION"
        raise UsageError(f"{text!r} names no function", hint=hint)
    module = module_of(place)
    if not callable(getattr(module, name, None)):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(f"{place} has no function {name!r}", hint=nearest(name, functions))
    return module, getattr(module, name)


def module_of(place: str) -> ModuleType:
    """A module or a file, imported once, with its neighbours in reach as with `python FILE.py`."""
    return _imported(place, Path.cwd())


@functools.cache
def _imported(place: str, _: Path) -> ModuleType:
    """What a name means in a folder."""
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        is_folder = path.is_dir()
        raise UsageError(f"{place} is a folder" if is_folder else f"there is no file {place}")
    folder = str((path.parent if is_file else Path.cwd()).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _blamed(f"cannot import {place}"):
        if is_file:
            return _run(path)
        if not _is_module(place):
            raise UsageError(f"there is no module {place}", hint="a file of Python ends in .py")
        return importlib.import_module(place)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # for its parent, and for what is no name at all
        return False


def _run(path: Path) -> ModuleType:
    # No name that an import can ask for: a file called profile.py hides no module.
    spec = importlib.util.spec_from_file_location(f"<{path}>", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of their class
    spec.loader.exec_module(module)
    return module


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes one message with the user's line.

    What it prints goes to standard error.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except ShardwrightError:
        raise
    except (Exception, SystemExit) as error:  # a script that runs, and ends, when it is imported
        message = f"{what}: {type(error).__name__}: {error}"
        raise UsageError(message, where=users_line(error)) from error
