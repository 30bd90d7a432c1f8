"""When a call is made again, and after how long. Knows no HTTP library.

Every call may be made again: reading changes nothing, an event counts once under its id, an item is what was put last.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
"""Answers that another attempt may change."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential backoff with full jitter, and no sooner than the service says.

    Raises:
        ValueError: a value is out of range.
    """

    attempts: int = 4
    """Calls in all, the first one included."""
    first_s: float = 0.1
    """The longest wait before the second attempt; it doubles with each further one."""
    longest_s: float = 5.0
    """The longest wait of all. A service that asks for more is not asked again."""
    random: Callable[[], float] = random.random
    """Numbers from 0 to 1."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_s < 0 or self.longest_s < 0:
            raise ValueError("attempts must be at least 1, first_s and longest_s at least 0")

    def wait_s(self, attempt: int, retry_after_s: float | None) -> float | None:
        """Seconds to wait after a failed attempt; None: give up.

        Args:
            attempt: how many attempts there were, at least 1.
            retry_after_s: what the service asked for, if anything.
        """
        if attempt >= self.attempts or (retry_after_s or 0) > self.longest_s:
            return None
        # All clients that were refused together would come back together: each waits a random part of the time.
        jittered = self.random() * min(self.longest_s, self.first_s * 2.0 ** (attempt - 1))
        return max(jittered, retry_after_s or 0)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds of a `Retry-After` header: seconds or a date (RFC 9110, 10.2.3); None when it holds neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
