"""How large an engine's steps are, by the plan, and how its pages are divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import pytest

from dialect.engine.sizes import Sizes
from dialect.engine.states import States
from dialect.engine.step_seconds import step_seconds
from dialect.engine.token_rows import PASSES, Decoder
from dialect.serving.policy import ServingError
from dialect.serving.shapes import Shape
from dialect.serving.shapes import rows_alone as rows
from examples import llama
from rewrite import Engine, Pipeline
from rewrite.target import Target
from tests.test_engine import CONTEXT, PIPELINE, alone, decoder, drawn

GROUPS = PIPELINE.replace("page=4", "page=4, groups=true").replace(
    "plan,", "plan{attention=batch},"
)


@pytest.mark.parametrize("drafts", [{}, {"draft": "self", "draft_length": 2}], ids=["", "self"])
def test_chips_that_own_rows_have_the_pages_of_their_requests(drafts: dict[str, Any]) -> None:
    """8 groups of 10 pages, each for two requests of up to 8; requests go where their prefix is."""
    sizes = {"max_context": CONTEXT, "rows": 16, "chunk": 48, "max_pages": 85}
    with Engine(*decoder(llama), "cpu:8", pipeline=GROUPS, **sizes, **drafts) as engine:
        assert (engine.policy.groups, engine.policy.pages, engine.policy.rows) == (8, 10, 2)
        prompts = drawn(8, 30)
        assert engine.generate(prompts, max_new_tokens=10) == [
            alone(llama, prompt, 10) for prompt in prompts
        ]
        engine.check()
        groups = engine.driver.scheduler.groups
        assert all(group.prompt_pages for group in groups)
        assert all(group.available == 10 for group in groups)
        assert sum(group.cached_pages for group in groups) > 0
        long = [3, 1, 4, 1, 5, 9, 2, 6, 5]
        first, second = (engine.submit(long, max_new_tokens=2) for _ in range(2))
        assert first.numbers() == second.numbers() == alone(llama, long, 2)
        third = engine.submit([*long, 8], max_new_tokens=2)
        assert third.numbers() == alone(llama, [*long, 8], 2)
        assert third.request.cached == 8
        assert "8 groups of chips have pages of their own" in engine.explain()


def test_a_group_must_have_room_for_the_context() -> None:
    sizes = {"max_context": CONTEXT, "rows": 8, "chunk": 8, "max_pages": 60}
    with pytest.raises(ServingError, match="7 pages of 4 tokens are too few for a request of 32"):
        Engine(*decoder(llama), "cpu:8", pipeline=GROUPS, **sizes)


def sized(seconds: Callable[[int], float] | None, **asked: int) -> tuple[int, int]:
    """(rows, chunk), where memory is large."""
    sizes = Sizes.of(16, lambda context: 1e9, lambda: seconds, **{"context": 1024} | asked)
    return sizes.rows, sizes.chunk


def test_rows_and_chunk_follow_from_what_steps_take() -> None:
    assert sized(None) == (16, 64)
    assert sized(lambda rows: 1.0 + rows / 100) == (128, 256)  # 1.64 s less than 1.5 * 1.32 s
    assert sized(lambda rows: 1.0 + rows / 10) == (16, 32)  # 4.2 s is more than 1.5 * 2.6 s
    assert sized(lambda rows: 1.0 if rows <= 64 else math.inf) == (64, 64)  # no more fit
    assert sized(lambda rows: 1.0) == (256, 1024)
    assert sized(lambda rows: 1.0, rows=8) == (8, 32)
    assert sized(lambda rows: 1.0, chunk=300) == (256, 300)
    given = {"rows": 8, "chunk": 9}
    assert Sizes.of(16, lambda _: 1e9, pytest.fail, context=64, **given).chunk == 9


def shapes(chunk: int, steps: int = 5, **how: Any) -> list[Shape]:
    """Of an engine for 16 requests."""
    sizes = Sizes.of(16, lambda _: 1e9, pytest.fail, 64, 16, chunk, steps=steps, **how)
    return sizes.shapes


def test_prompts_and_drafts_have_groups_where_pages_are_read_together() -> None:
    assert shapes(64) == [*map(rows, (2, 4, 16, 64))]
    assert shapes(64, drafts=3) == [*map(rows, (2, 4, 16, 64))]
    assert shapes(64, together=True) == [*map(rows, (2, 4, 16)), ((16, 1), (4, 16))]
    verified = [((16, 4),), ((16, 1), (4, 16))]
    assert shapes(64, together=True, drafts=3) == [*map(rows, (2, 4, 16)), *verified]
    assert shapes(64, 4, together=True, drafts=3) == [*map(rows, (4, 16)), *verified]
    assert shapes(20, together=True) == [*map(rows, (2, 4, 16, 20))]  # too few for a group
    assert shapes(16) == [*map(rows, (2, 4, 16))]


def test_what_steps_take_follows_from_the_plan() -> None:
    """Llama-3-8B on 8 chips: a step reads 2 GB of weights on each at 0.82 GB/ms."""
    config = llama.CONFIGS["8b"]
    step, init_cache = partial(llama.decode_step, config), partial(llama.init_cache, config)
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    target = Target("v5e:2x4", (("x", 2), ("y", 4)))
    sized = partial(init_cache, context=2048)
    states = States.of(step, params, partial(sized, 1), 2048)
    passes = Pipeline.parse(PASSES.format(page=128)).passes()
    program = Decoder(step, sized, params, states).before_plan(2, passes, target)
    seconds = step_seconds(program, target, 2048)
    assert seconds is not None and 2e-3 < seconds(2) < seconds(64) < seconds(128) < 16e-3
    assert seconds(1 << 12) == math.inf
    assert step_seconds(program, Target("cpu:8", (("x", 8),)), 2048) is None
