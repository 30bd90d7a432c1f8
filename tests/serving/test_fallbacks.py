"""What answers when the best source fails, is slow or has no room; and what the answer says about it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore, StoreUnavailableError, UserState
from feature_store.aio import AsyncOnlineStore
from recsys.bundle import Bundle
from recsys.generator import Recommendations
from serving import chain
from serving.answers import Query
from serving.app import create_app
from serving.runtime import RecommenderRuntime
from serving.settings import BatchingSettings, BreakerSettings, DeadlineSettings, ExplorationSettings, ServingSettings

SETTINGS = ServingSettings(breaker=BreakerSettings(max_failures=2, open_s=2), model_threads=2)


class Stub:
    """A recommender whose lists begin with `first`; it waits or fails when the test says so."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.most: int | None = None
        self.fails = False
        self.waits_s = 0.0
        self.calls = 0

    def recommend(self, histories, k: int, *, constraints=None, sessions=None) -> Recommendations:
        self.calls += 1
        if self.fails:
            raise RuntimeError("out of memory")
        time.sleep(self.waits_s)
        shape = (len(histories), k)
        items = np.broadcast_to((self.first + np.arange(k)) % 24, shape).copy()
        if self.most is not None:
            items[:, self.most :] = -1
        return Recommendations(items=items, scores=np.zeros(shape, dtype=np.float32))


class Service:
    """A client, and the stubs behind it."""

    def __init__(self, client: TestClient, stubs: dict[str, Stub]) -> None:
        self.client = client
        self.stubs = stubs

    def ask(self, deadline_ms: float | None = None) -> tuple[str, str | None, bool]:
        headers = {} if deadline_ms is None else {"X-Deadline-Ms": str(deadline_ms)}
        response = self.client.post("/v1/recommend", json={"history": ["i0"], "k": 2}, headers=headers)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert len(answer["items"]) == 2
        return answer["source"], answer["fallback_reason"], answer["degraded"]

    def metric(self, line: str) -> float:
        for found in self.client.get("/metrics").text.splitlines():
            if found.startswith(f"{line} "):
                return float(found.split()[-1])
        raise AssertionError(line)


@pytest.fixture
def service(make_runtime, store: OnlineStore) -> Iterator[Service]:
    stubs = {name: Stub(place) for place, name in enumerate(("fusion", "generator", "dense", "counter"))}
    runtime = make_runtime(stubs["generator"], stubs["fusion"], dense=stubs["dense"], counter=stubs["counter"])
    # Rendering a traceback for a terminal takes longer than a request may.
    with capture_logs(), TestClient(create_app(runtime, store, SETTINGS)) as client:
        yield Service(client, stubs)


def test_sources_follow_one_another_down_to_popularity(service: Service) -> None:
    answers = [service.ask()]
    failing = ("fusion", "generator", "dense", "counter")
    for count in range(1, 5):
        for name in failing[:count]:
            service.stubs[name].fails = True
        answers.append(service.ask())
        # A success of each between, so that no breaker opens.
        for name in failing[:count]:
            service.stubs[name].fails = False
            service.ask()
            service.stubs[name].fails = True
    assert answers == [
        ("fusion", None, False),
        ("generator", "fusion_failed", True),
        ("dense", "generator_failed", True),
        ("counter", "dense_failed", True),
        ("popularity", "counter_failed", True),
    ]


@pytest.mark.parametrize("explored", [False, True])
def test_a_list_that_is_long_enough_to_be_shown_need_not_fill_the_candidates(
    make_runtime, store: OnlineStore, explored: bool
) -> None:
    counter, broken = Stub(3), Stub(0)
    counter.most = 10
    settings = SETTINGS.model_copy(update={"exploration": ExplorationSettings(epsilon=1.0)}) if explored else SETTINGS
    body = {"history": ["i0"], "k": 2, "exclude_seen": False}
    if not explored:
        body["boosts"] = [{"weight": 5, "item_ids": ["i5"]}]
    with capture_logs(), TestClient(create_app(make_runtime(broken, counter=counter), store, settings)) as client:
        broken.fails = True
        answer = client.post("/v1/recommend", json=body).json()
        assert (answer["source"], answer["fallback_reason"]) == ("counter", "generator_failed")
        assert {item["item_id"] for item in answer["items"]} <= {f"i{item}" for item in range(3, 13)}
        counter.most = 1
        assert client.post("/v1/recommend", json=body).json()["source"] == "popularity", "one item is no list of two"


def test_what_would_come_too_late_is_replaced_in_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may take longer than a service reckons with.
    monkeypatch.setattr(chain, "_JITTER_S", 0.2)
    service.stubs["fusion"].waits_s = service.stubs["generator"].waits_s = 3.0
    assert service.ask(deadline_ms=1500) == ("dense", "no_time", True)


def test_a_deadline_below_what_a_source_takes_costs_it_nothing(service: Service) -> None:
    for name in ("fusion", "generator"):
        service.stubs[name].waits_s = 0.05
    for _ in range(10):
        service.ask()
    service.stubs["fusion"].waits_s = 0.0
    calls = service.stubs["fusion"].calls
    assert service.ask(deadline_ms=5)[1:] == ("no_time", True)
    assert service.stubs["fusion"].calls == calls
    assert service.metric('recsys_breaker_state{part="fusion"}') == 0
    assert service.ask() == ("fusion", None, False)


