"""Drafts in the engine beside none: steps, and the time of the processor, on two trained decoders.

    python benchmarks/speculation.py [tiny] [smollm2] [--prompts 8] [--new 48] [--rounds 3]
    python benchmarks/speculation.py tiny --draft 'skip_layers{layers="1"}' [--draft ...] --length 8

Two kinds of prompts: a text as it is, and one that begins again at its end, to be copied. They are
answered one after another, and four at a time, by engines whose drafts are looked up in the text,
and by engines of which int4 weights run ahead; they verify what pays by the time that their steps
take, or `--length` drafts (4) wherever they have room. `--draft` names other drafts instead, as an
engine takes them. All answers are greedy, and compared. Ratios are medians over rounds; the time is
that of the processor, which others who use the machine hardly change.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from rewrite import Engine

CONTEXT, PIECE, AGAIN = 256, 72, 24
TEXT = """
The Mediterranean climate has dry summers and mild, wet winters. Many of the plants that grow
there have small, hard leaves to keep their water. Farmers grow olives, grapes and citrus fruit,
and in the hills they keep sheep and goats. In spring the fields are full of flowers, but by
July most of them have turned brown. Along the coast people fish, build boats and, in the last
hundred years, let rooms to those who come for the sun. Rain falls from October on, often in a
few heavy showers that carry soil down the slopes, and so for three thousand years walls of
stone have held terraces on which vines, almonds and wheat are grown. Rivers are short, and many
of them dry up in summer."""


def ways_of(drafts: list[str], length: int) -> dict[str, dict[str, Any]]:
    """The ways to draft: none, as many as pay of each kind, and so many."""
    pay = {f"{draft}, what pays": {"draft": draft} for draft in drafts}
    some = {f"{d}, of {length}": {"draft": d, "draft_length": length} for d in drafts}
    return {"none": {}} | pay | some


def tiny() -> tuple[Any, Any, Any, list[int]]:
    """(step, parameters, init_cache, tokens of a text)."""
    from examples.tiny import model

    config = model.CONFIGS["mha"]
    step, init_cache = partial(model.decode_step, config), partial(model.init_cache, config)
    return step, model.trained_params(config), init_cache, list(model.held_out())


def smollm2() -> tuple[Any, Any, Any, list[int]]:
    """(step, parameters, init_cache, tokens of a text)."""
    import smollm2

    config = smollm2.CONFIGS["135m"]
    step, init_cache = partial(smollm2.decode_step, config), partial(smollm2.init_cache, config)
    text = TEXT.strip().replace("\n", " ")
    return step, smollm2.trained_params(config), init_cache, smollm2.tokenizer().encode(text).ids


def prompts(tokens: list[int], count: int, copies: bool) -> list[list[int]]:
    """Pieces of a text, spread over it; where they are to be copied they have begun again."""
    starts = [at * (len(tokens) - PIECE) // max(1, count - 1) for at in range(count)]
    pieces = [tokens[start : start + PIECE] for start in starts]
    return [piece + piece[:AGAIN] if copies else piece for piece in pieces]


def answered(engine: Engine, asked: list[list[int]], at_a_time: int, new: int) -> tuple[Any, ...]:
    """(answers, steps, seconds of the processor)."""
    steps, started, answers = engine.figures()["steps"], time.process_time(), []
    for at in range(0, len(asked), at_a_time):
        answers += engine.generate(asked[at : at + at_a_time], max_new_tokens=new)
    return answers, engine.figures()["steps"] - steps, time.process_time() - started


def compared(name: str, decoder: tuple[Any, ...], asked: argparse.Namespace) -> None:
    """Prints a line for every kind of prompts, way to draft, and number at a time."""
    step, params, init_cache, tokens = decoder
    sizes = {"max_context": CONTEXT, "rows": 4, "chunk": 16}
    ways = ways_of(asked.draft or ["ngram", "self"], asked.length)
    engines = {
        way: Engine(step, params, init_cache, "cpu:1", **sizes, **drafts)
        for way, drafts in ways.items()
    }
    paying = next(way for way in reversed(ways) if "draft_length" not in ways[way])
    print(f"{name}: {engines[paying].explain().splitlines()[6]}")
    for copies in (True, False):
        given = prompts(tokens, asked.prompts, copies)
        for at_a_time in (1, 4):
            for engine in engines.values():  # prompts are in the cache from then on
                engine.generate(given, max_new_tokens=1)
            rounds = []
            for _ in range(asked.rounds):
                work = partial(answered, asked=given, at_a_time=at_a_time, new=asked.new)
                rounds.append({way: work(engine) for way, engine in engines.items()})
            for way in list(ways)[1:]:
                pairs = [(each["none"], each[way]) for each in rounds]
                same = all(none[0] == drafted[0] for none, drafted in pairs)
                fewer, faster = (
                    statistics.median(none[n] / drafted[n] for none, drafted in pairs)
                    for n in (1, 2)
                )
                kind = "copied" if copies else "text"
                print(
                    f"  {kind}, {at_a_time} at a time, drafts {way}: {fewer:.2f}x fewer steps, "
                    f"{faster:.2f}x less time, {'the same' if same else 'OTHER'} tokens",
                    flush=True,
                )
    for way in list(ways)[1:]:
        told = engines[way].figures()
        rows, drafts, accepted = (told[n] for n in ("draft_rows", "drafts", "drafts_accepted"))
        share, tokens = accepted / max(1, drafts), 1 + accepted / max(1, rows)
        print(
            f"  drafts {way}: {share:.0%} of {drafts} accepted, {tokens:.2f} tokens a verification"
        )
    for engine in engines.values():
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("decoders", nargs="*", default=["tiny", "smollm2"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--draft", action="append", default=[], metavar="DRAFT")
    asked = parser.parse_args()
    for name in asked.decoders:
        compared(name, {"tiny": tiny, "smollm2": smollm2}[name](), asked)


if __name__ == "__main__":
    main()
