"""What a client asks for, read from its JSON. What cannot be done is refused, not left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dialect.server.refusals import Refusal
from dialect.server.texts import Texts
from dialect.token_rows.sampling import LISTED

MOST_CHOICES, MOST_STOPS, MOST_PROMPTS = 16, 4, 64
_SEED = 0x7FFFFFFF
# Without effect on an answer.
_HARMLESS = ("user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier")
# With these values they ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "echo": (False, None),
    "suffix": ("", None),
    "best_of": (1, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
}


@dataclass(frozen=True)
class Asked:
    """An answer to every prompt, `choices` times.

    logprobs: how many likely tokens are told with each, None for not even its own probability.
    """

    chat: bool
    prompts: list[list[int]]
    choices: int
    stream: bool
    usage: bool
    stops: list[str]
    logprobs: int | None
    new: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int


class _Body:
    """The fields of a JSON object; each is taken once, and what is left is refused."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def take(self, name: str, default: Any, fits: Callable[[Any], bool], wanted: str) -> Any:
        """A field, or its default where it is absent or null."""
        value = self.fields.pop(name, None)
        if value is None:
            return default
        if not fits(value):
            raise Refusal(f"{name} must be {wanted}", param=name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number in a range."""
        return self.take(
            name,
            default,
            lambda x: _is_number(x) and low <= x <= high,
            f"a number from {low} to {high}",
        )

    def whole(self, name: str, default: int | None, low: int, high: int) -> Any:
        """A whole number in a range."""
        return self.take(
            name,
            default,
            lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high,
            f"a whole number from {low} to {high}",
        )

    def flag(self, name: str) -> bool:
        """true or false."""
        return self.take(name, False, lambda x: isinstance(x, bool), "true or false")

    def must_be_empty(self) -> None:
        """Raises Refusal for fields that nobody took."""
        for name, value in self.fields.items():
            neutral = _NEUTRAL.get(name, (None,))
            if name not in _HARMLESS and value not in neutral:
                raise Refusal(f"{name} is not supported", param=name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read(body: bytes, chat: bool, texts: Texts, names: tuple[str, ...], longest: int) -> Asked:
    """What the body of a request asks for. names: of the model; longest: tokens of a request.

    Raises Refusal.
    """
    fields = _Body(_object(body))
    model = fields.take("model", names[0], lambda x: isinstance(x, str), "a text")
    if model not in names:
        raise Refusal(f"there is no model {model!r}, but {names[0]!r}", 404, "model")
    stream = fields.flag("stream")
    asked = Asked(
        chat=chat,
        prompts=_conversation(fields, texts) if chat else _prompts(fields, texts, longest),
        choices=fields.whole("n", 1, 1, MOST_CHOICES),
        stream=stream,
        usage=_usage(fields, stream),
        stops=_stops(fields),
        logprobs=_logprobs(fields, chat),
        new=_new(fields, chat, longest),
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_p=fields.take(
            "top_p", 1.0, lambda x: _is_number(x) and 0 < x <= 1, "more than 0, and at most 1"
        ),
        top_k=fields.whole("top_k", 0, 0, _SEED),
        seed=fields.whole("seed", None, -(2**63), 2**63),
    )
    fields.must_be_empty()
    return asked


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Refusal("the body must be a JSON object")
    return fields


def _usage(fields: _Body, stream: bool) -> bool:
    options = fields.take("stream_options", {}, lambda x: isinstance(x, dict), "an object")
    return not stream or bool(options.get("include_usage"))


def _stops(fields: _Body) -> list[str]:
    def fits(value: Any) -> bool:
        stops = [value] if isinstance(value, str) else value
        texts = isinstance(stops, list) and all(isinstance(x, str) and x for x in stops)
        return texts and len(stops) <= MOST_STOPS

    stops = fields.take("stop", [], fits, f"a text, or at most {MOST_STOPS} of them")
    return [stops] if isinstance(stops, str) else stops


def _logprobs(fields: _Body, chat: bool) -> int | None:
    if not chat:
        return fields.whole("logprobs", None, 0, LISTED)
    wanted = fields.flag("logprobs")
    listed = fields.whole("top_logprobs", 0, 0, LISTED)
    if listed and not wanted:
        raise Refusal("top_logprobs needs logprobs to be true", param="top_logprobs")
    return listed if wanted else None


def _new(fields: _Body, chat: bool, longest: int) -> int | None:
    new = fields.whole("max_tokens", None if chat else 16, 1, longest)
    return fields.whole("max_completion_tokens", new, 1, longest) if chat else new


def _prompts(fields: _Body, texts: Texts, longest: int) -> list[list[int]]:
    prompt = fields.fields.pop("prompt", None)
    listed = prompt if isinstance(prompt, list) and not _is_tokens(prompt) else [prompt]
    if not 0 < len(listed) <= MOST_PROMPTS:
        raise Refusal(f"prompt must be one, or at most {MOST_PROMPTS}", param="prompt")
    if all(isinstance(entry, str) for entry in listed):
        return [texts.encoded(entry) for entry in listed]
    if all(map(_is_tokens, listed)):
        return listed
    raise Refusal("prompt must be a text, tokens, or a list of either", param="prompt")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(x) is int for x in value)


def _conversation(fields: _Body, texts: Texts) -> list[list[int]]:
    messages = fields.fields.pop("messages", None)
    if not isinstance(messages, list) or not messages:
        raise Refusal("messages must be a list of messages", param="messages")
    return [texts.conversation([_message(message) for message in messages])]


def _message(message: Any) -> dict[str, str]:
    """A message with its content as one text."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refusal("a message is an object with a role and a content", param="messages")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise Refusal("the content of a message must be text", param="messages")
    return {"role": message["role"], "content": "".join(part["text"] for part in parts)}
