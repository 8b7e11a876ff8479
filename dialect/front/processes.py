"""The processes of `serve` on several hosts: how each of them joins the others."""

from __future__ import annotations

import atexit
import os
import re
from dataclasses import dataclass

import jax

from dialect.serving.policy import ServingError

_LOST_S = 10  # without a sign of life of a process


@dataclass(frozen=True)
class Processes:
    """`address`: where the first one listens; "" where the machine's own environment tells."""

    count: int = 1
    number: int = 0
    address: str = ""
    known_by_machine: bool = False

    @classmethod
    def of(cls, text: str | None) -> Processes:
        """The processes that "ADDRESS:PORT,COUNT,NUMBER" or "auto" names. Raises ServingError."""
        if text is None:
            return cls()
        if text == "auto":
            return cls(known_by_machine=True)
        known = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", text)
        if not known or int(known[3]) >= int(known[2]):
            raise ServingError(
                f"--hosts is {text!r}",
                hint="auto, or ADDRESS:PORT,COUNT,NUMBER, as in 10.0.0.1:9000,4,0 of the first",
            )
        return cls(int(known[2]), int(known[3]), known[1])

    def join(self) -> None:
        """Waits for the others, where there are any."""
        if self.known_by_machine:
            jax.distributed.initialize(heartbeat_timeout_seconds=_LOST_S)
        elif self.count > 1:
            jax.distributed.initialize(
                self.address, self.count, self.number, heartbeat_timeout_seconds=_LOST_S
            )

    def abandon(self) -> None:
        """Ends this process without the others: JAX would wait for those that are gone."""
        if self.known_by_machine or self.count > 1:
            atexit.register(os._exit, 1)
