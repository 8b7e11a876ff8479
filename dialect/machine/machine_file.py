"""Machines of your own, from a text file: one figure a line, with its unit (# is a comment).

    like      v5e                    # a known chip, of which only what follows differs
    bf16      400 TFLOP/s            # also f32, fp8, int8, int4 where the matrix unit has them
    hbm       64 GiB at 3.2 TB/s
    usable    62 GiB                 # all of it, where nothing is said
    on-chip   128 MiB
    torus     16x16                  # the largest slice; or `grid 8x8`, or `switch 8`
    cube      4                      # optical switches join cubes of 4x4x4
    links     100 GB/s, 1 us         # one of them, one way; and what a step takes
    network   6.25 GB/s, 14 us       # between slices, each chip's share

A plan's target names the file: `my/edge.machine:4x4`. Such a machine is planned for; what is
`like` a chip that libtpu knows is compiled too, as that chip.
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
# The units of each quantity: what one of them is.
UNITS = {
    "compute": {f"{prefix}{op}/s": x for prefix, x in _DECIMAL.items() for op in ("FLOP", "OP")},
    "size": {f"{prefix}B": x for prefix, x in (_DECIMAL | _BINARY).items()},
    "bandwidth": {f"{prefix}B/s": x for prefix, x in (_DECIMAL | _BINARY).items()},
    "time": {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
}
# What stands behind each word: quantities, and words between them; and an example.
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
# The fields of a Chip that the quantities of a word are.
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
    """The chip that a file describes; the path is its name. Raises TargetError where there is no
    such file, TextError with the line and a caret where it cannot be read."""
    return parse(read_file(path, "machine", TargetError), path)


def parse(text: str, name: str) -> Chip:
    """The chip that a text describes. Raises TextError with the line and a caret."""
    source = Source(text, name)
    said: dict[str, list[Any]] = {}
    places: dict[str, int] = {}
    place = 0
    for line in source.text.split("\n"):
        _Line(source, place, line).read(said, places)
        place += len(line) + 1
    base = CHIPS[said["like"][0]] if "like" in said else None
    found: dict[str, Any] = {"name": name, "aliases": ()}
    for word, names in FIELDS.items():
        found |= dict(zip(names, said.get(word, ())))
    if "hbm" in said:
        found.setdefault("usable_hbm_bytes", found["hbm_bytes"])
    for fabric in FABRICS:
        if fabric in said:
            found |= {"fabric": fabric, "largest": said[fabric][0]}
    peaks = dict(base.peaks) if base else {}
    peaks |= {dtype: said[dtype][0] for dtype in DTYPES if dtype in said}
    found["peaks"] = tuple(peaks.items())
    missing = [word for word in ("bf16", "hbm", "links") if word not in said]
    missing += ["torus"] if not set(FABRICS) & set(said) else []
    if missing and not base:
        shown = ", ".join(f"`{word} {FORMS[word][1]}`" for word in missing)
        message = f"the machine does not say its {', '.join(missing)}"
        source.fail(len(source.text), message, f"for example {shown}")
    chip = replace(base, **found) if base else Chip(**{"on_chip_bytes": 0} | found)
    if chip.usable_hbm_bytes > chip.hbm_bytes:
        place = places.get("usable", places.get("hbm", 0))
        source.fail(place, "more memory is usable than there is", "correct `usable`")
    return chip


class _Line:
    """One line: a word, and the quantities that its form asks for."""

    def __init__(self, source: Source, place: int, line: str) -> None:
        self.source, self.place = source, place
        self.said = line.partition("#")[0].rstrip()
        self.tokens = list(_TOKEN.finditer(self.said))
        self.hint = ""

    def read(self, said: dict[str, list[Any]], places: dict[str, int]) -> None:
        """Adds what the line says, and where, to what is said already."""
        if not self.tokens:
            return
        first = self.tokens.pop(0)
        word = first[0]
        if word not in FORMS:
            self.fail(first, f"unknown word {word!r}", nearest(word, FORMS))
        same = FABRICS if word in FABRICS else (word,)
        if set(same) & set(said):
            self.fail(first, f"{' or '.join(same)} is said twice")
        kinds, example = FORMS[word]
        self.hint = f"write it as `{word} {example}`"
        values = [self.value(kind) for kind in kinds]
        if self.tokens:
            self.fail(self.tokens[0], f"did not expect {self.tokens[0][0]!r} here")
        said[word] = [value for value in values if value is not None]
        places[word] = self.place + first.start()

    def value(self, kind: str) -> Any:
        """The next value, in plain units; None for a word that only stands between two."""
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
        """A number and its unit, whether or not there is a space between them."""
        match = _NUMBER.fullmatch(token[0])
        number, unit = (float(match[1]), match[2]) if match else (0.0, "")
        if not _LEAST < number < _MOST:
            self.fail(token, f"expected {SHOWN[kind]} here")
        at = token if unit else self.next("unit")
        unit = unit or at[0]
        if unit not in UNITS[kind]:
            self.fail(at, f"{unit!r} is no unit of {SHOWN[kind]}", nearest(unit, UNITS[kind]))
        amount = number * UNITS[kind][unit]
        amount = round(amount) if kind == "size" else amount
        if not _LEAST < amount < _MOST:
            self.fail(token, f"no machine has {SHOWN[kind]} of {amount:.3g}")
        return amount

    def next(self, kind: str) -> re.Match[str]:
        if not self.tokens:
            self.at(len(self.said), 1, f"expected {SHOWN.get(kind, repr(kind))} here")
        return self.tokens.pop(0)

    def fail(self, token: re.Match[str], message: str, hint: str = "") -> NoReturn:
        self.at(token.start(), len(token[0]), message, hint)

    def at(self, column: int, width: int, message: str, hint: str = "") -> NoReturn:
        self.source.fail(self.place + column, message, hint or self.hint, width)
