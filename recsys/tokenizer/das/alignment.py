"""The contrastive views that tie quantized vectors to behaviour (MDAM of DAS, arXiv 2508.10584).

The pairs are the paper's as secondary sources report them; its formulas were not at hand, so the form of the contrast
(both directions, cosine, temperature), the projection and the masks are ours. With z_u, z_i the
sums of the chosen codes of user u and item i:

    view       anchor, positive     of
    dual_user  P_U z_u, c_i^pro     a click (u, i)
    dual_item  P_I z_i, c_u^int     a click (u, i)
    self_user  P_U z_u, c_u^int     the user of a click
    self_item  P_I z_i, c_i^pro     the item of a click
    co_user    P_U z_u, P_U z_v     two users of one item
    co_item    P_I z_i, P_I z_j     two items of one user

P_U, P_I are linear and start as the identity; behaviour vectors are free and need none, so cosines of projected users
and projected items mean something.

Shapes: B rows, d code width, h behaviour width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.tokenizer.das.config import View


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """What one view is told about its batch."""

    anchors: Tensor
    """float [B, h]."""
    positives: Tensor
    """float [B, h]."""
    known: Tensor
    """bool [B, B]: anchor b and positive c are known to belong together; off the diagonal they are no negatives."""
    anchor_log_frequency: Tensor | None = None
    """float [B]: log probability of each anchor in a batch; None = not corrected for."""
    positive_log_frequency: Tensor | None = None
    """The same of the positives."""


def info_nce(contrast: Contrast, temperature: float) -> Tensor:
    """Scalar: InfoNCE (arXiv 1807.03748) of cosines, the mean of both directions, false negatives masked."""
    unit_anchors = nn.functional.normalize(contrast.anchors, dim=1)
    unit_positives = nn.functional.normalize(contrast.positives, dim=1)
    cosine = unit_anchors @ unit_positives.T / temperature
    labels = torch.arange(len(cosine), device=cosine.device)
    masked = contrast.known & (labels[:, None] != labels)
    forward = cosine if contrast.positive_log_frequency is None else cosine - contrast.positive_log_frequency
    back = cosine.T if contrast.anchor_log_frequency is None else cosine.T - contrast.anchor_log_frequency
    losses = [
        nn.functional.cross_entropy(logits.masked_fill(mask, -torch.inf), labels)
        for logits, mask in ((forward, masked), (back, masked.T))
    ]
    return torch.stack(losses).mean()


class Alignment(nn.Module):
    """The projections and the sum of the views.

    Args:
        user_dim: d of users.
        item_dim: d of items.
        behaviour_dim: h.
        temperature: of every view.
    """

    def __init__(self, *, user_dim: int, item_dim: int, behaviour_dim: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.user_projection = nn.Linear(user_dim, behaviour_dim, bias=False)
        self.item_projection = nn.Linear(item_dim, behaviour_dim, bias=False)
        for projection in (self.user_projection, self.item_projection):
            nn.init.eye_(projection.weight)

    def forward(self, contrasts: dict[View, Contrast]) -> Tensor:
        """Scalar: the sum of the views; 0 when there is none."""
        losses = [info_nce(contrast, self.temperature) for contrast in contrasts.values()]
        return torch.stack(losses).sum() if losses else torch.zeros(())
