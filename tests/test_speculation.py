"""Drafts in an engine: fewer steps, and the tokens that every request gets without them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialect.compiled.compilations import Compilations
from dialect.engine import drafting
from dialect.front.serving import drafter_of
from dialect.serving.drafts import Ahead, Offer, PromptLookup, Usual, paying
from dialect.serving.policy import Policy, ServingError
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.serving.shapes import Priced, Room, rows_of
from dialect.serving.shapes import rows_alone as rows
from examples.tiny import model
from rewrite import Engine
from tests.fake_step import FakeDevice, Guesses, alone

CONFIG, CONTEXT, NEW, MANY = model.CONFIGS["mha"], 96, 32, 32
SIZES: dict[str, Any] = {"max_context": CONTEXT, "rows": 4, "chunk": 16, "page": 8}

# --- drafts ----------------------------------------------------------------------------------


def test_drafts_go_on_as_the_text_did() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 2, 3])
    assert lookup.draft(3) == [4, 9, 2]  # behind 2, 3
    lookup.extend([4, 7, 3])
    assert lookup.draft(3) == [4, 9, 2]  # behind the first 3, as the other went on like it
    lookup.extend([8, 3])
    assert lookup.draft(3) == [8, 3, 8]  # behind the latest 3, which did not
    assert PromptLookup([1, 2, 3]).draft(4) == PromptLookup().draft(4) == []


def test_what_repeats_itself_goes_on_repeating_itself() -> None:
    assert PromptLookup([5, 5]).draft(4) == [5, 5, 5, 5]
    assert PromptLookup([1, 2, 3, 1, 2]).draft(5) == [3, 1, 2, 3, 1]


def test_a_text_tells_how_often_guesses_are_right() -> None:
    assert PromptLookup([1, 2, 3]).chance == 0
    assert PromptLookup([1, 2, 3] * 20).chance > 0.95
    jumping = [token for at in range(1, 60) for token in (7, at + 10)]  # never the same behind 7
    assert 0 < PromptLookup([*jumping, 7]).chance < 0.05


def steps(*priced: tuple[int, float]) -> Priced:
    """Steps of so many rows that are alone, and their seconds."""
    return [(rows(count), seconds) for count, seconds in priced]


def test_as_many_drafts_are_verified_as_pay() -> None:
    """One request: Leviathan et al. 2023, theorem 3.8, where a step's price grows with its rows."""
    prices = [(tokens, 0.95 + 0.05 * tokens) for tokens in range(1, 21)]
    speed = [(1 - 0.8**tokens) / (1 - 0.8) / price for tokens, price in prices]
    assert paying(1, (), [Offer(30, 0.8)], steps(*prices)) == {0: int(np.argmax(speed))}
    assert paying(1, (), [Offer(3, 0.8)], steps(*prices)) == {0: 3}
    assert paying(1, (), [Offer(30, 0.8)], steps(*prices[:3])) == {0: 2}
    assert not paying(1, (), [Offer(30, 0.8)], steps((1, 1.0), (2, 1.9), (3, 2.8)))
    assert not paying(1, (), [Offer()], steps(*prices))


def test_what_a_round_of_drafts_costs_is_paid_once_for_all() -> None:
    step, offers = steps((64, 1.0)), [Offer(9, 0.8)] * 4
    assert paying(4, (), offers, step, draft_s=0.0) == dict.fromkeys(range(4), 9)
    assert paying(4, (), offers, step, draft_s=0.2) == dict.fromkeys(range(4), 4)
    assert not paying(4, (), offers, step, draft_s=0.9)


def test_what_was_verified_tells_how_often_drafts_of_its_own_are_right() -> None:
    ahead = Ahead(Usual())
    assert ahead.draft(2) == [0, 0]
    for _ in range(40):
        ahead.extend([1, 2, 3], 2)
    assert ahead.chance > 0.99
    for _ in range(40):
        ahead.extend([1], 2)
    assert ahead.chance < 0.01


