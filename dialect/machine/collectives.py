"""The cost of a collective over the physical links of a mesh axis: bytes received and seconds.

    kind                bytes_per_chip
    all-gather          of the output
    reduce-scatter      of the input
    all-reduce          of the input; it is a reduce-scatter and an all-gather
    all-to-all          of the local data
    collective-permute  of the message to the next chip

Over several physical axes an all-gather takes one axis after the other, the slowest first, while
there is little to send; a reduce-scatter takes the reverse order. `Topology.rings` gives the links.
Section 3.1 and appendix A.1 of "Efficiently Scaling Transformer Inference" (arXiv:2211.05102);
rings, wraparound and hops as in "How to Scale Your Model"
(jax-ml.github.io/scaling-book/sharding).

`link_fraction` is the bandwidth of a closed ring as a multiple of one link in one direction: 2 if
both directions are fully used. All other links have the same efficiency.
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
    """Bytes that arrive at a chip, including those that it forwards. Raises PlanError."""
    if kind == "collective-permute":
        return bytes_per_chip if links else 0.0
    return sum(size for _, size in _parts(kind, bytes_per_chip, links))


def destination_bytes(kind: str, bytes_per_chip: float, chips: int) -> float:
    """Bytes that arrive at a chip as their destination, independent of the links."""
    if kind == "collective-permute":
        return bytes_per_chip
    return ROUNDS.get(kind, 1) * bytes_per_chip * (chips - 1) / chips


def transfer_s(
    kind: str, bytes_per_chip: float, links: Sequence[Links], link_fraction: float = IDEAL
) -> float:
    """Seconds of the transfer, without latency. Raises PlanError for an unknown kind."""
    if kind == "collective-permute":  # over one link, in one direction
        ideal_s = max((bytes_per_chip / link.bytes_per_s for link in links), default=0.0)
    else:
        parts = _parts(kind, bytes_per_chip, links)
        ideal_s = sum(size / _bytes_per_s(link) for link, size in parts)
    return ideal_s * IDEAL / link_fraction


def latency_s(kind: str, links: Sequence[Links], hop_s: float | None = None) -> float:
    """Seconds of the steps, independent of bytes. Raises PlanError for an unknown kind.

    `hop_s`: a measured value that replaces that of the data sheet on rings.
    """
    _must_be_known(kind)
    total_s = 0.0
    for link in links:
        step_s = hop_s if hop_s is not None and isinstance(link, Ring) else link.hop_s
        hops = link.hops_to_next if kind == "collective-permute" else link.hops
        total_s += hops * step_s
    return ROUNDS.get(kind, 1) * total_s


def _bytes_per_s(links: Links) -> float:
    """The bandwidth at which a chip receives, at most."""
    return links.links * links.bytes_per_s


def _parts(
    kind: str, bytes_per_chip: float, links: Sequence[Links]
) -> Iterator[tuple[Links, float]]:
    """(links, bytes that a chip receives over them)."""
    _must_be_known(kind)
    if kind == "all-to-all":
        yield from ((link, bytes_per_chip * link.all_to_all) for link in links)
        return
    gathered = ROUNDS[kind] * bytes_per_chip / math.prod(link.size for link in links)
    for link in sorted(links, key=_bytes_per_s):
        yield link, gathered * (link.size - 1)
        gathered *= link.size


def _must_be_known(kind: str) -> None:
    if kind not in KINDS:
        raise PlanError(f"unknown collective {kind!r}", hint=nearest(kind, KINDS))
