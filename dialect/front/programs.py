"""The program that a command line names: a user's function, traced, or the text of a program."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from dialect.front import api
from dialect.front.given import Given, given
from dialect.user import usercode
from dialect.user.usercode import Sizes, UsageError
from rewrite.errors import TextError
from rewrite.program import Program
from rewrite.source import MOST_OF_A_PROGRAM, read_file

Arguments = argparse.Namespace
_TEXTS = (".ir", ".txt")


def program_of(args: Arguments) -> Program:
    """The program of `args.function`: FILE.py:FUNCTION, package.module:FUNCTION, the file of a
    program's text, or "-" for standard input."""
    if is_text(args.function):
        return Program.parse(text_of(args.function))
    said = given_to(args)
    arrays = (number for number in range(len(said.arguments)) if number not in said.static)
    params = next(arrays, 0) if args.params is None else args.params
    function = said.function
    return api.trace(
        function, *said.arguments, params=params, state=args.state, static_argnums=said.static
    )


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


def text_of(file: str) -> str:
    """The text of a file, or of standard input for "-"."""
    if file != "-":
        return read_file(file, "program")
    try:
        return sys.stdin.read(MOST_OF_A_PROGRAM + 1)
    except UnicodeDecodeError as error:
        raise TextError(f"cannot read the program on standard input: {error}") from error
