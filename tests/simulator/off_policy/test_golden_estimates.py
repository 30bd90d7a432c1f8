"""Published and hand-made numbers, to 1e-9."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.simulator.off_policy import (
    BanditLog,
    Rounds,
    SlateLog,
    SlateTarget,
    WeightDiagnostics,
    WeightedSlates,
    known_rewards,
)
from recsys.simulator.off_policy import estimators as single
from recsys.simulator.off_policy import slates as lists
from recsys.simulator.off_policy.estimators import estimate

_MEN = {
    "on_policy": 0.0046,
    "ips": 0.007339095757,
    "clipped": 0.006089803410,
    "snips": 0.007368790056,
    "direct": 0.008075750033,
    "dr": 0.007421505044,
    "sndr": 0.007418857941,
    "switch": 0.007393972604,
    "optimistic": 0.007336951872,
    "subgaussian_ips": 0.006619316314,
    "subgaussian_dr": 0.007346267243,
}


@pytest.fixture(scope="module")
def men(shared_data: Path) -> BanditLog:
    rows = pl.read_csv(shared_data / "open_bandit_sample" / "random_men" / "men.csv.gz")
    return BanditLog(
        actions=rows["item_id"].to_numpy(),
        rewards=rows["click"].to_numpy().astype(np.float64),
        propensities=rows["propensity_score"].to_numpy(),
        num_actions=34,
        behaviour=np.full((1, 34), 1 / 34),
    )


@pytest.mark.shared
def test_open_bandit_estimates_are_those_of_open_bandit_pipeline(men: BanditLog) -> None:
    clicks, shown = np.bincount(men.actions, men.rewards), np.bincount(men.actions)
    q = ((clicks + 1) / (shown + 100))[None]
    target = np.exp(q / 0.005) / np.exp(q / 0.005).sum()
    model = known_rewards(men, target, q)
    weights = target[0][men.actions] / men.propensities
    rounds = Rounds(rewards=men.rewards, weights=weights, predicted=model.predicted, values=model.values)
    found = {
        "on_policy": single.on_policy(rounds),
        "ips": single.ips(rounds),
        "clipped": single.shrunken_ips(rounds, single.clip, 2.0),
        "snips": single.snips(rounds),
        "direct": single.direct(rounds),
        "dr": single.doubly_robust(rounds),
        "sndr": single.self_normalised_dr(rounds),
        "switch": single.shrunken_dr(rounds, single.switch, 1.0),
        "optimistic": single.shrunken_dr(rounds, single.optimistic, 10.0),
        "subgaussian_ips": single.shrunken_ips(rounds, single.subgaussian, 0.1),
        "subgaussian_dr": single.shrunken_dr(rounds, single.subgaussian, 0.1),
    }
    assert {name: estimate(terms) for name, terms in found.items()} == pytest.approx(_MEN, abs=1e-9)
    diagnostics = WeightDiagnostics.of(weights)
    assert diagnostics.effective_size == pytest.approx(6398.2882, abs=1e-4)
    assert diagnostics.mean_weight == pytest.approx(0.9959702613, abs=1e-9)
    assert diagnostics.max_weight == pytest.approx(3.65001369, abs=1e-8)


@pytest.mark.shared
def test_replay_of_one_item_counts_the_rounds_that_showed_it(men: BanditLog) -> None:
    always = np.zeros((1, 34))
    always[0, 11] = 1.0
    weights = always[0][men.actions] / men.propensities
    nothing = np.zeros(len(men))
    (term,) = single.replay(Rounds(rewards=men.rewards, weights=weights, predicted=nothing, values=nothing), seed=0)
    assert term.denominator.sum() == 345
    assert estimate((term,)) == pytest.approx(0.008695652174, abs=1e-9)


_BTS_PRIOR = np.array(
    [
        *[(47, 12198), (8, 3566), (62, 15993), (142, 35522), (3, 2367), (6, 3100), (100, 24665), (48, 13210)],
        *[(23, 7061), (71, 18061), (61, 17449), (13, 5644), (16, 6787), (518, 111326), (30, 8776), (7, 3334)],
        *[(4, 2271), (23, 7389), (8, 2659), (10, 3665), (11, 4724), (11, 3561), (18, 5085), (121, 27407)],
        *[(11, 4601), (4, 2923), (32, 8897), (30, 8654), (9, 4000), (22, 6580), (6, 3174), (23, 6766)],
        *[(5, 2602), (54, 14506)],
    ]
)
"""Of Bernoulli Thompson sampling on the men's campaign, by item: alpha and beta (Open Bandit Pipeline 0.5.5)."""


