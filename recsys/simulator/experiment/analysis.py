"""The report of an A/B test from numbers a user. Knows not where they come from: live traffic, a log or a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import polars as pl
from scipy import stats

from recsys.errors import ConfigError, DataError
from recsys.simulator.experiment.cuped import adjust
from recsys.simulator.experiment.effects import Effect, independent_effect, paired_effect
from recsys.simulator.experiment.outcomes import FloatArray, check_arms, metric_named
from recsys.simulator.experiment.power import detectable_errors, users_per_arm
from recsys.simulator.experiment.sample_ratio import sample_ratio_p_value
from recsys.simulator.experiment.segments import Heterogeneity, SegmentEffect, adjusted, segment_effects
from recsys.simulator.experiment.sequential import (
    TUNING_USERS,
    always_valid_p_values,
    msprt_likelihood_ratio,
    msprt_p_values,
    sequence_half_width,
)

_FEWEST_IN_SEGMENT = 20
_FEWEST_AT_LOOK = 50
_FEWEST_USERS = 2

Safety: TypeAlias = Literal["safe", "harmed", "unclear"]


@dataclass(frozen=True, kw_only=True)
class AnalysisPlan:
    """What is decided before the numbers are seen.

    Raises:
        ConfigError: a metric is unknown or has two roles, or a number is impossible.
    """

    control: str
    treatment: str
    paired: bool = False
    """Every user was in both arms, as only a simulator can do; otherwise each was in one."""
    primary: str = "choices_per_user"
    """The metric that decides."""
    secondary: tuple[str, ...] = ("choice_rate", "reward_per_step")
    """Further ones, whose false-discovery rate is `alpha`."""
    guardrails: Mapping[str, float] = field(default_factory=lambda: {"session_length": 0.02, "variety": 0.1})
    """Metrics that may fall by this share of the control at most."""
    smallest_lift: float = 0.02
    """The smallest relative lift of the primary metric that would matter."""
    alpha: float = 0.05
    power: float = 0.8
    covariate: str | None = None
    """A column known before the test, which CUPED takes out of all metrics."""
    segments: tuple[str, ...] = ()
    """Columns with the names of segments."""
    shares: Mapping[str, int] | None = None
    """Planned shares of users; equal ones where None. Means nothing in a paired test."""
    looks: int = 20
    """How often the test is looked at while users arrive, in the order of the column `arrival`."""

    def __post_init__(self) -> None:
        names = [self.primary, *self.secondary, *self.guardrails]
        for name in names:
            metric_named(name)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"the metric {twice[0]} has two roles; a metric is primary, secondary or a guardrail")
        for label, value, below in (
            ("alpha", self.alpha, 1.0),
            ("smallest lift", self.smallest_lift, np.inf),
            *((f"margin of {name}", margin, 1.0) for name, margin in self.guardrails.items()),
        ):
            if not 0 < value < below:
                raise ConfigError(f"{label} must lie above 0 and below {below:g}, got {value}")
        if self.control == self.treatment:
            raise ConfigError(f"both arms are called {self.control!r}; they need names of their own")
        if self.looks < 1:
            raise ConfigError(f"looks must be 1 or more, got {self.looks}")
        detectable_errors(self.alpha, self.power)  # raises where there is no such test


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """What the arms differ in, in one metric."""

    name: str
    label: str
    """In plain words."""
    meaning: str
    effect: Effect
    adjusted_p_value: float | None
    """Of a secondary metric, over all of these; None for others."""
    cuped_factor: float | None
    """What is left of the variance by the covariate; None without one."""
    margin: float | None
    """Of a guardrail: the relative fall that is allowed; None for other metrics."""
    safety: Safety | None
    """Of a guardrail: the fall is shown to be within the margin, or beyond it, or neither, one-sided at alpha."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The primary metric's difference when so many users had arrived."""

    users: int
    difference: float
    low: float
    """Of the confidence sequence, which may be looked at as often as one likes."""
    high: float
    fixed_low: float
    """Of the interval for one planned look."""
    fixed_high: float
    p_value: float
    """Always valid, of the sequence; never rises."""
    msprt_p_value: float
    """The same of a mixture sequential probability ratio test that is tuned to the smallest lift that matters."""


@dataclass(frozen=True, kw_only=True)
class ExperimentReport:
    """All that a test says."""

    plan: AnalysisPlan
    users: Mapping[str, int]
    """Of each arm."""
    shown_nothing: Mapping[str, int]
    """Users to whom an arm had nothing to show: they are counted, with no choices and sessions without length."""
    primary: MetricResult
    secondary: tuple[MetricResult, ...]
    guardrails: tuple[MetricResult, ...]
    looks: tuple[Look, ...]
    """Empty where nobody says in which order users came."""
    segments: tuple[SegmentEffect, ...]
    heterogeneity: tuple[Heterogeneity, ...]
    sample_ratio_p_value: float | None
    """How likely the counts of users are under the planned shares; None in a paired test."""
    detectable_lift: float | None
    """The smallest relative lift of the primary metric that this test shows with the plan's power; None where the
    control is not above 0."""
    users_to_decide: int | None
    """With so many users in all the primary interval would be as narrow as the smallest lift that matters, so that any
    result decides; None where the control is not above 0."""
    live_users_per_arm: int | None
    """That a test on live traffic, with different users in each arm, needs to see the smallest lift that matters."""


