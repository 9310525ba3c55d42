"""The HTTP application: routes, keys, limits and errors. What an answer is made of, `chat` and `completions` know."""

import logging
import re
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

import llava
from llava.assistant import Assistant
from llava.errors import EngineError, GrammarError, LlavaError
from llava.serve import docs
from llava.serve.answers import DONE, JSON, event, follow, usage_body
from llava.serve.chat import Prepared, chat_body, chat_chunks, must_call, prepare_chat
from llava.serve.completions import completion_body, completion_chunks, prepare_completion
from llava.serve.errors import ApiError, add_errors, failed, unavailable
from llava.serve.guard import Guard, GuardLimits
from llava.serve.keys import Amounts, Charge, Key, KeyStore, QuotaError
from llava.serve.metrics import Metrics
from llava.serve.pixels import PixelBudget
from llava.serve.pool import ModelPool, Served
from llava.serve.prompts import MediaBytes, MediaLimits, count_visuals, read_messages
from llava.serve.schema import ChatRequest, CompletionRequest

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
log = logging.getLogger("llava.serve")


@dataclass(frozen=True)
class ServerLimits:
    """What clients may ask for. active: requests that wait or run at once; more are told to come back."""

    active: int = 256
    first_seconds: float = 300.0  # that a request waits for its first token
    seconds: float = 1800.0  # that an answer may take
    answer_tokens: int = 1024  # of an answer, unless asked for
    media: MediaLimits = field(default_factory=MediaLimits)
    guard: GuardLimits = field(default_factory=GuardLimits)


@dataclass(eq=False)
class Server:
    """What the routes share. keys: None lets everybody in, as is right on loopback only."""

    pool: ModelPool
    keys: KeyStore | None
    limits: ServerLimits
    metrics: Metrics
    log_content: bool = False
    pixels: PixelBudget = field(default_factory=PixelBudget)
    media: MediaBytes = field(default_factory=MediaBytes)
    active: int = 0
    lately: float = 1.0  # seconds that answers took, a moving mean
    started: int = field(default_factory=lambda: int(time.time()))

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the active requests. Raises ApiError where there is none."""
        if self.active >= self.limits.active:
            raise unavailable(f"{self.active} requests are waiting or running; try again later", min(60, self.lately))
        self.active += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.active -= 1
            self.lately += (time.monotonic() - start - self.lately) / 16

    def admit(self, http: HTTPConnection) -> None:
        """Let a request in, or raise ApiError. `http.state.key` says whose it is.

        A server without keys answers to loopback's names only: a page in the user's browser, under a name that was made
        to point there (DNS rebinding), is refused.
        """
        http.state.key = None
        if self.keys is None:
            # As it was sent: `http.url` has the address of the socket in place of a Host that it cannot read.
            if not _OWN_HOST.fullmatch(http.headers.get("Host", "")):
                raise ApiError(403, "this server answers to the names of loopback only: localhost, 127.0.0.1")
        elif http.scope["path"].startswith(("/v1/", "/metrics")):
            http.state.key = self._key(self.keys, http)

    def _key(self, keys: KeyStore, http: HTTPConnection) -> Key:
        scheme, _, given = http.headers.get("Authorization", "").partition(" ")
        found = keys.find(given.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            message = "expected a header `Authorization: Bearer KEY` with a key of this server"
            raise ApiError(401, message, "authentication_error", "invalid_api_key")
        return found

    def charge(self, key: Key | None, amounts: Amounts) -> Charge | None:
        """Count what a request takes. Raises ApiError where a quota would be exceeded."""
        if self.keys is None or key is None:
            return None
        try:
            return self.keys.charge(key, amounts)
        except QuotaError as error:
            kind, code = "rate_limit_error", "rate_limit_exceeded"
            raise ApiError(429, str(error), kind, code, retry_after=error.retry_after) from None

    def settle(self, charge: Charge | None, amounts: Amounts) -> None:
        """Correct what was counted."""
        if self.keys is not None and charge is not None:
            self.keys.settle(charge, amounts)


def create_app(server: Server) -> FastAPI:
    """The application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await server.pool.close()

    app = FastAPI(
        title="llava", version=llava.__version__, description=docs.DESCRIPTION, lifespan=lifespan, responses=docs.ERRORS
    )
    add_errors(app)
    app.add_middleware(Guard, limits=server.limits.guard, admit=server.admit, requests=server.metrics.requests)

    @app.post("/v1/chat/completions", response_model=None, responses=docs.CHAT, tags=["answers"])
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """Answer a conversation about pictures and videos, or any other."""
        return await _respond(server, http, body)

    @app.post("/v1/completions", response_model=None, responses=docs.COMPLETION, tags=["answers"])
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """Go on with a text, without a chat template."""
        return await _respond(server, http, body)

    @app.get("/v1/models", responses=docs.MODELS, tags=["models"])
    async def models() -> JSON:
        """The models that can be asked for."""
        return {"object": "list", "data": [_model(server, name) for name in server.pool.specs]}

    @app.get("/v1/models/{name:path}", responses=docs.MODEL, tags=["models"])
    async def model(name: str) -> JSON:
        """One of them."""
        return _model(server, server.pool.spec(name).name)

    @app.get("/health", responses=docs.HEALTH, tags=["operation"])
    async def health() -> JSON:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses=docs.HEALTH, tags=["operation"])
    async def ready() -> JSON:
        """Whether there is room for a request."""
        if server.active >= server.limits.active:
            raise ApiError(503, "as many requests as it can hold", "overloaded_error", "server_overloaded")
        return {"status": "ready", "active": server.active}

    @app.get("/metrics", response_class=Response, responses=docs.METRICS, tags=["operation"])
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


