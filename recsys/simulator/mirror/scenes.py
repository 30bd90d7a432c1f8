"""Scenes: what a user had chosen, what was on offer then, and what the user took. Knows no words and no models.

A log of slates shows what was on offer. A log of interactions does not: the other options are then proposed by chance,
popularity and nearness to the history, and the lists merged at random, as UserMirrorer (arXiv 2508.18142) makes them.
The place of what was taken is balanced: every place holds it equally often, so that place says nothing.

Shapes: n slates, S places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from recsys.config import StrictConfig
from recsys.data.sequences import IntArray, Sequences
from recsys.errors import DataError

FloatArray = npt.NDArray[np.float32]

NOTHING = -1
"""The option of taking nothing, where a scene has it."""
MAX_OPTIONS = 26
"""As many as there are letters."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One decision of one user. Items are dense indices."""

    user: int
    history: tuple[int, ...]
    """Chosen before, oldest first."""
    options: tuple[int, ...]
    """What was on offer, by place, each once; `NOTHING` is an option too."""
    chosen: int
    """Place of what was taken."""

    def in_order(self, order: Sequence[int]) -> Scene:
        """The same decision with option `order[place]` at each place."""
        options = tuple(self.options[place] for place in order)
        return replace(self, options=options, chosen=list(order).index(self.chosen))


class SceneConfig(StrictConfig):
    """How scenes are made from a log of interactions."""

    per_user: int = Field(default=1, ge=1)
    """Last interactions of a user that become scenes."""
    min_history: int = Field(default=5, ge=1)
    """Items before a choice that it needs."""
    min_options: int = Field(default=5, ge=2, le=MAX_OPTIONS)
    """Options of a scene at least."""
    max_options: int = Field(default=5, ge=2, le=MAX_OPTIONS)
    """Options of a scene at most; the number is drawn."""
    pool: int = Field(default=50, ge=1)
    """Items that each way of proposing names; as many as there are other options at least."""
    seed: int = 0
    """Of all draws."""

    @model_validator(mode="after")
    def _least_is_not_above_most(self) -> SceneConfig:
        if self.min_options > self.max_options:
            raise ValueError(f"min_options={self.min_options}: must not be above max_options={self.max_options}")
        return self


def interaction_scenes(
    histories: Sequences,
    item_counts: IntArray,
    config: SceneConfig,
    *,
    vectors: Mapping[str, FloatArray] | None = None,
    times: IntArray | None = None,
    first_seen: IntArray | None = None,
) -> list[Scene]:
    """Scenes of the last choices of each user, in the order of `histories`.

    Choices of what was had before are none, and neither are those beside which too little can be offered.

    Args:
        histories: whole histories.
        item_counts: int64 [num_items]: how often each item is chosen.
        config: how many options, and how they are drawn.
        vectors: by name float32 [num_items, width] of unit rows; each proposes what is near the recent history.
        times: int64 [len(histories.items)], when each choice was made; with
        first_seen: int64 [num_items], when each item was first chosen: before that it is no option. None where nothing
            is known.

    Raises:
        DataError: too little can be offered in all of them.
    """
    scenes = []
    too_small = 0
    for row, items in enumerate(histories):
        user = int(histories.users[row])
        for end in range(max(config.min_history, len(items) - config.per_user), len(items)):
            target = int(items[end])
            if target in items[:end]:
                continue
            random = np.random.default_rng([config.seed, user, end])
            allowed = np.ones(len(item_counts), dtype=bool)
            # What the user takes later is no lesser option, and what was had is none.
            allowed[items] = False
            if first_seen is not None and times is not None:
                allowed &= first_seen <= times[histories.offsets[row] + end]
            others = int(random.integers(config.min_options, config.max_options + 1)) - 1
            options = _proposed(items[:end], item_counts, allowed, vectors or {}, others, config.pool, random)
            if len(options) + 1 < config.min_options:
                too_small += 1
                continue
            history = tuple(int(item) for item in items[:end])
            scenes.append(Scene(user=user, history=history, options=(target, *options), chosen=0))
    if too_small and not scenes:
        raise DataError(
            f"scenes.min_options={config.min_options}: in none of {too_small} scenes so many items can be offered; "
            "lower it"
        )
    return _balanced(scenes, config.seed)


