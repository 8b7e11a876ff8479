"""needs_option: a pass with an option that has no default."""

from __future__ import annotations

from dataclasses import dataclass

from rewrite.passbase import Pass


@dataclass(frozen=True)
class NeedsOption(Pass):
    """Has one option, which must be given."""

    axis: str
