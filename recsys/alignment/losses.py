"""Losses over preference pairs, as functions of log-probabilities. They know no models, no prompts and no schedules.

Every loss has one signature, `(PairLogProbs, LossConfig) -> float32 [B]`, one value a pair; `preference_loss` picks
the configured one, adds the anchor and weighs the pairs. Delta(y) below is log pi(y|x) - log pi_ref(y|x), and
beta * Delta(y) is the implicit reward of y (DPO, arXiv 2305.18290, section 4).

Shapes: B pairs (a chosen answer each), R rejected answers of a pair, padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from recsys.config import StrictConfig
from recsys.errors import ConfigError

LossName: TypeAlias = Literal["dpo", "cdpo", "robust", "ipo", "sdpo", "ln_dpo", "lipo", "pro", "kto", "bco", "cream"]


READ_FLIP_RATES: frozenset[LossName] = frozenset({"cdpo", "robust", "cream"})
"""The losses that read how likely the order of a pair is wrong."""


class LossConfig(StrictConfig):
    """Which loss, and its few numbers."""

    name: LossName = "sdpo"
    """`dpo`; `cdpo` (conservative: smoothed labels); `robust` (unbiased under flipped labels); `ipo`; `sdpo` (one
    softmax over all rejected); `ln_dpo` (by length; for texts); `lipo` (graded lists); `pro` (ranking without a
    reference); `kto` and `bco` (good and bad answers that need not be paired); `cream` (soft labels by consistency)."""
    beta: float = Field(default=0.1, gt=0)
    """How far implicit rewards stretch log-ratios: small values let the policy go far from the reference. 0.05-0.5 for
    `dpo`, 1 for `sdpo` on semantic IDs, 2-10 for `ln_dpo`, whose margins are per token. `pro` does not use it."""
    flip_rate: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs whose order is wrong: the smoothing of `cdpo`, the noise of `robust`. A rate that comes with the
    pairs goes before it."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of -log pi(chosen), which keeps the chosen answer from falling along with the rejected ones; 0.1-0.2. With
    `pro` it is multiplied by the square of the number of rejected answers, as in its paper."""
    margin_scale: float = Field(default=0.0, ge=0)
    """k of MM-RLHF's weight 1 + k (1 - exp(-m)) on pairs whose grades lie m apart; 0: off. Needs grades."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """`kto`: weight of chosen answers; keep weight times number of good and bad answers within 1:1 to 4:3."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """`kto`: weight of rejected answers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogProbs:
    """What policy and reference say of B pairs. Sums over an answer's tokens, prompt left out.

    Raises:
        ValueError: a tensor has another shape, or holds NaN or infinity where there is an answer.
    """

    chosen: Tensor
    """float [B]: log pi(chosen)."""
    rejected: Tensor
    """float [B, R]: log pi(rejected); anything where `mask` is false."""
    reference_chosen: Tensor
    """float [B]: log pi_ref(chosen)."""
    reference_rejected: Tensor
    """float [B, R]."""
    mask: Tensor | None = None
    """bool [B, R]: there is such an answer, at least one a pair; None: all are there."""
    chosen_length: Tensor | None = None
    """int or float [B]: tokens of the chosen answer. `ln_dpo` needs it; `ipo` and `pro` divide by it when given."""
    rejected_length: Tensor | None = None
    """int or float [B, R]."""
    chosen_grade: Tensor | None = None
    """float [B]: how good the chosen answer is (a rating, a reward). `lipo` and `pro` need grades."""
    rejected_grade: Tensor | None = None
    """float [B, R]."""
    weights: Tensor | None = None
    """float [B], not negative: how much each pair counts; None: 1."""
    flip_rate: Tensor | None = None
    """float [B] in [0, 1]: how likely the order of each pair is wrong; goes before `LossConfig.flip_rate`. For CREAM it
    is 1 - C, C the consistency of the pair's ranking."""
    mismatched: Tensor | None = None
    """float [B]: log pi of another prompt's answer, for the baseline z of `kto`."""
    reference_mismatched: Tensor | None = None
    """float [B]."""
    shift: Tensor | float | None = None
    """`bco`: the running mean of implicit rewards (`bco.RewardShift`); None: the mean of this batch."""
    rejected_weights: Tensor | None = None
    """float [B, R]: `bco`: weights of the bad answers (`bco.PromptClassifier`); None: 1."""

    def __post_init__(self) -> None:
        if self.chosen.ndim != 1 or self.rejected.ndim != 2 or len(self.rejected) != len(self.chosen):
            raise ValueError(
                f"pairs: chosen must be [B] and rejected [B, R], got {list(self.chosen.shape)} and "
                f"{list(self.rejected.shape)}"
            )
        one, many = self.chosen.shape, self.rejected.shape
        real = self.is_real
        if real.shape != many or not bool(real.any(1).all()):
            raise ValueError(f"pairs: mask must be bool {list(many)} with a rejected answer in every row")
        for name in _PER_PAIR:
            _check(name, getattr(self, name), one, None)
        for name in _PER_REJECTED:
            _check(name, getattr(self, name), many, real)

    @property
    def is_real(self) -> Tensor:
        """bool [B, R]: `mask`, all true where None was given."""
        return torch.ones_like(self.rejected, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def chosen_delta(self) -> Tensor:
        """float [B]: Delta of the chosen answers."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_delta(self) -> Tensor:
        """float [B, R]: Delta of the rejected answers; 0 on padding."""
        return torch.where(self.is_real, self.rejected - self.reference_rejected, 0.0)


_PER_PAIR = (
    "chosen",
    "reference_chosen",
    "chosen_length",
    "chosen_grade",
    "weights",
    "flip_rate",
    "mismatched",
    "reference_mismatched",
)
_PER_REJECTED = ("rejected", "reference_rejected", "rejected_length", "rejected_grade", "rejected_weights")


def _check(name: str, values: Tensor | None, shape: torch.Size, real: Tensor | None) -> None:
    if values is None:
        return
    if values.shape != shape:
        raise ValueError(f"pairs: {name} must have shape {list(shape)}, got {list(values.shape)}")
    finite = values.isfinite() if real is None else values.isfinite() | ~real
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise ValueError(
            f"pairs: {name} is NaN or infinite in {int((~finite).sum())} of {finite.numel()} places, first in pair "
            f"{row}; lower the learning rate, or look for answers that the model cannot give"
        )


Loss: TypeAlias = Callable[[PairLogProbs, LossConfig], Tensor]
"""float32 [B], one value a pair, unweighted."""


# ---------------------------------------------------------------------------------------------------------------------
# pairs
# ---------------------------------------------------------------------------------------------------------------------


def dpo(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """-log sigma(beta (Delta_w - Delta_l)), the mean over the rejected (arXiv 2305.18290, equation 7)."""
    return _mean(-logsigmoid(_margins(pairs, config)), pairs.is_real)


def conservative_dpo(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """(1 - e) l(d) + e l(-d), l(d) = -log sigma(d), d the margin: DPO with smoothed labels."""
    margins, flips = _margins(pairs, config), _flip_rate(pairs, config)
    return _mean(-(1 - flips) * logsigmoid(margins) - flips * logsigmoid(-margins), pairs.is_real)


def robust_dpo(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """((1 - e) l(d) - e l(-d)) / (1 - 2 e): its mean under flips of rate e is DPO on true labels (arXiv 2403.00409).

    Raises:
        ValueError: a flip rate of 0.5 or more, at which a pair says nothing.
    """
    margins, flips = _margins(pairs, config), _flip_rate(pairs, config)
    if bool((flips >= 0.5).any()):
        raise ValueError("pairs: flip_rate must be below 0.5 for the robust loss; drop pairs that say nothing")
    unbiased = (-(1 - flips) * logsigmoid(margins) + flips * logsigmoid(-margins)) / (1 - 2 * flips)
    return _mean(unbiased, pairs.is_real)


def cream(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """C l(w, l) + (1 - C) l(l, w), with 1 - C as the pairs' flip rate (CREAM, arXiv 2410.12735).

    Raises:
        ValueError: the pairs bring no consistency.
    """
    _required(pairs, "cream", "flip_rate")
    return conservative_dpo(pairs, config)


def ipo(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """(Delta_w - Delta_l - 1 / (2 beta))^2 (arXiv 2310.12036); Deltas are per token where lengths are given."""
    chosen, rejected = pairs.chosen_delta, pairs.rejected_delta
    if pairs.chosen_length is not None:
        chosen, rejected = _per_token(pairs, "ipo", chosen, rejected)
    return _mean((chosen.unsqueeze(1) - rejected - 1 / (2 * config.beta)).square(), pairs.is_real)


def length_normalised_dpo(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """-log sigma(beta (Delta_w / |w| - Delta_l / |l|)) (arXiv 2407.15229); for texts, whose lengths differ.

    Raises:
        ValueError: the pairs bring no lengths.
    """
    chosen, rejected = _per_token(pairs, "ln_dpo", pairs.chosen_delta, pairs.rejected_delta)
    return _mean(-logsigmoid(config.beta * (chosen.unsqueeze(1) - rejected)), pairs.is_real)


# ---------------------------------------------------------------------------------------------------------------------
# lists
# ---------------------------------------------------------------------------------------------------------------------


def softmax_dpo(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """log(1 + sum_l exp(beta (Delta_l - Delta_w))): one winner among all (S-DPO, arXiv 2406.09215).

    The gradient weighs each rejected answer by its share of the softmax: hard ones count most. With one rejected answer
    it is DPO.
    """
    rivals = (-_margins(pairs, config)).masked_fill(~pairs.is_real, -torch.inf)
    itself = torch.zeros_like(pairs.chosen).unsqueeze(1)
    return torch.cat([itself, rivals], dim=1).logsumexp(1)


def lipo_lambda(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """LiPO-lambda (arXiv 2402.01878): logistic losses of all ordered pairs of a list, weighed as NDCG would.

    With s = beta Delta, grade psi, and tau the place of an answer by s (1 = first; no gradient flows through it), the
    weight of psi_i > psi_j is |2^psi_i - 2^psi_j| |1/log(1 + tau_i) - 1/log(1 + tau_j)|.

    Raises:
        ValueError: the pairs bring no grades.
    """
    scores, grades, real = _as_list(pairs, "lipo", pairs.chosen_delta, pairs.rejected_delta)
    scores = config.beta * scores
    ahead = (scores.unsqueeze(1) > scores.unsqueeze(2)) & real.unsqueeze(1)
    # Ties in the order of the list, so that a place belongs to one answer only.
    order = torch.arange(scores.shape[1], device=scores.device)
    tied = (scores.unsqueeze(1) == scores.unsqueeze(2)) & real.unsqueeze(1) & (order.unsqueeze(0) < order.unsqueeze(1))
    places = 1 + (ahead | tied).sum(2)
    discounts = 1 / torch.log1p(places.to(scores))
    gains = torch.exp2(grades)
    better = (grades.unsqueeze(2) > grades.unsqueeze(1)) & real.unsqueeze(2) & real.unsqueeze(1)
    weights = (gains.unsqueeze(2) - gains.unsqueeze(1)).abs() * (discounts.unsqueeze(2) - discounts.unsqueeze(1)).abs()
    losses = -logsigmoid(scores.unsqueeze(2) - scores.unsqueeze(1))
    return torch.where(better, weights * losses, 0.0).sum((1, 2))


def preference_ranking(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """PRO (arXiv 2306.17492): each answer against all worse ones, sharper the further their grades lie apart.

    For answers by falling grade r with mean log-probability a token p, T_ki = r_k - r_i and T_kk = max_i T_ki: the sum
    over k of log(exp(p_k T_kk) + sum_(i worse than k) exp(p_i T_ki)) - p_k T_kk. It has no reference: stop early.

    Raises:
        ValueError: the pairs bring no grades.
    """
    del config
    chosen, rejected = pairs.chosen, torch.where(pairs.is_real, pairs.rejected, 0.0)
    if pairs.chosen_length is not None:
        chosen, rejected = _per_token(pairs, "pro", chosen, rejected)
    means, grades, real = _as_list(pairs, "pro", chosen, rejected)
    gaps = grades.unsqueeze(2) - grades.unsqueeze(1)
    worse = (gaps > 0) & real.unsqueeze(2) & real.unsqueeze(1)
    own = means * gaps.masked_fill(~worse, 0.0).amax(2)
    others = (means.unsqueeze(1) * gaps).masked_fill(~worse, -torch.inf)
    terms = torch.cat([own.unsqueeze(2), others], dim=2).logsumexp(2) - own
    return terms.sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# good and bad answers
# ---------------------------------------------------------------------------------------------------------------------


def kto(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """w (1 - v), v = sigma(beta (Delta - z)) of good and sigma(beta (z - Delta)) of bad answers (arXiv 2402.01306).

    z is the mean Delta of mismatched prompts and answers of the batch, at least 0 and without gradient: it estimates
    how far the policy is from the reference, and needs batches of some size. A pair's value is the mean of its answers.

    Raises:
        ValueError: the pairs bring no mismatched answers.
    """
    policy, reference = _required(pairs, "kto", "mismatched"), _required(pairs, "kto", "reference_mismatched")
    baseline = (policy - reference).mean().clamp(min=0).detach()
    good = config.desirable_weight * (1 - torch.sigmoid(config.beta * (pairs.chosen_delta - baseline)))
    bad = config.undesirable_weight * (1 - torch.sigmoid(config.beta * (baseline - pairs.rejected_delta)))
    return _mean_of_answers(good, bad, pairs.is_real)


def bco(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """-log sigma(r - d) of good and -log sigma(-(r - d)) of bad answers, r = beta Delta (arXiv 2404.04656).

    d is the running mean of all implicit rewards. A pair's value is the mean over its answers.
    """
    good, bad = config.beta * pairs.chosen_delta, config.beta * pairs.rejected_delta
    shift = pairs.shift
    if shift is None:
        shift = mean_reward(pairs, config.beta)
    losses = -logsigmoid(-(bad - shift))
    if pairs.rejected_weights is not None:
        losses = losses * pairs.rejected_weights
    return _mean_of_answers(-logsigmoid(good - shift), losses, pairs.is_real)


def mean_reward(pairs: PairLogProbs, beta: float) -> Tensor:
    """Scalar without gradient: the mean of the implicit rewards of all answers, chosen and rejected alike."""
    total = pairs.chosen_delta.sum() + pairs.rejected_delta.sum()
    return (beta * total / (len(pairs.chosen) + pairs.is_real.sum())).detach()


# ---------------------------------------------------------------------------------------------------------------------
# the whole loss
# ---------------------------------------------------------------------------------------------------------------------

LOSSES: Mapping[str, Loss] = {
    "dpo": dpo,
    "cdpo": conservative_dpo,
    "robust": robust_dpo,
    "ipo": ipo,
    "sdpo": softmax_dpo,
    "ln_dpo": length_normalised_dpo,
    "lipo": lipo_lambda,
    "pro": preference_ranking,
    "kto": kto,
    "bco": bco,
    "cream": cream,
}
"""The losses by the names that configurations use."""


def loss_named(name: str) -> Loss:
    """The loss of a name. Raises ConfigError, with the names that there are, for another one."""
    if name not in LOSSES:
        raise ConfigError(f"loss.name must be one of {', '.join(map(repr, LOSSES))}, got {name!r}")
    return LOSSES[name]


def preference_loss(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """Scalar: the configured loss with its anchor, the mean over pairs by their weights.

    Raises:
        ValueError: the loss needs something that the pairs do not bring, or all weights are 0.
    """
    losses = loss_named(config.name)(pairs, config)
    if config.sft_weight > 0:
        anchor = -config.sft_weight * pairs.chosen
        if pairs.chosen_length is not None:
            anchor = anchor / pairs.chosen_length
        losses = losses + (anchor * pairs.is_real.sum(1).square() if config.name == "pro" else anchor)
    weights = torch.ones_like(losses) if pairs.weights is None else pairs.weights
    if config.margin_scale > 0:
        chosen, rejected = (
            _required(pairs, "margin_scale", "chosen_grade"),
            _required(pairs, "margin_scale", "rejected_grade"),
        )
        gaps = _mean(chosen.unsqueeze(1) - rejected, pairs.is_real)
        weights = weights * margin_weights(gaps, config.margin_scale)
    total = weights.sum()
    if not bool(total > 0):
        raise ValueError("pairs: weights are all 0; leave such batches out")
    return (weights * losses).sum() / total


def margin_weights(margins: Tensor, scale: float) -> Tensor:
    """1 + scale (1 - exp(-m)) for margins m of a reward, at least 0 (MM-RLHF, arXiv 2502.10391)."""
    return 1 + scale * (1 - torch.exp(-margins.clamp(min=0)))


def objective_heads_loss(heads: Sequence[PairLogProbs], objectives: Tensor, config: LossConfig) -> Tensor:
    """Scalar: the mean over objectives of the loss of each one's own head on its own pairs (MAH-DPO).

    Args:
        heads: for each objective what its head says of B pairs; those about other objectives are not read.
        objectives: int64 [B], the objective that each pair is about. Those that no pair is about are left out.
        config: the loss of every head.

    Raises:
        ValueError: no pair, or an objective without a head.
    """
    if len(objectives) == 0 or not bool(((objectives >= 0) & (objectives < len(heads))).all()):
        raise ValueError(f"objectives must be in 0..{len(heads) - 1}, one a pair, got {objectives.tolist()}")
    present = [number for number in range(len(heads)) if bool((objectives == number).any())]
    losses = [preference_loss(select_pairs(heads[number], objectives == number), config) for number in present]
    return torch.stack(losses).mean()


def select_pairs(pairs: PairLogProbs, rows: Tensor) -> PairLogProbs:
    """The pairs at `rows` (int64 or bool [B])."""
    fields = {name: getattr(pairs, name) for name in (*_PER_PAIR, *_PER_REJECTED, "mask")}
    return replace(pairs, **{name: values[rows] for name, values in fields.items() if values is not None})


def regret_preference(first: Tensor, second: Tensor) -> Tensor:
    """P(first preferred) = sigma(regret of second - regret of first) (arXiv 2206.02231): soft labels."""
    return torch.sigmoid(second - first)


def pair_metrics(pairs: PairLogProbs, beta: float) -> dict[str, float]:
    """What to watch while tuning on pairs; log-probabilities in nats, means over pairs.

    Returns:
        `chosen_logp` and `rejected_logp` (both may fall, and neither should fall far); `margin`, the mean of beta
        (Delta_w - Delta_l); `accuracy`, the share of rejected answers with a smaller implicit reward than the chosen;
        `chosen_drift`, the mean of Delta_w: under -1 the chosen answers are being lost.
    """
    real = pairs.is_real
    margins = beta * (pairs.chosen_delta.unsqueeze(1) - pairs.rejected_delta)
    return {
        "chosen_logp": pairs.chosen.mean().item(),
        "rejected_logp": _mean(torch.where(real, pairs.rejected, 0.0), real).mean().item(),
        "margin": _mean(margins, real).mean().item(),
        "accuracy": _mean((margins > 0).to(margins), real).mean().item(),
        "chosen_drift": pairs.chosen_delta.mean().item(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# shared parts
# ---------------------------------------------------------------------------------------------------------------------


def _margins(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """float [B, R]: beta (Delta_w - Delta_l)."""
    return config.beta * (pairs.chosen_delta.unsqueeze(1) - pairs.rejected_delta)


def _mean(values: Tensor, real: Tensor) -> Tensor:
    """float [B]: the mean of [B, R] over the answers that there are."""
    return torch.where(real, values, 0.0).sum(1) / real.sum(1)


def _mean_of_answers(good: Tensor, bad: Tensor, real: Tensor) -> Tensor:
    """float [B]: the mean over the chosen answer [B] and the rejected ones [B, R]."""
    return (good + torch.where(real, bad, 0.0).sum(1)) / (1 + real.sum(1))


def _flip_rate(pairs: PairLogProbs, config: LossConfig) -> Tensor:
    """float [B, 1]."""
    if pairs.flip_rate is None:
        return torch.full_like(pairs.chosen, config.flip_rate).unsqueeze(1)
    return pairs.flip_rate.to(pairs.chosen).unsqueeze(1)


def _per_token(pairs: PairLogProbs, user: str, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    chosen_length = _required(pairs, user, "chosen_length")
    rejected_length = _required(pairs, user, "rejected_length")
    return chosen / chosen_length, rejected / torch.where(pairs.is_real, rejected_length, 1)


def _as_list(pairs: PairLogProbs, user: str, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, grades and whether there is an answer, each [B, 1 + R], the chosen one first."""
    chosen_grade = _required(pairs, user, "chosen_grade")
    rejected_grade = torch.where(pairs.is_real, _required(pairs, user, "rejected_grade"), 0.0)
    itself = torch.ones_like(pairs.is_real[:, :1])
    return (
        torch.cat([chosen.unsqueeze(1), rejected], dim=1),
        torch.cat([chosen_grade.unsqueeze(1), rejected_grade], dim=1).to(chosen),
        torch.cat([itself, pairs.is_real], dim=1),
    )


def _required(pairs: PairLogProbs, user: str, name: str) -> Tensor:
    values: Tensor | None = getattr(pairs, name)
    if values is None:
        raise ValueError(f"pairs: {name} is needed by {user} but not given")
    return values
