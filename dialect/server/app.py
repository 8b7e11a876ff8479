"""The server: routes, who may ask, how much, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dialect.engine.engine import Engine
from dialect.server import asked as asking
from dialect.server.asked import Asked
from dialect.server.choices import Choices
from dialect.server.metrics import Metrics
from dialect.server.page import PAGE
from dialect.server.refusals import Refusal
from dialect.server.texts import Texts
from dialect.server.told import Told
from dialect.serving.policy import ServingError

Handler = Callable[[Request], Awaitable[Response]]
_DONE = "data: [DONE]\n\n"
_GONE = 499  # the client has left; nobody reads it


@dataclass(frozen=True)
class Limits:
    """How much is taken: requests that wait before others are sent away, bytes of a body."""

    waiting: int = 256
    body_bytes: int = 1 << 20


@dataclass
class Server:
    """An engine and its texts behind HTTP.

    name: of the model; stop: tokens behind which an answer ends; token: what clients must send
    ("" for nothing).
    """

    engine: Engine
    texts: Texts
    name: str
    stop: list[int] = field(default_factory=list)
    token: str = ""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        self.metrics, self.started = Metrics(self.engine), int(time.time())

    def app(self) -> Starlette:
        """The application, which closes the engine when it ends."""
        routes: list[tuple[str, str, Handler]] = [
            ("POST", "/v1/completions", partial(self.answer, chat=False)),
            ("POST", "/v1/chat/completions", partial(self.answer, chat=True)),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{name:path}", self.model),
            ("GET", "/metrics", self.figures),
        ]
        open_ = [Route("/", self.page), Route("/health", self.health)]
        guarded = [
            Route(path, partial(self._guarded, handler), methods=[method])
            for method, path, handler in routes
        ]

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            self.engine.close()

        return Starlette(routes=[*open_, *guarded], lifespan=lifespan)

    # Routes.

    async def page(self, _: Request) -> Response:
        """A page to try it in a browser."""
        return HTMLResponse(PAGE.replace("{name}", self.name))

    async def health(self, _: Request) -> Response:
        """Whether requests are served."""
        well = not self.engine.driver.closed
        return JSONResponse({"status": "ok" if well else "closed"}, 200 if well else 503)

    async def figures(self, _: Request) -> Response:
        """Metrics, as Prometheus reads them."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        """The list of the one model."""
        return JSONResponse({"object": "list", "data": [self._about()]})

    async def model(self, request: Request) -> Response:
        """The one model."""
        name = request.path_params["name"]
        if name != self.name:
            raise Refusal(f"there is no model {name!r}, but {self.name!r}", 404, "model")
        return JSONResponse(self._about())

    async def answer(self, request: Request, chat: bool) -> Response:
        """A completion, or the next message of a conversation."""
        body, longest = await self._body(request), self.engine.built.sizes.context
        asked = asking.read(body, chat, self.texts, (self.name, "default"), longest)
        self._must_have_room(len(asked.prompts) * asked.choices)
        choices = Choices(self.engine, self.texts, asked, self.stop)
        told = Told(asked, self.texts, self.name)
        if asked.stream:
            events = self._events(choices, asked, told)
            return StreamingResponse(events, media_type="text/event-stream")
        pieces = await self._unless_gone(request, choices)
        return JSONResponse(told.whole(pieces, choices.answers))

    # What they share.

    async def _guarded(self, handler: Handler, request: Request) -> Response:
        try:
            self._must_be_known(request)
            response = await handler(request)
        except Refusal as refusal:
            response = JSONResponse(refusal.told(), refusal.status, refusal.headers)
        except ServingError as error:
            response = JSONResponse(Refusal(error.message, 500).told(), 500)
        except ClientDisconnect:
            response = Response(status_code=_GONE)
        self.metrics.requests.labels(str(response.status_code)).inc()
        return response

    def _must_be_known(self, request: Request) -> None:
        sent = request.headers.get("authorization", "").encode()
        if self.token and not hmac.compare_digest(sent, f"Bearer {self.token}".encode()):
            raise Refusal("the bearer token is missing or wrong", 401)

    def _must_have_room(self, count: int) -> None:
        """Sends a request away that would wait behind too many; the line moves on in seconds."""
        figures = self.engine.figures()
        if figures["waiting"] + count > max(self.limits.waiting, count):
            after_s = 1 + figures["waiting"] // self.engine.built.sizes.rows
            message = f"{figures['waiting']} requests are waiting"
            raise Refusal(message, 429, after_s=min(after_s, 60))

    async def _body(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.limits.body_bytes:
                raise Refusal(f"more than {self.limits.body_bytes} bytes", 413)
            parts.append(part)
        return b"".join(parts)

    async def _unless_gone(self, request: Request, choices: Choices) -> Any:
        """The answers, once they have ended. Raises ClientDisconnect where the client leaves."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        work, leaves = (asyncio.create_task(task) for task in (choices.all_whole(), gone()))
        try:
            await asyncio.wait((work, leaves), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            return work.result()
        finally:
            work.cancel()
            leaves.cancel()
            self._ended(choices)

    async def _events(self, choices: Choices, asked: Asked, told: Told) -> AsyncIterator[str]:
        """Server-sent events: a chunk for every piece of text, and [DONE]."""
        begun: set[int] = set()
        try:
            async for number, piece in choices.as_they_come():
                yield _event(told.chunk(number, piece, number not in begun))
                begun.add(number)
            if asked.usage:
                yield _event(told.last(choices.answers))
        except ServingError as error:
            yield _event(Refusal(error.message, 500).told())
        finally:
            self._ended(choices)
        yield _DONE

    def _ended(self, choices: Choices) -> None:
        choices.cancel()
        for answer in choices.answers:
            self.metrics.ended(answer)

    def _about(self) -> dict[str, Any]:
        about = {"id": self.name, "object": "model", "owned_by": "shardwright"}
        return about | {"created": self.started, "max_model_len": self.engine.built.sizes.context}


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"
