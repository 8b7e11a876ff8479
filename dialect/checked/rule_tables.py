"""What the checks of rules found, as tables for a screen and as facts for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dialect.checked.trial import RuleReport
from dialect.display.tables import Table
from rewrite.errors import ShardwrightError


class WrongRule(ShardwrightError):
    """A rule that does not keep what it claims."""


_COLUMNS = ("rule", "keeps", "needs", ">programs", ">fired", "compared", ">violations")


def tables(reports: Sequence[RuleReport], refused: bool = False) -> list[Table]:
    """The rules that were checked; with `refused`, why each did not fire where it nearly did."""
    rows = tuple(_row(report) for report in reports)
    fired = sum(report.fired for report in reports)
    wrong = sum(bool(report.violations) for report in reports)
    title = f"{len(reports)} rules, fired on {fired:,} programs; {wrong} with violations"
    shown = [Table(title, _COLUMNS, rows)]
    if refused:
        reasons = [
            (report.name, str(count), reason)
            for report in reports
            for reason, count in report.refused.most_common()
        ]
        shown.append(Table("why rules did not fire", ("rule", ">times", "reason"), tuple(reasons)))
    return shown


def _row(report: RuleReport) -> tuple[str, ...]:
    ways = ", ".join(f"{way} {count}" for way, count in sorted(report.ways.items()))
    wrong = str(len(report.violations) or "")
    needs = ", ".join(report.needs)
    counts = (str(report.tried), str(report.fired))
    return (report.name, report.keeps, needs, *counts, ways, wrong)


def facts(reports: Sequence[RuleReport]) -> list[dict[str, Any]]:
    """Everything that was counted, with the text of every violation."""
    return [
        asdict(report) | {"violations": [str(violation) for violation in report.violations]}
        for report in reports
    ]


def must_be_clean(reports: Sequence[RuleReport]) -> None:
    """Raises WrongRule with the text of every violation, where there is one."""
    wrong = [report for report in reports if report.violations]
    if wrong:
        names = ", ".join(report.name for report in wrong)
        texts = [str(violation) for report in wrong for violation in report.violations]
        raise WrongRule("\n\n".join([f"rules that do not keep what they claim: {names}", *texts]))
