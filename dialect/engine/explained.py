"""What an engine is and what it has done: as figures, and for people."""

from __future__ import annotations

from collections.abc import Mapping

from dialect.display.quantities import size
from dialect.engine.building import Built
from dialect.engine.drafting import drafts_told
from dialect.engine.driver import Driver
from dialect.serving.policy import Policy
from dialect.serving.shapes import told


def figures(built: Built, driver: Driver) -> dict[str, int]:
    """Requests and pages as they are now; what was counted since the engine is there."""
    groups = driver.scheduler.groups
    return {
        "waiting": len(driver.arrivals.coming) + sum(len(group.waiting) for group in groups),
        "running": sum(len(group.running) + len(group.ending) for group in groups),
        "pages": built.sizes.pages,
        "pages_in_use": built.sizes.pages - sum(group.available for group in groups),
        "prompt_pages": sum(group.prompt_pages for group in groups),
        "cached_pages": sum(group.cached_pages for group in groups),
        "preemptions": sum(group.preemptions for group in groups),
        "steps": driver.steps,
        "tokens": driver.tokens,
        "draft_rows": sum(group.drafted for group in groups),
        "draft_rows_declined": sum(group.declined for group in groups),
        "drafts": sum(group.verified for group in groups),
        "drafts_accepted": sum(group.accepted for group in groups),
        "failures": driver.failures,
        "executables": built.executables.count,
    }


def explained(built: Built, draft: str | None, policy: Policy, counted: Mapping[str, int]) -> str:
    """The sizes of an engine, its pages and who owns them, what was saved, and what the passes did
    and why; `counted` as `Engine.figures` has it."""
    sizes, executables = built.sizes, built.executables
    pools = sum(struct.size * struct.dtype.itemsize for struct in executables.pool_types)
    steps = ", ".join(map(told, executables.shapes))
    lines = [
        f"{executables.count} executables, compiled in {executables.compile_s:.1f} s: steps of "
        f"{steps} rows, and two that choose tokens and copy pages; {counted['compilations']} more "
        "since, in this process",
        f"{sizes.pages} pages of {sizes.page} tokens ({size(pools)} on {built.target.topology}), "
        f"{counted['pages_in_use']} in use; {sizes.rows} requests of up to {sizes.context} tokens "
        "run at a time",
        f"{_owners(sizes.groups)} ({built.program.plan.label})",
        f"{counted['steps']} steps gave {counted['tokens']} tokens; {counted['failures']} failures,"
        f" {counted['preemptions']} preemptions",
        f"{counted['cached_pages']} of {counted['prompt_pages']} pages of prompts were there",
    ]
    lines += [sizes.why] if sizes.why else []
    lines += drafts_told(draft, policy, counted)
    lines += built.declined
    for step in built.program.history:
        lines.append(f"{step.text}  (keeps {step.keeps})")
        lines += [f"  {note}" for note in step.notes]
    return "\n".join(lines)


def _owners(groups: int) -> str:
    if groups == 1:
        return "every chip has its heads of all pages"
    return f"{groups} groups of chips have pages of their own, and the requests on these"
