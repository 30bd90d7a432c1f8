"""Under a near deadline the best source searches with fewer beams, and says so, before a lesser source is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs
from toy_bundle import write_toy_bundle

from feature_store import OnlineStore
from recsys.bundle import Bundle
from recsys.data import Sequences
from recsys.generator import Constraints, Recommendations
from serving.app import create_app
from serving.runtime import RecommenderRuntime

SECONDS = {4: 0.5, 2: 0.15, 1: 0.06}


class Searcher:
    """A recommender whose lists begin with its number of beams, and which waits the longer the more it has."""

    def __init__(self, beams: int = 4) -> None:
        self.beams = beams
        self.fails = False
        self.narrower: list[Searcher] = []

    def with_beams(self, beams: int) -> Searcher:
        self.narrower.append(Searcher(beams))
        return self.narrower[-1]

    def recommend(self, histories, k: int, *, constraints=None, sessions=None) -> Recommendations:
        if self.fails:
            raise RuntimeError("out of memory")
        time.sleep(SECONDS[self.beams])
        shape = (len(histories), k)
        items = np.broadcast_to((self.beams + np.arange(k)) % 24, shape)
        return Recommendations(items=items, scores=np.zeros(shape, dtype=np.float32))


class Instant:
    """What comes after it."""

    def recommend(self, histories, k: int, *, constraints=None, sessions=None) -> Recommendations:
        shape = (len(histories), k)
        items = np.broadcast_to(9 + np.arange(k), shape)
        return Recommendations(items=items, scores=np.zeros(shape, dtype=np.float32))


@pytest.fixture
def searcher() -> Searcher:
    return Searcher()


@pytest.fixture
def client(make_runtime, store: OnlineStore, searcher: Searcher) -> Iterator[TestClient]:
    with capture_logs(), TestClient(create_app(make_runtime(searcher, dense=Instant()), store)) as client:
        yield client


def _ask(client: TestClient, deadline_ms: float) -> tuple[str, str, str | None, bool]:
    headers = {"X-Deadline-Ms": str(deadline_ms)}
    answer = client.post("/v1/recommend", json={"history": ["i0"], "k": 2}, headers=headers).json()
    return answer["items"][0]["item_id"], answer["source"], answer["fallback_reason"], answer["degraded"]


def test_beams_shrink_with_the_time_that_is_left_before_another_source_is_asked(client: TestClient) -> None:
    assert [_ask(client, deadline_ms) for deadline_ms in (3000, 350, 120, 45)] == [
        ("i4", "generator", None, False),
        ("i2", "generator", "fewer_beams", True),
        ("i1", "generator", "fewer_beams", True),
        ("i9", "dense", "no_time", True),
    ]


def test_a_narrow_search_that_fails_is_replaced_by_the_next_source(client: TestClient, searcher: Searcher) -> None:
    for narrow in searcher.narrower:
        narrow.fails = True
    assert _ask(client, 350) == ("i9", "dense", "generator_failed", True)


def test_a_source_that_fails_is_not_asked_again_with_fewer_beams(client: TestClient, searcher: Searcher) -> None:
    searcher.fails = True
    assert _ask(client, 3000) == ("i9", "dense", "generator_failed", True)


def test_the_real_sources_narrow_their_search(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle", fusion=tmp_path / "fusion")
    bundle = Bundle.load(tmp_path / "bundle")
    runtime = RecommenderRuntime.from_bundle(bundle)
    assert {name: [narrow.name for narrow in found] for name, found in runtime.narrower.items()} == {
        "fusion": ["fusion_half", "fusion_quarter"]
    }
    assert bundle.fused is not None
    assert bundle.fused.beams == 40
    narrow = bundle.fused.with_beams(10).with_beams(3)
    histories = Sequences.from_lists([np.array([1, 2]), np.array([5])])
    found = narrow.recommend(histories, 12)
    assert (found.items >= 0).all(), "the other sources still fill the list"
    proposed = narrow.pool.propose(histories, 12, Constraints())["generator"].items
    assert ((proposed >= 0).sum(axis=1) == 3).all()
