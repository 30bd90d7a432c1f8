from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from simulated_world import NUM_ITEMS, make_log, make_model

from recsys.data import Sequences
from recsys.errors import DataError
from recsys.simulator.behaviour.slate_log import SessionLog, fit_on_slates
from recsys.simulator.sessions.arms import CachedArm
from recsys.simulator.sessions.play import PlayConfig, Played, play

USERS = 400
HISTORIES = make_log(USERS).sequences()
USER_IDS = [f"u{user}" for user in range(USERS)]
ITEM_IDS = [f"i{item}" for item in range(NUM_ITEMS)]


def shuffled(histories: Sequences, k: int) -> np.ndarray:
    """Each user another order, so that places and items are not confounded."""
    return np.stack([np.random.default_rng(user).permutation(NUM_ITEMS)[:k] for user in histories.users])


@pytest.fixture(scope="module")
def played() -> Played:
    config = PlayConfig(size=4, max_steps=6, sessions_per_user=16, seed=4)
    return play(make_model(), {"": CachedArm(ranker=shuffled)}, HISTORIES, config, user_ids=USER_IDS, item_ids=ITEM_IDS)


def read(impressions: pl.DataFrame, sessions: pl.DataFrame) -> SessionLog:
    return SessionLog.of(impressions, sessions, HISTORIES, user_ids=USER_IDS, item_ids=ITEM_IDS)


def test_what_users_were_made_of_is_found_again_from_the_slates_that_they_saw(played: Played) -> None:
    truth = make_model().parameters
    start = make_model(popularity=0.0, satiation=0.0, null=0.0, position_bias=(0.0,))
    fitted = fit_on_slates(start, read(played.impressions, played.sessions))
    found = fitted.parameters
    # The constant of category 0, which no item has, is nobody's.
    np.testing.assert_allclose(fitted.constants[1:], make_model().constants[1:], atol=0.25)
    assert found.null == pytest.approx(truth.null, abs=0.15)
    assert found.popularity == pytest.approx(truth.popularity, abs=0.1)
    np.testing.assert_allclose(found.position_bias, truth.position_bias, atol=0.15)
    # Few sessions have two choices, so satiation is found roughly.
    assert found.satiation == pytest.approx(truth.satiation, abs=0.5)
    assert found.patience.per_null == pytest.approx(truth.patience.per_null, abs=0.1)
    assert found.patience.per_reward == pytest.approx(truth.patience.per_reward, abs=0.15)
    assert found.origin["null"] == "fitted to slates"


def test_pages_are_read_as_they_were_shown(played: Played) -> None:
    log = read(played.impressions.sample(fraction=1.0, shuffle=True, seed=0), played.sessions)
    assert len(log.items) == played.sessions["steps"].sum()
    first = played.impressions.filter((pl.col("user_id") == "u0") & (pl.col("session") == 0) & (pl.col("step") == 0))
    assert [f"i{item}" for item in log.items[0]] == first["item_id"].to_list()
    assert (log.chosen >= 0).sum() == played.sessions["choices"].sum()
    leaving = log.leaving()
    assert leaving.left.sum() == (played.sessions["ended"] == "left").sum()
    assert leaving.nulls is not None
    assert (leaving.nulls[log.chosen >= 0] == 0).all()
    assert (leaving.nulls[(log.steps == 0) & (log.chosen < 0)] == 1).all()


def test_broken_logs_are_refused_with_their_rows(played: Played) -> None:
    impressions, sessions = played.impressions, played.sessions
    twice = impressions.with_columns(chosen=pl.lit(True))
    with pytest.raises(DataError, match="two items of a page were chosen, first at row 0"):
        read(twice, sessions)
    with pytest.raises(DataError, match=r"4 of .* impressions have an unknown item_id"):
        read(
            impressions.with_columns(
                item_id=pl.when(pl.int_range(pl.len()) < 4).then(pl.lit("?")).otherwise("item_id")
            ),
            sessions,
        )
    with pytest.raises(DataError, match="impressions have no session in the table"):
        read(impressions, sessions.filter(pl.col("user_id") != "u3"))
