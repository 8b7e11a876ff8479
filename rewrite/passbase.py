"""A pass: options as dataclass fields, and `run`: program in, program out.

A pass is one file whose name is its name in pipelines; its class is found in there by being a
`Pass`. A user's own package adds passes through the entry-point group `shardwright.passes`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import pkgutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, TypeGuard

from rewrite import options
from rewrite.errors import PipelineError, nearest
from rewrite.program import Program, Remark, Step, remarks
from rewrite.rules import Rule
from rewrite.target import Target

ENTRY_POINTS = "shardwright.passes"


@dataclass(frozen=True)
class Pass:
    """Base of all passes: valid program in, valid program out, nothing mutated.

    `keeps` says what the results keep: `bits`, `reals` (equal in exact arithmetic) or `approx`.
    `run` returns the new program, its notes added with `recorded`. `rewrites` are its rules, where
    a report may ask which of them nearly matched.
    """

    keeps: ClassVar[str] = "reals"
    rewrites: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def pass_name(cls) -> str:
        """The name of its file."""
        return cls.__module__.rpartition(".")[2]

    def run(self, program: Program, target: Target) -> Program:
        """The rewritten program, with this pass in its history; see `recorded`."""
        raise TypeError(f"pass {self.pass_name()} does not define run")

    def __str__(self) -> str:
        """`quantize{weights=int8}`: the canonical text, defaults left out."""
        given = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                given.append(f"{field.name}={options.show(value)}")
        return self.pass_name() + (f"{{{', '.join(given)}}}" if given else "")

    def recorded(self, program: Program, *notes: str | Remark) -> Program:
        """`program` with this pass and its notes added to the history."""
        step = Step(str(self), self.keeps, remarks(notes))
        return dataclasses.replace(program, history=(*program.history, step))


def find_pass(name: str) -> type[Pass]:
    """The pass of that name: module `passes.<name>`, or an entry point. Raises PipelineError."""
    offers = _entry_points(name)
    here = name in _module_names()
    if not here and not offers:
        raise PipelineError(f"there is no pass {name!r}", hint=nearest(name, pass_names()))
    if here + len(offers) > 1:
        places = [f"passes/{name}.py"] * here + [entry.value for entry in offers]
        raise PipelineError(f"pass {name!r} is offered more than once: {', '.join(places)}")
    return _pass_of_package(offers[0]) if offers else _pass_of_module(name)


def pass_names() -> list[str]:
    """Every pass that a pipeline may name, the ones of other packages included."""
    return sorted({*_module_names(), *(entry.name for entry in _entry_points())})


def _module_names() -> list[str]:
    """The files in `passes/`; one whose name begins with an underscore is not a pass."""
    modules = pkgutil.iter_modules(importlib.import_module("passes").__path__)
    return [module.name for module in modules if not module.name.startswith("_")]


def _entry_points(*names: str) -> list[EntryPoint]:
    entries = _installed(tuple(sys.path))
    return [entry for entry in entries if not names or entry.name in names]


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What packages on this path offer, which takes milliseconds to find."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    # One package may be found twice, installed and in the current folder.
    return tuple({(entry.name, entry.value): entry for entry in entries}.values())


def _pass_of_module(name: str) -> type[Pass]:
    module = importlib.import_module(f"passes.{name}")
    passes = [
        member
        for member in vars(module).values()
        if _is_pass(member) and member.__module__ == module.__name__
    ]
    if len(passes) != 1:
        raise PipelineError(f"passes/{name}.py defines {len(passes)} passes; a file holds one")
    return passes[0]


def _pass_of_package(entry: EntryPoint) -> type[Pass]:
    """The pass behind an entry point, which carries the name of the module that defines it."""
    try:
        member = entry.load()
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"pass {entry.name!r} cannot be loaded: {error}") from error
    if not _is_pass(member):
        raise PipelineError(f"entry point {entry.value} is no subclass of rewrite.Pass")
    if member.pass_name() != entry.name:
        hint = f"name the entry point {member.pass_name()!r}, as its module"
        raise PipelineError(f"entry point {entry.value} is called {entry.name!r}", hint=hint)
    return member


def _is_pass(member: Any) -> TypeGuard[type[Pass]]:
    return isinstance(member, type) and issubclass(member, Pass)
