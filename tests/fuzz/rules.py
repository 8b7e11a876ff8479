"""Every rule on programs around its example, in numpy mostly: many more than JAX would compile for.

python -m tests.fuzz.rules [--rule NAME] [--rules A..B] [--seed N] [--count N] [--seconds N]
"""

from __future__ import annotations

import argparse
import sys

from dialect.checked import rule_tables
from dialect.checked.all_rules import FoundRule
from dialect.checked.evaluated import op_by_op
from dialect.checked.rule_check import check
from dialect.checked.trial import RuleReport
from dialect.display.tables import as_text
from dialect.jaxprs import framework  # noqa: F401  (registers JAX)
from tests.fuzz.interpreted import interpreted
from tests.more_examples import every_rule

# JAX, which compiles each op for each shape, gets every eighth program.
EVALUATORS = (interpreted,) * 7 + (op_by_op,)


def checked(found: FoundRule, seed: int, fired: int, seconds: float) -> RuleReport:
    """A rule tried until it fired on so many programs, or the time is up."""
    return check(found, seed, fired, seconds, evaluators=EVALUATORS)


def main() -> None:
    args = arguments(__doc__)
    reports = []
    for found in chosen(args):
        report = checked(found, args.seed, args.count, args.seconds)
        reports.append(report)
        for violation in report.violations:
            print(f"{violation}\n", flush=True)
        counts = f"fired {report.fired} of {report.tried}, {len(report.violations)} wrong"
        print(f"{report.name}: {counts}", flush=True)
    print(as_text(rule_tables.tables(reports, refused=True)))
    sys.exit(any(report.violations for report in reports))


def chosen(args: argparse.Namespace) -> list[FoundRule]:
    """The rules that were asked for."""
    rules = [each for each in every_rule() if args.rule in (None, each.name)]
    first, _, last = (args.rules or "..").partition("..")
    return rules[int(first or 0) : int(last or len(rules))]


def arguments(what: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--rule", help="one alone, by its name")
    parser.add_argument("--rules", help="from which to which, by number: 10..20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="programs that each rule fires on")
    parser.add_argument("--seconds", type=float, default=120, help="of CPU for each rule")
    return parser.parse_args()


if __name__ == "__main__":
    main()
