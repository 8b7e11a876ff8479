"""The accuracy of logits on a text, and their distance from the original's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """Metrics over all predictions that are asked for.

    - right: fraction of predictions whose most likely token is the one in the text
    - bits_per_byte: cross entropy of the text;  kl_nats_per_byte: KL(original || these logits)
    - agreement: fraction of predictions with the same most likely token as the original
    """

    right: float
    bits_per_byte: float
    agreement: float
    kl_nats_per_byte: float


def accuracy(
    logits: np.ndarray, original: np.ndarray, targets: np.ndarray, bytes_per_token: float
) -> Accuracy:
    """Compares two f32[steps, batch, predictions, vocab], for targets i32[steps, batch,
    predictions], which are -1 where nothing is asked for.

    Computed in f64, step by step.
    """
    nats = kl_nats = right = same = 0.0
    for step, target in enumerate(targets):
        asked = target >= 0
        these, those, target = logits[step][asked], original[step][asked], target[asked]
        log_q, log_p = _log_softmax(these), _log_softmax(those)
        nats -= np.take_along_axis(log_q, target[..., None], -1).sum()
        possible = log_p > -np.inf  # masked-out tokens contribute 0
        kl_nats += np.sum(np.exp(log_p[possible]) * (log_p[possible] - log_q[possible]))
        right += np.sum(these.argmax(-1) == target)
        same += np.sum(these.argmax(-1) == those.argmax(-1))
    predictions = np.sum(targets >= 0)
    covered_bytes = predictions * bytes_per_token
    return Accuracy(
        right=float(right / predictions),
        bits_per_byte=float(nats / math.log(2) / covered_bytes),
        agreement=float(same / predictions),
        kl_nats_per_byte=float(kl_nats / covered_bytes),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
