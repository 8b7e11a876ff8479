"""What a user is told while a program runs, and did not ask for: the logger "shardwright".

A level above WARNING silences it: logging.getLogger("shardwright").setLevel("ERROR").
"""

from __future__ import annotations

import logging

_LOG = logging.getLogger("shardwright")


def tell(text: str) -> None:
    """Says one line, on stderr unless the application logs elsewhere."""
    _LOG.warning(text)
