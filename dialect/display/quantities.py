"""Numbers for people: `9.97 GiB`, `1.31 TFLOP`, `99.9 %`."""

from __future__ import annotations

from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes: `9.97 GiB`."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def amount(count: float, unit: str) -> str:
    """What is counted in thousands: `1.31 TFLOP`."""
    return _scaled(count, 1000, [f"{prefix}{unit}" for prefix in ("", "k", "M", "G", "T", "P")])


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while count >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:.2f} {units[power]}" if power else f"{count} {units[power]}"


def percent(part: float, whole: float) -> str:
    """A share in one decimal; what is not all or nothing never reads so."""
    share = round(100 * part / whole, 1) if whole else 100.0
    share = min(share, 99.9) if part < whole else share
    return f"{share:.1f} %" if share or not part else "<0.1 %"
