"""Which drafted tokens stand, and the token behind them: speculative decoding.

A step verifies several drafted tokens at once. Drafts are accepted from the first on, with such
probabilities, and the next token is drawn from such a distribution, that all tokens are drawn from
the decoder's (Leviathan et al. 2023, algorithm 1 and appendix A.1). Rows that take the most
probable token accept a draft if it is that, so they get the tokens that they get one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dialect.tokens.choice import Chosen, Sampling, allowed_logits, keys_of, log_probabilities


class Accepted(NamedTuple):
    """What a row gets from a step that verified drafts: the first `count` of its tokens."""

    chosen: Chosen  # tokens: i32[rows, drafts + 1], -1 beyond the last
    count: jax.Array  # i32[rows], one more than the drafts that were accepted


def accept(
    logits: jax.Array,
    drafts: jax.Array,
    sampling: Sampling,
    lengths: jax.Array | None = None,
    probabilities: jax.Array | None = None,
    top: int | None = None,
) -> Accepted:
    """The drafts that stand, and one token more.

    - logits: [rows, drafts + 1, vocabulary], behind the token before the drafts, and behind each.
    - drafts: i32[rows, drafts]; lengths: i32[rows], how many of them a row has, all by default.
    - sampling: as for single tokens; `seen` is what was before the drafts, and they are added. Its
      `draw` numbers the first token: the next step begins at `draw + count`.
    - probabilities: f32[rows, drafts, vocabulary], of the distributions that drafts were drawn
      from; without them drafts are certain, as those looked up in the prompt are.
    """
    rows, count = drafts.shape
    target = _probabilities(logits, _with_seen(sampling, drafts), sampling)
    lengths = jnp.full(rows, count) if lengths is None else lengths
    keys = _keys(sampling, rows, count + 1)
    of_draft = _at(target[:, :count], drafts)
    drawn_with = 1.0 if probabilities is None else _at(probabilities, drafts)
    chances = jax.vmap(jax.vmap(jax.random.uniform))(keys[:, :count, 0])
    stands = (chances * drawn_with < of_draft) & (jnp.arange(count) < lengths[:, None])
    accepted = jnp.cumprod(stands, axis=1).sum(axis=1)
    left = _left(target, drafts, probabilities, accepted, accepted < lengths)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, left.shape[1:]))(
        jnp.take_along_axis(keys[:, :, 1], accepted[:, None], axis=1)[:, 0]
    )
    last = jnp.argmax(jnp.log(left) + noise, axis=-1).astype(jnp.int32)
    places = jnp.arange(count + 1)
    tokens = jnp.where(places < accepted[:, None], jnp.pad(drafts, ((0, 0), (0, 1))), -1)
    tokens = jnp.where(places == accepted[:, None], last[:, None], tokens)
    return Accepted(log_probabilities(logits, tokens, top), accepted + 1)


def _probabilities(logits: jax.Array, given: Sampling, sampling: Sampling) -> jax.Array:
    """Of the tokens that may be drawn; 1 for the most probable one of rows that take it."""
    allowed = allowed_logits(logits, given)
    best = jnp.argmax(allowed, axis=-1)[..., None] == jnp.arange(allowed.shape[-1])
    if sampling.key is None:
        return best.astype(jnp.float32)
    drawn = jax.nn.softmax(allowed, axis=-1)
    if sampling.temperature is None:
        return drawn
    return jnp.where(sampling.temperature[:, None, None] > 0, drawn, best)


def _with_seen(sampling: Sampling, drafts: jax.Array) -> Sampling:
    """Behind a draft it and those before it were seen too."""
    if sampling.seen is None:
        return sampling
    vocabulary = jnp.arange(sampling.seen.shape[-1])
    drafted = jnp.pad(drafts, ((0, 0), (1, 0)), constant_values=-1)[..., None] == vocabulary
    before = jax.lax.cummax(drafted.astype(jnp.int8), axis=1) > 0
    return sampling._replace(seen=before | sampling.seen[:, None])


def _keys(sampling: Sampling, rows: int, count: int) -> jax.Array:
    """Two keys for every position: [rows, count, 2]."""
    if sampling.key is None:  # their draws change nothing
        sampling = sampling._replace(key=jax.random.split(jax.random.key(0), rows))
    return jax.vmap(jax.vmap(jax.random.split))(keys_of(sampling, (rows, count)))


def _at(array: jax.Array, tokens: jax.Array) -> jax.Array:
    """What an array over the vocabulary holds for a token."""
    return jnp.take_along_axis(array, tokens[..., None], axis=-1)[..., 0]


def _left(
    target: jax.Array,
    drafts: jax.Array,
    probabilities: jax.Array | None,
    accepted: jax.Array,
    is_refused: jax.Array,
) -> jax.Array:
    """What the next token is drawn from, not normalised: [rows, vocabulary].

    Where a draft was refused, what it had too little of: max(0, p - q).
    """
    wanted = jnp.take_along_axis(target, accepted[:, None, None], axis=1)[:, 0]
    at = jnp.minimum(accepted, drafts.shape[1] - 1)[:, None]
    if probabilities is None:
        refused = jnp.take_along_axis(drafts, at, axis=1) == jnp.arange(wanted.shape[-1])
        had = refused.astype(jnp.float32)
    else:
        had = jnp.take_along_axis(probabilities, at[..., None], axis=1)[:, 0]
    lacking = jnp.where(is_refused[:, None], jnp.maximum(wanted - had, 0), wanted)
    return jnp.where((lacking > 0).any(axis=-1, keepdims=True), lacking, wanted)  # but for rounding
