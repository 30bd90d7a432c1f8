"""`recsys serve` fills the offline store beside the API, and answers on when that fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from feature_store import OnlineStore
from feature_store.log import Lag
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter
from serving.app import create_app
from serving.cli import app as program
from serving.metrics import Metrics
from serving.offline import OfflineExport
from serving.runtime import RecommenderRuntime


def _gauge(client: TestClient, name: str) -> str:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return line.split()[1]


def _until(is_so: Callable[[], bool]) -> bool:
    ends = time.monotonic() + 10
    while not (found := is_so()) and time.monotonic() < ends:
        time.sleep(0.01)
    return found


def _service(runtime: RecommenderRuntime, store: OnlineStore, directory: Path) -> TestClient:
    return TestClient(create_app(runtime, store, offline=OfflineExport(store, directory, look_s=0.01)))


def test_events_are_in_the_offline_store_when_the_service_has_ended(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    with _service(runtime, store, tmp_path / "offline") as client:
        assert _gauge(client, "recsys_offline_running") == "1.0"
        event = {"event_id": "e1", "user_id": "ann", "item_id": "i1"}
        assert client.post("/v1/events", json=event).json()["accepted"] == 1
        assert _until(lambda: _gauge(client, "recsys_offline_lag_entries") == "0.0")
    assert OfflineStore(tmp_path / "offline").events()["event_id"].to_list() == ["e1"]
    OfflineWriter(tmp_path / "offline").close()  # the directory is free again


def test_a_directory_that_another_consumer_has_does_not_keep_the_api_from_answering(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with OfflineWriter(tmp_path / "offline"), _service(runtime, store, tmp_path / "offline") as client:
        assert client.post("/v1/recommend", json={"history": ["i1"], "k": 3}).status_code == 200
        assert _gauge(client, "recsys_offline_running") == "0.0"
        assert _gauge(client, "recsys_offline_lag_seconds") == "NaN"
    assert "another consumer writes to" in capsys.readouterr().out


def test_a_consumer_that_ends_by_itself_shows_in_the_metrics(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    with _service(runtime, store, tmp_path / "first"):
        pass
    again = OnlineStore.embedded(tmp_path / "store")
    with _service(runtime, again, tmp_path / "second") as client:  # the group's events go to the first directory
        assert _until(lambda: _gauge(client, "recsys_offline_running") == "0.0")
        assert client.get("/readyz").status_code == 200


def test_a_service_that_writes_no_offline_store_says_neither_yes_nor_no(client: TestClient) -> None:
    assert _gauge(client, "recsys_offline_running") == "NaN"


def test_the_lag_is_what_the_store_says_and_unknown_when_it_does_not_answer(runtime: RecommenderRuntime) -> None:
    metrics = Metrics(runtime.info)
    metrics.set_offline_lag(Lag(entries=3, seconds=1.5))
    assert metrics.registry.get_sample_value("recsys_offline_lag_entries") == 3
    assert metrics.registry.get_sample_value("recsys_offline_lag_seconds") == 1.5
    metrics.set_offline_lag(None)
    assert math.isnan(metrics.registry.get_sample_value("recsys_offline_lag_seconds") or 0)


class _Asked:
    """Notes what is to be written where."""

    def __init__(self, _: OnlineStore, directory: Path) -> None:
        self.directory = directory
        self.has_ended = False

    def stop(self) -> None:
        self.has_ended = True


@pytest.mark.parametrize(
    ("options", "settings", "directory"),
    [
        ([], "{}", "offline"),
        ([], "offline: {directory: DIR}", "DIR"),
        ([], "offline: {enabled: false}", None),
        (["--store", "redis://127.0.0.1:1"], "{}", None),
        (["--store", "redis://127.0.0.1:1"], "offline: {enabled: true}", "offline"),
    ],
)
def test_the_own_store_is_written_offline_unless_the_settings_say_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], settings: str, directory: str | None
) -> None:
    asked: dict[str, object] = {}

    def create(*_: object, **options: object) -> None:
        asked.update(options)
        raise RuntimeError("seen enough")

    write_toy_bundle(tmp_path / "bundle")
    (tmp_path / "serve.yaml").write_text(settings.replace("DIR", str(tmp_path / "DIR")))
    monkeypatch.setattr("serving.server.create_app", create)
    monkeypatch.setattr("serving.server.OfflineExport", _Asked)
    arguments = ["serve", str(tmp_path), "--port", "0", "--settings", str(tmp_path / "serve.yaml"), *options]
    result = CliRunner().invoke(program, arguments)
    assert str(result.exception) == "seen enough"
    offline = asked["offline"]
    if directory is None:
        assert offline is None
    else:
        assert isinstance(offline, _Asked)
        assert (offline.directory, offline.has_ended) == (tmp_path / directory, True)
