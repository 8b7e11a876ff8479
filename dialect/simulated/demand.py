"""What a step asks of a machine, which a cost model answers with a time."""

from __future__ import annotations

from dataclasses import dataclass

from dialect.serving.steps import Step


@dataclass(frozen=True)
class Demand:
    """What a step asks of the machine.

    - rows: of the step; tokens: that it computes; answers: that it samples
    - positions: of the cache that its rows read
    - pairs: of a query and a key
    """

    rows: int
    tokens: int
    answers: int
    positions: int
    pairs: int

    @staticmethod
    def of(step: Step, groups: int = 1) -> Demand:
        """What a step asks for, where every group waits for the slowest."""
        tokens, positions, pairs = ([0] * groups for _ in range(3))
        answers = 0
        for row in step.rows:
            group = row.request.group
            tokens[group] += row.count
            positions[group] += row.length
            pairs[group] += row.count * row.length
            answers += row.answers + len(row.drafts)
        most = [groups * max(counts) for counts in (tokens, positions, pairs)]
        return Demand(len(step.rows), most[0], answers, most[1], most[2])
