"""The offline store without a server: what it holds after any crash, and what it says was known when."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import Event, StoreConfigError
from feature_store.events import LogEntry
from feature_store.keys import digest_of, shard_of
from feature_store.manifest import Manifest
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter
from feature_store.slates import Exposure, ServedSlate, Slot
from feature_store.tables import TIME, slates_of

DAY_MS = 86_400_000
NEVER = 10**9


def entry(event_id: str, user: str = "ann", *, at: float = 1.0, arrived: int = 1000, seq: int = 0) -> LogEntry:
    """An event at `at` seconds that arrived at `arrived` milliseconds."""
    event = Event(event_id=event_id, user_id=user, item_id=f"item-{event_id}", event_type="view", timestamp=at)
    return LogEntry(shard=shard_of(user), position=(arrived, seq), event=event)


def erasure(user: str = "ann", *, arrived: int) -> LogEntry:
    return LogEntry(shard=shard_of(user), position=(arrived, 0), erased=digest_of(user))


def shown(request_id: str, user: str = "ann", *, arrived: int = 1000, seq: int = 0) -> LogEntry:
    """A list of one item that was shown."""
    slate = ServedSlate(
        request_id=request_id,
        user_id=user,
        timestamp=1.25,
        history_hash="h",
        profile_version=None,
        policy="generator",
        model_version="m",
        candidates_version="m",
        slots=(Slot(item_id="i1", marginal=0.5, conditional=0.25),),
        joint_log_propensity=math.log(0.25),
        epsilon=0.1,
        seed=2**53 - 1,
        exposures=(Exposure(experiment="e", variant="v", bucket=7),),
    )
    return LogEntry(shard=shard_of(user), position=(arrived, seq), slate=slate)


def moment(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def ids(directory: Path) -> list[str]:
    return OfflineStore(directory).events()["event_id"].to_list()


def test_events_are_stored_once_in_order_of_arrival(tmp_path: Path) -> None:
    entries = [entry("1", arrived=5), entry("2", arrived=6), entry("3", "bob", arrived=2)]
    with OfflineWriter(tmp_path) as writer:
        assert writer.write(entries) == 3
        assert writer.write(entries) == 0
        assert writer.write([*entries[1:], entry("4", arrived=6, seq=1)]) == 1
    assert ids(tmp_path) == ["3", "1", "2", "4"]
    row = OfflineStore(tmp_path).events().row(1, named=True)
    assert (row["timestamp"], row["ingested_at"]) == (moment(1), moment(0.005))
    assert (row["user_id"], row["item_id"], row["event_type"]) == ("ann", "item-1", "view")


def test_lists_are_stored_once_beside_the_events_and_come_back_as_they_were(tmp_path: Path) -> None:
    entries = [entry("1", arrived=5), shown("r1", arrived=6), shown("r2", "bob", arrived=7)]
    with OfflineWriter(tmp_path) as writer:
        assert writer.write(entries) == 1
        assert writer.write(entries) == 0
        assert writer.write([*entries, shown("r3", arrived=6, seq=1)]) == 0
    assert ids(tmp_path) == ["1"]
    assert slates_of(OfflineStore(tmp_path).slates()) == [
        each.slate for each in (entries[1], shown("r3", arrived=6, seq=1), entries[2])
    ]


def test_lists_are_merged_erased_and_expired_like_events(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        for number in range(16):
            writer.write([shown(f"r{number}", "ann" if number % 2 else "bob", arrived=number + 1)])
        (file,) = writer.manifest.files
        assert (file.table, file.rows) == ("slates", 16)
        writer.write([erasure(arrived=100)])
        assert set(OfflineStore(tmp_path).slates()["user_id"]) == {"bob"}
        assert [path.stat().st_size > 0 for path in (tmp_path / "slates").glob("*/*")] == [True]
        writer.write([entry("1", "bob", arrived=200), shown("later", "bob", arrived=DAY_MS)])
        assert writer.expire(date(1970, 1, 2)) == 1
    assert OfflineStore(tmp_path).slates()["request_id"].to_list() == ["later"]
    assert ids(tmp_path) == []


def test_files_are_partitioned_by_the_date_of_arrival(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write([entry("1", arrived=0), entry("2", arrived=DAY_MS - 1), entry("3", arrived=DAY_MS)])
        assert [(file.date, file.rows) for file in writer.manifest.files] == [("1970-01-01", 2), ("1970-01-02", 1)]
        assert all(file.path.startswith(f"events/date={file.date}/") for file in writer.manifest.files)
        assert writer.expire(date(1970, 1, 2)) == 2
    assert ids(tmp_path) == ["3"]


def test_a_place_that_was_given_anew_by_the_server_is_not_taken_for_the_old_event(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write([entry("1", arrived=10), entry("2", arrived=20)])
        # A server without an append-only file came back with a clock that went wrong.
        assert writer.write([entry("1", arrived=10), entry("3", arrived=10, seq=1), entry("4", arrived=20)]) == 2
        assert writer.manifest.offsets == {shard_of("ann"): (20, 0)}
    assert sorted(ids(tmp_path)) == ["1", "2", "3", "4"]


def test_many_small_files_become_one(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        for number in range(40):
            writer.write([entry(str(number), arrived=number)])
        assert len(writer.manifest.files) < 16
        assert len(list(tmp_path.glob("events/*/*"))) == len(writer.manifest.files)
    assert ids(tmp_path) == [str(number) for number in range(40)]


def test_an_erased_user_is_in_no_file(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write([entry("1", "ann-x", arrived=1), entry("2", "bob", arrived=1)])
        writer.write([entry("3", "ann-x", arrived=2), erasure("ann-x", arrived=3), entry("4", "ann-x", arrived=4)])
        assert ids(tmp_path) == ["2", "4"]
        writer.write([erasure("ann-x", arrived=5)])
        assert writer.manifest.tombstones == ()
    assert ids(tmp_path) == ["2"]
    assert not any(b"ann-x" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_readers_do_not_see_an_erased_user_whose_files_are_not_rewritten_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write([entry("1", arrived=1), entry("2", "bob", arrived=1)])
        with monkeypatch.context() as patch:
            patch.setattr(writer, "_work_off_tombstones", lambda: None)
            writer.write([erasure(arrived=2), entry("3", arrived=2, seq=1)])
            writer.write([entry("4", arrived=3)])
        assert sorted(ids(tmp_path)) == ["2", "3", "4"]
        assert OfflineStore(tmp_path).history("ann", moment(9))["event_id"].to_list() == ["3", "4"]
    with OfflineWriter(tmp_path) as writer:
        assert writer.manifest.tombstones == ()
        assert sum(file.rows for file in writer.manifest.files) == 3


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[str]]]:
    """Lets the n-th call that changes the disk, counted from now, end the process before it does anything."""
    calls: list[str] = []
    limit = [NEVER]

    def guarded(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) >= limit[0]:
                raise Crash(name)
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", guarded("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", guarded("replace", Path.replace))
    monkeypatch.setattr(Path, "unlink", guarded("unlink", Path.unlink))
    monkeypatch.setattr(pl.DataFrame, "write_parquet", guarded("write_parquet", pl.DataFrame.write_parquet))

    def set_limit(number: int) -> list[str]:
        calls.clear()
        limit[0] = number
        return calls

    yield set_limit
    limit[0] = NEVER


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_before_any_change_of_the_disk_loses_nothing_and_doubles_nothing(
    stride: int, tmp_path: Path, crash_at: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_store.offline_writer._MERGE", 2)  # so that a few files are merged
    batches = [
        [entry("1", arrived=1), entry("2", "bob", arrived=1)],
        [entry("3", arrived=2), entry("4", "bob", arrived=DAY_MS)],
        [entry("5", arrived=3), erasure(arrived=4), entry("6", arrived=5)],
        [entry("7", arrived=6)],
    ]

    def write_all(directory: Path) -> set[Path]:
        with OfflineWriter(directory) as writer:
            for batch in batches:
                writer.write(batch)
            return {directory / file.path for file in writer.manifest.files}

    calls = crash_at(NEVER)
    write_all(tmp_path / "whole")
    steps = len(calls)
    assert set(calls) == {"fsync", "replace", "unlink", "write_parquet"}
    for step in range(1, steps + 1, stride):
        directory = tmp_path / str(step)
        crash_at(step)
        with pytest.raises(Crash):
            write_all(directory)
        crash_at(NEVER)
        named = write_all(directory)  # what was not acknowledged is given out again; here that is all
        assert sorted(ids(directory)) == ["2", "4", "6", "7"], f"after a crash before step {step} of {steps}"
        assert set(directory.glob("events/*/*")) == named


def test_there_is_one_writer(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path), pytest.raises(StoreConfigError, match="another consumer"):
        OfflineWriter(tmp_path)
    OfflineWriter(tmp_path).close()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreConfigError, match="recsys events consume"):
        OfflineStore(tmp_path).events()
    (tmp_path / "manifest.json").write_text('{"format": 2}')
    for use in (OfflineStore(tmp_path).events, lambda: OfflineWriter(tmp_path)):
        with pytest.raises(StoreConfigError, match="another version"):
            use()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreConfigError, match="choose another directory"):
        OfflineWriter(tmp_path / "file" / "x")


def test_a_reader_gets_one_whole_state_while_files_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = OfflineWriter(tmp_path)
    writer.write([entry("1", arrived=1), entry("2", "bob", arrived=1)])
    store = OfflineStore(tmp_path)
    states = iter([Manifest.read(tmp_path)])
    writer.write([erasure(arrived=2)])  # deletes the file that the first state names
    monkeypatch.setattr(store, "manifest", lambda: next(states, Manifest.read(tmp_path)))
    assert store.events()["event_id"].to_list() == ["2"]
    writer.close()


def test_a_history_is_in_the_order_of_event_times_and_ends_before_the_moment(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write(
            [
                entry("late", at=3, arrived=9_000),
                entry("first", at=1, arrived=9_000, seq=1),
                entry("same", at=3, arrived=9_000, seq=2),
                entry("other", "bob", at=2, arrived=9_000),
            ]
        )
    store = OfflineStore(tmp_path)
    assert store.history("ann", moment(10))["event_id"].to_list() == ["first", "late", "same"]
    assert store.history("ann", moment(10), limit=2)["event_id"].to_list() == ["late", "same"]
    assert store.history("ann", moment(10), limit=0).is_empty()
    assert store.history("ann", moment(3), as_ingested=False)["event_id"].to_list() == ["first"]
    assert store.history("ann", moment(8.999)).is_empty()  # nothing had arrived
    assert store.history("nobody", moment(10)).is_empty()


def test_labels_are_checked(tmp_path: Path) -> None:
    OfflineWriter(tmp_path).close()
    store = OfflineStore(tmp_path)
    with pytest.raises(ValueError, match="column timestamp is missing"):
        store.point_in_time(pl.DataFrame({"user_id": ["a"]}))
    with pytest.raises(ValueError, match="timestamp a datetime"):
        store.point_in_time(pl.DataFrame({"user_id": ["a"], "timestamp": [1]}))
    naive = pl.DataFrame({"user_id": ["a"], "timestamp": [datetime(2026, 1, 1)]})
    assert store.point_in_time(naive)["history"].to_list() == [[]]
    with pytest.raises(ValueError, match="limit"):
        store.point_in_time(naive, limit=0)


def test_no_labels_have_no_histories(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write([entry("1")])
    labels = pl.DataFrame(schema={"user_id": pl.String, "timestamp": pl.Datetime("ms")})
    answer = OfflineStore(tmp_path).point_in_time(labels)
    assert answer.schema == {**labels.schema, "history": pl.List(pl.String), "history_times": pl.List(TIME)}
    assert answer.is_empty()


def test_histories_are_the_same_however_many_labels_are_joined_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write([entry(str(n), "ab"[n % 2], at=n, arrived=n, seq=n) for n in range(20)])
    labels = pl.DataFrame({"user_id": list("abcab"), "timestamp": [moment(n) for n in (9, 12, 5, 0, 30)]})
    whole = OfflineStore(tmp_path).point_in_time(labels)
    assert [len(history) for history in whole["history"]] == [5, 6, 0, 0, 10]
    for pairs in (1, 10, 25):
        monkeypatch.setattr("feature_store.offline._PAIRS_AT_ONCE", pairs)
        assert OfflineStore(tmp_path).point_in_time(labels).equals(whole)


users = st.sampled_from(["ann", "bob"])
seconds = st.integers(0, 6)


@settings(max_examples=25)
@given(
    batches=st.lists(st.lists(st.tuples(users, seconds, seconds), min_size=1, max_size=6), min_size=1, max_size=4),
    labels=st.lists(st.tuples(st.sampled_from(["ann", "bob", "nobody"]), seconds), min_size=1, max_size=8),
    as_ingested=st.booleans(),
    limit=st.integers(1, 4),
)
def test_a_history_never_holds_what_came_after_its_label(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[tuple[str, int, int]]],
    labels: list[tuple[str, int]],
    as_ingested: bool,
    limit: int,
) -> None:
    """Also no event that happened before the label and arrived after it: a late one, or a correction."""
    directory = tmp_path_factory.mktemp("offline")
    arrivals = sorted(arrival for batch in batches for _, _, arrival in batch)
    everything: list[tuple[int, int, int, str, str]] = []
    with OfflineWriter(directory) as writer:
        for batch in batches:
            entries = []
            for user, at, _ in batch:
                number, arrived = len(everything), arrivals[len(everything)]
                entries.append(entry(str(number), user, at=at, arrived=arrived * 1000, seq=number))
                everything.append((at, arrived, number, user, f"item-{number}"))
            writer.write(entries)
    store = OfflineStore(directory)
    frame = pl.DataFrame(
        {
            "row": range(len(labels)),
            "user_id": [user for user, _ in labels],
            "timestamp": [moment(t) for _, t in labels],
        }
    )
    answer = store.point_in_time(frame, as_ingested=as_ingested, limit=limit)
    assert answer.select(frame.columns).equals(frame)
    for (user, label), found, times in zip(labels, answer["history"], answer["history_times"], strict=True):
        known = [
            (item, moment(at))
            for at, arrived, _, owner, item in sorted(everything, key=lambda e: (e[0], e[1], shard_of(e[3]), e[2]))
            if owner == user and at < label and (arrived <= label or not as_ingested)
        ][-limit:]
        assert list(zip(found.to_list(), times.to_list(), strict=True)) == known
        single = store.history(user, moment(label), as_ingested=as_ingested, limit=limit)
        assert single["item_id"].to_list() == found.to_list()
