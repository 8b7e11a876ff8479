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
from dialect.engine.building import Built
from dialect.engine.drafter import Drafter
from dialect.engine.packing import Packed, packed, tokens_of
from dialect.engine.sampling import LISTED
from dialect.serving.policy import ServingError
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.serving.steps import Row, Step
from rewrite.errors import cause

_LOOK_S = 0.01  # between looks at requests of which none can run
_TRIES = 3  # of steps that raise though none of their requests does alone


class Driver:
    """A thread that runs steps while there are requests."""

    def __init__(self, scheduler: Scheduler, built: Built) -> None:
        self.scheduler, self.executables, self.params = scheduler, built.executables, built.params
        self.drafter: Drafter | None = None
        if built.draft_params is not None:
            self.drafter = Drafter(built.executables, built.draft_params, built.sizes.rows)
        self.answers: dict[Request, Answer] = {}  # of requests that have not ended
        self.changed = threading.Condition()  # guards the scheduler and all that is here
        self.closing = False
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
            if self.closing:
                raise ServingError(f"the engine is closed{self.broken}")
            self.answers[answer.request] = answer
            self.scheduler.submit(answer.request, time.monotonic())
            self.changed.notify()

    def cancel(self, answer: Answer) -> None:
        """Ends a request; nothing happens where it has ended."""
        with self.changed:
            self.scheduler.cancel(answer.request, "cancelled", time.monotonic())
            self.changed.notify()

    def close(self) -> None:
        """Ends the thread; requests that have not ended are cancelled."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    def check(self) -> None:
        """Raises PagesLost unless every page and every request is accounted for."""
        with self.changed:
            self.scheduler.check()

    # In the thread.

    def _run(self) -> None:
        try:
            while not self.closing:
                if not self._step():
                    self._wait()
            why = "cancelled"
        except BaseException as error:
            self.broken = f": {cause(error)}"
            why = f"failed: {cause(error)}"
            raise
        finally:
            with self.changed:
                self.closing = True
                for request in list(self.answers):
                    self.scheduler.cancel(request, why, time.monotonic())

    def _wait(self) -> None:
        with self.changed:
            if not self.closing:
                self.changed.wait(_LOOK_S if self.scheduler.requests else None)

    def _step(self) -> bool:
        """Queues the next step and reads the last; False where there is neither."""
        before, step = self._queued, Step()
        try:
            if before and self._must_be_read(before[0]):
                self._read(*before)
                before = None
            with self.changed:
                step = self.scheduler.schedule(time.monotonic())
                arrays = self._packed(step, before) if step.rows else None
            self._queued = (step, arrays, self._start(step, arrays)) if arrays else None
            if before:
                self._read(*before)
        except Exception as error:  # whatever the user's step raises
            self._recover([*(before[0].rows if before else ()), *step.rows], error)
        return bool(before or step.rows)

    def _must_be_read(self, before: Step) -> bool:
        """Whether a step is read first: its drafts decide what is next, or there will be some."""
        with self.changed:
            return any(row.drafts for row in before.rows) or self.scheduler.wants_to_know()

    def _packed(self, step: Step, before: tuple[Step, Packed, Any] | None) -> Packed:
        """A step in an array; `before`: the one that gives tokens which are not known yet."""
        sources = before[1].answering if before else dict.fromkeys(_requests(step), 0)
        choices = {request: self.answers[request].choice for request in _requests(step)}
        rows = self.executables.smallest(tokens_of(step))
        return packed(step, rows, self.executables.width, sources, choices)

    def _start(self, step: Step, arrays: Packed) -> Any:
        self.executables.copied([(page, copy) for _, page, copy in step.copies])
        if self.drafter is not None:
            self.drafter.fill(step, arrays)
        self.steps += 1
        return self.executables.run(self.params, arrays.rows)

    def _read(self, step: Step, arrays: Packed, results: Any) -> None:
        """Waits for a step, and hands its tokens on."""
        numbers = np.asarray(results)
        self.failing = 0
        answered = []
        with self.changed:
            for row in step.rows:
                if row.answers:
                    at = arrays.answering[row.request]
                    sampled = numbers[at : at + 1 + len(row.drafts)]
                    answered.append(row.taken(sampled[:, 0].tolist()))
                    self._tell(row.request, sampled[: len(answered[-1])])
            self.tokens += sum(map(len, answered))
            self.scheduler.done(step, answered, time.monotonic())

    def _tell(self, request: Request, results: np.ndarray) -> None:
        answer = self.answers.get(request)
        for row in results if answer is not None else ():
            answer.add(_token(row) if answer.choice.logprobs else Token(int(row[0])))

    def _ended(self, request: Request) -> None:
        answer = self.answers.pop(request, None)
        if answer is not None:
            answer.end()

    # Where a step raises.

    def _recover(self, rows: Sequence[Row], error: Exception) -> None:
        """Ends the requests that are to blame; all others are computed again."""
        self._queued = None
        self.failures, self.failing = self.failures + 1, self.failing + 1
        by_request: dict[Request, list[Row]] = {}
        for row in rows:
            by_request.setdefault(row.request, []).append(row)
        blamed = {request: self._raised_by(steps) for request, steps in by_request.items()}
        if self.failing >= _TRIES and not any(blamed.values()):
            blamed = dict.fromkeys(by_request, error)
        self.executables.fresh()
        with self.changed:
            for request, why in blamed.items():
                if why is not None:
                    said = f"failed: {type(why).__name__}: {cause(why)}"
                    self.scheduler.cancel(request, said, time.monotonic())
            self.scheduler.restart()

    def _raised_by(self, rows: Sequence[Row]) -> Exception | None:
        """What the rows of one request raise by themselves."""
        for row in rows:
            self.executables.fresh()
            with self.changed:
                step = Step([row])
                if row.request.ended:
                    return None
                arrays = self._packed(step, None)
            try:
                np.asarray(self._start(step, arrays))
            except Exception as error:
                return error
        return None


def _requests(step: Step) -> list[Request]:
    return [row.request for row in step.rows]


def _token(row: np.ndarray) -> Token:
    """A token from its row of a step's results (`dialect.engine.sampling`)."""
    which, likely = row[2 : 2 + LISTED], row[2 + LISTED :].view(np.float32)
    log_probability = float(row[1:2].view(np.float32)[0])
    return Token(int(row[0]), log_probability, tuple(zip(which.tolist(), likely.tolist())))
