"""The user's variables: which one a source line gives a value to.

q, k = rope(q), rope(k)        ("q", "k")
return x * scale               ("rms_norm",), where that is the function
"""

from __future__ import annotations

import ast
import linecache
import re
from functools import lru_cache

_SOURCE = re.compile(r"(?P<file>.*):(?P<line>\d+) \((?P<function>.*)\)")
_BIGGEST = 1 << 20  # characters of a file that is read for its names


@lru_cache(maxsize=4096)
def assigned_at(source: str) -> tuple[str, ...]:
    """The variables that the statement at an `Origin.source` assigns, or the function that it
    returns from; () where neither is known."""
    place = _SOURCE.fullmatch(source)
    if not place:
        return ()
    names = _statements(place["file"]).get(int(place["line"]), ())
    function = place["function"].rpartition(".")[2]
    returned = (function,) if function.isidentifier() else ()
    return returned if names == ("return",) else names


@lru_cache(maxsize=64)
def _statements(file: str) -> dict[int, tuple[str, ...]]:
    """{line: what the innermost statement on it assigns}."""
    text = "".join(linecache.getlines(file))
    if not text or len(text) > _BIGGEST:
        return {}
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return {}
    names: dict[int, tuple[str, ...]] = {}
    for node in ast.walk(tree):  # outer statements first: what is inside them replaces them
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            names |= dict.fromkeys(lines, _targets(node))
    return names


def _targets(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, ast.Return):
        return ("return",)
    if isinstance(node.value, ast.Tuple) and _is_a_later_part(node.value.elts[0]):
        return ()
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target  # type: ignore
    parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
    return tuple(part.id for part in parts if isinstance(part, ast.Name))


def _is_a_later_part(node: ast.expr) -> bool:
    """`x[3:]`, with which `last, first = x[3:], x[:3]` begins: the parts are in another order."""
    bounds = node.slice if isinstance(node, ast.Subscript) else node
    each = bounds.elts if isinstance(bounds, ast.Tuple) else [bounds]
    return any(isinstance(part, ast.Slice) and part.lower is not None for part in each)
