"""Who is let in: requests that those before them leave time for. The others are refused before they cost anything.

The limit follows the model: so many requests may be pending as can be answered, at the speed of the latest batches,
before the deadline of the one that comes. Refusing late costs what an answer costs, and the goodput with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.batching import OverloadedError
from serving.path_metrics import PathMetrics
from serving.problems import problem_response

DEADLINE_HEADER = "X-Deadline-Ms"

_PATHS = frozenset({"/v1/recommend", "/v1/recommend:batch", "/v1/rank"})


class Admission:
    """Counts the pending requests.

    Args:
        excess_s: seconds by which a request misses its deadline, given in seconds from now, with so many before it.
        default_s: the deadline of a request that names none.
        metrics: of the request path.
    """

    def __init__(
        self,
        excess_s: Callable[[int, float], float],
        default_s: Callable[[], float],
        metrics: PathMetrics,
    ) -> None:
        self._excess_s = excess_s
        self._default_s = default_s
        self._metrics = metrics
        self._pending = 0

    @property
    def pending(self) -> int:
        """Requests that were let in and are not answered yet."""
        return self._pending

    def enter(self, deadline_s: float | None) -> None:
        """Let a request in; `leave` follows.

        Raises:
            OverloadedError: it would be answered too late.
        """
        excess = self._excess_s(self._pending, self._default_s() if deadline_s is None else deadline_s)
        if excess > 0:
            self._metrics.shed("overloaded")
            raise OverloadedError(excess)
        self._pending += 1
        self._metrics.pending(self._pending)

    def leave(self) -> None:
        """A request that was let in is answered."""
        self._pending -= 1
        self._metrics.pending(self._pending)


class AdmissionMiddleware:
    """Answers 503 with Retry-After to a recommendation that would come too late, before its body is read."""

    def __init__(self, app: ASGIApp, *, admission: Admission, least_retry_s: int) -> None:
        self.app = app
        self.admission = admission
        self.least_retry_s = least_retry_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["path"] not in _PATHS:
            await self.app(scope, receive, send)
            return
        try:
            self.admission.enter(_deadline_s(Headers(scope=scope).get(DEADLINE_HEADER)))
        except OverloadedError as error:
            await overloaded_response(error, self.least_retry_s)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.admission.leave()


def overloaded_response(error: OverloadedError, least_retry_s: int) -> Response:
    """503, and when to come again."""
    seconds = max(least_retry_s, math.ceil(error.retry_after_s))
    return problem_response(
        503,
        f"more requests wait than can be answered in time; retry in {seconds} s, or give {DEADLINE_HEADER} more time",
        headers={"Retry-After": str(seconds)},
    )


def _deadline_s(header: str | None) -> float | None:
    """What the header says; None where it says nothing that makes sense, which the route refuses."""
    try:
        milliseconds = float(header or "")
    except ValueError:
        return None
    return milliseconds / 1000 if milliseconds > 0 else None
