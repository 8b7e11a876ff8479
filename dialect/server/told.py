"""What clients are told: OpenAI's objects, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dialect.engine.answers import Answer, Token
from dialect.server.asked import Asked
from dialect.server.texts import Texts


@dataclass
class Piece:
    """More of a choice: its text, the tokens, and where it ends why ("stop", "length")."""

    text: str
    tokens: list[Token]
    ended: str | None = None


@dataclass
class Told:
    """The objects that answer one request."""

    asked: Asked
    texts: Texts
    model: str
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece], answers: Iterable[Answer]) -> dict[str, Any]:
        """The answer, of which every choice is one piece."""
        choices = [self._choice(at, piece, "message") for at, piece in enumerate(pieces)]
        name = "chat.completion" if self.asked.chat else "text_completion"
        return self._object(name, choices) | {"usage": usage(answers, self.asked.choices)}

    def chunk(self, number: int, piece: Piece, first: bool = False) -> dict[str, Any]:
        """One piece of a choice."""
        name = "chat.completion.chunk" if self.asked.chat else "text_completion"
        choice = self._choice(number, piece, "delta")
        if self.asked.chat and not first:
            choice["delta"].pop("role")
        return self._object(name, [choice])

    def last(self, answers: Iterable[Answer]) -> dict[str, Any]:
        """What is told behind all choices: what was used."""
        name = "chat.completion.chunk" if self.asked.chat else "text_completion"
        return self._object(name, []) | {"usage": usage(answers, self.asked.choices)}

    def _object(self, name: str, choices: list[Any]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.asked.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.number}",
            "object": name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _choice(self, number: int, piece: Piece, within: str) -> dict[str, Any]:
        choice = {"index": number, "finish_reason": piece.ended, "logprobs": None}
        if self.asked.chat:
            choice[within] = {"role": "assistant", "content": piece.text}
        else:
            choice["text"] = piece.text
        if self.asked.logprobs is not None:
            choice["logprobs"] = self._chat_logprobs(piece) if self.asked.chat else self._of(piece)
        return choice

    def _chat_logprobs(self, piece: Piece) -> dict[str, Any]:
        def told(token: int, logprob: float) -> dict[str, Any]:
            text = self.texts.of(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = []
        for token in piece.tokens:
            likely = token.likely[: self.asked.logprobs]
            chosen = told(token.number, token.logprob)
            content.append(
                chosen | {"top_logprobs": [told(*alternative) for alternative in likely]}
            )
        return {"content": content, "refusal": None}

    def _of(self, piece: Piece) -> dict[str, Any]:
        texts = [self.texts.of(token.number) for token in piece.tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in piece.tokens],
            "top_logprobs": [self._likely(token) for token in piece.tokens],
            "text_offset": [sum(map(len, texts[:at])) for at in range(len(texts))],
        }

    def _likely(self, token: Token) -> dict[str, float]:
        """The likely tokens and the chosen one, by their texts; of two alike the more likely."""
        listed = [*token.likely[: self.asked.logprobs], (token.number, token.logprob)]
        by_text: dict[str, float] = {}
        for number, logprob in listed:
            by_text.setdefault(self.texts.of(number), logprob)
        return by_text


def usage(answers: Iterable[Answer], choices: int) -> dict[str, Any]:
    """The tokens of some answers; a prompt counts once for all choices."""
    answers = list(answers)
    prompts = [answer.request for answer in answers[::choices]]
    asked = sum(request.asked for request in prompts)
    new = sum(len(answer.tokens) for answer in answers)
    cached = sum(max(0, request.cached) for request in prompts)
    return {
        "prompt_tokens": asked,
        "completion_tokens": new,
        "total_tokens": asked + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
