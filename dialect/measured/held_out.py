"""Held-out text, cut into rows of tokens and these into steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dialect.user.usercode import Trained, UsageError
from rewrite.ir import Type


@dataclass(frozen=True)
class Rows:
    """Pieces of a text, i32[rows, context + 1]: all but the first token of each are predicted."""

    tokens: np.ndarray
    bytes_per_token: float

    @staticmethod
    def of(trained: Trained, vocab: int) -> Rows:
        """As many as the batch, evenly spread over the text, each as long as the context.

        Raises UsageError where the text has not as many, or tokens that the vocabulary has not.
        """
        count, length = trained.sizes.batch, trained.sizes.context + 1
        if trained.encode is None and vocab != 256:
            hint = "write encode(text), which returns the numbers of the tokens of bytes"
            raise UsageError(f"bytes are no tokens of a vocabulary of {vocab}", hint=hint)
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
        """(tokens, targets): i32[steps, batch] or [steps, batch, new], and what each step predicts.

        `taken` and `given` are the types of the tokens and the logits of one step. The targets,
        i32[steps, batch, predictions], follow each of its tokens, or only the last where it gives
        no logits of the others. Raises UsageError where the context is no whole number of steps.
        """
        new = taken.shape[1] if taken.rank > 1 else 1
        batch, context = self.tokens.shape[0], self.tokens.shape[1] - 1
        if context % new:
            raise UsageError(
                f"a context of {context} is no whole number of steps of {new} tokens",
                hint="choose another --tokens or --context",
            )

        def cut(tokens: np.ndarray) -> np.ndarray:
            return tokens.reshape(batch, context // new, new).swapaxes(0, 1)

        targets = cut(self.tokens[:, 1:])
        targets = targets if given.rank == 3 else targets[:, :, -1:]
        return cut(self.tokens[:, :-1]).reshape(-1, *taken.shape), targets
