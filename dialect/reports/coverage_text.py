"""A coverage for people: the whole step, each of its parts, and what was not recognised."""

from __future__ import annotations

from dialect.display.quantities import amount, percent, size
from dialect.display.tables import Table, brief
from dialect.reports.coverage import Coverage, Part, Recognised, Unrecognised
from dialect.reports.op_cost import Cost

_COUNTED = (">count", ">FLOP", ">bytes")


def coverage_tables(found: Coverage) -> list[Table]:
    """Costs are of each op by itself: before ops are fused, and before the model is split."""
    tables = [_whole(found), *map(_part, found.parts)]
    return [*tables, _unrecognised(found)] if found.unrecognised else tables


def _whole(found: Coverage) -> Table:
    whole = found.cost
    left = sum((each.cost for each in found.unrecognised), Cost())
    flops = percent(whole.flops - left.flops, whole.flops)
    moved = percent(whole.bytes - left.bytes, whole.bytes)
    plain = Recognised("indices and layout", "", found.plain, found.plain_cost)
    pieces = (*found.recognised, *([plain] if found.plain else []))
    rows = [(each.piece, *_counted(each)) for each in pieces]
    rows += [("done once, not in the step", str(found.once), "", "")] if found.once else []
    shares = f"{flops} of {amount(whole.flops, 'FLOP')}, {moved} of {size(whole.bytes)} moved"
    return Table(f"recognised: {shares}", ("in one step", *_COUNTED), tuple(rows))


def _part(part: Part) -> Table:
    place = f"{part.name} at {brief(part.source)}" if part.source else part.name
    rows = [(each.piece, *_counted(each), each.kind) for each in part.recognised]
    rows += [("NOT RECOGNISED", *_counted(each), each.ops) for each in part.unrecognised]
    first = "in each" if part.times > 1 else "once"
    return Table(place, (first, *_COUNTED, "what"), tuple(rows))


def _unrecognised(found: Coverage) -> Table:
    rows = []
    for each in found.unrecognised:
        rows.append((*_counted(each), f"{each.ops}{_at(each.source)}"))
        rows.append(("", "", "", f"  {_why(each)}"))
    return Table("not recognised, in one step", (*_COUNTED, "what and why"), tuple(rows))


def _why(each: Unrecognised) -> str:
    near = each.near
    if near is None:
        return "no rule came near"
    return f"nearly {near.rule} ({near.depth} ops deep){_at(near.source)}: {near.reason}"


def _at(source: str) -> str:
    return f" at {brief(source)}" if source else ""


def _counted(each: Recognised | Unrecognised) -> tuple[str, str, str]:
    return str(each.count), amount(each.cost.flops, ""), size(each.cost.bytes)
