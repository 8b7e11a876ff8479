"""The passes as a timeline: how long each took, and how many ops it left."""

from __future__ import annotations

from dialect.pages.drawing import line, rect, svg, text
from dialect.pages.gathered import Stage
from dialect.pages.tags import Html

_NAME, _BAR, _OPS, _ROW = 110, 300, 250, 22  # pixels: columns, and the height of a row


def pipeline_timeline(original_ops: int, stages: tuple[Stage, ...]) -> Html:
    """A row for each pass: when it ran (bar), and the ops behind it (bar on the right)."""
    total_s = sum(stage.report.seconds for stage in stages) or 1.0
    most = max([original_ops, *(stage.report.ops_after for stage in stages), 1])
    at_ops = _NAME + _BAR + 90
    shapes = [text(_NAME, 12, "time", "soft"), text(at_ops, 12, "ops of the step", "soft")]
    begun_s = 0.0
    for number, stage in enumerate(stages):
        report, y = stage.report, 20 + number * _ROW
        name, taken = report.text.partition("{")[0], f"{report.seconds * 1e3:.1f} ms"
        x, width = _NAME + begun_s / total_s * _BAR, report.seconds / total_s * _BAR
        kind = "fb" if report.keeps == "approx" else "fa"
        ops = f"{report.ops_before} to {report.ops_after} ops"
        shapes += [
            line(_NAME, y + _ROW - 3, at_ops + _OPS, y + _ROW - 3, "grid"),
            text(0, y + 13, name),
            rect(x, y + 3, max(width, 1.5), _ROW - 9, kind, f"{report.text}: {taken}, {ops}"),
            text(min(x + width + 5, _NAME + _BAR), y + 13, taken, "soft"),
            rect(at_ops, y + 3, report.ops_after / most * (_OPS - 50), _ROW - 9, "fc", ops),
            text(at_ops + report.ops_after / most * (_OPS - 50) + 5, y + 13, str(report.ops_after)),
        ]
        begun_s += report.seconds
    label = "passes in order: " + ", ".join(
        f"{s.report.text.partition('{')[0]} {s.report.seconds * 1e3:.0f} ms" for s in stages
    )
    return svg(at_ops + _OPS, 24 + len(stages) * _ROW, label, *shapes)
