"""What a step says before it is compiled again, for arguments of other shapes.

decode_step: tokens i32[8] -> i32[16]; traced and compiled anew (the last time took 2.1 s)
"""

from __future__ import annotations

from collections.abc import Sequence

from dialect.display.told import tell
from rewrite.program import Program

_SHOWN = 2  # inputs of other types that are named


def tell_of(before: Program, after: Program, seconds: float, buckets: Sequence[int] = ()) -> None:
    """Says which arguments have other shapes, what the last program of the step cost, and what
    would make them fewer."""
    known = {input_.name: input_.type for input_ in before.inputs}
    other = [
        f"{input_.name} {known.get(input_.name, 'none')} -> {input_.type}"
        for input_ in sorted(after.inputs, key=lambda input_: input_.role != "arg")
        if known.get(input_.name) != input_.type
    ]
    shown = ", ".join(other[:_SHOWN]) or "other static arguments or settings of JAX"
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    lengths = ", ".join(map(str, buckets))
    advice = (
        f"Every bucket ({lengths}) is compiled once; pad the batch, where that keeps changing"
        if buckets
        else "Pad the batch, and prompts by buckets=, where shapes keep changing"
    )
    tell(
        f"{after.name}: {shown}{more}; traced and compiled anew (the last time took {seconds:.1f} "
        f"s). {advice}"
    )
