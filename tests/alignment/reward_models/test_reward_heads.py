"""Heads learn what pairs and ratings say; several sources by the least norm; models survive a round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys.alignment.reward_models import (
    HeadConfig,
    MultiSourceConfig,
    RewardHead,
    RewardModel,
    SourcePairs,
    UserItemFeatures,
    fit_sources,
    min_norm_weights,
    pair_accuracy,
    probes,
)
from recsys.data import Sequences
from recsys.errors import ArtifactError

FEATURES = 6
TASTE = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])


def _pairs(num: int, taste: Tensor, seed: int, flips: float = 0.0) -> SourcePairs:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, num, FEATURES, generator=generator)
    odds = torch.sigmoid(2 * ((first - second) @ taste))
    wins = torch.rand(num, generator=generator) < (1 - flips) * odds + flips * (1 - odds)
    return SourcePairs(
        chosen=torch.where(wins.unsqueeze(1), first, second), rejected=torch.where(wins.unsqueeze(1), second, first)
    )


@torch.no_grad()
def _margins(head: RewardHead, pairs: SourcePairs) -> np.ndarray:
    return np.asarray((head(pairs.chosen) - head(pairs.rejected)).numpy())


@pytest.mark.parametrize("hidden", [0, 8])
def test_bradley_terry_learns_the_taste_behind_pairs(hidden: int):
    head = RewardHead(FEATURES, HeadConfig(hidden=hidden))
    pairs = _pairs(2000, TASTE, 0)
    head.fit_bradley_terry(pairs.chosen, pairs.rejected)
    held_out = _pairs(1000, TASTE, 1)
    best = pair_accuracy(((held_out.chosen - held_out.rejected) @ TASTE).numpy())
    assert pair_accuracy(_margins(head, held_out)) > best - 0.02


def test_few_pairs_are_enough_from_a_regression_on_ratings():
    generator = torch.Generator().manual_seed(0)
    rated = torch.randn(500, FEATURES, generator=generator)
    ratings = 3 + rated @ TASTE + 0.3 * torch.randn(500, generator=generator)
    few, held_out = _pairs(12, TASTE, 1), _pairs(1000, TASTE, 2)
    scratch = RewardHead(FEATURES, HeadConfig())
    scratch.fit_bradley_terry(few.chosen, few.rejected)
    head = RewardHead(FEATURES, HeadConfig())
    head.fit_regression(rated, ratings)
    with torch.no_grad():
        assert float((head(rated) - ratings).square().mean()) < 0.12
    head.fit_bradley_terry(few.chosen, few.rejected)
    assert pair_accuracy(_margins(head, held_out)) > pair_accuracy(_margins(scratch, held_out)) + 0.03


def test_pairs_of_no_weight_teach_nothing():
    true, false = _pairs(500, TASTE, 0), _pairs(500, -TASTE, 1)
    chosen, rejected = torch.cat([true.chosen, false.chosen]), torch.cat([true.rejected, false.rejected])
    head = RewardHead(FEATURES, HeadConfig())
    head.fit_bradley_terry(chosen, rejected, torch.cat([torch.ones(500), torch.zeros(500)]))
    assert pair_accuracy(_margins(head, true)) > 0.8


def test_the_same_seed_gives_the_same_head():
    pairs = _pairs(100, TASTE, 0)
    heads = [RewardHead(FEATURES, HeadConfig(hidden=4, steps=3)) for _ in range(2)]
    for head in heads:
        head.fit_bradley_terry(pairs.chosen, pairs.rejected)
    assert torch.equal(heads[0](pairs.chosen), heads[1](pairs.chosen))


def test_a_head_is_probed_at_what_its_last_layer_reads():
    pairs = _pairs(1000, TASTE, 0)
    head = RewardHead(FEATURES, HeadConfig(hidden=4))
    head.fit_bradley_terry(pairs.chosen, pairs.rejected)
    rows = pairs.chosen[:400]
    liked = (rows @ TASTE > 0).long().numpy()
    unrelated = (rows[:, 5] > 0).long().numpy()
    found = probes(head.representation(rows).numpy(), {"liked": liked, "unrelated": unrelated})
    assert found["liked"].accuracy > max(found["liked"].majority, found["unrelated"].accuracy) + 0.15


def test_rows_must_be_as_many():
    head = RewardHead(FEATURES, HeadConfig())
    with pytest.raises(ValueError, match="as many rows"):
        head.fit_bradley_terry(torch.zeros(2, FEATURES), torch.zeros(3, FEATURES))


@pytest.mark.parametrize(
    ("first", "second"),
    [([1.0, 0.0], [0.0, 2.0]), ([1.0, 1.0], [1.0, -0.5]), ([3.0, 0.1], [1.0, 0.0]), ([1.0, 2.0], [1.0, 2.0])],
)
def test_least_norm_of_two_gradients_is_the_closed_form(first: list[float], second: list[float]):
    one, two = torch.tensor(first), torch.tensor(second)
    squared = (one - two).square().sum()
    share = ((two - one) @ two / squared).clamp(0, 1) if squared > 0 else None
    weights = min_norm_weights(torch.stack([one, two]))
    assert float(weights.sum()) == pytest.approx(1)
    if share is not None:
        assert float(weights[0]) == pytest.approx(float(share), abs=1e-5)


def test_least_norm_of_many_gradients_leaves_no_source_worse():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradients = torch.randn(5, 8, generator=generator).double()
        weights = min_norm_weights(gradients)
        direction = weights @ gradients
        # The condition of optimality: along -direction every source falls, by the same where it has weight.
        along = gradients @ direction
        assert float(along.min()) >= float(direction @ direction) - 1e-5
        assert float((weights * (along - direction @ direction)).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="not empty"):
        min_norm_weights(torch.zeros(0, 3))


def test_a_small_source_is_not_drowned_by_a_large_one():
    other = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    sources = {"clicks": _pairs(4000, TASTE, 0), "likes": _pairs(200, TASTE + other, 1)}
    config = MultiSourceConfig(steps=100, batch_size=256)
    head = RewardHead(FEATURES, config)
    used = fit_sources(head, sources, config)
    assert list(used) == ["clicks", "likes"]
    assert sum(used.values()) == pytest.approx(1, abs=1e-5)
    pooled = RewardHead(FEATURES, config)
    pooled.fit_bradley_terry(
        torch.cat([pairs.chosen for pairs in sources.values()]),
        torch.cat([pairs.rejected for pairs in sources.values()]),
    )
    likes = _pairs(2000, TASTE + other, 2)
    assert pair_accuracy(_margins(head, likes)) > pair_accuracy(_margins(pooled, likes)) + 0.02


def test_a_source_without_pairs_is_refused():
    config = MultiSourceConfig()
    empty = SourcePairs(chosen=torch.zeros(0, FEATURES), rejected=torch.zeros(0, FEATURES))
    with pytest.raises(ValueError, match="likes"):
        fit_sources(RewardHead(FEATURES, config), {"likes": empty}, config)


def _model() -> tuple[RewardModel, Sequences, Tensor, Tensor]:
    """People who like what is near their last items."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, 80)
    vectors = (np.eye(4)[kinds] + 0.2 * rng.normal(size=(80, 4))).astype(np.float32)
    users = rng.integers(0, 4, 600)
    of_kind = [np.flatnonzero(kinds == kind) for kind in range(4)]
    histories = Sequences.from_lists([rng.choice(of_kind[kind], 3) for kind in users])
    chosen = torch.tensor([int(rng.choice(of_kind[kind])) for kind in users])
    rejected = torch.tensor([int(rng.choice(of_kind[(kind + 1) % 4])) for kind in users])
    swapped = torch.from_numpy(rng.random(600) < 0.2)
    chosen, rejected = torch.where(swapped, rejected, chosen), torch.where(swapped, chosen, rejected)
    features = UserItemFeatures(vectors)
    model = RewardModel(features, RewardHead(features.num_features, HeadConfig()))
    train = histories.select(np.arange(300))
    rows = features(train, torch.stack([chosen[:300], rejected[:300]], dim=1))
    model.head.fit_bradley_terry(rows[:, 0], rows[:, 1])
    return model, histories.select(np.arange(300, 600)), chosen[300:], rejected[300:]


