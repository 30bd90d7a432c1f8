"""Graded lists out of slates with several kinds of feedback: buy over cart over click over skip. For LiPO and PRO."""

from __future__ import annotations

from collections.abc import Iterable

from recsys.alignment.builders.slates import GRADES, ObservedSlate
from recsys.alignment.pairs import PreferencePair, PreferencePairs


def feedback_pairs(slates: Iterable[ObservedSlate], *, max_weight: float = 10.0) -> PreferencePairs:
    """A list a slate: its best item, and all that got weaker feedback, each with its grade.

    Skips count where they were looked at: above the lowest feedback, or right below it. Where several items share the
    best grade, each has a list, and they share the slate's weight. Slates of sessions without a second page view, and
    those without two grades, are left out.

    Args:
        slates: the log.
        max_weight: bound of the weight 1 / P(the best item's slot was looked at).
    """
    rows = []
    for slate in slates:
        touched = [slot for slot, outcome in enumerate(slate.outcomes) if outcome != "skip"]
        if not slate.second_page_view or not touched:
            continue
        grades = {slot: GRADES[slate.outcomes[slot]] for slot in touched}
        grades |= dict.fromkeys(slate.skipped_near(max(touched)), GRADES["skip"])
        best = [slot for slot in touched if grades[slot] == max(grades.values())]
        rejected = sorted((slot for slot in grades if slot not in best), key=lambda slot: (-grades[slot], slot))
        if not rejected:
            continue
        for slot in best:
            rows.append(
                PreferencePair(
                    pair_id=f"feedback-{slate.slate_id}-{slot}",
                    user_id=slate.user_id,
                    source="feedback",
                    created_by=slate.created_by,
                    prompt_items=slate.history,
                    chosen_item=slate.items[slot],
                    rejected_items=[slate.items[place] for place in rejected],
                    chosen_score=grades[slot],
                    rejected_scores=[grades[place] for place in rejected],
                    weight=min(max_weight, 1 / slate.examination(slot)) / len(best),
                    propensity=slate.propensity(slot),
                )
            )
    return PreferencePairs.from_rows(rows)
