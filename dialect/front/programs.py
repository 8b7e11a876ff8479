"""The program that a command line names: a user's function, traced, or the text of a program."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from dialect.front.given import Given, given
from dialect.printed.watching import cannot_be_text
from dialect.user import usercode
from dialect.user.calls import Callee, Roles
from dialect.user.tracing import trace_call
from dialect.user.usercode import Sizes, UsageError
from rewrite.errors import ShardwrightError, TextError
from rewrite.program import Program
from rewrite.source import MOST_OF_A_PROGRAM, read_file

Arguments = argparse.Namespace
T = TypeVar("T")
_TEXTS = (".ir", ".txt")


def program_of(args: Arguments) -> Program:
    """The program of `args.function`: FILE.py:FUNCTION, package.module:FUNCTION, the file of a
    program's text, or "-" for standard input."""
    if is_text(args.function):
        return parsed(args.function, Program.parse)
    said = given_to(args)
    callee = Callee(said.function, Roles(args.params, args.state, static_argnames=said.static))
    return trace_call(callee.call(said.arguments, said.named), callee.roles)


def given_to(args: Arguments) -> Given:
    """A user's function, and its arguments or their shapes."""
    if args.shape or args.args:
        _must_be_all(args)
    if args.shape:
        module, function = usercode.named(args.function)
        return given(function, module, args.shape)
    if args.args:
        return Given(*usercode.function(args.function, args.args))
    return Given(*usercode.decoder(args.function, sizes(args)))


def _must_be_all(args: Arguments) -> None:
    """Raises UsageError for what only a --config is called with."""
    said = {word.partition("=")[0] for word in args.words}
    more = ", ".join(sorted(said & set(getattr(args, "sizes", ()))))
    if more:
        how = "--shape" if args.shape else "--args"
        hint = f"{how} says how large each argument is"
        raise UsageError(f"{more} is for a --config, and {how} is given", hint=hint)


def sizes(args: Arguments) -> Sizes:
    """The sizes that a decoder is called with."""
    return Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})


def is_text(name: str) -> bool:
    """Whether this names the text of a program, and no function."""
    if name == "-" or name.endswith(_TEXTS):
        return True
    return ":" not in name and not name.endswith(".py") and Path(name).is_file()


def parsed(file: str, parse: Callable[[str], T]) -> T:
    """What is parsed of a file's text, or of standard input for "-". Errors name the file."""
    text = _text_of(file)
    try:
        return parse(text)
    except ShardwrightError as error:
        error.where = error.where or ("standard input" if file == "-" else file)
        if cannot_be_text(error):
            error.hint = error.hint or "name FILE.py:FUNCTION in the place of the program's text"
        raise


def _text_of(file: str) -> str:
    if file != "-":
        return read_file(file, "program")
    if sys.stdin is None:
        raise TextError("cannot read the program on standard input: it is closed")
    try:
        return sys.stdin.read(MOST_OF_A_PROGRAM + 1)
    except UnicodeDecodeError as error:
        raise TextError(f"cannot read the program on standard input: {error}") from error
