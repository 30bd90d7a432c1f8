"""Profiles of one user against each other, by how much each helps to predict what the user did next.

LettinGo (arXiv 2506.18309) pairs profiles by one right or wrong prediction; here a profile's utility is the mean gain
in log-likelihood of held-out items that it brings, which one noisy outcome does not decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from recsys.alignment.pairs import PreferencePair, PreferencePairs


@dataclass(frozen=True, kw_only=True)
class ProfileCandidate:
    """One profile that a generator wrote of a user."""

    user_id: str
    """The source's own id."""
    prompt: str
    """What the generator was asked; the same for all candidates of a user."""
    text: str
    """The profile."""
    utility: float
    """Mean gain in log-likelihood (nats) of the user's held-out items over a prediction without a profile."""
    num_tokens: int
    """Length of the profile."""
    is_faithful: bool
    """Every attribute and brand that it names occurs in the user's own history."""


def profile_pairs(
    candidates: Iterable[ProfileCandidate],
    *,
    created_by: str,
    min_gap: float = 0.05,
    gap_in_deviations: float = 0.5,
    max_pairs_per_user: int = 4,
    length_penalty: float = 0.0,
    free_tokens: int = 200,
) -> PreferencePairs:
    """The pairs of each user's profiles that lie furthest apart in utility.

    A profile's worth is utility - length_penalty * max(0, tokens - free_tokens) / free_tokens: without the penalty,
    tuning makes profiles longer. Two profiles make a pair if their worths differ by more than
    max(gap_in_deviations * standard deviation of the user's worths, min_gap) and the better one is faithful.

    Args:
        candidates: profiles of any number of users.
        created_by: the generators and the recommender that judged.
        min_gap: smallest difference (nats).
        gap_in_deviations: the same in standard deviations of a user's profiles.
        max_pairs_per_user: the pairs with the largest differences are kept.
        length_penalty: nats for `free_tokens` tokens too many.
        free_tokens: tokens that cost nothing.
    """
    by_user: dict[str, list[ProfileCandidate]] = {}
    for candidate in candidates:
        by_user.setdefault(candidate.user_id, []).append(candidate)
    rows = []
    for user, profiles in by_user.items():
        worth = [
            profile.utility - length_penalty * max(0, profile.num_tokens - free_tokens) / free_tokens
            for profile in profiles
        ]
        least = max(gap_in_deviations * float(np.std(worth)), min_gap)
        gaps = []
        for pair in combinations(range(len(profiles)), 2):
            better, worse = sorted(pair, key=lambda number: -worth[number])
            gap = worth[better] - worth[worse]
            if gap > least and profiles[better].is_faithful and profiles[better].text != profiles[worse].text:
                gaps.append((-gap, better, worse))
        for _, better, worse in sorted(gaps)[:max_pairs_per_user]:
            rows.append(
                PreferencePair(
                    pair_id=f"profile-{user}-{better}-{worse}",
                    user_id=user,
                    source="profile_utility",
                    created_by=created_by,
                    prompt_text=profiles[better].prompt,
                    chosen_text=profiles[better].text,
                    rejected_texts=[profiles[worse].text],
                    chosen_score=worth[better],
                    rejected_scores=[worth[worse]],
                    text_len=profiles[better].num_tokens,
                )
            )
    return PreferencePairs.from_rows(rows)
