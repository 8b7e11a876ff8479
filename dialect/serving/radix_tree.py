"""Prefixes whose pages stay in the cache, as a radix tree: requests that begin alike share pages.

The letters of the tree are whole pages, so no edge is ever split: a node is one page, its key the
tokens of that page, and its path from the root everything before them (RadixAttention,
arXiv:2312.07104, section 3; keys aligned to pages). A page that only the tree holds is idle, and
idle pages are taken back in the order of their last use. Whoever holds a page holds all pages
before it, and lets the last go first; so of the idle pages the one used longest ago is a leaf.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable

from dialect.serving.node import Node
from dialect.serving.pages import Pages, PagesLost
from dialect.serving.requests import Request


class RadixTree:
    """The prefixes that are in some pages. No operation looks at more than a request's pages."""

    def __init__(self, pages: Pages, shares: bool = True) -> None:
        self.pages, self.shares = pages, shares
        self.root = Node(b"", -1, None)
        self.nodes: dict[int, Node] = {}  # by page
        self.idle: OrderedDict[Node, None] = OrderedDict()  # the one used longest ago first

    def match(self, tokens: array[int]) -> list[Node]:
        """The longest prefix of the tokens that is here, in whole pages."""
        node, path, size = self.root, [], self.pages.size
        for start in range(0, len(tokens) - size + 1, size) if self.root.children else ():
            child = node.children.get(tokens[start : start + size].tobytes())
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def hold(self, path: Iterable[Node]) -> None:
        """One holder more for every page of a path."""
        for node in path:
            self.pages.hold(node.page)
            self.idle.pop(node, None)

    def release(self, table: list[int]) -> None:
        """One holder less for every page of a table; those that are left to the tree are idle."""
        for page in reversed(table):
            if self.pages.release(page) == 1 and page in self.nodes:
                self.idle[self.nodes[page]] = None

    def share(self, request: Request, exchanges: bool = True) -> None:
        """The full pages of a request come into the tree, and it goes on with those that others
        brought: where they have computed its next tokens since it was matched, it need not.

        A page is shared as soon as the step that writes it is queued, since a step writes all its
        rows before it reads any. exchanges: whether pages of its own, where the tree has the same,
        may be let go of: not while the step that writes them is put together.
        """
        size, table, path = self.pages.size, request.table, request.path
        node = path[-1] if path else self.root
        written = min(request.scheduled, len(request.tokens)) // size
        to_read = (request.length - 1) // size  # its last token is computed in any case
        for at in range(len(path), max(written, min(to_read, len(table))) if self.shares else 0):
            key = request.tokens[at * size : (at + 1) * size].tobytes()
            child = node.children.get(key)
            if child is None and at >= written:
                break
            if child is not None and not exchanges:
                break
            if child is None:
                child = node.children[key] = self.nodes[table[at]] = Node(key, table[at], node)
                self.pages.hold(child.page)
            else:
                self.hold([child])
                self.pages.release(table[at])
                table[at] = child.page
            path.append(child)
            node = child
        request.scheduled = max(request.scheduled, len(path) * size)

    def evict(self) -> None:
        """Frees the idle page that was used longest ago. Raises KeyError where none is idle."""
        node, _ = self.idle.popitem(last=False)
        del node.parent.children[node.key], self.nodes[node.page]
        self.pages.release(node.page)

    def check(self) -> None:
        """Raises PagesLost unless the nodes are a tree, and idle those that nobody else holds."""
        reached, stack = set(), [self.root]
        while stack:
            node = stack.pop()
            for key, child in node.children.items():
                if child.parent is not node or child.key != key:
                    raise PagesLost(f"page {child.page} is not where its parent looks for it")
                reached.add(child)
                stack.append(child)
        if reached != set(self.nodes.values()) or any(n.page != p for p, n in self.nodes.items()):
            raise PagesLost("a page of the tree cannot be reached from its root")
        alone = {node for node in reached if self.pages.holders[node.page] == 1}
        if alone != set(self.idle):
            raise PagesLost(f"{len(alone)} pages are idle, and {len(self.idle)} are listed")
        place = {node: at for at, node in enumerate(self.idle)}
        if any(place.get(n.parent, len(place)) < at for n, at in place.items()):
            raise PagesLost("an idle page would be freed before those behind it")
