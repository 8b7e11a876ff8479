"""Tokens drawn inside the step: from the distribution that was asked for, the same on any mesh."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dialect.compiled.compiling import Compilable, compiled
from dialect.compiled.executable import read
from dialect.tokens import thresholds
from dialect.tokens.choice import Chosen, choose
from examples import llama
from rewrite import Sampling, auto_shard, per_row, sampled, trace
from tests.kit import assert_close, shapes_of

DRAWS, VOCAB = 100_000, 24
LOGITS = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32) * 2
SEEN = np.arange(VOCAB) % 3 == 0
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "temperature": {"temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.5, "seen": SEEN},
    "mask": {"mask": ~SEEN},
    "together": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "mask": ~SEEN},
}


def plain(logits: np.ndarray, **options: Any) -> np.ndarray:
    """Logits of what is left, by sorting: as papers describe the options."""
    logits = logits.astype(np.float64)
    if "repetition_penalty" in options:
        penalty = options["repetition_penalty"]
        penalised = np.where(logits > 0, logits / penalty, logits * penalty)
        logits = np.where(options["seen"], penalised, logits)
    logits = np.where(options.get("mask", True), logits, -np.inf)
    logits = logits / options.get("temperature", 1.0)
    order = np.argsort(-logits)
    logits[order[options.get("top_k", VOCAB) :]] = -np.inf
    weights = np.exp(logits - logits.max())
    before = np.cumsum(weights[order]) - weights[order]
    logits[order[before >= options.get("top_p", 2.0) * weights.sum()]] = -np.inf
    logits[weights < options.get("min_p", 0.0)] = -np.inf
    return logits


def rows_of(options: dict[str, Any], rows: int) -> dict[str, jax.Array]:
    """The same options for every row."""
    arrays = {name: jnp.asarray(value) for name, value in options.items()}
    arrays = {
        name: value.astype(jnp.float32) if value.dtype == jnp.float64 else value
        for name, value in arrays.items()
    }
    return {name: jnp.broadcast_to(value, (rows, *value.shape)) for name, value in arrays.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_draws_are_those_of_the_distribution(name: str) -> None:
    """Chi-square, of two samples: ours, and one of JAX from the logits that are left."""
    left = jnp.asarray(plain(LOGITS, **OPTIONS[name]), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 2)
    sampling = Sampling(jax.random.split(keys[0], DRAWS), **rows_of(OPTIONS[name], DRAWS))
    tokens = jax.jit(choose)(jnp.broadcast_to(LOGITS, (DRAWS, VOCAB)), sampling).tokens
    others = jax.random.categorical(keys[1], left, shape=(DRAWS,))
    counts = np.stack([np.bincount(each, minlength=VOCAB) for each in (tokens, others)])
    assert not counts[:, np.isneginf(left)].any()
    assert stats.chi2_contingency(counts[:, counts.any(axis=0)]).pvalue > 0.001


def test_a_row_without_options_draws_what_jax_draws() -> None:
    logits = jax.random.normal(jax.random.key(0), (50, 300))
    keys = jax.random.split(jax.random.key(1), 50)
    wanted = jax.vmap(jax.random.categorical)(keys, logits)
    np.testing.assert_array_equal(choose(logits, Sampling(keys)).tokens, wanted)


def test_rows_take_the_most_probable_token_without_keys_or_at_temperature_zero() -> None:
    logits = jax.random.normal(jax.random.key(0), (50, 300))
    keys, cold = jax.random.split(jax.random.key(1), 50), jnp.arange(50) % 2 == 0
    wanted = jnp.argmax(logits, axis=-1)
    np.testing.assert_array_equal(choose(logits, Sampling()).tokens, wanted)
    sampling = Sampling(keys, temperature=jnp.where(cold, 0.0, 1.0))
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    wanted = jnp.where(cold, wanted, drawn)
    np.testing.assert_array_equal(choose(logits, sampling).tokens, wanted)


def test_positions_are_successive_draws() -> None:
    logits = jax.random.normal(jax.random.key(0), (4, 3, 50))
    keys, draw = jax.random.split(jax.random.key(1), 4), jnp.asarray([0, 5, 9, 2])
    at_once = choose(logits, Sampling(keys, draw)).tokens
    for position in range(3):
        alone = choose(logits[:, position], Sampling(keys, draw + position)).tokens
        np.testing.assert_array_equal(at_once[:, position], alone)


def test_log_probabilities_are_the_decoders() -> None:
    logits = jax.random.normal(jax.random.key(0), (6, 40))
    given = jax.nn.log_softmax(logits)
    mask = jnp.arange(40) % 2 == 0
    chosen = choose(logits, Sampling(mask=jnp.broadcast_to(mask, logits.shape)), top=3)
    best = jnp.argmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    np.testing.assert_array_equal(chosen.tokens, best)
    assert_close(chosen.log_probability, jnp.take_along_axis(given, best[:, None], 1)[:, 0])
    values, which = jax.lax.top_k(given, 3)
    np.testing.assert_array_equal(chosen.top_tokens, which)
    assert_close(chosen.top_log_probability, values)


def test_thresholds_are_logits() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(7, 1000)) * 9, jnp.float32)
    logits = logits.at[:, 5].set(-jnp.inf)
    ordered = np.sort(logits)[:, ::-1]
    counts = np.asarray([1, 2, 10, 999, 1000, 0, 5000])
    least = thresholds.of_most_probable(logits, jnp.asarray(counts))
    wanted = [ordered[row, n - 1] if 0 < n <= 1000 else -np.inf for row, n in enumerate(counts)]
    np.testing.assert_array_equal(least, np.asarray(wanted, np.float32))
    shares = np.asarray([0.0, 1e-9, 0.1, 0.5, 0.9, 0.99, 1.0], np.float32)
    least = thresholds.of_probability(logits, jnp.asarray(shares))
    sums = np.cumsum(np.exp(ordered - ordered[:, :1], dtype=np.float64), axis=1)
    place = [np.searchsorted(sums[row], share * sums[row, -1]) for row, share in enumerate(shares)]
    wanted = [*(ordered[row, at] for row, at in enumerate(place[:-1])), -np.inf]
    np.testing.assert_array_equal(least, np.asarray(wanted, np.float32))


def every_option(rows: int, vocab: int) -> Sampling:
    """All options, of which some rows use some."""
    row = jnp.arange(rows)
    return Sampling(
        key=jax.random.split(jax.random.key(3), rows),
        draw=row * 7,
        temperature=jnp.where(row % 3, 1.5, 0.0),
        top_k=jnp.where(row % 2, 20, 0),
        top_p=jnp.where(row % 4, 0.95, 1.0).astype(jnp.float32),
        min_p=jnp.where(row % 5, 0.01, 0.0).astype(jnp.float32),
        seen=jnp.arange(vocab)[None] % (row[:, None] + 2) == 0,
        repetition_penalty=jnp.where(row % 2, 1.2, 1.0).astype(jnp.float32),
        mask=jnp.arange(vocab)[None] % (row[:, None] + 3) != 0,
    )


def toy(mesh: str, sampling: Sampling) -> list[Chosen]:
    """What four steps of eight rows choose."""
    config = llama.CONFIGS["toy"]
    rows = per_row(partial(llama.decode_step, config), partial(llama.init_cache, config, context=8))
    params, cache = llama.init_params(config, jax.random.key(0)), rows.init(8)
    step = auto_shard(sampled(rows, top=2), mesh)
    tokens, every = jnp.arange(8, dtype=jnp.int32), []
    packed, state = step.prepare(params, cache, tokens, sampling), step.adapt(cache)
    for _ in range(4):
        chosen, state = step(packed, state, tokens, sampling)
        tokens = chosen.tokens
        every.append(jax.tree.map(np.asarray, chosen))
    return every


def test_tokens_are_the_same_on_one_device_and_on_eight() -> None:
    sampling = every_option(8, llama.CONFIGS["toy"].vocab)
    for one, eight in zip(toy("cpu:1", sampling), toy("cpu:8", sampling), strict=True):
        np.testing.assert_array_equal(one.tokens, eight.tokens)
        assert_close(one, eight)


def test_a_step_keeps_the_names_of_its_arguments() -> None:
    def step(params: Any, cache: Any, tokens: jax.Array, shift: float = 0.0) -> Any:
        return params[tokens] + cache + shift, cache + 1

    program = trace(sampled(step), jnp.ones((9, 9)), jnp.float32(0), jnp.arange(3), 0.0, Sampling())
    assert [each.name for each in program.inputs] == ["params", "cache", "tokens", "shift"]
    assert [each.name for each in program.outputs] == ["0/tokens", "1"]


def test_a_split_vocabulary_is_not_gathered() -> None:
    """Beyond a few numbers for each row: partial maxima, and 15 sums of every digit."""
    config = replace(llama.CONFIGS["8b"], layers=2, d_model=1024, d_ff=2048)
    rows = per_row(
        partial(llama.decode_step, config), partial(llama.init_cache, config, context=2048)
    )
    params, _, tokens = shapes_of(llama, config, 64, 2048)
    cache = jax.eval_shape(lambda: rows.init(64))
    sampling = jax.eval_shape(partial(every_option, 64, config.vocab))
    step = auto_shard(sampled(rows, top=5), "v5e:2x4")
    program = step.program(params, cache, tokens, sampling)
    assert program.plan.split("logits") == {"vocab": ("x", "y")}
    report = read(compiled(Compilable(program, step.mesh))[0], step.mesh)
    of_decoder = ("/gather", "/dot_general")  # of embeddings, and partial sums
    of_logits = [each for each in report.collectives if not each.source.endswith(of_decoder)]
    assert {each.kind for each in of_logits} == {"all-gather", "all-reduce"}
    assert max(each.result_bytes for each in of_logits) == 64 * 15 * 4
    assert [each.kind for each in report.collectives if each.trip_count == 8] == ["all-reduce"]
