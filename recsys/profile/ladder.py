"""Profiles compared under one frozen recommender: none, another user's, by rule, generated, tuned. Knows no writers.

Every arm answers the same cases, so differences are paired; intervals resample users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from recsys.evaluation.bootstrap import UserBootstrap
from recsys.evaluation.metrics import CaseMetric
from recsys.profile.cases import Case
from recsys.profile.profile import Profile
from recsys.profile.utility import Judge, LengthConfig, Scored, score
from recsys.progress import progress_bar

NONE, OTHER = "none", "other_user"
"""The arm without a profile, and the control: a profile that is not the user's."""
RESAMPLES, CONFIDENCE = 2000, 0.95


def compare(
    judge: Judge,
    cases: Sequence[Case],
    arms: Mapping[str, Sequence[Profile]],
    *,
    control: str,
    length: LengthConfig,
    seed: int,
) -> dict[str, Any]:
    """The report of all arms.

    Args:
        judge: the frozen recommender.
        cases: one a user, two at least.
        arms: profiles by name, one a case.
        control: the arm whose profiles are given to the next user, as the control.
        length: what length costs.
        seed: of the resampling.

    Raises:
        ValueError: an arm does not have a profile a case, or there are fewer than two cases.
    """
    if len(cases) < 2 or any(len(profiles) != len(cases) for profiles in arms.values()):
        sizes = ", ".join(f"{name} {len(profiles)}" for name, profiles in arms.items())
        raise ValueError(f"arms must have one profile for each of at least 2 cases, got {len(cases)} cases and {sizes}")
    own = arms[control]
    ladder: dict[str, Sequence[Profile]] = {
        NONE: [Profile()] * len(cases),
        OTHER: [*own[1:], own[0]],
        **arms,
    }
    return _report(judged(judge, cases, ladder, length), seed)


def judged(
    judge: Judge, cases: Sequence[Case], arms: Mapping[str, Sequence[Profile]], length: LengthConfig
) -> dict[str, list[Scored]]:
    """What the profiles of each arm, one a case, are worth."""
    scored: dict[str, list[Scored]] = {name: [] for name in arms}
    with progress_bar("judging profiles", len(cases)) as advance:
        for row, case in enumerate(cases):
            profiles = [chosen[row] for chosen in arms.values()]
            results = score(
                judge, case, [each.text for each in profiles], [each.is_faithful for each in profiles], length
            )
            for name, result in zip(arms, results, strict=True):
                scored[name].append(result)
            advance(1, "")
    return scored


def _report(scored: Mapping[str, Sequence[Scored]], seed: int) -> dict[str, Any]:
    users = np.array([each.user for each in scored[NONE]], dtype=np.int64)
    bootstrap = UserBootstrap(users, n_resamples=RESAMPLES, seed=seed, confidence=CONFIDENCE)
    before = CaseMetric.mean_of([each.ndcg for each in scored[NONE]])
    table = {}
    for name, results in scored.items():
        utility, ndcg = (
            CaseMetric.mean_of([each.utility for each in results]),
            CaseMetric.mean_of([each.ndcg for each in results]),
        )
        of_utility, of_ndcg = bootstrap.intervals([utility, ndcg])
        (gain,) = bootstrap.differences([(ndcg, before)])
        table[name] = {
            "utility": asdict(of_utility),
            "ndcg@10": asdict(of_ndcg),
            "ndcg@10_minus_none": asdict(gain),
            "tokens": float(np.mean([each.tokens for each in results])),
            "unfaithful": float(np.mean([not each.is_faithful for each in results])),
            "distinct_2": distinct_2([each.text for each in results]),
        }
    return {"users": len(users), "confidence": CONFIDENCE, "resamples": RESAMPLES, "arms": table}


def distinct_2(texts: Sequence[str]) -> float:
    """Share of the pairs of neighbouring words over all texts that are different ones; 0 without any."""
    pairs = [pair for text in texts for pair in pairwise(text.casefold().split())]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
