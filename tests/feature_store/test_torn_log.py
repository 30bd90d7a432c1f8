"""What a machine leaves that lost power in the middle of a write: an append-only file that ends anywhere."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_store import EmbeddedServer, Event, OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.log import EventLog
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter


@pytest.mark.parametrize("stride", [151, pytest.param(1, marks=pytest.mark.slow)])
def test_wherever_the_file_is_cut_an_event_is_there_wholly_or_not_at_all(
    stride: int, tmp_path: Path, make_event: Callable[..., Event]
) -> None:
    """The last event's write is cut; what was acknowledged before it stands, and the event can be sent again."""
    original = tmp_path / "original"
    store = OnlineStore.embedded(original)
    store.append_events([make_event("1", item_id="first"), make_event("1", "bob")])
    (log,) = original.glob("appendonlydir/*.incr.aof")
    before = log.stat().st_size
    store.append_events([make_event("2", item_id="second", at=2.0)])
    after = log.stat().st_size
    os.kill(store.connection.client.info("server")["process_id"], signal.SIGKILL)
    lengths = range(before, after + 1, stride)
    assert len(lengths) >= 3
    for length in [*lengths, after]:
        directory = tmp_path / str(length)
        shutil.copytree(original, directory, ignore=shutil.ignore_patterns("*.sock"))
        os.truncate(directory / log.relative_to(original), length)
        found = OnlineStore.embedded(directory)
        # The file ends with the change of the search index, which tells nothing of the event.
        is_there = found.user_history("ann") == ["first", "second"]
        assert is_there or found.user_history("ann") == ["first"]
        assert [event.event_id for event in found.user_events("ann", 9)] == ["1", "2"][: 1 + is_there]
        outcome = "duplicate" if is_there else "accepted"
        assert found.append_events([make_event("2", item_id="second", at=2.0)]) == [outcome]
        assert found.user_history("bob") == ["item"]
        with OfflineWriter(directory / "offline") as writer:
            OfflineConsumer(EventLog(found), writer).catch_up()
        stored = OfflineStore(directory / "offline").events()
        assert sorted(stored.select("user_id", "event_id").iter_rows()) == [("ann", "1"), ("ann", "2"), ("bob", "1")]
        found.close()
        shutil.rmtree(directory)
    EmbeddedServer(original).stop()
