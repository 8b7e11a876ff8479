"""The ops of a program, and of an executable, as points under a roofline."""

from __future__ import annotations

from dialect.compiled.schedule import Schedule
from dialect.machine.chips import Chip
from dialect.pages.roofline import Ceiling, Point
from dialect.printed.difference import static_ops
from dialect.printed.program_lines import listed
from dialect.printed.shared import with_equal_values_once
from dialect.reports.op_cost import op_cost
from rewrite.program import Program


def ceiling_of(chip: Chip) -> Ceiling:
    """The data sheet of a chip, for bf16 products."""
    return Ceiling(chip.bf16_flops_per_s, chip.hbm_bytes_per_s)


def program_points(program: Program, chips: int = 1) -> list[Point]:
    """The ops of a step, those of equal layers together, in equal shares over the chips."""
    program = with_equal_values_once(program)
    listing, _ = listed(program, "step", lambda value: "")
    fixed = static_ops(program)
    points = []
    for part in listing.parts:
        for op in part.ops:
            if op.regions or op in fixed:
                continue
            cost = op_cost(op).times(part.times)
            name = f"{op.name} {listing.show(op.results[0])}"
            points.append(Point(name, cost.flops / chips, cost.bytes / chips))
    return points


def compiled_points(schedule: Schedule) -> list[Point]:
    """The scheduled instructions, where they lie."""
    return [Point(f"{e.opcode} {e.name}", e.flops, e.hbm_bytes, e.time_s) for e in schedule.events]
