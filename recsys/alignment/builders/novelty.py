"""Pairs about novelty: of several items that the model finds good, the one that fewer people have met is the better.

They say nothing of what the user took. For a head of its own (MAH-DPO, `depth.DepthHeads`), which the weights of a
request then mix with the one for accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recsys.alignment.builders.scored import Question, scored_pairs
from recsys.alignment.pairs import OBJECTIVES, PreferencePairs
from recsys.data.sequences import Examples, IntArray
from recsys.generator.constraints import Constraints
from recsys.generator.recommender import GenerativeRecommender


def novelty_pairs(
    recommender: GenerativeRecommender,
    cases: Examples,
    user_ids: Sequence[str],
    *,
    popularity: IntArray,
    candidates: int,
    min_ratio: float,
    max_rejected: int,
    beams: int,
    mask_seen: bool = False,
    created_by: str,
) -> PreferencePairs:
    """One pair a case: the rarest of the model's best items against those that are `min_ratio` times as popular.

    Scores are -log(1 + interactions), so that differences are log-ratios of popularity. Cases whose best items are
    alike in popularity give no pair.

    Args:
        recommender: says which items are good.
        cases: histories of training; what was taken after them is not read.
        user_ids: the source's ids of users, by dense index.
        popularity: int64 [N], training interactions of each item.
        candidates: how many of the model's best items are good.
        min_ratio: above 1.
        max_rejected: rejected items a pair, the least popular of them first.
        beams: width of the search, at least `candidates` are used.
        mask_seen: leave out items of the history, where the served lists do so too.
        created_by: the model and its checkpoint.

    Raises:
        ValueError: a ratio that is not above 1.
    """
    if min_ratio <= 1:
        raise ValueError(f"min_ratio must be above 1, got {min_ratio}: equal popularity says nothing")
    learned = recommender.model.learned.cpu().numpy()
    constraints = Constraints(
        allow=None if learned.all() else learned, deny=list(cases.histories) if mask_seen else None
    )
    found = recommender.recommend(
        cases.histories, candidates, constraints=constraints, beams=max(beams, candidates), batch_size=256
    )
    users = [user_ids[int(user)] for user in cases.histories.users]
    questions = [
        Question(
            question_id=f"{user}-{number}",
            user_id=user,
            prompt_items=history.tolist(),
            items=[item for item in items if item >= 0],
        )
        for number, (user, history, items) in enumerate(zip(users, cases.histories, found.items.tolist(), strict=True))
    ]
    rarity = -np.log1p(popularity)
    pairs = scored_pairs(
        questions,
        lambda asked: [rarity[list(question.items)].tolist() for question in asked],
        source="novelty",
        created_by=created_by,
        min_gap=math.log(min_ratio),
        max_rejected=max_rejected,
    )
    about = OBJECTIVES.index("novelty")
    return PreferencePairs.from_rows(replace(pair, objective_id=about) for pair in pairs)
