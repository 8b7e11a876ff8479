"""What a decoder is measured on: held-out text, and two tasks that only attention can solve.

    text     predict the text
    copy     a passage of random tokens comes twice: predict it the second time
    needle   a line KEY=code stands in the text, 1/4, 1/2 or all of the context before the end,
             where KEY= stands again: predict the code

Copying and retrieval are lost first where an approximation drops or blurs keys, while a text is
predicted mostly from the last few tokens (Olsson et al., arXiv:2209.11895; Hsieh et al.,
arXiv:2404.06654).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_uppercase, digits

import numpy as np

from dialect.user.usercode import Trained, UsageError
from rewrite.errors import nearest
from rewrite.ir import Type

Encode = Callable[[str], Sequence[int]]
TEXT, COPY, NEEDLE = "text", "copy", "needle"
DISTANCES = (Fraction(1, 4), Fraction(1, 2), Fraction(1))  # of a needle, as parts of the context
CUE = 4  # tokens of a passage that has begun again, before the first that can be known
KEY, CODE = 4, 6  # letters and digits
SEED = 0


@dataclass(frozen=True)
class Task:
    """Rows of tokens, i32[rows, context + 1], and which are asked, bool[rows, context].

    The first token of a row is given, so `asked` tells of the others.
    """

    name: str
    tokens: np.ndarray
    asked: np.ndarray

    def steps(self, taken: Type, given: Type) -> tuple[np.ndarray, np.ndarray]:
        """(tokens i32[steps, batch] or [.., new], targets i32[steps, batch, predictions]).

        `taken` and `given` are the types of the tokens and the logits of one step. The targets are
        the next tokens of all tokens of a step, or of the last if the step returns only its logits;
        -1 where nothing is asked. Raises UsageError if the context is not a multiple of the tokens
        per step, and where no logits tell what is asked.
        """
        new = taken.shape[1] if taken.rank > 1 else 1
        batch, context = self.asked.shape
        if context % new:
            raise UsageError(
                f"a context of {context} is not a multiple of {new} tokens per step",
                hint="choose another --tokens or --context",
            )

        def cut(tokens: np.ndarray) -> np.ndarray:
            return tokens.reshape(batch, context // new, new).swapaxes(0, 1)

        targets = cut(np.where(self.asked, self.tokens[:, 1:], -1))
        targets = targets if given.rank == 3 else targets[:, :, -1:]
        if (targets < 0).all():
            raise UsageError(f"the step returns no logits that the task {self.name} asks for")
        return cut(self.tokens[:, :-1]).reshape(-1, *taken.shape), targets


@dataclass(frozen=True)
class Source:
    """The tokens of a text, i32[tokens], its bytes per token, and how other text is encoded."""

    tokens: np.ndarray
    bytes_per_token: float
    encode: Encode

    @staticmethod
    def of(trained: Trained, vocab: int) -> Source:
        """Of the held-out text. Raises UsageError where it has tokens outside of the vocabulary."""
        if trained.encode is None and vocab != 256:
            hint = "write encode(text), which returns the numbers of the tokens of bytes"
            raise UsageError(f"bytes are not tokens of a vocabulary of {vocab}", hint=hint)
        encode = trained.encode or list
        tokens = np.asarray(list(encode(trained.text)), np.int32)
        unknown = tokens[(tokens < 0) | (tokens >= vocab)]
        if unknown.size:
            raise UsageError(f"the text has a token {unknown[0]}, the vocabulary only {vocab}")
        bytes_per_token = len(trained.text) / max(len(tokens), 1)
        return Source(tokens, bytes_per_token, lambda text: list(encode(text.encode())))


def tasks(names: Sequence[str], source: Source, rows: int, context: int) -> tuple[Task, ...]:
    """The text, and the tasks of these names, each of the same shape and always the same.

    Raises UsageError for an unknown name, and where the text or the context is too short.
    """
    unknown = [name for name in names if name not in (TEXT, COPY, NEEDLE)]
    if unknown:
        raise UsageError(
            f"there is no task {unknown[0]!r}", hint=nearest(unknown[0], (TEXT, COPY, NEEDLE))
        )
    asked, random = [text(source.tokens, rows, context)], np.random.default_rng(SEED)
    if COPY in names:
        asked.append(copying(source, rows, context, (context + 1) // 2, random))
    for distance in DISTANCES if NEEDLE in names else ():
        asked.append(needle(source, rows, context, distance, random))
    return tuple(asked)


def text(tokens: np.ndarray, rows: int, context: int) -> Task:
    """Rows spread evenly over the text; all their tokens are asked.

    Raises UsageError if the text is too short.
    """
    length = context + 1
    if len(tokens) < rows * length:
        raise UsageError(
            f"the text has {len(tokens)} tokens, {rows} rows of {length} take more",
            hint="name more --text, or a smaller --batch or --context",
        )
    starts = np.linspace(0, len(tokens) - length, rows, dtype=int)
    windows = tokens[starts[:, None] + np.arange(length)]
    return Task(TEXT, windows, np.ones((rows, context), bool))


def copying(
    source: Source, rows: int, context: int, period: int, random: np.random.Generator
) -> Task:
    """Passages of `period` tokens, over and over; all but the first are asked.

    The tokens are drawn from the text one by one, so that nothing but the passage tells the next
    one. Raises UsageError if the context is too short to repeat a passage.
    """
    if context <= period + CUE:
        raise UsageError(f"a context of {context} is too short to copy in")
    passages = random.choice(source.tokens, (rows, period))
    positions = np.arange(context + 1)
    asked = np.broadcast_to(positions[1:] >= period + CUE, (rows, context))
    return Task(COPY, passages[:, positions % period], asked)


def needle(
    source: Source,
    rows: int,
    context: int,
    distance: Fraction | float,
    random: np.random.Generator,
) -> Task:
    """Text with a line KEY=code that begins `distance` of the context before the end.

    There KEY= stands again, and the code is asked. Every row has a key, a code and a piece of the
    text of its own. Raises UsageError if the context is too short.
    """
    name = f"{NEEDLE} {distance}"
    rows_of_text = [_needle_row(source, name, context, distance, random) for _ in range(rows)]
    asked = np.zeros((rows, context), bool)
    for row, (_, answer) in zip(asked, rows_of_text):
        row[-answer:] = True
    return Task(name, np.stack([tokens for tokens, _ in rows_of_text]), asked)


def _needle_row(
    source: Source,
    name: str,
    context: int,
    distance: Fraction | float,
    random: np.random.Generator,
) -> tuple[np.ndarray, int]:
    """The context + 1 tokens of a row, and how many of them are the answer."""
    key = "".join(random.choice([*ascii_uppercase], KEY))
    answer = source.encode("".join(random.choice([*digits], CODE)))
    question = source.encode(f"\n{key}=")
    line = [*question, *answer, *source.encode("\n")]
    free = context + 1 - len(line) - len(question) - len(answer)
    behind = round((context + 1) * distance) - (context + 1 - free)
    if not 0 <= behind <= free < len(source.tokens):
        raise UsageError(f"a context of {context} is too short for {name}")
    start = random.integers(len(source.tokens) - free)
    hay = source.tokens[start : start + free]
    before = free - behind
    row = np.concatenate([hay[:before], line, hay[before:], question, answer])
    return row.astype(np.int32), len(answer)
