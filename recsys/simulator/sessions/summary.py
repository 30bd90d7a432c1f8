"""What a simulation says of each arm, with intervals over users. Knows no models, only logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.data.sequences import Sequences
from recsys.evaluation.bootstrap import Interval, UserBootstrap
from recsys.evaluation.metrics import CaseMetric, ItemPopularity, list_metrics
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.sessions.crowd import Crowd
from recsys.simulator.sessions.play import Played

DoubleArray = npt.NDArray[np.float64]

RESAMPLES = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm."""

    metrics: dict[str, Interval]
    """`reward` (choices a session), `ctr` (choices a page), `expected` (their expectation a session), `steps` (pages a
    session); of the first pages `regret` (expected choices of the best slate there is, minus those of the arm's),
    `novelty@10` and the like, `coverage@10`, `gini@10`, `ild` (1 - mean cosine of the content of two items of a list)
    and `repeats` (share of items that the user had before). Pages that show nothing count as a page without choice."""
    minus_first: dict[str, Interval]
    """`reward`, `ctr` and `expected` minus those of the first arm, on the same users; empty for the first arm."""

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


def summarise(
    played: Played,
    model: ChoiceModel,
    population: Sequences,
    train: Sequences,
    *,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    seed: int,
    traits: Traits | None = None,
) -> dict[str, ArmSummary]:
    """By arm, in their order.

    Args:
        played: logs of a simulation.
        model: that was played with.
        population: its users' histories.
        train: what popularity is counted in: the recommender's training sequences.
        user_ids: of the rows of `population`.
        item_ids: of the catalogue, by dense index.
        seed: of the resampling of users.
        traits: of the users, as in `play`; None for ordinary ones.
    """
    popularity = ItemPopularity.of(train, model.num_items)
    by_arm = {str(key[0]): part for key, part in played.sessions.partition_by("arm", as_dict=True).items()}
    index = pl.DataFrame({"item_id": item_ids, "item": np.arange(len(item_ids))})
    rows = pl.DataFrame({"user_id": user_ids, "row": np.arange(len(user_ids))})
    first_pages = played.impressions.filter((pl.col("step") == 0) & (pl.col("session") == 0))
    pages = first_pages.join(index, on="item_id").join(rows, on="user_id").sort("row", "position")
    size = int(played.impressions["position"].max() or 0) + 1  # type: ignore[arg-type]
    everyone = Traits.ordinary(len(population)) if traits is None else traits
    best = oracle_chances(model, population, size, everyone)
    # Sessions of all arms are sorted alike, which makes differences paired.
    any_arm = next(iter(by_arm.values()))
    _, users = np.unique(any_arm["user_id"].to_numpy(), return_inverse=True)
    bootstrap = UserBootstrap(users, n_resamples=RESAMPLES, seed=seed, confidence=_CONFIDENCE)
    measured = {arm: _session_metrics(sessions) for arm, sessions in by_arm.items()}
    first = next(iter(measured))
    names = list(measured[first])
    result = {}
    for arm, metrics in measured.items():
        found = dict(zip(names, bootstrap.intervals([metrics[name] for name in names]), strict=True))
        paired = ("reward", "ctr", "expected")
        differences = bootstrap.differences([(metrics[name], measured[first][name]) for name in paired])
        shown = pages.filter(pl.col("arm") == arm)
        result[arm] = ArmSummary(
            metrics=found | _page_metrics(shown, size, model, population, popularity, best, seed),
            minus_first={} if arm == first else dict(zip(paired, differences, strict=True)),
        )
    return result


def _session_metrics(sessions: pl.DataFrame) -> dict[str, CaseMetric]:
    ones = np.ones(len(sessions))
    steps, reward = sessions["steps"].to_numpy().astype(np.float64), sessions["reward"].to_numpy()
    return {
        "reward": CaseMetric(numerator=reward, denominator=ones),
        "ctr": CaseMetric(numerator=reward, denominator=steps),
        "expected": CaseMetric(numerator=sessions["expected"].to_numpy(), denominator=ones),
        "steps": CaseMetric(numerator=steps, denominator=ones),
    }


def _page_metrics(
    shown: pl.DataFrame,
    size: int,
    model: ChoiceModel,
    population: Sequences,
    popularity: ItemPopularity,
    best: DoubleArray,
    seed: int,
) -> dict[str, Interval]:
    """Of the first page of each user's first session; `best` is what `oracle_chances` says."""
    lists = np.full((len(population), size), -1)
    rows, positions, items = (shown[name].to_numpy() for name in ("row", "position", "item"))
    lists[rows, positions] = items
    ones = np.ones(len(lists))
    count = (lists >= 0).sum(axis=1).astype(np.float64)
    content = model.vectors.blocks["content"][lists] * (lists >= 0)[..., None]
    cosines = np.square(content.sum(axis=1)).sum(axis=1) - np.square(content).sum(axis=(1, 2))
    had = np.isin(
        np.arange(len(lists))[:, None] * model.num_items + lists,
        np.repeat(np.arange(len(population)), population.lengths) * model.num_items + population.items,
    ) & (lists >= 0)
    chance = np.bincount(rows, shown["chance"].to_numpy(), len(lists))
    metrics = {
        "regret": CaseMetric(numerator=best - chance, denominator=ones),
        "ild": CaseMetric(numerator=count * (count - 1) - cosines, denominator=count * (count - 1)),
        "repeats": CaseMetric(numerator=had.sum(axis=1).astype(np.float64), denominator=count),
        **list_metrics(lists, popularity),
    }
    bootstrap = UserBootstrap(np.arange(len(lists)), n_resamples=RESAMPLES, seed=seed, confidence=_CONFIDENCE)
    found = dict(zip(metrics, bootstrap.intervals(list(metrics.values())), strict=True))
    return found | bootstrap.exposure_intervals(lists, model.num_items)


def oracle_chances(model: ChoiceModel, population: Sequences, size: int, traits: Traits) -> DoubleArray:
    """float64 [users]: the chance of a choice from the best slate of items that the user has not had."""
    chances = np.empty(len(population))
    for begin in range(0, len(population), 256):
        rows = np.arange(begin, min(begin + 256, len(population)))
        histories = population.select(rows)
        sessions = np.zeros_like(rows)
        crowd = Crowd(model, histories, users=rows, sessions=sessions, seed=0, traits=traits.select(rows))
        utilities = crowd.catalogue()
        utilities[np.repeat(np.arange(len(rows)), histories.lengths), histories.items] = -np.inf
        best = np.argsort(-utilities, axis=1, kind="stable")[:, :size]
        chances[rows] = crowd.chances(best).sum(axis=1)
    return chances
