"""On-policy hard negatives: what the model itself would have recommended instead of what the user took.

Random negatives are soon all far below the chosen item and teach nothing more; the best wrong items of the current
policy are where it errs. They are to be made again from the policy as it becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.alignment.pairs import PreferencePair, PreferencePairs
from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.errors import DataError
from recsys.generator.constraints import Constraints
from recsys.generator.recommender import GenerativeRecommender


@dataclass(frozen=True, kw_only=True, eq=False)
class BeamNegatives:
    """The best wrong items of a policy for each of P cases."""

    items: IntArray
    """int64 [P, R]: best first; -1 where the search found fewer."""
    scores: npt.NDArray[np.float32]
    """float32 [P, R]: their log-probabilities under that policy; -inf beside -1."""
    first_share: float
    """Share of the cases whose chosen item is the policy's first already. Above 0.6 little is left to learn from such
    pairs, and tuning should stop."""


def beam_negatives(
    recommender: GenerativeRecommender,
    histories: Sequences,
    chosen: IntArray,
    *,
    count: int,
    beams: int,
    mask_seen: bool = False,
    batch_size: int = 256,
) -> BeamNegatives:
    """The `count` best items of each history's search that are not the chosen one.

    Args:
        recommender: the policy as it stands.
        histories: P histories.
        chosen: int64 [P], what was taken after them.
        count: R.
        beams: width of the search; at least `count + 1` are used.
        mask_seen: leave out items of the history, where the served lists do so too.
        batch_size: histories searched at a time.
    """
    if len(chosen) == 0:
        empty = np.zeros((0, count))
        return BeamNegatives(items=empty.astype(np.int64), scores=empty.astype(np.float32), first_share=0.0)
    learned = recommender.model.learned.cpu().numpy()
    constraints = Constraints(
        # What the model never saw must not be pushed down before it was ever up.
        allow=None if learned.all() else learned,
        deny=list(histories) if mask_seen else None,
    )
    found = recommender.recommend(
        histories, count + 1, constraints=constraints, beams=max(beams, count + 1), batch_size=batch_size
    )
    is_chosen = found.items == chosen[:, None]
    # What stays comes first, in its order; a list without the chosen item loses its last.
    order = np.argsort(is_chosen, axis=1, kind="stable")[:, :count]
    items, scores = np.take_along_axis(found.items, order, 1), np.take_along_axis(found.scores, order, 1)
    wrong = np.take_along_axis(is_chosen, order, 1)
    return BeamNegatives(
        items=np.where(wrong, -1, items),
        scores=np.where(wrong, -np.inf, scores).astype(np.float32),
        first_share=float(is_chosen[:, 0].mean()),
    )


def beam_pairs(
    recommender: GenerativeRecommender,
    cases: Examples,
    user_ids: Sequence[str],
    *,
    count: int,
    beams: int,
    mask_seen: bool = False,
    created_by: str,
) -> PreferencePairs:
    """Pairs of what users took and the policy's best wrong items, for cases of training.

    Args:
        recommender: the policy.
        cases: histories and what was taken after them. Validation and test cases must not be among them.
        user_ids: the source's ids of users, by dense index.
        count: rejected items a pair; fewer where the catalogue is small.
        beams: width of the search.
        mask_seen: see `beam_negatives`.
        created_by: the model and its checkpoint.

    Raises:
        DataError: a case has no wrong item, in a catalogue of one item.
    """
    found = beam_negatives(recommender, cases.histories, cases.targets, count=count, beams=beams, mask_seen=mask_seen)
    if len(cases) and not (found.items[:, 0] >= 0).all():
        raise DataError("beam pairs: the search found no item beside the chosen one; the catalogue is too small")
    rows = []
    for number, history in enumerate(cases.histories):
        user = user_ids[int(cases.histories.users[number])]
        rows.append(
            PreferencePair(
                pair_id=f"beam-{user}-{number}",
                user_id=user,
                source="beam",
                created_by=created_by,
                prompt_items=history.tolist(),
                chosen_item=int(cases.targets[number]),
                rejected_items=[item for item in found.items[number].tolist() if item >= 0],
            )
        )
    return PreferencePairs.from_rows(rows)
