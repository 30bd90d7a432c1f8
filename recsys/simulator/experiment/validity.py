"""Do the statistics keep their promises? Studies on made-up users whose truth is known; one seed, one set of numbers.

Users take and are shown very different amounts: each has a rate of choices (gamma) and a number of lists (geometric),
and takes Poisson many. Whole tests are run, from the hash that assigns users to the interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.data.sequences import IntArray
from recsys.evaluation.ratios import user_values
from recsys.simulator.experiment.assignment import assign
from recsys.simulator.experiment.cuped import adjust
from recsys.simulator.experiment.effects import Effect, independent_effect, paired_effect
from recsys.simulator.experiment.interleaving import probabilistic, team_draft
from recsys.simulator.experiment.sample_ratio import MISMATCH, sample_ratio_p_value, sequential_sample_ratio
from recsys.simulator.experiment.sequential import msprt_likelihood_ratio, sequence_half_width

FloatArray = npt.NDArray[np.float64]

_EVEN = {"control": 5000, "treatment": 5000}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """P-values where nothing differs."""

    uniform_p_value: float
    """Of "the p-values are uniform" (Kolmogorov and Smirnov)."""
    rejected: float
    """Share below .05."""


@dataclass(frozen=True, kw_only=True)
class SameArms:
    """Tests of an arm against itself."""

    runs: int
    mean: Calibration
    """Of the mean of choices a user."""
    ratio: Calibration
    """Of choices by lists."""
    mismatch_alarms: float
    """Share of runs with an alarm (p < .001) at the end."""
    sequential_mismatch_alarms: float
    """Share of runs with an alarm at any of 20 looks."""


def same_arms(runs: int, num_users: int, seed: int = 0) -> SameArms:
    """Tests in which nothing differs; each has its own salt and its own users."""
    random = np.random.default_rng(seed)
    units = [f"user{number}" for number in range(num_users)]
    means, ratios, counts, sequential = np.empty((4, runs))
    for run in range(runs):
        in_control = np.array([arm == "control" for arm in assign(units, f"salt {seed} {run}", _EVEN)])
        choices, lists = _users(random, num_users, 1.0)
        values = user_values(choices[in_control], lists[in_control])
        means[run] = independent_effect(choices[in_control], choices[~in_control]).p_value
        ratios[run] = independent_effect(values, user_values(choices[~in_control], lists[~in_control])).p_value
        size = int(in_control.sum())
        counts[run] = sample_ratio_p_value({"control": size, "treatment": num_users - size}, _EVEN)
        so_far = np.cumsum(in_control)[np.linspace(0, num_users, 21).astype(int)[1:] - 1]
        seen = np.linspace(0, num_users, 21).astype(int)[1:]
        sequential[run] = sequential_sample_ratio(np.stack([so_far, seen - so_far], axis=1), [1, 1])[-1]
    return SameArms(
        runs=runs,
        mean=_calibration(means),
        ratio=_calibration(ratios),
        mismatch_alarms=float((counts < MISMATCH).mean()),
        sequential_mismatch_alarms=float((sequential < MISMATCH).mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Peeking:
    """Share of tests of an arm against itself that are rejected at any look."""

    runs: int
    looks: int
    fixed: float
    """By an interval for one look, at each look."""
    sequence: float
    msprt: float


def peeking(runs: int, looks: int = 20, per_look: int = 200, seed: int = 0) -> Peeking:
    """Looks at so many further users in each arm, outcomes normal with variance 1, rejections at .05."""
    random = np.random.default_rng(seed)
    # A sum of so many normal outcomes is normal: no need to draw each of them.
    sums = (random.normal(size=(2, runs, looks)) * per_look**0.5).cumsum(axis=2)
    n = per_look * np.arange(1, looks + 1)
    differences = (sums[1] - sums[0]) / n
    return Peeking(
        runs=runs,
        looks=looks,
        fixed=_ever(np.abs(differences) > stats.norm.ppf(0.975) * (2 / n) ** 0.5),
        sequence=_ever(np.abs(differences) > sequence_half_width(2 * n, 4.0)),
        msprt=_ever(msprt_likelihood_ratio(n, differences, 1.0, 0.01) >= 20),
    )


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """An injected lift, as it is found."""

    runs: int
    lift: float
    mean_estimate: float
    coverage: float
    """Share of 95 % intervals that hold it."""
    ratio_coverage: float
    """The same for choices by lists."""
    paired_coverage: float
    """The same where each user is in both arms."""
    found: float
    """Share of runs with p < .05."""


def recovered_lift(runs: int, num_users: int, lift: float, seed: int = 0) -> Recovery:
    """Tests whose treatment multiplies every user's rate by 1 + lift; `num_users` in each arm."""
    random = np.random.default_rng(seed)
    estimates = np.empty(runs)
    held = np.zeros((3, runs), dtype=bool)
    found = np.zeros(runs, dtype=bool)
    for run in range(runs):
        (choices, lists), (more, more_lists) = (_users(random, num_users, factor) for factor in (1.0, 1 + lift))
        effect = independent_effect(choices, more)
        assert effect.lift is not None
        estimates[run], found[run] = effect.lift.value, effect.p_value < 0.05
        rate = random.gamma(2.0, 1.0, num_users)
        effects = (
            effect,
            independent_effect(user_values(choices, lists), user_values(more, more_lists)),
            paired_effect(random.poisson(5 * rate), random.poisson(5 * rate * (1 + lift))),
        )
        held[:, run] = [_holds(each, lift) for each in effects]
    coverage = held.mean(axis=1)
    return Recovery(
        runs=runs,
        lift=lift,
        mean_estimate=float(estimates.mean()),
        coverage=float(coverage[0]),
        ratio_coverage=float(coverage[1]),
        paired_coverage=float(coverage[2]),
        found=float(found.mean()),
    )


