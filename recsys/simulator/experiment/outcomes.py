"""From what each user was shown and took to numbers a user, and the metrics that are made of them.

Sessions are a table with a row for each item shown: `arm`, `user_id`, `session`, `step` (a list of the session),
`position`, `item_id`, `chosen`, `reward`. A list whose items are all not chosen is one that the user took nothing of.
Whom an arm had nothing to show is in no row, and is an outcome all the same: nothing taken. Those are known from a
second table, of all sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.evaluation.ratios import user_values

FloatArray = npt.NDArray[np.float64]

SHOWN_COLUMNS = ("arm", "user_id", "session", "step", "item_id", "chosen", "reward")
SESSION_COLUMNS = ("arm", "user_id", "session")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A mean over users, or a ratio of sums over users."""

    name: str
    label: str
    """In plain words."""
    numerator: str
    """A column of the outcomes."""
    denominator: str | None
    """The column to divide by; None: the number of users."""
    meaning: str

    def values(self, outcomes: pl.DataFrame) -> FloatArray:
        """float64 [rows], one number a user; see `recsys.evaluation.ratios.user_values`. Must be `defined`."""
        above = outcomes[self.numerator].to_numpy()
        below = np.ones(len(above)) if self.denominator is None else outcomes[self.denominator].to_numpy()
        return user_values(above, below)

    def defined(self, outcomes: pl.DataFrame) -> bool:
        """Whether there is anything to divide by."""
        return outcomes.height > 0 and (self.denominator is None or bool(outcomes[self.denominator].sum() > 0))


METRICS: Final[dict[str, Metric]] = {
    name: Metric(name=name, label=name.replace("_", " "), numerator=above, denominator=below, meaning=meaning)
    for name, above, below, meaning in (
        ("choices_per_user", "choices", None, "items that a user took"),
        ("reward_per_user", "reward", None, "what a user's choices were worth"),
        ("choice_rate", "choices", "steps", "choices by lists shown"),
        ("click_through", "choices", "impressions", "choices by items shown"),
        ("reward_per_step", "reward", "steps", "worth by lists shown"),
        ("session_length", "steps", "sessions", "lists of a session"),
        ("variety", "items", "impressions", "different items that a user was shown, by all that were shown"),
    )
}


def metric_named(name: str) -> Metric:
    """A metric.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]


def user_outcomes(shown: pl.DataFrame, sessions: pl.DataFrame | None = None) -> pl.DataFrame:
    """One row for each user of each arm: `arm`, `user_id`, `sessions`, `steps`, `impressions`, `items`, `choices` and
    `reward`, sorted by arm and user.

    Args:
        shown: a row for each item shown.
        sessions: `arm`, `user_id` and `session` of all sessions, those in which nothing was shown included; None where
            only those with a list are known.

    Raises:
        DataError: a column is missing, or a value is, or an item was shown in none of `sessions`; the message names it.
    """
    _check_columns("sessions", shown, SHOWN_COLUMNS)
    outcomes = (
        shown.group_by("arm", "user_id")
        .agg(
            sessions=pl.col("session").n_unique(),
            steps=pl.struct("session", "step").n_unique(),
            impressions=pl.len(),
            items=pl.col("item_id").n_unique(),
            choices=pl.col("chosen").sum(),
            reward=pl.col("reward").sum(),
        )
        .sort("arm", "user_id")
    )
    if sessions is None:
        return outcomes
    _check_columns("list of sessions", sessions, SESSION_COLUMNS)
    unknown = shown.join(sessions, on=SESSION_COLUMNS, how="anti").unique(SESSION_COLUMNS).sort(SESSION_COLUMNS)
    if unknown.height:
        first = " / ".join(str(unknown[name][0]) for name in SESSION_COLUMNS)
        raise DataError(
            f"sessions: {unknown.height} that showed an item are not in the list of sessions, such as {first}"
        )
    everybody = sessions.group_by("arm", "user_id").agg(sessions=pl.col("session").n_unique())
    counted = everybody.join(outcomes.drop("sessions"), on=["arm", "user_id"], how="left")
    return counted.fill_null(0).select(outcomes.columns).sort("arm", "user_id")


def _check_columns(table: str, rows: pl.DataFrame, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in rows.columns]:
        raise DataError(f"{table}: the columns {', '.join(missing)} are missing; found {', '.join(rows.columns)}")
    for name in columns:
        empty = rows[name].is_null()
        if rows.schema[name].is_float():
            empty |= ~rows[name].is_finite()
        if empty.any():
            raise DataError(f"{table}: {name} has no value in rows {_rows(empty)}")


def check_arms(outcomes: pl.DataFrame, arms: Sequence[str], *, paired: bool) -> None:
    """Refuse outcomes that say nothing about the arms.

    Args:
        outcomes: `arm`, `user_id` and more.
        arms: that are compared.
        paired: whether each user was in all arms, or in one.

    Raises:
        DataError: an arm has no users, a user stands in one arm twice, or not in the arms that the design says.
    """
    present = set(outcomes["arm"].to_list())
    for arm in arms:
        if arm not in present:
            raise DataError(f"the arm {arm!r} has no users; there are users in {', '.join(sorted(present)) or 'none'}")
    twice = outcomes.select("arm", "user_id").is_duplicated()
    if twice.any():
        raise DataError(f"outcomes: a user stands in the same arm twice, in rows {_rows(twice)}")
    of_user = outcomes.filter(pl.col("arm").is_in(list(arms))).group_by("user_id").len().sort("user_id")
    wrong = of_user.filter(pl.col("len") != (len(arms) if paired else 1))["user_id"].to_list()
    if wrong:
        rule = "are not in every arm of a paired test" if paired else "are in more than one arm"
        raise DataError(f"outcomes: {len(wrong)} users {rule}: {', '.join(wrong[:5])}")


def _rows(mask: pl.Series) -> str:
    found = mask.arg_true().to_list()
    return f"{', '.join(map(str, found[:5]))} ({len(found)} in all)"
