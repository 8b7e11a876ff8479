"""Printing: programs, graphs and attribute values as text (see `rewrite.text`)."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from rewrite import opdef
from rewrite.errors import InvalidProgram
from rewrite.ir import Graph, Op, Opaque, Origin, Record, Symbol, Type, Value
from rewrite.program import Input, Output, Program, Step

WIDTH = 100  # columns, for what can be broken into lines; an op is always one line

# What the grammar reads without quotes, at least.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*")
_LEAD = re.compile(r'".*"|\([0-9, ()]*\)')
_INLINE = re.compile(r"\([^()]*\)|<[^<>]*>|[^\s,():<%]+")  # a constant's content, between commas
_NOT_SYMBOLS = frozenset({"none", "true", "false", "inf"})
_DIGEST = re.compile(r"[0-9a-f]{8,}")

Notes = Callable[[Value], str]


def show_program(program: Program, origins: bool = False, notes: Notes | None = None) -> str:
    """The text of a program. Linear in its size.

    `origins` adds the user's source line to each op as a comment; `notes(value)` gives a comment
    for each value (its axes and layout), or "".
    """
    printer = _Printer(origins, notes)
    names = _display_names(program.inputs)
    lines = [f"program {_word(program.name)}"]
    lines += _history(program.history) if program.history else []
    lines += ["inputs {", *printer.inputs(program.inputs, names, program), "}"]
    lines += ["outputs {", *_outputs(program.outputs, names), "}"]
    lines += _filled(f"tree {_skeleton(program.tree[0])} -> {_skeleton(program.tree[1])}")
    if program.plan is not None:
        lines += ["plan {", *(f"  {line}".rstrip() for line in str(program.plan).split("\n")), "}"]
    if program.stages is None:
        return "\n".join([*lines, *printer.step(program.graph, program.inputs, names)]) + "\n"
    stages, packed = program.stages, _display_names(program.stages.inputs)
    of_role = {
        role: [name for name, each in zip(names, program.inputs) if each.role == role]
        for role in ("param", "state")
    }
    updated = [packed[out.updates] for out in stages.outputs if out.updates is not None]
    lines += printer.region(stages.prepare, "prepare ", of_role["param"])
    lines += printer.region(stages.adapt, "adapt ", of_role["state"])
    lines += ["packed inputs {", *printer.inputs(stages.inputs, packed, program), "}"]
    lines += ["packed outputs {", *_outputs(stages.outputs, packed), "}"]
    lines += printer.step(program.graph, stages.inputs, packed)
    lines += printer.region(stages.restore, "restore ", updated)
    return "\n".join(lines) + "\n"


def show_graph(graph: Graph, origins: bool = False, notes: Notes | None = None) -> str:
    """The text of a graph by itself: `graph (%0 : f32[4]) { ... return %1 }`."""
    return "\n".join(_Printer(origins, notes).region(graph, "graph ")) + "\n"
