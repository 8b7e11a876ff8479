"""Settings of papers: an A100 of 40 GB as PagedAttention (arXiv:2309.06180) had it, what Orca
reserves there, and loads whose prompts are trees, as in SGLang (arXiv:2312.07104)."""

from __future__ import annotations

import random
from collections.abc import Callable

from dialect.serving.policy import Policy
from dialect.serving.requests import Request
from dialect.simulated.arrivals import Arrival, Fresh
from dialect.simulated.demand import Demand

Workload = Callable[[random.Random, Fresh], list[Arrival]]

# Figures 13a and 16 of PagedAttention: 13 B parameters on an A100 of 40 GB.
SLOTS = 15_700  # tokens that have room; 800 KB each
TOKEN_BYTES = 819_200
WEIGHT_BYTES = 26e9
BYTES_PER_S = 0.85 * 1.555e12
FLOPS_PER_S = 0.6 * 312e12
OVERHEAD_S = 0.018  # of a step, in Python; only the figure of vLLM itself depends on it


def a100(demand: Demand) -> float:
    read_s = (WEIGHT_BYTES + TOKEN_BYTES * demand.positions) / BYTES_PER_S
    return OVERHEAD_S + max(read_s, demand.tokens * WEIGHT_BYTES / FLOPS_PER_S)


def power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


# What Orca reserves, from the buddy allocator that the paper gave it: powers of two.
RESERVED: dict[str, Callable[[Request], int]] = {
    "Orca (Max)": lambda request: 2048,
    "Orca (Pow2)": lambda r: min(2048, power_of_two(r.asked + power_of_two(r.most_new))),
    "Orca (Oracle)": lambda request: min(2048, power_of_two(request.limit)),
    "vLLM": lambda request: 0,
}


def a100_policy(system: str) -> Policy:
    spare = 0.01 if system == "vLLM" else 0.0
    reserved = RESERVED[system]
    shares = system == "vLLM"
    return Policy(
        SLOTS // 16, 16, rows=512, chunk=2048, shares=shares, spare=spare, reserved=reserved
    )


def few_shot(draw: random.Random, fresh: Fresh) -> list[Arrival]:
    """64 sets of examples, 40 questions to each."""
    examples = [fresh.tokens(512) for _ in range(64)]
    return [Arrival(0.0, (each, fresh.tokens(64)), 16) for each in examples for _ in range(40)]


def chats(draw: random.Random, fresh: Fresh) -> list[Arrival]:
    """400 conversations of four turns, each of 256 to 512 tokens, question and answer."""
    arrivals = []
    for _ in range(400):
        said: tuple[range, ...] = ()
        for _ in range(4):
            said = (*said, fresh.tokens(draw.randint(256, 512)))
            arrivals.append(Arrival(0.0, said, 16))
            said = (*said, fresh.tokens(16))
    return arrivals


def thoughts(draw: random.Random, fresh: Fresh) -> list[Arrival]:
    """24 trees of thought: four branches at each of four levels."""
    arrivals = []
    for _ in range(24):
        level: list[tuple[range, ...]] = [(fresh.tokens(512),)]
        for _ in range(4):
            level = [(*each, fresh.tokens(64)) for each in level for _ in range(4)]
            arrivals += [Arrival(0.0, each, 16) for each in level]
    return arrivals


def best_hit_rate(arrivals: list[Arrival], page: int) -> float:
    """Of pages, where each is computed once: what depth-first order reaches in any room that holds
    the longest request."""
    asked = needed = 0
    known: set[tuple[bytes, ...]] = set()
    for arrival in arrivals:
        tokens, path = arrival.request().tokens, ()
        needed += -(-len(tokens) // page)
        for start in range(0, len(tokens) - page + 1, page):
            path = (hash(path), tokens[start : start + page].tobytes())
            asked += path in known
            known.add(path)
    return asked / needed
