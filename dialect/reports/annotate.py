"""The printed program with comments on every value: its named axes, and their mesh axes.

%37 = contract "a b c, c d e -> a b d e" (%36, %30) : bf16[64,1,32,128]  // batch 1 heads d_head
%38 = constrain(%37) {layout=...} : bf16[64,1,32,128]                    // batch 1 heads@x,y d_head
"""

from __future__ import annotations

from dialect.naming.axes import infer_axes
from dialect.ops.sharding import Sides, laid_out
from rewrite.ir import Value
from rewrite.program import Program
from rewrite.text import show_program


def annotated(program: Program, origins: bool = False) -> str:
    """`str(program)` with inferred axes and declared shardings as comments."""
    axes = infer_axes(program)
    declared = {
        value: input_.layout
        for value, input_ in zip(program.graph.inputs, program.step_inputs)
        if input_.layout is not None
    }

    def note(value: Value) -> str:
        names = axes.of(value)
        if not any(name != "_" for dimension in names for name in dimension):
            return ""
        layout = laid_out(value) or declared.get(value) or ((),) * value.type.rank
        return str(Sides(tuple(".".join(over) or "1" for over in names), layout, layout))

    return show_program(program, origins, note)