@dataclass(frozen=True, kw_only=True)
class VarianceFactor:
    """What is left of a difference's variance when a covariate is taken out."""

    runs: int
    rho: float
    expected: float
    """1 - rho^2."""
    reported: float
    """Mean of what the adjustment says."""
    observed: float
    """Variance of the adjusted differences over that of the plain ones, over runs."""


def cuped_factor(runs: int, num_users: int, rho: float, seed: int = 0) -> VarianceFactor:
    """Tests of an arm against itself with a covariate of correlation `rho`; `num_users` in each arm."""
    random = np.random.default_rng(seed)
    plain, helped, reported = np.empty((3, runs))
    for run in range(runs):
        x = random.normal(size=(2, num_users))
        y = rho * x + (1 - rho**2) ** 0.5 * random.normal(size=(2, num_users))
        found = adjust([y[0], y[1]], [x[0], x[1]])
        plain[run] = y[1].mean() - y[0].mean()
        helped[run] = found.groups[1].mean() - found.groups[0].mean()
        reported[run] = found.factor
    return VarianceFactor(
        runs=runs,
        rho=rho,
        expected=1 - rho**2,
        reported=float(reported.mean()),
        observed=float(helped.var() / plain.var()),
    )


@dataclass(frozen=True, kw_only=True)
class CommonNoise:
    """Variance of the difference of two arms on the same simulated users, over runs with other random numbers."""

    runs: int
    independent: float
    """Each arm with random numbers of its own."""
    common: float
    """Both arms with the same number for the same user, step and item."""
    reduction: float
    """1 - common / independent."""


def common_noise(runs: int, num_users: int, seed: int = 0) -> CommonNoise:
    """Users who choose from lists of 5 of 30 items, 8 times, or nothing; the arms' rankings differ by noise."""
    random = np.random.default_rng(seed)
    num_items, steps, places = 30, 8, 5
    taste = random.normal(size=(num_users, num_items))
    slates = [
        np.argsort(-(taste + spread * random.normal(size=taste.shape)), axis=1)[:, :places] for spread in (1.0, 0.8)
    ]
    difference = np.empty((2, runs))
    for run in range(runs):
        noise = [_gumbels(random, (num_users, steps, num_items + 1)) for _ in range(2)]
        first = _choices(taste, slates[0], noise[0]).mean()
        difference[:, run] = [_choices(taste, slates[1], each).mean() - first for each in (noise[1], noise[0])]
    independent, common = difference.var(axis=1).tolist()
    return CommonNoise(runs=runs, independent=independent, common=common, reduction=1 - common / independent)


@dataclass(frozen=True, kw_only=True)
class Interleaving:
    """How often a ranker wins in merged lists."""

    method: str
    equal: float
    """Share of lists that one of two equal rankers wins when users take any item; .5 where none is decided."""
    better: float
    """Share of runs in which the better ranker has more credit."""
    seen: float
    """Share of runs in which a sign test over users shows it (p < .05)."""
    seen_by_test: float
    """Share of runs in which an A/B test of the same number of lists shows it."""