def slate_scenes(
    histories: Sequences, slates: IntArray, chosen: IntArray, *, nothing: bool = True, seed: int = 0
) -> list[Scene]:
    """Scenes of logged slates.

    Args:
        histories: n histories before the slates, with their users.
        slates: int64 [n, S]: what was shown; -1 = an empty place.
        chosen: int64 [n]: the place of the choice; -1 = none.
        nothing: taking nothing is an option of each scene; else slates without a choice are left out.
        seed: of the order of the options.

    Raises:
        DataError: shapes do not fit, a choice is of an empty place, an item stands twice in a slate, or there is a
            slate of more options than letters.
    """
    if slates.ndim != 2 or len(slates) != len(histories) or chosen.shape != (len(slates),):
        raise DataError(
            f"slates: must be [n, S] with n histories and n choices, got slates {list(slates.shape)}, "
            f"{len(histories)} histories and choices {list(chosen.shape)}"
        )
    scenes = []
    for row, (shown, place) in enumerate(zip(slates, chosen.tolist(), strict=True)):
        if place >= len(shown) or place < -1 or (place >= 0 and shown[place] < 0):
            raise DataError(f"slates: row {row} chooses place {place}, where nothing was shown; mend the log")
        options = [int(item) for item in shown if item >= 0]
        if len(set(options)) < len(options):
            raise DataError(f"slates: row {row} shows an item twice; mend the log")
        if len(options) + nothing > MAX_OPTIONS:
            raise DataError(f"slates: row {row} has {len(options)} options, letters are {MAX_OPTIONS}; cut the slates")
        if place < 0 and not nothing:
            continue
        taken = int(shown[place]) if place >= 0 else NOTHING
        options += [NOTHING] if nothing else []
        if len(options) < 2:
            continue
        history = tuple(int(item) for item in histories[row])
        scene = Scene(
            user=int(histories.users[row]), history=history, options=tuple(options), chosen=options.index(taken)
        )
        scenes.append(scene)
    return _balanced(scenes, seed)


def _proposed(
    history: IntArray,
    item_counts: IntArray,
    allowed: npt.NDArray[np.bool_],
    vectors: Mapping[str, FloatArray],
    wanted: int,
    pool: int,
    random: np.random.Generator,
) -> list[int]:
    """At most `wanted` different items: one list a way of proposing, merged at random, each list in its order."""
    candidates = np.flatnonzero(allowed)
    if len(candidates) == 0:
        return []
    count = min(max(pool, wanted), len(candidates))
    # Sampling without replacement by Gumbel keys: the order is that of the draws.
    popularity = np.log(item_counts[candidates] + 1e-9) + random.gumbel(size=len(candidates))
    lists = [random.choice(candidates, count, replace=False), candidates[np.argsort(-popularity)[:count]]]
    for table in vectors.values():
        nearness = table[candidates] @ table[history[-10:]].mean(axis=0)
        lists.append(random.permutation(candidates[np.argsort(-nearness, kind="stable")[:count]]))
    queues = [iter(items.tolist()) for items in lists]
    found: dict[int, None] = {}
    while queues and len(found) < wanted:
        queue = queues[int(random.integers(len(queues)))]
        item = next((item for item in queue if item not in found), None)
        if item is None:
            queues.remove(queue)
        else:
            found[item] = None
    return list(found)


def _balanced(scenes: Sequence[Scene], seed: int) -> list[Scene]:
    """Options in random order, the chosen one at each place equally often among scenes of one size."""
    random = np.random.default_rng([seed, 1])
    arranged = list(scenes)
    for size in sorted({len(scene.options) for scene in scenes}):
        rows = [row for row, scene in enumerate(scenes) if len(scene.options) == size]
        places = random.permutation(np.arange(len(rows)) % size)
        for row, place in zip(rows, places.tolist(), strict=True):
            others = random.permutation([each for each in range(size) if each != scenes[row].chosen]).tolist()
            arranged[row] = scenes[row].in_order([*others[:place], scenes[row].chosen, *others[place:]])
    return arranged
