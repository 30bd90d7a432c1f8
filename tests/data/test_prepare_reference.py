"""Preparation against a plain reference of the documented order of steps, and its work on disk."""

from __future__ import annotations

import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.data import DataConfig, sequences, spilled
from recsys.data.prepare import prepare
from recsys.data.sources.raw import EVENT_SCHEMA, RawData, item_frame
from recsys.errors import DataError

ITEMS = ["b", "a", "ä", "i'1", "10", "9"]
USERS = ["u", "U", "ü", "o'neill", "7"]


@dataclass(frozen=True)
class Row:
    user: str
    item: str
    event_type: str
    rating: float | None
    timestamp: int | None
    position: int | None


def expected(rows: list[Row], config: DataConfig, only_interacted: bool) -> tuple[list[str], list[str], list[Row]]:
    """Item ids, user ids and the log, whose positions count from 0."""
    if config.event_types is not None:
        rows = [row for row in rows if row.event_type in config.event_types]
    if config.min_rating is not None:
        rows = [row for row in rows if row.rating is None or row.rating >= config.min_rating]
    appearance = {user: rank for rank, user in enumerate(dict.fromkeys(row.user for row in rows))}
    has_order = bool(rows) and (rows[0].timestamp is not None or rows[0].position is not None)
    shuffled = np.random.default_rng(config.tie_seed).permutation(len(rows)).tolist()
    ties: dict[str, list[object]] = {
        "source": [0] * len(rows),
        "item_id": [row.item.encode() for row in rows],
        "shuffle": shuffled,
    }
    tie = ties[config.tie_order] if has_order else ties["source"]
    order = sorted(
        range(len(rows)),
        key=lambda at: (appearance[rows[at].user], rows[at].timestamp or 0, rows[at].position or 0, tie[at], at),
    )
    rows = [rows[at] for at in order]
    if config.deduplicate != "none":
        places = list(range(len(rows)))
        kept = {(rows[at].user, rows[at].item): at for at in (places if config.deduplicate == "last" else places[::-1])}
        rows = [rows[at] for at in sorted(kept.values())]
    while True:
        users, items = Counter(row.user for row in rows), Counter(row.item for row in rows)
        left = [
            row
            for row in rows
            if users[row.user] >= config.min_user_interactions and items[row.item] >= config.min_item_interactions
        ]
        if len(left) == len(rows):
            break
        rows = left
    present = {row.item for row in rows}
    seen: Counter[str] = Counter()
    log = []
    for row in rows:
        log.append(replace(row, position=seen[row.user]))
        seen[row.user] += 1
    return [item for item in ITEMS if item in present or not only_interacted], list(seen), log


def as_raw(rows: list[Row], cuts: list[int]) -> RawData:
    frame = pl.DataFrame([astuple(row) for row in rows], schema=EVENT_SCHEMA, orient="row")
    bounds = [0, *sorted(cuts), len(rows)]
    pieces = (frame[begin:end] for begin, end in pairwise(bounds))
    return RawData(items=item_frame({"item_id": pl.Series(ITEMS)}), events=pieces)


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    has_time, has_position = draw(st.booleans()), draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 40))):
        time, place = draw(st.integers(0, 3)), draw(st.integers(0, 1))
        rows.append(
            Row(
                user=draw(st.sampled_from(USERS)),
                item=draw(st.sampled_from(ITEMS)),
                event_type=draw(st.sampled_from(["view", "buy's"])),
                rating=draw(st.sampled_from([None, 1.0, 2.5])),
                timestamp=time if has_time else None,
                # One that does not contradict the time.
                position=2 * time + place if has_position else None,
            )
        )
    return rows


CONFIGS = st.builds(
    DataConfig,
    event_types=st.sampled_from([None, ["view"], ["buy's", "view"]]),
    min_rating=st.sampled_from([None, 2.0]),
    tie_order=st.sampled_from(["source", "item_id", "shuffle"]),
    tie_seed=st.integers(0, 2),
    deduplicate=st.sampled_from(["none", "first", "last"]),
    min_user_interactions=st.integers(1, 4),
    min_item_interactions=st.integers(1, 3),
)


