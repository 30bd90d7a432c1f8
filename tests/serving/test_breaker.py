from __future__ import annotations

import pytest

from serving.breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _breaker(clock: Clock, states: list[str]) -> CircuitBreaker:
    return CircuitBreaker(max_failures=3, open_s=5, on_change=states.append, clock=clock)


def test_failures_in_a_row_open_it_and_a_success_between_does_not(clock: Clock) -> None:
    breaker = _breaker(clock, [])
    for outcome in (breaker.fail, breaker.fail, breaker.succeed, breaker.fail, breaker.fail):
        outcome()
        assert breaker.allows()
    breaker.fail()
    assert not breaker.allows()


def test_after_a_while_one_request_tries_and_decides(clock: Clock) -> None:
    states: list[str] = []
    breaker = _breaker(clock, states)
    for _ in range(3):
        breaker.fail()
    clock.now = 4.9
    assert not breaker.allows()
    clock.now = 5.0
    assert (breaker.allows(), breaker.allows()) == (True, False)
    breaker.fail()
    clock.now = 9.9
    assert not breaker.allows()
    clock.now = 10.0
    assert breaker.allows()
    breaker.succeed()
    assert breaker.allows()
    assert breaker.allows()
    assert states == ["closed", "open", "half_open", "open", "half_open", "closed"]


def test_a_trial_that_nobody_reports_on_does_not_keep_it_open_for_ever(clock: Clock) -> None:
    breaker = _breaker(clock, [])
    for _ in range(3):
        breaker.fail()
    clock.now = 5.0
    assert breaker.allows()
    clock.now = 10.0
    assert breaker.allows()
