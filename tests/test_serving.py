"""The scheduler, its pages and its radix tree, on random schedules and on small ones by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialect.serving.pages import Pages, PagesLost
from dialect.serving.policy import Policy, ServingError
from dialect.serving.radix_tree import RadixTree
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.serving.steps import Step
from tests.fake_step import FakeDevice, alone
from tests.fuzz.schedules import checked


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_every_token_is_right_whatever_was_batched_preempted_or_shared(seed: int) -> None:
    checked(seed)


def ready(*requests: Request, **policy: Any) -> tuple[Scheduler, FakeDevice]:
    """A scheduler of 4-token pages to which the requests have come."""
    scheduler = Scheduler(Policy(**{"pages": 20, "page": 4, "rows": 4, "chunk": 16} | policy))
    for request in requests:
        scheduler.submit(request, 0.0)
    return scheduler, FakeDevice(scheduler)


def stepped(served: tuple[Scheduler, FakeDevice], now: float = 1.0) -> Step:
    """The next step, done."""
    scheduler, device = served
    step = scheduler.schedule(now)
    scheduler.check()
    scheduler.done(step, device.run(step), now)
    scheduler.check()
    return step


def finished(served: tuple[Scheduler, FakeDevice]) -> list[Step]:
    """All steps until nobody is left."""
    steps = []
    while served[0].requests:
        steps.append(stepped(served))
        assert len(steps) < 1000
    return steps


def shown(step: Step) -> list[tuple[int, int, int]]:
    """(request, first position, tokens) of every row."""
    return [(row.request.number, row.start, row.count) for row in step.rows]


def numbers(requests: Sequence[Request]) -> list[int]:
    return [request.number for request in requests]


# --- steps -----------------------------------------------------------------------------------


def test_prompts_come_in_chunks_beside_those_that_decode() -> None:
    first, second = Request([1, 2, 3], 4), Request(range(100, 140), 2)
    steps = [shown(step) for step in finished(ready(first, second))]
    assert steps[0] == [(0, 0, 3), (1, 0, 13)]
    assert steps[1] == [(0, 3, 1), (1, 13, 15)]
    assert steps[2] == [(0, 4, 1), (1, 28, 12)]
    assert steps[3] == [(0, 5, 1), (1, 40, 1)]
    assert len(steps) == 4
    assert [list(r.answer) for r in (first, second)] == [alone(first), alone(second)]


def test_a_request_joins_as_soon_as_another_leaves() -> None:
    served = ready(Request([1], 2), Request([2], 5), Request([3], 1), rows=2)
    assert [numbers([row.request for row in step.rows]) for step in finished(served)] == [
        *([0, 1], [0, 1], [1, 2], [1], [1]),
    ]


def test_a_step_is_queued_before_the_tokens_of_the_last_are_known() -> None:
    request = Request([1, 2, 3], 3, stop=frozenset({alone(Request([1, 2, 3], 3))[1]}))
    scheduler, device = ready(request)
    steps = [scheduler.schedule(float(at)) for at in range(3)]
    answers = [device.run(step) for step in steps]
    assert [shown(step) for step in steps] == [[(0, 0, 3)], [(0, 3, 1)], [(0, 4, 1)]]
    assert [list(row.tokens) for row in steps[1].rows] == [[]]
    for step, answer in zip(steps, answers):
        scheduler.done(step, answer, 3.0)
    assert (request.ended, len(request.answer)) == ("stop", 2)
    scheduler.check()


def test_after_a_restart_everything_is_computed_again() -> None:
    requests = [Request(range(100, 100 + size), 6) for size in (3, 9, 8, 8)]
    served = ready(*requests)
    stepped(served)
    served[0].schedule(1.0)  # queued, and lost
    served[0].restart()
    served[0].check()
    assert served[0].groups[0].available == 20
    finished(served)
    assert [list(request.answer) for request in requests] == [alone(each) for each in requests]


def test_another_number_of_tokens_is_refused() -> None:
    scheduler, _ = ready(Request([1], 1))
    with pytest.raises(ValueError, match="argument"):
        scheduler.done(scheduler.schedule(0.0), [[1], [2]], 0.0)


# --- pages and the radix tree ----------------------------------------------------------------


def test_a_prefix_is_computed_once_even_within_a_step() -> None:
    same = list(range(100, 112))
    served = ready(Request([*same, 1], 1), Request([*same, 2], 1), chunk=32)
    assert shown(stepped(served)) == [(0, 0, 13), (1, 12, 1)]
    group = served[0].groups[0]
    assert (group.prompt_pages, group.cached_pages) == (8, 3)
    late = Request([*same, 1, 5], 1)
    served[0].submit(late, 2.0)
    assert shown(stepped(served)) == [(2, 12, 2)]
    assert late.cached == 12 and list(late.answer) == alone(late)


def test_a_prompt_that_is_there_whole_writes_a_copy_of_its_last_page() -> None:
    served = ready(Request(range(100, 108), 1))
    finished(served)
    again = Request(range(100, 108), 3)
    served[0].submit(again, 1.0)
    step = served[0].schedule(1.0)
    (group, page, copy) = step.copies[0]
    assert shown(step) == [(1, 7, 1)] and group == 0 and page != copy == again.table[1]
    served[0].done(step, served[1].run(step), 1.0)
    finished(served)
    assert list(again.answer) == alone(again)


def test_a_request_goes_on_with_what_another_has_computed_meanwhile() -> None:
    """Both start on the same prompt, the second before the first has come far."""
    first, second = Request(range(100, 140), 1), Request([*range(100, 140), 7], 1)
    served = ready(first, second, chunk=20, rows=2)
    steps = finished(served)
    computed = sum(row.count for step in steps for row in step.rows)
    assert computed == 40 + 1
    assert [list(r.answer) for r in (first, second)] == [alone(first), alone(second)]


def held(tree: RadixTree, *tokens: int) -> Request:
    """A request whose pages are in the tree, and held."""
    request = Request(tokens, 1)
    request.table = tree.match(request.tokens)
    request.shared = len(request.table)
    tree.hold(request.table)
    request.table += tree.pages.take(tree.pages.needed(len(tokens)) - len(request.table))
    request.scheduled = len(tokens)
    tree.share(request)
    return request


def test_the_leaf_used_longest_ago_is_evicted_first() -> None:
    tree = RadixTree(Pages(5, 2))
    old, young = held(tree, 1, 2, 3, 4), held(tree, 1, 2, 5, 6)
    kept = held(tree, 9, 9)
    assert young.table[0] == old.table[0]
    for request in (young, old):
        tree.release(request.table)
    tree.check()
    freed = []
    while tree.idle:
        tree.evict(1)
        freed.append(tree.pages.free[-1])
    assert freed == [young.table[1], old.table[1], old.table[0]]
    assert tree.match(kept.tokens) == kept.table


def test_a_page_that_is_lost_is_found() -> None:
    pages = Pages(3, 4)
    (page,) = pages.take(1)
    pages.check([page])
    with pytest.raises(PagesLost, match="1 holders, but 0 hold it"):
        pages.check([])
    assert pages.release([page]) == []
    pages.free.append(page)
    with pytest.raises(PagesLost, match="4 pages are free and 0 held"):
        pages.check([])


def test_a_request_that_holds_a_wrong_page_is_found() -> None:
    scheduler, _ = served = ready(Request(range(100, 120), 9), Request([3], 9), chunk=64)
    stepped(served)
    first, second = scheduler.groups[0].running
    first.table[0], second.table[0] = second.table[0], first.table[0]
    with pytest.raises(PagesLost, match="does not read the pages of its path"):
        scheduler.check()


# --- too few pages ---------------------------------------------------------------------------


@pytest.mark.parametrize(("victim", "who"), [("last", [2]), ("cheapest", [1]), ("largest", [2])])
def test_who_loses_its_pages(victim: str, who: list[int]) -> None:
    """Three requests that grow into nine pages: 2, 1 and 4 at first, then one more each."""
    requests = [Request([1] * 7, 8), Request([2] * 3, 8), Request([3] * 14, 8)]
    served = ready(*requests, pages=9, victim=victim, spare=0.0, chunk=64)
    group = served[0].groups[0]
    while not group.preemptions:
        stepped(served)
    assert [n for n in range(3) if n not in numbers(group.running)] == who
    finished(served)
    assert [list(r.answer) for r in requests] == [alone(r) for r in requests]


def test_a_lower_priority_loses_its_pages_first_but_never_the_oldest() -> None:
    requests = [Request([1] * 7, 8, priority=-1), Request([2] * 7, 8), Request([3] * 7, 8)]
    served = ready(*requests, pages=7, spare=0.0, chunk=64)
    group = served[0].groups[0]
    while not group.preemptions:
        stepped(served)
    assert numbers(group.running) == [1, 0]
    finished(served)


def test_what_was_computed_is_kept_while_there_is_room() -> None:
    """A request that lost its pages finds the full ones again."""
    requests = [Request([n] * 7, 12) for n in (1, 2)]
    served = ready(*requests, pages=8, spare=0.0)
    steps = finished(served)
    again = [row for step in steps for row in step.rows if row.count > 1][2:]
    assert served[0].groups[0].preemptions == 1
    assert [(row.request.number, row.start) for row in again] == [(1, 12)]


def test_pages_can_be_reserved() -> None:
    first, second = Request([1], 12), Request([2], 12)
    served = ready(first, second, pages=6, reserved=lambda request: request.limit)
    stepped(served)
    assert len(first.table) == 4 and second.table == []
    finished(served)
    assert served[0].groups[0].preemptions == 0


# --- who is next -----------------------------------------------------------------------------


def order(*requests: Request, **policy: Any) -> list[int]:
    """The requests as they join, one at a time."""
    served = ready(*requests, rows=1, **policy)
    return [row.request.number for step in finished(served) for row in step.rows if row.start == 0]


def test_the_highest_priority_is_next_then_the_earliest_deadline() -> None:
    requests = [Request([1], 2, priority=p, deadline=d) for p, d in ((0, 99), (1, 99), (1, 50))]
    assert order(*requests) == [2, 1, 0]


def test_users_take_turns_by_the_tokens_that_they_were_served() -> None:
    users = [Request([n], 8, user="a") for n in range(4)]
    users += [Request([n], 4, user="b") for n in range(4)]
    assert order(*users) == [0, 4, 5, 1, 6, 7, 2, 3]


def test_a_user_saves_up_nothing_while_asking_for_nothing() -> None:
    served = ready(*[Request([n], 8, user="a") for n in range(3)], rows=1)
    finished(served)
    for user in "aabb":
        served[0].submit(Request([9], 8, user=user), 1.0)
    joined = [row.request.user for step in finished(served) for row in step.rows if not row.start]
    assert joined == ["b", "a", "b", "a"]


def test_the_longest_prefix_in_the_cache_is_next() -> None:
    prompts = [[5] * 8, [6] * 8, [5] * 9, [6] * 9, [5] * 10]
    served = ready(*[Request(prompt, 1) for prompt in prompts], rows=1)
    joined = [row.request.number for step in finished(served) for row in step.rows]
    assert joined == [0, 2, 4, 1, 3]


def test_nobody_waits_for_longer_than_patience_allows() -> None:
    """Without it, requests of a higher priority would keep the first waiting forever."""
    for patience, waits in ((10.0, True), (1000.0, False)):
        served = ready(Request([1], 1, priority=-1), rows=1, patience=patience)
        for now in range(30):
            served[0].submit(Request([2], 2), float(now))
            stepped(served, float(now))
        assert (0 not in served[0].requests) == waits


def test_ten_thousand_users_at_once_are_served_in_turn() -> None:
    """What is asked of a step does not grow with those who wait."""
    scheduler, _ = ready(rows=1)
    for n in range(10_000):
        scheduler.submit(Request([n % 7, n], 1, user=str(n)), 0.0)
    joined = []
    for now in range(50):
        step = scheduler.schedule(float(now) / 100)
        scheduler.done(step, [[0] for row in step.rows if row.answers], 0.0)
        joined += numbers([row.request for row in step.rows])
    assert joined == list(range(50))


# --- groups ----------------------------------------------------------------------------------


def test_a_request_goes_where_its_prefix_is_unless_too_much_waits_there() -> None:
    served = ready(groups=2)
    scheduler = served[0]
    requests = [Request([1] * 12, 4), Request([2] * 12, 4)]
    for request in requests:
        scheduler.submit(request, 0.0)
    assert [request.group for request in requests] == [0, 1]
    step = stepped(served)
    assert {(row.request.group, row.request.number) for row in step.rows} == {(0, 0), (1, 1)}
    alike = [Request([2] * 12 + [n], 4) for n in range(3)]
    for request in alike:
        scheduler.submit(request, 0.0)
    assert [request.group for request in alike] == [1, 0, 1]
    finished(served)


# --- what cannot be served -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request([], 1), "it needs a prompt, and room for a new token"),
        (Request([1], 0), "it needs a prompt, and room for a new token"),
        (Request([1] * 80, 1), "81 tokens, where 80 have room"),
        (Request([1], 1, deadline=-1.0), "its deadline has passed"),
    ],
)
def test_a_request_that_cannot_be_served_is_told_why(request_: Request, why: str) -> None:
    scheduler, _ = ready(request_)
    assert request_.ended == f"refused: {why}" and not scheduler.requests
    assert scheduler.schedule(0.0).rows == []


def test_the_line_has_an_end() -> None:
    requests = [Request([1], 1) for _ in range(3)]
    ready(*requests, most_waiting=2)
    assert [request.ended for request in requests] == ["", "", "refused: 2 requests are waiting"]


def test_requests_end_at_their_deadline_and_when_they_are_cancelled() -> None:
    requests = [Request([1], 20, deadline=3.0), Request([2], 20), Request([3], 2)]
    served = ready(*requests, rows=1)
    for now in range(4):
        stepped(served, float(now))
    served[0].cancel(requests[1], "cancelled", 4.0)
    served[0].cancel(requests[1], "twice", 4.0)
    finished(served)
    assert [request.ended for request in requests] == ["deadline", "cancelled", "length"]
    assert [len(request.answer) for request in requests] == [3, 1, 2]


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"pages": 0}, "pages is 0, and must be at least 1"),
        ({"rows": 20}, "20 rows cannot decode in steps of 16 tokens"),
        ({"victim": "lst"}, "no victim policy 'lst'"),
    ],
)
def test_a_policy_that_cannot_work(policy: dict[str, Any], why: str) -> None:
    with pytest.raises(ServingError, match=why):
        ready(**policy)
