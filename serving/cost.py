"""How long a batch takes, learnt from the batches that ran. Knows no queue and no model."""

from __future__ import annotations

_MEMORY = 30
"""Batches that weigh in an estimate, roughly; those before fade out."""
_HALF_LIFE_S = 5.0
"""What is known of a model that nobody asks any more: half as long after this time, so that one hiccup which makes it
look too slow for every deadline does not keep it from ever being asked again."""
_DIMINISHING = 0.1
"""A batch is large enough when one more request would save less than this share of its cost."""


class CostModel:
    """Seconds of a batch as `fixed + each * size`, fitted to recent batches by least squares.

    Until batches of two sizes ran, nothing is taken to be shared: estimates of larger ones are then too high.

    Args:
        first_s: seconds of one request until one has run.
    """

    def __init__(self, first_s: float = 0.05) -> None:
        self._first_s = first_s
        self._count = 0
        self._last_s = 0.0
        self._size = self._seconds = self._size_squared = self._product = 0.0

    def observe(self, size: int, seconds: float, now: float) -> None:
        """A batch of `size` took `seconds` and ended at `now`, in seconds of a monotonic clock."""
        self._count += 1
        self._last_s = now
        weight = max(1 / self._count, 1 / _MEMORY)
        self._size += weight * (size - self._size)
        self._seconds += weight * (seconds - self._seconds)
        self._size_squared += weight * (size * size - self._size_squared)
        self._product += weight * (size * seconds - self._product)

    @property
    def each_s(self) -> float:
        """What one more request adds."""
        if not self._count:
            return self._first_s
        alone = self._seconds / self._size
        variance = self._size_squared - self._size**2
        if variance < 1e-9:
            return alone
        slope = (self._product - self._size * self._seconds) / variance
        return min(max(slope, alone / 100), alone)

    @property
    def fixed_s(self) -> float:
        """What a batch costs whatever its size."""
        return max(0.0, self._seconds - self.each_s * self._size)

    def seconds(self, size: int, now: float) -> float:
        """The estimate for a batch of `size`."""
        estimate = self.fixed_s + self.each_s * size
        if not self._count:
            return estimate
        return float(estimate * 0.5 ** (max(0.0, now - self._last_s) / _HALF_LIFE_S))

    def largest_useful(self, limit: int) -> int:
        """The size above which sharing saves next to nothing more; at most `limit`.

        Small batches answer sooner, so nothing larger is made.
        """
        return max(1, min(limit, int(self.fixed_s / (_DIMINISHING * self.each_s)) if self._count else limit))