def test_drafts_that_were_never_right_are_declined_for_new_requests_too() -> None:
    """They are tried, and cost a step and a half to draft and verify."""
    priced, usual = [(rows(1), 1.0), (rows(2), 1.2)], Usual()

    def tried() -> bool:
        ahead = Ahead(usual)
        return bool(paying(1, (), [Offer(1, ahead.chance)], priced, draft_s=0.3))

    assert tried()
    Ahead(usual).extend([1], 2)
    assert tried()  # one request says little
    for _ in range(40):
        Ahead(usual).extend([1], 2)
    assert not tried()


def test_drafts_share_the_rows_that_a_step_has_left() -> None:
    """A step of 8 tokens costs hardly more than one of 4; one of 64 does."""
    three = steps((4, 1.0), (8, 1.1), (64, 4.0))
    offers = [Offer(9, 0.9), Offer(9, 0.5), Offer(0, 0.0), Offer(9, 0.9)]
    assert paying(4, (), offers, three) == {0: 2, 3: 2}
    assert paying(4, (), [Offer(9, 0.9, guessed=3), Offer(9, 0.8)], three) == {0: 2, 1: 2}
    assert paying(3, (), [Offer(9, 0.1)] * 3, three) == {0: 1}  # a row that is there anyway
    assert not paying(4, (), [Offer(9, 0.05)] * 4, three)
    unknown = steps((4, 0.0), (9, 0.0))  # as many as have room
    assert paying(4, (), offers, unknown) == {0: 3, 3: 2}
    assert paying(2, (2,), offers, unknown) == {0: 3, 3: 2}


def test_who_has_drafts_takes_a_group() -> None:
    """Four groups of 4 cost little more than 4 rows that are alone; 16 of these would cost more."""
    some = [(rows(4), 1.0), (((4, 4),), 1.5), (rows(16), 2.6)]
    likely, unlikely = Offer(16, 0.9), Offer(16, 0.1)
    assert paying(4, (), [likely] * 4, some) == dict.fromkeys(range(4), 3)
    assert not paying(4, (), [unlikely] * 4, some)
    assert paying(4, (), [unlikely, likely], some[:2]) == {0: 1, 1: 3}  # its row is there anyway
    with_prompts = [(((4, 1), (3, 16)), 1.0)]
    assert paying(3, (20,), [unlikely, likely, Offer(2, 0.8)], with_prompts) == {1: 15, 2: 2}
    assert not paying(4, (40, 5), [likely] * 4, with_prompts)  # no step has room for both prompts


def tokens_per_s(
    decoding: int, offers: list[Offer], lengths: dict[int, int], step_s: float, draft_s: float
) -> float:
    """What some drafts are worth, by the definition."""
    drafts = [
        offers[at].chance ** n for at, length in lengths.items() for n in range(1, length + 1)
    ]
    waits_s = 0.7e-3 + draft_s * max(lengths.values()) if lengths else 0.0
    return (decoding + sum(drafts)) / (step_s + waits_s)


def ways_to_verify(shape: Any, offers: list[Offer]) -> Iterator[dict[int, int]]:
    """All drafts that have room in a step of one shape, where every offer has a request."""
    for counts in itertools.product(*(range(offer.count + 1) for offer in offers)):
        room = Room(shape)
        taken = [room.take(1 + count) for count in sorted(counts, reverse=True)]
        if sum(count for _, count in taken) == sum(counts) + len(counts):
            yield {at: count for at, count in enumerate(counts) if count}


