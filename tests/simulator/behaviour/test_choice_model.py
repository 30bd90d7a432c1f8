from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from simulated_world import NUM_ITEMS, make_catalog, make_log, make_model

from recsys.data import Sequences
from recsys.errors import ArtifactError, DataError
from recsys.simulator.behaviour.choice_sets import sampled_choices
from recsys.simulator.behaviour.fit import fit_choice_model
from recsys.simulator.behaviour.fitting import FitConfig, choice_probabilities, choice_utilities, fit_weights
from recsys.simulator.behaviour.history import unit_blocks
from recsys.simulator.behaviour.logged_sessions import LoggedSessions
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.patience import Leaving, Patience, fit_patience, length_bin
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.sessions.validity import length_distance, validity

HISTORIES = Sequences.from_lists([[0, 4, 8], [1], [2, 3, 7, 11]])
NOTHING_YET = np.full((3, 3), -1)


def test_memories_that_take_one_item_at_a_time_are_those_of_whole_histories() -> None:
    model = make_model()
    memories = model.remember(Sequences.from_lists([[], [], []]))
    for step in range(4):
        rows = np.flatnonzero(HISTORIES.lengths > step)
        model.remember_choices(memories, rows, np.array([HISTORIES[row][step] for row in rows]))
    whole = model.remember(HISTORIES)
    np.testing.assert_allclose(memories.sums, whole.sums, atol=1e-6)
    np.testing.assert_array_equal(memories.latest, whole.latest)
    np.testing.assert_array_equal(memories.latest, [[-1, -1, 0, 4, 8], [-1, -1, -1, -1, 1], [-1, 2, 3, 7, 11]])


def test_utilities_are_the_written_sum_and_the_same_one_by_one_as_for_the_catalogue() -> None:
    model = make_model()
    recent = np.array([[-1, 4, 8], [-1, -1, -1], [3, 7, 11]])
    memories, traits = model.remember(HISTORIES), Traits.ordinary(3)
    whole = model.utilities(memories, recent, None, traits)
    items = np.array([[5, 9, -1], [0, 47, 3], [1, 2, 3]])
    some = model.utilities(memories, recent, items, traits)
    assert np.isneginf(some[0, 2])
    there = items >= 0
    np.testing.assert_allclose(some[there], np.take_along_axis(whole, np.maximum(items, 0), axis=1)[there], rtol=1e-5)
    # By hand for one user and item.
    vectors, parameters = model.vectors.joined, model.parameters
    expected = parameters.popularity * model.log_popularity[9] + model.constants[model.categories[9]]
    for decay, weights in zip(parameters.decays, parameters.taste["content"], strict=True):
        memory = sum(decay**age * vectors[item] for age, item in enumerate([8, 4, 0]))
        cosine = memory @ vectors[9] / np.linalg.norm(memory)
        expected += weights[0] * cosine + weights[1] * max(cosine, 0) ** 2 + weights[2] * max(cosine, 0) ** 6
    counts = sum(0.6**age * model.successions[[item], [9]][0] for age, item in enumerate([8, 4, 0]))
    expected += parameters.succession * np.log1p(counts)
    tired = vectors[4] + vectors[8]
    expected -= parameters.satiation * tired @ vectors[9] / np.linalg.norm(tired)
    np.testing.assert_allclose(some[0, 1], expected, rtol=1e-5)


def test_the_featurizer_and_its_weights_give_the_models_utilities() -> None:
    model = make_model()
    memories = model.remember(HISTORIES)
    items = np.arange(12).reshape(3, 4)
    features = model.featurizer(memories, NOTHING_YET, items) @ model.feature_weights
    utilities = model.utilities(memories, NOTHING_YET, items, Traits.ordinary(3))
    np.testing.assert_allclose(features + model.constants[model.categories[items]], utilities, rtol=1e-4, atol=1e-5)


def test_worth_is_the_log_of_the_summed_exponentials() -> None:
    model = make_model()
    memories, traits = model.remember(HISTORIES), Traits.ordinary(3)
    expected = np.log(np.exp(model.utilities(memories, NOTHING_YET, None, traits).astype(float)).sum(axis=1))
    np.testing.assert_allclose(model.log_worth(memories, NOTHING_YET, traits), expected, rtol=1e-6)


