"""two_passes: a file that breaks the rule of one pass per file."""

from __future__ import annotations

from rewrite.passbase import Pass


class First(Pass):
    """One."""


class Second(Pass):
    """One too many."""
