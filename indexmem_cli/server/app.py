"""The routes of the server, and what guards them."""

import hmac
import json
import logging
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from re import DOTALL, findall
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.errors import IndexMemError
from indexmem_cli.events import Answer, Loaded, Notice, Progress, TokenText
from indexmem_cli.library.manifest import Manifest
from indexmem_cli.server.metrics import Metrics
from indexmem_cli.server.protocol import (
    ChatRequest,
    Completion,
    count_usage,
    describe_error,
    error_body,
)
from indexmem_cli.server.shelf import Brought, Shelf
from indexmem_cli.server.worker import Worker

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig  # not in the last version for Python 3.10

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_log = logging.getLogger("indexmem.server")


@dataclass(frozen=True)
class ServerConfig:
    """What the server is called, and what it lets in."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    """What clients must send as a bearer token; None lets everyone on this machine in."""
    most_waiting: int = 64
    """Requests that may wait for their turn."""
    most_documents: int = 32
    """Documents kept at a time."""
    most_bytes: int = 256 * 2**20
    """Largest document."""


class Server:
    """One model, its documents and its clients."""

    def __init__(
        self, config: ServerConfig, memory: MemoryConfig, model: ModelConfig, answer: AnswerConfig
    ) -> None:
        self.config, self.model, self.answer = config, model, answer
        self.shelf = Shelf(memory, model, config.most_documents)
        self.worker = Worker(config.most_waiting)
        self.metrics = Metrics(self.worker)

    def close(self) -> None:
        """Stop the model's thread and remove what was kept."""
        self.worker.close()
        self.shelf.close()

    async def chat(self, request: ChatRequest) -> Response:
        """Answer a chat completion, whole or as a stream."""
        how = request.answer_config(self.answer)
        text, question = request.split()
        self.shelf.check(request.memories)
        events = self.worker.events(
            lambda: self.shelf.events(request.memories, text, question, how)
        )
        completion = Completion(self.model.model)
        if request.stream:
            chunks = self._stream(events, completion, request, question)
            # Up to the first word an error still has a status of its own.
            first = await anext(chunks)
            body = _rejoin(first, chunks)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(body, media_type="text/event-stream", headers=headers)
        tokens = 0
        async with aclosing(events):
            async for event in events:
                tokens += isinstance(event, TokenText)
                if isinstance(event, Answer):
                    usage = self._count(event, question, tokens)
                    return JSONResponse(completion.whole(event, usage))
        raise AssertionError("a session ends with an answer")

    async def _stream(
        self,
        events: AsyncGenerator[Any, None],
        completion: Completion,
        request: ChatRequest,
        question: str,
    ) -> AsyncGenerator[str, None]:
        """Turn events into server-sent events; a failure on the way is one of them."""
        tokens, begun = 0, False
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Loaded | Notice):
                        continue
                    if not begun:
                        begun = True
                        yield _sse(completion.chunk({"role": "assistant", "content": ""}))
                    match event:
                        case Progress() if request.progress:
                            yield _sse(completion.chunk(progress=asdict(event)))
                        case Progress():
                            yield ": reading\n\n"  # keeps the connection open
                        case TokenText(piece):
                            tokens += 1
                            if piece:
                                yield _sse(completion.chunk({"content": piece}))
                        case Answer():
                            usage = self._count(event, question, tokens)
                            yield _sse(completion.chunk({}, event))
                            if request.stream_options and request.stream_options.include_usage:
                                yield _sse(completion.chunk(usage=usage))
        except Exception as error:
            if not begun:
                raise
            _log_fault(error)
            yield _sse(describe_error(error)[1])
        yield "data: [DONE]\n\n"

    def _count(self, answer: Answer, question: str, events: int) -> dict[str, Any]:
        # Each token is one event, and one more flushes what is left of the last character.
        usage = count_usage(answer, self.shelf.question_tokens(question), max(0, events - 1))
        self.metrics.count_tokens(usage)
        return usage

    async def bring(self, request: Request) -> Brought:
        """Take a document in: the body is the file, `name` in the query is what it is called."""
        data = bytearray()
        async for block in request.stream():
            data += block
            if len(data) > self.config.most_bytes:
                limit = self.config.most_bytes // 2**20
                raise HTTPException(413, f"larger than {limit} MiB")
        name = unquote(request.query_params.get("name", "document"))
        return await run_in_threadpool(self.shelf.add, name, bytes(data))


