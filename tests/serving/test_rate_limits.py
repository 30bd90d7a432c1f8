from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from guarded import Guarded, guarded_app
from hypothesis import given
from hypothesis import strategies as st

from feature_store import OnlineStore
from serving.guard.limiter import RateLimiter
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings
from serving.workers.buckets import SharedBuckets


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_then_the_rate_then_a_burst_again_after_a_pause() -> None:
    clock = Clock()
    limiter = RateLimiter(2.0, 3, clock)
    assert [limiter.take("a").remaining for _ in range(3)] == [2, 1, 0]
    refused = limiter.take("a")
    assert (refused.allowed, refused.wait_s) == (False, 1)
    assert limiter.take("b").allowed, "another client has a bucket of its own"
    clock.now += 0.5
    assert [limiter.take("a").allowed for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [limiter.take("a").allowed for _ in range(4)] == [True, True, True, False]


@given(
    rate=st.floats(0.01, 100),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_never_more_than_the_burst_and_the_rate_allow_and_who_waits_gets_through(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    limiter = RateLimiter(rate, burst, clock)
    started, passed = clock.now, 0
    for pause in pauses:
        clock.now += pause
        passed += limiter.take("a").allowed
        assert passed <= burst + rate * (clock.now - started) + 1e-3
    refused = limiter.take("a")
    if not refused.allowed:
        clock.now += refused.wait_s
        assert limiter.take("a").allowed


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0), (math.nan, 0)])
def test_a_limit_that_lets_nothing_through_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="rate must be above 0"):
        RateLimiter(rate, burst)


@pytest.fixture
def guarded(runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path) -> Iterator[Guarded]:
    settings = ServingSettings.model_validate({"guard": {"requests_per_second": 0.01, "burst": 2}})
    with guarded_app(runtime, store, tmp_path, settings) as guarded:
        yield guarded


def test_too_many_requests_are_a_problem_with_a_time_to_retry(guarded: Guarded) -> None:
    first = guarded.client.get("/v1/model", headers=guarded.as_("read"))
    assert first.headers["ratelimit-policy"] == '"key";q=2;w=200'
    assert first.headers["ratelimit"] == '"key";r=1;t=0'
    guarded.client.get("/v1/model", headers=guarded.as_("read"))
    refused = guarded.client.get("/v1/model", headers=guarded.as_("read"))
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert 98 <= int(refused.headers["retry-after"]) <= 100
    assert guarded.client.get("/v1/model", headers=guarded.as_("write")).status_code == 200
    assert guarded.client.get("/v1/model").status_code == 401, "strangers are refused, not counted"


def test_probes_and_metrics_are_never_limited(guarded: Guarded) -> None:
    for _ in range(4):
        for path in ("/healthz", "/readyz", "/startupz", "/metrics"):
            assert guarded.client.get(path, headers=guarded.as_("read")).status_code == 200
    for _ in range(3):
        guarded.client.get("/v1/model", headers=guarded.as_("read"))
    assert 'recsys_refused_total{reason="rate"} 1.0' in guarded.client.get("/metrics", headers=guarded.as_("read")).text


def _take(limiter: RateLimiter, client: str, times: int, allowed: Path) -> None:
    with allowed.open("a") as file:
        for _ in range(times):
            file.write("x" * limiter.take(client).allowed)


def test_processes_with_shared_buckets_let_the_rate_through_once(tmp_path: Path) -> None:
    limiter = RateLimiter(1e-6, 100, buckets=SharedBuckets(100, capacity=4))
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_take, args=(limiter, "shop", 60, tmp_path / str(n))) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(len(file.read_text()) for file in tmp_path.iterdir()) == 100
    assert not limiter.take("shop").allowed
    assert limiter.take("another").remaining == 99


def test_a_bucket_outlives_a_process_that_died_with_it_in_hand() -> None:
    buckets = SharedBuckets(2)

    def die() -> None:
        with buckets.hold("shop"):
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    limiter = RateLimiter(0.01, 2, buckets=buckets)
    assert [limiter.take("shop").allowed for _ in range(3)] == [True, True, False]


def test_more_clients_than_places_are_an_error() -> None:
    limiter = RateLimiter(1, 1, buckets=SharedBuckets(1, capacity=2))
    limiter.take("a")
    limiter.take("b")
    with pytest.raises(RuntimeError, match="more than 2 clients"):
        limiter.take("c")