Body = ChatRequest | CompletionRequest
Result = TypeVar("Result")


async def _respond(server: Server, http: Request, body: Body) -> Response:
    seconds = server.limits.first_seconds if body.stream else server.limits.seconds
    answer = _answer(server, http, body, time.monotonic() + seconds)
    try:
        with anyio.fail_after(seconds):
            first = await _unless_gone(http, lambda: anext(answer))
    except TimeoutError:
        raise unavailable("the answer took too long; try again later", server.lately) from None
    except BaseException:
        await answer.aclose()
        raise
    if not body.stream:
        await answer.aclose()
        return Response(first, media_type="application/json")
    return _Events(first, answer)


async def _answer(server: Server, http: Request, body: Body, deadline: float) -> AsyncGenerator[bytes, None]:
    """The body of the response in pieces, of which there is one where nothing is streamed. Raises ApiError.

    deadline: on the monotonic clock; where it is cancelled after that, time ran out, and before, the client left.
    """
    key: Key | None = http.state.key
    visuals = count_visuals(body) if isinstance(body, ChatRequest) else 0
    spec = server.pool.spec(body.model)
    with server.admitted(), tempfile.TemporaryDirectory(prefix="llava-") as folder:
        # One token: whose tokens are used up is refused before anything is fetched.
        paid = server.charge(key, Amounts(requests=1, tokens=1, images=visuals))
        async with AsyncExitStack() as held:
            try:
                served = await held.enter_async_context(server.pool.use(spec))
                assistant = served.assistants[spec.name]
                prepared = await _prepare(server, assistant, body, Path(folder), held)
                charge = server.charge(key, Amounts(tokens=prepared.most_tokens - 1))
            except BaseException as error:  # nothing is answered: pictures are not charged, nor what is to come again
                if isinstance(error, ApiError) or time.monotonic() >= deadline:
                    again = not isinstance(error, ApiError) or error.status in (429, 503)
                    server.settle(paid, Amounts(requests=-int(again), tokens=-1, images=-visuals))
                raise
            answered = sum(prepared.prompts)
            try:
                async with aclosing(_bodies(server, spec.name, served, body, prepared)) as bodies:
                    async for piece in bodies:
                        yield piece
            except BaseException as error:
                ours = isinstance(error, ApiError) and error.status >= 500
                if (ours or time.monotonic() >= deadline) and not any(choice.ids for choice in prepared.choices):
                    server.settle(paid, Amounts(requests=-1, images=-visuals))
                    answered = 0
                raise
            finally:
                answered += sum(len(choice.ids) for choice in prepared.choices)
                server.settle(charge, Amounts(tokens=answered - prepared.most_tokens))
                _report(server, spec.name, key, body, prepared)