@pytest.mark.parametrize("draft_s", [0.0, 0.05])
def test_no_other_number_of_drafts_pays_more(draft_s: float) -> None:
    some = ((rows(4), 1.0), (((3, 3),), 1.1), (rows(7), 1.2), (((3, 1), (2, 4)), 1.3))
    chance = random.Random(0)
    for _ in range(60):
        offers = [Offer(chance.randint(0, 3), chance.randint(37, 99) / 100) for _ in range(3)]
        best = max(
            tokens_per_s(3, offers, way, step_s, draft_s)
            for shape, step_s in some
            for way in ways_to_verify(shape, offers)
        )
        chosen = paying(3, (), offers, some, draft_s)
        worth = max(
            tokens_per_s(3, offers, chosen, step_s, draft_s)
            for shape, step_s in some
            if chosen in ways_to_verify(shape, offers)
        )
        assert worth >= best - 1e-9, (offers, chosen)


# --- the scheduler ---------------------------------------------------------------------------


def guessing(right: float, *requests: Request, **policy: Any) -> tuple[Scheduler, FakeDevice]:
    """A scheduler of 4-token pages, and requests of whose drafts so many are right."""
    chosen = {"pages": 20, "page": 4, "rows": 4, "chunk": 16, "spare": 0.0, "drafts": 4}
    scheduler = Scheduler(Policy(**chosen | policy))
    for request in requests:
        scheduler.submit(request, 0.0)
        request.drafts = Guesses(request, right)  # type: ignore[assignment]
    return scheduler, FakeDevice(scheduler)


def stepped(scheduler: Scheduler, device: FakeDevice) -> list[tuple[int, int, int]]:
    """(request, first position, drafts) of every row of the next step, which is done."""
    step = scheduler.schedule(1.0)
    scheduler.check()
    scheduler.done(step, device.run(step), 1.0)
    scheduler.check()
    return [(row.request.number, row.start, len(row.drafts)) for row in step.rows]


def test_drafts_that_are_right_are_taken_at_once() -> None:
    request = Request([1, 2, 3], 13)
    served = guessing(1.0, request)
    assert [stepped(*served) for _ in range(4)] == [
        [(0, 0, 0)],
        [(0, 3, 4)],
        [(0, 8, 4)],
        [(0, 13, 1)],
    ]
    assert request.ended == "length" and list(request.answer) == alone(request)


def test_drafts_that_are_wrong_cost_no_page() -> None:
    request = Request([1, 2, 3], 6)
    served = guessing(0.001, request)
    steps = [stepped(*served) for _ in range(4)]
    assert steps == [[(0, 0, 0)], [(0, 3, 4)], [(0, 4, 3)], [(0, 5, 2)]]
    assert len(request.table) == 2 and served[0].groups[0].available == 18
    while not request.ended:
        stepped(*served)
    assert list(request.answer) == alone(request)


def test_nothing_stands_behind_a_token_that_ends_the_answer() -> None:
    expected = alone(Request([1, 2, 3], 10))
    request = Request([1, 2, 3], 10, stop=frozenset({expected[2]}))
    served = guessing(1.0, request)
    while not request.ended:
        stepped(*served)
    assert request.ended == "stop" and list(request.answer) == expected[:3]


def test_what_is_being_verified_is_not_computed_again() -> None:
    """Others go on; one whose pages are taken meanwhile takes its tokens and waits."""
    requests = [Request([1, 2, 3], 20), Request([4, 5, 6], 20)]
    scheduler, device = guessing(1.0, *requests)
    requests[1].drafts = None
    stepped(scheduler, device)
    first = scheduler.schedule(1.0)
    answered = [device.run(first)]
    second = scheduler.schedule(1.0)
    answered.append(device.run(second))
    assert [row.request.number for row in second.rows] == [1]
    group = scheduler.groups[0]
    group.running.remove(requests[0])
    group._release(requests[0])
    group.waiting.add(requests[0])
    third = scheduler.schedule(1.0)
    answered.append(device.run(third))
    assert [row.request.number for row in third.rows] == [1]
    scheduler.check()
    for step, tokens in zip((first, second, third), answered):
        scheduler.done(step, tokens, 1.0)
    while scheduler.requests:
        stepped(scheduler, device)
    assert [list(each.answer) for each in requests] == [alone(each) for each in requests]


