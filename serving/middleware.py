"""What surrounds every request, as plain ASGI: its id, its log line and metrics, security headers, its body's form."""

from __future__ import annotations

import email.message
import re
import time
import uuid
from typing import ClassVar

import anyio
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.guard.middleware import client_of
from serving.metrics import Metrics
from serving.problems import problem_response
from serving.tracing import trace_id

REQUEST_ID = "X-Request-ID"

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_CONVERTOR = re.compile(r":\w+}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/startupz", "/metrics"})

_log = structlog.get_logger(__name__)


class ObservationMiddleware:
    """Gives a request its id (the client's, if harmless), counts and logs it, and answers what crashed with 500."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SAFE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id), self.metrics.in_flight():
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                _log.exception("request failed")
                if status is None:
                    response = problem_response(500, f"internal error; the log has it under request id {request_id}")
                    await response(scope, receive, send_with_id)
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.observe_request(method=method, route=_route(scope), status=status or 499, seconds=seconds)
            if scope["path"] not in _QUIET:
                client = client_of(scope)
                # The template of the path, not the path: that names users.
                _log.info(
                    "request",
                    method=method,
                    route=_route(scope),
                    status=status,
                    milliseconds=round(seconds * 1000, 1),
                    client=None if client is None else client.name,
                    trace_id=trace_id(),
                )


class SecurityHeadersMiddleware:
    """Keeps the browser to our own files: no foreign scripts, no inline code, no framing, no content sniffing.

    And keeps answers of the API, which hold personal data, out of every cache.
    """

    HEADERS: ClassVar[dict[str, str]] = {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.HEADERS)
                if scope["path"].startswith("/v1/"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class BodyLimitMiddleware:
    """Refuses a body above `max_bytes` with 413: by its declared length at once, else while it streams in.

    One that takes longer than `timeout_s` to arrive is refused with 408, and one that is compressed, or text in another
    encoding than UTF-8, with 415.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float = 20) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        detail = f"the body is longer than {self.max_bytes} bytes; send it in several requests"
        headers = Headers(scope=scope)
        if unreadable := _unreadable(headers):
            await problem_response(415, unreadable)(scope, receive, send)
            return
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await problem_response(413, detail)(scope, receive, send)
            return
        received, is_whole = 0, False
        until = anyio.current_time() + self.timeout_s

        async def counted_receive() -> Message:
            nonlocal received, is_whole
            if is_whole:  # what comes now is the end of the connection, which may take its time
                return await receive()
            message: Message | None = None
            with anyio.move_on_after(until - anyio.current_time()):
                message = await receive()
            if message is None:
                raise HTTPException(408, f"the body did not arrive within {self.timeout_s:g} s; send it again")
            is_whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                # An HTTPException passes through the framework's reading of the body; others become a 400.
                raise HTTPException(413, detail)
            return message

        await self.app(scope, counted_receive, send)


def _unreadable(headers: Headers) -> str | None:
    """What to do about a body in an encoding that is not read here; None for one that is."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        return "compressed bodies are not read; send it without Content-Encoding"
    described = email.message.Message()
    described["content-type"] = headers.get("content-type", "application/json")
    charset = described.get_param("charset", "utf-8")
    if str(charset).lower() not in ("utf-8", "utf8"):
        return "only UTF-8 is read; send the body as UTF-8, without another charset"
    return None


def _route(scope: Scope) -> str:
    """The template of the route that matched, or its mount; paths themselves would be labels without end."""
    if path := getattr(scope.get("route"), "path", None):
        return _CONVERTOR.sub("}", path)
    # A mount sets no route: it moves its own path from the front of the rest to `root_path`.
    return str(scope.get("root_path")) or "unmatched"
