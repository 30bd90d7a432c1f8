"""The list of a finished run's language model with the reasons it follows from, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys.bundle import Bundle
from recsys.data import Sequences
from recsys.errors import ConfigError, DataError
from recsys.generator import Constraints
from recsys.generator.lm.reason import ReasonConfig, recommend_with_reasons


def reasoned_list(
    bundle: Bundle, user: str | None, history: Sequence[str] | None, k: int, config: ReasonConfig, *, seed: int
) -> dict[str, Any]:
    """`history` (item ids), `chains` (texts) and `items`, unseen ones, best first, with `log_probability`.

    Args:
        bundle: of the run.
        user: whose history is read; or None, with
        history: item ids, oldest first.
        k: length of the list.
        config: how reasons are written.
        seed: of the words that are drawn.

    Raises:
        ConfigError: not exactly one of `user` and `history` is given, or the model was not taught to reason.
        DataError: the user or an item is unknown.
    """
    if (user is None) == (not history):
        raise ConfigError("reason: name a user with --user, or the items of a history with --item, and not both")
    if bundle.no_reasons is not None:
        raise ConfigError(f"reason: {bundle.no_reasons}")
    item_ids = list(history or []) if user is None else _history(bundle, user)
    items = bundle.catalog.index_of(item_ids)
    if (items < 0).any():
        unknown = item_ids[int((items < 0).argmax())]
        raise DataError(f"reason: the catalogue has no item {unknown!r}; check --item")
    reasoned = recommend_with_reasons(
        bundle.recommender, Sequences.from_lists([items]), k, config, seed=seed, constraints=Constraints(deny=[items])
    )
    found = reasoned.recommendations
    return {
        "history": item_ids,
        "chains": reasoned.chains[0],
        "items": [
            {"item_id": bundle.catalog.item_ids[item], "title": bundle.catalog.titles[item], "log_probability": score}
            for item, score in zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
            if item >= 0
        ],
    }


def _history(bundle: Bundle, user: str) -> list[str]:
    for user_id, item_ids in bundle.histories():
        if user_id == user:
            return item_ids
    raise DataError(f"reason: the data of {bundle.manifest.name} have no user {user!r}; check --user")
