"""The roofline of a chip (Williams et al. 2009), with every op under it.

FLOP per byte to the right, FLOP/s upwards, both logarithmic. An op before the rewrite lies on the
roof, where one chip could have it at best; one of the compiled program lies where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dialect.display.quantities import amount
from dialect.pages.drawing import dot, line, path, svg, text
from dialect.pages.tags import Html

_LEFT, _TOP, _WIDTH, _HEIGHT = 60, 12, 560, 260  # pixels


@dataclass(frozen=True)
class Ceiling:
    """What a chip can do: FLOP/s and bytes/s."""

    flops_per_s: float
    bytes_per_s: float

    def at(self, intensity: float) -> float:
        """The most FLOP/s at so many FLOP per byte."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)


@dataclass(frozen=True)
class Point:
    """An op: FLOPs and bytes of a step; seconds, where they are known."""

    name: str
    flops: float
    bytes: float
    seconds: float = 0.0

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes if self.bytes else math.inf


def roofline(ceiling: Ceiling, before: Sequence[Point], after: Sequence[Point]) -> Html:
    """Both programs' ops: rings before, discs after. What computes nothing has no place here."""
    shown = [p for p in (*before, *after) if p.flops and p.bytes]
    ridge = ceiling.flops_per_s / ceiling.bytes_per_s
    low = min([p.intensity for p in shown] + [ridge / 100])
    high = max([p.intensity for p in shown] + [ridge * 10])
    rates = [_rate(p, ceiling) for p in shown]
    bottom, top = min([*rates, ceiling.at(low)]), ceiling.flops_per_s * 2
    place = _Axes(low, high, bottom, top)
    roof = path([place.at(low, ceiling.at(low)), place.at(ridge, ceiling.flops_per_s),
                 place.at(high, ceiling.flops_per_s)], "roof")  # fmt: skip
    shapes = [*place.drawn(), roof]
    largest = max((p.flops for p in shown), default=1.0)
    for points, kind in ((before, "hollow"), (after, "fa")):
        for point in points:
            if point.flops and point.bytes:
                x, y = place.at(point.intensity, _rate(point, ceiling))
                radius = 3 + 6 * math.sqrt(point.flops / largest)
                shapes.append(dot(x, y, radius, kind, _told(point, ceiling)))
    label = f"roofline: {len(before)} ops before, {len(after)} after"
    return svg(_LEFT + _WIDTH + 20, _TOP + _HEIGHT + 44, label, *shapes)


def _rate(point: Point, ceiling: Ceiling) -> float:
    return point.flops / point.seconds if point.seconds else ceiling.at(point.intensity)


def _told(point: Point, ceiling: Ceiling) -> str:
    rate = amount(_rate(point, ceiling), "FLOP/s")
    return f"{point.name}: {amount(point.flops, 'FLOP')}, {point.intensity:.3g} FLOP/byte, {rate}"


@dataclass(frozen=True)
class _Axes:
    low: float
    high: float
    bottom: float
    top: float

    def at(self, intensity: float, rate: float) -> tuple[float, float]:
        """The place of a point."""
        x = math.log(intensity / self.low) / math.log(self.high / self.low)
        y = math.log(max(rate, self.bottom) / self.bottom) / math.log(self.top / self.bottom)
        return _LEFT + x * _WIDTH, _TOP + _HEIGHT * (1 - y)

    def drawn(self) -> list[Html]:
        """The frame, and a line for every power of ten."""
        base = _TOP + _HEIGHT
        shapes = [line(_LEFT, base, _LEFT + _WIDTH, base, "axis")]
        shapes += [text(_LEFT + _WIDTH, base + 34, "FLOP per byte", "soft", "end")]
        for power in _powers(self.low, self.high):
            x, _ = self.at(10.0**power, self.bottom)
            shapes += [line(x, _TOP, x, base, "grid")]
            shapes += [text(x, base + 16, f"{10.0**power:g}", "soft", "middle")]
        for power in range(
            math.ceil(math.log10(self.bottom)), math.floor(math.log10(self.top)) + 1
        ):
            _, y = self.at(self.low, 10.0**power)
            shapes += [line(_LEFT, y, _LEFT + _WIDTH, y, "grid")]
            if power % 3 == 0:
                words = amount(10.0**power, "").replace(".00", "") + "FLOP/s"
                shapes += [text(_LEFT - 6, y + 4, words.replace(" ", ""), "soft", "end")]
        return shapes


def _powers(low: float, high: float) -> range:
    """The powers of ten between two numbers."""
    return range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
