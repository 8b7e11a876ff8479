"""The scheduler in published settings, by simulation, beside the published figures.

    python benchmarks/serving.py azure vllm prefixes trees mooncake --traces FOLDER

FOLDER holds azure_conv_2023.csv (Azure/AzurePublicDataset, CC-BY) and mooncake_conversation.jsonl
(kvcache-ai/Mooncake, Apache-2.0). Each part says what it compares with:

    azure     Llama-3-8B on v5e:2x2, all requests at once: static batches, slots, pages
    vllm      OPT-13B on an A100 of 40 GB, Figure 13a of PagedAttention (arXiv:2309.06180)
    prefixes  LLaMA-13B on the same, Figure 16: prompts that begin with 80 or 341 equal tokens
    trees     the share of the best possible hit rate, as Figure 13 of SGLang (arXiv:2312.07104)
    mooncake  hit rates by room, with a strict LRU of blocks beside them; the upkeep of the tree
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dialect.machine.mesh import Topology
from dialect.serving.policy import Policy
from dialect.serving.radix_tree import RadixTree
from dialect.serving.scheduler import Scheduler
from dialect.simulated.arrivals import Arrival, Fresh, Lengths, drawn, read_trace, spread
from dialect.simulated.comparison import Comparison, Load
from dialect.simulated.placement import Placement, Typical
from dialect.simulated.simulator import simulate
from tests.decoder_shapes import LLAMA_8B
from tests.published import RESERVED, a100, a100_policy, best_hit_rate, chats, few_shot, thoughts

TRACE = {"azure": "azure_conv_2023.csv", "mooncake": "mooncake_conversation.jsonl"}


def say(*cells: object) -> None:
    print("  ", *(f"{cell:.4g}" if isinstance(cell, float) else cell for cell in cells), flush=True)


def azure(folder: Path) -> None:
    """Static batches, slots and pages, where all requests are there from the beginning, each on the
    plan that is best for it, and on the one that shards the heads over all chips."""
    conversations = [replace(a, at=0.0) for a in read_trace(folder / TRACE["azure"])]
    chat = drawn(6000, Lengths(161, 1.2, 2047), Lengths(338, 1.0, 2048), 2048)
    print("Llama-3-8B on v5e:2x2: new tokens/s, over static batches, pages used")
    loads = (("azure_conv_2023.csv", conversations, 8192), ("ShareGPT-like", chat, 2048))
    for (name, arrivals, longest), owner in itertools.product(loads, ("", "heads")):
        load = Load(name, math.inf, arrivals)
        options = {"owners": (owner,), "pages": (16, 128), "longest": longest, "shares": False}
        first = 0.0
        for run in Comparison(LLAMA_8B, (load,), (Topology.parse("v5e:2x2"),), **options).runs():
            new_per_s = run.figures.new_per_s
            first = first or new_per_s
            how = f"{run.plan}, {run.groups} groups, {run.room} tokens, steps of {run.chunk}:"
            gain = f"{new_per_s / first:.2f}x"
            say(name, run.method, run.page or "", how, new_per_s, gain, run.figures.used)


def vllm(folder: Path) -> None:
    """Requests that run at a time, of 2 a second for an hour. ShareGPT's lengths are lognormal with
    the published means; the deviation of the answers, 0.9, is chosen."""
    chat = drawn(7200, Lengths(161.31, 1.2, 1024), Lengths(337.99, 0.9, 2000), 2048, seed=1)
    chat = spread(chat, 2.0, seed=2)
    print("OPT-13B, A100 40 GB, 2 requests/s: batched requests, simulated and published")
    for system, published in zip(RESERVED, (7.00, 9.81, 13.62, 30.42)):
        done = simulate(a100_policy(system), chat, a100)
        say(system, done.batch, published, f"{done.batch / published - 1:+.1%}")


def prefixes(folder: Path) -> None:
    """Requests that are served in a second, with the common beginning kept once, against Orca's
    oracle. Lengths of sentences to translate: 40 tokens in, 50 out, as WMT16 has about."""
    print("LLaMA-13B, A100 40 GB, all at once: requests/s of pages over Orca (Oracle)")
    for tokens, published in ((80, 1.67), (341, 3.58)):
        sentences = drawn(4000, Lengths(40, 0.5, 200), Lengths(50, 0.5, 200), 1024, (1, tokens))
        served = [
            simulate(a100_policy(system), sentences, a100) for system in ("vLLM", "Orca (Oracle)")
        ]
        gain = served[0].new_per_s / served[1].new_per_s
        say(f"prefix of {tokens}", f"{gain:.2f}x", f"published {published}x", served[0].batch)


def trees(folder: Path) -> None:
    """All at once, in random order, in little room, with 64 running."""
    print("hit rates on trees, all requests at once, 30,000 tokens: reached, possible, share")
    for load in (few_shot, chats, thoughts):
        draw = random.Random(0)
        arrivals = load(draw, Fresh())
        draw.shuffle(arrivals)
        pages = 30_000 // 16
        for name, patience in (("longest prefix first", 1e9), ("first come", -1.0)):
            policy = Policy(pages, 16, rows=64, chunk=1024, patience=patience)
            done = simulate(policy, arrivals, a100)
            best = best_hit_rate(arrivals, 16)
            share = f"{done.hit_rate / best:.1%}"
            say(load.__name__, name, len(arrivals), done.hit_rate, best, share)


# Mooncake.


def mooncake(folder: Path) -> None:
    """One request after the other in the order of the trace, for the hit rates; then the trace as
    it was recorded, for the time that the tree takes."""
    arrivals = read_trace(folder / TRACE["mooncake"])
    print("mooncake_conversation.jsonl: hit rate of blocks by room in blocks of 512, LRU of blocks")
    for blocks in (1000, 3000, 10_000, 30_000, 100_000, 300_000):
        scheduler = Scheduler(Policy(blocks, 512, rows=1, chunk=1 << 20, spare=0.0))
        for arrival in arrivals:
            scheduler.submit(replace(arrival, new=1).request(), 0.0)
            scheduler.done(scheduler.schedule(0.0), [[0]], 0.0)
        group = scheduler.groups[0]
        hits = group.cached_pages / group.prompt_pages
        say(blocks, f"{hits:.1%}", f"{lru(arrivals, blocks):.1%}")
    upkeep(arrivals)


def lru(arrivals: list[Arrival], room: int) -> float:
    """The hit rate of blocks in a cache that knows no prefixes."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = asked = 0
    for block in (piece.start for arrival in arrivals for piece in arrival.prompt):
        asked += 1
        hits += block in cache
        cache[block] = None
        cache.move_to_end(block)
        if len(cache) > room:
            cache.popitem(last=False)
    return hits / asked


