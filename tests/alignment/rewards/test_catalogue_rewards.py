"""Novelty, diversity, the popularity guard, relevance, scorers and learned models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from recsys.alignment.reward_models.quality import ProbabilityQuality, RewardQuality
from recsys.alignment.rewards import RewardsConfig, build_rewards, evaluate
from recsys.alignment.rewards.diversity import DiversityReward
from recsys.alignment.rewards.learned import LearnedConfig
from recsys.alignment.rewards.novelty import NoveltyConfig, NoveltyReward
from recsys.alignment.rewards.popularity_guard import PopularityGuardConfig, mean_level, popularity_levels
from recsys.alignment.rewards.proposals import in_history, proposed_before, within_group
from recsys.alignment.rewards.relevance import RelevanceConfig, TextShapeConfig
from recsys.alignment.rewards.scorer import ScorerConfig, ScorerReward
from recsys.data import Sequences
from recsys.errors import ConfigError, RewardError
from recsys.generator.groups import Groups
from tests.alignment.rewards.worlds import context, rollouts

CODES = [[0, 0], [0, 1], [1, 0], [1, 1]]
VECTORS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-3.0, 0.0]])


def test_what_was_seen_and_what_was_proposed_before():
    batch = rollouts([[0, 1, 0, -1], [1, 2, 2, 2]], [[3], [3]], histories=[[1], [3, 2]])
    assert in_history(batch, 4).tolist() == [[False, True, False, False], [False, True, True, True]]
    assert proposed_before(batch).tolist() == [[False, False, True, False], [False, False, True, True]]


def test_values_on_the_scale_of_their_group():
    values = torch.tensor([[1.0, 3.0, 99.0], [2.0, 2.0, 2.0], [5.0, -torch.inf, 1.0], [-torch.inf] * 3])
    is_real = torch.tensor([[True, True, False], [True] * 3, [True] * 3, [True] * 3])
    scaled = within_group(values, is_real)
    assert scaled[0].tolist() == [-1, 1, 0]
    assert scaled[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(scaled[2], torch.tensor([2**0.5, -(0.5**0.5), -(0.5**0.5)]))
    assert scaled[3].tolist() == [0, 0, 0]


def test_rare_items_are_novel():
    reward = NoveltyReward(context(CODES, popularity=torch.tensor([7, 3, 0, 0])))
    values = reward(rollouts([[0, 1, 2, -1]], [[3]]))  # p = 8/14, 4/14, 1/14
    torch.testing.assert_close(
        values, torch.tensor([[math.log(14 / 8), math.log(14 / 4), math.log(14), 0]]) / math.log(14)
    )


def test_categories_that_the_history_lacks_are_novel():
    categories = Groups.from_labels([["a"], ["a", "b"], ["c"], []])
    reward = NoveltyReward(context(CODES, categories=categories), rarity_weight=0.0, categories_weight=1.0)
    batch = rollouts([[0, 1, 2, 3], [0, 1, 2, -1]], [[0], [0]], histories=[[0], []])
    assert reward(batch).tolist() == [[0, 0.5, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("settings", [{}, {"rarity_weight": 0.0, "categories_weight": 1.0}])
def test_novelty_refuses_to_be_built_without_what_it_reads(settings: dict[str, float]):
    with pytest.raises(ConfigError, match=r"rewards\.novelty needs"):
        NoveltyConfig.model_validate(settings).build(context(CODES))


def test_novelty_must_say_something():
    with pytest.raises(ValidationError, match="both 0"):
        NoveltyConfig(rarity_weight=0.0)


def test_diversity_is_the_distance_from_the_nearest_better_ranked_proposal():
    values = DiversityReward(VECTORS)(rollouts([[0, 2, 0, 3], [1, 0, -1, -1], [1, -1, -1, -1]], [[0]] * 3))
    near = 1 - 0.5**0.5
    torch.testing.assert_close(values[0, 1:], torch.tensor([near, 0, 1 + 0.5**0.5]), atol=1e-6, rtol=1e-6)
    assert values[0, 0] == pytest.approx(float(values[0, 1:].mean()))
    assert values[1].tolist() == [1, 1, 0, 0]
    assert values[2].tolist() == [0, 0, 0, 0]


def test_popularity_levels_fall_with_the_rank_and_share_ties():
    levels = popularity_levels(torch.tensor([5, 9, 1, 1]))
    expected = [math.log(4 / 2), math.log(4 / 1), math.log(4 / 3.5), math.log(4 / 3.5)]
    torch.testing.assert_close(levels, torch.tensor(expected))


def test_the_guard_strikes_above_the_reference_and_each_by_its_own_excess():
    popularity = torch.tensor([5, 9, 1, 0])
    levels = popularity_levels(popularity)
    reference = mean_level(rollouts([[0, 2, 3]], [[0]]), popularity)
    assert reference == pytest.approx(float(levels[[0, 2, 3]].mean()))
    guard = PopularityGuardConfig().build(context(CODES, popularity=popularity, reference_popularity=reference))
    values = guard(rollouts([[0, 2, 3], [1, 0, 3], [1, -1, -1]], [[0]] * 3))
    assert values[0].tolist() == [0, 0, 0]
    expected = [-(levels[1] - reference), -(levels[0] - reference), 0]
    torch.testing.assert_close(values[1], torch.tensor(expected))
    assert values[2].tolist() == [pytest.approx(float(expected[0])), 0, 0]


def test_the_guard_needs_to_know_the_reference():
    with pytest.raises(ConfigError, match="reference_popularity"):
        PopularityGuardConfig().build(context(CODES, popularity=torch.tensor([1, 2, 3, 4])))


def test_relevance_is_the_cosine_with_the_next_item_or_the_history():
    world = context(CODES, item_vectors=VECTORS)
    batch = rollouts([[2, 3, -1], [0, 3, -1]], [[0], [-1]], histories=[[1], [1]])
    half = 0.5**0.5
    torch.testing.assert_close(
        RelevanceConfig().build(world)(batch), torch.tensor([[half, -1, 0], [0, 0, 0]]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        RelevanceConfig(query="history").build(world)(batch), torch.tensor([[half, 0, 0], [0, 0, 0]]), atol=1e-6, rtol=0
    )
    both = RelevanceConfig(query="both").build(world)(batch)
    torch.testing.assert_close(both[0], torch.tensor([half, -0.5, 0]), atol=1e-6, rtol=0)


def test_relevance_of_what_is_known_or_proposed_already_is_nothing():
    world = context(CODES, item_vectors=VECTORS)
    batch = rollouts([[0, 2, 2]], [[0]], histories=[[0]])
    assert RelevanceConfig().build(world)(batch)[0, [0, 2]].tolist() == [0, 0]
    assert RelevanceConfig(repeats="allow").build(world)(batch)[0, 0] == 1


def test_relevance_of_texts_rewards_words_up_to_a_length_and_not_their_repetition():
    world = context(CODES, item_vectors=VECTORS)
    shape = TextShapeConfig(full_length=6, run_length=2)
    config = RelevanceConfig(text=shape)
    texts = [["one two three", "one two three four five six seven", "one two one two one two one"]]
    batch = rollouts([[3, 2, 1]], [[-1]], histories=[[0]], texts=texts)
    values = config.build(world)(batch)
    torch.testing.assert_close(values, torch.tensor([[0.25, 0.5, 0.5 - 0.5 * 4 / 6]]))
    with pytest.raises(RewardError, match="'relevance' reads texts"):
        config.build(world)(rollouts([[3]], [[-1]]))


def test_a_scorer_is_read_at_the_proposals():
    def scorer(histories: Sequences) -> np.ndarray:
        return np.asarray([[1, 2, 3, -np.inf], [4, 4, 4, 4]], dtype=np.float32)

    batch = rollouts([[2, 0, -1], [0, 1, -1]], [[0], [0]])
    assert ScorerReward(scorer, "none")(batch).tolist() == [[3, 1, 0], [4, 4, 0]]
    assert ScorerReward(scorer)(batch).tolist() == [[1, -1, 0], [0, 0, 0]]
    with pytest.raises(RewardError, match=r"'scorer'.*infinite"):
        evaluate(ScorerReward(scorer, "none"), rollouts([[3, 2], [0, 1]], [[0], [0]]))
    with pytest.raises(RewardError, match="whole catalogue"):
        ScorerReward(lambda histories: np.zeros((1, 2), dtype=np.float32))(rollouts([[3, 0]], [[0]]))


def test_an_unknown_scorer_is_named_with_those_there_are():
    world = context(CODES, scorers={"sasrec": lambda histories: np.zeros((len(histories), 4), dtype=np.float32)})
    with pytest.raises(ConfigError, match="'sarsec'; this run has 'sasrec'"):
        ScorerConfig(scorer="sarsec").build(world)


@dataclass
class Taste:
    quality: RewardQuality | None

    def __call__(self, histories: Sequences, items: Tensor) -> Tensor:
        return items.float() ** 2


def _quality(ece: float) -> RewardQuality:
    return RewardQuality(num_pairs=100, pair_accuracy=0.7, calibration=ProbabilityQuality(ece=ece, brier=0.2, nll=0.6))


def test_a_learned_model_judges_the_proposals():
    world = context(CODES, reward_models={"taste": Taste(_quality(0.04))})
    batch = rollouts([[3, 1, -1]], [[0]])
    assert LearnedConfig(model="taste").build(world)(batch).tolist() == [[9, 1, 0]]
    assert LearnedConfig(model="taste", normalise="group").build(world)(batch).tolist() == [[1, -1, 0]]


@pytest.mark.parametrize(("quality", "message"), [(_quality(0.06), "0.060, above 0.05"), (None, "never measured")])
def test_a_model_that_is_not_calibrated_is_refused_unless_that_is_allowed(quality: RewardQuality | None, message: str):
    world = context(CODES, reward_models={"taste": Taste(quality)})
    config = {"kind": "learned", "model": "taste"}
    with pytest.raises(ConfigError, match=message):
        build_rewards(RewardsConfig.model_validate({"terms": [config]}), world)
    allowed = RewardsConfig.model_validate({"terms": [{**config, "allow_miscalibrated": True}]})
    assert build_rewards(allowed, world)(rollouts([[3]], [[0]])).total.tolist() == [[9]]


def test_an_unknown_model_is_an_error():
    with pytest.raises(ConfigError, match="this run has none"):
        LearnedConfig(model="taste").build(context(CODES))
