"""Minimum cuts, against every cut there is."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from dialect.staging.mincut import WHOLE, Network

NODES = ["source", "sink", "a", "b", "c", "d"]
EDGES = st.lists(
    st.tuples(st.sampled_from(NODES), st.sampled_from(NODES), st.integers(0, 5)).filter(
        lambda edge: edge[0] != edge[1]
    ),
    max_size=12,
)
Edge = tuple[str, str, int]


def network(edges: list[Edge]) -> Network:
    made = Network()
    for edge in edges:
        made.edge(*edge)
    return made


def cost(edges: list[Edge], before: set[str]) -> int:
    return sum(size for start, end, size in edges if start in before and end not in before)


def all_sides(edges: list[Edge]) -> list[set[str]]:
    inner = NODES[2:]
    return [
        {"source", *(node for node, chosen in zip(inner, row) if chosen)}
        for row in product((False, True), repeat=len(inner))
    ]


def cheapest(edges: list[Edge]) -> tuple[int, list[set[str]]]:
    """The least cost of a cut, and the source side of every cut that has it."""
    sides = all_sides(edges)
    least = min(cost(edges, side) for side in sides)
    return least, [side for side in sides if cost(edges, side) == least]


@given(EDGES)
def test_source_side_is_the_smallest_of_the_cheapest(edges: list[Edge]) -> None:
    least, sides = cheapest(edges)
    found = network(edges).source_side()
    assert cost(edges, found) == least
    assert found == set.intersection(*sides)


@given(EDGES)
def test_sink_side_is_the_smallest_of_the_cheapest(edges: list[Edge]) -> None:
    least, sides = cheapest(edges)
    behind = network(edges).sink_side()
    known = {node for edge in edges for node in edge[:2]} | {"source", "sink"}
    assert cost(edges, set(NODES) - behind) == least
    assert behind == set.intersection(*(set(NODES) - side for side in sides)) & known


@given(EDGES)
def test_both_sides_can_be_asked_of_one_network(edges: list[Edge]) -> None:
    one = network(edges)
    assert one.source_side() == network(edges).source_side()
    assert one.sink_side() == network(edges).sink_side()


def test_edges_between_two_nodes_add_up() -> None:
    made = network([("source", "a", 2), ("source", "a", 3), ("a", "sink", 4)])
    assert made.source_side() == {"source", "a"}


def test_no_cut_pays_a_whole_edge() -> None:
    made = Network()
    made.edge("source", "a", 10)
    made.edge("a", "b")
    made.edge("a", "b")  # twice the capacity of everything is still no more than everything
    made.edge("b", "sink", 11)
    assert made.capacity["a"]["b"] == WHOLE
    assert made.source_side() == {"source"}


def test_no_edges() -> None:
    assert Network().source_side() == {"source"}
    assert Network().sink_side() == {"sink"}
