"""What the engine asks of the framework beneath it. The dialect registers itself when imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rewrite.ir import Graph, Type, Value


class Framework(Protocol):
    """Evaluation, pytrees and tracing, as the engine needs them."""

    def evaluate(self, graph: Graph, arrays: Sequence[Any]) -> list[Any]:
        """The outputs of a graph on arrays."""

    def flatten(self, tree: Any, structure: Any) -> list[Any]:
        """The leaves of `structure`, which must have the shape that `tree` describes."""

    def unflatten(self, tree: Any, leaves: Sequence[Any]) -> Any:
        """The inverse of `flatten`."""

    def trace(self, function: Any, types: Sequence[Type]) -> Graph:
        """The graph of a function of arrays of these types."""

    def constant(self, value: Any, type: Type) -> Value:
        """A constant of the program."""

    def check(self, type: Type) -> None:
        """Raises ValueError for a type that no array has."""


class PlanReader(Protocol):
    """Reads the text of a plan. Raises TextError with the line and a caret."""

    def __call__(self, text: str, source: str) -> Any: ...


_NO_DIALECT = "no dialect is loaded: import from `rewrite`"
_framework: list[Framework] = []
_plans: list[PlanReader] = []


def register(framework: Framework) -> None:
    """Called once by the dialect."""
    _framework[:] = [framework]


def read_plans(reader: PlanReader) -> None:
    """Called once by the dialect."""
    _plans[:] = [reader]


def plan(text: str, source: str) -> Any:
    """The plan of a program's text. Raises RuntimeError where no dialect was imported."""
    if not _plans:
        raise RuntimeError(_NO_DIALECT)
    return _plans[0](text, source)


def check(type: Type) -> None:
    """Raises ValueError for a type that no array has, where a framework is there to tell."""
    for known in _framework:
        known.check(type)


def framework() -> Framework:
    """The registered framework. Raises RuntimeError where no dialect was imported."""
    if not _framework:
        raise RuntimeError(_NO_DIALECT)
    return _framework[0]
