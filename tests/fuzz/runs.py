"""Long runs: seed after seed, counts printed, each failure written as a text file and told once.

--seed N     the first seed
--count N    how many
--seconds N  an end before that
--out FOLDER where failures are written (default: failures/)
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tests.fuzz.checks import Failure, Tally

Case = tuple[Any, Failure | None]  # a program with its inputs as `str` shows it; what fails
_CLEARED_EVERY = 400  # programs: what is compiled is kept, and memory is not endless


def options(about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path("failures"))
    return parser.parse_args()


def run(
    about: str,
    check: Callable[[int, Tally], Case],
    smaller: Callable[[Any, Failure], Case] = lambda program, failure: (program, failure),
) -> int:
    """Checks one seed after the other, and makes what fails smaller. The number of failures."""
    asked, tally, failures = options(about), Tally(), Counter[str]()
    started, seed = time.monotonic(), asked.seed
    gc.disable()  # of the many small objects few are garbage in circles
    with contextlib.suppress(KeyboardInterrupt):  # what was done until then is told
        for seed in range(asked.seed, asked.seed + asked.count):
            if time.monotonic() - started > asked.seconds:
                break
            program, failure = check(seed, tally)
            tally.add("cases")
            if failure is not None:
                failures[failure.key] += 1
                if failures[failure.key] == 1:
                    print(f"seed {seed}: {failure.key}\n    {failure.text[:300]}", flush=True)
                    written(asked.out, seed, *smaller(program, failure), about)
            if tally.counts["cases"] % _CLEARED_EVERY == 0:
                jax.clear_caches()
                gc.collect()
    report(asked.seed, seed, time.monotonic() - started, tally, failures)
    return sum(failures.values())


def written(folder: Path, seed: int, program: Any, failure: Failure, about: str) -> None:
    """One file with all that it takes to see a failure again."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# {about}, seed {seed}, jax {jax.__version__}",
        f"# {failure.key}",
        f"# pipeline: {', '.join(failure.passes)}",
        *(f"# {line}" for line in failure.text.split("\n")[:12]),
        str(program),
    ]
    name = f"{about.split()[-1]}-{seed}.txt"
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def report(first: int, last: int, seconds: float, tally: Tally, failures: Counter[str]) -> None:
    print(f"\nseeds {first} to {last}, {seconds:.0f} s, {os.times().user:.0f} s of CPU")
    for what, count in sorted(tally.counts.items()):
        print(f"  {count:8} {what}")
    print(f"  {sum(tally.refused.values()):8} refused")
    for reason, count in tally.refused.most_common(40):
        print(f"           {count:6} {reason}")
    print(f"  {sum(failures.values()):8} failures of {len(failures)} kinds")
    for key, count in failures.most_common():
        print(f"           {count:6} {key}")