def test_features_are_how_user_and_item_meet():
    vectors = np.asarray([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=np.float32)
    features = UserItemFeatures(vectors, decay=1.0)
    half = 0.5**0.5
    values = features(Sequences.from_lists([[0, 1], []]), torch.tensor([[0, -1], [2, -1]]))
    assert values.shape == (2, 2, features.num_features)
    torch.testing.assert_close(values[0, 0], torch.tensor([half, 0, half, 1, 0]))
    torch.testing.assert_close(values[1, 0], torch.tensor([0, 0, 0, half, half]))


def test_a_model_is_calibrated_and_measured_on_pairs_it_did_not_see():
    model, histories, chosen, rejected = _model()
    model.head.rescale(20.0)
    before = model.measure(histories, chosen, rejected)
    first, second = np.arange(150), np.arange(150, 300)
    factor = model.calibrate(histories.select(first), chosen[:150], rejected[:150])
    assert factor < 0.3
    assert model.quality is None
    after = model.measure(histories.select(second), chosen[150:], rejected[150:])
    assert after is model.quality
    assert after.pair_accuracy > 0.7
    assert after.calibration.ece < before.calibration.ece / 2


def test_a_saved_model_rewards_as_before(tmp_path: Path):
    model, histories, chosen, rejected = _model()
    model.measure(histories, chosen, rejected)
    model.save(tmp_path / "model")
    vectors = np.asarray(model.features._vectors)
    loaded = RewardModel.load(tmp_path / "model", vectors)
    items = torch.stack([chosen, rejected], dim=1)
    torch.testing.assert_close(loaded(histories, items), model(histories, items))
    assert loaded.quality == model.quality
    with pytest.raises(ArtifactError, match="these vectors give"):
        RewardModel.load(tmp_path / "model", vectors[:-1])


def test_a_damaged_model_is_refused(tmp_path: Path):
    model, *_ = _model()
    vectors = np.asarray(model.features._vectors)
    with pytest.raises(ArtifactError, match="cannot read the reward model"):
        RewardModel.load(tmp_path, vectors)
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "reward_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "mean"}, file)
    with pytest.raises(ArtifactError, match="make it again"):
        RewardModel.load(tmp_path / "model", vectors)
