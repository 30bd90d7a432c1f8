from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import polars as pl
import pytest

from recsys.data import Interactions
from recsys.data.histories import Histories, write_histories
from recsys.data.interactions import SCHEMA

ITEM_IDS = pl.Series("item_id", [f"item {index}" for index in range(7)])
USERS = ["b", "a", "é", "a b", "Z", "unseen", "😀", "a\0", ""]
"""Of which `unseen` did nothing."""
ITEMS = {user: [(number + index) % 7 for index in range(number + 1)] for number, user in enumerate(USERS)}
NAMED = {user: [f"item {item}" for item in items] for user, items in ITEMS.items() if user != "unseen"}


def _log(users: list[str]) -> Interactions:
    rows = [
        (number, item, "view", None, None, position)
        for number, user in enumerate(users)
        if user != "unseen"
        for position, item in enumerate(ITEMS[user])
    ]
    return Interactions(frame=pl.DataFrame(rows, schema=SCHEMA, orient="row"), user_ids=users, num_items=7)


@pytest.fixture(params=[1, 3, 1024])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("recsys.data.histories._USERS_A_GROUP", request.param)
    write_histories(tmp_path / "histories.parquet", ITEM_IDS, _log(USERS))
    return tmp_path / "histories.parquet"


@pytest.fixture
def old_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As earlier versions wrote it: in the order of the log."""
    monkeypatch.setattr("recsys.data.histories._USERS_A_GROUP", 3)
    frame = pl.DataFrame({"user_id": list(NAMED), "item_ids": list(NAMED.values())})
    frame.write_parquet(tmp_path / "histories.parquet")
    return tmp_path / "histories.parquet"


def test_all_users_come_in_the_order_of_the_bytes_of_their_ids(path: Path) -> None:
    histories = Histories(path)
    assert list(histories.items()) == sorted(NAMED.items(), key=lambda pair: pair[0].encode())
    assert len(histories) == len(NAMED)


def test_each_user_is_found_alone(path: Path) -> None:
    histories = Histories(path)
    assert {user: histories.get(user) for user in NAMED} == NAMED
    assert [histories.get(user) for user in ("unseen", "A", "aa", "zz", "\U0010ffff")] == [None] * 5


def test_it_is_a_table_as_before(path: Path) -> None:
    frame = pl.read_parquet(path)
    assert dict(frame.schema) == {"user_id": pl.String, "item_ids": pl.List(pl.String)}
    assert dict(frame.iter_rows()) == NAMED


def test_a_log_of_nobody(tmp_path: Path) -> None:
    write_histories(tmp_path / "histories.parquet", ITEM_IDS, _log([]))
    histories = Histories(tmp_path / "histories.parquet")
    assert (len(histories), list(histories.items()), histories.get("a")) == (0, [], None)


def test_users_of_an_earlier_file_are_put_in_order_once_and_it_is_said(
    old_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = old_path.read_bytes()
    with caplog.at_level(logging.WARNING):
        histories = Histories(old_path)
        assert (len(histories), dict(histories.items())) == (len(NAMED), NAMED)
        assert not caplog.messages
        assert {user: histories.get(user) for user in NAMED} == NAMED
        assert histories.get("nobody") is None
        assert Histories(old_path).get("a") == NAMED["a"]  # as another process does
    assert len(caplog.messages) == 1
    assert "putting 8 users in order" in caplog.messages[0]
    assert old_path.read_bytes() == before
    assert [file.name for file in sorted(old_path.parent.iterdir())] == [
        ".histories-by-user.parquet",
        "histories.parquet",
    ]


def test_another_file_at_the_same_path_is_not_answered_from_the_copy_of_the_first(old_path: Path) -> None:
    before = old_path.stat()
    assert Histories(old_path).get("a") == NAMED["a"]
    others = {user: [f"item {(int(item[5:]) + 1) % 7}" for item in items] for user, items in NAMED.items()}
    pl.DataFrame({"user_id": list(others), "item_ids": list(others.values())}).write_parquet(old_path)
    os.utime(old_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    histories = Histories(old_path)
    assert {user: histories.get(user) for user in others} == others == dict(histories.items())
    # One that was made before copies said what they are of.
    write_histories(old_path.with_name(".histories-by-user.parquet"), ITEM_IDS, _log(USERS))
    assert Histories(old_path).get("a") == others["a"]


def test_where_nothing_can_be_written_each_process_puts_users_in_order_for_itself(
    old_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != old_path.parent)
    histories = Histories(old_path)
    assert {user: histories.get(user) for user in NAMED} == NAMED
    assert [file.name for file in old_path.parent.iterdir()] == ["histories.parquet"]
    assert len(list(elsewhere.iterdir())) == 1
    del histories
    assert not list(elsewhere.iterdir())
    monkeypatch.undo()
    # What was put beside it before is read.
    assert Histories(old_path).get("a") == NAMED["a"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("recsys.data.histories._in_order", lambda _: pytest.fail("it was there"))
    assert Histories(old_path).get("a") == NAMED["a"]
