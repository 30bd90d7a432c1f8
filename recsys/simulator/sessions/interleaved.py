"""Simulated users meet the lists of two rankers merged into one: whose items do they take?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray, Sequences
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.experiment.interleaving import Interleaved, Preference, preference_of_users
from recsys.simulator.sessions.arms import CachedArm, finished_lists
from recsys.simulator.sessions.play import PlayConfig, play

_ARM = "interleaved"


def simulated_preference(
    merge: Callable[[IntArray, IntArray, int, np.random.Generator], Interleaved],
    first: IntArray,
    second: IntArray,
    model: ChoiceModel,
    population: Sequences,
    config: PlayConfig,
    *,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    alpha: float = 0.05,
) -> Preference:
    """Merge the lists of each user once, play, and credit what is taken.

    Args:
        merge: `team_draft` or `probabilistic`.
        first: int64 [users, k], lists of one ranker; k = `config.size * config.max_steps`.
        second: of the other.
        model: how users choose.
        population: histories, one a user.
        config: sizes and seed.
        user_ids: of the rows of `population`.
        item_ids: of the catalogue, by dense index.
        alpha: of the interval.

    Returns:
        Wins are users who took more of the first ranker's items.
    """
    merged = merge(first, second, config.size * config.max_steps, np.random.default_rng(config.seed))
    arm = CachedArm(ranker=finished_lists(merged.items))
    numbered = replace(population, users=np.arange(len(population)))
    shown = play(model, {_ARM: arm}, numbered, config, user_ids=user_ids, item_ids=item_ids).impressions
    index = {user_id: row for row, user_id in enumerate(user_ids)}
    taken = shown.filter("chosen").select(
        row=pl.col("user_id").replace_strict(index, return_dtype=pl.Int64) * config.sessions_per_user
        + pl.col("session"),
        place=pl.col("step") * config.size + pl.col("position"),
    )
    rows = np.repeat(np.arange(len(population)), config.sessions_per_user)
    took = np.zeros((len(rows), merged.items.shape[1]), dtype=bool)
    took[taken["row"].to_numpy(), taken["place"].to_numpy()] = True
    of_sessions = Interleaved(items=merged.items[rows], credit=merged.credit[rows])
    return preference_of_users([user_ids[row] for row in rows.tolist()], of_sessions.preference(took), alpha)
