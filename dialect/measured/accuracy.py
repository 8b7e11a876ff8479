"""How well logits predict a text, and how far they are from other logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """Of all predictions, beside those of the original.

    - bits_per_byte: the cross entropy of the text;  kl_nats_per_byte: KL(original || these)
    - agreement: the share of predictions whose most likely token is the original's
    """

    bits_per_byte: float
    agreement: float
    kl_nats_per_byte: float


def accuracy(
    logits: np.ndarray, original: np.ndarray, targets: np.ndarray, bytes_per_token: float
) -> Accuracy:
    """Of two f32[steps, batch, predictions, vocab] and the targets i32[steps, batch, predictions].

    Worked out in f64, so that what is the same reads so; one step at a time, to hold little.
    """
    nats = kl_nats = same = 0.0
    for own, other, target in zip(logits, original, targets):
        log_q, log_p = _log_softmax(own), _log_softmax(other)
        nats -= np.take_along_axis(log_q, target[..., None], -1).sum()
        possible = log_p > -np.inf  # what is masked out adds nothing
        kl_nats += np.sum(np.exp(log_p[possible]) * (log_p[possible] - log_q[possible]))
        same += np.sum(own.argmax(-1) == other.argmax(-1))
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