def interleaving(runs: int, num_users: int, seed: int = 0) -> list[Interleaving]:
    """One list of 5 a user; the better ranker has the right item one place higher. A user looks at the first place, and
    further down with half the chance at each place; who sees the right item takes it with 60 %."""
    random = np.random.default_rng(seed)
    found = []
    for method, merge in (("team draft", team_draft), ("probabilistic", probabilistic)):
        wins = decided = better = seen = by_test = 0
        for _ in range(runs):
            worse, improved, target = _rankers(random, num_users)
            any_place = np.arange(5)[None, :] == random.integers(0, 5, (num_users, 1))
            preference = merge(worse, worse, 5, random).preference(any_place)
            wins += int((preference > 0).sum())
            decided += int((preference != 0).sum())
            merged = merge(improved, worse, 5, random)
            preference = merged.preference(_taken(random, merged.items, target))
            better += int(preference.sum() > 0)
            up, down = int((preference > 0).sum()), int((preference < 0).sum())
            seen += int(up > down and stats.binomtest(up, up + down).pvalue < 0.05)
            half = num_users // 2
            arms = [
                _taken(random, lists[rows, :5], target[rows]).any(axis=1)
                for lists, rows in ((worse, slice(half)), (improved, slice(half, None)))
            ]
            effect = independent_effect(arms[0], arms[1])
            by_test += int(effect.p_value < 0.05 and effect.difference.value > 0)
        found.append(
            Interleaving(
                method=method,
                equal=wins / decided if decided else 0.5,
                better=better / runs,
                seen=seen / runs,
                seen_by_test=by_test / runs,
            )
        )
    return found


def _users(random: np.random.Generator, num_users: int, factor: float) -> tuple[FloatArray, FloatArray]:
    """Choices and lists of each user, float64 [num_users]."""
    lists = random.geometric(0.1, num_users)
    choices = random.poisson(lists * random.gamma(2.0, 0.25, num_users) * factor)
    return choices.astype(np.float64), lists.astype(np.float64)


def _calibration(p_values: FloatArray) -> Calibration:
    return Calibration(
        uniform_p_value=float(stats.kstest(p_values, "uniform").pvalue), rejected=float((p_values < 0.05).mean())
    )


def _ever(rejected: npt.NDArray[np.bool_]) -> float:
    return float(rejected.any(axis=1).mean())


def _holds(effect: Effect, lift: float) -> bool:
    return effect.lift is not None and effect.lift.low <= lift <= effect.lift.high


def _gumbels(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return -np.log(-np.log(random.random(shape)))


def _choices(taste: FloatArray, slates: IntArray, noise: FloatArray) -> FloatArray:
    """float64 [num_users]: how many steps end with a choice; the last item of `noise` is none."""
    utilities = np.take_along_axis(taste, slates, axis=1)[:, None, :]
    shown = np.take_along_axis(noise, np.broadcast_to(slates[:, None, :], (*noise.shape[:2], slates.shape[1])), axis=2)
    took = (utilities + shown).max(axis=2) > 2.0 + noise[:, :, -1]
    return np.asarray(took.sum(axis=1), dtype=np.float64)


def _rankers(random: np.random.Generator, num_users: int) -> tuple[IntArray, IntArray, IntArray]:
    """Lists of 10 of 20 items of a worse and a better ranker, and the right item, one place higher in the better."""
    worse = np.argsort(random.random((num_users, 20)), axis=1)[:, :10]
    place = random.integers(3, 8, num_users)
    target = worse[np.arange(num_users), place]
    others = worse[worse != target[:, None]].reshape(num_users, 9)
    order = np.argsort(np.concatenate([np.arange(9)[None, :].repeat(num_users, 0), place[:, None] - 1.5], 1), axis=1)
    return worse, np.take_along_axis(np.concatenate([others, target[:, None]], 1), order, 1), target


def _taken(random: np.random.Generator, items: IntArray, target: IntArray) -> npt.NDArray[np.bool_]:
    """bool [B, K]: where users took the right item."""
    looked = random.geometric(0.5, len(items))
    sees = np.arange(items.shape[1])[None, :] < looked[:, None]
    return np.asarray((items == target[:, None]) & sees & (random.random((len(items), 1)) < 0.6))
