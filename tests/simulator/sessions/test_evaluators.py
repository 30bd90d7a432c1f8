"""Summaries of arms, evaluators side by side, and the loop of feedback."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated_world import NUM_ITEMS, make_log, make_model

from recsys.data import Sequences
from recsys.errors import DataError
from recsys.evaluation.baselines import Popularity, SkipGram
from recsys.evaluation.metrics import CaseMetric
from recsys.simulator.behaviour.model import ChoiceModel
from recsys.simulator.behaviour.stress import Traits
from recsys.simulator.sessions.agreement import Evaluator, agreement, kendall_tau
from recsys.simulator.sessions.arms import CachedArm
from recsys.simulator.sessions.feedback import feedback_loop
from recsys.simulator.sessions.play import PlayConfig, play
from recsys.simulator.sessions.summary import oracle_chances, summarise

TRAIN, POPULATION = make_log(60, seed=1).sequences(), make_log(40, seed=2).sequences()
USER_IDS = [f"u{user:02d}" for user in range(40)]
ITEM_IDS = [f"i{item}" for item in range(NUM_ITEMS)]


def evaluator(name: str, values: list[float], noise: float = 0.0, seed: int = 0) -> Evaluator:
    random = np.random.default_rng(seed)
    policies = tuple("abcdef"[: len(values)])
    replicates = np.array(values) + noise * random.normal(size=(200, len(values)))
    return Evaluator(name=name, policies=policies, values=np.array(values), replicates=replicates)


def test_tau_is_scipys() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(20, 7)), random.integers(0, 4, size=(20, 7)).astype(float)
    expected = [stats.kendalltau(one, other).statistic for one, other in zip(first, second, strict=True)]
    np.testing.assert_allclose(kendall_tau(first, second), expected)
    assert kendall_tau(np.ones((1, 3)), np.arange(3.0)[None]).tolist() == [0.0]


def test_evaluators_that_agree_are_not_flagged_and_those_that_do_not_are() -> None:
    found = agreement(
        [evaluator("held-out", [1, 2, 3, 4]), evaluator("simulator", [10, 20, 30, 40]), evaluator("logs", [4, 3, 2, 1])]
    )
    assert found.tau["held-out / simulator"].value == 1
    assert found.tau["simulator / logs"].value == -1
    assert found.disagreements == ["held-out / logs", "simulator / logs"]
    assert found.values["b"]["simulator"].value == 20


def test_close_policies_widen_the_interval_of_tau() -> None:
    clear = agreement([evaluator("x", [1, 2, 3, 4], 0.01), evaluator("y", [1, 2, 3, 4], 0.01, seed=1)])
    close = agreement([evaluator("x", [1, 2, 3, 4], 1.0), evaluator("y", [1, 2, 3, 4], 1.0, seed=1)])
    assert clear.tau["x / y"].low == 1
    assert close.tau["x / y"].low < 0.7


def test_an_evaluator_may_judge_some_policies_only_but_no_fewer_than_two() -> None:
    some = agreement([evaluator("x", [1, 2, 3]), evaluator("y", [1, 2])])
    assert "y" not in some.values["c"]
    with pytest.raises(DataError, match="1 policies in common"):
        agreement([evaluator("x", [1, 2, 3]), evaluator("y", [1])])
    with pytest.raises(DataError, match="not finite"):
        evaluator("x", [1, np.nan])


def test_policies_in_different_orders_are_named_and_those_within_noise_are_not_sure() -> None:
    found = agreement([evaluator("x", [1, 2, 3, 3.01], noise=0.1), evaluator("y", [2, 1, 3, 2.99], noise=0.1, seed=1)])
    first, second = found.discordances["x / y"]
    assert (first.better_by_first, first.better_by_second, first.sure) == ("b", "a", True)
    assert (second.better_by_first, second.better_by_second, second.sure) == ("d", "c", False)
    assert found.tau["x / y"].value == pytest.approx(1 - 2 * 2 / 6)


def test_an_evaluator_of_cases_resamples_users() -> None:
    metric = CaseMetric(numerator=np.array([1.0, 1.0, 0.0, 0.0]), denominator=np.ones(4))
    found = Evaluator.of_cases("x", {"a": metric}, np.array([0, 0, 1, 1]), seed=0)
    # Two users, each all hits or none: means of resamples are 0, 1/2 or 1.
    assert set(np.unique(found.replicates)) == {0.0, 0.5, 1.0}
    assert found.interval("a").value == 0.5


def test_summaries_add_up_and_the_oracle_has_no_regret() -> None:
    model = make_model()

    def oracle(histories: Sequences, k: int) -> np.ndarray:
        from recsys.simulator.sessions.crowd import Crowd

        rows = np.arange(len(histories))
        utilities = Crowd(model, histories, users=rows, sessions=rows, seed=0).catalogue()
        utilities[np.repeat(rows, histories.lengths), histories.items] = -np.inf
        lists = np.argsort(-utilities, axis=1, kind="stable")[:, :k]
        return np.where(np.isneginf(np.take_along_axis(utilities, lists, axis=1)), -1, lists)

    arms = {
        "popularity": CachedArm(ranker=Popularity().fit(TRAIN, NUM_ITEMS)),
        "everything seen": CachedArm(ranker=Popularity(mask_seen=False).fit(TRAIN, NUM_ITEMS)),
        "oracle": CachedArm(ranker=oracle),
    }
    config = PlayConfig(size=5, max_steps=4, sessions_per_user=10)
    played = play(model, arms, POPULATION, config, user_ids=USER_IDS, item_ids=ITEM_IDS)
    found = summarise(played, model, POPULATION, TRAIN, user_ids=USER_IDS, item_ids=ITEM_IDS, seed=0)
    assert list(found) == list(arms)
    oracle_metrics, popular = found["oracle"].metrics, found["popularity"].metrics
    assert oracle_metrics["regret"].value == pytest.approx(0, abs=1e-7)
    assert popular["regret"].value > 0.02
    assert popular["repeats"].value == 0
    assert found["everything seen"].metrics["repeats"].value > 0.2
    assert popular["reward"].value == pytest.approx(popular["ctr"].value * popular["steps"].value)
    difference = found["oracle"].minus_first["expected"]
    assert difference.value == pytest.approx(oracle_metrics["expected"].value - popular["expected"].value)
    assert difference.low > 0
    assert found["popularity"].minus_first == {}
    assert oracle_chances(model, POPULATION, 5, Traits.ordinary(40)).shape == (40,)
    assert 0 < oracle_metrics["ild"].value < 1


def test_regret_is_over_what_the_users_themselves_like_best() -> None:
    model = make_model()
    traits = Traits.of(["popularity_chaser"] * len(POPULATION))
    arms = {"popularity": CachedArm(ranker=lambda histories, k: _most_popular(model, histories, k))}
    config = PlayConfig(size=5, max_steps=1)
    played = play(model, arms, POPULATION, config, user_ids=USER_IDS, item_ids=ITEM_IDS, traits=traits)
    found = summarise(played, model, POPULATION, TRAIN, user_ids=USER_IDS, item_ids=ITEM_IDS, seed=0, traits=traits)
    assert found["popularity"].metrics["regret"].value == pytest.approx(0, abs=1e-6)


def _most_popular(model: ChoiceModel, histories: Sequences, k: int) -> np.ndarray:
    worth = np.tile(model.log_popularity, (len(histories), 1))
    worth[np.repeat(np.arange(len(histories)), histories.lengths), histories.items] = -np.inf
    return np.argsort(-worth, axis=1, kind="stable")[:, :k]


def test_a_recommender_that_learns_from_its_own_lists_narrows_what_it_shows() -> None:
    config = PlayConfig(size=5, max_steps=3)
    rounds = feedback_loop(
        make_model(),
        lambda log: SkipGram().fit(log, NUM_ITEMS),
        TRAIN,
        POPULATION,
        config,
        rounds=3,
        item_ids=ITEM_IDS,
    )
    assert len(rounds) == 3
    grown = [one.interactions for one in rounds]
    assert grown[0] == len(TRAIN.items) + len(POPULATION.items)
    assert grown[0] < grown[1] < grown[2]
    assert all(0 < one.coverage <= 1 and 0 <= one.gini < 1 and 0 < one.popularity < 1 for one in rounds)