def assert_as_expected(rows: list[Row], cuts: list[int], config: DataConfig, only_interacted: bool) -> None:
    item_ids, user_ids, log = expected(rows, config, only_interacted)
    try:
        catalog, interactions = prepare(as_raw(rows, cuts), config, only_interacted=only_interacted)
    except DataError:
        absent = config.event_types is not None and set(config.event_types) - {row.event_type for row in rows}
        chosen = [row for row in rows if config.event_types is None or row.event_type in config.event_types]
        unrated = config.min_rating is not None and all(row.rating is None for row in chosen)
        assert absent or unrated or not log
        return
    assert (catalog.item_ids, interactions.user_ids) == (item_ids, user_ids)
    assert interactions.frame.rows() == [
        (user_ids.index(row.user), item_ids.index(row.item), row.event_type, row.rating, row.timestamp, row.position)
        for row in log
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@example(rows=[Row("u", "a", "view", None, 1, None)], cuts=[], config=DataConfig(min_rating=2), only_interacted=False)
@given(rows=logs(), cuts=st.lists(st.integers(0, 40), max_size=3), config=CONFIGS, only_interacted=st.booleans())
def test_every_step_is_that_of_a_plain_reference(
    rows: list[Row], cuts: list[int], config: DataConfig, only_interacted: bool
) -> None:
    assert_as_expected(rows, [min(cut, len(rows)) for cut in cuts], config, only_interacted)


@pytest.mark.parametrize("deduplicate", ["first", "last"])
def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, deduplicate: str) -> None:
    random = np.random.default_rng(0)
    rows = [
        Row(USERS[user], ITEMS[item], "view", None, time, None)
        for user, item, time in random.integers(0, [5, 6, 9], size=(60, 3)).tolist()
    ]
    config = DataConfig.model_validate(
        {"deduplicate": deduplicate, "tie_order": "shuffle", "min_user_interactions": 5, "min_item_interactions": 4}
    )
    for size in (1, 7, 1000):
        monkeypatch.setattr(sequences, "_BLOCK", size)
        monkeypatch.setattr(spilled, "_FETCHED_ROWS", size)
        assert_as_expected(rows, [20], config, only_interacted=True)


def test_a_contradiction_is_found_between_the_pieces_in_which_rows_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [Row("u", "a", "view", None, 1, 5), Row("u", "b", "view", None, 2, 4), Row("U", "b", "view", None, 3, 0)]
    monkeypatch.setattr(spilled, "_FETCHED_ROWS", 1)
    with pytest.raises(DataError, match=r"contradicts timestamp in 1 of 3 rows, e.g. user 'u' position 4;"):
        prepare(as_raw(rows, [1]), DataConfig(), only_interacted=False)


def test_what_does_not_fit_into_memory_goes_to_disk_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_rows = 400_000
    random = np.random.default_rng(0)
    users, items = random.integers(0, 40_000, num_rows), random.integers(0, len(ITEMS), num_rows)
    frame = pl.DataFrame(
        {
            "user_id": pl.Series(users).cast(pl.String),
            "item_id": pl.Series(ITEMS).gather(items),
            "event_type": pl.repeat("view", num_rows, eager=True),
            "rating": pl.repeat(None, num_rows, dtype=pl.Float64, eager=True),
            "timestamp": random.permutation(num_rows),
            "position": pl.repeat(None, num_rows, dtype=pl.Int64, eager=True),
        }
    )
    raw = RawData(items=item_frame({"item_id": pl.Series(ITEMS)}), events=frame)
    roomy = prepare(raw, DataConfig(), only_interacted=False)[1]
    written: list[bool] = []
    ordered = spilled.SpilledLog.ordered

    def watched(log: spilled.SpilledLog, *arguments: list[str]) -> Iterator[spilled.Columns]:
        for batch in ordered(log, *arguments):
            written.append(any((tmp_path / "scratch" / "overflow").glob("*")))
            yield batch

    monkeypatch.setattr(spilled, "_MEMORY", "24MiB")
    monkeypatch.setattr(spilled.SpilledLog, "ordered", watched)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "events-9.parquet").write_text("of one that was killed")
    tight = prepare(raw, DataConfig(), only_interacted=False, scratch=tmp_path / "scratch", threads=1)[1]
    assert any(written)
    assert tight.frame.equals(roomy.frame)
    assert tight.user_ids == roomy.user_ids
    assert list(tmp_path.iterdir()) == []


def test_where_the_system_keeps_temporary_files_nobody_else_reads_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with spilled.scratch_directory(None) as directory:
        assert directory.parent == tmp_path
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_lack_of_room_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spilled, "_MEMORY", "100KiB")
    rows = [Row("u", "a", "view", None, 1, None)]
    with pytest.raises(DataError, match=r"^.*/log: the log could not be put in order: .*; make room on that disk$"):
        prepare(as_raw(rows, []), DataConfig(), only_interacted=False, scratch=tmp_path / "log")
    assert list(tmp_path.iterdir()) == []
