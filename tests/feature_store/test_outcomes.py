"""Which lists of an experiment led to something: events name the list that they follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from feature_store import Event, InvalidEventError, OnlineStore
from feature_store.consumer import OfflineConsumer
from feature_store.events import LogEntry
from feature_store.keys import shard_of
from feature_store.log import EventLog
from feature_store.offline import OfflineStore
from feature_store.offline_writer import OfflineWriter
from feature_store.slates import Exposure, ServedSlate, Slot
from feature_store.tables import SCHEMAS


def _slate(request_id: str, user: str, *exposures: Exposure) -> ServedSlate:
    return ServedSlate(
        request_id=request_id,
        user_id=user,
        timestamp=1.5,
        history_hash="h",
        profile_version=None,
        policy="generator",
        model_version="m",
        candidates_version="m",
        slots=tuple(Slot(item_id=item, marginal=1.0, conditional=1.0) for item in ("i1", "i2")),
        joint_log_propensity=0.0,
        epsilon=0.0,
        seed=None,
        exposures=exposures,
    )


def _event(event_id: str, user: str, item: str, named: str | None, kind: str = "view") -> Event:
    return Event(event_id=event_id, user_id=user, item_id=item, event_type=kind, timestamp=2.0, recommendation_id=named)


def _arm(variant: str, *, experiment: str = "e", forced: bool = False) -> Exposure:
    return Exposure(experiment=experiment, variant=variant, bucket=1, forced=forced)


def test_the_list_that_led_to_an_event_goes_from_the_log_to_the_files(
    store: OnlineStore, make_event: Callable[..., Event], tmp_path: Path
) -> None:
    named = replace(make_event("2"), recommendation_id="r1")
    assert store.append_events([make_event("1"), named]) == ["accepted", "accepted"]
    again = replace(named, recommendation_id="r2")
    assert store.append_events([again]) == ["duplicate"], "what led to it does not make it another event"
    assert [event.recommendation_id for event in store.user_events("ann", 10)] == [None, "r1"]
    with OfflineWriter(tmp_path) as writer:
        OfflineConsumer(EventLog(store), writer).catch_up()
    assert OfflineStore(tmp_path).events()["recommendation_id"].to_list() == [None, "r1"]


@pytest.mark.parametrize("named", ["", "x" * 257, "\ud800"])
def test_a_recommendation_id_is_an_id(make_event: Callable[..., Event], named: str) -> None:
    with pytest.raises(InvalidEventError, match="recommendation_id"):
        replace(make_event("1"), recommendation_id=named)


def test_an_outcome_is_an_event_of_the_same_user_with_an_item_of_the_list_that_it_names(tmp_path: Path) -> None:
    records: list[ServedSlate | Event] = [
        _slate("r1", "ann", _arm("a"), _arm("x", experiment="other")),
        _slate("r2", "ann", _arm("a")),
        _slate("r3", "bob", _arm("b")),
        _slate("r4", "bob", _arm("b", forced=True)),
        _slate("r5", "bob"),
        _event("1", "ann", "i1", "r1"),
        _event("2", "ann", "i2", "r1"),
        _event("3", "ann", "i2", "r1", "purchase"),
        _event("4", "ann", "i9", "r2"),
        _event("5", "ann", "i1", None),
        _event("6", "ann", "i1", "r3"),
        _event("7", "bob", "i1", "r4"),
        _event("8", "bob", "i1", "r5"),
    ]
    entries = [
        LogEntry(
            shard=shard_of(record.user_id or ""),
            position=(place + 1, 0),
            slate=record if isinstance(record, ServedSlate) else None,
            event=record if isinstance(record, Event) else None,
        )
        for place, record in enumerate(records)
    ]
    with OfflineWriter(tmp_path) as writer:
        writer.write(entries)
    found = OfflineStore(tmp_path).exposures().rows()
    assert sorted(found) == [
        ("e", "a", "ann", "r1", ["purchase", "view"]),
        ("e", "a", "ann", "r2", []),
        ("e", "b", "bob", "r3", []),
        ("other", "x", "ann", "r1", ["purchase", "view"]),
    ]


def test_files_from_before_events_named_lists_are_read(tmp_path: Path) -> None:
    with OfflineWriter(tmp_path) as writer:
        writer.write([LogEntry(shard=0, position=(1, 0), event=_event("1", "ann", "i1", "r1"))])
        (file,) = writer.manifest.files
        path = tmp_path / file.path
        pl.read_parquet(path).drop("recommendation_id").write_parquet(path)
        writer.write([LogEntry(shard=0, position=(2, 0), event=_event("2", "ann", "i1", "r1"))])
        events = OfflineStore(tmp_path).events()
    assert events["recommendation_id"].to_list() == [None, "r1"]
    assert list(events.columns) == list(SCHEMAS["events"])


def test_a_store_without_lists_has_no_exposures(tmp_path: Path) -> None:
    OfflineWriter(tmp_path).close()
    found = OfflineStore(tmp_path).exposures()
    assert found.columns == ["experiment", "variant", "user_id", "request_id", "outcomes"]
    assert found.is_empty()
