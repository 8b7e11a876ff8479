"""Coverage as tables: the step, its parts, and what was not recognised."""

from __future__ import annotations

from dialect.display.quantities import amount, percent, size
from dialect.display.tables import Table, brief
from dialect.reports.coverage import Coverage, Part, Recognised, Unrecognised
from dialect.reports.op_cost import Cost

_COUNTED = (">count", ">FLOP", ">bytes")


def coverage_tables(report: Coverage) -> list[Table]:
    """The tables of a coverage. Costs are op by op, without fusion and without sharding."""
    tables = [_totals(report), *map(_part, report.parts)]
    return [*tables, _unrecognised(report)] if report.unrecognised else tables


def _totals(report: Coverage) -> Table:
    total = report.cost
    unrecognised = sum((group.cost for group in report.unrecognised), Cost())
    flops = percent(total.flops - unrecognised.flops, total.flops)
    moved = percent(total.bytes - unrecognised.bytes, total.bytes)
    plain = Recognised("indices and layout", "", report.plain, report.plain_cost)
    pieces = (*report.recognised, *([plain] if report.plain else []))
    rows = [(piece.piece, *_counted(piece)) for piece in pieces]
    rows += [("done once, not in the step", str(report.once), "", "")] if report.once else []
    shares = f"{flops} of {amount(total.flops, 'FLOP')}, {moved} of {size(total.bytes)} moved"
    return Table(f"recognised: {shares}", ("in one step", *_COUNTED), tuple(rows))


def _part(part: Part) -> Table:
    place = f"{part.name} at {brief(part.source)}" if part.source else part.name
    rows = [(piece.piece, *_counted(piece), piece.kind) for piece in part.recognised]
    rows += [("NOT RECOGNISED", *_counted(group), group.ops) for group in part.unrecognised]
    first = "per layer" if part.times > 1 else "once"
    return Table(place, (first, *_COUNTED, "what"), tuple(rows))


def _unrecognised(report: Coverage) -> Table:
    rows = []
    for group in report.unrecognised:
        rows.append((*_counted(group), f"{group.ops}{_at(group.source)}"))
        rows.append(("", "", "", f"  {_why(group)}"))
    return Table("not recognised, in one step", (*_COUNTED, "what and why"), tuple(rows))


def _why(group: Unrecognised) -> str:
    near = group.near
    if near is None:
        return "no rule came near"
    return f"nearly {near.rule} ({near.depth} ops deep){_at(near.source)}: {near.reason}"


def _at(source: str) -> str:
    return f" at {brief(source)}" if source else ""


def _counted(entry: Recognised | Unrecognised) -> tuple[str, str, str]:
    return str(entry.count), amount(entry.cost.flops, ""), size(entry.cost.bytes)
