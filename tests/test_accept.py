"""Drafts that are verified: the tokens are those that the decoder would have given one by one."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dialect.serving.drafts import PromptLookup
from dialect.tokens.choice import allowed_logits, choose
from examples.tiny import model
from rewrite import Sampling, accept, per_row
from tests.kit import assert_close

ROWS, VOCAB = 100_000, 6
RANDOM = np.random.default_rng(0)
TARGET, DRAFT = (jnp.asarray(RANDOM.normal(size=(VOCAB, VOCAB)) * 2, jnp.float32) for _ in "pq")
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "temperature": {"temperature": 0.7},
    "greedy": {"temperature": 0.0},
    "top_k": {"top_k": 3},
    "top_p, min_p": {"top_p": 0.8, "min_p": 0.1},
    "mask": {"mask": np.arange(VOCAB) != 2},
    "seen": {"seen": np.arange(VOCAB) == 0, "repetition_penalty": 3.0},
}


def options_of(name: str, keys: jax.Array) -> Sampling:
    """The options of a name for every row."""
    given = {what: np.asarray(value) for what, value in OPTIONS[name].items()}
    single = {np.dtype("float64"): jnp.float32, np.dtype("int64"): jnp.int32}
    arrays = {
        what: jnp.broadcast_to(jnp.asarray(value, single.get(value.dtype)), (ROWS, *value.shape))
        for what, value in given.items()
    }
    return Sampling(keys, jnp.zeros(ROWS, jnp.int32), **arrays)


def chain(table: jax.Array, sampling: Sampling, count: int) -> tuple[jax.Array, jax.Array]:
    """(tokens, their distributions) of a chain that begins behind token 0, drawn one by one."""
    tokens, given = [jnp.zeros(ROWS, jnp.int32)], []
    for number in range(count):
        sampling = sampling._replace(draw=jnp.full(ROWS, number))
        given.append(jax.nn.softmax(allowed_logits(table[tokens[-1]], sampling)))
        tokens.append(choose(table[tokens[-1]], sampling).tokens)
        if sampling.seen is not None:
            sampling = sampling._replace(
                seen=sampling.seen.at[jnp.arange(ROWS), tokens[-1]].set(True)
            )
    return jnp.stack(tokens[1:], axis=1), jnp.stack(given, axis=1)


@cache
def chains(name: str) -> tuple[Sampling, jax.Array, jax.Array, jax.Array]:
    """(the options of a name, two drafts of every row, their distributions, tokens without)."""
    keys = [jax.random.split(jax.random.key(seed), ROWS) for seed in range(3)]
    sampling = options_of(name, keys[0])
    drafts, given = chain(DRAFT, sampling._replace(key=keys[1]), 2)
    plain, _ = chain(TARGET, sampling._replace(key=keys[2]), 2)
    return sampling, drafts, given, plain


def finished(table: jax.Array, accepted: Any, sampling: Sampling) -> np.ndarray:
    """Two tokens of every row: those behind the accepted ones are drawn one by one."""
    first, second = accepted.chosen.tokens[:, 0], accepted.chosen.tokens[:, 1]
    if sampling.seen is not None:
        sampling = sampling._replace(seen=sampling.seen.at[jnp.arange(ROWS), first].set(True))
    drawn = choose(table[first], sampling._replace(draw=accepted.count)).tokens
    return np.asarray(first * VOCAB + jnp.where(accepted.count > 1, second, drawn))


@pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
@pytest.mark.parametrize("name", OPTIONS)
def test_accepted_tokens_are_of_the_targets_distribution(name: str, certain: bool) -> None:
    """Chi-square, of pairs of tokens: with drafts, and drawn one by one."""
    sampling, drafts, given, plain = chains(name)
    lengths = jnp.arange(ROWS) % 3
    before = jnp.pad(drafts, ((0, 0), (1, 0)))
    accepted = jax.jit(accept)(
        TARGET[before], drafts, sampling, lengths, None if certain else given
    )
    assert (accepted.count <= lengths + 1).all()
    ours = finished(TARGET, accepted, sampling)
    others = np.asarray(plain[:, 0] * VOCAB + plain[:, 1])
    counts = np.stack([np.bincount(each, minlength=VOCAB**2) for each in (ours, others)])
    counts = counts[:, counts.any(axis=0)]
    if name == "greedy":
        assert counts.shape == (2, 1)
    else:
        assert stats.chi2_contingency(counts).pvalue > 0.001


def test_as_many_drafts_stand_as_the_distributions_share() -> None:
    """Leviathan et al. 2023, theorem 3.5: the sum of min(p, q)."""
    keys = jax.random.split(jax.random.key(0), ROWS)
    sampling = options_of("all", keys)
    drafts, given = chain(
        DRAFT, sampling._replace(key=jax.random.split(jax.random.key(1), ROWS)), 1
    )
    logits = TARGET[jnp.pad(drafts, ((0, 0), (1, 0)))]
    stand = accept(logits, drafts, sampling, probabilities=given).count - 1
    share = jnp.minimum(jax.nn.softmax(TARGET[0]), jax.nn.softmax(DRAFT[0])).sum()
    assert abs(stand.mean() - share) < 0.01


def test_what_lies_behind_the_accepted_drafts_is_marked() -> None:
    logits = jnp.log(jnp.eye(4)[jnp.asarray([[1, 2, 3]])] + 1e-9)
    for drafts, tokens in (([1, 0], [1, 2, -1]), ([1, 2], [1, 2, 3]), ([0, 2], [1, -1, -1])):
        accepted = accept(logits, jnp.asarray([drafts]), Sampling(), top=1)
        assert accepted.chosen.tokens[0].tolist() == tokens
        assert accepted.count.tolist() == [3 - tokens.count(-1)]
        assert_close(accepted.chosen.top_log_probability[0], jnp.zeros((3, 1)), atol=1e-5)


def test_the_tiny_decoder_writes_with_drafts_what_it_writes_without() -> None:
    """The most probable tokens of 64 prompts; drafts are looked up in the text."""
    config, rows, length, new = model.CONFIGS["mha"], 64, 48, 16
    params, text = model.trained_params(config), np.frombuffer(model.held_out(), np.uint8)
    places = np.random.default_rng(0).integers(len(text) - length, size=rows)
    prompts = jnp.asarray(np.stack([text[at : at + length] for at in places]), jnp.int32)
    step = per_row(partial(model.prefill, config), partial(model.init_cache, config, context=96))
    run = jax.jit(partial(step, params))
    verify = jax.jit(lambda logits, drafts, lengths: accept(logits, drafts, Sampling(), lengths))
    logits, start = run(step.init(rows), prompts)
    wanted, cache = [jnp.argmax(logits[:, -1], axis=-1)], start
    for _ in range(new - 1):
        logits, cache = run(cache, wanted[-1][:, None].astype(jnp.int32))
        wanted.append(jnp.argmax(logits[:, 0], axis=-1))
    texts = [
        PromptLookup([*prompt.tolist(), int(each)]) for prompt, each in zip(prompts, wanted[0])
    ]
    cache, steps, done = start, 0, np.zeros(rows, bool)
    while not done.all():
        drafts = [each.draft(3) for each in texts]
        lengths = jnp.asarray(list(map(len, drafts)))
        given = np.asarray(
            [[each.tokens[-1], *(more + [0] * 3)[:3]] for each, more in zip(texts, drafts)]
        )
        position = jnp.asarray([len(each.tokens) - 1 for each in texts], jnp.int32)
        logits, cache = run(cache | {"position": position}, given.astype(np.int32))
        accepted = verify(logits, given[:, 1:], lengths)
        for row in np.flatnonzero(~done):
            texts[row].extend(accepted.chosen.tokens[row, : accepted.count[row]].tolist())
        steps += (~done).sum()
        done = np.asarray([len(each.tokens) >= length + new for each in texts])
    written = np.asarray([each.tokens[length : length + new] for each in texts])
    np.testing.assert_array_equal(written, np.stack(wanted, axis=1))
    assert steps < 0.8 * rows * (new - 1)
