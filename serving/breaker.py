"""A circuit breaker: what failed many times in a row is left alone for a while, then tried with one request.

Nygard, "Release It!", 2nd edition, section 5.2. Knows nothing of what it guards. Used from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "half_open", "open"]


class CircuitBreaker:
    """Counts failures in a row.

    Args:
        max_failures: that open it.
        open_s: how long it stays open before one request is let through.
        on_change: is told each new state.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_failures: int,
        open_s: float,
        on_change: Callable[[State], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_failures = max_failures
        self._open_s = open_s
        self._on_change = on_change
        self._clock = clock
        self._failures = 0
        self._tried_at = 0.0
        self.state: State = "closed"
        on_change("closed")

    def allows(self) -> bool:
        """Whether to try; the caller then says how it went, if the guarded part was asked at all.

        Of an open breaker every `open_s` one caller hears yes.
        """
        if self.state == "closed":
            return True
        now = self._clock()
        if now - self._tried_at < self._open_s:
            return False
        self._tried_at = now
        self._change("half_open")
        return True

    def succeed(self) -> None:
        """It worked: closed, whatever was before."""
        self._failures = 0
        self._change("closed")

    def fail(self) -> None:
        """It did not."""
        self._failures += 1
        if self.state == "half_open" or self._failures >= self._max_failures:
            self._tried_at = self._clock()
            self._change("open")

    def _change(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._on_change(state)
