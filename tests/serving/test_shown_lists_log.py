"""Lists that are shown are in the offline store with their probabilities, and no request waits or fails for that."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from feature_store import OnlineStore, StoreUnavailableError
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter
from feature_store.slates import ServedSlate, Slot, history_hash
from feature_store.tables import slates_of
from serving.app import create_app
from serving.metrics import Metrics
from serving.offline import OfflineExport
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.settings import ServingSettings
from serving.slate_writer import SlateWriter

HISTORIES = {"ann": ["i0", "i1", "i2"], "bob": ["i5"]}
_K = 4
_LAYER = {
    "name": "l",
    "experiments": {"bold": {"variants": {"control": {}, "drawn": {"epsilon": 0.6}}}},
    "splits": [{"bold/control": 5000, "bold/drawn": 5000}],
}


def _service(
    runtime: RecommenderRuntime, store: OnlineStore, folder: Path, slates: SlateWriter | None = None, **settings: Any
) -> TestClient:
    app = create_app(
        runtime,
        store,
        ServingSettings.model_validate(settings),
        seeding=Seeding(store, "v1", HISTORIES),
        offline=OfflineExport(store, folder / "offline"),
        slates=slates or SlateWriter(store),
    )
    return TestClient(app)


class _Seeds:
    """0, 1, 2 .. instead of what nobody can guess."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def __call__(self, _: int) -> int:
        return next(self._next)


@pytest.fixture(autouse=True)
def _known_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.shown.secrets.randbits", _Seeds())


@pytest.fixture
def is_read(store: OnlineStore, tmp_path: Path) -> None:
    """Somebody has read the log before the service starts: what nobody reads is not logged."""
    with OfflineWriter(tmp_path / "offline") as writer:
        OfflineConsumer(EventLog(store), writer).catch_up()


def _until(is_so: Callable[[], object]) -> bool:
    ends = time.monotonic() + 10
    while not is_so() and time.monotonic() < ends:
        time.sleep(0.01)
    return bool(is_so())


