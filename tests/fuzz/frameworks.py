"""Every decoder of other libraries behind the engine: requests get the tokens that they get alone.

    python -m tests.fuzz.frameworks [--mesh cpu:1] [--count 50] [--models gpt2 gemma3_27b]

Half of the requests begin alike, and there are too few pages for all that run. A line for every
decoder: how many answers differ, or why it is not served.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "frameworks"))

from packages import left_out

LIBRARIES = {"hf_flax": "hf_flax", "tunix": "tunix_models"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mesh", default="cpu:1")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--models", nargs="*", default=[])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    differing = 0
    for library in LIBRARIES:
        if library in left_out():
            print(left_out()[library])
            continue
        for model in models(LIBRARIES[library]):
            if model in asked.models or not asked.models:
                started = time.perf_counter()
                told, wrong = served(LIBRARIES[library], model, asked.mesh, asked.count)
                differing += wrong
                print(f"{model}: {told}  ({time.perf_counter() - started:.0f} s)", flush=True)
    print(f"{differing} answers differ")
    return int(differing > 0)


def models(library: str) -> list[str]:
    """The decoders of a library, quantised ones included."""
    module = __import__(library)
    return [*module.MODELS, *getattr(module, "QUANTIZED", ())]


def served(library: str, model: str, mesh: str, count: int) -> tuple[str, int]:
    """What became of so many requests, in words, and how many answers differ."""
    from served import wrong_answers

    from rewrite import ShardwrightError

    try:
        wrong = wrong_answers(library, model, mesh, count)
    except ShardwrightError as error:
        return f"not served: {' '.join(str(error).split())[:200]}", 0
    return f"{len(wrong)} of {count} answers differ {wrong or ''}", len(wrong)


if __name__ == "__main__":
    sys.exit(main())
