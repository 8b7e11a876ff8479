"""The minimum cut of a directed graph: the cheapest set of edges between two nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

WHOLE = 1 << 62  # a capacity that no cut pays


class Network:
    """Edges with integer capacities between any hashable nodes; "source" and "sink" are two."""

    def __init__(self) -> None:
        self.capacity: dict[Hashable, dict[Hashable, int]] = {"source": {}, "sink": {}}

    def edge(self, start: Hashable, end: Hashable, size: int = WHOLE) -> None:
        """Adds capacity from `start` to `end`; several edges between two nodes add up."""
        row = self.capacity.setdefault(start, {})
        row[end] = min(WHOLE, row.get(end, 0) + size)
        self.capacity.setdefault(end, {}).setdefault(start, 0)

    def source_side(self) -> set[Hashable]:
        """The nodes before the minimum cut, as few as there can be: the earliest of equal cuts.

        Maximum flow by shortest augmenting paths (Edmonds and Karp 1972).
        """
        while self._augment():
            pass
        return self._spread("source", lambda node, end: self.capacity[node][end])

    def sink_side(self) -> set[Hashable]:
        """The nodes behind the minimum cut, as few as there can be: the latest of equal cuts."""
        while self._augment():
            pass
        return self._spread("sink", lambda node, start: self.capacity[start][node])

    def _spread(self, start: Hashable, left: Callable[[Hashable, Hashable], int]) -> set[Hashable]:
        reached, stack = {start}, [start]
        while stack:
            node = stack.pop()
            for neighbour in self.capacity[node]:
                if neighbour not in reached and left(node, neighbour) > 0:
                    reached.add(neighbour)
                    stack.append(neighbour)
        return reached

    def _augment(self) -> bool:
        """Sends flow along one shortest path; False where none is left."""
        before: dict[Hashable, Hashable] = {"source": "source"}
        queue: deque[Hashable] = deque(["source"])
        while queue and "sink" not in before:
            node = queue.popleft()
            for end, size in self.capacity[node].items():
                if size > 0 and end not in before:
                    before[end] = node
                    queue.append(end)
        if "sink" not in before:
            return False
        path: list[Hashable] = ["sink"]
        while path[-1] != "source":
            path.append(before[path[-1]])
        steps = list(zip(path[1:], path))
        flow = min(self.capacity[start][end] for start, end in steps)
        for start, end in steps:
            self.capacity[start][end] -= flow
            self.capacity[end][start] += flow
        return True