def analyse(outcomes: pl.DataFrame, plan: AnalysisPlan) -> ExperimentReport:
    """Compare two arms as planned.

    Args:
        outcomes: a row for each user of each arm (`outcomes.user_outcomes`), with the plan's covariate and segments,
            and with `arrival` (any numbers that order the users) if the course of the test is asked for.
        plan: what was decided before.

    Raises:
        DataError: an arm has fewer than two users, or users stand where they should not; the message names them.
        ConfigError: the plan names a column that is not there.
    """
    for column in (*plan.segments, *([plan.covariate] if plan.covariate else [])):
        if column not in outcomes.columns:
            raise ConfigError(f"there is no column {column!r} in the outcomes; there are {', '.join(outcomes.columns)}")
    check_arms(outcomes, (plan.control, plan.treatment), paired=plan.paired)
    compared = outcomes.filter(pl.col("arm").is_in([plan.control, plan.treatment])).sort("user_id")
    users = {arm: int((compared["arm"] == arm).sum()) for arm in (plan.control, plan.treatment)}
    primary = _result(compared, plan, plan.primary)
    secondary = [_result(compared, plan, name) for name in plan.secondary]
    corrected = adjusted([result.effect.p_value for result in secondary])
    segments, heterogeneity = _segments(compared, plan)
    return ExperimentReport(
        plan=plan,
        users=users,
        shown_nothing={
            arm: compared.filter((pl.col("arm") == arm) & (pl.col("impressions") == 0)).height for arm in users
        },
        primary=primary,
        secondary=tuple(
            replace(result, adjusted_p_value=p_value) for result, p_value in zip(secondary, corrected, strict=True)
        ),
        guardrails=tuple(_result(compared, plan, name, margin=margin) for name, margin in plan.guardrails.items()),
        looks=_looks(compared, plan),
        segments=tuple(segments),
        heterogeneity=tuple(heterogeneity),
        sample_ratio_p_value=(
            None if plan.paired else sample_ratio_p_value(users, plan.shares or dict.fromkeys(users, 1))
        ),
        detectable_lift=(
            None
            if primary.effect.lift_error is None
            else detectable_errors(plan.alpha, plan.power) * primary.effect.lift_error
        ),
        users_to_decide=_users_to_decide(primary.effect, plan),
        live_users_per_arm=_live_users(compared, plan, primary),
    )


def _measured(rows: pl.DataFrame, plan: AnalysisPlan, name: str) -> tuple[Effect, float | None]:
    """The effect in some users, and what CUPED left of the variance."""
    arms = _by_arm(rows, plan)
    metric = metric_named(name)
    for arm, of_arm in zip((plan.control, plan.treatment), arms, strict=True):
        if of_arm.height < _FEWEST_USERS:
            raise DataError(f"the arm {arm!r} has fewer than two users; an effect needs two or more in each arm")
        if not metric.defined(of_arm):
            raise DataError(
                f"the arm {arm!r} showed nothing to any of its {of_arm.height} users, so it has no {metric.name}; look "
                "at its lists before it is tested"
            )
    values = [metric.values(of_arm) for of_arm in arms]
    factor = None
    if plan.covariate is not None:
        values, factor = _adjusted(values, [of_arm[plan.covariate].to_numpy() for of_arm in arms], plan)
    effect_of = paired_effect if plan.paired else independent_effect
    return effect_of(values[0], values[1], plan.alpha), factor


def _by_arm(rows: pl.DataFrame, plan: AnalysisPlan) -> list[pl.DataFrame]:
    return [rows.filter(pl.col("arm") == arm) for arm in (plan.control, plan.treatment)]


def _measurable(rows: pl.DataFrame, plan: AnalysisPlan, fewest: int) -> bool:
    """Whether both arms have so many users, and were shown something if the primary metric is about that."""
    metric = metric_named(plan.primary)
    return all(of_arm.height >= fewest and metric.defined(of_arm) for of_arm in _by_arm(rows, plan))


def _adjusted(
    values: Sequence[FloatArray], covariates: Sequence[FloatArray], plan: AnalysisPlan
) -> tuple[list[FloatArray], float]:
    """The arms' values without what the covariate explains, and what is left of the variance that matters."""
    if not plan.paired:
        both = adjust(values, covariates)
        return list(both.groups), both.factor
    # One slope for each arm: a common one would leave the differences of users as they are.
    alone = [adjust([y], [x]).groups[0] for y, x in zip(values, covariates, strict=True)]
    before = float((values[1] - values[0]).var())
    return alone, float((alone[1] - alone[0]).var()) / before if before > 0 else 1.0


