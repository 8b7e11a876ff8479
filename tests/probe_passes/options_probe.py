"""options_probe: a pass with an option of every kind, for the tests of the pipeline language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from rewrite.passbase import Pass
from rewrite.program import Program
from rewrite.target import Target


@dataclass(frozen=True)
class OptionsProbe(Pass):
    """Does nothing."""

    bits: Literal["int8", "int4", "none"] = "int8"
    level: Literal[1, 2] = 1
    skip: str = ""
    count: int = 4
    budget: float = 0.5
    fast: bool = False
    limit: Optional[int] = None  # noqa: UP045  (both spellings of a union are read)
    label: str | None = None
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")

    def run(self, program: Program, target: Target) -> Program:
        return program
