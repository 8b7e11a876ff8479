"""Small questions about values, and the plainest ways to make new ones."""

from __future__ import annotations

from rewrite.ir import Value
from rewrite.opdef import make


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """`value` in another shape."""
    return value if value.type.shape == shape else make("reshape", value, new_sizes=tuple(shape))


def is_splat(value: Value) -> bool:
    """Whether every element is the same constant scalar."""
    return value.op.name == "const" and not value.type.shape
