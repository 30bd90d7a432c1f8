"""What a choice model is fitted on: choices, what else there was, and numbers that say how each option suits the user.

Two sources. A log of *slates* shows what else was there and when nothing was chosen: everything can be fitted on it
(`slate_log`). A log of *interactions* shows choices alone (`sampled_choices`): the alternatives are then drawn from the
catalogue, and that they were drawn is corrected for by adding -log q(i) to the utility of item i (McFadden, 1978,
"Modelling the choice of residential location"; the same as a sampled softmax). Such a log says which of two items a
user prefers and by how much; it says nothing about how often users choose nothing, nor about places.

Shapes: n choices, S options, F features, C categories, M items that stand for the catalogue, D columns of vectors, L
decays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import DataError
from recsys.simulator.behaviour.affinity import POWERS, affinities
from recsys.simulator.behaviour.history import SATIATING, Memories
from recsys.simulator.behaviour.succession import succession_evidence
from recsys.simulator.behaviour.vectors import ItemVectors

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_BLOCK = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceSets:
    """n choices by users with known histories."""

    features: FloatArray
    """float32 [n, S, F], see `Featurizer`."""
    categories: IntArray
    """int64 [n, S]: of the options, below `num_categories`; anything at an empty place."""
    num_categories: int
    """C."""
    corrections: DoubleArray
    """float64 [n, S], added to utilities: -log q of a drawn option (of the taken one, plus the log of how often it was
    drawn, itself included), 0 of one that was shown, -inf of an empty place."""
    chosen: IntArray
    """int64 [n]: the place of the choice; -1 = none."""
    owners: IntArray
    """int64 [n]: the user."""
    catalogue: FloatArray | None = None
    """float32 [n, M, F]: a sample of the catalogue as the session began, where nothing could be chosen; else None."""
    catalogue_categories: IntArray | None = None
    """int64 [M], likewise."""
    catalogue_size: int = 0
    """V, of which M were sampled."""

    def __post_init__(self) -> None:
        if len(self.chosen) == 0:
            raise DataError("choice model: there is no choice to fit or test it on; give a log with longer histories")
        if self.catalogue is None and (self.chosen < 0).any():
            raise DataError("choice model: a choice of nothing needs a sample of the catalogue to stand for elsewhere")

    def __len__(self) -> int:
        return len(self.chosen)

    @classmethod
    def concatenate(cls, parts: Sequence[ChoiceSets]) -> ChoiceSets:
        """All choices of parts that were made alike and have no sample of the catalogue."""
        return cls(
            features=np.concatenate([part.features for part in parts]),
            categories=np.concatenate([part.categories for part in parts]),
            num_categories=parts[0].num_categories,
            corrections=np.concatenate([part.corrections for part in parts]),
            chosen=np.concatenate([part.chosen for part in parts]),
            owners=np.concatenate([part.owners for part in parts]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Featurizer:
    """Turns memories and items into numbers whose weighted sum is a utility.

    In this order: `affinities` up to the last, the evidence of `succession`, the log popularity, the last of
    `affinities` (satiation).
    """

    vectors: ItemVectors
    successions: sparse.csr_array
    """float32 [V, V], see `succession.successions`."""
    log_popularity: FloatArray
    """float32 [V]."""
    categories: IntArray
    """int64 [V]: what `vectors.main_categories` says."""
    decays: tuple[float, ...]

    @property
    def num_categories(self) -> int:
        """C."""
        return int(self.categories.max()) + 1

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.vectors.blocks) * len(self.decays) * len(POWERS) + 3

    def __call__(self, memories: Memories, recent: IntArray, items: IntArray) -> FloatArray:
        """float32 [B, S, F] of items int64 [B, S] for B memories and last choices of a session int64 [B, 3]."""
        *columns, tired = affinities(self.vectors, memories.sums, recent, items)
        followed = succession_evidence(self.successions, memories.latest, items)
        return np.stack([*columns, followed, self.log_popularity[items], tired], axis=-1)


def log_popularity(log: Sequences, num_items: int) -> FloatArray:
    """float32 [V]: log of an item's count plus one, less the mean over the catalogue."""
    logs = np.log(np.bincount(log.items, minlength=num_items) + 1.0)
    return np.asarray(logs - logs.mean(), dtype=np.float32)