def test_a_saved_model_is_the_same_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path / "model", {"auc": 0.8})
    loaded, report = ChoiceModel.load(tmp_path / "model")
    assert report == {"auc": 0.8}
    assert loaded.parameters == model.parameters
    np.testing.assert_array_equal(loaded.vectors.joined, model.vectors.joined)
    np.testing.assert_array_equal(loaded.successions.toarray(), model.successions.toarray())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["choice_model.json", "vectors.safetensors"]
    (tmp_path / "model" / "vectors.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="fit it again"):
        ChoiceModel.load(tmp_path / "model")


def test_drawn_alternatives_with_their_correction_find_the_weights_of_the_whole_catalogue() -> None:
    # Choices of the made-up model from the whole catalogue; the fit sees them among 24 drawn items only.
    model = make_model(satiation=0.0)
    random = np.random.default_rng(5)
    histories = [random.choice(NUM_ITEMS, size=6, replace=False) for _ in range(3000)]
    memories = model.remember(Sequences.from_lists(histories))
    utilities = model.utilities(memories, np.full((3000, 3), -1), None, Traits.ordinary(3000)).astype(float)
    for row, history in enumerate(histories):
        utilities[row, history] = -np.inf
    chosen = (utilities + random.gumbel(size=utilities.shape)).argmax(axis=1)
    log = Sequences.from_lists([[*history, item] for history, item in zip(histories, chosen, strict=True)])
    # Only the last place of each history is a choice of the model: tell them apart by their length.
    sets = sampled_choices(log, model.featurizer, alternatives=24, most_per_user=6, seed=1)
    last = model.featurizer(memories, np.full((3000, 3), -1), chosen[:, None])[:, 0]
    # Rows are sorted by position, so that the 3,000 at position 6 come last.
    rows = np.arange(len(sets) - 3000, len(sets))
    np.testing.assert_allclose(sets.features[rows, 0], last, atol=1e-5)
    picked = type(sets)(
        features=sets.features[rows],
        categories=sets.categories[rows],
        num_categories=sets.num_categories,
        corrections=sets.corrections[rows],
        chosen=sets.chosen[rows],
        owners=sets.owners[rows],
    )
    weights = fit_weights(picked, 1e-6)
    found = weights.features
    predicted = choice_utilities(picked, found, weights.constants)
    truth = choice_utilities(picked, model.feature_weights, model.constants)
    there = np.isfinite(picked.corrections)
    assert np.corrcoef(predicted[there], truth[there])[0, 1] > 0.97
    assert found[-2] == pytest.approx(model.parameters.popularity, abs=0.08)


def test_draws_of_what_was_taken_do_not_bend_the_weight_of_popularity() -> None:
    # Few items, so that the popular ones are drawn again often; users choose by popularity alone, with weight 1.
    model, random = make_model(), np.random.default_rng(0)
    shares = np.exp(model.log_popularity.astype(float) * 2)
    shares /= shares.sum()
    lists = [random.choice(NUM_ITEMS, 2, replace=False, p=shares) for _ in range(20_000)]
    featurize = replace(model.featurizer, log_popularity=np.log(shares).astype(np.float32))
    sets = sampled_choices(Sequences.from_lists(lists), featurize, alternatives=32, most_per_user=1, seed=0)
    found = minimize_scalar(
        lambda weight: -np.log(choice_probabilities(sets, sets.features[..., -2] * weight)[:, 0]).mean(),
        bounds=(0.5, 1.5),
        method="bounded",
    )
    assert found.x == pytest.approx(1, abs=0.02)


def test_alternatives_are_never_what_the_user_had_before() -> None:
    log = make_log(30).sequences()
    model = make_model()
    sets = sampled_choices(log, model.featurizer, alternatives=40, most_per_user=100, seed=0)
    assert len(sets) == len(log.items) - len(log)
    # Half of 40 draws from 48 items meet a history of several items often.
    empty = np.isneginf(sets.corrections[:, 1:]).sum(axis=1)
    assert empty[-20:].mean() > empty[:20].mean() > 0
    assert np.isfinite(sets.corrections[:, 0]).all()


def test_a_log_without_choices_is_refused() -> None:
    with pytest.raises(DataError, match="no history of the log has two items"):
        sampled_choices(
            Sequences.from_lists([[1], [2]]), make_model().featurizer, alternatives=4, most_per_user=4, seed=0
        )


def test_a_fitted_model_knows_tastes_of_users_it_has_not_seen_and_says_what_was_set() -> None:
    log = make_log(200)
    held = np.arange(150, 200)
    sessions = LoggedSessions.of(log, np.arange(150))
    model = fit_choice_model(make_catalog(), sessions, FitConfig(alternatives=16))
    again = fit_choice_model(make_catalog(), sessions, FitConfig(alternatives=16))
    assert again.parameters == model.parameters
    found = validity(model, LoggedSessions.of(log, held))
    assert found.auc.value > 0.7
    assert found.calibration.ece < 0.05
    assert found.length_distance is not None
    assert found.length_distance < 0.15
    assert found.transition_excess < 0.15
    assert model.parameters.origin["taste"].startswith("fitted")
    assert model.parameters.origin["null"].startswith("set")
    # Turned round, the model likes the other genres: a check that AUC can fail.
    turned = model.having(
        taste={
            name: tuple(tuple(-weight for weight in weights) for weights in block)
            for name, block in model.parameters.taste.items()
        },
        popularity=0.0,
    )
    worse = validity(turned, LoggedSessions.of(log, held))
    assert worse.auc.value < 0.5
    assert any("AUC" in failure for failure in worse.failures())


def test_a_log_without_times_has_no_sessions_and_says_so() -> None:
    log = make_log(40)
    timeless = type(log)(
        frame=log.frame.with_columns(timestamp=None).cast({"timestamp": log.frame.schema["timestamp"]}),
        user_ids=log.user_ids,
        num_items=log.num_items,
    )
    model = fit_choice_model(make_catalog(), LoggedSessions.of(timeless, np.arange(40)), FitConfig(alternatives=8))
    assert model.parameters.patience == Patience()
    assert model.parameters.satiation == 0.0
    assert "no times" in model.parameters.origin["patience.base"]


def test_sessions_begin_at_a_users_first_item_and_after_a_pause() -> None:
    log = make_log(20)
    sessions = LoggedSessions.of(log, np.array([3, 11]))
    assert sessions.starts is not None
    times = log.frame.filter(log.frame["user"].is_in([3, 11]))["timestamp"].to_numpy()
    first = int(sessions.log.lengths[0])
    expected = np.diff(times, prepend=0) >= 1800
    expected[[0, first]] = True
    np.testing.assert_array_equal(sessions.starts, expected)
    lengths, weights = sessions.lengths()
    assert lengths.sum() == len(sessions.log.items)
    assert weights.sum() == pytest.approx(2)


def test_bins_of_lengths_double() -> None:
    assert length_bin(np.array([0, 1, 2, 3, 4, 7, 8, 15, 16])).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6]


