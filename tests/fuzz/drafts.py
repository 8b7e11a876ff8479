"""The tiny decoder with drafts: greedy answers to many prompts are those of the decoder itself.

    python -m tests.fuzz.drafts --count 1000

Prompts are pieces of a text that the decoder was not trained on, which begin again before they end.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.test_speculation import NEW, answers, prompts, tiny


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    wanted, differing = answers(count), 0
    for length in (None, 1, 3, 7):
        with tiny(draft="ngram", draft_length=length) as engine:
            answered = engine.generate(prompts(count), max_new_tokens=NEW)
            differing += sum(one != other for one, other in zip(answered, wanted, strict=True))
            engine.check()
            told = engine.figures()
        print(
            f"drafts of {length or 'what pays'}: {told['tokens']} tokens in {told['steps']} steps, "
            f"{told['drafts_accepted']} of {told['drafts']} drafts accepted"
        )
    print(f"{differing} answers differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