def upkeep(arrivals: list[Arrival]) -> None:
    """The seconds that the tree takes, of the seconds that are simulated."""
    clock = Clock()
    for name in ("match", "hold", "release", "share", "evict"):
        setattr(RadixTree, name, clock.timed(getattr(RadixTree, name)))
    mean = Typical(12_035, 343, 12_207, 130_000)
    placed = Placement.best(LLAMA_8B, Topology.parse("v5e:2x4"), mean, owner="heads")
    print("the same as it was recorded, Llama-3-8B on v5e:2x4, pages of 128")
    for room in (300_000 * 512, placed.tokens):
        clock.spent_s = 0.0
        policy = Policy(room // 128, 128, chunk=placed.chunk)
        done = simulate(policy, arrivals, placed.seconds)
        say(f"room for {room} tokens: hits {done.hit_rate:.1%}, {done.refused} refused,")
        say(f"  {done.seconds:.0f} s, of which the tree {clock.spent_s:.2f} s,")
        say(f"  {clock.spent_s / done.seconds:.3%}")


class Clock:
    """The processor seconds of functions, those that they call included once."""

    def __init__(self) -> None:
        self.spent_s, self.inside = 0.0, False

    def timed(self, function: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            if self.inside:
                return function(*args, **options)
            begun, self.inside = time.process_time(), True
            try:
                return function(*args, **options)
            finally:
                self.inside = False
                self.spent_s += time.process_time() - begun

        return call


PARTS = {part.__name__: part for part in (azure, vllm, prefixes, trees, mooncake)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=[*PARTS, []])
    parser.add_argument("--traces", type=Path, default=Path("."))
    args = parser.parse_args()
    for name in args.parts:
        PARTS[name](args.traces)


if __name__ == "__main__":
    main()