def test_what_fails_in_a_row_is_left_alone_and_tried_again_later(service: Service) -> None:
    fusion = service.stubs["fusion"]
    fusion.fails = True
    assert [service.ask()[1] for _ in range(3)] == ["fusion_failed", "fusion_failed", "circuit_open"]
    calls = fusion.calls
    assert service.ask() == ("generator", "circuit_open", True)
    assert fusion.calls == calls
    assert service.metric('recsys_breaker_state{part="fusion"}') == 2
    assert service.metric('recsys_breaker_opens_total{part="fusion"}') == 1
    fusion.fails = False
    time.sleep(2.1)
    assert service.ask() == ("fusion", None, False)
    assert service.metric('recsys_breaker_state{part="fusion"}') == 0


def test_more_than_can_be_answered_in_time_is_refused_with_a_time_to_retry(make_runtime, store: OnlineStore) -> None:
    slow = Stub(3)
    slow.waits_s = 0.2
    settings = ServingSettings(
        model_threads=1, batching=BatchingSettings(max_batch=1), deadline=DeadlineSettings(default_ms=800)
    )
    with TestClient(create_app(make_runtime(slow), store, settings)) as client:
        began = threading.Barrier(12)

        def ask(_: int) -> tuple[int, dict[str, str]]:
            began.wait()
            response = client.post("/v1/recommend", json={"history": ["i0"], "k": 2})
            return response.status_code, dict(response.headers)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))
        metrics = client.get("/metrics").text
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert 1 <= statuses.count(200) <= 5
    for status, headers in answers:
        if status == 503:
            assert int(headers["retry-after"]) >= 1
            assert headers["content-type"] == "application/problem+json"
    assert 'recsys_requests_shed_total{reason="overloaded"}' in metrics
    assert "recsys_requests_pending 0.0" in metrics


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1e9"])
def test_a_deadline_that_makes_no_sense_is_refused(service: Service, value: str) -> None:
    response = service.client.post("/v1/recommend", json={"history": ["i0"]}, headers={"X-Deadline-Ms": value})
    assert response.status_code == 422
    assert response.json()["fields"][0]["field"] == "X-Deadline-Ms"


def test_a_store_that_hangs_takes_half_of_the_time_at_most(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncOnlineStore, "user_state", lambda *_: asyncio.sleep(60))
    response = service.client.post("/v1/recommend", json={"user_id": "ann"}, headers={"X-Deadline-Ms": "200"}).json()
    assert (response["source"], response["fallback_reason"]) == ("popularity", "store_unavailable")


def test_clients_that_leave_no_time_do_not_take_the_store_from_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.client.post("/v1/events", json={"event_id": "e", "user_id": "ann", "item_id": "i1"})
    read = AsyncOnlineStore.user_state

    async def read_slowly(*asked: Any) -> UserState:
        await asyncio.sleep(0.02)
        return await read(*asked)

    monkeypatch.setattr(AsyncOnlineStore, "user_state", read_slowly)
    for _ in range(3):
        hasty = service.client.post("/v1/recommend", json={"user_id": "ann"}, headers={"X-Deadline-Ms": "2"}).json()
        assert hasty["fallback_reason"] == "store_unavailable"
    assert service.metric('recsys_breaker_state{part="store"}') == 0
    assert service.client.post("/v1/recommend", json={"user_id": "ann"}).json()["source"] == "fusion"
    # A store that hangs for as long as anybody waits is ill.
    monkeypatch.setattr(AsyncOnlineStore, "user_state", lambda *_: asyncio.sleep(0.4))
    for _ in range(2):
        service.client.post("/v1/recommend", json={"user_id": "ann"}, headers={"X-Deadline-Ms": "550"})
    assert service.metric('recsys_breaker_state{part="store"}') == 2


def test_a_store_that_fails_in_a_row_is_left_alone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def fail(*_: object) -> None:
        calls.append(1)
        raise StoreUnavailableError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(AsyncOnlineStore, "user_state", fail)
        for _ in range(5):
            answer = service.client.post("/v1/recommend", json={"user_id": "ann"}).json()
            assert answer["fallback_reason"] == "store_unavailable"
        assert len(calls) == 2
        assert service.metric('recsys_breaker_state{part="store"}') == 2
        assert service.metric("recsys_store_errors_total") == 5
        event = {"event_id": "e", "user_id": "ann", "item_id": "i1"}
        refused = service.client.post("/v1/events", json=event)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    time.sleep(2.1)
    assert service.client.post("/v1/events", json=event).status_code == 200
    assert service.client.post("/v1/recommend", json={"user_id": "ann"}).json()["source"] == "fusion"


def test_a_bundle_brings_its_fallbacks(tmp_path) -> None:
    write_toy_bundle(tmp_path / "bundle", fusion=tmp_path / "fusion")
    write_toy_bundle(tmp_path / "plain")
    query = Query(history=["i1"], k=1)
    names = {
        name: [stage.name for stage in RecommenderRuntime.from_bundle(Bundle.load(tmp_path / name)).stages(query)]
        for name in ("bundle", "plain")
    }
    assert names == {"bundle": ["fusion", "generator", "dense", "counter"], "plain": ["generator", "dense"]}
