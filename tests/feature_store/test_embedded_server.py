from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from feature_store import EmbeddedServer, Event, OnlineStore, StoreConfigError, StoreUnavailableError


def _client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket_path), decode_responses=True)


def _kill(server: EmbeddedServer) -> int:
    pid = _client(server).info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    data_dir = tmp_path / "store"
    yield data_dir
    if data_dir.is_dir():
        EmbeddedServer(data_dir).stop()


def test_it_writes_every_change_to_disk_and_listens_on_no_port(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    server.ensure_running()
    settings = _client(server).config_get("*")
    assert (settings["appendonly"], settings["appendfsync"], settings["port"]) == ("yes", "always", "0")
    assert server.socket_path.stat().st_mode & 0o077 == 0


def test_a_killed_server_comes_back_with_its_events(data_dir: Path, make_event: Callable[..., Event]) -> None:
    store = OnlineStore.embedded(data_dir)
    server = EmbeddedServer(data_dir)
    for number in range(3):
        assert store.append_events([make_event(str(number), item_id=f"i{number}")]) == ["accepted"]
        _kill(server)
        assert store.append_events([make_event(str(number), item_id=f"i{number}")]) == ["duplicate"]
    _kill(server)
    assert store.user_history("ann") == ["i0", "i1", "i2"]
    store.close()


def test_a_torn_last_write_is_dropped_and_the_rest_is_there(data_dir: Path, make_event: Callable[..., Event]) -> None:
    store = OnlineStore.embedded(data_dir)
    store.append_events([make_event("1")])
    _kill(EmbeddedServer(data_dir))
    (log,) = data_dir.glob("appendonlydir/*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nhal")
    assert store.user_history("ann") == ["item"]
    store.close()


def test_a_second_program_takes_over_the_running_server(data_dir: Path) -> None:
    first, second = EmbeddedServer(data_dir), EmbeddedServer(data_dir)
    first.ensure_running()
    second.ensure_running()
    pids = [_client(server).info("server")["process_id"] for server in (first, second)]
    assert pids[0] == pids[1]
    second.stop()
    first.ensure_running()
    assert _client(first).info("server")["process_id"] != pids[0]


def test_a_server_that_hangs_is_not_doubled(data_dir: Path) -> None:
    running = EmbeddedServer(data_dir)
    running.ensure_running()
    pid = _client(running).info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            EmbeddedServer(data_dir, start_timeout_s=0.1).ensure_running()
    finally:
        os.kill(pid, signal.SIGCONT)
    running.ensure_running()
    assert _client(running).info("server")["process_id"] == pid


def test_a_damaged_file_is_reported_not_overwritten(data_dir: Path, make_event: Callable[..., Event]) -> None:
    store = OnlineStore.embedded(data_dir)
    store.append_events([make_event("1")])
    store.close()
    (log,) = data_dir.glob("appendonlydir/*.incr.aof")
    content = log.read_bytes()
    log.write_bytes(b"garbage" + content)
    with pytest.raises(StoreUnavailableError, match="ended by itself"):
        OnlineStore.embedded(data_dir)
    log.write_bytes(content)
    store = OnlineStore.embedded(data_dir)
    assert store.user_history("ann") == ["item"]
    store.close()


def test_long_paths_and_spaces_work(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "a b" / ("long" * 30))
    server.ensure_running()
    assert _client(server).ping()
    link = server.socket_path.parent
    server.stop()
    assert not link.exists()


def test_stopping_twice_is_harmless(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    server.stop()
    server.stop()


def test_a_stopped_server_is_not_started_again(data_dir: Path, make_event: Callable[..., Event]) -> None:
    store = OnlineStore.embedded(data_dir)
    store.close()
    with pytest.raises(StoreUnavailableError, match="was stopped"):
        store.append_events([make_event("1")])
    store.close()
    assert not EmbeddedServer(data_dir)._answers()


def test_a_server_that_does_not_end_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.embedded._SHUTDOWN_S", 0.1)
    server = EmbeddedServer(data_dir)
    server.ensure_running()
    os.kill(_client(server).info("server")["process_id"], signal.SIGSTOP)
    server.stop()
    assert not server._is_locked()


def test_threads_that_recover_from_a_crash_leave_each_other_alone(
    data_dir: Path, make_event: Callable[..., Event]
) -> None:
    store = OnlineStore.embedded(data_dir)
    acknowledged: list[tuple[str, str]] = []
    is_over = threading.Event()

    def append(user: str) -> None:
        number = 0
        while not is_over.is_set():
            # A crash between the write and its answer makes the repetition a duplicate.
            assert store.append_events([make_event(str(number), user_id=user)])[0] in ("accepted", "duplicate")
            acknowledged.append((user, str(number)))
            number += 1

    with ThreadPoolExecutor(8) as pool:
        users = [f"u{index}" for index in range(8)]
        running = [pool.submit(append, user) for user in users]
        try:
            for _ in range(3):
                so_far = len(acknowledged)
                deadline = time.monotonic() + 20
                while len(acknowledged) < so_far + 50 and time.monotonic() < deadline:
                    time.sleep(0.01)
                _kill(EmbeddedServer(data_dir))
            store.ping()
        finally:
            is_over.set()
    for thread in running:
        thread.result()
    stored = {(user, event.event_id) for user in users for event in store.user_events(user, 100_000)}
    assert stored >= set(acknowledged)
    store.close()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreConfigError, match="choose another directory"):
        EmbeddedServer(tmp_path / "file" / "store")
