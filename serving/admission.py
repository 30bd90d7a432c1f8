"""Who is let in: requests that those before them leave time for. The others are refused before they cost anything.

The limit follows the model: so many requests may be pending as can be answered, at the speed of the latest batches,
before the deadline of the one that comes. Refusing late costs what an answer costs, and the goodput with it.

Estimates err, most of all under the load that they are there for, and a queue as long as the deadline allows makes
everybody late then. So those who wait may fill only a part of a deadline: less after each answer that came too late or
nearly so, slowly more after those in time (additive increase, multiplicative decrease).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.batching import OverloadedError
from serving.path_metrics import PathMetrics
from serving.problems import problem_response

DEADLINE_HEADER = "X-Deadline-Ms"

_PATHS = frozenset({"/v1/recommend", "/v1/recommend:batch", "/v1/rank"})

_MOST_FILLED, _LEAST_FILLED = 0.45, 0.1
"""Share of a deadline that those who wait may fill, at most and at least. Batches are full with less; with more, the
slightest error made answers late: at three times the rate of saturation 17 % fewer were good with 0.6."""
_MORE, _LESS = 0.001, 0.9
"""What an answer in time adds to that share, and what a late one leaves of it."""
_PAUSE_S = 0.1
"""Answers that are late together, within this time, are one sign."""
_NEARLY = 0.9
"""Share of a deadline after which an answer is as good as late: the client's way counts too."""


@dataclass(eq=False)
class Ticket:
    """A request that was let in, before its body was read."""

    entered: float
    deadline_s: float
    """Seconds from then; corrected by who has read the body and knows better."""
    has_others_before: bool
    """Whether those before it cost it time; if not, being late says nothing about how many may wait."""
    is_aside: bool = False
    """Whether it waits in another line, and counts no more."""


class Admission:
    """Counts the pending requests.

    Args:
        wait_s: seconds that a request waits for its answer with so many pending before it, given its deadline in
            seconds from now; 0 where those before it make no difference.
        default_s: the deadline of a request that names none.
        metrics: of the request path.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        wait_s: Callable[[int, float], float],
        default_s: Callable[[], float],
        metrics: PathMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait_s = wait_s
        self._default_s = default_s
        self._metrics = metrics
        self._clock = clock
        self._pending = 0
        self._lessened_at = -math.inf
        self.filled = _MOST_FILLED
        """Share of a deadline that those who wait may fill now."""

    @property
    def pending(self) -> int:
        """Requests that were let in and are not answered yet."""
        return self._pending

    def enter(self, deadline_s: float | None) -> Ticket:
        """Let a request in; `leave` follows.

        Raises:
            OverloadedError: it would be answered too late.
        """
        if deadline_s is None:
            deadline_s = self._default_s()
        wait_s = self._wait_s(self._pending, deadline_s)
        excess = wait_s - self.filled * deadline_s
        if excess > 0:
            self._metrics.shed("overloaded")
            raise OverloadedError(excess)
        self._pending += 1
        self._metrics.pending(self._pending)
        return Ticket(self._clock(), deadline_s, has_others_before=wait_s > 0)

    def step_aside(self, ticket: Ticket) -> None:
        """A request that was let in waits for something else than those that this admits do."""
        if not ticket.is_aside:
            ticket.is_aside = True
            self._pending -= 1
            self._metrics.pending(self._pending)

    def leave(self, ticket: Ticket) -> None:
        """A request that was let in is answered."""
        if ticket.is_aside:
            return
        self._pending -= 1
        self._metrics.pending(self._pending)
        now = self._clock()
        if now - ticket.entered < _NEARLY * ticket.deadline_s:
            self.filled = min(_MOST_FILLED, self.filled + _MORE)
        elif ticket.has_others_before and now - self._lessened_at >= _PAUSE_S:
            self._lessened_at = now
            self.filled = max(_LEAST_FILLED, self.filled * _LESS)


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
            ticket = self.admission.enter(_deadline_s(Headers(scope=scope).get(DEADLINE_HEADER)))
        except OverloadedError as error:
            await overloaded_response(error, self.least_retry_s)(scope, receive, send)
            return
        scope.setdefault("state", {})["ticket"] = ticket
        try:
            await self.app(scope, receive, send)
        finally:
            self.admission.leave(ticket)


async def ticket_of(request: Request) -> Ticket:
    """The ticket of a request that was let in."""
    ticket: Ticket = request.state.ticket
    return ticket


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
