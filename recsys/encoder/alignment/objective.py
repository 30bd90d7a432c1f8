"""The contrastive losses, as pure functions of embeddings. Knows no texts, no model and no sampling.

Shape legend: B users (and their positives), C >= B candidate items, of which the first B are the positives in the
order of the users, P pairs of items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(logits: Tensor, forbidden: Tensor) -> Tensor:
    """Scalar: mean over rows of the cross-entropy whose right answer in row b is column b.

    Args:
        logits: float [B, C], C >= B.
        forbidden: bool [B, C], false negatives, which leave the sum. The right answers stay whatever it says.
    """
    rows = torch.arange(len(logits), device=logits.device)
    forbidden = forbidden.clone()
    forbidden[rows, rows] = False
    return functional.cross_entropy(logits.masked_fill(forbidden, float("-inf")), rows)


def user_item_loss(
    users: Tensor,
    candidates: Tensor,
    known: Tensor,
    *,
    temperature: float,
    log_rate: Tensor | None = None,
) -> Tensor:
    """Scalar: the average of InfoNCE from users to items and from items back to users.

    EasyRec (arXiv 2408.08821) has the first direction and no mask; the second, the masks and the correction are ours
    to choose.

    Args:
        users: float [B, D], of any norm; so are the candidates. Cosines are compared.
        candidates: float [C, D]: the users' positives, then further negatives (mined ones, say).
        known: bool [B, C]: the user is known to like the candidate, or the candidate is the user's positive once
            more. No such pair counts as a negative, in either direction.
        temperature: divides the cosines.
        log_rate: float [C], log of how much more often than on average the candidate is sampled (0 for candidates that
            are not sampled by popularity). It is subtracted from the logits of the first direction: the sampled softmax
            then has the full softmax as its limit (Yi et al., RecSys 2019, eq. 4). Users are sampled evenly, so
            that the second direction needs none.
    """
    logits = cosines(users, candidates) / temperature
    to_users = logits[:, : len(users)].T
    to_items = logits if log_rate is None else logits - log_rate
    return 0.5 * (info_nce(to_items, known) + info_nce(to_users, known[:, : len(users)].T))


def item_item_loss(
    left: Tensor,
    right: Tensor,
    known: Tensor,
    *,
    temperature: float,
    log_rates: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Scalar: symmetric InfoNCE over pairs of items that were consumed together.

    Args:
        left: float [P, D]; pair p is `left[p]` with `right[p]`.
        right: float [P, D].
        known: bool [P, P]: left p and right q are the same item or were consumed together, too.
        temperature: divides the cosines.
        log_rates: of left and of right items, float [P] each; see `user_item_loss`.
    """
    logits = cosines(left, right) / temperature
    forward, backward = logits, logits.T
    if log_rates is not None:
        forward, backward = forward - log_rates[1], backward - log_rates[0]
    return 0.5 * (info_nce(forward, known) + info_nce(backward, known.T))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """float [A, B] of float [A, D] and [B, D]; 0 for a zero row."""
    return functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T
