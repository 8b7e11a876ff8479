"""The accuracy of logits on a text, and their distance from the original's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """Metrics over all predictions.

    - bits_per_byte: cross entropy of the text;  kl_nats_per_byte: KL(original || these logits)
    - agreement: fraction of predictions with the same most likely token as the original
    """

    bits_per_byte: float
    agreement: float
    kl_nats_per_byte: float


def accuracy(
    logits: np.ndarray, original: np.ndarray, targets: np.ndarray, bytes_per_token: float
) -> Accuracy:
    """Compares two f32[steps, batch, predictions, vocab], for targets i32[steps, batch,
    predictions].

    Computed in f64, step by step.
    """
    nats = kl_nats = same = 0.0
    for these, those, target in zip(logits, original, targets):
        log_q, log_p = _log_softmax(these), _log_softmax(those)
        nats -= np.take_along_axis(log_q, target[..., None], -1).sum()
        possible = log_p > -np.inf  # masked-out tokens contribute 0
        kl_nats += np.sum(np.exp(log_p[possible]) * (log_p[possible] - log_q[possible]))
        same += np.sum(these.argmax(-1) == those.argmax(-1))
    covered_bytes = targets.size * bytes_per_token
    return Accuracy(
        bits_per_byte=float(nats / math.log(2) / covered_bytes),
        agreement=float(same / targets.size),
        kl_nats_per_byte=float(kl_nats / covered_bytes),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
