"""Numbers a user from sessions, worked out by hand; tables that cannot be are refused with the rows named."""

from __future__ import annotations

import polars as pl
import pytest

from recsys.errors import ConfigError, DataError
from recsys.simulator.experiment.outcomes import METRICS, check_arms, metric_named, user_outcomes

# One user, two sessions: lists (x, y) and (x, z), then (x, w). Took y, and w for a reward of 2.
SHOWN = pl.DataFrame(
    {
        "arm": ["A"] * 6,
        "user_id": ["u"] * 6,
        "session": [0, 0, 0, 0, 1, 1],
        "step": [0, 0, 1, 1, 0, 0],
        "position": [0, 1, 0, 1, 0, 1],
        "item_id": ["x", "y", "x", "z", "x", "w"],
        "chosen": [False, True, False, False, False, True],
        "reward": [0.0, 1.0, 0.0, 0.0, 0.0, 2.0],
    }
)


def test_numbers_of_a_user_by_hand() -> None:
    assert user_outcomes(SHOWN).to_dicts() == [
        {
            "arm": "A",
            "user_id": "u",
            "sessions": 2,
            "steps": 3,
            "impressions": 6,
            "items": 4,
            "choices": 2,
            "reward": 3.0,
        }
    ]
    values = {name: metric.values(user_outcomes(SHOWN))[0] for name, metric in METRICS.items()}
    assert values == pytest.approx(
        {
            "choices_per_user": 2,
            "reward_per_user": 3,
            "choice_rate": 2 / 3,
            "click_through": 1 / 3,
            "reward_per_step": 1,
            "session_length": 1.5,
            "variety": 2 / 3,
        }
    )


def test_who_was_shown_nothing_took_nothing() -> None:
    """u had a third session without a list; v and w had only such ones, w in one arm."""
    sessions = pl.DataFrame(
        [("A", "u", 0), ("A", "u", 1), ("A", "u", 2), ("A", "v", 0), ("A", "w", 0), ("B", "w", 0)],
        schema=["arm", "user_id", "session"],
        orient="row",
    )
    found = user_outcomes(SHOWN, sessions)
    assert found.drop("items", "reward").rows() == [
        ("A", "u", 3, 3, 6, 2),
        ("A", "v", 1, 0, 0, 0),
        ("A", "w", 1, 0, 0, 0),
        ("B", "w", 1, 0, 0, 0),
    ]
    in_a = found.filter(pl.col("arm") == "A")
    means = {name: metric.values(in_a).mean() for name, metric in METRICS.items()}
    assert means["choices_per_user"] == pytest.approx(2 / 3)
    assert means["session_length"] == pytest.approx(3 / 5), "lists of five sessions, of which three had none"
    assert means["choice_rate"] == pytest.approx(2 / 3), "choices by lists, and there were three"
    in_b = found.filter(pl.col("arm") == "B")
    assert METRICS["choices_per_user"].values(in_b).tolist() == [0]
    assert METRICS["choice_rate"].defined(in_a)
    assert not METRICS["choice_rate"].defined(in_b)
    assert user_outcomes(SHOWN, sessions.head(2)).equals(user_outcomes(SHOWN))
    with pytest.raises(DataError, match="1 that showed an item are not in the list of sessions, such as A / u / 0"):
        user_outcomes(SHOWN, sessions.slice(1))
    with pytest.raises(DataError, match="list of sessions: the columns session are missing"):
        user_outcomes(SHOWN, sessions.drop("session"))


def test_the_order_of_rows_does_not_matter() -> None:
    more = pl.concat([SHOWN, SHOWN.with_columns(user_id=pl.lit("v")), SHOWN.with_columns(arm=pl.lit("B"))])
    assert user_outcomes(more.sample(fraction=1, shuffle=True, seed=0)).equals(user_outcomes(more))


def test_sessions_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="columns chosen are missing"):
        user_outcomes(SHOWN.drop("chosen"))
    with pytest.raises(DataError, match=r"item_id has no value in rows 1 \(1 in all\)"):
        user_outcomes(SHOWN.with_columns(item_id=pl.Series(["x", None, "x", "x", "x", "x"])))
    with pytest.raises(DataError, match=r"reward has no value in rows 0, 5 \(2 in all\)"):
        user_outcomes(SHOWN.with_columns(reward=pl.Series([float("nan"), 0, 0, 0, 0, float("inf")])))
    with pytest.raises(ConfigError, match="unknown metric 'clicks'; there are choices_per_user"):
        metric_named("clicks")


def test_arms_that_say_nothing_are_refused() -> None:
    def table(*rows: tuple[str, str]) -> pl.DataFrame:
        return pl.DataFrame(rows, schema=["arm", "user_id"], orient="row")

    check_arms(table(("A", "u"), ("B", "v")), ["A", "B"], paired=False)
    check_arms(table(("A", "u"), ("B", "u")), ["A", "B"], paired=True)
    for rows, paired, message in [
        ([("A", "u")], False, "'B' has no users; there are users in A"),
        ([("A", "u"), ("A", "u"), ("B", "v")], False, r"same arm twice, in rows 0, 1 \(2 in all\)"),
        ([("A", "u"), ("B", "u")], False, "1 users are in more than one arm: u"),
        ([("A", "u"), ("B", "u"), ("B", "v")], True, "1 users are not in every arm of a paired test: v"),
    ]:
        with pytest.raises(DataError, match=message):
            check_arms(table(*rows), ["A", "B"], paired=paired)
