"""Further programs that rules are tried on: other forms that they fire on, and near misses.

A rule's own example stands with it and explains it; those of `MORE` keep its guards. `EQUAL` are
mutants of a rule (`tests/fuzz/mutants.py`) that compute the same, with the reason.
"""

from __future__ import annotations

from dataclasses import replace

from dialect.checked.all_rules import FoundRule, all_rules
from tests.more_examples import (
    activations,
    attention,
    caches,
    convolutions,
    forms,
    latents,
    pages,
    parts,
    positions,
    rings,
    spellings,
)
from tests.more_examples.forms import Word

_FILES = (
    activations,
    attention,
    caches,
    convolutions,
    forms,
    latents,
    pages,
    parts,
    positions,
    rings,
    spellings,
)
MORE = {name: more for each in _FILES for name, more in each.MORE.items()}
EQUAL = {name: equal for each in _FILES for name, equal in each.EQUAL.items()}


def is_left_alone(found: FoundRule, number: int) -> bool:
    """Whether a rule must not fire on this program of its own: see `forms.left_alone`."""
    return number > 0 and hasattr(found.more[number - 1].example, "left_alone")


def makes(found: FoundRule, number: int) -> Word | None:
    """The op that a rule must leave of this program of its own; None where any will do."""
    return getattr(found.more[number - 1].example, "makes", None) if number else None


def every_rule() -> list[FoundRule]:
    """Every rule of the packages, with its further examples."""
    return [
        replace(
            found,
            more=tuple(
                replace(found.rule, example=example, types=types)
                for example, types in MORE.get(found.name, ())
            ),
        )
        for found in all_rules("dialect", "passes")
    ]
