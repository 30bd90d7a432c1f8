"""From a source's raw tables to a checked Catalog and Interactions: filters, order, repeats, k-core, dense
indices.

What has to bring rows together from all over the log runs on disk, in `recsys.data.spilled`. It hands over the rows in
their order, as integers; the steps after that look at one user, or one block of rows, at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.catalog import Catalog
from recsys.data.config import DataConfig
from recsys.data.interactions import SCHEMA, Interactions
from recsys.data.sequences import IntArray, blocks, blocks_of_runs
from recsys.data.sources.raw import RawData
from recsys.data.spilled import Columns, LogFacts, SpilledLog, spilled
from recsys.data.tables import NUM_EXAMPLES
from recsys.errors import DataError
from recsys.progress import progress_bar

BoolArray = npt.NDArray[np.bool_]
_MANY_ROWS = 10_000_000
_DTYPES = {"user": np.int32, "item": np.int32, "event_type": np.int32, "rating": np.float64, "timestamp": np.int64}


def prepare(
    raw: RawData,
    config: DataConfig,
    *,
    only_interacted: bool,
    scratch: Path | None = None,
    threads: int | None = None,
) -> tuple[Catalog, Interactions]:
    """Apply the steps of `DataConfig` in their documented order.

    Args:
        raw: its events are read once.
        config: the steps.
        only_interacted: drop items that no remaining interaction names.
        scratch: a directory for the log while it is worked on; see `spilled`.
        threads: of the part that runs on disk; None: one a processor.

    Raises:
        DataError: the tables contradict each other, or a step leaves nothing.
    """
    catalog = Catalog(frame=raw.items)
    with spilled(raw.events, scratch, threads) as log:
        log.know_items(catalog.frame["item_id"], ranked=config.tie_order == "item_id")
        facts = log.facts()
        _check_items_known(log, facts.num_rows, len(catalog))
        if config.event_types is not None:
            _keep_event_types(log, facts.num_rows, config.event_types)
        facts = log.facts()
        if config.min_rating is not None:
            facts = _keep_ratings(log, facts, config.min_rating)
        log.number_users()
        event_types = log.event_types()
        columns = _order(log, facts, config, event_types)
        if config.deduplicate != "none":
            _keep(columns, _without_repeats(columns, len(catalog), config.deduplicate))
        if max(config.min_user_interactions, config.min_item_interactions) > 1 or not len(columns["user"]):
            _keep(columns, _k_core(columns, len(catalog), config.min_user_interactions, config.min_item_interactions))
        user_ids = log.user_ids(_number_users(columns))
    if only_interacted:
        catalog = _only_interacted(catalog, columns)
    frame = _to_frame(columns, event_types)
    return catalog, Interactions(frame=frame, user_ids=user_ids, num_items=catalog.num_items)


def _check_items_known(log: SpilledLog, num_rows: int, num_items: int) -> None:
    num_unknown, num_distinct, examples = log.unknown_items(NUM_EXAMPLES)
    if num_unknown:
        raise DataError(
            f"interactions: {num_unknown} of {num_rows} rows name {num_distinct} items that are not "
            f"among the {num_items} of the catalogue, e.g. {_examples(examples)}"
        )


def _keep_event_types(log: SpilledLog, num_rows: int, event_types: list[str]) -> None:
    present = log.event_types()
    absent = sorted(set(event_types) - set(present))
    if absent:
        raise DataError(
            f"event_types: {absent[0]!r} occurs in none of {num_rows} interactions; the log has {_examples(present)}"
        )
    log.keep_event_types(event_types)


def _keep_ratings(log: SpilledLog, before: LogFacts, min_rating: float) -> LogFacts:
    if not before.num_ratings:
        raise DataError(f"min_rating: none of {before.num_rows} interactions has a rating; leave min_rating out")
    log.keep_ratings(min_rating)
    facts = log.facts()
    if not facts.num_rows:
        raise DataError(
            f"min_rating: {min_rating} leaves none of {before.num_rows} interactions; ratings lie in "
            f"{before.lowest_rating!r} to {before.highest_rating!r}"
        )
    return facts


def _order(log: SpilledLog, facts: LogFacts, config: DataConfig, event_types: list[str]) -> Columns:
    """Sort by user (first appearance), then time, then given positions, then the tie order; the source's row
    order decides what is left."""
    keys = [*(["timestamp"] if facts.has_timestamps else []), *(["position"] if facts.has_positions else [])]
    wanted = [*(["rating"] if facts.num_ratings else []), *keys]
    # Row order is all there is, so there are no ties to order.
    if keys and config.tie_order == "item_id":
        keys.append("item_id")
    elif keys and config.tie_order == "shuffle":
        log.shuffle_ties(config.tie_seed)
        keys.append("shuffled")
    names = ["user", "item", "event_type", *(name for name in wanted if name != "position")]
    columns: Columns = {name: np.empty(facts.num_rows, dtype=_DTYPES[name]) for name in names}
    steps = _PositionsFollowTime() if {"timestamp", "position"} <= set(wanted) else None
    begin = 0
    with progress_bar("order the log", facts.num_rows, least=_MANY_ROWS) as advance:
        for batch in log.ordered(keys, wanted, event_types):
            end = begin + len(batch["user"])
            for name, column in columns.items():
                column[begin:end] = batch[name]
            if steps is not None:
                steps.look_at(batch)
            advance(end - begin, "")
            begin = end
    assert begin == facts.num_rows
    if steps is not None:
        steps.check(log, facts.num_rows)
    return columns


class _PositionsFollowTime:
    """Counts the rows of a log in its order whose position is lower than that of the user's row before."""

    def __init__(self) -> None:
        self._last = {"user": np.full(1, -1), "position": np.zeros(1, dtype=np.int64)}
        self._num_wrong = 0
        self._examples: list[tuple[int, int]] = []

    def look_at(self, batch: Columns) -> None:
        """Take the next rows."""
        user, position = (np.concatenate([self._last[name], batch[name]]) for name in ("user", "position"))
        wrong = 1 + np.flatnonzero((user[1:] == user[:-1]) & (position[1:] < position[:-1]))
        self._num_wrong += len(wrong)
        first = wrong[: NUM_EXAMPLES - len(self._examples)]
        self._examples += zip(user[first].tolist(), position[first].tolist(), strict=True)
        self._last = {"user": user[-1:], "position": position[-1:]}

    def check(self, log: SpilledLog, num_rows: int) -> None:
        """Raise DataError if there were any."""
        if self._num_wrong:
            user_ids = log.user_ids(np.array([user for user, _ in self._examples]))
            examples = ", ".join(
                f"user {user_id!r} position {position}"
                for user_id, (_, position) in zip(user_ids, self._examples, strict=True)
            )
            raise DataError(
                f"interactions: position contradicts timestamp in {self._num_wrong} of {num_rows} rows, e.g. "
                f"{examples}; correct or leave out one of the two columns"
            )


