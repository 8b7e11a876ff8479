"""Runs what the scheduler decides: its steps as arrays, the results as tokens.

A step is queued before the results of the one before it are read, so the device does not wait for
the host; but where drafts pay, which follow from what is read. Where a step raises, its requests
are tried one by one: those that raise alone fail, and all others are computed again from the
beginning, in empty pools.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dialect.engine.answers import Answer, Token
from dialect.engine.arrivals import Arrivals
from dialect.engine.building import Built
from dialect.engine.drafter import Drafter
from dialect.engine.drafting import Drafting
from dialect.engine.hosts import Hosts
from dialect.serving.policy import ServingError
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.serving.steps import Row, Step
from dialect.token_rows.packing import Packed, packed, placed
from rewrite.errors import cause

_LOOK_S = 0.01  # between looks at requests of which none can run
_ALIVE_S = 1.0  # between news that nothing is new, where several hosts wait for them
_TRIES = 3  # of steps that raise though none of their requests does alone


class Driver:
    """A thread that runs steps while there are requests.

    On several hosts every one has such a thread; only the first has requests of its own, and tells
    all before every step who came and left.
    """

    def __init__(
        self, scheduler: Scheduler, built: Built, hosts: Hosts, drafting: Drafting
    ) -> None:
        self.scheduler, self.executables, self.params = scheduler, built.executables, built.params
        self.pages = built.sizes.first_pages
        self.hosts, self.arrivals, self.now = hosts, Arrivals(drafting), time.monotonic()
        ahead = built.draft_params
        self.drafter = Drafter(built.executables, ahead, built.sizes) if ahead else None
        self.answers: dict[Request, Answer] = {}  # of requests that have not ended
        self.changed = threading.Condition()  # guards the scheduler and all that is here
        self.closed = False
        self.steps = self.tokens = self.failures = 0
        self.failing = 0  # failures since a step was read
        self.broken = ""
        self._queued: tuple[Step, Packed, Any] | None = None
        scheduler.told = self._ended
        self.thread = threading.Thread(target=self._run, name="shardwright engine", daemon=True)
        self.thread.start()

    def submit(self, answer: Answer) -> None:
        """Lets the request of an answer wait. Raises ServingError where the engine is closed."""
        with self.changed:
            if self.closed or self.arrivals.closing:
                raise ServingError(f"the engine is closed{self.broken}")
            self.arrivals.coming.append(answer)
            self.changed.notify()

    def cancel(self, answer: Answer) -> None:
        """Ends a request; nothing happens where it has ended."""
        with self.changed:
            self.arrivals.leaving.append(answer)
            self.changed.notify()

    def close(self) -> None:
        """Ends the thread, on all hosts; requests that have not ended are cancelled."""
        with self.changed:
            self.arrivals.closing = True
            self.changed.notify()
        self.thread.join()

    def follow(self) -> None:
        """Waits until the thread ends. Raises ServingError where it broke."""
        self.thread.join()
        if self.broken:
            raise ServingError(f"the engine ended{self.broken}")

    def check(self) -> None:
        """Raises PagesLost unless every page and every request is accounted for."""
        with self.changed:
            self.scheduler.check()

    # In the thread.

    def _run(self) -> None:
        try:
            while self._looked():
                if not self._step() and self.hosts.leads:
                    self._wait()
            why = "cancelled"
        except BaseException as error:
            self.broken = f": {cause(error)}"
            why = f"failed: {cause(error)}"
            if not isinstance(error, ServingError):
                raise
        finally:
            with self.changed:
                self.closed = True
                self._arrive(self.arrivals.coming)
                for request in list(self.answers):
                    self.scheduler.cancel(request, why, self.now)

    def _wait(self) -> None:
        idle = _ALIVE_S if self.hosts.count > 1 else None
        with self.changed:
            if not self.arrivals:
                self.changed.wait(_LOOK_S if self.scheduler.requests else idle)

    def _looked(self) -> bool:
        """Lets wait who has arrived, and ends who leaves; False where the engine is to end."""
        with self.changed:
            news = self.arrivals.taken()
        news = self.arrivals.shared(news, self.hosts, self.cancel)
        with self.changed:
            self.now = news.now
            self._arrive(news.coming)
            for number in news.leaving:
                if number in self.scheduler.requests:
                    self.scheduler.cancel(self.scheduler.requests[number], "cancelled", self.now)
        return not news.closing

    def _arrive(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self.answers[answer.request] = answer
            self.scheduler.submit(answer.request, self.now)

    def _step(self) -> bool:
        """Queues the next step and reads the last; False where there is neither."""
        before, step = self._queued, Step()
        try:
            if before and self._must_be_read(before[0]):
                self._read(*before)
                before = None
            with self.changed:
                step = self.scheduler.schedule(self.now)
                arrays = self._packed(step, before) if step.rows else None
            self._queued = (step, arrays, self._start(step, arrays)) if arrays else None
            if before:
                self._read(*before)
            if self._queued and self.hosts.talks_over(self.executables.mesh):
                self._read(*self._queued)
                self._queued = None
        except Exception as error:  # whatever the user's step raises
            self._recover([*(before[0].rows if before else ()), *step.rows], error)
        return bool(before or step.rows)

    def _must_be_read(self, before: Step) -> bool:
        with self.changed:
            return self.scheduler.wants_to_know(before)

    def _packed(self, step: Step, before: tuple[Step, Packed, Any] | None) -> Packed:
        """A step in an array; `before`: the one that gives tokens which are not known yet."""
        sources = before[1].answering if before else dict.fromkeys(_requests(step), 0)
        choices = {request: self.answers[request].choice for request in _requests(step)}
        shape, starts = placed(step, self.executables.shapes, len(self.pages))
        sizes = self.executables.width, self.executables.choices
        return packed(step, shape, starts, *sizes, sources, choices, self.pages)

    def _start(self, step: Step, arrays: Packed) -> Any:
        firsts = ((self.pages[group], page, copy) for group, page, copy in step.copies)
        copies = [(first + page, first + copy) for first, page, copy in firsts]
        self.hosts.did(np.array(copies, np.int32), arrays.rows, arrays.choices)
        self.executables.copied(copies)
        if self.drafter is not None:
            self.drafter.fill(step, arrays)
        self.steps += 1
        return self.executables.run(self.params, arrays)

    def _read(self, step: Step, arrays: Packed, results: Any) -> None:
        """Waits for a step, and hands its tokens on."""
        numbers = np.asarray(results)
        tokens = numbers[:, 0].tolist()
        self.failing = 0
        answered = []
        with self.changed:
            for row in step.rows:
                if row.answers:
                    at = arrays.answering[row.request]
                    new = row.taken(tokens[at : at + 1 + len(row.drafts)])
                    answered.append(new)
                    self._tell(row.request, new, numbers[at : at + len(new)])
            self.tokens += sum(map(len, answered))
            self.scheduler.done(step, answered, time.monotonic())

    def _tell(self, request: Request, tokens: Sequence[int], results: np.ndarray) -> None:
        if answer := self.answers.get(request):
            for token in map(Token.of, results) if answer.choice.logprobs else map(Token, tokens):
                answer.add(token)

    def _ended(self, request: Request) -> None:
        answer = self.answers.pop(request, None)
        if answer is not None:
            answer.end()

    # Where a step raises.

    def _recover(self, rows: Sequence[Row], error: Exception) -> None:
        """Ends the requests that are to blame; all others are computed again. Of several hosts
        another may not have raised, or have ended: then all end."""
        if self.hosts.count > 1:
            said = f"a step raised on process {self.hosts.number} of {self.hosts.count}"
            raise ServingError(f"{said}, unless another has ended: {cause(error)}") from error
        self._queued = None
        self.failures, self.failing = self.failures + 1, self.failing + 1
        blamed: dict[Request, Exception | None] = {}
        for row in rows:
            blamed[row.request] = blamed.get(row.request) or self._raised_by(row)
        if self.failing >= _TRIES and not any(blamed.values()):
            blamed = dict.fromkeys(blamed, error)
        self.executables.fresh()
        with self.changed:
            for request, why in blamed.items():
                if why is not None:
                    said = f"failed: {type(why).__name__}: {cause(why)}"
                    self.scheduler.cancel(request, said, time.monotonic())
            self.scheduler.restart()

    def _raised_by(self, row: Row) -> Exception | None:
        """What a row raises by itself."""
        self.executables.fresh()
        with self.changed:
            if row.request.ended:
                return None
            step = Step([row])
            arrays = self._packed(step, None)
        try:
            np.asarray(self._start(step, arrays))
        except Exception as error:
            return error
        return None


def _requests(step: Step) -> list[Request]:
    return [row.request for row in step.rows]
