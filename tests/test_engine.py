"""The engine: every request gets the tokens that it would get alone, whatever runs beside it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.compiled.compilations import Compilations
from dialect.serving.policy import ServingError
from dialect.token_rows.decoder import PASSES
from dialect.token_rows.packing import TOKEN, Packed
from examples import gpt, llama, palm
from rewrite import Engine, Pipeline, trace
from tests import integer_cache

CONTEXT = 32
SIZES = {"max_context": CONTEXT, "rows": 4, "chunk": 8, "max_pages": 14}
PIPELINE = PASSES.format(page=4)


def decoder(model: ModuleType) -> tuple[Callable[..., Any], Any, Callable[..., Any]]:
    """A toy decoder of two layers: its step, parameters, init_cache(batch, context)."""
    config = replace(model.CONFIGS["toy"], layers=2)
    params = model.init_params(config, jax.random.key(1))
    return partial(model.decode_step, config), params, partial(model.init_cache, config)


@cache
def jitted(model: ModuleType) -> Any:
    step, params, init_cache = decoder(model)
    return jax.jit(step), params, init_cache(1, CONTEXT)


def alone(model: ModuleType, prompt: list[int], count: int) -> list[int]:
    """The greedy answer of the decoder itself to one prompt."""
    return greedy(*jitted(model), prompt, count)


def greedy(step: Any, params: Any, state: Any, prompt: list[int], count: int) -> list[int]:
    """The greedy answer of a step to one prompt."""
    state, tokens = jax.tree.map(jnp.asarray, state), list(prompt)
    for at in range(len(prompt) + count - 1):
        logits, state = step(params, state, jnp.asarray(tokens[at : at + 1], jnp.int32))
        if at + 1 >= len(prompt):
            tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def never_called(params: Any, cache: Any, tokens: Any) -> Any:
    raise AssertionError("called")


@pytest.fixture(scope="module", params=["cpu:1", "cpu:8"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    given = {"pipeline": PIPELINE, "prefill": never_called, **SIZES}
    with Engine(*decoder(llama), request.param, **given) as engine:
        yield engine


def drawn(seed: int, count: int) -> list[list[int]]:
    """Prompts of 1 to 20 tokens, of which half begin alike."""
    chance = random.Random(seed)
    shared = [chance.randrange(256) for _ in range(12)]
    prompts = [
        shared[: chance.choice((0, 8, 12))] + [chance.randrange(256) for _ in range(size)]
        for size in (chance.randint(1, 8) for _ in range(count))
    ]
    return [*prompts, shared[:8], shared[:8]]


def idle(engine: Engine) -> bool:
    """Whether no request has a page, once what is queued has run."""
    time.sleep(0.1)
    engine.check()
    (group,) = engine.driver.scheduler.groups
    return group.available == engine.built.sizes.pages


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_request_gets_its_own_tokens(engine: Engine, seed: int) -> None:
    prompts = drawn(seed, 14)
    wanted = [alone(llama, prompt, 10) for prompt in prompts]
    before = Compilations()
    assert engine.generate(prompts, max_new_tokens=10) == wanted
    assert before.count == 0
    assert idle(engine)


def test_pages_were_lost_shared_and_copied_on_the_way(engine: Engine) -> None:
    engine.generate(drawn(3, 14), max_new_tokens=10)
    (group,) = engine.driver.scheduler.groups
    assert group.preemptions > 0 and group.cached_pages > 0
    assert f"{engine.built.executables.count} executables" in engine.explain()
    assert engine.built.executables.count == 4


@pytest.mark.parametrize("model", [palm, gpt])
def test_other_decoders(model: ModuleType) -> None:
    with Engine(*decoder(model), "cpu:1", pipeline=PIPELINE, **SIZES) as engine:
        prompts = drawn(5, 6)
        assert engine.generate(prompts, max_new_tokens=6) == [
            alone(model, prompt, 6) for prompt in prompts
        ]


@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_a_cache_of_integers_is_served(mesh: str) -> None:
    """Requests get the tokens of the same quantised step, alone."""
    step, params, init_cache = decoder(llama)
    state, quantize = init_cache(1, CONTEXT), "quantize{weights=int8, cache=int8}"
    traced = trace(step, params, state, jnp.zeros(1, jnp.int32))
    first = f"normalize, recognize, roll, carry_cache, {quantize}"
    quantized = jax.jit(Pipeline.parse(first).run(traced))
    prompts = drawn(7, 8)
    wanted = [greedy(quantized, params, state, prompt, 6) for prompt in prompts]
    assert wanted != [alone(llama, prompt, 6) for prompt in prompts]
    pipeline = PIPELINE.replace("pad", f"{quantize}, pad")
    with Engine(step, params, init_cache, mesh, pipeline=pipeline, **SIZES) as engine:
        assert engine.generate(prompts, max_new_tokens=6) == wanted
        engine.check()
        kept = [leaf.dtype.name for leaf in engine.built.executables.pool_types]
    assert kept == ["int8", "bfloat16"] * 2


def test_integers_that_a_decoder_keeps_itself_are_served() -> None:
    step, init_cache = integer_cache.decode_step, integer_cache.init_cache
    params = integer_cache.init_params(jax.random.key(0))
    prompts = [[token % 64 for token in prompt] for prompt in drawn(8, 6)]
    one, state = jax.jit(step), init_cache(1, CONTEXT)
    with Engine(step, params, init_cache, "cpu:1", pipeline=PIPELINE, **SIZES) as engine:
        answers = engine.generate(prompts, max_new_tokens=6)
    assert answers == [greedy(one, params, state, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("mesh", ["cpu:1", "cpu:8"])
def test_tokens_of_prompts_read_their_pages_together(mesh: str) -> None:
    """A step of 4 rows that are alone and 2 groups of 16 gives every request its own tokens."""
    sizes = SIZES | {"chunk": 32, "max_pages": 24}
    with Engine(*decoder(llama), mesh, pipeline=PIPELINE, **sizes) as engine:
        executables, ran = engine.built.executables, list[Any]()
        run = executables.run
        executables.run = lambda params, step: (ran.append(step.shape), run(params, step))[1]
        prompts = drawn(9, 12)
        wanted = [alone(llama, prompt, 8) for prompt in prompts]
        assert engine.generate(prompts, max_new_tokens=8) == wanted
        engine.check()
        assert "steps of 4, 4 + 2 groups of 16 rows, and two" in engine.explain()
    assert executables.shapes == [((4, 1),), ((4, 1), (2, 16))]
    assert executables.shapes[-1] in ran and executables.count == 4


def test_a_step_is_queued_before_the_one_before_it_is_read(engine: Engine) -> None:
    """So that the machine does not wait for the host."""
    executables, seen = engine.built.executables, list[str]()
    run = executables.run

    class Watched:
        def __init__(self, results: Any) -> None:
            self.results = results

        def __array__(self, *how: Any, **more: Any) -> np.ndarray:
            seen.append("read")
            return np.asarray(self.results)

    def queued(params: Any, step: Packed) -> Any:
        seen.append("queued")
        return Watched(run(params, step))

    executables.run = queued
    try:
        answer = engine.generate([[1, 2, 3]], max_new_tokens=6)
    finally:
        executables.run = run
    assert answer == [alone(llama, [1, 2, 3], 6)]
    assert seen == ["queued", *["queued", "read"] * 5, "read"]


def test_tokens_stream_and_a_reader_who_leaves_frees_the_pages(engine: Engine) -> None:
    prompt = drawn(6, 1)[0]

    async def three() -> list[int]:
        tokens = []
        async for token in engine.submit(prompt, max_new_tokens=12):
            tokens.append(token)
            if len(tokens) == 3:
                break
        return tokens

    async def all_() -> list[int]:
        return [token async for token in engine.submit(prompt, max_new_tokens=12)]

    async def both() -> list[list[int]]:
        return list(await asyncio.gather(three(), all_()))

    wanted = alone(llama, prompt, 12)
    assert asyncio.run(both()) == [wanted[:3], wanted]
    assert idle(engine)


def test_cancelled_while_it_waits(engine: Engine) -> None:
    answers = [engine.submit([at], max_new_tokens=20) for at in range(20)]
    for answer in answers[::2]:
        answer.cancel()
    assert [answer.numbers() for answer in answers[1::2]] == [
        alone(llama, [at], 20) for at in range(1, 20, 2)
    ]
    assert {answer.why for answer in answers[::2]} <= {"cancelled", "length"}
    assert idle(engine)


def test_a_request_ends_behind_a_stop_token(engine: Engine) -> None:
    wanted = alone(llama, [7, 8], 12)
    answer = engine.submit([7, 8], max_new_tokens=12, stop=[wanted[4]])
    assert answer.numbers() == wanted[: wanted.index(wanted[4]) + 1]
    assert answer.why == "stop"


def test_noise_follows_from_the_seed_alone(engine: Engine) -> None:
    def answer(seed: int, beside: int) -> list[int]:
        others = [engine.submit([at], max_new_tokens=9) for at in range(beside)]
        asked = engine.submit([5], max_new_tokens=9, temperature=2.0, top_p=0.9, seed=seed)
        tokens = asked.numbers()
        for other in others:
            assert other.numbers() == alone(llama, [other.request.tokens[0]], 9)
        return tokens

    assert answer(1, 0) == answer(1, 5) != answer(2, 0)


def test_log_probabilities(engine: Engine) -> None:
    (token,) = (answer := engine.submit([5, 6, 7], max_new_tokens=1, logprobs=True)).numbers()
    told = answer.tokens[0]
    step, params, state = jitted(llama)
    for number in (5, 6, 7):
        logits, state = step(params, state, jnp.asarray([number], jnp.int32))
    wanted = jax.nn.log_softmax(logits[0])
    assert told.likely[0] == (token, told.logprob)
    numbers, logprobs = zip(*told.likely)
    np.testing.assert_allclose(logprobs, wanted[np.asarray(numbers)], atol=1e-4)
    assert list(numbers) == jax.lax.top_k(wanted, 5)[1].tolist()


@pytest.mark.parametrize("loses", [False, True])
def test_a_step_that_raises_fails_one_request(engine: Engine, loses: bool) -> None:
    """`loses`: the pools with it, as a failing device would."""
    executables, broken, good = engine.built.executables, [1, 99, 3], [[1, 2], [4, 5, 6], [9] * 17]
    run = executables.run

    def raising(params: Any, step: Packed) -> Any:
        if 99 in step.rows[:, TOKEN]:
            if loses:
                for pool in executables.pools:
                    pool.delete()
            raise RuntimeError("no 99 here")
        return run(params, step)

    wanted = [alone(llama, prompt, 8) for prompt in good]
    executables.run = raising
    try:
        answers = [engine.submit(prompt, max_new_tokens=8) for prompt in [*good[:2], broken]]
        answers.append(engine.submit(good[2], max_new_tokens=8))
        with pytest.raises(ServingError, match="failed: RuntimeError: no 99 here"):
            answers.pop(2).numbers()
        assert [answer.numbers() for answer in answers] == wanted
    finally:
        executables.run = run
    assert idle(engine)


def test_what_fails_though_no_request_is_to_blame_is_told(engine: Engine) -> None:
    executables = engine.built.executables
    run, calls = executables.run, []

    def raising(params: Any, step: Packed) -> Any:
        calls.append(step)
        if (step.rows[:, TOKEN] > 0).sum() > 1:
            raise RuntimeError("the machine is tired")
        return run(params, step)

    executables.run = raising
    try:
        answers = [engine.submit([at], max_new_tokens=3) for at in (1, 2)]
        for answer in answers:
            answer.ended.wait()
    finally:
        executables.run = run
    assert {answer.why for answer in answers} <= {
        "length",
        "failed: RuntimeError: the machine is tired",
    }
    assert engine.generate([[3]], max_new_tokens=3) == [alone(llama, [3], 3)]
    assert idle(engine)


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([256], {}, "there is no token 256: the decoder has 256"),
        ([-1], {}, "there is no token -1"),
        ([1] * 30, {"max_new_tokens": 3}, "30 and 3 new ones are more tokens than the 32"),
        ([1], {"temperature": -1.0}, "temperature is -1.0, and must be 0 or more"),
        ([1], {"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    engine: Engine, prompt: list[int], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ServingError, match=said):
        engine.submit(prompt, **{"max_new_tokens": 2} | options)


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(ServingError, match="a request needs a prompt"):
        engine.generate([[]], max_new_tokens=3)


def test_state_that_is_neither_paged_nor_counted_is_refused() -> None:
    step, params, init_cache = decoder(llama)

    def remembers(params: Any, state: Any, tokens: Any) -> Any:
        logits, cache = step(params, state["cache"], tokens)
        return logits, {"cache": cache, "sum": state["sum"] + tokens}

    def init(batch: int, length: int) -> Any:
        return {"cache": init_cache(batch, length), "sum": jnp.zeros(batch, jnp.int32)}

    with pytest.raises(ServingError, match="sum does not lie in pages"):
        Engine(remembers, params, init, "cpu:1", pipeline=PIPELINE, **SIZES)


def test_options_that_do_not_exist_are_named() -> None:
    with pytest.raises(ServingError, match="an engine has no option 'victims'"):
        Engine(*decoder(llama), "cpu:1", pipeline=PIPELINE, **SIZES, victims="last")
    with pytest.raises(ServingError, match="no victim policy 'lasts'"):
        Engine(*decoder(llama), "cpu:1", pipeline=PIPELINE, **SIZES, victim="lasts")
    with pytest.raises(ServingError, match="the pipeline lacks paged"):
        Engine(*decoder(llama), "cpu:1", pipeline="normalize, plan, shard, stage, lower", **SIZES)


def test_a_prefill_is_declined_with_the_reason(engine: Engine) -> None:
    assert engine.generate([[1, 2, 3]], max_new_tokens=4) == [alone(llama, [1, 2, 3], 4)]
    assert "prefill is not called: a prompt is computed by the step" in engine.explain()


def test_a_closed_engine_cancels_and_refuses() -> None:
    engine = Engine(*decoder(llama), "cpu:1", pipeline=PIPELINE, **SIZES)
    answer = engine.submit([1], max_new_tokens=30)
    engine.close()
    assert answer.ended.is_set() and answer.why in ("cancelled", "length")
    with pytest.raises(ServingError, match="the engine is closed"):
        engine.submit([1], max_new_tokens=1)


def test_many_more_requests_than_may_wait() -> None:
    """All are told how they ended, and no page is lost."""
    with Engine(*decoder(llama), "cpu:1", pipeline=PIPELINE, **SIZES, most_waiting=20) as engine:
        answers = [engine.submit([at % 256], max_new_tokens=2) for at in range(10_000)]
        for answer in answers:
            assert answer.ended.wait(60)
        served = [answer for answer in answers if answer.why == "length"]
        assert {answer.why for answer in answers} == {
            "length",
            "refused: 20 requests are waiting",
        }
        for answer in served[::100]:
            assert answer.numbers() == alone(llama, list(answer.request.tokens[:1]), 2)
        assert idle(engine)
