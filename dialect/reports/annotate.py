"""The printed program with comments on every value: its named axes, and their mesh axes.

%37 = contract "a b c, c d e -> a b d e" (%36, %30) : bf16[64,1,32,128]  // batch 1 heads d_head
%38 = constrain(%37) {layout=...} : bf16[64,1,32,128]                    // batch 1 heads@xy d_head
"""

from __future__ import annotations

from dialect.naming.axes import Axes, infer_axes
from rewrite.ir import Value
from rewrite.program import Layout, Program
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
        layout = value.op.get("layout") if value.op.name == "constrain" else declared.get(value)
        return axes_and_layout(axes, value, layout)

    return show_program(program, origins, note)


def axes_and_layout(axes: Axes, value: Value, layout: Layout | None) -> str:
    """`batch@xy 1 d_model`, or "" if no axis has a name."""
    names = axes.of(value)
    if not any(name != "_" for dimension in names for name in dimension):
        return ""
    shown = []
    for i, dimension in enumerate(names):
        text = " ".join(dimension) or "1"
        text = f"({text})" if len(dimension) > 1 else text
        mesh_axes = "".join(layout[i] or ()) if layout else ""
        shown.append(f"{text}@{mesh_axes}" if mesh_axes else text)
    return " ".join(shown)
