"""Numbers for people: `9.97 GiB`, `1.31 TFLOP`, `99.9 %`."""

from __future__ import annotations

from collections.abc import Sequence


def size(count: float) -> str:
    """Bytes in binary units: `9.97 GiB`."""
    return _scaled(round(count), 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def amount(count: float, unit: str) -> str:
    """A count with a decimal prefix: `1.31 TFLOP`."""
    return _scaled(count, 1000, [f"{prefix}{unit}" for prefix in ("", "k", "M", "G", "T", "P")])


def _scaled(count: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while count >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:.2f} {units[power]}" if power else f"{count} {units[power]}"


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, with four significant digits: `28.79 ms`; `12.3 ns` of a toy."""
    if 0 < seconds < 1e-7:
        return f"{seconds * 1e9:.4g} ns"
    return f"{seconds * 1e3:.4g} ms"


def percent(part: float, total: float) -> str:
    """A percentage with one decimal; only all reads 100 %, and only nothing 0 %."""
    share = round(100 * part / total, 1) if total else 100.0
    share = min(share, 99.9) if part < total else share
    return f"{share:.1f} %" if share or not part else "<0.1 %"
