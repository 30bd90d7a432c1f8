"""Log-probabilities of given items after given histories, with gradients: what losses over pairs are made of.

A history is read once, whatever the number of its candidates: they go down the trie together, as the beams of a search
do, and level 0 is read once a history. Sums over the legal children of every step, so those of all items sum to 1.

Shapes: B histories, W candidates, L levels, C children.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from recsys.errors import ConfigError
from recsys.generator.depth import DepthHeads
from recsys.generator.flat import FlatModel
from recsys.generator.nested import NestedModel
from recsys.generator.recommender import GeneratorModel
from recsys.generator.walk import legal_log_softmax

PolicyModel: TypeAlias = NestedModel | FlatModel
"""The shapes whose items have one path each."""


def policy_model(model: GeneratorModel) -> PolicyModel:
    """`model`, if preferences can tune it. Raises ConfigError for the any-order shape, whose items have many paths."""
    if isinstance(model, (NestedModel, FlatModel)):
        return model
    raise ConfigError("generator.model.shape: preferences tune nested and flat generators, not any_order")


def candidate_log_probs(model: PolicyModel, items: Tensor, lengths: Tensor, candidates: Tensor) -> Tensor:
    """float32 [B, W]: the log-probability of every candidate after its history.

    Args:
        model: a generator; gradients flow if they are enabled. In evaluation mode there is no dropout.
        items: int64 [B, T], right-padded histories, on the model's device.
        lengths: int64 [B].
        candidates: int64 [B, W], item indices; the same one may stand there twice.
    """
    return log_probs_from(model, model.start(items, lengths), candidates)


def log_probs_from(model: PolicyModel, state: Any, candidates: Tensor) -> Tensor:
    """float32 [B, W]: the same from histories that were read: `state` is the model's `start`, or another way in."""
    trie = model.trie
    beams = torch.zeros_like(candidates)
    parents = beams[:, :1]
    total = torch.zeros(candidates.shape, device=candidates.device)
    for level in range(trie.num_levels):
        children = trie.children(level, parents)
        log_probs = legal_log_softmax(model.child_logits(state, level, children), children)
        slots = trie.child_slots(level, candidates)[1]
        # One beam a history on level 0, one a candidate below.
        total = total + log_probs.expand(-1, candidates.shape[1], -1).gather(-1, slots.unsqueeze(-1)).squeeze(-1)
        if level < trie.num_levels - 1:
            parents = trie.paths[candidates, level]
            state = model.advance(state, level, beams, trie.codes[level][parents])
            beams = torch.arange(candidates.shape[1], device=beams.device).expand_as(candidates)
    return total


def head_log_probs(model: PolicyModel, items: Tensor, lengths: Tensor, candidates: Tensor, owners: Tensor) -> Tensor:
    """float32 [B, W]: `candidate_log_probs` of each history by one head alone, which is what MAH-DPO tunes it on.

    Args:
        model: with a head an objective.
        items: int64 [B, T].
        lengths: int64 [B].
        candidates: int64 [B, W].
        owners: int64 [B], the place of the head.

    Raises:
        ValueError: a model without heads of objectives.
    """
    if not isinstance(model, NestedModel) or not isinstance(model.depth, DepthHeads):
        raise ValueError("the model has no heads of objectives")
    state = model.start(items, lengths)
    total = torch.zeros(candidates.shape, device=candidates.device)
    for number in sorted(set(owners.tolist())):
        rows = (owners == number).nonzero().squeeze(1)
        found = log_probs_from(model.with_depth(model.depth.head(number)), state[rows], candidates[rows])
        total = total.index_put((rows,), found)
    return total