def test_patience_is_found_again_from_sessions_that_it_made() -> None:
    truth = Patience(base=(-1.0, -2.0), per_null=0.5, per_reward=1.0)
    random = np.random.default_rng(0)
    steps, nulls, rewards, left = [], [], [], []
    for _ in range(4000):
        null = 0
        for step in range(30):
            reward = float(random.random() < 0.4)
            null = 0 if reward else null + 1
            steps.append(step)
            nulls.append(null)
            rewards.append(reward)
            left.append(random.random() < truth.leaving(step, np.array([null]), np.array([reward]))[0])
            if left[-1]:
                break
    log = Leaving(
        steps=np.array(steps),
        left=np.array(left),
        weights=np.ones(len(steps)),
        nulls=np.array(nulls),
        rewards=np.array(rewards),
    )
    found = fit_patience(log)
    assert found.base[0] == pytest.approx(-1.0, abs=0.15)
    assert found.base[1] == pytest.approx(-2.0, abs=0.15)
    assert found.per_null == pytest.approx(0.5, abs=0.1)
    assert found.per_reward == pytest.approx(1.0, abs=0.15)


def test_lengths_follow_the_fitted_chance_of_leaving() -> None:
    sessions = LoggedSessions.of(make_log(200), np.arange(200))
    assert length_distance(fit_patience(sessions.leaving()), sessions) < 0.05
    assert length_distance(Patience(base=(2.0,)), sessions) > 0.3


def test_blocks_have_unit_norm_and_empty_ones_stay() -> None:
    states = np.array([[3.0, 4.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]], dtype=np.float32)
    unit = unit_blocks(states, {"a": 2, "b": 2})
    np.testing.assert_allclose(unit, [[0.6, 0.8, 0, 0], [0, 1, 1, 0]])
