"""What happens when a recommender learns from what it caused: rounds of showing, logging and fitting again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray, Sequences
from recsys.evaluation.metrics import ItemPopularity, exposure_metrics
from recsys.evaluation.ranker import Ranker
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.sessions.arms import CachedArm
from recsys.simulator.sessions.play import PlayConfig, play


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: fit, show, log."""

    ctr: float
    """Choices a page."""
    coverage: float
    """Share of the catalogue that was shown."""
    gini: float
    """Of how often items were shown, over the whole catalogue."""
    popularity: float
    """Mean percentile, in the log before the first round, of the items shown: 0.5 is unbiased."""
    interactions: int
    """In the log that the round's recommender was fitted on."""

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


def feedback_loop(
    model: ChoiceModel,
    fit: Callable[[Sequences], Ranker],
    train: Sequences,
    population: Sequences,
    config: PlayConfig,
    *,
    rounds: int,
    item_ids: Sequence[str],
) -> list[Round]:
    """Simulated users of `population` live with the recommender: what they take becomes their history, and its log.

    Args:
        model: how they choose.
        fit: makes a recommender out of a log.
        train: the log before the first round, of other users.
        population: histories of the simulated users before it; they are in the log from the first round on.
        config: of each round; its seed goes up with every round.
        rounds: how many.
        item_ids: of the catalogue.
    """
    popularity = ItemPopularity.of(train, model.num_items)
    index = {item_id: item for item, item_id in enumerate(item_ids)}
    user_ids = [str(row) for row in range(len(population))]
    found = []
    for number in range(rounds):
        log = Sequences.from_lists([*train, *population])
        arms = {"": CachedArm(ranker=fit(log))}
        seeded = config.model_copy(update={"seed": config.seed + number})
        played = play(model, arms, population, seeded, user_ids=user_ids, item_ids=item_ids)
        items = _indices(played.impressions, index)
        shown = np.bincount(items, minlength=model.num_items).astype(np.float64)
        exposure = exposure_metrics(shown[:, None], len(shown))
        found.append(
            Round(
                ctr=len(played.impressions.filter("chosen")) / float(played.sessions["steps"].sum()),
                coverage=float(exposure["coverage@10"][0]),
                gini=float(exposure["gini@10"][0]),
                popularity=float(popularity.percentile[items].mean()),
                interactions=len(log.items),
            )
        )
        taken = played.impressions.filter("chosen")
        chosen = Sequences.from_lists(_by_user(taken, index, len(population)))
        population = Sequences.from_lists(
            [np.concatenate(pair) for pair in zip(population, chosen, strict=True)], users=population.users.tolist()
        )
    return found


def _indices(impressions: pl.DataFrame, index: dict[str, int]) -> IntArray:
    return impressions["item_id"].replace_strict(index, return_dtype=pl.Int64).to_numpy()


def _by_user(taken: pl.DataFrame, index: dict[str, int], num_users: int) -> list[IntArray]:
    """Each user's choices in the order of sessions and steps; an item that was taken twice counts once."""
    rows = taken["user_id"].cast(pl.Int64).to_numpy()
    items = _indices(taken, index)
    parts = [items[rows == row] for row in range(num_users)]
    return [part[np.sort(np.unique(part, return_index=True)[1])] for part in parts]
