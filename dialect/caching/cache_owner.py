"""Who is to own the caches, heads or batch: what the pass that lays them out asks of a plan."""

from __future__ import annotations

from rewrite.pipeline import Pipeline
from rewrite.program import Program


def owner_asked(program: Program) -> str:
    """`heads` or `batch`, as the last pass with an option `owner` had it; `auto` if none has."""
    for step in reversed(program.history):
        if "owner=" not in step.text:
            continue
        for _, passes in Pipeline.parse(step.text).phases:
            for each in passes:
                owner = getattr(each, "owner", "auto")
                if owner != "auto":
                    return owner
    return "auto"
