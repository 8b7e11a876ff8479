"""The answers to one request: submitted together, read as text, and cancelled together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

from dialect.engine.answers import Answer, Token
from dialect.engine.engine import Engine
from dialect.server.asked import Asked
from dialect.server.refusals import Refusal
from dialect.server.texts import Texts
from dialect.server.told import Piece
from dialect.serving.policy import ServingError

_DRAWN = 1 << 31


class Choices:
    """The answers that were asked for, in the order of the prompts.

    stop: tokens behind which every answer ends. Raises Refusal where one cannot be computed.
    """

    def __init__(self, engine: Engine, texts: Texts, asked: Asked, stop: list[int]) -> None:
        self.texts, self.asked, self.stop = texts, asked, frozenset(stop)
        self.answers: list[Answer] = []
        seed = asked.seed if asked.seed is not None else random.randrange(_DRAWN)
        try:
            for prompt in asked.prompts:
                for number in range(asked.choices):
                    self.answers.append(self._submitted(engine, prompt, seed + number))
        except ServingError as error:
            self.cancel()
            raise Refusal(error.message) from error

    def _submitted(self, engine: Engine, prompt: list[int], seed: int) -> Answer:
        room = max(1, engine.built.sizes.context - len(prompt))
        return engine.submit(
            prompt,
            max_new_tokens=self.asked.new or room,
            temperature=self.asked.temperature,
            top_p=self.asked.top_p,
            top_k=self.asked.top_k,
            seed=seed,
            stop=self.stop,
            logprobs=self.asked.logprobs is not None,
        )

    def cancel(self) -> None:
        """Nobody listens any more."""
        for answer in self.answers:
            answer.cancel()

    async def pieces(self, number: int) -> AsyncIterator[Piece]:
        """The text of one answer, as it comes. Raises ServingError where it fails."""
        answer, text = self.answers[number], self.texts.growing(self.asked.stops)
        unsaid: list[Token] = []
        async for token in answer.each():
            if token.number in self.stop:
                break
            unsaid.append(token)
            more = text.add(token.number)
            if text.stopped:
                yield Piece(more, unsaid, "stop")
                return
            if more:
                yield Piece(more, unsaid)
                unsaid = []
        why = "length" if answer.why == "length" else "stop"
        yield Piece(text.rest(), unsaid, why)

    async def whole(self, number: int) -> Piece:
        """One answer, once it has ended."""
        pieces = [piece async for piece in self.pieces(number)]
        tokens = [token for piece in pieces for token in piece.tokens]
        return Piece("".join(piece.text for piece in pieces), tokens, pieces[-1].ended)

    async def all_whole(self) -> list[Piece]:
        """All answers, once the last has ended."""
        return list(await asyncio.gather(*map(self.whole, range(len(self.answers)))))

    async def as_they_come(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all answers, each with the number of its answer."""
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def follow(number: int) -> None:
            try:
                async for piece in self.pieces(number):
                    queue.put_nowait((number, piece))
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.create_task(follow(number)) for number in range(len(self.answers))]
        ended = 0
        try:
            while ended < len(tasks):
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                ended += item[1].ended is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()
            self.cancel()
