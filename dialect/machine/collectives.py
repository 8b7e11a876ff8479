"""What a collective costs over the links under a mesh axis: bytes received, and seconds.

    kind                bytes_per_chip
    all-gather          of the output
    reduce-scatter      of the input
    all-reduce          of the input; it is a reduce-scatter and an all-gather
    all-to-all          of what a chip holds
    collective-permute  of the message to the next chip

Over several links at once, one after the other is gathered over, the slowest first, while there
is little to send; scattering goes the other way round. `Topology.rings` gives the links, all of
more than one chip. Section 3.1 and appendix A.1 of "Efficiently Scaling Transformer Inference"
(arXiv:2211.05102); rings, wraparound and hops as in "How to Scale Your Model"
(jax-ml.github.io/scaling-book/sharding).

`link_fraction` is what a chip receives over a closed ring, as a multiple of one link one way: 2
where both directions are used fully. All other links deliver the same part of what they could.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dialect.machine.interconnect import Links, Ring
from rewrite.errors import PlanError, nearest

IDEAL = 2.0
ROUNDS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
KINDS = (*ROUNDS, "all-to-all", "collective-permute")


def received_bytes(kind: str, bytes_per_chip: float, links: Sequence[Links]) -> float:
    """Bytes that arrive at a chip, with those that it passes on. Raises PlanError."""
    if kind == "collective-permute":
        return bytes_per_chip if links else 0.0
    return sum(size for _, size in _parts(kind, bytes_per_chip, links))


def own_bytes(kind: str, bytes_per_chip: float, chips: int) -> float:
    """Bytes that arrive at a chip and are meant for it, whatever the links between the chips."""
    if kind == "collective-permute":
        return bytes_per_chip
    return ROUNDS.get(kind, 1) * bytes_per_chip * (chips - 1) / chips


def transfer_s(
    kind: str, bytes_per_chip: float, links: Sequence[Links], link_fraction: float = IDEAL
) -> float:
    """How long the bytes take, without latency. Raises PlanError."""
    if kind == "collective-permute":  # over one link, in one direction
        ideal_s = max((bytes_per_chip / each.bytes_per_s for each in links), default=0.0)
    else:
        parts = _parts(kind, bytes_per_chip, links)
        ideal_s = sum(size / _bytes_per_s(each) for each, size in parts)
    return ideal_s * IDEAL / link_fraction


def latency_s(kind: str, links: Sequence[Links], hop_s: float | None = None) -> float:
    """How long the steps take, however few bytes there are. Raises PlanError.

    `hop_s`, a measured one, stands in for the data sheet's on rings.
    """
    _must_be_known(kind)
    total_s = 0.0
    for each in links:
        step_s = hop_s if hop_s is not None and isinstance(each, Ring) else each.hop_s
        hops = each.hops_to_next if kind == "collective-permute" else each.hops
        total_s += hops * step_s
    return ROUNDS.get(kind, 1) * total_s


def seconds(
    kind: str,
    bytes_per_chip: float,
    links: Sequence[Links],
    link_fraction: float = IDEAL,
    hop_s: float | None = None,
) -> float:
    """How long a collective takes by itself. Raises PlanError."""
    return transfer_s(kind, bytes_per_chip, links, link_fraction) + latency_s(kind, links, hop_s)


def _bytes_per_s(links: Links) -> float:
    """What a chip receives at most."""
    return links.links * links.bytes_per_s


def _parts(
    kind: str, bytes_per_chip: float, links: Sequence[Links]
) -> Iterator[tuple[Links, float]]:
    """The bytes that a chip receives over each of the links."""
    _must_be_known(kind)
    if kind == "all-to-all":
        yield from ((each, bytes_per_chip * each.all_to_all) for each in links)
        return
    held = ROUNDS[kind] * bytes_per_chip / math.prod(each.size for each in links)
    for each in sorted(links, key=_bytes_per_s):
        yield each, held * (each.size - 1)
        held *= each.size


def _must_be_known(kind: str) -> None:
    if kind not in KINDS:
        raise PlanError(f"unknown collective {kind!r}", hint=nearest(kind, KINDS))
