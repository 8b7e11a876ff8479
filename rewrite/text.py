"""The program as text: what is printed is read back as an equal program.

    parse_program(show_program(p)) == p

    %1 = contract "b t d, d f -> b t f" (%0, %params/w1) {dtype=f32} : f32[8,1,256]

One op a line: its result, name, arguments, attributes and result types. Constants are written
where they are used (`0.5:f32`), regions below their op, and whatever follows `//` is a comment.
Handles that have no text (`<Mesh 1a2b3c4d>`) print, and are refused by name on reading.
`program.lark` is the grammar.
"""

from __future__ import annotations

from rewrite.printer import show_graph, show_program, show_value
from rewrite.program import Program
from rewrite.reader import parse_graph, parse_program

__all__ = ["parse_graph", "parse_program", "show_graph", "show_program", "show_value"]

Program.__str__ = show_program  # type: ignore[assignment, method-assign]
Program.parse = staticmethod(parse_program)
