"""All estimates of a policy from a log, each a number with intervals or a refusal with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from recsys.data.sequences import IntArray
from recsys.evaluation.bootstrap import Interval
from recsys.simulator.off_policy.balance import balanced_weights
from recsys.simulator.off_policy.calibration import PropensityCalibration
from recsys.simulator.off_policy.choice import by_slope, squared_error_bound
from recsys.simulator.off_policy.diagnostics import Limits, ModelDiagnostics, WeightDiagnostics, support_of
from recsys.simulator.off_policy.errors import BadLogError
from recsys.simulator.off_policy.estimators import (
    SHRUNKEN,
    Rounds,
    Terms,
    direct,
    doubly_robust,
    ips,
    mean,
    replay,
    self_normalised_dr,
    snips,
)
from recsys.simulator.off_policy.intervals import Estimate, UserUnits
from recsys.simulator.off_policy.log import BanditLog, FloatArray, SlateLog, SlateTarget, check_policy
from recsys.simulator.off_policy.prefixes import marginalised_weights, prefix_groups
from recsys.simulator.off_policy.rewards import Predictions, cross_fitted, robust_round_weights
from recsys.simulator.off_policy.slates import (
    WeightedSlates,
    cascade,
    cascade_dr,
    independent,
    self_normalised_cascade,
    self_normalised_independent,
    self_normalised_standard,
    standard,
)

_FEW_REWARDS = 30
_UNREWARDED = "no round that it reads has a reward, so nothing says how seldom one comes; log for longer"
_DOUBTFUL = 0.001
"""Of the chi-squared test of the propensities."""
_WITHOUT_MODEL = ("replay", "ips", "snips", "clipped_ips", "subgaussian_ips")
_WITH_MODEL = ("direct", "dr", "sndr", "switch_dr", "dros", "subgaussian_dr", "mrdr", "balanced_ips")


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig:
    """How estimates are made."""

    confidence: float = 0.95
    n_resamples: int = 1000
    """Of the bootstrap."""
    num_folds: int = 3
    """Of users, for models."""
    penalty: float = 100.0
    """Rounds with the mean reward that each action's own are mixed with."""
    tuning: Literal["error_bound", "error", "slope"] = "error_bound"
    """How parameters of estimators are chosen: least variance plus squared bias, where the bias is bounded from above
    or taken as estimated, or SLOPE (`choice`). Only under the first do intervals hold the truth as often as they say
    (`recsys bench off_policy`): the others accept bias for less variance."""
    limits: Limits = field(default=Limits())
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why there is no number."""

    reason: str


Outcome: TypeAlias = Estimate | Refused


@dataclass(frozen=True, kw_only=True)
class OffPolicyReport:
    """What a log says of a policy."""

    num_rounds: int
    num_users: int
    num_rewarded: int
    """Rounds, or lists, with a reward other than 0."""
    served: Interval
    """Mean reward of the policy that served, over resampled users."""
    outcomes: Mapping[str, Outcome]
    """By estimator."""
    weights: Mapping[str, WeightDiagnostics]
    """By the kind of weight."""
    model: ModelDiagnostics | None
    """Of the reward model; None where there is none."""
    calibration: PropensityCalibration | None
    """Of the propensities; None where it is not known what else could have been taken."""
    notes: Sequence[str]
    """What a reader must know."""

    def as_document(self) -> dict[str, Any]:
        """For JSON; an outcome has `value` or `refused`. What is not finite, such as the limit of weights that were not
        clipped, is null."""
        document = asdict(self)
        document["outcomes"] = {
            name: {"refused": outcome.reason} if isinstance(outcome, Refused) else asdict(outcome)
            for name, outcome in self.outcomes.items()
        }
        finite: dict[str, Any] = _finite(document)
        return finite


def evaluate_policy(
    log: BanditLog,
    target: FloatArray,
    config: OffPolicyConfig | None = None,
    *,
    predictions: Predictions | None = None,
    codes: IntArray | None = None,
) -> OffPolicyReport:
    """Every estimator for rounds with one action.

    Args:
        log: n rounds.
        target: float64 [C, K], the policy under test.
        config: how.
        predictions: of a reward model of one's own; a cross-fitted one is made when None.
        codes: int64 [K, levels], semantic IDs of the actions: with a log that has `behaviour`, adds MIPS, which may
            answer where weights of actions may not.

    Raises:
        BadLogError: the target is no policy for the log.
    """
    config = config or OffPolicyConfig()
    check_policy("target", target, log)
    reporter = _Reporter(log.user_of, log.rewards, config, PropensityCalibration.of_log(log))
    weights = target[log.context_of, log.actions] / log.propensities
    support = None
    if log.behaviour is not None:
        shares = np.bincount(log.context_of, minlength=log.num_contexts) / len(log)
        support = support_of(target[: len(shares)], log.behaviour[: len(shares)], shares)
    answers = reporter.judge("actions", WeightDiagnostics.of(weights, support), [*_WITHOUT_MODEL, *_WITH_MODEL])
    if codes is not None and log.behaviour is not None:
        of_prefixes = [
            marginalised_weights(log, target, prefix_groups(codes, depth)) for depth in range(1, codes.shape[1] + 1)
        ]
        reporter.add_prefixes(
            [WeightDiagnostics.of(each) for each in of_prefixes],
            [mean(each * log.rewards) for each in of_prefixes],
            [(weights - each) * log.rewards for each in of_prefixes] if answers else None,
            weights,
        )
    if not answers:
        return reporter.report(None)

    fit = partial(cross_fitted, log, target, num_folds=config.num_folds, penalty=config.penalty, seed=config.seed)
    model = fit() if predictions is None else predictions
    rounds = Rounds(rewards=log.rewards, weights=weights, predicted=model.predicted, values=model.values)
    _add_without_model(reporter, rounds, config)
    reporter.add("direct", direct(rounds), lost=rounds.weights * (rounds.rewards - rounds.predicted))
    reporter.add("dr", doubly_robust(rounds))
    reporter.add("sndr", self_normalised_dr(rounds))
    for name in ("switch_dr", "dros", "subgaussian_dr"):
        reporter.add(name, *_chosen(name, rounds, reporter.units, config))
    if predictions is None:
        robust = fit(round_weights=robust_round_weights(log, target))
        reporter.add("mrdr", doubly_robust(replace(rounds, predicted=robust.predicted, values=robust.values)))
    balanced = balanced_weights(log, target, num_folds=config.num_folds, seed=config.seed)
    if reporter.judge("balanced", WeightDiagnostics.of(balanced), ["balanced_ips"]):
        reporter.add("balanced_ips", snips(replace(rounds, weights=balanced)))
    return reporter.report(ModelDiagnostics.of(model.predicted, log.rewards))


def evaluate_propensities(log: BanditLog, target: FloatArray, config: OffPolicyConfig | None = None) -> OffPolicyReport:
    """The estimators that need no more of a target than how likely it takes the logged actions.

    Args:
        log: n rounds.
        target: float64 [n], 0 .. 1.
        config: how.

    Raises:
        BadLogError: a value of the target is no probability, or there is not one for each round.
    """
    config = config or OffPolicyConfig()
    target = SlateTarget(conditional=target[:, None], marginal=target[:, None]).conditional[:, 0]
    if len(target) != len(log):
        raise BadLogError(f"the target needs a propensity for each of {len(log)} rounds, got {len(target)}")
    reporter = _Reporter(log.user_of, log.rewards, config)
    weights = target / log.propensities
    if reporter.judge("actions", WeightDiagnostics.of(weights), _WITHOUT_MODEL):
        nothing = np.zeros(len(log))
        rounds = Rounds(rewards=log.rewards, weights=weights, predicted=nothing, values=nothing)
        _add_without_model(reporter, rounds, config)
    return reporter.report(None)


def evaluate_slates(
    log: SlateLog,
    target: SlateTarget,
    config: OffPolicyConfig | None = None,
    *,
    model: tuple[FloatArray, FloatArray] | None = None,
    prefix_weights: Sequence[FloatArray] = (),
    calibration: PropensityCalibration | None = None,
) -> OffPolicyReport:
    """Every estimator for lists.

    Args:
        log: n lists.
        target: of the policy under test, for the same lists.
        config: how.
        model: `predicted` and `expected` of `cascade_dr`, which is left out when None.
        prefix_weights: float64 [n, L] for each number of codes from 1 on: by how much the target is more likely to show
            any item of the shown one's prefix at its place. They add MIPS, by places that do not depend on others.
        calibration: of the log's propensities, for the report.

    Raises:
        BadLogError: the target does not fit the log.
    """
    config = config or OffPolicyConfig()
    slates = WeightedSlates.of(log, target)
    reporter = _Reporter(log.user_of, log.rewards.sum(axis=1), config, calibration)
    last = slates.prefix_weights[:, -1]
    if reporter.judge("standard", WeightDiagnostics.of(last), ["sips", "snsips"]):
        reporter.add("sips", standard(slates))
        reporter.add("snsips", self_normalised_standard(slates))
    answers = reporter.judge("independent", _worst(slates.marginal_weights, config.limits), ["iips", "sniips"])
    if answers:
        reporter.add("iips", independent(slates))
        reporter.add("sniips", self_normalised_independent(slates))
    if prefix_weights:
        reporter.add_prefixes(
            [_worst(each, config.limits) for each in prefix_weights],
            [independent(replace(slates, marginal_weights=each)) for each in prefix_weights],
            [((slates.marginal_weights - each) * log.rewards).sum(axis=1) for each in prefix_weights]
            if answers
            else None,
            slates.marginal_weights.sum(axis=1),
        )
    names = ["rips", "snrips"] + (["cascade_dr"] if model is not None else [])
    if reporter.judge("cascade", _worst(slates.prefix_weights, config.limits), names):
        reporter.add("rips", cascade(slates))
        reporter.add("snrips", self_normalised_cascade(slates))
        if model is not None:
            reporter.add("cascade_dr", cascade_dr(slates, *model))
    is_shown = log.items >= 0
    quality = None if model is None else ModelDiagnostics.of(model[0][is_shown], log.rewards[is_shown])
    return reporter.report(quality)


class _Reporter:
    """Gathers terms and refusals, and makes all intervals on the same resamples."""

    def __init__(
        self,
        users: IntArray,
        rewards: FloatArray,
        config: OffPolicyConfig,
        calibration: PropensityCalibration | None = None,
    ) -> None:
        self.units = UserUnits(users, n_resamples=config.n_resamples, seed=config.seed, confidence=config.confidence)
        self._config = config
        self._rewards = rewards
        self._calibration = calibration
        self._num_rewarded = int((rewards != 0).sum())
        self._terms: dict[str, Terms] = {}
        self._parameters: dict[str, float | None] = {}
        self._lost: dict[str, FloatArray | None] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._weights: dict[str, WeightDiagnostics] = {}
        self._notes: list[str] = []

    def judge(self, kind: str, weights: WeightDiagnostics, names: Sequence[str]) -> bool:
        """Whether estimators with these weights may answer; those that may not are refused."""
        self._weights[kind] = weights
        limits = self._config.limits
        problem = weights.problem(limits)
        if problem is None and self._calibration is not None:
            problem = self._calibration.problem(limits.max_slope_error, limits.max_standard_errors)
        if problem is None and self.units.num_users == 1:
            problem = "all rounds are of one user: nothing says how another would behave"
        if problem is not None:
            self._outcomes |= {name: Refused(reason=problem) for name in names}
        return problem is None

    def add(self, name: str, terms: Terms, parameter: float | None = None, lost: FloatArray | None = None) -> None:
        """Take an estimate; see `Estimate` for the rest, whose `bias` is the mean of `lost`, float64 [n].

        One whose rounds have no reward at all is refused: its intervals would say that it is 0 for certain.
        """
        if not any(term.numerator.any() for term in terms):
            self._outcomes[name] = Refused(reason=_UNREWARDED)
            return
        self._terms[name], self._parameters[name], self._lost[name] = terms, parameter, lost

    def add_prefixes(
        self,
        diagnostics: Sequence[WeightDiagnostics],
        terms: Sequence[Terms],
        lost: Sequence[FloatArray] | None,
        weights: FloatArray,
    ) -> None:
        """Take the estimate by prefixes of as many codes as are best, out of those whose weights may answer.

        Args:
            diagnostics: of the weights of prefixes of 1, 2, .. codes.
            terms: of their estimates.
            lost: what each leaves out of each round, float64 [n]; None where weights of whole semantic IDs may not
                answer, which alone could tell: then the longest prefix that may is taken.
            weights: float64 [n], of whole semantic IDs.
        """
        limits = self._config.limits
        able = [place for place, each in enumerate(diagnostics) if each.problem(limits) is None]
        if not able:
            self.judge("prefixes", diagnostics[0], ["mips"])
            return
        chosen = able[-1]
        if lost is not None:
            chosen = able[_best([(terms[each], lost[each]) for each in able], weights, self.units, self._config)]
        if self.judge("prefixes", diagnostics[chosen], ["mips"]):
            self.add("mips", terms[chosen], float(chosen + 1), None if lost is None else lost[chosen])
            if lost is None:
                self._notes.append("MIPS takes items of one prefix as liked alike, which this log cannot tell")

    def report(self, model: ModelDiagnostics | None) -> OffPolicyReport:
        """All that was taken and judged."""
        served = mean(self._rewards)
        first, *others = self.units.estimates([served, *self._terms.values()], served)
        found: dict[str, Outcome] = {
            name: replace(each, parameter=self._parameters[name], bias=self._bias(self._lost[name]))
            for name, each in zip(self._terms, others, strict=True)
        }
        notes = [*self._notes]
        if not self._num_rewarded:
            notes.append(f"none of {len(self._rewards):,} has a reward: the interval of what was served is none")
        elif self._num_rewarded < _FEW_REWARDS:
            notes.append(
                f"only {self._num_rewarded} of {len(self._rewards):,} have a reward: Student's t is too narrow above, "
                "and the bootstrap may have no limit there"
            )
        chance = None if self._calibration is None else self._calibration.p_value
        if chance is not None and chance < _DOUBTFUL:
            notes.append(f"some actions were taken more or less often than their propensities say (p = {chance:.1g})")
        return OffPolicyReport(
            num_rounds=len(self._rewards),
            num_users=self.units.num_users,
            num_rewarded=self._num_rewarded,
            served=first.bootstrap,
            outcomes=found | self._outcomes,
            weights=self._weights,
            model=model,
            calibration=self._calibration,
            notes=notes,
        )

    def _bias(self, lost: FloatArray | None) -> Interval | None:
        return None if lost is None else self.units.student_t(self.units.summed(mean(lost)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _add_without_model(reporter: _Reporter, rounds: Rounds, config: OffPolicyConfig) -> None:
    reporter.add("replay", replay(rounds, seed=config.seed))
    reporter.add("ips", ips(rounds))
    reporter.add("snips", snips(rounds))
    for name in ("clipped_ips", "subgaussian_ips"):
        reporter.add(name, *_chosen(name, rounds, reporter.units, config))


def _chosen(name: str, rounds: Rounds, units: UserUnits, config: OffPolicyConfig) -> tuple[Terms, float, FloatArray]:
    """The estimate with the parameter that was chosen, the parameter, and what it leaves out of each round."""
    family = SHRUNKEN[name]
    parameters = family.parameters(rounds)
    candidates = [(family.terms(rounds, each), family.lost(rounds, each)) for each in parameters]
    best = _best(candidates, rounds.weights, units, config)
    terms, lost = candidates[best]
    return terms, parameters[best], lost


def _best(
    candidates: Sequence[tuple[Terms, FloatArray]],
    weights: FloatArray,
    units: UserUnits,
    config: OffPolicyConfig,
) -> int:
    if config.tuning == "slope":
        intervals = [units.student_t(units.summed(terms)) for terms, _ in candidates]
        return by_slope([each.value for each in intervals], [each.high - each.value for each in intervals])
    confidence = config.confidence if config.tuning == "error_bound" else None
    errors = [
        squared_error_bound(terms[0].numerator, lost, weights, confidence=confidence) for terms, lost in candidates
    ]
    return int(np.argmin(errors))


def _worst(weights: FloatArray, limits: Limits) -> WeightDiagnostics:
    """Of the place whose weights say least."""
    places = [WeightDiagnostics.of(column) for column in weights.T]
    refused = [place for place in places if place.problem(limits) is not None]
    return min(refused or places, key=lambda place: place.effective_share)
