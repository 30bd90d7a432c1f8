from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.drift import MIN_SERVED, ServedDrift, jensen_shannon_distance, popularity_deciles

COUNTS = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_deciles_are_tenths_of_the_catalogue_by_popularity() -> None:
    counts = np.arange(20)[::-1].copy()
    assert popularity_deciles(counts).tolist() == [i // 2 for i in range(20)]
    assert popularity_deciles(counts[::-1]).tolist() == [i // 2 for i in range(20)][::-1]
    assert popularity_deciles(np.array([1, 1, 1])).tolist() == [0, 3, 6]


def test_the_distance_has_known_values() -> None:
    assert jensen_shannon_distance([1, 0], [0, 5]) == 1
    assert jensen_shannon_distance([2, 2], [7, 7]) == 0
    # m = (.75, .25): (log2(4/3) + .5 log2(2/3) + .5) / 2 = .311278
    assert jensen_shannon_distance([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.3112781), abs=1e-6)
    with pytest.raises(ValueError, match="without weight"):
        jensen_shannon_distance([0, 0], [1, 1])


@given(COUNTS, COUNTS, COUNTS)
def test_the_distance_is_a_metric_between_0_and_1(a: list[int], b: list[int], c: list[int]) -> None:
    ab, bc, ac = jensen_shannon_distance(a, b), jensen_shannon_distance(b, c), jensen_shannon_distance(a, c)
    assert 0 <= ab <= 1 + 1e-12
    assert ab == pytest.approx(jensen_shannon_distance(b, a))
    assert ac <= ab + bc + 1e-6


def _serve(drift: ServedDrift, item: int, lists: int = MIN_SERVED // 10) -> None:
    for _ in range(lists):
        drift.observe([item] * 10)


def test_drift_is_told_once_both_hours_have_enough_items() -> None:
    clock = Clock()
    drift = ServedDrift(np.array([0, 1]), clock, window_s=100)
    _serve(drift, 0)
    assert math.isnan(drift.distance())
    clock.now = 100
    _serve(drift, 0)
    assert drift.distance() == 0
    clock.now = 200
    _serve(drift, 1)
    assert 0 < drift.distance() < 1, "the last two windows count"
    clock.now = 300
    _serve(drift, 1)
    assert drift.distance() == 1


def test_a_quiet_start_is_no_reference_and_a_quiet_time_no_drift() -> None:
    clock = Clock()
    drift = ServedDrift(np.array([0, 1]), clock, window_s=100)
    drift.observe([1])
    clock.now = 150
    _serve(drift, 0)
    clock.now = 260
    _serve(drift, 0)
    assert drift.distance() < 0.05, "the reference went on until it had enough"
    clock.now = 10_000
    assert math.isnan(drift.distance())


def test_further_items_move_no_other_and_what_was_counted_stays() -> None:
    grown, plain = (ServedDrift(np.array([0, 0, 1]), clock=clock, window_s=1.0) for clock in (Clock(), Clock()))
    for drift in (grown, plain):
        drift.observe([0, 1, 2] * MIN_SERVED)
    grown.grow(np.array([3]))
    for drift in (grown, plain):
        drift._clock.now = 1.5  # type: ignore[attr-defined]
        drift.observe([2] * MIN_SERVED)
    assert grown.distance() == pytest.approx(plain.distance())
    grown.observe([3] * MIN_SERVED)
    assert grown.distance() > plain.distance()