def make_app(server: Server) -> FastAPI:
    """Return the application: routes, guards, errors in the protocol's form."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.close()

    silent: TelemetryConfig = {
        "tracing": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
    }
    app = FastAPI(
        title="indexmem", lifespan=lifespan, openapi_url=None, telemetry=silent, docs_url=None
    )
    app.middleware("http")(_guard(server))
    _add_errors(app)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": _policy(PAGE)})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        waiting = server.worker.waiting
        return {
            "status": "ok",
            "model": server.model.model,
            "loaded": server.shelf.is_loaded,
            "waiting": waiting,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=server.metrics.content_type)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": server.model.model, "object": "model", "created": 0, "owned_by": "indexmem"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Response:
        return await server.chat(request)

    _add_memories(app, server)
    return app


def _add_memories(app: FastAPI, server: Server) -> None:
    """Let documents be listed, brought and removed."""

    @app.get("/v1/memories")
    async def memories() -> dict[str, Any]:
        brought = [_as_json(each) for each in server.shelf.all()]
        saved = await run_in_threadpool(server.shelf.saved)
        return {"object": "list", "data": brought + [_saved_as_json(each) for each in saved]}

    @app.post("/v1/memories", status_code=201)
    async def bring(request: Request) -> dict[str, Any]:
        return _as_json(await server.bring(request))

    @app.delete("/v1/memories/{memory_id}")
    async def forget(memory_id: str) -> dict[str, Any]:
        server.shelf.remove(memory_id)
        return {"id": memory_id, "object": "memory.deleted", "deleted": True}


def _guard(server: Server) -> Any:
    """Keep out other sites, names that were rebound to this machine, and wrong keys."""
    hosts = {*LOCAL_HOSTS, server.config.host}

    async def guard(request: Request, call_next: Any) -> Response:
        started = time.monotonic()
        origin = request.headers.get("origin")
        if server.config.host in LOCAL_HOSTS and request.url.hostname not in hosts:
            response = _refuse(403, "this server is for this machine alone", "wrong_host")
        elif origin and urlsplit(origin).netloc != request.headers.get("host"):
            response = _refuse(403, "requests of other sites are refused", "wrong_origin")
        elif request.url.path.startswith(("/v1/", "/metrics")) and not _has_key(server, request):
            response = _refuse(401, "the API key is missing or wrong", "invalid_api_key")
        else:
            response = await call_next(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        server.metrics.count_request(path, response.status_code, time.monotonic() - started)
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return guard


def _has_key(server: Server, request: Request) -> bool:
    if server.config.api_key is None:
        return True
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    return hmac.compare_digest(given.encode(), server.config.api_key.encode())


def _add_errors(app: FastAPI) -> None:
    """Give every failure the protocol's form."""

    @app.exception_handler(IndexMemError)
    async def known(_: Request, error: IndexMemError) -> JSONResponse:
        status, body = describe_error(error)
        headers = {"Retry-After": "5"} if status == 503 else None
        return JSONResponse(body, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = f"{where}: {first['msg']}" if where else first["msg"]
        body = error_body(message, "invalid_request_error", param=where or None)
        return JSONResponse(body, 400)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return _refuse(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        _log_fault(error)
        status, body = describe_error(error)
        return JSONResponse(body, status)


def _refuse(status: int, message: str, code: str | None = None) -> JSONResponse:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, code), status)


def _log_fault(error: Exception) -> None:
    if not isinstance(error, IndexMemError):
        _log.error("a request failed", exc_info=error)


def _as_json(brought: Brought) -> dict[str, Any]:
    return {
        "id": brought.id,
        "object": "memory",
        "name": brought.name,
        "size_bytes": brought.size_bytes,
        "pages": brought.pages,
        "saved": False,
    }


def _saved_as_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "object": "memory",
        "name": manifest.name or manifest.source,
        "size_bytes": manifest.num_bytes,
        "pages": manifest.coverage.get("pages_total", 0),
        "saved": True,
    }


async def _rejoin(first: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    yield first
    async with aclosing(rest):
        async for chunk in rest:
            yield chunk


def _sse(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"


def _policy(page: str) -> str:
    """Let the page run its own script and style, and talk to its own server; nothing else."""
    allowed = {}
    for tag in ("script", "style"):
        (text,) = findall(rf"<{tag}>(.*?)</{tag}>", page, DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        allowed[tag] = f"{tag}-src 'sha256-{digest}'"
    return (
        f"default-src 'none'; {allowed['script']}; {allowed['style']}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