def _keep(columns: Columns, kept: BoolArray) -> None:
    for name in list(columns):
        columns[name] = columns[name][kept]


def _without_repeats(columns: Columns, num_items: int, policy: str) -> BoolArray:
    """Whether each row is the first, or last, of its user with its item."""
    kept = np.zeros(len(columns["user"]), dtype=bool)
    for block in blocks_of_runs(columns["user"]):
        pairs = columns["user"][block].astype(np.int64) * num_items + columns["item"][block]
        pairs = pairs if policy == "first" else pairs[::-1]
        rows = np.unique(pairs, return_index=True)[1]
        kept[block][rows if policy == "first" else len(pairs) - 1 - rows] = True
    return kept


def _k_core(columns: Columns, num_items: int, min_user: int, min_item: int) -> BoolArray:
    """Whether each row stays when rare users and items are dropped until none is left; dropping one can make the
    other rare."""
    user, item = columns["user"], columns["item"]
    num_users = int(user.max(initial=-1)) + 1
    frequent_user, frequent_item = np.ones(num_users, dtype=bool), np.ones(num_items, dtype=bool)
    before = -1
    while True:
        users, items = np.zeros(num_users, dtype=np.int64), np.zeros(num_items, dtype=np.int64)
        for block in blocks(len(user)):
            kept = frequent_user[user[block]] & frequent_item[item[block]]
            users += np.bincount(user[block][kept], minlength=num_users)
            items += np.bincount(item[block][kept], minlength=num_items)
        left = int(users.sum())
        if left == 0:
            raise DataError(
                f"min_user_interactions {min_user} and min_item_interactions {min_item} leave none of "
                f"{len(user)} interactions; lower them"
            )
        if left == before:
            return frequent_user[user] & frequent_item[item]
        before = left
        frequent_user, frequent_item = users >= min_user, items >= min_item


def _number_users(columns: Columns) -> IntArray:
    """Make the users' indices dense; the former index of each, int64."""
    user = columns["user"]
    begins = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]]))
    left = user[begins].astype(np.int64)
    index = np.zeros(int(left[-1]) + 1, dtype=np.int32)
    index[left] = np.arange(len(left))
    columns["user"] = index[user]
    return left


def _only_interacted(catalog: Catalog, columns: Columns) -> Catalog:
    """The items that the log names; its indices become theirs."""
    present = np.zeros(len(catalog), dtype=bool)
    present[columns["item"]] = True
    columns["item"] = (np.cumsum(present) - 1).astype(np.int32)[columns["item"]]
    return Catalog(frame=catalog.frame.filter(pl.Series(present)))


def _to_frame(columns: Columns, event_types: list[str]) -> pl.DataFrame:
    """The table of `Interactions`; each column is taken out of `columns` as it is made."""
    lengths = np.bincount(columns["user"])
    num_rows = len(columns["user"])
    made = {"position": pl.Series(np.arange(num_rows) - np.repeat(np.cumsum(lengths) - lengths, lengths))}
    made["event_type"] = pl.Series(event_types, dtype=pl.String).gather(columns.pop("event_type"))
    for name in ("user", "item", "timestamp", "rating"):
        made[name] = (
            pl.Series(columns.pop(name), dtype=SCHEMA[name], nan_to_null=True)
            if name in columns
            else pl.repeat(None, num_rows, dtype=SCHEMA[name], eager=True)
        )
    return pl.DataFrame([made[name].alias(name) for name in SCHEMA])


def _examples(values: list[str]) -> str:
    return ", ".join(map(repr, values[:NUM_EXAMPLES]))
