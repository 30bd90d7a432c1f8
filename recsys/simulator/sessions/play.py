"""Sessions of many simulated users with several arms, and the log of what they saw and took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ConfigError, DataError
from recsys.progress import progress_bar
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.sessions.arms import Arm, Page
from recsys.simulator.sessions.crowd import Crowd

_USERS_AT_ONCE = 256
_SESSIONS_AT_ONCE = 8192

_ENDS = ("left", "pages", "items")
_LEFT, _PAGES, _ITEMS = range(3)


class PlayConfig(StrictConfig):
    """What is played."""

    size: int = Field(default=10, ge=1)
    """Places of a slate."""
    max_steps: int = Field(default=20, ge=1)
    """Pages of a session at most."""
    sessions_per_user: int = Field(default=1, ge=1)
    """Sessions of each user, all from the same history."""
    seed: int = Field(default=0, ge=0)
    """Of all that is random; arms share it, place by place (`sessions.noise`)."""
    same_luck: bool = True
    """Off, each arm has random numbers of its own: to measure what sharing them is worth."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """Logs of all arms."""

    impressions: pl.DataFrame
    """A row for each place that showed an item: `arm` (String), `user_id` (String), `session`, `step`, `position` (from
    0), `item_id` (String), `chosen` (Boolean), `reward` (Float64, 1 for a choice), `propensity` (Float64: of the item
    at its place, given the higher ones), `chance` (Float64: with which probability it was chosen); sorted by all up to
    position, arms in their own order."""
    sessions: pl.DataFrame
    """A row for each session: `arm`, `user_id`, `session`, `steps` (pages seen), `choices`, `reward` (Float64, their
    sum), `expected` (Float64: its expectation, page by page), `ended` (`left`, `pages` when there were no more to be
    shown, `items` when the arm had none)."""


def play(
    model: ChoiceModel,
    arms: Mapping[str, Arm],
    population: Sequences,
    config: PlayConfig,
    *,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    traits: Traits | None = None,
) -> Played:
    """Play the same users against every arm.

    Args:
        model: how users choose.
        arms: by name.
        population: histories, one a user; must not be those that an arm or the model was fitted on.
        config: sizes and seed.
        user_ids: of the rows of `population`.
        item_ids: of the catalogue, by dense index.
        traits: of the users; None for ordinary ones.

    Raises:
        ConfigError: there is no arm or no user.
        DataError: the ids do not fit, or an arm answers with impossible slates.
    """
    if not arms or not len(population):
        raise ConfigError(
            f"simulation: there are {len(arms)} arms and {len(population)} users; give one of each at least"
        )
    if len(user_ids) != len(population) or len(item_ids) != model.num_items:
        raise DataError(
            f"simulation: {len(user_ids)} user ids for {len(population)} users, {len(item_ids)} item ids for "
            f"{model.num_items} items; give one each"
        )
    everyone = Traits.ordinary(len(population)) if traits is None else traits
    logs: list[_Log] = []
    num_sessions = len(population) * config.sessions_per_user
    with progress_bar("Simulated sessions", num_sessions * len(arms)) as advance:
        for begin in range(0, len(population), _USERS_AT_ONCE):
            rows = np.arange(begin, min(begin + _USERS_AT_ONCE, len(population)))
            minds = Crowd(
                model,
                population.select(rows),
                users=rows,
                sessions=np.zeros_like(rows),
                seed=config.seed,
                traits=everyone.select(rows),
            )
            together = max(1, _SESSIONS_AT_ONCE // len(rows))
            for first in range(0, config.sessions_per_user, together):
                numbers = np.arange(first, min(first + together, config.sessions_per_user))
                users, sessions = np.repeat(rows, len(numbers)), np.tile(numbers, len(rows))
                for index, arm in enumerate(arms.values()):
                    seed = config.seed if config.same_luck else config.seed + 1_000_003 * (index + 1)
                    crowd = minds.repeated(len(numbers), users, sessions, seed)
                    logs.append(_play_arm(crowd, arm, index, population, users, sessions, config, seed))
                    advance(len(users), "")
    return _tables(logs, list(arms), user_ids, item_ids)


@dataclass(frozen=True, eq=False)
class _Log:
    impressions: dict[str, npt.NDArray[np.generic]]
    sessions: dict[str, npt.NDArray[np.generic]]


def _play_arm(
    crowd: Crowd,
    arm: Arm,
    index: int,
    population: Sequences,
    users: IntArray,
    sessions: IntArray,
    config: PlayConfig,
    seed: int,
) -> _Log:
    """Play sessions that begin together until all have ended."""
    count = len(users)
    steps, choices, expected = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count)
    ended = np.full(count, _PAGES, dtype=np.int8)
    active = np.arange(count)
    taken = np.zeros((count, 0), dtype=np.int64)
    shown: list[dict[str, npt.NDArray[np.generic]]] = []
    for step in range(config.max_steps):
        page = Page(
            population=population,
            users=users[active],
            sessions=sessions[active],
            choices=taken,
            size=config.size,
            max_steps=config.max_steps,
            seed=seed,
        )
        slates = arm(page)
        slates.check(page, crowd.model.num_items)
        filled = slates.items >= 0
        some = np.asarray(filled.any(axis=1))
        if not some.all():
            ended[active[~some]] = _ITEMS
            crowd.keep(some)
            active, taken, filled = active[some], taken[some], filled[some]
        items, propensities = slates.items[some], slates.propensities[some]
        if not len(active):
            break
        reaction = crowd.react(items)
        case, place = np.nonzero(filled)
        shown.append(
            {
                "row": active[case],
                "step": np.full(len(case), step),
                "position": place,
                "item": items[case, place],
                "chosen": reaction.places[case] == place,
                "propensity": propensities[case, place],
                "chance": reaction.chances[case, place],
            }
        )
        steps[active] += 1
        choices[active] += reaction.places >= 0
        expected[active] += reaction.chances.sum(axis=1)
        ended[active[reaction.left]] = _LEFT
        staying = ~reaction.left
        crowd.keep(staying)
        taken = np.concatenate([taken, reaction.items[:, None]], axis=1)[staying]
        active = active[staying]
        if not len(active):
            break
    names = ("row", "step", "position", "item", "chosen", "propensity", "chance")
    rows = {name: np.concatenate([part[name] for part in shown]) if shown else np.zeros(0) for name in names}
    row = rows.pop("row").astype(np.int64)
    return _Log(
        {"arm": np.full(len(row), index), "user": users[row], "session": sessions[row], **rows},
        {
            "arm": np.full(count, index),
            "user": users,
            "session": sessions,
            "steps": steps,
            "choices": choices,
            "expected": expected,
            "ended": ended,
        },
    )


def _tables(logs: list[_Log], arms: list[str], user_ids: Sequence[str], item_ids: Sequence[str]) -> Played:
    ends, names = pl.Series(_ENDS, dtype=pl.String), pl.Series(arms, dtype=pl.String)
    users, items = pl.Series(user_ids, dtype=pl.String), pl.Series(item_ids, dtype=pl.String)

    def table(part: Callable[[_Log], dict[str, npt.NDArray[np.generic]]], order: list[str]) -> pl.DataFrame:
        joined = {name: np.concatenate([part(log)[name] for log in logs]) for name in part(logs[0])}
        return pl.DataFrame(joined).sort(order)

    shown = table(lambda log: log.impressions, ["arm", "user", "session", "step", "position"])
    played = table(lambda log: log.sessions, ["arm", "user", "session"])
    return Played(
        impressions=shown.select(
            names.gather(shown["arm"]).alias("arm"),
            users.gather(shown["user"]).alias("user_id"),
            "session",
            "step",
            "position",
            items.gather(shown["item"].cast(pl.Int64)).alias("item_id"),
            pl.col("chosen").cast(pl.Boolean),
            pl.col("chosen").cast(pl.Float64).alias("reward"),
            pl.col("propensity").cast(pl.Float64),
            pl.col("chance").cast(pl.Float64),
        ),
        sessions=played.select(
            names.gather(played["arm"]).alias("arm"),
            users.gather(played["user"]).alias("user_id"),
            "session",
            "steps",
            "choices",
            pl.col("choices").cast(pl.Float64).alias("reward"),
            "expected",
            ends.gather(played["ended"].cast(pl.Int64)).alias("ended"),
        ),
    )