def sampled_choices(
    log: Sequences,
    featurize: Featurizer,
    *,
    alternatives: int,
    most_per_user: int,
    seed: int,
    session_starts: BoolArray | None = None,
) -> ChoiceSets:
    """Choices of a log of interactions, each among `alternatives` drawn items: one half of the draws uniform, one half
    as popular items are taken, independently and with replacement.

    Args:
        log: whole histories; the first item of each has no history and is no choice.
        featurize: of the model to fit.
        alternatives: draws beside the item that was taken; those that the user had before, or took, are left empty.
        most_per_user: choices of a user, drawn when there are more.
        seed: of all draws.
        session_starts: bool [len(log.items)]: the first of a session; None where the log knows no sessions. Satiation
            can only be told from taste where there are some.

    Returns:
        The taken item stands at place 0, once, and counts as often as it was drawn, plus one.

    Raises:
        DataError: no history has two items.
    """
    random = np.random.default_rng(seed)
    num_items = len(featurize.log_popularity)
    rows, positions = _drawn_positions(log, most_per_user, random)
    if len(rows) == 0:
        raise DataError("choice model: no history of the log has two items; give longer ones")
    taken = log.items[log.offsets[rows] + positions]
    # The popularity that proposes is that of the fit, one added, so that every item can be drawn.
    shares = np.exp(featurize.log_popularity.astype(np.float64))
    mixture = 0.5 / num_items + 0.5 * shares / shares.sum()
    half = alternatives // 2
    drawn = np.concatenate(
        [
            random.integers(num_items, size=(len(rows), alternatives - half)),
            random.choice(num_items, size=(len(rows), half), p=shares / shares.sum()),
        ],
        axis=1,
    )
    options = np.concatenate([taken[:, None], drawn], axis=1)
    corrections = -np.log(mixture)[options]
    # A draw of what was taken is one place with it, which counts as often: dropped, popular items would look less so.
    again = drawn == taken[:, None]
    corrections[:, 0] += np.log(1 + again.sum(axis=1))
    corrections[:, 1:][_had_before(log, rows, positions, drawn, num_items) | again] = -np.inf
    features = np.empty((*options.shape, featurize.num_features), dtype=np.float32)
    for choices, memories, recent in _states(log, rows, positions, featurize, session_starts):
        features[choices] = featurize(memories, recent, options[choices])
    return ChoiceSets(
        features=features,
        categories=featurize.categories[options],
        num_categories=featurize.num_categories,
        corrections=corrections,
        chosen=np.zeros(len(rows), dtype=np.int64),
        owners=log.users[rows],
    )


def _drawn_positions(log: Sequences, most: int, random: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Rows and positions, int64 each, from position 1 on, sorted by position."""
    owner = np.repeat(np.arange(len(log)), log.lengths)
    position = np.arange(len(owner)) - log.offsets[owner]
    order = np.lexsort((random.random(len(owner)), owner))
    order = order[position[order] > 0]
    rank = np.arange(len(order)) - np.searchsorted(owner[order], owner[order], side="left")
    kept = order[rank < most]
    kept = kept[np.lexsort((owner[kept], position[kept]))]
    return owner[kept], position[kept]


def _had_before(log: Sequences, rows: IntArray, positions: IntArray, drawn: IntArray, num_items: int) -> BoolArray:
    """bool of the shape of `drawn`: the user had the item before that position."""
    owner = np.repeat(np.arange(len(log)), log.lengths)
    position = np.arange(len(owner)) - log.offsets[owner]
    pairs, first = np.unique(owner * num_items + log.items, return_index=True)
    wanted = rows[:, None] * num_items + drawn
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.asarray((pairs[place] == wanted) & (position[first][place] < positions[:, None]))


def _states(
    log: Sequences, rows: IntArray, positions: IntArray, featurize: Featurizer, session_starts: BoolArray | None
) -> Iterator[tuple[IntArray, Memories, IntArray]]:
    """Yield choices (indices into `rows`), and the memories and last choices that they were made with."""
    vectors = featurize.vectors.joined
    memories = Memories.of(Sequences.from_lists([[]] * len(log)), vectors, featurize.decays)
    recent = np.full((len(log), SATIATING), -1, dtype=np.int64)
    bounds = np.searchsorted(positions, np.arange(positions.max() + 2))
    for position in range(int(positions.max()) + 1):
        active = np.flatnonzero(log.lengths > position)
        places = log.offsets[active] + position
        if session_starts is None:
            recent[:] = -1
        else:
            recent[active[session_starts[places]]] = -1
        for begin in range(bounds[position], bounds[position + 1], _BLOCK):
            choices = np.arange(begin, min(begin + _BLOCK, bounds[position + 1]))
            yield choices, memories.select(rows[choices]), recent[rows[choices]]
        items = log.items[places]
        memories.add(active, items, vectors, featurize.decays)
        recent[active] = np.concatenate([recent[active, 1:], items[:, None]], axis=1)
