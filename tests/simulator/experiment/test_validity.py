"""The statistics keep their promises: short versions of `recsys bench ab_validity`, with fixed seeds."""

from __future__ import annotations

import pytest

from recsys.simulator.experiment import validity


def test_an_arm_against_itself_gives_uniform_p_values_and_few_alarms() -> None:
    found = validity.same_arms(2000, 100)
    for calibration in (found.mean, found.ratio):
        assert calibration.uniform_p_value > 0.01
        assert 0.04 <= calibration.rejected <= 0.06
    assert found.mismatch_alarms <= 0.002
    assert found.sequential_mismatch_alarms <= 0.002


def test_peeking_is_punished_only_without_a_sequence() -> None:
    found = validity.peeking(4000)
    assert found.fixed == pytest.approx(0.26, abs=0.03), "published: 26.0 %"
    assert found.sequence == pytest.approx(0.014, abs=0.01), "published: 1.4 %"
    assert found.msprt < 0.05


@pytest.mark.parametrize("lift", [0.0, 0.2])
def test_an_injected_lift_is_recovered(lift: float) -> None:
    found = validity.recovered_lift(1000, 300, lift)
    assert found.mean_estimate == pytest.approx(lift, abs=0.02)
    for coverage in (found.coverage, found.ratio_coverage, found.paired_coverage):
        assert 0.93 <= coverage <= 0.97


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_what_was_known_takes_out_its_share_of_the_variance(rho: float) -> None:
    found = validity.cuped_factor(4000, 100, rho)
    assert found.reported == pytest.approx(found.expected, rel=0.05)
    assert found.observed == pytest.approx(found.expected, rel=0.05)


def test_common_random_numbers_halve_the_variance_at_least() -> None:
    assert validity.common_noise(60, 200).reduction > 0.5


def test_interleaving_is_fair_and_finds_the_better_ranker() -> None:
    for found in validity.interleaving(60, 300):
        assert found.equal == pytest.approx(0.5, abs=0.01)
        assert found.better > 0.95
        assert found.seen > 2 * found.seen_by_test, "with as few lists"
