"""How long a batch takes, learnt from the batches that ran. Knows no queue and no model."""

from __future__ import annotations

import math

_WEIGHT = 0.2
"""Of the newest batch in the mean of its size class."""
_DRIFT = 0.05
"""How far what is known of other size classes follows one batch that was faster or slower than expected: a machine that
others use too is slow for batches of all sizes."""
_HALF_LIFE_S = 5.0
"""What is known of a model that nobody asks any more: half as long after this time, so that one hiccup which makes it
look too slow for every deadline does not keep it from ever being asked again."""
_LEAST_USEFUL = 8
"""No batch need be smaller. Under overload estimates err, and small batches never show what large ones would save: a
service that once believed that sharing saves nothing would stay at the pace of single requests."""
_DIMINISHING = 0.1
"""A batch is large enough when one more request would save less than this share of its cost."""


class CostModel:
    """Seconds of a batch as `fixed + each * size`, fitted by least squares to recent means of each size class.

    A class holds the sizes up to a power of two. Each counts once, so that hours of lone requests do not wash away what
    is known of larger batches, which only follows how much slower or faster the machine is. Until batches of two
    classes ran, nothing is taken to be shared: estimates of larger ones are then too high.

    Args:
        first_s: seconds of one request until one has run.
    """

    def __init__(self, first_s: float = 0.05) -> None:
        self._first_s = first_s
        self._last_s: float | None = None
        self._classes: dict[int, tuple[float, float]] = {}
        self.fixed_s = 0.0
        """What a batch costs whatever its size."""
        self.each_s = first_s
        """What one more request adds."""

    def observe(self, size: int, seconds: float, now: float) -> None:
        """A batch of `size` took `seconds` and ended at `now`, in seconds of a monotonic clock."""
        expected = self.fixed_s + self.each_s * size
        surprise = min(max(seconds / expected, 0.5), 2.0) if self._last_s is not None and expected > 0 else 1.0
        self._last_s = now
        number = (size - 1).bit_length()
        for other, (mean_size, mean_seconds) in self._classes.items():
            if other != number:
                self._classes[other] = mean_size, mean_seconds * (1 + _DRIFT * (surprise - 1))
        mean_size, mean_seconds = self._classes.get(number, (float(size), seconds))
        self._classes[number] = (
            mean_size + _WEIGHT * (size - mean_size),
            mean_seconds + _WEIGHT * (seconds - mean_seconds),
        )
        self._fit()

    def _fit(self) -> None:
        count = len(self._classes)
        size = sum(mean for mean, _ in self._classes.values()) / count
        seconds = sum(mean for _, mean in self._classes.values()) / count
        variance = sum((mean - size) ** 2 for mean, _ in self._classes.values())
        shared = sum((mean - size) * (took - seconds) for mean, took in self._classes.values())
        alone = seconds / size
        self.each_s = alone if count == 1 else min(max(shared / variance, alone / 100), alone)
        self.fixed_s = max(0.0, seconds - self.each_s * size)

    def seconds(self, size: int, now: float) -> float:
        """The estimate for a batch of `size`."""
        idle_s = 0.0 if self._last_s is None else max(0.0, now - self._last_s)
        return self.last_seconds(size) * math.pow(0.5, idle_s / _HALF_LIFE_S)

    def last_seconds(self, size: int) -> float:
        """The estimate as it was when the last batch ended."""
        return float(self.fixed_s + self.each_s * size)

    def largest_useful(self, limit: int) -> int:
        """The size above which sharing saves next to nothing more; at most `limit`, which it is until that is known.

        Small batches answer sooner, so nothing larger is made.
        """
        if len(self._classes) < 2:
            return limit
        return min(limit, max(_LEAST_USEFUL, int(self.fixed_s / (_DIMINISHING * self.each_s))))
