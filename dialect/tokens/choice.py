"""From logits to tokens: which may be chosen, and which is.

A vocabulary that is split over chips stays so: what is done to it is elementwise or a reduction,
and the noise of a token depends on its number and its row's key, so a row draws the same token on
every mesh.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dialect.tokens import thresholds


class Sampling(NamedTuple):
    """How every row chooses its token. What is None costs nothing.

    - key: random keys [rows]; without them every row takes its most probable token.
    - draw: i32[rows], the number of the draw, which makes a new key of the row's; the positions of
      a row that are drawn at once are successive draws.
    - temperature: f32[rows], which divides logits; 0 takes the most probable token.
    - top_k: i32[rows], the most probable tokens of which one is drawn; 0 for all.
    - top_p: f32[rows], the share of probability that the fewest tokens have of which one is drawn.
    - min_p: f32[rows], the least probability of a token, relative to that of the most probable one.
    - seen, repetition_penalty: bool[rows, vocabulary] and f32[rows]: logits of tokens that were
      seen are divided by it if positive, else multiplied (Keskar et al. 2019, section 4.1).
    - mask: bool[rows, vocabulary], the tokens that may be chosen.

    In this order: penalty, mask, temperature, top_k, top_p of what top_k left, min_p.
    """

    key: jax.Array | None = None
    draw: jax.Array | None = None
    temperature: jax.Array | None = None
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    seen: jax.Array | None = None
    repetition_penalty: jax.Array | None = None
    mask: jax.Array | None = None


class Chosen(NamedTuple):
    """Tokens, and log-probabilities where they were asked for.

    These are the decoder's: of its logits as they come, before anything was done to them.
    """

    tokens: jax.Array  # i32[rows, ..]
    log_probability: jax.Array | None = None  # f32[rows, ..] of these tokens
    top_tokens: jax.Array | None = None  # i32[rows, .., top] the most probable ones
    top_log_probability: jax.Array | None = None  # f32[rows, .., top]


def choose(logits: jax.Array, sampling: Sampling, top: int | None = None) -> Chosen:
    """The next token of every row; with `top`, log-probabilities of it and of the `top` largest.

    logits: [rows, vocabulary], or [rows, positions, vocabulary].
    """
    allowed = allowed_logits(logits, sampling)
    tokens = jnp.argmax(_with_noise(allowed, sampling), axis=-1).astype(jnp.int32)
    return log_probabilities(logits, tokens, top)


def log_probabilities(logits: jax.Array, tokens: jax.Array, top: int | None) -> Chosen:
    """These tokens, with what was asked for of the decoder's probabilities: see `choose`."""
    if top is None:
        return Chosen(tokens)
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    chosen = _at(logits, tokens) - total[..., 0]
    if not top:
        return Chosen(tokens, chosen)
    which, largest = _most_probable(logits, top)
    return Chosen(tokens, chosen, which, largest - total)


def _at(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The logit of a token, as a reduction: a vocabulary that is split is not gathered."""
    return jnp.where(_is(logits, tokens), logits, -jnp.inf).max(axis=-1)


def _is(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.arange(logits.shape[-1]) == tokens[..., None]


def _most_probable(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The numbers of the largest logits, i32[.., count], and these: the largest, again and again. A
    sort of the vocabulary takes a TPU's compiler longer than all else that chooses a token."""

    def next_one(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        first = jnp.argmax(left, axis=-1).astype(jnp.int32)
        return jnp.where(_is(left, first), -jnp.inf, left), (first, _at(logits, first))

    finite = jnp.maximum(logits, jnp.finfo(logits.dtype).min)  # -infinity is what was taken
    ordered = jax.lax.scan(next_one, finite, length=count)[1]
    which, largest = (jnp.moveaxis(each, 0, -1) for each in ordered)
    return which, largest


def allowed_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """f32 logits of the distribution that tokens are drawn from: -infinity for what is left out.

    Where the temperature is 0 they are those before it; the most probable token is never left out.
    """
    logits, axes = logits.astype(jnp.float32), logits.ndim - 1
    if sampling.seen is not None and sampling.repetition_penalty is not None:
        penalty = _per_row(sampling.repetition_penalty, axes)[..., None]
        penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(_per_position(sampling.seen, axes), penalised, logits)
    if sampling.mask is not None:
        logits = jnp.where(_per_position(sampling.mask, axes), logits, -jnp.inf)
    if sampling.temperature is not None:
        temperature = _per_row(sampling.temperature, axes)[..., None]
        logits = logits / jnp.where(temperature > 0, temperature, 1)
    if sampling.top_k is not None:
        count = jnp.broadcast_to(_per_row(sampling.top_k, axes), logits.shape[:-1])
        logits = _reaching(logits, thresholds.of_most_probable(logits, count))
    if sampling.top_p is not None:
        share = jnp.broadcast_to(_per_row(sampling.top_p, axes), logits.shape[:-1])
        logits = _reaching(logits, thresholds.of_probability(logits, share))
    if sampling.min_p is not None:
        least = jnp.log(_per_row(sampling.min_p, axes))
        logits = _reaching(logits, logits.max(axis=-1) + least)
    return logits


def keys_of(sampling: Sampling, axes: tuple[int, ...]) -> jax.Array:
    """The random key of every draw: [rows], or [rows, positions]."""
    key, draw = sampling.key, sampling.draw
    if len(axes) == 1 and draw is None:
        return key
    draw = jnp.zeros(axes[0], jnp.int32) if draw is None else draw
    if len(axes) == 1:
        return jax.vmap(jax.random.fold_in)(key, draw)
    numbers = draw[:, None] + jnp.arange(axes[1])
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(key, numbers)


def _with_noise(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits whose largest is a token drawn from them: plus Gumbel noise."""
    if sampling.key is None:
        return logits
    keys, (*axes, size) = keys_of(sampling, logits.shape[:-1]), logits.shape
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys.reshape(-1))
    noise = noise.reshape(*axes, size)
    if sampling.temperature is None:
        return logits + noise
    is_drawn = _per_row(sampling.temperature, len(axes))[..., None] > 0
    return jnp.where(is_drawn, logits + noise, logits)


def _reaching(logits: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.where(logits >= threshold[..., None], logits, -jnp.inf)


def _per_row(values: jax.Array, axes: int) -> jax.Array:
    """[rows] -> [rows, 1, ..] with so many axes."""
    return values.reshape(-1, *[1] * (axes - 1))


def _per_position(values: jax.Array, axes: int) -> jax.Array:
    """[rows, vocabulary], or of every position -> [rows, positions, vocabulary]."""
    return values if values.ndim > axes else jnp.expand_dims(values, tuple(range(1, axes)))
