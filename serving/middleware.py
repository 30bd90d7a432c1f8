"""What surrounds every request, as plain ASGI: its id, its log line and metrics, security headers, a size limit."""

from __future__ import annotations

import re
import time
import uuid
from typing import ClassVar
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.problems import problem_response

REQUEST_ID = "X-Request-ID"

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_CONVERTOR = re.compile(r":\w+}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})

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

        with structlog.contextvars.bound_contextvars(request_id=request_id):
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
                _log.info(
                    "request",
                    method=method,
                    path=quote(scope["path"]),
                    status=status,
                    milliseconds=round(seconds * 1000, 1),
                )


class SecurityHeadersMiddleware:
    """Keeps the browser to our own files: no foreign scripts, no inline code, no framing, no content sniffing."""

    HEADERS: ClassVar[dict[str, str]] = {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class BodyLimitMiddleware:
    """Refuses a body above `max_bytes` with 413: by its declared length at once, else while it streams in."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        detail = f"the body is longer than {self.max_bytes} bytes; send it in several requests"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await problem_response(413, detail)(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                # An HTTPException passes through the framework's reading of the body; others become a 400.
                raise HTTPException(413, detail)
            return message

        await self.app(scope, counted_receive, send)


def _route(scope: Scope) -> str:
    """The template of the route that matched, or its mount; paths themselves would be labels without end."""
    if path := getattr(scope.get("route"), "path", None):
        return _CONVERTOR.sub("}", path)
    # A mount sets no route: it moves its own path from the front of the rest to `root_path`.
    return str(scope.get("root_path")) or "unmatched"
