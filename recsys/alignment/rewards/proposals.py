"""What several rewards ask of a batch of rollouts: what was seen before, and values on the scale of their group."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.alignment.rollouts import Rollouts


def in_history(rollouts: Rollouts, num_items: int) -> Tensor:
    """bool [B, G]: the proposal stands in its own history."""
    histories = rollouts.histories
    rows = np.repeat(np.arange(len(histories)), histories.lengths)
    # One number for each (row, item) pair.
    seen = torch.from_numpy(rows * num_items + histories.items)
    own = torch.arange(len(histories), device=rollouts.items.device).unsqueeze(1) * num_items + rollouts.items
    return torch.isin(own, seen.to(own.device)) & rollouts.is_real


def proposed_before(rollouts: Rollouts) -> Tensor:
    """bool [B, G]: the same item stands at a better place of the group, as may be in samples."""
    same = (rollouts.items.unsqueeze(2) == rollouts.items.unsqueeze(1)).tril(-1)
    return same.any(dim=2) & rollouts.is_real


def within_group(values: Tensor, is_real: Tensor) -> Tensor:
    """float32 [B, G]: mean 0 and deviation 1 over the proposals of a group; 0 where they do not differ.

    A value that is not finite takes the lowest finite one of its group.

    Args:
        values: float [B, G].
        is_real: bool [B, G]: there is a proposal.
    """
    values = values.double()
    known = is_real & torch.isfinite(values)
    lowest = torch.where(known, values, torch.inf).amin(dim=1, keepdim=True)
    values = torch.where(known, values, torch.where(torch.isfinite(lowest), lowest, 0.0))
    count = is_real.sum(dim=1, keepdim=True).clamp(min=1)
    centred = torch.where(is_real, values - torch.where(is_real, values, 0).sum(dim=1, keepdim=True) / count, 0)
    deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    # Rounding alone makes a deviation of this size.
    differs = deviation > 1e-9 * (1 + values.abs().amax(dim=1, keepdim=True))
    return torch.where(differs, centred / deviation.clamp(min=torch.finfo(torch.float64).tiny), 0.0).float()
