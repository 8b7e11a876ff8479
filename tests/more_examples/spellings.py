"""For the rules that bring spellings to one: the normal form, and recognition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Example = tuple[Callable[..., Any], tuple[str, ...]]

MORE: dict[str, list[Example]] = {}
EQUAL: dict[str, dict[str, str]] = {}