def test_drafts_take_what_prompts_leave_and_no_page_that_is_not_to_spare() -> None:
    first, second = Request([1, 2, 3], 12), Request(range(100, 140), 2)
    served = guessing(1.0, first, second)
    assert stepped(*served) == [(0, 0, 0), (1, 0, 0)]
    assert stepped(*served) == [(0, 3, 0), (1, 13, 0)]
    small = guessing(1.0, Request([1, 2, 3], 16), pages=5, spare=0.8)
    assert [stepped(*small) for _ in range(4)] == [
        [(0, 0, 0)],
        [(0, 3, 0)],
        [(0, 4, 3)],
        [(0, 8, 3)],
    ]


# --- the engine ------------------------------------------------------------------------------


@cache
def drawn(count: int, length: int = 40) -> list[list[int]]:
    """Pieces of a text that the decoder was not trained on; each begins again after 28 tokens."""
    text = np.frombuffer(model.held_out(), np.uint8)
    places = np.random.default_rng(1).integers(len(text) - length, size=count)
    return [[int(text[at + n % 28]) for n in range(length)] for at in places]


def prompts(count: int) -> list[list[int]]:
    """So many of them."""
    return drawn(max(count, MANY))[:count]


def answers(count: int) -> list[list[int]]:
    """The decoder's own greedy answers to these."""
    return answered(max(count, MANY))[:count]


@cache
def answered(count: int) -> list[list[int]]:
    """The decoder's own greedy answers, all prompts in lock step."""
    params, cache = model.trained_params(CONFIG), model.init_cache(CONFIG, count, CONTEXT)
    step = jax.jit(partial(model.decode_step, CONFIG))
    tokens = list(np.asarray(prompts(count), np.int32).T)
    for at in range(len(tokens) + NEW - 1):
        logits, cache = step(params, cache, jnp.asarray(tokens[at]))
        if at + 1 >= len(prompts(count)[0]):
            tokens.append(np.asarray(logits.argmax(-1), np.int32))
    return np.stack(tokens[-NEW:], axis=1).tolist()


def tiny(**options: Any) -> Engine:
    init_cache = partial(model.init_cache, CONFIG)
    step, params = partial(model.decode_step, CONFIG), model.trained_params(CONFIG)
    return Engine(step, params, init_cache, "cpu:1", **SIZES | options)


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    with tiny() as engine:
        yield engine


def growing(built: Any) -> list[float]:
    """What steps are said to take."""
    return [0.9 + 0.04 * rows_of(shape) for shape in built.sizes.shapes]


