"""Fitting the ranker on validation cases, and how well calibrated it is on users that it was not fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.data.sequences import Examples, IntArray
from recsys.errors import DataError
from recsys.retrieval.config import FusionConfig
from recsys.retrieval.features import Candidates
from recsys.retrieval.pool import Pool
from recsys.retrieval.ranker import ConditionalLogit, calibration_error, fit_logit, log_loss
from recsys.retrieval.sources import BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class RankerFit:
    """A ranker and how it was chosen."""

    ranker: ConditionalLogit
    """Fitted on all validation cases."""
    report: dict[str, Any]
    """JSON-able: of each penalty the held-out log-loss; of the chosen one the calibration on held-out users, before
    they were added to the fit."""


def fit_ranker(pool: Pool, cases: Examples, config: FusionConfig, *, mask_seen: bool) -> RankerFit:
    """Fit on validation cases, which the sources were not fitted on: a part of the users chooses the penalty.

    Raises:
        DataError: fewer than 2 users have a validation case.
    """
    candidates, chosen = pool.of_cases(cases, mask_seen=mask_seen)
    users = np.unique(cases.histories.users)
    if len(users) < 2:
        raise DataError(f"fusion needs validation cases of at least 2 users, found {len(users)}; set fusion to null")
    count = max(1, min(len(users) - 1, round(config.held_out_users * len(users))))
    held_out_users = np.random.default_rng(config.seed).permutation(users)[:count]
    held_out = np.isin(cases.histories.users, held_out_users)
    fit_part, fit_chosen = _part(candidates, chosen, ~held_out)
    part, part_chosen = _part(candidates, chosen, held_out)
    losses: dict[float, float] = {}
    rankers: dict[float, ConditionalLogit] = {}
    ranker: ConditionalLogit | None = None
    # From strong to weak: each begins where the last one ended.
    for penalty in reversed(config.penalties):
        ranker = fit_logit(fit_part, fit_chosen, pool.names, penalty=penalty, start=ranker)
        rankers[penalty] = ranker
        losses[penalty] = log_loss(ranker.log_probabilities(part), part, part_chosen)
    best = min(losses, key=lambda penalty: (losses[penalty], -penalty))
    log_probabilities = rankers[best].log_probabilities(part)
    report = {
        "cases": len(cases),
        "held_out_cases": len(part),
        "coverage": float((chosen >= 0).mean()),
        "candidates_per_case": len(candidates.items) / len(candidates),
        "penalty": best,
        "held_out_log_loss": {str(penalty): losses[penalty] for penalty in config.penalties},
        "held_out_calibration_error": calibration_error(log_probabilities, part_chosen),
    }
    return RankerFit(ranker=fit_logit(candidates, chosen, pool.names, penalty=best, start=rankers[best]), report=report)


def _part(candidates: Candidates, chosen: IntArray, mask: BoolArray) -> tuple[Candidates, IntArray]:
    """The cases where `mask` (bool [B]) holds."""
    rows = np.flatnonzero(mask)
    part = candidates.select(rows)
    return part, np.where(chosen[rows] >= 0, chosen[rows] - candidates.offsets[rows] + part.offsets[:-1], -1)