@pytest.mark.shared
def test_thompson_sampling_by_position_is_that_of_open_bandit_pipeline(shared_data: Path) -> None:
    """Its policy is drawn by NumPy's legacy generator, and its reward model fitted on the first half of the log."""
    rows = pl.read_csv(shared_data / "open_bandit_sample" / "random_men" / "men.csv.gz")
    places, draws = 3, 100_000
    chances = np.random.RandomState(12345).beta(*_BTS_PRIOR.T, size=(draws, 34))
    best = np.argsort(chances, axis=1)[:, ::-1][:, :places]
    target = np.stack([np.bincount(best[:, place], minlength=34) / draws for place in range(places)])
    log = BanditLog(
        actions=rows["item_id"].to_numpy(),
        rewards=rows["click"].to_numpy().astype(np.float64),
        propensities=rows["propensity_score"].to_numpy(),
        num_actions=34,
        contexts=rows["position"].to_numpy() - 1,
    )
    half = slice(5_000)
    clicks, shown = np.bincount(log.actions[half], log.rewards[half]), np.bincount(log.actions[half])
    model = known_rewards(log, target, np.tile((clicks + 1) / (shown + 100), (places, 1)))
    rounds = Rounds(
        rewards=log.rewards,
        weights=target[log.context_of, log.actions] / log.propensities,
        predicted=model.predicted,
        values=model.values,
    )
    found = [estimate(terms) for terms in (single.ips(rounds), single.snips(rounds), single.doubly_robust(rounds))]
    assert found == pytest.approx([0.0045335600, 0.0046042322, 0.0046158580], abs=1e-9)


@pytest.mark.shared
def test_the_other_log_earned_what_is_published(shared_data: Path) -> None:
    rows = pl.read_csv(shared_data / "open_bandit_sample" / "bts_men" / "men.csv.gz")
    assert (len(rows), rows["click"].mean()) == (10_000, pytest.approx(0.0069, abs=1e-9))


def test_two_lists_of_two_places() -> None:
    items = np.array([[0, 1], [1, 0]])
    log = SlateLog(
        items=items,
        rewards=np.array([[1.0, 0.0], [0.0, 1.0]]),
        conditional=np.full((2, 2), 0.5),
        marginal=np.full((2, 2), 0.5),
    )
    target = SlateTarget(conditional=np.array([[0.8, 0.7], [0.2, 0.3]]), marginal=np.array([[0.8, 0.7], [0.2, 0.3]]))
    slates = WeightedSlates.of(log, target)
    assert slates.prefix_weights * [[0.5, 0.25]] == pytest.approx(np.array([[0.8, 0.56], [0.2, 0.06]]))
    predicted = np.array([[0.6, 0.4], [0.3, 0.2]])
    expected = np.array([[0.8 * 0.6 + 0.2 * 0.3, 0.3 * 0.2 + 0.7 * 0.4]] * 2)
    found = {
        "SIPS": lists.standard(slates),
        "IIPS": lists.independent(slates),
        "RIPS": lists.cascade(slates),
        "SNSIPS": lists.self_normalised_standard(slates),
        "SNIIPS": lists.self_normalised_independent(slates),
        "SNRIPS": lists.self_normalised_cascade(slates),
        "Cascade-DR": lists.cascade_dr(slates, predicted, expected),
    }
    golden = {
        "SIPS": 1.24,
        "IIPS": 1.10,
        "RIPS": 0.92,
        "SNSIPS": 1.0,
        "SNIIPS": 1.1,
        "SNRIPS": 0.8967741935,
        "Cascade-DR": 0.788,
    }
    assert {name: estimate(terms) for name, terms in found.items()} == pytest.approx(golden, abs=1e-9)
