"""Nothing acknowledged is lost: the real API process and its real store process are killed while events come in."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serving_process import Service, serving
from toy_bundle import NUM_ITEMS, write_toy_bundle

from feature_store import EmbeddedServer

TOTAL, KILL_AFTER = 60, 20


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    write_toy_bundle(tmp_path / "bundle")
    yield tmp_path
    EmbeddedServer(tmp_path / "store").stop()


def test_acknowledged_events_survive_sigkill_of_api_and_store_and_count_once(run: Path) -> None:
    with serving(run) as service:
        acknowledged = _post_until_killed(service, lambda: (service.kill(), service.kill_store()))

    with serving(run) as service:
        assert service.api.get("/readyz").status_code == 200
        assert len(_stored(service.api)) >= len(acknowledged) >= KILL_AFTER
        answer = service.api.post("/v1/recommend", json={"user_id": "ann", "k": NUM_ITEMS}).json()
        assert not {f"i{number}" for number in acknowledged} & {item["item_id"] for item in answer["items"]}

        everything = [_event(number) for number in range(TOTAL)]
        assert service.api.post("/v1/events", json=everything).json()["duplicates"] >= len(acknowledged)
        again = service.api.post("/v1/events", json=everything).json()
        assert again == {"accepted": 0, "duplicates": TOTAL, "rejected": []}
        _assert_each_stored_once(service.api)

        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) in (0, -signal.SIGTERM)
        assert not (run / "store" / "valkey.sock").exists()


def test_the_api_starts_a_killed_store_again_and_acknowledges_every_event(run: Path) -> None:
    with serving(run) as service:
        assert _post_until_killed(service, service.kill_store) == list(range(TOTAL))
        _assert_each_stored_once(service.api)


def _post_until_killed(service: Service, kill: Callable[[], object]) -> list[int]:
    """Post events, call `kill` in between, and return the numbers of those that were acknowledged."""
    acknowledged: list[int] = []
    enough = threading.Event()

    def post() -> None:
        for number in range(TOTAL):
            try:
                response = service.api.post("/v1/events", json=_event(number))
            except httpx.HTTPError:
                return
            if response.status_code == 200:
                acknowledged.append(number)
            if len(acknowledged) == KILL_AFTER:
                enough.set()

    poster = threading.Thread(target=post)
    poster.start()
    assert enough.wait(60)
    kill()
    poster.join()
    return acknowledged


def _event(number: int) -> dict[str, object]:
    return {"event_id": f"e{number}", "user_id": "ann", "item_id": f"i{number % NUM_ITEMS}", "timestamp": number + 1}


def _stored(api: httpx.Client) -> list[str]:
    history = api.get("/v1/users/ann", params={"limit": 100}).json()["history"]
    return [entry["timestamp"] for entry in history]


def _assert_each_stored_once(api: httpx.Client) -> None:
    times = _stored(api)
    assert len(times) == len(set(times)) == TOTAL
