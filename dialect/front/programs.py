"""The program that a command line names: a user's function, traced, or the text of a program."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from dialect.front import api
from dialect.user import usercode
from dialect.user.usercode import Sizes
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
    function, arguments = function_of(args)
    return api.trace(function, *arguments, params=args.params, state=args.state)


def function_of(args: Arguments) -> tuple[Any, tuple[Any, ...]]:
    """A user's function, and its arguments or their shapes."""
    if args.args:
        return usercode.function(args.function, args.args)
    return usercode.decoder(args.function, sizes(args))


def sizes(args: Arguments) -> Sizes:
    """The sizes that a decoder is called with."""
    return Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})


def is_text(name: str) -> bool:
    """Whether this names the text of a program, and no function."""
    return name == "-" or name.endswith(_TEXTS) or (":" not in name and Path(name).is_file())


def text_of(file: str) -> str:
    """The text of a file, or of standard input for "-"."""
    if file != "-":
        return read_file(file, "program")
    try:
        return sys.stdin.read(MOST_OF_A_PROGRAM + 1)
    except UnicodeDecodeError as error:
        raise TextError(f"cannot read the program on standard input: {error}") from error
