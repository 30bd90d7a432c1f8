"""The lists of a feature store as a log, and what a bundle would have shown in their place. Makes no estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from feature_store.offline import OfflineStore
from feature_store.slates import history_hash
from recsys.bundle import Bundle
from recsys.data.sequences import IntArray, Sequences
from recsys.data.tables import raise_bad_rows
from recsys.errors import DataError
from recsys.generator.constraints import Constraints
from recsys.progress import progress_bar
from recsys.simulator.exploration import list_propensities
from recsys.simulator.off_policy import SlateLog, SlateTarget
from recsys.simulator.off_policy.log import FloatArray
from recsys.simulator.off_policy.rewards import place_and_item_means

_BATCH = 64
_MAX_HISTORY = 500
"""Newest entries of a history that the service reads, and that its hash is of."""
_LEAST_KNOWN = 0.9
"""Share of lists whose history must be found: the others may not be like them."""


@dataclass(frozen=True, kw_only=True)
class TargetPolicy:
    """How the bundle under test would be served: `serving`'s exploration."""

    epsilon: float
    """Share of lists that are drawn at random."""
    candidates: int
    """The best so many items are drawn from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredLists:
    """The lists of a store that can be evidence, as one log."""

    log: SlateLog
    histories: Sequence[Sequence[str]]
    """Of each list, item ids, oldest first."""
    item_ids: pl.Series
    """By the log's item index."""
    num_lists: int
    """In the store."""
    left_out: dict[str, int]
    """How many lists are not in the log, by reason."""


