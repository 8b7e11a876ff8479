"""Tokens as text: prompts and conversations in, answers out piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from dialect.server.refusals import Refusal


class Texts:
    """A tokenizer of `tokenizers`, and a template of jinja for conversations ("" for none)."""

    def __init__(self, tokenizer: Any, template: str = "") -> None:
        self.tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        self.template = environment.from_string(template) if template else None

    def encoded(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation that the decoder is to continue. Raises Refusal."""
        if self.template is None:
            raise Refusal("this model has no chat template; use /v1/completions")
        try:
            text = self.template.render(messages=messages, add_generation_prompt=True)
        except TemplateError as error:
            raise Refusal(f"the chat template refuses the messages: {error}") from error
        return self.encoded(text)

    def of(self, token: int) -> str:
        """The text of one token."""
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def growing(self, stops: Sequence[str] = ()) -> Growing:
        """The text of an answer that grows, and ends before any of some strings."""
        return Growing(self.tokenizer, stops)


def _raise(message: str) -> None:
    raise TemplateError(message)


class Growing:
    """A text that grows token by token.

    What could be the beginning of a stop string, or of a character, is held back.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.stream = DecodeStream(skip_special_tokens=True)
        self.tokens: list[int] = []
        self.length, self.held, self.stopped = 0, "", False

    def add(self, token: int) -> str:
        """What is certain to come next, once this token is known."""
        more = self.stream.step(self.tokenizer, token) or ""
        self.tokens.append(token)
        self.length += len(more)
        self.held += more
        ends = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            sure, self.held = self.held[: min(ends)], ""
            return sure
        kept = max((_beginning(self.held, stop) for stop in self.stops), default=0)
        sure = self.held[: len(self.held) - kept]
        self.held = self.held[len(sure) :]
        return sure

    def rest(self) -> str:
        """What was held back, where there are no more tokens; half a character is one that stands
        for it."""
        whole = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        rest, self.held = self.held + whole[self.length :], ""
        return rest


def _beginning(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
