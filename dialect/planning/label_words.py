"""What the label of a partitioning means, in one line.

EF_xy>BE_x/heads   weights stored as E F_xy, residual stream as B E_x; E is d_model, ...
"""

from __future__ import annotations

import re

_FFN = {
    "ws1d": "weights stay on their chips, split over d_ff",
    "ws2d": "weights stay on their chips, split over d_model and d_ff",
    "wg_x": "weights are gathered over x in every layer, the batch is split over x",
    "wg_xy": "weights are gathered over x and y in every layer, the batch is split over both",
    "wg_xyz": "weights are gathered over all axes in every layer, the batch is split over all",
}
_LETTERS = "E d_model, F d_ff, B batch; _xy: split over x and y"


def in_words(label: str) -> str:
    """A label of `dialect.planning.partitionings` in words; "" for one that is none of its."""
    ffn, _, attention = label.removeprefix("partial/").partition("/")
    owners = {"whole": "attention whole"}.get(
        attention, f"attention over {attention.replace('+', ' and ')}"
    )
    if ffn in _FFN:
        return f"{_FFN[ffn]}; {owners} (Pope et al. 2022)"
    stored, arrow, stream = ffn.partition(">")
    if not arrow:
        return ""
    return f"weights stored as {_spaced(stored)}, residual stream as {_spaced(stream)}; {owners}"


def legend(labels: list[str]) -> str:
    """What the letters in labels mean, if any has letters."""
    lettered = next((label.partition("/")[0] for label in labels if ">" in label), "")
    stored, _, stream = map(_spaced, lettered.partition(">"))
    text = f"{lettered}: weights stored as {stored}, residual stream as {stream} ({_LETTERS})"
    return text if lettered else ""


def _spaced(text: str) -> str:
    return re.sub(r"(?<=\w)(?=[A-Z])", " ", text)
