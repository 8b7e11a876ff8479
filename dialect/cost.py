"""What one step of a decoder costs on each chip, and which named partitioning is best.

Follows "Efficiently Scaling Transformer Inference" (arXiv:2211.05102), section 3 and appendix A:
a partitioning decides which collectives a layer needs, and these, the arithmetic and the bytes
from HBM decide the time. Everything is read off the layouts (`Partitioning.groups`); no formula
belongs to a single partitioning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dialect.mesh import MeshSpec, Topology
from dialect.partitionings import (
    ATTENTION,
    FFN,
    DecoderShape,
    MeshAxes,
    Partitioning,
    Unavailable,
    partition,
)
from rewrite.errors import PlanError, nearest
from rewrite.plan import Alternative, Plan, Prediction

OBJECTIVES = ("latency", "throughput", "cost")
GIB = 1 << 30


@dataclass(frozen=True)
class Constants:
    """How much of its data sheet a chip delivers.

    - compute, hbm: fractions of peak
    - link: bytes per second that a chip receives in a collective, as a fraction of one link one way
    - more_axes: a collective over k physical axes is k ** more_axes times as fast as over one
    - hop_s: what a step of a ring costs however few bytes it carries
    """

    compute: float
    hbm: float
    link: float
    more_axes: float
    hop_s: float
