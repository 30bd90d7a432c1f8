"""Cross-entropy over a catalogue from hidden states, without ever holding all logits at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits that are alive at one time. On a CPU a block that stays in the cache is several times faster.
_CHUNK_BYTES_CPU = 8 << 20
_CHUNK_BYTES_GPU = 1 << 30


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients on the way forward: each block of logits is turned into its own gradient in place."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum of the losses; shapes as in `linear_cross_entropy`."""
        budget = _CHUNK_BYTES_GPU if hidden_ND.is_cuda else _CHUNK_BYTES_CPU
        chunk = max(16, budget // (4 * len(weight_VD)))
        weight_low, hidden_low = weight_VD.to(dtype), hidden_ND.to(dtype)
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD)
        loss = hidden_ND.new_zeros(())
        for begin in range(0, len(hidden_ND), chunk):
            rows = hidden_low[begin : begin + chunk]
            targets = targets_N[begin : begin + chunk, None]
            logits = (rows @ weight_low.T).float()
            logits -= logits.amax(dim=1, keepdim=True)
            loss -= logits.gather(1, targets).sum()
            logits.exp_()
            normalizer = logits.sum(dim=1, keepdim=True)
            loss += normalizer.log().sum()
            logits /= normalizer
            logits.scatter_add_(1, targets, logits.new_full(targets.shape, -1.0))
            grad_logits = logits.to(dtype)
            grad_hidden[begin : begin + chunk] = grad_logits @ weight_low
            # Sums over blocks are kept in float32 whatever the products are computed in.
            grad_weight += grad_logits.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the gradients that `forward` left."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_weight * grad_outputs[0], None, None


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mean of `cross_entropy(hidden @ weight.T, targets)` over N rows, a scalar; matrix products in `dtype`."""
    loss: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, dtype)  # type: ignore[no-untyped-call]
    return loss / len(targets_N)


def sampled_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, negatives_S: Tensor) -> Tensor:
    """Mean cross-entropy of each target against shared uniform negatives; a scalar.

    Negatives stand for the whole catalogue, so log(V / S) is added to their logits: the normaliser is then unbiased
    (importance-sampled softmax: Bengio and Senecal, 2008). A negative that is a row's own target does not count.
    """
    correction = torch.log(torch.tensor(len(weight_VD) / len(negatives_S)))
    positive = (hidden_ND * weight_VD[targets_N]).sum(dim=1)
    negative = hidden_ND @ weight_VD[negatives_S].T + correction.to(hidden_ND.device)
    negative = negative.masked_fill(negatives_S == targets_N[:, None], -torch.inf)
    return (torch.logaddexp(positive, negative.logsumexp(dim=1)) - positive).mean()
