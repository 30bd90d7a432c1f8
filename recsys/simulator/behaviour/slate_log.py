"""Fitting on slates that were shown: with them, position bias, the chance of no choice and patience can be learned.

The log is a pair of tables as in `sessions.play.Played`: what each place showed and whether it was chosen, and how
sessions ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import DataError
from recsys.simulator.behaviour.choice_sets import ChoiceSets, Featurizer
from recsys.simulator.behaviour.fitting import fit_weights
from recsys.simulator.behaviour.history import SATIATING, Memories
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.patience import Leaving, fit_patience

_SAMPLE = 256
"""Items that stand for the catalogue, drawn uniformly, where it is larger."""
_KEYS = ("user_id", "session")


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionLog:
    """P pages of sessions, sorted by session and step."""

    session: IntArray
    """int64 [P]: which session, from 0."""
    steps: IntArray
    """int64 [P]: which page of it."""
    items: IntArray
    """int64 [P, S]: what was shown, -1 = nothing."""
    chosen: IntArray
    """int64 [P]: the place of the choice, -1 = none."""
    left: IntArray
    """int64 [sessions]: 1 where the user left after the last page, 0 where there was nothing more to show."""
    users: IntArray
    """int64 [sessions]: rows of `histories`."""
    histories: Sequences
    """Before the sessions."""

    @classmethod
    def of(
        cls,
        impressions: pl.DataFrame,
        sessions: pl.DataFrame,
        histories: Sequences,
        *,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
    ) -> SessionLog:
        """Read the log of one arm.

        Args:
            impressions: `user_id`, `session`, `step`, `position`, `item_id`, `chosen`.
            sessions: `user_id`, `session`, `ended` (`left`, or anything else).
            histories: one a user, before the sessions.
            user_ids: of the rows of `histories`.
            item_ids: of the catalogue, by dense index.

        Raises:
            DataError: an item, user or session is unknown, or two items of a page were chosen.
        """
        users = pl.DataFrame({"user_id": user_ids, "user": np.arange(len(user_ids))})
        items = pl.DataFrame({"item_id": item_ids, "item": np.arange(len(item_ids))})
        numbered = sessions.join(users, on="user_id", how="left").sort("user", "session").with_row_index("row")
        shown = (
            impressions.join(numbered.select(*_KEYS, "row"), on=_KEYS, how="left")
            .join(items, on="item_id", how="left")
            .sort("row", "step", "position")
        )
        if missing := numbered["user"].null_count():
            raise DataError(f"slate log: {missing} sessions are of users without a history")
        for column, what in (("row", "no session in the table of sessions"), ("item", "an unknown item_id")):
            if missing := shown[column].null_count():
                raise DataError(f"slate log: {missing} of {len(shown)} impressions have {what}")
        page = shown.select(pl.struct("row", "step").rle_id()).to_series().to_numpy().astype(np.int64)
        first = np.flatnonzero(np.diff(page, prepend=-1))
        slates = np.full((len(first), int(shown["position"].max()) + 1), -1)  # type: ignore[arg-type]
        slates[page, shown["position"].to_numpy()] = shown["item"].to_numpy()
        marked = shown["chosen"].to_numpy()
        if (np.bincount(page, marked) > 1).any():
            row = first[int((np.bincount(page, marked) > 1).argmax())]
            raise DataError(f"slate log: two items of a page were chosen, first at row {row}")
        chosen = np.full(len(first), -1)
        chosen[page[marked]] = shown["position"].to_numpy()[marked]
        return cls(
            session=shown["row"].to_numpy().astype(np.int64)[first],
            steps=shown["step"].to_numpy().astype(np.int64)[first],
            items=slates,
            chosen=chosen,
            left=(numbered["ended"] == "left").to_numpy().astype(np.int64),
            users=numbered["user"].to_numpy().astype(np.int64),
            histories=histories,
        )

    def choices(self, featurize: Featurizer, seed: int = 0) -> ChoiceSets:
        """Each page as a choice, with a sample of the catalogue as the user saw it when the session began."""
        num_items = len(featurize.log_popularity)
        sample = np.arange(num_items)
        if num_items > _SAMPLE:
            sample = np.sort(np.random.default_rng(seed).choice(num_items, _SAMPLE, replace=False))
        vectors = featurize.vectors.joined
        memories = Memories.of(self.histories, vectors, featurize.decays).select(self.users)
        recent = np.full((len(self.users), SATIATING), -1, dtype=np.int64)
        # A user's sessions begin alike.
        everything = np.broadcast_to(sample, (len(self.users), len(sample)))
        elsewhere = featurize(memories, recent, everything)
        features = np.empty((*self.items.shape, featurize.num_features), dtype=np.float32)
        for step in range(int(self.steps.max()) + 1):
            pages = np.flatnonzero(self.steps == step)
            here = self.session[pages]
            features[pages] = featurize(memories.select(here), recent[here], self.items[pages])
            places = self.chosen[pages]
            took, items = here[places >= 0], self.items[pages, places][places >= 0]
            memories.add(took, items, vectors, featurize.decays)
            recent[took] = np.concatenate([recent[took, 1:], items[:, None]], axis=1)
        return ChoiceSets(
            features=features,
            categories=featurize.categories[self.items],
            num_categories=featurize.num_categories,
            corrections=np.where(self.items >= 0, 0.0, -np.inf),
            chosen=self.chosen,
            owners=self.users[self.session],
            catalogue=elsewhere[self.session],
            catalogue_categories=featurize.categories[sample],
            catalogue_size=num_items,
        )

    def leaving(self) -> Leaving:
        """After which pages users left; what ended for want of pages did not make anybody leave."""
        last = np.diff(self.session, append=len(self.users)) > 0
        nothing = self.chosen < 0
        since = np.arange(len(nothing))
        # The last page before with a choice, or the page before the session's first.
        begins = np.searchsorted(self.session, self.session, side="left") - 1
        reset = np.maximum(np.maximum.accumulate(np.where(nothing, -1, since)), begins)
        return Leaving(
            steps=self.steps,
            left=last & (self.left[self.session] == 1),
            weights=np.ones(len(nothing)),
            nulls=since - reset,
            rewards=(~nothing).astype(np.float64),
        )


def fit_on_slates(model: ChoiceModel, log: SessionLog, *, penalty: float = 1e-4) -> ChoiceModel:
    """The same vectors and counts with all parameters fitted to slates. What a user's history tells is not cross-fitted
    here: the vectors and counts must come from other users or an earlier time."""
    weights = fit_weights(log.choices(model.featurizer), penalty)
    assert weights.null is not None
    assert weights.places is not None
    parameters = model.parameters
    count = len(parameters.decays)
    blocks = weights.features[:-3].reshape(len(parameters.taste), count, -1).tolist()
    fitted = dict.fromkeys([*parameters.origin, "null", "position_bias", "patience"], "fitted to slates")
    return replace(model, constants=weights.constants.astype(np.float32)).having(
        taste={name: tuple(map(tuple, block)) for name, block in zip(parameters.taste, blocks, strict=True)},
        succession=float(weights.features[-3]),
        popularity=float(weights.features[-2]),
        satiation=float(weights.features[-1]),
        null=weights.null,
        position_bias=tuple(weights.places.tolist()),
        temperature=1.0,
        patience=fit_patience(log.leaving()),
        origin={**fitted, "decays": "set"},
    )