def _result(rows: pl.DataFrame, plan: AnalysisPlan, name: str, margin: float | None = None) -> MetricResult:
    effect, factor = _measured(rows, plan, name)
    return MetricResult(
        name=name,
        label=metric_named(name).label,
        meaning=metric_named(name).meaning,
        effect=effect,
        adjusted_p_value=None,
        cuped_factor=factor,
        margin=margin,
        safety=None if margin is None else _safety(effect, margin, plan.alpha),
    )


def _safety(effect: Effect, margin: float, alpha: float) -> Safety:
    """Non-inferiority: the one-sided bound of the lift lies above -margin."""
    above, below = effect.lift_bound(1 - alpha), effect.lift_bound(alpha)
    if above is None or below is None:
        return "unclear"
    if above > -margin:
        return "safe"
    return "harmed" if below < -margin else "unclear"


def _looks(rows: pl.DataFrame, plan: AnalysisPlan) -> tuple[Look, ...]:
    if "arrival" not in rows.columns:
        return ()
    order = rows.group_by("user_id").agg(pl.col("arrival").min()).sort("arrival", "user_id")["user_id"]
    ends = np.unique(np.linspace(0, len(order), plan.looks + 1).astype(int)[1:])
    found = []
    for end in ends[ends >= min(_FEWEST_AT_LOOK, len(order))].tolist():
        arrived = rows.filter(pl.col("user_id").is_in(order.head(end).to_list()))
        # Of a small arm nobody may have arrived yet.
        if _measurable(arrived, plan, _FEWEST_USERS):
            found.append((end, _measured(arrived, plan, plan.primary)[0]))
    if not found:
        return ()
    users = np.array([end for end, _ in found], dtype=np.float64)
    differences = np.array([effect.difference.value for _, effect in found])
    variances = users * np.array([effect.standard_error for _, effect in found]) ** 2
    half = sequence_half_width(users, variances, plan.alpha, TUNING_USERS)
    p_values = always_valid_p_values(differences, users, variances, plan.alpha, TUNING_USERS)
    msprt = _msprt(differences, users, variances, plan, expected=plan.smallest_lift * abs(found[0][1].control))
    return tuple(
        Look(
            users=end,
            difference=effect.difference.value,
            low=effect.difference.value - width,
            high=effect.difference.value + width,
            fixed_low=effect.difference.low,
            fixed_high=effect.difference.high,
            p_value=p_value,
            msprt_p_value=of_ratio,
        )
        for (end, effect), width, p_value, of_ratio in zip(
            found, half.tolist(), p_values.tolist(), msprt.tolist(), strict=True
        )
    )


def _msprt(
    differences: FloatArray, users: FloatArray, variances: FloatArray, plan: AnalysisPlan, expected: float
) -> FloatArray:
    """P-values for effects of the size `expected`, float64 [looks]; `variances` are n times the squared error."""
    # Of two arms of n users each, with one user's variance s2, the squared error is 2 s2 / n.
    per_arm = users if plan.paired else users / 2
    of_user = variances * per_arm / users / 2
    exact = of_user == 0
    ratios = msprt_likelihood_ratio(per_arm, differences, np.where(exact, 1.0, of_user), max(expected, 1e-12) ** 2)
    return msprt_p_values(np.where(exact, np.where(differences == 0, 1.0, np.inf), ratios))


def _segments(rows: pl.DataFrame, plan: AnalysisPlan) -> tuple[list[SegmentEffect], list[Heterogeneity]]:
    def effect_of(dimension: str, segment: str) -> Effect | None:
        of_segment = rows.filter(pl.col(dimension) == segment)
        enough = _measurable(of_segment, plan, _FEWEST_IN_SEGMENT)
        return _measured(of_segment, plan, plan.primary)[0] if enough else None

    names = {dimension: rows[dimension].drop_nulls().unique().sort().to_list() for dimension in plan.segments}
    return segment_effects(names, effect_of)


def _users_to_decide(effect: Effect, plan: AnalysisPlan) -> int | None:
    if effect.lift_error is None:
        return None
    quantile = float(stats.norm.ppf(1 - plan.alpha / 2))
    return int(np.ceil(effect.num_users * (2 * quantile * effect.lift_error / plan.smallest_lift) ** 2))


def _live_users(rows: pl.DataFrame, plan: AnalysisPlan, primary: MetricResult) -> int | None:
    if not primary.effect.control > 0:
        return None
    in_control = rows.filter(pl.col("arm") == plan.control)
    values = metric_named(plan.primary).values(in_control)
    if plan.covariate is not None:
        values = adjust([values], [in_control[plan.covariate].to_numpy()]).groups[0]
    difference, variance = plan.smallest_lift * primary.effect.control, float(values.var(ddof=1))
    return users_per_arm(difference, variance, alpha=plan.alpha, power=plan.power)
