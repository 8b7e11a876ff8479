"""What an engine is and what it has done, for people."""

from __future__ import annotations

from dialect.display.quantities import size
from dialect.engine.building import Built
from dialect.engine.driver import Driver


def explained(built: Built, driver: Driver, compilations: int) -> str:
    """Its sizes, its pages and who owns them, what was saved, and what the passes did and why."""
    sizes, executables, groups = built.sizes, built.executables, driver.scheduler.groups
    pools = sum(struct.size * struct.dtype.itemsize for struct in executables.pool_types)
    steps = ", ".join(map(str, executables.rows))
    asked, hit, idle, preempted = (
        sum(getattr(group, name) for group in groups)
        for name in ("prompt_pages", "cached_pages", "available", "preemptions")
    )
    lines = [
        f"{executables.count} executables, compiled in {executables.compile_s:.1f} s: steps of "
        f"{steps} tokens, and one that copies pages; {compilations} more since, in this process",
        f"{sizes.pages} pages of {sizes.page} tokens ({size(pools)} on {built.target.topology}), "
        f"{sizes.pages - idle} in use; {sizes.rows} requests of up to {sizes.context} tokens run",
        f"every chip has its heads of all pages ({built.program.plan.label})",
        f"{driver.steps} steps gave {driver.tokens} tokens; {driver.failures} failures, "
        f"{preempted} preemptions",
        f"{hit} of {asked} pages of prompts were in the cache",
    ]
    for step in built.program.history:
        lines.append(f"{step.text}  (keeps {step.keeps})")
        lines += [f"  {note}" for note in step.notes]
    return "\n".join(lines)