async def _prepare(server: Server, assistant: Assistant, body: Body, folder: Path, held: AsyncExitStack) -> Prepared:
    """held: keeps what the request takes until it ends."""
    if isinstance(body, ChatRequest):
        messages = await read_messages(body, server.limits.media, folder, server.media, held)
        await held.enter_async_context(server.pixels.room_for(messages))
        return await prepare_chat(body, messages, assistant, server.limits.answer_tokens)
    return await prepare_completion(body, assistant, server.limits.answer_tokens)


async def _bodies(
    server: Server, name: str, served: Served, body: Body, prepared: Prepared
) -> AsyncGenerator[bytes, None]:
    kind = "chatcmpl" if isinstance(body, ChatRequest) else "cmpl"
    head = {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
    head["system_fingerprint"] = f"llava-{llava.__version__}"
    assistant = served.assistants[name]
    started, deadline = False, time.monotonic() + server.limits.seconds
    try:
        deltas = follow(name, served.engine, prepared.requests, prepared.choices, server.metrics)
        async with aclosing(deltas):
            async for index, delta, text in deltas:
                if body.stream:
                    choice = prepared.choices[index]
                    if isinstance(body, ChatRequest):
                        chunks = chat_chunks(body, head, assistant, index, choice, delta, text)
                    else:
                        chunks = completion_chunks(body, head, assistant, index, choice, delta, text)
                    for chunk in chunks:
                        started = True
                        yield event(chunk)
                if time.monotonic() > deadline:
                    raise EngineError(f"the answer took more than {server.limits.seconds:g} seconds")
    except LlavaError as error:
        told = _told(error, body)
        if not started:
            raise told from None
        yield event(told.body())  # the status has been sent
        return
    usage = usage_body(prepared.choices, prepared.prompts, prepared.images)
    if not body.stream:
        whole = (
            chat_body(body, head, assistant, prepared.choices, usage)
            if isinstance(body, ChatRequest)
            else completion_body(body, head, assistant, prepared.choices, usage)
        )
        yield bytes(JSONResponse(whole).body)
        return
    if body.wants_usage:
        kind = "chat.completion.chunk" if isinstance(body, ChatRequest) else "text_completion"
        yield event({**head, "object": kind, "choices": [], "usage": usage})
    yield DONE


def _told(error: LlavaError, body: Body) -> ApiError:
    """How a client hears of it."""
    if isinstance(error, EngineError):
        return failed(str(error))
    grammar_of = "tools" if isinstance(body, ChatRequest) and must_call(body) else "response_format"
    return ApiError(400, str(error), param=grammar_of if isinstance(error, GrammarError) else None)


def _report(server: Server, name: str, key: Key | None, body: Body, prepared: Prepared) -> None:
    """One line a request: who, what it took, how it ended; what it said only if asked for."""
    ends = ",".join(choice.reason or "cancelled" for choice in prepared.choices)
    tokens = sum(len(choice.ids) for choice in prepared.choices)
    who = key.name if key else "-"
    log.info("%s key=%s prompt=%d answer=%d end=%s", name, who, sum(prepared.prompts), tokens, ends)
    if server.log_content:
        said = re.sub(
            r"(data:[^,'\"]{0,100},.{40})[^'\"]*", r"\1...", str(body.model_dump(mode="json", exclude_unset=True))
        )
        log.info("request %s answers %s", said, [choice.text for choice in prepared.choices])


async def _unless_gone(http: Request, call: Callable[[], Awaitable[Result]]) -> Result:
    """What the call gives. Raises ApiError, and ends the call, when the client leaves."""
    results: list[Result] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            results.append(await call())
        except Exception as error:  # noqa: BLE001  raised again below, not as part of a group
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not results:
        raise ApiError(499, "the client left", "client_error", "client_closed_request")
    return results[0]


class _Events(StreamingResponse):
    """Server-sent events whose source is ended, and so its work, as soon as the client leaves."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(_after(first, rest), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()  # never waits: what it ends is told, not awaited


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _model(server: Server, name: str) -> JSON:
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "llava",
        "loaded": server.pool.specs[name].place in server.pool.loaded,
    }