def read_store(
    directory: Path, seeds: Path, *, events: Sequence[str], places: int | None, policies: Sequence[str] = ()
) -> StoredLists:
    """Lists that were drawn at random, with what users took of them.

    Args:
        directory: of the offline store.
        seeds: the bundle whose histories the service began with.
        events: types of events that count as a reward of 1, by which the user took an item of the list and which name
            it; none: any type.
        places: only the first so many of each list; None: all.
        policies: only lists that these sources made, such as `generator`; none: all.

    Raises:
        DataError: no list was drawn at random or is of a source that was named, a request stands twice, or the
            histories of too many are not to be found.
        StoreConfigError: there is no store, or it is damaged.
    """
    store = OfflineStore(directory)
    lists = store.slates()
    num_lists = len(lists)
    raise_bad_rows(str(directory), lists["request_id"], lists["request_id"].is_duplicated(), "stands twice")
    forced = pl.col("exposures").list.eval(pl.element().struct.field("forced")).list.any().fill_null(False)
    left_out = {"forced by a tester": int(lists.select(forced.sum()).item())}
    lists = lists.filter(~forced)
    if policies:
        there = lists["policy"].unique().sort().to_list()
        if unknown := [name for name in policies if name not in there]:
            raise DataError(f"{directory}: no list of source {unknown[0]!r}; there are lists of {', '.join(there)}")
        left_out["of other sources"] = int((~lists["policy"].is_in(list(policies))).sum())
        lists = lists.filter(pl.col("policy").is_in(list(policies)))
    left_out["not drawn at random"] = int((lists["epsilon"] == 0).sum())
    lists = lists.filter(pl.col("epsilon") > 0)
    left_out["empty"] = int((lists["slots"].list.len() == 0).sum())
    lists = lists.filter(pl.col("slots").list.len() > 0)
    if lists.is_empty():
        raise DataError(
            f"{directory}: none of {num_lists} lists was drawn at random, so they say nothing of another policy; "
            "serve with `exploration: {epsilon: 0.05}` and come back"
        )
    histories = _histories(store, lists, seeds)
    known = np.array([history_hash(each) == name for each, name in zip(histories, lists["history_hash"], strict=True)])
    left_out["of a history that is not to be found"] = int((~known).sum())
    if known.mean() < _LEAST_KNOWN:
        raise DataError(
            f"{directory}: the histories of {(~known).sum()} of {len(lists)} lists are not to be found; name "
            "the bundle that was served with --served"
        )
    rewards = _rewards(store, events)
    log, item_ids = _log(lists.filter(pl.Series(known)), rewards, places)
    return StoredLists(
        log=log,
        histories=[each for each, is_known in zip(histories, known, strict=True) if is_known],
        item_ids=item_ids,
        num_lists=num_lists,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


def target_of(
    bundle: Bundle, lists: StoredLists, policy: TargetPolicy, *, num_folds: int, penalty: float, seed: int
) -> tuple[SlateTarget, tuple[FloatArray, FloatArray]]:
    """How likely a bundle would have shown the lists, and a reward model's view for `cascade_dr`.

    The bundle answers each list's history; items of the history are not shown again. A list that was asked for with
    pins, filters or other wishes was made under them, and the log does not say so: the bundle is asked without.

    Args:
        bundle: under test.
        lists: the log.
        policy: how it is served.
        num_folds: of the reward model.
        penalty: of the reward model.
        seed: of draws and folds.
    """
    log = lists.log
    folds, means = place_and_item_means(log, len(lists.item_ids), num_folds=num_folds, penalty=penalty, seed=seed)
    # Candidates that no list shows have the mean of their place.
    no_item = means.mean(axis=2, keepdims=True)
    means = np.concatenate([means, no_item], axis=2)
    in_bundle = bundle.catalog.index_of(lists.item_ids.to_list())
    in_log = np.full(bundle.catalog.num_items, len(lists.item_ids))
    in_log[in_bundle[in_bundle >= 0]] = np.flatnonzero(in_bundle >= 0)
    conditional, marginal, expected = (np.zeros(log.items.shape) for _ in range(3))
    places = np.arange(log.items.shape[1])
    with progress_bar("Asking the target", len(log)) as advance:
        for begin in range(0, len(log), _BATCH):
            rows = range(begin, min(begin + _BATCH, len(log)))
            found, scores = _candidates(bundle, [lists.histories[row] for row in rows], policy.candidates)
            for row, items, values in zip(rows, found, scores, strict=True):
                place_of = np.full(bundle.catalog.num_items + 1, -1)
                place_of[items] = np.arange(len(items))
                shown = log.items[row][log.items[row] >= 0]
                order = place_of[in_bundle[shown]]  # -1 of an item that the bundle does not know stays -1
                if not len(items):
                    continue
                likely = list_propensities(values, order, epsilon=policy.epsilon, seed=seed + row)
                conditional[row, : len(shown)] = likely.conditional
                marginal[row, : len(shown)] = likely.marginal
                q = means[folds[row]][places[: len(shown), None], in_log[items]]
                expected[row, : len(shown)] = (likely.choices * q).sum(axis=1)
            advance(len(rows), "")
    predicted = np.where(log.items >= 0, means[folds[:, None], places, log.items], 0.0)
    return SlateTarget(conditional=conditional, marginal=marginal), (predicted, expected)


def _candidates(
    bundle: Bundle, histories: Sequence[Sequence[str]], count: int
) -> tuple[list[IntArray], list[FloatArray]]:
    """Items and their scores, best first, for each history."""
    known = [bundle.catalog.index_of(history) for history in histories]
    known = [items[items >= 0] for items in known]
    model = bundle.recommender if bundle.fused is None else bundle.fused
    found = model.recommend(Sequences.from_lists(known), count, constraints=Constraints(deny=known))
    listed = [row >= 0 for row in found.items]
    items = [row[is_there] for row, is_there in zip(found.items, listed, strict=True)]
    # As in the service: where the order is not that of the scores, the order counts.
    scores = [
        np.minimum.accumulate(row[is_there].astype(np.float64))
        for row, is_there in zip(found.scores, listed, strict=True)
    ]
    return items, scores


def _histories(store: OfflineStore, lists: pl.DataFrame, seeds: Path) -> list[list[str]]:
    began = dict(pl.read_parquet(seeds / "histories.parquet").iter_rows())
    labels = store.point_in_time(lists.select("user_id", "timestamp"), limit=_MAX_HISTORY)
    return [
        [*began.get(user, []), *later][-_MAX_HISTORY:]
        for user, later in labels.select("user_id", "history").iter_rows()
    ]


def _rewards(store: OfflineStore, events: Sequence[str]) -> pl.DataFrame:
    """Each item that a user took of a list, once: request_id, user_id, item_id."""
    taken = store.events().filter(pl.col("recommendation_id").is_not_null())
    if events:
        taken = taken.filter(pl.col("event_type").is_in(list(events)))
    return taken.select("user_id", "item_id", request_id="recommendation_id").unique()


def _log(lists: pl.DataFrame, taken: pl.DataFrame, places: int | None) -> tuple[SlateLog, pl.Series]:
    slots = (
        lists.select("request_id", "user_id", "slots")
        .with_row_index("list")
        .with_columns(position=pl.int_ranges(pl.col("slots").list.len()))
        .explode("slots", "position")
        .unnest("slots")
        .join(taken.with_columns(reward=1.0), on=["request_id", "user_id", "item_id"], how="left")
        .sort("list", "position")
    )
    if places is not None:
        slots = slots.filter(pl.col("position") < places)
    item_ids = slots["item_id"].unique(maintain_order=True)
    items = slots.join(pl.DataFrame({"item_id": item_ids}).with_row_index("item"), on="item_id", maintain_order="left")[
        "item"
    ]
    shape = (len(lists), int(slots.select(pl.col("position").max()).item()) + 1)
    at = (slots["list"].to_numpy(), slots["position"].to_numpy())

    def table(values: pl.Series, empty: float) -> FloatArray:
        filled = np.full(shape, empty)
        filled[at] = values.to_numpy()
        return filled

    log = SlateLog(
        items=table(items, -1).astype(np.int64),
        rewards=table(slots["reward"].fill_null(0.0), 0.0),
        conditional=table(slots["conditional"], 1.0),
        marginal=table(slots["marginal"], 1.0),
        users=lists["user_id"].rank("dense").cast(pl.Int64).to_numpy(),
        request_ids=lists["request_id"].to_numpy(),
    )
    return log, item_ids
