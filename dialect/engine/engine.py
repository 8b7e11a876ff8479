"""A decoder behind an engine: lists of token numbers in, token numbers out.

engine = Engine(step, params, init_cache, mesh="cpu:8")
engine.generate([[1, 2, 3], [4, 5]], max_new_tokens=64)
async for token in engine.submit([1, 2, 3]): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dialect.compiled.compilations import Compilations
from dialect.engine.answers import Answer
from dialect.engine.building import built
from dialect.engine.drafting import Drafting, measured, passes_of, verified
from dialect.engine.driver import Driver
from dialect.engine.explained import explained, figures
from dialect.engine.hosts import Hosts
from dialect.engine.sizes import must_be_options
from dialect.serving.policy import ServingError
from dialect.serving.requests import Request
from dialect.serving.scheduler import Scheduler
from dialect.token_rows.beside import BESIDE, Served, beside
from dialect.token_rows.sampling import Choice
from rewrite.pipeline import Pipeline

PREFILL = (
    "prefill is not called: a prompt is computed by the step, in chunks beside answers; so there "
    "is no executable for every length, what others have computed is not computed again, and "
    "whoever is being answered does not wait for whoever asks",
)


class Engine:
    """Serves `step(params, cache, tokens) -> logits, cache`, a token for every sequence at a time.

    - init_cache(batch, context): the step's empty cache
    - mesh, pipeline: as in `auto_shard`; the pipeline has the pass `paged`
    - prefill(params, cache, tokens [batch, time]): may be given, and is not called, because the
      step computes prompts too (`explain` says why)
    - max_context: tokens that a request may have, its answer included
    - rows: requests that run at a time; chunk: tokens of a step, prompts included; max_pages: of
      the pool; page: tokens of a page. What is not given follows from the others, and from the
      machine.
    - draft: guesses of what comes next, which the step verifies; the tokens stay the same. "ngram"
      looks them up in a request's own text, "self" lets the decoder with int4 weights run ahead,
      passes such as 'skip_layers{layers="8-23"}' what they make of it; a second decoder is
      (step, params, init_cache), with the same tokens. draft_length: the most
      of a request, verified wherever they have room; where it is not given, as many as pay, by
      the seconds that steps take
    - policy: fields of `dialect.serving.policy.Policy`, such as victim="cheapest"

    All executables are compiled here; nothing is compiled later. Raises ServingError, and what
    `auto_shard` raises.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        params: Any,
        init_cache: Callable[[int, int], Any],
        mesh: Any = None,
        *,
        prefill: Callable[..., Any] | None = None,
        pipeline: Pipeline | str | Path | None = None,
        max_context: int = 2048,
        rows: int | None = None,
        chunk: int | None = None,
        max_pages: int | None = None,
        page: int | None = None,
        draft: str | Served | None = None,
        draft_length: int | None = None,
        **policy: Any,
    ) -> None:
        must_be_options(policy)
        asked = {"context": max_context, "rows": rows, "chunk": chunk, "pages": max_pages}
        if isinstance(draft, tuple):
            step, params, init_cache = beside((step, params, init_cache), draft)
            draft = BESIDE
        passes = passes_of(draft, draft_length)
        self.hosts = Hosts()
        drafts = verified(draft, draft_length)
        self.built = built(step, params, init_cache, mesh, pipeline, page, passes, drafts, **asked)
        self.draft, self.declined = draft, PREFILL if prefill is not None else ()
        decided = measured(self.built, draft, draft_length)
        decided = self.hosts.shared(decided)  # no two hosts measure the same
        self.policy, self.drafting = self.built.sizes.policy(policy, **decided), Drafting(draft)
        scheduler = Scheduler(self.policy)
        self.driver = Driver(scheduler, self.built, self.hosts, self.drafting)
        self.compilations = Compilations()

    def submit(
        self,
        prompt: Iterable[int],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Iterable[int] = (),
        logprobs: bool = False,
        **about: Any,
    ) -> Answer:
        """Lets a request wait; `async for token in` its answer gives tokens as they come.

        - temperature, top_p, top_k, seed, logprobs: see `dialect.token_rows.sampling.Choice`
        - stop: tokens behind which it ends
        - about: priority, user and deadline, of `dialect.serving.requests.Request`

        Raises ServingError for what the decoder cannot compute.
        """
        if not self.hosts.leads:
            raise ServingError("requests go to process 0", hint="engine.follow() serves them here")
        request = Request(list(prompt), max_new_tokens, frozenset(stop), **about)
        self._must_fit(request)
        request.drafts = self.drafting.of(request)
        choice = Choice(temperature, top_p, top_k, seed, logprobs)
        answer = Answer(request, choice, self.driver.cancel)
        self.driver.submit(answer)
        return answer

    def generate(self, prompts: Iterable[Sequence[int]], **options: Any) -> list[list[int]]:
        """The answers to some prompts, in their order; options are those of `submit`.

        Raises ServingError where one is refused or fails, when all have ended.
        """
        answers = [self.submit(prompt, **options) for prompt in prompts]
        for answer in answers:
            answer.ended.wait()
        return [answer.numbers() for answer in answers]

    def follow(self) -> None:
        """Serves what arrives at the first of several processes, until its engine is closed.

        Raises ServingError where one of them ends before, or makes other steps.
        """
        self.driver.follow()

    def figures(self) -> dict[str, int]:
        """What is there now, and what was counted so far."""
        return figures(self.built, self.driver) | {"compilations": self.compilations.count}

    def explain(self) -> str:
        """What was compiled, where the pages are, what is shared, and what was done and why."""
        told = explained(self.built, self.draft, self.policy, self.figures())
        return "\n".join([told, *self.declined])

    def check(self) -> None:
        """Raises PagesLost unless every page and every request is accounted for."""
        self.driver.check()

    def close(self) -> None:
        """Ends the engine; requests that have not ended are cancelled."""
        self.driver.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _must_fit(self, request: Request) -> None:
        context, vocab = self.built.sizes.context, self.built.vocab
        strange = [token for token in request.tokens if not 0 <= token < vocab]
        if strange:
            raise ServingError(f"there is no token {strange[0]}: the decoder has {vocab}")
        if not request.asked or request.most_new < 1:
            raise ServingError("a request needs a prompt, and room for a new token")
        if request.limit > context:
            asked = f"{request.asked} and {request.most_new} new ones"
            raise ServingError(f"{asked} are more tokens than the {context} of the context")
