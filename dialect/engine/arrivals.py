"""Who arrives at an engine and who leaves: kept until the next step, and told to all hosts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dialect.engine.answers import Answer
from dialect.engine.drafting import Drafting
from dialect.engine.hosts import Hosts
from dialect.serving.requests import Request
from dialect.token_rows.sampling import Choice


@dataclass(frozen=True)
class News:
    """What is new before a step, alike on all hosts.

    now: the second; closing: whether the engine is to end; leaving: the numbers of requests
    """

    now: float
    closing: bool
    coming: Sequence[Answer]
    leaving: Sequence[int]


class Arrivals:
    """Those that the scheduler does not know yet."""

    def __init__(self, drafting: Drafting) -> None:
        self.drafting, self.closing = drafting, False
        self.coming: list[Answer] = []
        self.leaving: list[Answer] = []

    def __bool__(self) -> bool:
        return bool(self.closing or self.coming or self.leaving)

    def taken(self) -> News:
        """All there is, once; who arrives and leaves at once leaves with the next news."""
        numbered = [answer for answer in self.leaving if answer.request.number >= 0]
        self.leaving = [answer for answer in self.leaving if answer.request.number < 0]
        coming, self.coming = self.coming, []
        numbers = [answer.request.number for answer in numbered]
        return News(time.monotonic(), self.closing, coming, numbers)

    def shared(self, news: News, hosts: Hosts, cancel: Callable[[Answer], None]) -> News:
        """The first host's news, with answers of this one."""
        if hosts.count == 1:
            return news
        heard = hosts.shared(vars(news) | {"coming": list(map(_said, news.coming))})
        if hosts.leads:
            return news
        coming = [self._heard(about, cancel) for about in heard["coming"]]
        return News(**heard | {"coming": coming})

    def _heard(self, said: Mapping[str, Any], cancel: Callable[[Answer], None]) -> Answer:
        about = dict(said)
        choice = Choice(**about.pop("choice"))
        request = Request(**about | {"stop": frozenset(said["stop"])})
        request.drafts = self.drafting.of(request)
        return Answer(request, choice, cancel)


def _said(answer: Answer) -> dict[str, Any]:
    request = answer.request
    return {
        "prompt": list(request.tokens),
        "most_new": request.most_new,
        "stop": sorted(request.stop),
        "priority": request.priority,
        "user": request.user,
        "deadline": request.deadline,
        "choice": asdict(answer.choice),
    }
