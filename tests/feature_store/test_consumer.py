"""From the event log to the offline store, with real servers, real processes and real kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_store import EmbeddedServer, Event, OnlineStore, StoreConfigError, StoreUnavailableError
from feature_store.consumer import BackgroundConsumer, OfflineConsumer
from feature_store.keys import SHARDS
from feature_store.log import EventLog, Lag
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter

EventFactory = Callable[..., Event]
NEXT_YEAR = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[OfflineWriter]:
    with OfflineWriter(tmp_path / "offline") as writer:
        yield writer


def stored(directory: Path) -> list[tuple[str, str]]:
    events = OfflineStore(directory).events()
    return sorted(events.select("user_id", "event_id").iter_rows())


def log_length(store: OnlineStore) -> int:
    client = store.connection.client
    return sum(client.xlen(store.keys.of_shard(shard, "wal")) for shard in range(SHARDS))


def test_events_reach_the_offline_store_and_leave_the_log(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory
) -> None:
    log = EventLog(store)
    consumer = OfflineConsumer(log, writer, batch=7)
    users = [f"u{number}" for number in range(40)]
    store.append_events([make_event("1", user) for user in users])  # before anybody reads
    assert consumer.catch_up() == 40
    store.append_events([make_event("1", user) for user in users])  # all duplicates
    store.append_events([make_event("2", user, at=0.5) for user in users])
    assert log.lag().entries == 40
    assert log.lag().seconds < 60
    assert consumer.catch_up() == 40
    assert consumer.catch_up() == 0
    assert log.lag() == Lag(entries=0, seconds=0)
    assert log_length(store) == 0
    assert stored(writer.directory) == sorted((user, number) for user in users for number in "12")
    offline = OfflineStore(writer.directory)
    assert offline.history("u3", NEXT_YEAR, as_ingested=False)["event_id"].to_list() == ["2", "1"]


def test_what_was_given_out_to_a_connection_that_was_lost_is_written_all_the_same(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory
) -> None:
    log = EventLog(store)
    consumer = OfflineConsumer(log, writer)
    consumer.catch_up()
    store.append_events([make_event("1", "u1"), make_event("2", "u1")])
    assert len(log.read(10)) == 2  # as when the reply is lost, and the connection asks again by itself
    store.append_events([make_event("3", "u1")])
    assert consumer.catch_up() == 3
    assert (log.lag().entries, log_length(store)) == (0, 0)
    assert stored(writer.directory) == [("u1", "1"), ("u1", "2"), ("u1", "3")]


def test_online_and_offline_histories_agree(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory
) -> None:
    chance = random.Random(3)
    for batch in range(20):
        store.append_events(
            [
                make_event(f"{batch}-{number}", chance.choice("abc"), f"i{number}", at=chance.randrange(10) / 4)
                for number in range(5)
            ]
        )
    OfflineConsumer(EventLog(store), writer).catch_up()
    for user in "abc":
        offline = OfflineStore(writer.directory).history(user, NEXT_YEAR, as_ingested=False)
        assert store.user_history(user) == offline["item_id"].to_list()
        assert [entry.timestamp for entry in store.user_entries(user)] == [
            moment.timestamp() for moment in offline["timestamp"]
        ]


def test_what_a_dead_member_took_is_taken_over(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory
) -> None:
    dead = EventLog(store, member="dead")
    dead.join(writer.manifest.store_id)
    store.append_events([make_event(str(number)) for number in range(5)])
    taken = dead.read(3)
    assert [entry.event.event_id for entry in taken if entry.event] == ["0", "1", "2"]
    writer.write(taken[:1])  # it dies between the manifest and the acknowledgement
    assert dead.trim() == 0
    consumer = OfflineConsumer(EventLog(store, member="next"), writer, batch=2)
    assert consumer.catch_up() == 4
    assert stored(writer.directory) == [("ann", str(number)) for number in range(5)]
    assert EventLog(store).lag() == Lag(entries=0, seconds=0)


def test_entries_stay_in_the_log_until_every_group_has_them(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory
) -> None:
    other = EventLog(store, group="other")
    other.join("elsewhere")
    store.append_events([make_event(str(number)) for number in range(5)])
    OfflineConsumer(EventLog(store), writer).catch_up()
    assert log_length(store) == 5
    other.acknowledge(other.read(2))
    assert other.trim() == 2
    assert other.lag().entries == 3


def test_a_log_that_nobody_reads_is_bounded_and_one_that_is_read_is_not(
    store: OnlineStore, make_event: EventFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_store.online.UNREAD_LOG_LENGTH", 100 * SHARDS)
    store.append_events([make_event(str(number)) for number in range(600)])
    assert 100 <= log_length(store) < 300
    EventLog(store).join("somewhere")
    store.append_events([make_event(f"more {number}") for number in range(600)])
    assert log_length(store) >= 700


def test_a_group_fills_one_offline_store(store: OnlineStore, writer: OfflineWriter, tmp_path: Path) -> None:
    OfflineConsumer(EventLog(store), writer).catch_up()
    with OfflineWriter(tmp_path / "second") as second:
        with pytest.raises(StoreConfigError, match="fills another offline store"):
            OfflineConsumer(EventLog(store), second).catch_up()
        assert OfflineConsumer(EventLog(store, group="second"), second).catch_up() == 0


def test_an_erased_user_is_not_brought_back_by_what_the_consumer_holds(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory
) -> None:
    log = EventLog(store)
    consumer = OfflineConsumer(log, writer)
    store.append_events([make_event("1"), make_event("1", "bob")])
    consumer.catch_up()
    store.append_events([make_event("2")])
    held = log.read(10)
    store.erase_user("ann")
    store.append_events([make_event("3")])
    writer.write(held)
    log.acknowledge(held)
    consumer.catch_up()
    assert stored(writer.directory) == [("ann", "3"), ("bob", "1")]


def test_a_store_that_lost_everything_is_filled_and_read_anew(
    data_dir: Path, writer: OfflineWriter, make_event: EventFactory
) -> None:
    store = OnlineStore.embedded(data_dir)
    consumer = OfflineConsumer(EventLog(store), writer)
    store.append_events([make_event("1")])
    consumer.catch_up()
    store.connection.client.flushall()
    store.append_events([make_event("2")])
    with pytest.raises(StoreUnavailableError, match="NOGROUP"):
        consumer.catch_up()
    assert consumer.catch_up() == 1
    assert stored(writer.directory) == [("ann", "1"), ("ann", "2")]
    store.close()


def test_the_clock_of_the_server_may_go_back(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory
) -> None:
    """An entry from the future makes every later one follow it, so that none gets a place before what was read."""
    consumer = OfflineConsumer(EventLog(store), writer)
    ahead = make_event("1")
    fields = {"user_id": "ann", "event_id": "1", "item_id": "item", "event_type": "view", "timestamp": "1.0"}
    store.connection.client.xadd(store.keys.beside_user("ann", "wal"), fields, id="9000000000000-5")
    assert consumer.catch_up() == 1
    store.append_events([make_event("2", at=2.0)])
    assert consumer.catch_up() == 1
    assert EventLog(store).lag() == Lag(entries=0, seconds=0)
    assert stored(writer.directory) == [(ahead.user_id, "1"), ("ann", "2")]


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "server"
    EmbeddedServer(tmp_path / "server").stop()


def test_a_consumer_in_the_background_survives_the_store(
    data_dir: Path, tmp_path: Path, make_event: EventFactory
) -> None:
    store = OnlineStore.embedded(data_dir)
    background = BackgroundConsumer(store, tmp_path / "offline")
    store.append_events([make_event("1")])
    store.connection.client.shutdown(nosave=True)
    store.append_events([make_event("2")])
    assert background.is_running
    background.stop()
    assert not background.is_running
    assert stored(tmp_path / "offline") == [("ann", "1"), ("ann", "2")]
    store.close()


def test_a_consumer_that_cannot_go_on_says_so(
    store: OnlineStore, tmp_path: Path, writer: OfflineWriter, caplog: pytest.LogCaptureFixture
) -> None:
    EventLog(store).join("elsewhere")
    told = threading.Event()
    background = BackgroundConsumer(store, tmp_path / "own", on_failure=lambda _: told.set())
    assert told.wait(10)
    background.stop()
    assert "not written any more" in caplog.text


def test_a_full_disk_loses_nothing(
    store: OnlineStore, writer: OfflineWriter, make_event: EventFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = OfflineConsumer(EventLog(store), writer)
    store.append_events([make_event("1")])
    consumer.catch_up()
    store.append_events([make_event("2")])
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="No space left on device; make room"):
                consumer.catch_up()
    assert EventLog(store).lag().entries == 1
    assert consumer.catch_up() == 1
    assert stored(writer.directory) == [("ann", "1"), ("ann", "2")]


_CONSUMER = """
import sys, threading
from pathlib import Path
from feature_store import OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline_writer import OfflineWriter
store = OnlineStore.connect(sys.argv[1], namespace=sys.argv[2])
print("running", flush=True)
with OfflineWriter(Path(sys.argv[3])) as writer:
    OfflineConsumer(EventLog(store), writer, batch=20).run(threading.Event(), interval_s=0.001)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_points_it_stores_every_acknowledged_event_once(
    kills: int, store: OnlineStore, store_url: str, tmp_path: Path, make_event: EventFactory
) -> None:
    chance = random.Random(kills)
    is_over = threading.Event()
    acknowledged: list[tuple[str, str]] = []

    def client(seed: int) -> None:
        own = random.Random(seed)
        number = 0
        while not is_over.is_set():
            # Users are shared and ids repeat, so that clients race for them.
            events = [
                make_event(str(own.randrange(number + 20)), f"u{own.randrange(30)}", at=own.random() * 100)
                for _ in range(5)
            ]
            outcomes = store.append_events(events)
            acknowledged.extend((event.user_id, event.event_id) for event in events)
            assert set(outcomes) <= {"accepted", "duplicate"}
            number += 1
            time.sleep(0.002)

    directory = tmp_path / "offline"
    command = [sys.executable, "-c", _CONSUMER, store_url, store.namespace, str(directory)]
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(client, seed) for seed in range(4)]
        try:
            for _ in range(kills):
                with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"running\n"
                    time.sleep(chance.random() * 0.3)
                    process.kill()
        finally:
            is_over.set()
    for each in running:
        each.result()
    with OfflineWriter(directory) as writer:
        OfflineConsumer(EventLog(store), writer).catch_up()
    counts = Counter(stored(directory))
    assert set(counts) == set(acknowledged)
    assert set(counts.values()) == {1}
    assert log_length(store) == 0


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_the_store_killed_at_random_points_loses_no_acknowledged_event(
    kills: int, data_dir: Path, tmp_path: Path, make_event: EventFactory
) -> None:
    chance = random.Random(kills)
    store = OnlineStore.embedded(data_dir)
    is_over = threading.Event()
    acknowledged: list[tuple[str, str]] = []

    def client(name: str) -> None:
        number = 0
        while not is_over.is_set():
            events = [make_event(f"{name}-{number + n}", f"u{n}") for n in range(3)]
            try:
                store.append_events(events)
            except StoreUnavailableError:  # killed twice within one call: nothing was acknowledged
                continue
            acknowledged.extend((event.user_id, event.event_id) for event in events)
            number += 3

    with OfflineWriter(tmp_path / "offline") as writer, ThreadPoolExecutor(4) as pool:
        consumer = OfflineConsumer(EventLog(store), writer)
        running = [pool.submit(client, name) for name in "abc"]
        running.append(pool.submit(consumer.run, is_over, 0.001))
        try:
            for _ in range(kills):
                time.sleep(chance.random() * 0.4)
                store.connection.server.ensure_running()
                os.kill(store.connection.client.info("server")["process_id"], signal.SIGKILL)
            store.ping()
        finally:
            is_over.set()
        for each in running:
            each.result()
        consumer.catch_up()
    counts = Counter(stored(tmp_path / "offline"))
    assert set(counts) >= set(acknowledged)
    assert set(counts.values()) == {1}
    store.close()
