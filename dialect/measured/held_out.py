"""Held-out text as rows of tokens, and the rows as steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dialect.user.usercode import Trained, UsageError
from rewrite.ir import Type


@dataclass(frozen=True)
class Rows:
    """Rows of a text, i32[rows, context + 1]; all tokens but the first of a row are predicted."""

    tokens: np.ndarray
    bytes_per_token: float

    @staticmethod
    def of(trained: Trained, vocab: int) -> Rows:
        """`batch` rows of `context` + 1 tokens, spread evenly over the text.

        Raises UsageError if the text is too short, or has tokens outside of the vocabulary.
        """
        count, length = trained.sizes.batch, trained.sizes.context + 1
        if trained.encode is None and vocab != 256:
            hint = "write encode(text), which returns the numbers of the tokens of bytes"
            raise UsageError(f"bytes are not tokens of a vocabulary of {vocab}", hint=hint)
        encoded = trained.text if trained.encode is None else trained.encode(trained.text)
        tokens = np.asarray(list(encoded), np.int32)
        if len(tokens) < count * length:
            raise UsageError(
                f"the text has {len(tokens)} tokens, {count} rows of {length} take more",
                hint="name more --text, or a smaller --batch or --context",
            )
        unknown = tokens[(tokens < 0) | (tokens >= vocab)]
        if unknown.size:
            raise UsageError(f"the text has a token {unknown[0]}, the vocabulary only {vocab}")
        starts = np.linspace(0, len(tokens) - length, count, dtype=int)
        return Rows(tokens[starts[:, None] + np.arange(length)], len(trained.text) / len(tokens))

    def steps(self, taken: Type, given: Type) -> tuple[np.ndarray, np.ndarray]:
        """(tokens i32[steps, batch] or [.., new], targets i32[steps, batch, predictions]).

        `taken` and `given` are the types of the tokens and the logits of one step. The targets are
        the next tokens of all tokens of a step, or of the last if the step returns only its logits.
        Raises UsageError if the context is not a multiple of the tokens per step.
        """
        new = taken.shape[1] if taken.rank > 1 else 1
        batch, context = self.tokens.shape[0], self.tokens.shape[1] - 1
        if context % new:
            raise UsageError(
                f"a context of {context} is not a multiple of {new} tokens per step",
                hint="choose another --tokens or --context",
            )

        def cut(tokens: np.ndarray) -> np.ndarray:
            return tokens.reshape(batch, context // new, new).swapaxes(0, 1)

        targets = cut(self.tokens[:, 1:])
        targets = targets if given.rank == 3 else targets[:, :, -1:]
        return cut(self.tokens[:, :-1]).reshape(-1, *taken.shape), targets
