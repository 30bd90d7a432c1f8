"""A user's own history against a perturbed one, for the same next item: pairs that cost no feedback.

What TPO does with matched and mismatched prompts of images, for histories: the item must be likelier after the history
that it followed than after one that it did not. It teaches the model to read histories, not to prefer popular items, as
both answers are the same item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.data.sequences import Examples, IntArray


def perturbed_pairs(
    cases: Examples,
    user_ids: Sequence[str],
    *,
    items: IntArray,
    kind: Literal["replace", "swap", "reverse"] = "replace",
    share: float = 0.5,
    count: int = 1,
    seed: int = 0,
) -> PreferencePairs:
    """A pair a case, with `count` perturbed histories; cases whose history no perturbation changes are left out.

    Args:
        cases: histories and next items, of training.
        user_ids: the source's ids of users, by dense index.
        items: int64 [M], ascending: what takes the place of others; all items of the histories are among them.
        kind: `replace`: a share of the items by random ones; `swap`: another case's history; `reverse`: oldest last.
        share: of items that are replaced, at least one; 0 to 1.
        count: perturbed histories a pair, for `replace` and `swap`.
        seed: of all that is random.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    random = np.random.default_rng(seed)
    rows = []
    for number, history in enumerate(cases.histories):
        attempts = 1 if kind == "reverse" else count
        perturbed = [_perturb(cases, number, kind, share, items, random) for _ in range(attempts)]
        different = [other.tolist() for other in perturbed if not np.array_equal(other, history)]
        if not different:
            continue
        target = int(cases.targets[number])
        user = user_ids[int(cases.histories.users[number])]
        rows.append(
            PreferencePair(
                pair_id=f"history-{user}-{number}",
                user_id=user,
                source="perturbed_history",
                created_by=kind,
                prompt_items=history.tolist(),
                chosen_item=target,
                rejected_items=[target] * len(different),
                rejected_prompts=different,
            )
        )
    return PreferencePairs.from_rows(rows)


def _perturb(
    cases: Examples, number: int, kind: str, share: float, items: IntArray, random: np.random.Generator
) -> IntArray:
    history = cases.histories[number]
    if kind == "reverse":
        return history[::-1]
    if kind == "swap":
        other = int(random.integers(len(cases) - 1)) if len(cases) > 1 else number
        return cases.histories[other + (other >= number) if len(cases) > 1 else number]
    if len(history) == 0:
        return history
    replaced = history.copy()
    places = random.choice(len(history), max(1, round(share * len(history))), replace=False)
    # Each by one of the other items.
    shifted = np.searchsorted(items, history[places]) + random.integers(1, max(2, len(items)), len(places))
    replaced[places] = items[shifted % len(items)]
    return replaced
