"""A token bucket for every client, shared by all processes of a service on one machine. Knows no HTTP.

Services on several machines have buckets of their own: n of them together let n times the rate through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a request may pass, and what is left."""

    allowed: bool
    remaining: int
    """Requests that would pass at once after this one."""
    wait_s: int
    """Whole seconds until a request would pass; 0 when one would now."""


@dataclass(slots=True)
class Bucket:
    """What is left to a client."""

    tokens: float
    filled_at: float
    """When there were so many, in seconds of the clock."""


class Buckets(Protocol):
    """The buckets of all clients."""

    def hold(self, client: str) -> AbstractContextManager[Bucket]:
        """The bucket of a client, for nobody else as long as it is held; full when it is new. What is changed in it
        is kept."""


class OwnBuckets:
    """The buckets of one process.

    Args:
        burst: what a full one holds.
    """

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._buckets: dict[str, Bucket] = {}

    @contextmanager
    def hold(self, client: str) -> Iterator[Bucket]:
        """See `Buckets`."""
        yield self._buckets.setdefault(client, Bucket(tokens=self._burst, filled_at=-math.inf))


class RateLimiter:
    """Lets `burst` requests of a client through at once, and `rate` a second in the long run.

    Holds one small bucket a client, and the number of clients is that of the keys.

    Args:
        rate: requests a second, above 0.
        burst: requests at once, at least 1.
        clock: seconds that never go back, the same in all processes that share the buckets.
        buckets: those that are shared with other processes; None: this process is alone.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        buckets: Buckets | None = None,
    ) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError(f"rate must be above 0 and burst at least 1, got {rate} and {burst}")
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._buckets = OwnBuckets(burst) if buckets is None else buckets

    def take(self, client: str) -> Verdict:
        """Let one request of `client` through, or say how long it has to wait; a refused request costs nothing."""
        with self._buckets.hold(client) as bucket:
            now = self._clock()
            bucket.tokens = min(self.burst, bucket.tokens + max(0.0, now - bucket.filled_at) * self.rate)
            bucket.filled_at = now
            # Sums of rates miss whole numbers by rounding errors; a client that waited as told must get through.
            allowed = bucket.tokens >= 1 - 1e-9
            if allowed:
                bucket.tokens = max(0.0, bucket.tokens - 1)
        wait_s = math.ceil(max(0.0, 1 - bucket.tokens - 1e-9) / self.rate)
        return Verdict(allowed=allowed, remaining=int(bucket.tokens + 1e-9), wait_s=wait_s)
