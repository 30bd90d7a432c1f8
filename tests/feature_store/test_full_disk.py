"""A disk that has no room for the store's append-only file: what cannot be written is refused, and nothing is lost."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_store import Event, OnlineStore, StoreUnavailableError


def test_what_the_disk_has_no_room_for_is_never_acknowledged(
    tmp_path: Path, make_event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may not write beyond a size, as if the disk ended there, until there is room again."""
    room = 40_000
    start = subprocess.Popen

    def start_on_a_small_disk(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        return start(*arguments, preexec_fn=limit, **options)

    acknowledged: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("feature_store.embedded.subprocess.Popen", start_on_a_small_disk)
        store = OnlineStore.embedded(tmp_path / "store")
        refused = 0
        for number in range(300):
            try:
                store.append_events([make_event(str(number), at=float(number))])
            except StoreUnavailableError:
                refused += 1
                if refused == 3:
                    break
            else:
                acknowledged.append(str(number))
        assert refused == 3, "the disk was never full"
        assert len(acknowledged) > 20
        store.close()

    store = OnlineStore.embedded(tmp_path / "store")
    there = [event.event_id for event in store.user_events("ann", 1000)]
    assert there[: len(acknowledged)] == acknowledged
    assert len(there) <= len(acknowledged) + refused
    everything = [make_event(str(number), at=float(number)) for number in range(len(acknowledged) + refused)]
    assert set(store.append_events(everything)) <= {"accepted", "duplicate"}
    there = [event.event_id for event in store.user_events("ann", 1000)]
    assert sorted(there, key=int) == [event.event_id for event in everything]
    store.close()
