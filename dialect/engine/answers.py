"""What comes back of a request: tokens as they are computed, and why there are no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import numpy as np

from dialect.serving.policy import ServingError
from dialect.serving.requests import Request
from dialect.token_rows.sampling import LISTED, Choice

BY_ENGINE = ("refused", "failed")  # how an ending begins that is an error


class Token(NamedTuple):
    """A token; where asked for, its log-probability and those of the most likely tokens."""

    number: int
    logprob: float | None = None
    likely: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, row: np.ndarray) -> Token:
        """That of a row of a step's results (`dialect.token_rows.sampling`)."""
        which, likely = row[2 : 2 + LISTED], row[2 + LISTED :].view(np.float32)
        log_probability = float(row[1:2].view(np.float32)[0])
        return cls(int(row[0]), log_probability, tuple(zip(which.tolist(), likely.tolist())))


class Answer:
    """The tokens of a request. `async for token in answer` gives them as they come, and cancels
    the request when the loop is left."""

    def __init__(self, request: Request, choice: Choice, cancel: Callable[[Answer], None]) -> None:
        self.request, self.choice, self._cancel = request, choice, cancel
        self.tokens: list[Token] = []
        self.ended = threading.Event()
        self._listeners: list[Callable[[], object]] = []

    @property
    def why(self) -> str:
        """Why it ended: length, stop, cancelled, deadline, refused: .., failed: ..; or nothing."""
        return self.request.ended

    def cancel(self) -> None:
        """Ends the request and frees its pages; nothing happens where it has ended."""
        self._cancel(self)

    def numbers(self) -> list[int]:
        """All tokens, once the request has ended. Raises ServingError where it failed."""
        self.ended.wait()
        self._must_not_have_failed()
        return [token.number for token in self.tokens]

    async def __aiter__(self) -> AsyncIterator[int]:
        async for token in self.each():
            yield token.number

    async def each(self) -> AsyncIterator[Token]:
        """The tokens as they come. Raises ServingError where the request is refused or fails."""
        loop, more, at = asyncio.get_running_loop(), asyncio.Event(), 0

        def listener() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(more.set)

        self._listeners.append(listener)
        try:
            while True:
                more.clear()
                ended = self.ended.is_set()
                while at < len(self.tokens):
                    at += 1
                    yield self.tokens[at - 1]
                if ended:
                    break
                await more.wait()
        finally:
            self._listeners.remove(listener)
            self.cancel()
        self._must_not_have_failed()

    def add(self, token: Token) -> None:
        """One more token: called by the engine."""
        self.tokens.append(token)
        self._tell()

    def end(self) -> None:
        """There are no more: called by the engine."""
        self.ended.set()
        self._tell()

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def _must_not_have_failed(self) -> None:
        if self.why.startswith(BY_ENGINE):
            raise ServingError(f"request {self.request.number} was {self.why}")
