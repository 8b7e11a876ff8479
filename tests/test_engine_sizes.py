"""How large an engine's steps are, by the plan, and how its pages are divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import pytest

from dialect.compiled.resolved import resolve
from dialect.engine import building
from dialect.engine.sizes import Sizes
from dialect.serving.policy import ServingError
from dialect.serving.shapes import Shape, rows_of
from dialect.serving.shapes import rows_alone as rows
from dialect.simulated.step_seconds import step_seconds
from dialect.token_rows.decoder import PASSES, Decoder
from dialect.token_rows.states import States
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


def sized(step_s: Callable[[int], float] | None, **asked: Any) -> tuple[int, int, int]:
    """(rows, chunk, drafts), where memory is large and a step takes what its rows say."""

    def seconds(rows: int, shape: Shape | None = None) -> float:
        return step_s(rows_of(shape) if shape else rows)

    how = {"context": 1024, "drafts": None} | asked
    sizes = Sizes.of(16, lambda rows: 1e9, lambda: seconds if step_s else None, **how)
    return sizes.rows, sizes.chunk, sizes.drafts


def test_rows_and_chunk_follow_from_what_steps_take() -> None:
    assert sized(None) == (16, 64, 3)
    assert sized(lambda rows: 1.0 + rows / 100)[:2] == (128, 256)  # 1.64 s less than 1.5 * 1.32 s
    assert sized(lambda rows: 1.0 + rows / 10)[:2] == (16, 32)  # 4.2 s is more than 1.5 * 2.6 s
    assert sized(lambda rows: 1.0 if rows <= 64 else math.inf)[:2] == (64, 64)  # no more fit
    assert sized(lambda rows: 1.0) == (256, 1024, 7)
    assert sized(lambda rows: 1.0, rows=8) == (8, 32, 7)
    assert sized(lambda rows: 1.0, chunk=300, drafts=2) == (256, 300, 2)
    given = {"rows": 8, "chunk": 9}
    assert Sizes.of(16, lambda _: 1e9, pytest.fail, context=64, **given).chunk == 9


def test_as_many_drafts_are_verified_together_as_pay() -> None:
    """Of 0, 1, 3, 7, of which 80 % stand: 1.8, 2.95 and 4.16 tokens for one."""
    assert sized(lambda rows: rows / 16, rows=16)[2] == 0
    assert sized(lambda rows: 0.5 + 0.5 * rows / 16, rows=16)[2] == 1  # 1.5 times as long
    assert sized(lambda rows: 0.85 + 0.15 * rows / 16, rows=16)[2] == 3  # 1.45, but 2.05
    assert sized(lambda rows: 0.95 + 0.05 * rows / 16, rows=16)[2] == 7


def test_a_chunk_is_priced_in_groups() -> None:
    """Rows that are alone take long: of groups more tokens are computed in twice the time."""

    def seconds(rows: int, shape: Any = None) -> float:
        return sum(groups * (1 + size / 100) for groups, size in shape or ((rows, 1),))

    chunks = [
        Sizes.of(16, lambda _: 1e9, lambda: seconds, 1024, 64, together=together).chunk
        for together in (False, True)
    ]
    assert chunks == [128, 256]


def test_room_is_that_of_caches_as_they_are_stored() -> None:
    """In f32, or in int8 with a scale in bf16 for every head."""
    step, params, init_cache = decoder(llama)
    sized = partial(init_cache, context=CONTEXT)
    states = States.of(step, params, partial(sized, 1), CONTEXT)
    served = Decoder(step, sized, params, states)
    mesh, target = resolve("cpu:1", None, Pipeline(()))

    def tokens(pipeline: str, beside: float = 0.0) -> float:
        passes = Pipeline.parse(pipeline).passes()
        return building._room(served, passes, target, mesh, CONTEXT, beside, 4)

    cache = init_cache(1, CONTEXT)
    floats = sum(leaf.nbytes for leaf in jax.tree.leaves(cache) if leaf.ndim) / CONTEXT
    d_head = llama.CONFIGS["toy"].d_head
    integers = floats / 4 * (1 + 2 / d_head)
    small = tokens(PIPELINE.replace("pad", "quantize{weights=none, cache=int8}, pad"))
    assert small / tokens(PIPELINE) == pytest.approx(floats / integers, rel=0.01)
    assert tokens(PIPELINE) - tokens(PIPELINE, 1e6) == pytest.approx(1e6 / floats, rel=0.01)


def shapes(chunk: int, steps: int = 5, **how: Any) -> list[Shape]:
    """Of an engine for 16 requests."""
    sizes = Sizes.of(16, lambda _: 1e9, pytest.fail, 64, 16, chunk, steps=steps, **how)
    return sizes.shapes


def test_prompts_and_drafts_have_groups_where_pages_are_read_together() -> None:
    assert shapes(64) == [*map(rows, (4, 16, 64))]
    assert shapes(64, drafts=3) == [*map(rows, (4, 16, 64))]
    assert shapes(64, together=True) == [*map(rows, (4, 16)), ((16, 1), (3, 16))]
    verified = [((16, 4),), ((16, 1), (3, 16))]
    assert shapes(64, together=True, drafts=3) == [*map(rows, (4, 16)), *verified]
    assert shapes(64, 3, together=True, drafts=3) == [rows(16), *verified]
    assert shapes(20, together=True) == [*map(rows, (4, 16, 20))]  # too few for a group
    assert shapes(16) == [*map(rows, (4, 16))]


def test_as_many_tokens_are_chosen_as_requests_run_or_rows_verify_drafts() -> None:
    sizes = partial(Sizes.of, 16, lambda _: 1e9, pytest.fail, 64, 16, 64)
    assert sizes(drafts=0).choices == 16
    assert sizes(drafts=3).choices == 64
    assert sizes(drafts=3, together=True).choices == 64


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
    seconds = step_seconds(lambda: program, target, 2048)
    assert seconds is not None and 2e-3 < seconds(2) < seconds(64) < seconds(128) < 16e-3
    assert seconds(1 << 12) == math.inf
    alone, together = (seconds(64, shape) / seconds(64) for shape in (rows(256), ((64, 4),)))
    assert 1.3 < together < 1.7 and 2.0 < alone < 2.8  # whole contexts, compiled: 1.48, 2.66
    assert step_seconds(lambda: program, Target("cpu:8", (("x", 8),)), 2048) is None