WAYS = {"three": ("ngram", 3), "as many as pay": ("ngram", None), "its own": ("self", 3)}


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Steps are timed, and said to take the longer the more rows they have."""
    timed, seconds = list[float](), drafting.seconds
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drafting, "seconds", lambda b: (timed.extend(seconds(b)), growing(b))[1])
        engine = tiny(draft=request.param[0], draft_length=request.param[1])
    assert all(each > 0 for each in timed)
    assert len(timed) == (len(engine.built.sizes.shapes) if request.param[1] is None else 0)
    with engine:
        yield engine


def test_the_tokens_are_those_without_drafts(engine: Engine) -> None:
    wanted, before, ran = answers(32), Compilations(), set[Any]()
    executables, run = engine.built.executables, engine.built.executables.run
    executables.run = lambda params, step: (ran.add(step.shape), run(params, step))[1]
    assert engine.generate(prompts(32), max_new_tokens=NEW) == wanted
    executables.run = run
    assert ((4, 4),) in ran  # a group for every request
    told = engine.figures()
    assert 0 < told["drafts_accepted"] < told["drafts"] and told["draft_rows"] > 0
    assert told["pages_in_use"] == 0 and before.count == 0
    engine.check()


def test_drawn_tokens_are_those_without_drafts(engine: Engine, plain: Engine) -> None:
    """Noise follows from the seed and the position, so drafts change not even the draws."""
    asked = {"max_new_tokens": NEW, "temperature": 0.7, "top_p": 0.95, "seed": 5}
    verified = engine.figures()["drafts"]
    assert engine.generate(prompts(8), **asked) == plain.generate(prompts(8), **asked)
    assert engine.figures()["drafts"] > verified


def test_every_token_has_its_own_log_probability(engine: Engine, plain: Engine) -> None:
    both = []
    for each in (engine, plain):
        answer = each.submit(prompts(8)[3], max_new_tokens=NEW, logprobs=True)
        answer.numbers()
        both.append(answer.tokens)
    for one, other in zip(*both, strict=True):
        assert one.number == other.number == one.likely[0][0]
        assert abs(one.logprob - other.logprob) < 1e-4
    asked = plain.submit([65], max_new_tokens=1)
    asked.numbers()
    assert asked.tokens[0][1:] == (None, ())


def test_an_answer_ends_behind_a_stop_token(engine: Engine) -> None:
    for prompt, expected in zip(prompts(32)[:8], answers(32)):
        ends = expected.index(expected[NEW // 2]) + 1
        answer = engine.submit(prompt, max_new_tokens=NEW, stop=[expected[NEW // 2]])
        assert (answer.numbers(), answer.why) == (expected[:ends], "stop")


@pytest.mark.parametrize("engine", [WAYS["three"]], ids=["three"], indirect=True)
def test_copies_take_fewer_steps(engine: Engine, plain: Engine) -> None:
    """Twelve tokens of a text, again and again."""

    def served(engine: Engine) -> tuple[int, list[list[int]]]:
        """(steps, answers), one after another, where the prompts are computed before."""
        texts = [[*prompt[:12] * 3, *prompt[:4]] for prompt in prompts(32)[:16]]
        engine.generate(texts, max_new_tokens=1)
        before = engine.figures()["steps"]
        answers = [engine.generate([text], max_new_tokens=NEW)[0] for text in texts]
        return engine.figures()["steps"] - before, answers

    (drafted, answers), (steps, others) = served(engine), served(plain)
    assert answers == others and steps >= 1.5 * drafted


def test_a_decoder_with_int4_weights_drafts_most_of_what_it_writes_itself() -> None:
    """In the pages of the decoder: what it has computed is never computed for drafts."""
    with tiny(draft="self", draft_length=3) as engine:
        for prompt, expected in zip(prompts(32)[:8], answers(32)):
            assert engine.generate([prompt], max_new_tokens=NEW) == [expected]
        told = engine.figures()
        assert told["drafts_accepted"] > 0.75 * told["drafts"]
        assert told["steps"] < 0.5 * told["tokens"] and told["executables"] == 6


def test_a_decoder_without_some_layers_drafts_in_the_same_pages() -> None:
    """The cache of the layers that are left out stays as the decoder wrote it."""
    with tiny(draft='skip_layers{layers="1"}', draft_length=3) as engine:
        for prompt, expected in zip(prompts(32)[:3], answers(32)):
            assert engine.generate([prompt], max_new_tokens=NEW) == [expected]
        told = engine.figures()
        assert told["drafts_accepted"] > 0.4 * told["drafts"] and told["executables"] == 6
        assert 'its own, after skip_layers{layers="1"}, 3 at most' in engine.explain()


SMALL = replace(CONFIG, layers=2, d_model=16, heads=2, kv_heads=2, d_head=8, d_ff=16)


def small(config: Any = SMALL, seed: int = 0) -> tuple[Any, Any, Any]:
    """(step, parameters, init_cache) of a decoder that nobody has trained."""
    params = model.init_params(config, jax.random.key(seed))
    return partial(model.decode_step, config), params, partial(model.init_cache, config)


def test_a_second_decoder_drafts_in_pages_of_its_own() -> None:
    """One with the same weights is always right: it has read all that the decoder has."""
    asked = {"max_new_tokens": 16, "temperature": 0.8, "seed": 3}
    with Engine(*small(), "cpu:1", draft=small(), draft_length=3, **SIZES) as engine:
        first = engine.generate(prompts(4), **asked)
        again = engine.generate(prompts(4), **asked)  # whose prompts are in pages of both
        told = engine.figures()
        engine.check()
    assert first == again and told["cached_pages"] > 0
    assert told["drafts_accepted"] == told["drafts"] > 0
    assert "drafts are a second decoder's, 3 at most" in engine.explain()
    with Engine(*small(), "cpu:1", **SIZES) as engine:
        assert engine.generate(prompts(4), **asked) == first


def test_a_drafter_with_other_tokens_is_refused() -> None:
    other = small(replace(SMALL, vocab=128))
    with pytest.raises(ServingError, match="a drafter of 128 tokens cannot draft for a decoder of"):
        Engine(*small(), "cpu:1", draft=other, draft_length=3, **SIZES)


def test_a_server_is_told_which_decoder_drafts() -> None:
    def asked(draft: str, config: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(draft=draft, draft_config=config, draft_weights=None)

    step, params, init_cache = drafter_of(asked("examples/tiny/model.py:decode_step", "mha"))
    assert jax.tree.structure(params) == jax.tree.structure(model.trained_params(CONFIG))
    logits, _ = jax.eval_shape(step, params, init_cache(2, CONTEXT), jnp.zeros(2, jnp.int32))
    assert logits.shape == (2, CONFIG.vocab)
    layers = 'skip_layers{layers="1"}'
    assert [drafter_of(asked(draft)) for draft in ("ngram", layers)] == ["ngram", layers]
    with pytest.raises(ServingError, match="llama.py:decode_step comes without trained_params"):
        drafter_of(asked("examples/llama.py:decode_step", "toy"))
    with pytest.raises(ServingError, match="--draft-config is of a second decoder"):
        drafter_of(asked("self", "mha"))


@pytest.mark.parametrize(
    ("draft", "told"),
    [
        ("selves", "no drafts are called 'selves'"),
        ('skip_layers{layers="9"}', "there is no layer 9: they are 0 to 3"),
    ],
)
def test_drafts_that_are_none_are_refused(draft: str, told: str) -> None:
    with pytest.raises(ServingError, match=told):
        tiny(draft=draft)


def test_drafts_that_cost_more_than_they_save_are_declined() -> None:
    """Each round of the decoder that drafts is said to take as long as a step."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drafting, "seconds", growing)
        patched.setattr(drafting, "draft_s", lambda built: 1.0)
        with tiny(draft="self") as engine:
            assert engine.generate(prompts(4), max_new_tokens=4) == [
                answer[:4] for answer in answers(4)
            ]
            told = engine.figures()
            assert told["drafts"] == 0 and told["draft_rows_declined"] > 0
            assert "1e+03 ms to draft once" in engine.explain()


def test_it_is_told_what_was_drafted(engine: Engine, plain: Engine) -> None:
    told = engine.figures()
    said = f"{told['drafts']} were verified behind {told['draft_rows']} tokens"
    assert said in engine.explain() and "verified" not in plain.explain()
    assert f"drafts are {drafting.DRAFTS[engine.draft]}" in engine.explain()
    assert ("what pays follows from the time of steps" in engine.explain()) == any(
        seconds for _, seconds in engine.policy.steps
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draft": "ngrams"}, "no drafts are called 'ngrams'"),
        ({"draft_length": 3}, "draft_length is 3, and must be at least 1, of a draft"),
        ({"draft": "ngram", "draft_length": 0}, "draft_length is 0"),
        ({"drafts": 3}, "an engine has no option 'drafts'"),
    ],
)
def test_drafts_that_do_not_exist_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ServingError, match=said):
        tiny(**options)
