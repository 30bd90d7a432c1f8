"""Which positions are training targets, and their likelihood under the trie; shared by both shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recsys.generator.trie import Children, ItemTrie
from recsys.generator.walk import legal_log_softmax


def smoothed_gather(log_probs: Tensor, slots: Tensor, legal: Tensor, smoothing: float) -> Tensor:
    """Log-probability [P] of the child in `slots` (int64 [P]), smoothed over the legal children.

    With `smoothing` s the result is `(1 - s) * log p(target) + s * mean over legal children of log p`
    (label smoothing, arXiv 1512.00567 section 7, restricted to the set that decoding can choose from).
    """
    target = log_probs.gather(-1, slots.unsqueeze(-1)).squeeze(-1)
    if smoothing == 0.0:
        return target
    mean = torch.where(legal, log_probs, 0.0).sum(-1) / legal.sum(-1)
    return (1 - smoothing) * target + smoothing * mean


def target_mask(items: Tensor, lengths: Tensor, first_target: Tensor | None) -> Tensor:
    """bool [B, T]: real items at or after `first_target` (int64 [B]; None for all)."""
    position = torch.arange(items.shape[1], device=items.device)
    mask = position < lengths.unsqueeze(1)
    if first_target is not None:
        mask &= position >= first_target.unsqueeze(1)
    return mask


def path_log_probs(
    trie: ItemTrie,
    targets: Tensor,
    child_logits: Callable[[int, Tensor, Children], Tensor],
    smoothing: float,
    code_logits: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """float32 [P]: log-probability of each of `targets` (int64 [P]), level by level down the trie.

    Args:
        trie: the catalogue.
        targets: item indices.
        child_logits: gives the logits [R, C] of a level's children for the rows (int64 [R], ascending) of `targets`
            whose item is not certain yet, with their earlier codes taken as emitted. Called once a level, downwards,
            until no row is left.
        smoothing: see `smoothed_gather`.
        code_logits: gives the logits [R, K] of all codes of a level, after `child_logits` was asked for it: for
            probabilities that are normalised over all codes, legal or not, as a model without a trie has them.
    """
    total = torch.zeros(len(targets), device=targets.device)
    rows = torch.arange(len(targets), device=targets.device)
    for level in range(trie.num_levels):
        parents, slots = trie.child_slots(level, targets[rows])
        children = trie.children(level, parents)
        logits = child_logits(level, rows, children)
        log_probs = legal_log_softmax(logits, children)
        if code_logits is not None:
            legal_mass = logits.masked_fill(~children.legal, -torch.inf).logsumexp(-1, keepdim=True)
            everything = torch.logaddexp(legal_mass, _illegal_log_mass(code_logits(level, rows), children))
            log_probs = logits.masked_fill(~children.legal, -torch.inf) - everything
        total = total.index_add(0, rows, smoothed_gather(log_probs, slots, children.legal, smoothing))
        if code_logits is None:
            # Below a node with one item all that follows is certain.
            nodes = trie.paths[targets[rows], level]
            rows = rows[trie.starts[level][nodes + 1] - trie.starts[level][nodes] > 1]
        if len(rows) == 0:
            break
    return total


def _illegal_log_mass(logits: Tensor, children: Children) -> Tensor:
    """float32 [R, 1]: log of the sum of exp over the codes [R, K] that no child has; -inf when all have one."""
    # Padding points at a column of its own, so that it hides no code.
    slots = torch.where(children.legal, children.codes, logits.shape[-1])
    is_legal = torch.zeros(len(logits), logits.shape[-1] + 1, dtype=torch.bool, device=logits.device)
    is_legal = is_legal.scatter(1, slots, torch.ones_like(children.legal))[:, :-1]
    return logits.masked_fill(is_legal, -torch.inf).logsumexp(-1, keepdim=True)
