"""A page in the radix tree (`dialect.serving.radix_tree`)."""

from __future__ import annotations


class Node:
    """A page, its tokens as the key, and the pages that go on from there. The root has no page."""

    __slots__ = ("children", "key", "page", "parent")

    def __init__(self, key: bytes, page: int, parent: Node | None) -> None:
        self.key, self.page, self.parent = key, page, parent
        self.children: dict[bytes, Node] = {}
