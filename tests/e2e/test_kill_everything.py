"""Every part of a service is killed at random moments while many clients post events: each event is there once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import psutil
import pytest
from serving_process import Service, serving
from toy_bundle import NUM_ITEMS, write_toy_bundle

from feature_store import EmbeddedServer, OnlineStore
from feature_store.offline import OfflineStore
from serving.client import AsyncClient, ClientError, Event, Retry

NUM_USERS, NUM_CLIENTS = 40, 16
WORKERS = ("--workers", "2")


class Deployment:
    """A service on one port, and who starts it again when all of it is gone."""

    def __init__(self, run: Path) -> None:
        self._run = run
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._running = ExitStack()
        self.service: Service

    def start(self) -> None:
        """Start the service; who served before may hold the port for a moment longer."""
        self._running.close()
        for _ in range(5):
            with contextlib.suppress(AssertionError):
                self.service = self._running.enter_context(serving(self._run, *WORKERS, port=self._port))
                return
            time.sleep(0.5)
        raise AssertionError((self._run / "log").read_text())

    def kill(self, victim: str) -> None:
        """SIGKILL for one part: the supervisor, the store, the writer of the offline store, or a worker."""
        if victim == "supervisor":
            self.service.kill()
            self.start()
            return
        with contextlib.suppress(psutil.NoSuchProcess, KeyError, OSError):  # it may be dead already
            if victim == "store":
                self.service.kill_store()
            else:
                self.service.children()[victim].kill()

    def end(self) -> int:
        """End the service in order; its exit status."""
        self.service.process.send_signal(signal.SIGTERM)
        return self.service.process.wait(60)

    def close(self) -> None:
        """Kill what still lives."""
        self._running.close()
        EmbeddedServer(self._run / "store").stop()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    write_toy_bundle(tmp_path / "bundle")
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.close()


def _event(number: int) -> Event:
    return Event(
        event_id=f"e{number}",
        user_id=f"user{number % NUM_USERS}",
        item_id=f"i{number % NUM_ITEMS}",
        timestamp=datetime.fromtimestamp(number, UTC),
    )


async def _post_all(deployment: Deployment, kills: dict[int, str], total: int) -> Counter[str]:
    """Post all events, one or a few a call, each until it is acknowledged; how they were acknowledged.

    Args:
        deployment: gets the events.
        kills: number of acknowledged events -> who is killed then.
        total: events in all.
    """
    outcomes: Counter[str] = Counter()
    numbers = iter(range(total))
    draw = random.Random(1)
    left = sorted(kills.items())
    killing = asyncio.Lock()

    async def kill_whose_turn_it_is() -> None:
        async with killing:
            while left and outcomes.total() >= left[0][0]:
                await asyncio.to_thread(deployment.kill, left.pop(0)[1])

    async def post() -> None:
        async with AsyncClient(deployment.service.url, retry=Retry(attempts=3, longest_s=0.5)) as client:
            while batch := [_event(number) for number in islice(numbers, draw.randint(1, 5))]:
                while True:
                    try:
                        result = await client.send_events(batch)
                        break
                    except ClientError:
                        await asyncio.sleep(0.1)  # a patient client: some time the service will be back
                assert not result.rejected
                outcomes.update(accepted=result.accepted, duplicates=result.duplicates)
                await kill_whose_turn_it_is()

    async with asyncio.timeout(600), asyncio.TaskGroup() as group:
        for _ in range(NUM_CLIENTS):
            group.create_task(post())
    assert not left
    return outcomes


@pytest.mark.parametrize(
    ("total", "victims"),
    [
        pytest.param(1000, ("0", "store", "offline", "1", "supervisor", "store"), id="short"),
        pytest.param(
            10_000,
            (*("0", "1", "store", "offline") * 4, "supervisor", "supervisor"),
            id="long",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_acknowledged_event_is_there_once_whoever_is_killed(
    deployment: Deployment, tmp_path: Path, total: int, victims: tuple[str, ...]
) -> None:
    draw = random.Random(0)
    moments = draw.sample(range(1, total), len(victims))
    deployment.start()
    outcomes = asyncio.run(
        _post_all(deployment, dict(zip(moments, draw.sample(victims, len(victims)), strict=True)), total)
    )
    assert outcomes.total() == total
    assert outcomes["accepted"] <= total  # who was killed may have accepted what it could not acknowledge
    # What was killed in the middle is caught up with by what came in its place.
    offline_store = OfflineStore(tmp_path / "offline")
    ends = time.monotonic() + 200
    while len(offline_store.events()) < total and time.monotonic() < ends:
        time.sleep(0.5)
    assert deployment.end() == 0

    expected = {(f"user{number % NUM_USERS}", f"e{number}") for number in range(total)}
    with contextlib.closing(OnlineStore.embedded(tmp_path / "store", namespace="recsys:toy")) as store:
        online = [
            (f"user{u}", event.event_id) for u in range(NUM_USERS) for event in store.user_events(f"user{u}", total)
        ]
        histories = {f"user{user}": store.user_entries(f"user{user}") for user in range(NUM_USERS)}
    assert len(online) == total
    assert set(online) == expected
    for user, entries in histories.items():
        times = [entry.timestamp for entry in entries]
        assert times == [number for number in range(total) if f"user{number % NUM_USERS}" == user][-500:]
    offline = offline_store.events().select("user_id", "event_id").rows()
    assert len(offline) == total
    assert set(offline) == expected
