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
from recsys.simulator.exploration import ListPropensities, list_propensities
from recsys.simulator.off_policy import PropensityCalibration, SlateLog, SlateTarget
from recsys.simulator.off_policy.log import FloatArray
from recsys.simulator.off_policy.prefixes import prefix_groups
from recsys.simulator.off_policy.rewards import place_and_item_means

_BATCH = 64
_MAX_HISTORY = 500
"""Newest entries of a history that the service reads, and that its hash is of."""
_LEAST_KNOWN = 0.9
"""Share of lists whose history, or whose policy, must be found: the others may not be like them."""
_SAME = 1e-2
"""By which propensities may differ, relatively, that the same bundle gives on another machine."""


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
    epsilons: FloatArray
    """float64 [n], of each list: the share of lists that were drawn at random."""
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
    lists = lists.filter(pl.Series(known))
    log, item_ids = _log(lists, rewards, places)
    return StoredLists(
        log=log,
        histories=[each for each, is_known in zip(histories, known, strict=True) if is_known],
        item_ids=item_ids,
        epsilons=lists["epsilon"].to_numpy(),
        num_lists=num_lists,
        left_out={reason: count for reason, count in left_out.items() if count},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetAnswers:
    """What a bundle says of the lists of a log."""

    slate_target: SlateTarget
    model: tuple[FloatArray, FloatArray]
    """Of `cascade_dr`: what a reward model of other users expects of what was shown, and of what the bundle would show
    there, float64 [n, L] each."""
    prefix_weights: Sequence[FloatArray]
    """float64 [n, L] for each number of codes from 1 on, see `evaluate_slates`; lists of unknown policies have weights
    of items. Empty where the policies of too many lists are unknown."""
    calibration: PropensityCalibration | None
    """Of what stands first in the lists of known policies; None where those of too many are unknown."""
    num_known: int
    """Lists of which the bundle that was served has the propensities that were logged."""


def target_of(
    bundle: Bundle,
    served: Bundle,
    lists: StoredLists,
    policy: TargetPolicy,
    *,
    num_folds: int,
    penalty: float,
    seed: int,
) -> TargetAnswers:
    """How likely a bundle would have shown the lists.

    The bundle answers each list's history; items of the history are not shown again. A list that was asked for with
    pins, filters or other wishes was made under them, and the log does not say so: the bundle is asked without. The
    one that was served is asked too: where it has the logged propensities of a list, its whole policy is known there,
    which prefixes of semantic IDs (the tested bundle's) and the calibration of the propensities need.

    Args:
        bundle: under test.
        served: that made the lists.
        lists: the log.
        policy: how the bundle is served; the one that was, drew from as many candidates.
        num_folds: of the reward model.
        penalty: of the reward model.
        seed: of draws and folds.
    """
    log = lists.log
    folds, means = place_and_item_means(log, len(lists.item_ids), num_folds=num_folds, penalty=penalty, seed=seed)
    # Candidates that no list shows have the mean of their place.
    no_item = means.mean(axis=2, keepdims=True)
    means = np.concatenate([means, no_item], axis=2)
    in_log = np.full(bundle.catalog.num_items, len(lists.item_ids))
    in_bundle = bundle.catalog.index_of(lists.item_ids.to_list())
    in_log[in_bundle[in_bundle >= 0]] = np.flatnonzero(in_bundle >= 0)
    ours, theirs = _Asked(bundle, lists, policy.candidates), _Asked(served, lists, policy.candidates)
    # By the index of an item in the bundle that was served; its items that the tested one lacks are in no group of it.
    to_tested = bundle.catalog.index_of(served.catalog.item_ids)
    groups = [
        np.append(prefix_groups(bundle.semantic_ids.codes, depth), -1)
        for depth in range(1, bundle.semantic_ids.codes.shape[1] + 1)
    ]
    conditional, marginal, expected = (np.zeros(log.items.shape) for _ in range(3))
    prefix_weights = [np.ones(log.items.shape) for _ in groups]
    is_known = np.zeros(len(log), dtype=bool)
    first, first_taken = (np.zeros((len(log), policy.candidates)) for _ in range(2))
    places = np.arange(log.items.shape[1])
    with progress_bar("Asking the target", len(log)) as advance:
        for begin in range(0, len(log), _BATCH):
            rows = range(begin, min(begin + _BATCH, len(log)))
            answers = ours.of(rows)
            for row, answer, logged in zip(
                rows, answers, answers if served is bundle else theirs.of(rows), strict=True
            ):
                shown = log.items[row] >= 0
                count = int(shown.sum())
                likely = answer.propensities(policy.epsilon, seed + row)
                conditional[row, :count], marginal[row, :count] = likely.conditional, likely.marginal
                q = means[folds[row]][places[:count, None], in_log[answer.items]]
                expected[row, :count] = (likely.choices * q).sum(axis=1)
                told = logged.propensities(float(lists.epsilons[row]), seed + row)
                is_known[row] = np.allclose(told.conditional, log.conditional[row, :count], rtol=_SAME)
                first[row, : len(logged.items)] = told.choices[0]
                first_taken[row, : len(logged.items)] = np.arange(len(logged.items)) == logged.order[0]
                for weights, group in zip(prefix_weights, groups, strict=True):
                    of_shown = group[in_bundle[log.items[row, :count]]]
                    wanted = _of_groups(likely.marginals, group[answer.items], of_shown)
                    found = _of_groups(told.marginals, group[to_tested[logged.items]], of_shown)
                    may_be = (found > 0) & (of_shown >= 0)
                    weights[row, :count] = np.divide(wanted, found, out=np.zeros(count), where=may_be)
            advance(len(rows), "")
    predicted = np.where(log.items >= 0, means[folds[:, None], places, log.items], 0.0)
    is_evidence = is_known.mean() >= _LEAST_KNOWN
    for weights in prefix_weights:
        weights[~is_known] = np.where(log.items >= 0, marginal / log.marginal, 1.0)[~is_known]
    return TargetAnswers(
        slate_target=SlateTarget(conditional=conditional, marginal=marginal),
        model=(predicted, expected),
        prefix_weights=prefix_weights if is_evidence else (),
        calibration=PropensityCalibration.of(
            first[is_known], first_taken[is_known].astype(np.int64), np.ones(int(is_known.sum()), dtype=np.int64)
        )
        if is_evidence
        else None,
        num_known=int(is_known.sum()),
    )


def _of_groups(marginals: FloatArray, groups: IntArray, of_shown: IntArray) -> FloatArray:
    """float64 [k], how likely any candidate of a group stands at each of k places; `marginals` is [k, candidates]."""
    return np.asarray((marginals * (groups == of_shown[:, None])).sum(axis=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answer:
    """Of a bundle for one history."""

    items: IntArray
    """int64 [n], by the bundle's index, best first."""
    scores: FloatArray
    order: IntArray
    """int64 [k], places among `items` of what was shown; -1 = not among them."""

    def propensities(self, epsilon: float, seed: int) -> ListPropensities:
        """Of what was shown."""
        return list_propensities(self.scores, self.order, epsilon=epsilon, seed=seed)


class _Asked:
    """A bundle that is asked for the lists of a log."""

    def __init__(self, bundle: Bundle, lists: StoredLists, candidates: int) -> None:
        self._bundle, self._lists, self._candidates = bundle, lists, candidates
        self._index = bundle.catalog.index_of(lists.item_ids.to_list())

    def of(self, rows: Sequence[int]) -> list[_Answer]:
        """Its answers to the histories of these lists."""
        answers = []
        found, scores = _candidates(self._bundle, [self._lists.histories[row] for row in rows], self._candidates)
        for row, items, values in zip(rows, found, scores, strict=True):
            place_of = np.full(self._bundle.catalog.num_items + 1, -1)
            place_of[items] = np.arange(len(items))
            shown = self._lists.log.items[row]
            answers.append(_Answer(items=items, scores=values, order=place_of[self._index[shown[shown >= 0]]]))
        return answers


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
