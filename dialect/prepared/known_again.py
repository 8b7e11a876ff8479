"""Arrays that were seen before, known again without being kept alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any


class Seen:
    """Some arrays, by weak references where they take them."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._references = [_reference(array) for array in arrays]

    def are(self, arrays: Sequence[Any]) -> bool:
        """Whether these are the same objects, in the same order."""
        pairs = zip(self._references, arrays)
        same_number = len(self._references) == len(arrays)
        return same_number and all(reference() is array for reference, array in pairs)


def _reference(array: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(array)
    except TypeError:
        return lambda: array
