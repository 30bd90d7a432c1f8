"""A token bucket for every client, in this process. Knows no HTTP.

Each process has buckets of its own: n processes together let n times the rate through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a request may pass, and what is left."""

    allowed: bool
    remaining: int
    """Requests that would pass at once after this one."""
    wait_s: int
    """Whole seconds until a request would pass; 0 when one would now."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """Lets `burst` requests of a client through at once, and `rate` a second in the long run.

    Holds one small bucket a client, and the number of clients is that of the keys.

    Args:
        rate: requests a second, above 0.
        burst: requests at once, at least 1.
        clock: seconds that never go back.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError(f"rate must be above 0 and burst at least 1, got {rate} and {burst}")
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, client: str) -> Verdict:
        """Let one request of `client` through, or say how long it has to wait; a refused request costs nothing."""
        now = self._clock()
        bucket = self._buckets.setdefault(client, _Bucket(tokens=self.burst, filled_at=now))
        bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.filled_at) * self.rate)
        bucket.filled_at = now
        # Sums of rates miss whole numbers by rounding errors; a client that waited as told must get through.
        allowed = bucket.tokens >= 1 - 1e-9
        if allowed:
            bucket.tokens = max(0.0, bucket.tokens - 1)
        wait_s = math.ceil(max(0.0, 1 - bucket.tokens - 1e-9) / self.rate)
        return Verdict(allowed=allowed, remaining=int(bucket.tokens + 1e-9), wait_s=wait_s)
