"""The `shardwright` command.

    shardwright compile examples/llama.py:decode_step --config 8b --target v5e:2x4
    shardwright show    examples/llama.py:decode_step --config 8b -p "normalize, recognize"
    shardwright opt     program.ir -p "normalize"
    shardwright passes
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from rewrite import hooks, manager, options
from rewrite.console import Progress, Screen
from rewrite.errors import ShardwrightError, nearest
from rewrite.passbase import find_pass, pass_names
from rewrite.pipeline import Pipeline
from rewrite.program import Program
from rewrite.target import Target

TOKENS = "the new tokens per sequence, for a function that takes i32[batch, tokens]"


class UsageError(ShardwrightError):
    """The command line names something that is not there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name); 0, or 1 where there was an error."""
    args = _parser().parse_args(argv)
    try:
        args.command(args, Screen())
        sys.stdout.flush()
    except ShardwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads has read enough; without this, Python complains again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
