"""The user's source lines, carried through the compiler in the names of its operations.

    jit(decode_step)/while/body/llama.py:75/dot_general

They are named scopes: profilers show them, and they change nothing in what is compiled.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import jax

_TAG = re.compile(r"[^/]+:\d+")


@lru_cache(maxsize=4096)
def tag(source: str) -> str:
    """ "/home/me/llama.py:75 (block)" -> "llama.py:75": slashes divide the scopes of a name."""
    return (source.rpartition(" (")[0] or source).replace("\\", "/").rpartition("/")[2]


def under_line(source: str) -> AbstractContextManager:
    """Inside, what is traced carries the line; `source` is an `Origin.source`."""
    return jax.named_scope(tag(source)) if source else nullcontext()


def line_of(name: str) -> str:
    """The innermost line in an operation's name, or nothing where it has none."""
    tags = [part for part in name.split("/") if _TAG.fullmatch(part)]
    return tags[-1] if tags else ""
