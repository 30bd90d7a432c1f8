"""Several rewards as one number a proposal, with every term kept for the log.

The total is the sum of weight * u over the terms; u is the reward itself, or, of a `log_sigmoid` term, log sigmoid of
how far it stands above the level of the reference policy (Wang et al. 2024, arXiv 2402.00742: a sum of those is a
soft AND, because no term that is good already can pay for one that is bad):

    u = log sigmoid((r - level(history)) / scale)

`level` is a quantile of the reference policy's rewards for that history, or of all where it proposed too little;
`scale` the standard deviation of them all.

Shapes: B histories, G proposals each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recsys.alignment.rewards.config import RewardsConfig
from recsys.alignment.rewards.context import RewardContext
from recsys.alignment.rewards.reward import Reward, TermConfig, evaluate
from recsys.alignment.rollouts import Rollouts
from recsys.errors import RewardError

Weights = Mapping[str, float | Tensor]
"""By term: one number for all histories, or float [B], one for each."""

_FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class Level:
    """Where the reference policy stands in one term."""

    level: float
    """A quantile of its rewards over all histories."""
    scale: float
    """Their standard deviation; 1 when they do not differ."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardValues:
    """What the rewards made of one batch of rollouts."""

    total: Tensor
    """float32 [B, G], 0 where there is no proposal."""
    terms: Mapping[str, Tensor]
    """float32 [B, G] by term, as the rewards gave them: neither weighted nor transformed."""
    is_real: Tensor
    """bool [B, G]: there is a proposal."""

    def means(self) -> dict[str, float]:
        """Mean over proposals of each term, and of the `total`."""
        count = max(int(self.is_real.sum()), 1)
        return {name: float(values.sum()) / count for name, values in {**self.terms, "total": self.total}.items()}


def log_sigmoid_above(rewards: Tensor, level: Tensor | float, scale: float = 1.0) -> Tensor:
    """log sigmoid((r - level) / scale): slope sigmoid((level - r) / scale) / scale, steep below and flat above."""
    return functional.logsigmoid((rewards - level) / scale)


class Rewards:
    """The terms of a configuration over one context."""

    def __init__(self, config: RewardsConfig, context: RewardContext) -> None:
        self.config = config
        self.terms: dict[str, tuple[TermConfig, Reward]] = {
            term.term_name: (term, term.build(context)) for term in config.terms
        }
        self.levels: dict[str, Level] = {}
        """Of the `log_sigmoid` terms, once `fit_levels` was called."""

    @property
    def needs_levels(self) -> bool:
        """Whether some term is measured from the reference policy."""
        return any(term.transform == "log_sigmoid" for term, _ in self.terms.values())

    @property
    def weights(self) -> dict[str, float]:
        """The configured weights by term."""
        return {name: term.weight for name, (term, _) in self.terms.items()}

    def fit_levels(self, reference: Iterable[Rollouts]) -> None:
        """Learn the level and scale of each `log_sigmoid` term from rollouts of the reference policy.

        Raises:
            RewardError: no proposal in all of them.
        """
        seen: dict[str, list[Tensor]] = {n: [] for n, (term, _) in self.terms.items() if term.transform != "none"}
        for rollouts in reference:
            for name, values in seen.items():
                values.append(evaluate(self.terms[name][1], rollouts)[rollouts.is_real].cpu())
        for name, values in seen.items():
            # By numpy: torch takes no quantile of more than 16 million numbers.
            together = (torch.cat(values) if values else torch.zeros(0)).double().numpy()
            if len(together) == 0:
                raise RewardError(f"reward {name!r}: the reference policy proposed nothing to measure its level from")
            level, deviation = float(np.quantile(together, self.config.quantile)), float(together.std())
            self.levels[name] = Level(level=level, scale=deviation if deviation > 0 else 1.0)

    def __call__(
        self, rollouts: Rollouts, *, weights: Weights | None = None, reference: Rollouts | None = None
    ) -> RewardValues:
        """All terms, and their weighted sum.

        Args:
            rollouts: to judge.
            weights: of some or all terms, in place of the configured ones; from a request, or from the context.
            reference: the reference policy's rollouts for the same histories: levels by history.

        Raises:
            RewardError: a term is broken (see `evaluate`), a weight names no term or does not fit, or a term needs
                levels that were not fitted.
        """
        chosen: dict[str, float | Tensor] = dict(self.weights)
        for name, weight in (weights or {}).items():
            chosen[name] = self._checked_weight(name, weight, len(rollouts.items))
        terms: dict[str, Tensor] = {}
        total = torch.zeros_like(rollouts.items, dtype=torch.float32)
        for name, (term, reward) in self.terms.items():
            terms[name] = values = evaluate(reward, rollouts)
            if term.transform == "log_sigmoid":
                fitted = self.levels.get(name)
                if fitted is None:
                    raise RewardError(f"reward {name!r}: log_sigmoid needs levels; call fit_levels first")
                values = log_sigmoid_above(values, self._level(fitted, reward, reference), fitted.scale)
            weight = chosen[name]
            total = total + (weight.unsqueeze(1) if isinstance(weight, Tensor) else weight) * values
        return RewardValues(total=torch.where(rollouts.is_real, total, 0.0), terms=terms, is_real=rollouts.is_real)

    def _checked_weight(self, name: str, weight: float | Tensor, num_histories: int) -> float | Tensor:
        if name not in self.terms:
            raise RewardError(f"weights: no term is called {name!r}; there are {', '.join(map(repr, self.terms))}")
        if isinstance(weight, Tensor) and weight.shape != (num_histories,):
            raise RewardError(f"weights.{name}: shape {list(weight.shape)}; give one number for each history")
        if not bool(torch.isfinite(torch.as_tensor(weight)).all()):
            raise RewardError(f"weights.{name}: NaN or infinite")
        return weight

    def _level(self, fitted: Level, reward: Reward, reference: Rollouts | None) -> Tensor | float:
        """float32 [B, 1], or one for all."""
        if reference is None:
            return fitted.level
        values = torch.where(reference.is_real, evaluate(reward, reference), torch.nan)
        own = values.nanquantile(self.config.quantile, dim=1, keepdim=True)
        enough = reference.is_real.sum(dim=1, keepdim=True) >= _FEWEST
        return torch.where(enough, own, fitted.level)


def build_rewards(config: RewardsConfig, context: RewardContext) -> Rewards:
    """The rewards of a configuration.

    Raises:
        ConfigError: a term needs a part of the context that is missing.
    """
    return Rewards(config, context)
