"""Several questions of one test: false discoveries, segments and guardrails err as seldom as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recsys.simulator.experiment.effects import Effect, independent_effect
from recsys.simulator.experiment.segments import adjusted, segment_effects


def test_few_of_the_discoveries_among_many_metrics_are_false() -> None:
    """Six of ten metrics do not differ: at .1 the share of false ones among what is found is .6 * .1 on average."""
    random = np.random.default_rng(0)
    shares, naive = [], []
    for _ in range(2000):
        p_values = 2 * stats.norm.sf(np.abs(random.normal(np.repeat([0.0, 3.0], [6, 4]))))
        for values, found in ((adjusted(p_values), shares), (p_values, naive)):
            rejected = np.asarray(values) < 0.1
            found.append(rejected[:6].sum() / max(1, rejected.sum()))
    assert np.mean(shares) == pytest.approx(0.06, abs=0.01)
    assert np.mean(naive) > 0.1, "without the adjustment more are false"


def _share_that_differ(lifts: tuple[float, float, float], runs: int, seed: int) -> float:
    """How often three segments with these lifts, and very different users, are called different (p < .05)."""
    random = np.random.default_rng(seed)
    found = 0
    for _ in range(runs):
        arms = {
            name: (random.gamma(4, scale, 400), random.gamma(4, scale, 400) * (1 + lift))
            for name, scale, lift in zip("abc", (1, 3, 10), lifts, strict=True)
        }

        def effect_of(_: str, segment: str, arms: dict[str, tuple[np.ndarray, np.ndarray]] = arms) -> Effect:
            return independent_effect(*arms[segment])

        _, differing = segment_effects({"segment": list("abc")}, effect_of)
        found += differing[0].p_value < 0.05
    return found / runs


def test_segments_are_called_different_no_more_often_than_promised_and_found_where_they_are() -> None:
    assert _share_that_differ((0.1, 0.1, 0.1), 1000, seed=1) == pytest.approx(0.05, abs=0.02)
    assert _share_that_differ((0.0, 0.1, 0.3), 200, seed=2) > 0.9


def test_a_fall_of_just_the_margin_passes_for_safe_as_often_as_promised() -> None:
    random = np.random.default_rng(3)
    margin, runs, safe, harmed = 0.1, 2000, 0, 0
    for _ in range(runs):
        effect = independent_effect(random.gamma(4, 1, 300), random.gamma(4, 1 - margin, 300))
        above, below = effect.lift_bound(0.95), effect.lift_bound(0.05)
        assert above is not None
        assert below is not None
        safe += above > -margin
        harmed += below < -margin
    assert safe / runs == pytest.approx(0.05, abs=0.015)
    assert harmed / runs == pytest.approx(0.05, abs=0.015)