def _count(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("recsys_slates_total", {"outcome": outcome}) or 0


@pytest.mark.usefixtures("is_read")
def test_every_list_of_a_known_user_is_stored_with_its_probabilities(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    shown: dict[str, Any] = {}
    with _service(runtime, store, tmp_path, experiments={"layers": [_LAYER]}) as client:
        for turn in range(40):
            user = f"user-{turn % 8}"
            if turn < 8:
                client.post("/v1/events", json={"event_id": "e", "user_id": user, "item_id": f"i{turn}"})
            answer = client.post("/v1/recommend", json={"user_id": user, "k": _K, "depth": 8}).json()
            shown[answer["recommendation_id"]] = (user, answer)
            client.post("/v1/recommend", json={"history": ["i1"]})  # of nobody
    rows = OfflineStore(tmp_path / "offline").slates()
    assert sorted(rows["request_id"]) == sorted(shown)
    needed = ("request_id", "user_id", "timestamp", "history_hash", "policy", "model_version", "candidates_version")
    assert rows.drop_nulls([*needed, "slots", "joint_log_propensity", "epsilon", "exposures"]).height == 40
    records = slates_of(rows)  # checks every row
    assert {record.epsilon for record in records} == {0.0, 0.6}
    for record in records:
        user, answer = shown[record.request_id]
        assert [slot.item_id for slot in record.slots] == [item["item_id"] for item in answer["items"]]
        assert (record.user_id, record.policy, record.model_version) == (user, "generator", "abc123")
        assert record.history_hash == history_hash([f"i{user[-1]}"])
        assert {one.experiment: one.variant for one in record.exposures} == answer["variants"]
        assert (record.seed is None) == (record.epsilon == 0)
        if record.epsilon == 0:
            assert record.joint_log_propensity == 0
            assert {(slot.marginal, slot.conditional) for slot in record.slots} == {(1.0, 1.0)}
        else:
            assert all(0 < slot.conditional < 1 for slot in record.slots[:1])
    # The best list has at least the share of the lists that are not drawn.
    best = [record for record in records if record.epsilon and record.joint_log_propensity >= np.log(0.4)]
    assert 0 < len(best) < sum(record.epsilon > 0 for record in records)
    events = OfflineStore(tmp_path / "offline").events()
    assert events.height == 8, "lists are no events"


@pytest.mark.usefixtures("is_read")
def test_what_is_pinned_is_logged_as_certain(runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path) -> None:
    body = {"user_id": "ann", "k": _K, "pins": [{"item_id": "i1", "position": 2}], "diversity": 0.4}
    with _service(runtime, store, tmp_path, exploration={"epsilon": 1.0, "candidates": 6}) as client:
        for _ in range(10):
            items = client.post("/v1/recommend", json=body).json()["items"]
            assert (items[1]["item_id"], items[1]["source"], len(items)) == ("i1", "pin", _K)
    records = slates_of(OfflineStore(tmp_path / "offline").slates())  # checks the joint probability of each
    assert len(records) == 10
    for record in records:
        assert (record.slots[1].item_id, record.slots[1].marginal, record.slots[1].conditional) == ("i1", 1.0, 1.0)
        assert all(0 < slot.conditional < 1 for slot in (*record.slots[:1], *record.slots[2:]))


@pytest.mark.usefixtures("is_read")
def test_the_lists_of_an_erased_user_go_with_the_user(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    offline = OfflineStore(tmp_path / "offline")
    with _service(runtime, store, tmp_path) as client:
        for user in ("ann", "bob"):
            client.post("/v1/recommend", json={"user_id": user, "k": _K})
        assert _until(lambda: offline.slates()["user_id"].n_unique() == 2)
        assert client.delete("/v1/users/ann").status_code == 204
        assert store.log_slates([_slate("late", "ann")]) == 0, "what still waits does not bring the user back"
    assert set(offline.slates()["user_id"]) == {"bob"}


def _slate(request_id: str, user: str) -> ServedSlate:
    return ServedSlate(
        request_id=request_id,
        user_id=user,
        timestamp=1.5,
        history_hash="h",
        profile_version=None,
        policy="generator",
        model_version="m",
        candidates_version="m",
        slots=(Slot(item_id="i1", marginal=1.0, conditional=1.0),),
        joint_log_propensity=0.0,
        epsilon=0.0,
        seed=None,
    )


def test_lists_are_logged_where_somebody_reads_them(store: OnlineStore) -> None:
    store.seed_histories("v1", HISTORIES.items())
    assert store.log_slates([_slate("r1", "ann")]) == 0
    log = EventLog(store)
    log.join("reader")
    assert store.log_slates([_slate("r1", "ann"), _slate("r2", "nobody"), _slate("r3", "bob")]) == 2
    assert sorted(entry.slate.request_id for entry in log.read(10) if entry.slate) == ["r1", "r3"]
    with pytest.raises(ValueError, match="without user_id"):
        store.log_slates([replace(_slate("r4", "ann"), user_id=None)])


def test_a_full_queue_drops_and_counts_and_the_answer_does_not_wait(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, taken = threading.Event(), threading.Event()

    def hang(slates: list[ServedSlate]) -> int:
        taken.set()
        released.wait(5)
        return len(slates)

    monkeypatch.setattr(store, "log_slates", hang)
    with _service(runtime, store, tmp_path, SlateWriter(store, capacity=2)) as client:
        metrics = client.app.state.context.metrics  # type: ignore[attr-defined]
        client.post("/v1/recommend", json={"user_id": "ann"})
        assert taken.wait(5)
        statuses = {client.post("/v1/recommend", json={"user_id": "ann"}).status_code for _ in range(5)}
        assert (statuses, _count(metrics, "dropped")) == ({200}, 3)
        released.set()
    assert _count(metrics, "logged") == 3


def test_a_store_that_fails_costs_the_record_alone(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise StoreUnavailableError("down")

    monkeypatch.setattr(store, "log_slates", fail)
    with _service(runtime, store, tmp_path) as client:
        assert client.post("/v1/recommend", json={"user_id": "ann"}).status_code == 200
        metrics = client.app.state.context.metrics  # type: ignore[attr-defined]
        assert _until(lambda: _count(metrics, "failed") == 1)
