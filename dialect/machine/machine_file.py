"""Custom chips from a text file: one figure per line, with its unit (# begins a comment).

    like      v5e                    # a known chip, for all figures that are not given
    bf16      400 TFLOP/s            # also f32, fp8, int8, int4 where the matrix unit has them
    hbm       64 GiB at 3.2 TB/s
    usable    62 GiB                 # default: all of it
    on-chip   128 MiB
    torus     16x16                  # the largest slice; or `grid 8x8`, or `switch 8`
    cube      4                      # optical switches join cubes of 4x4x4
    links     100 GB/s, 1 us         # one link in one direction; latency of a step
    network   6.25 GB/s, 14 us       # between slices, a chip's share

A plan's target names the file: `my/edge.machine:4x4`. Such a chip can be planned for; if it is
`like` a chip that libtpu knows it can be compiled for, as that chip.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NoReturn

from dialect.machine.chips import ALIASES, CHIPS, Chip
from dialect.machine.mesh_spec import TargetError
from rewrite.errors import in_quotes, nearest
from rewrite.source import Source, read_file

SUFFIX = ".machine"
DTYPES = ("bf16", "f32", "fp8", "int8", "int4")
FABRICS = ("torus", "grid", "switch")

_DECIMAL = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
# The units of every quantity, and their values in plain units.
UNITS = {
    "compute": {f"{prefix}{op}/s": x for prefix, x in _DECIMAL.items() for op in ("FLOP", "OP")},
    "size": {f"{prefix}B": x for prefix, x in (_DECIMAL | _BINARY).items()},
    "bandwidth": {f"{prefix}B/s": x for prefix, x in (_DECIMAL | _BINARY).items()},
    "time": {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
}
# keyword -> (the quantities and separators after it, an example).
FORMS: dict[str, tuple[tuple[str, ...], str]] = {
    "like": (("chip",), "v5e"),
    **{dtype: (("compute",), "400 TFLOP/s") for dtype in DTYPES},
    "hbm": (("size", "at", "bandwidth"), "64 GiB at 3.2 TB/s"),
    "usable": (("size",), "62 GiB"),
    "on-chip": (("size",), "128 MiB"),
    "torus": (("shape",), "16x16"),
    "grid": (("shape",), "8x8"),
    "switch": (("shape",), "8"),
    "cube": (("count",), "4"),
    "links": (("bandwidth", ",", "time"), "100 GB/s, 1 us"),
    "network": (("bandwidth", ",", "time"), "6.25 GB/s, 14 us"),
}
# keyword -> the fields of a Chip that its quantities set.
FIELDS = {
    "hbm": ("hbm_bytes", "hbm_bytes_per_s"),
    "usable": ("usable_hbm_bytes",),
    "on-chip": ("on_chip_bytes",),
    "cube": ("cube",),
    "links": ("link_bytes_per_s", "link_hop_s"),
    "network": ("network_bytes_per_s", "network_hop_s"),
}
SHOWN = {"compute": "a peak", "size": "a size", "bandwidth": "a bandwidth", "time": "a time"}
SHOWN |= {"shape": "a shape", "count": "a whole number", "chip": "a chip", "unit": "a unit"}
_TOKEN = re.compile(r"[^\s,]+|,")
_NUMBER = re.compile(r"([0-9]++\.?[0-9]*+(?:e[+-]?[0-9]+)?)(.*)")
_LEAST, _MOST = 1e-15, 1e24  # of any figure, in its plain unit or as written


def read(path: str) -> Chip:
    """The chip that a file describes; the path is its name. Raises TargetError if the file does not
    exist, TextError with the line and a caret if it cannot be parsed."""
    return parse(read_file(path, "machine", TargetError), path)


def parse(text: str, name: str) -> Chip:
    """The chip that a text describes. Raises TextError with the line and a caret."""
    source = Source(text, name)
    given: dict[str, list[Any]] = {}
    places: dict[str, int] = {}
    place = 0
    for line in source.text.split("\n"):
        _Line(source, place, line).read(given, places)
        place += len(line) + 1
    base = CHIPS[given["like"][0]] if "like" in given else None
    figures: dict[str, Any] = {"name": name, "aliases": ()}
    for word, names in FIELDS.items():
        figures |= dict(zip(names, given.get(word, ())))
    if "hbm" in given:
        figures.setdefault("usable_hbm_bytes", figures["hbm_bytes"])
    for fabric in FABRICS:
        if fabric in given:
            figures |= {"fabric": fabric, "largest": given[fabric][0]}
    peaks = dict(base.peaks) if base else {}
    peaks |= {dtype: given[dtype][0] for dtype in DTYPES if dtype in given}
    figures["peaks"] = tuple(peaks.items())
    missing = [word for word in ("bf16", "hbm", "links") if word not in given]
    missing += ["torus"] if not set(FABRICS) & set(given) else []
    if missing and not base:
        shown = ", ".join(f"`{word} {FORMS[word][1]}`" for word in missing)
        message = f"the machine has no {', '.join(missing)}"
        source.fail(len(source.text), message, f"for example {shown}")
    chip = replace(base, **figures) if base else Chip(**{"on_chip_bytes": 0} | figures)
    if chip.usable_hbm_bytes > chip.hbm_bytes:
        place = places.get("usable", places.get("hbm", 0))
        source.fail(place, "`usable` is more than `hbm`", "correct `usable`")
    return chip


class _Line:
    """One line: a keyword and its quantities."""

    def __init__(self, source: Source, place: int, line: str) -> None:
        self.source, self.place = source, place
        self.text = line.partition("#")[0].rstrip()
        self.tokens = list(_TOKEN.finditer(self.text))
        self.hint = ""

    def read(self, given: dict[str, list[Any]], places: dict[str, int]) -> None:
        """Adds the values of the line, and its position, by keyword."""
        if not self.tokens:
            return
        first = self.tokens.pop(0)
        word = first[0]
        if word not in FORMS:
            self.fail(first, f"unknown word {word!r}", nearest(word, FORMS))
        same = FABRICS if word in FABRICS else (word,)
        if set(same) & set(given):
            self.fail(first, f"{' or '.join(same)} is given twice")
        kinds, example = FORMS[word]
        self.hint = f"write it as `{word} {example}`"
        values = [self.value(kind) for kind in kinds]
        if self.tokens:
            self.fail(self.tokens[0], f"did not expect {self.tokens[0][0]!r} here")
        given[word] = [value for value in values if value is not None]
        places[word] = self.place + first.start()

    def value(self, kind: str) -> Any:
        """The next value, in plain units; None for a separator."""
        token = self.next(kind)
        if kind in UNITS:
            return self.quantity(token, kind)
        if kind == "chip":
            name = ALIASES.get(token[0], token[0])
            if name not in CHIPS:
                self.fail(token, f"unknown chip {in_quotes(name)}", nearest(name, CHIPS))
            return name
        if kind == "shape" and re.fullmatch(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5}){0,2}", token[0]):
            return tuple(map(int, token[0].split("x")))
        if kind == "count" and re.fullmatch(r"[1-9][0-9]{0,5}", token[0]):
            return int(token[0])
        if kind != token[0]:
            self.fail(token, f"expected {SHOWN.get(kind, repr(kind))} here")
        return None

    def quantity(self, token: re.Match[str], kind: str) -> float:
        """A number and its unit, with or without a space between them."""
        match = _NUMBER.fullmatch(token[0])
        number, unit = (float(match[1]), match[2]) if match else (0.0, "")
        if not _LEAST < number < _MOST:
            self.fail(token, f"expected {SHOWN[kind]} here")
        place = token if unit else self.next("unit")
        unit = unit or place[0]
        if unit not in UNITS[kind]:
            self.fail(place, f"{unit!r} is no unit of {SHOWN[kind]}", nearest(unit, UNITS[kind]))
        amount = number * UNITS[kind][unit]
        amount = round(amount) if kind == "size" else amount
        if not _LEAST < amount < _MOST:
            self.fail(token, f"no machine has {SHOWN[kind]} of {amount:.3g}")
        return amount

    def next(self, kind: str) -> re.Match[str]:
        if not self.tokens:
            self.at(len(self.text), 1, f"expected {SHOWN.get(kind, repr(kind))} here")
        return self.tokens.pop(0)

    def fail(self, token: re.Match[str], message: str, hint: str = "") -> NoReturn:
        self.at(token.start(), len(token[0]), message, hint)

    def at(self, column: int, width: int, message: str, hint: str = "") -> NoReturn:
        self.source.fail(self.place + column, message, hint or self.hint, width)
