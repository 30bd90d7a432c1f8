"""Scenes: what is on offer, where the chosen one stands, and logs that are refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from recsys.data.sequences import Sequences
from recsys.errors import DataError
from recsys.simulator.mirror.scenes import NOTHING, Scene, SceneConfig, interaction_scenes, slate_scenes

NUM_ITEMS = 40


def histories(users: int = 20, length: int = 8) -> Sequences:
    random = np.random.default_rng(0)
    return Sequences.from_lists([random.choice(NUM_ITEMS, length, replace=False) for _ in range(users)])


def test_every_place_holds_the_chosen_item_equally_often() -> None:
    config = SceneConfig(min_history=3, per_user=2, min_options=4, max_options=4)
    scenes = interaction_scenes(histories(), np.ones(NUM_ITEMS, dtype=np.int64), config)
    assert Counter(scene.chosen for scene in scenes) == dict.fromkeys(range(4), 10)


def test_scenes_ask_for_what_came_next_among_items_that_the_user_never_has() -> None:
    log = histories()
    config = SceneConfig(min_history=3, per_user=2, min_options=2, max_options=6)
    scenes = interaction_scenes(log, np.arange(NUM_ITEMS), config)
    assert {len(scene.options) for scene in scenes} == {2, 3, 4, 5, 6}
    for scene in scenes:
        whole = log[scene.user].tolist()
        assert [*scene.history, scene.options[scene.chosen]] == whole[: len(scene.history) + 1]
        assert len(set(scene.options)) == len(scene.options)
        assert set(scene.options) & set(whole) == {scene.options[scene.chosen]}


def test_equal_settings_give_equal_scenes_whoever_else_is_there() -> None:
    config = SceneConfig(min_history=3)
    counts = np.ones(NUM_ITEMS, dtype=np.int64)
    alone = interaction_scenes(histories().select(np.array([3])), counts, config)[0]
    together = interaction_scenes(histories(), counts, config)[3]
    assert set(alone.options) == set(together.options)


def test_what_is_near_the_history_is_proposed() -> None:
    vectors = np.zeros((NUM_ITEMS, 2), dtype=np.float32)
    vectors[:20, 0] = vectors[20:, 1] = 1
    log = Sequences.from_lists([[0, 1, 2, 3]] * 30)
    config = SceneConfig(min_history=3, min_options=12, max_options=12, pool=4)
    counts = np.ones(NUM_ITEMS, dtype=np.int64)
    near = [
        np.mean(
            [item < 20 for scene in interaction_scenes(log, counts, config, vectors=given) for item in scene.options]
        )
        for given in ({}, {"taste": vectors})
    ]
    assert near[1] > near[0]


def test_items_that_nobody_had_chosen_by_then_are_no_options() -> None:
    log = Sequences.from_lists([[0, 1, 2, 3]])
    first_seen = np.full(NUM_ITEMS, 100)
    first_seen[:8] = 0
    config = SceneConfig(min_history=3, min_options=5, max_options=5)
    counts = np.ones(NUM_ITEMS, dtype=np.int64)
    (scene,) = interaction_scenes(log, counts, config, times=np.array([1, 2, 3, 4]), first_seen=first_seen)
    assert set(scene.options) == {3, 4, 5, 6, 7}
    more = SceneConfig(min_history=3, min_options=6, max_options=6)
    with pytest.raises(DataError, match=r"scenes\.min_options=6: in none of 1 scenes so many items can be offered"):
        interaction_scenes(log, counts, more, times=np.array([1, 2, 3, 4]), first_seen=first_seen)
    longer = Sequences.from_lists([[0, 1, 2, 3], [4, 5, 6, 8]])
    times = np.array([1, 2, 3, 4, 101, 102, 103, 104])
    (late,) = interaction_scenes(longer, counts, more, times=times, first_seen=first_seen)
    assert late.user == 1


def test_options_cannot_be_fewer_than_the_least() -> None:
    with pytest.raises(ValidationError, match="min_options=6: must not be above max_options=5"):
        SceneConfig(min_options=6)


def test_logged_slates_keep_what_was_shown_and_taking_nothing_is_an_option() -> None:
    log = Sequences.from_lists([[1], [2], [3]])
    slates = np.array([[4, 5, -1], [6, 7, 8], [9, 4, 5]])
    scenes = slate_scenes(log, slates, np.array([1, -1, 0]))
    assert [sorted(scene.options) for scene in scenes] == [[NOTHING, 4, 5], [NOTHING, 6, 7, 8], [NOTHING, 4, 5, 9]]
    assert [scene.options[scene.chosen] for scene in scenes] == [5, NOTHING, 9]
    without = slate_scenes(log, slates, np.array([1, -1, 0]), nothing=False)
    assert [(scene.user, scene.options[scene.chosen]) for scene in without] == [(0, 5), (2, 9)]


@pytest.mark.parametrize(
    ("slates", "chosen", "message"),
    [
        ([[4, -1]], [1], "row 0 chooses place 1, where nothing was shown"),
        ([[4, 5]], [2], "row 0 chooses place 2"),
        ([[4, 4]], [0], "row 0 shows an item twice"),
        ([list(range(26))], [0], "row 0 has 26 options, letters are 26"),
        ([[4, 5]], [0, 1], r"must be \[n, S\] with n histories and n choices"),
    ],
)
def test_impossible_logs_are_refused_with_the_row(slates: list[list[int]], chosen: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        slate_scenes(Sequences.from_lists([[1]]), np.array(slates), np.array(chosen))


def test_an_order_moves_the_options_and_follows_the_chosen_one() -> None:
    scene = Scene(user=0, history=(9,), options=(1, 2, 3), chosen=0)
    moved = scene.in_order([2, 0, 1])
    assert (moved.options, moved.chosen) == ((3, 1, 2), 1)
