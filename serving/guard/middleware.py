"""Who asks, and whether that is too much: the key of a request, its rate, its role, and the host it was meant for."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.guard.keys import KeyRing, StoredKey
from serving.guard.limiter import RateLimiter, Verdict
from serving.guard.roles import UNLIMITED_PATHS, allows, is_public, role_of
from serving.metrics import Metrics
from serving.problems import ProblemError, problem_response

_SCHEME = "bearer "
_HOW = "send Authorization: Bearer KEY, with a key that `recsys keys create` made"
_CHALLENGE = 'Bearer realm="recsys"'


class KeyMiddleware:
    """Refuses what carries no known key with 401, and a client that asks too often with 429.

    It comes before the body is read. A known client stands in the request's state as `client`; its role is judged by
    `check_role`, once the operation is known.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, limiter: RateLimiter | None, metrics: Metrics) -> None:
        self.app = app
        self.keys = keys
        self.limiter = limiter
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or is_public(scope["path"]):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization", "")
        key = self.keys.recognise(given[len(_SCHEME) :].strip()) if given.lower().startswith(_SCHEME) else None
        if key is None:
            self.metrics.count_refused("unknown_key" if given else "no_key")
            detail = f"the key is unknown or was revoked; {_HOW}" if given else f"a key is needed; {_HOW}"
            challenge = f'{_CHALLENGE}, error="invalid_token"' if given else _CHALLENGE
            await problem_response(401, detail, headers={"WWW-Authenticate": challenge})(scope, receive, send)
            return
        scope.setdefault("state", {})["client"] = key
        if self.limiter is None or scope["path"] in UNLIMITED_PATHS:
            await self.app(scope, receive, send)
            return
        verdict = self.limiter.take(key.name)
        headers = _rate_headers(self.limiter, verdict)
        if not verdict.allowed:
            self.metrics.count_refused("rate")
            detail = (
                f"more than {self.limiter.rate:g} requests a second (or {self.limiter.burst} at once); "
                f"ask again in {verdict.wait_s} s"
            )
            response = problem_response(429, detail, headers=headers | {"Retry-After": str(verdict.wait_s)})
            await response(scope, receive, send)
            return

        async def send_with_rate(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self.app(scope, receive, send_with_rate)


class HostMiddleware:
    """Answers only requests that name this machine, with 421 otherwise, and no foreign web pages: 403.

    For a service without keys on the loopback address: else any web page could reach it through the browser of whoever
    runs it, under a name of its own that it lets point here (DNS rebinding), or by a POST, which needs no permission
    and whose answer it need not see (cross-site request forgery).

    Args:
        app: what is guarded.
        origins: of foreign pages that may call all the same.
    """

    NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

    def __init__(self, app: ASGIApp, *, origins: Collection[str] = ()) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if _name_of(headers.get("host", "")) not in self.NAMES:
                detail = "without keys this service answers on the loopback address alone; use http://localhost"
                await problem_response(421, detail)(scope, receive, send)
                return
            # Browsers send it with every request that may change something, and pages cannot forge it.
            origin = headers.get("origin")
            if not (origin is None or origin in self.origins or _name_of(origin.partition("://")[2]) in self.NAMES):
                detail = "pages of other sites may not call a service without keys; allow them by guard.cors_origins"
                await problem_response(403, detail)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _name_of(place: str) -> str:
    """The host of `host:port`."""
    place = place.lower()
    return place[: place.index("]") + 1] if place.startswith("[") and "]" in place else place.partition(":")[0]


def client_of(scope: Scope) -> StoredKey | None:
    """The client of a request; None without keys, on public paths and before it is known."""
    client: StoredKey | None = scope.get("state", {}).get("client")
    return client


async def check_role(request: Request) -> None:
    """Refuse a client whose role is too low. For every operation of an app with keys.

    Raises:
        ProblemError: 403.
    """
    if is_public(request.scope["path"]):
        return
    needed = role_of(getattr(request.scope.get("route"), "operation_id", None))
    client = client_of(request.scope)
    if needed is None or (client is not None and allows(client.role, needed)):
        return
    held = "no key" if client is None else f"a key of role {client.role}"
    request.app.state.context.metrics.count_refused("role")
    raise ProblemError(403, f"the call needs a key of role {needed}, and was made with {held}")


def _rate_headers(limiter: RateLimiter, verdict: Verdict) -> dict[str, str]:
    """As in draft-ietf-httpapi-ratelimit-headers-10: `q` requests in `w` seconds; `r` are left, for `t` seconds."""
    window = max(1, round(limiter.burst / limiter.rate))
    return {
        "RateLimit-Policy": f'"key";q={limiter.burst};w={window}',
        "RateLimit": f'"key";r={verdict.remaining};t={verdict.wait_s}',
    }
