"""Clicks against skips of the same slate.

Only what was looked at can have been turned down: skipped slots above a click, and the one right below it (skip-above
and skip-next of Joachims et al., SIGIR 2005). Clicks far down are rarer than they should be, so a pair weighs
1 / P(its click's slot was looked at), which makes clicks count as if all slots were looked at.
"""

from __future__ import annotations

from collections.abc import Iterable

from recsys.alignment.builders.slates import ObservedSlate
from recsys.alignment.pairs import PreferencePair, PreferencePairs


def click_skip_pairs(slates: Iterable[ObservedSlate], *, max_weight: float = 10.0) -> PreferencePairs:
    """One pair a click (a cart or a purchase is one too) that has a skip above it or right below.

    Slates of sessions without a second page view are left out: nobody may have looked at them.

    Args:
        slates: the log.
        max_weight: weights are clipped to it, as a few slots that are hardly ever seen would drown all others.
    """
    rows = []
    for slate in slates:
        if not slate.second_page_view:
            continue
        for slot, outcome in enumerate(slate.outcomes):
            rejected = [] if outcome == "skip" else slate.skipped_near(slot)
            if not rejected:
                continue
            rows.append(
                PreferencePair(
                    pair_id=f"click-{slate.slate_id}-{slot}",
                    user_id=slate.user_id,
                    source="click_skip",
                    created_by=slate.created_by,
                    prompt_items=slate.history,
                    chosen_item=slate.items[slot],
                    rejected_items=[slate.items[place] for place in rejected],
                    weight=min(max_weight, 1 / slate.examination(slot)),
                    propensity=slate.propensity(slot),
                )
            )
    return PreferencePairs.from_rows(rows)
