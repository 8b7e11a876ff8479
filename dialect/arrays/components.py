"""Connected components."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def connected(links: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """The connected components of nodes, which every link joins; all in order of first mention."""
    leader: dict[Any, Any] = {}

    def find(node: Any) -> Any:
        while (above := leader.setdefault(node, node)) != node:
            leader[node] = node = leader[above]
        return node

    groups: dict[Any, list[Any]] = {}
    for first, *others in links:
        find(first)
        for other in others:
            leader[find(other)] = find(first)
    for node in leader:
        groups.setdefault(find(node), []).append(node)
    return list(groups.values())
