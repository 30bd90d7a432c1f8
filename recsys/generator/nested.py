"""The nested shape: one position an item in a causal transformer body, and a depth decoder that emits codes.

A history of n items costs n positions, a search runs the depth decoder only, and training supervises every position in
one pass. The two-axis idea is that of RQ-Transformer (arXiv 2203.01941, section 3.2) applied to semantic IDs.

Shapes: B sequences, T items (right-padded), P supervised positions, W beams, D width, S width of the depth
decoder's state (D on level 0, D a head after that), L levels, K codes of a level.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.data.sequences import IntArray
from recsys.generator.config import ModelConfig
from recsys.generator.depth import DepthDecoder, DepthHeads
from recsys.generator.history import HistoryModel
from recsys.generator.likelihood import path_log_probs, target_mask
from recsys.generator.lm.backbone import Backbone
from recsys.generator.lm.user_rows import UserRows
from recsys.generator.pair_dots import pair_dots
from recsys.generator.spliced import Table
from recsys.generator.trie import Children, ItemTrie


class NestedModel(HistoryModel):
    """A causal LM whose positions are items.

    Args:
        config: size of the model.
        trie: the catalogue.
        codes: int64 [N, L], the items' semantic IDs.
        item_vectors: float32 [N, V] that describe the items' content, or None.
        backbone: the language model to go on from; None = a body from scratch.
        users: rows for users' codes, which then stand before a history; only with `backbone`.
    """

    def __init__(
        self,
        config: ModelConfig,
        trie: ItemTrie,
        codes: npt.NDArray[np.int64],
        item_vectors: npt.NDArray[np.float32] | None,
        backbone: Backbone | None = None,
        users: UserRows | None = None,
    ) -> None:
        super().__init__(config, codes, trie.codebook_sizes, item_vectors, backbone, users)
        self.trie = trie
        self._learned_trie: ItemTrie | None = None
        """Of the items that have rows in the table of residuals; None where `trie` is."""
        self._learned_nodes: Sequence[Table] | None = None
        """For each level int64 [M_l]: the nodes of `trie` in `_learned_trie`; None where they are the same."""
        self.depth: DepthDecoder | DepthHeads = DepthDecoder(self.width, trie.codebook_sizes, config.dropout)
        self.initialise_embeddings()
        self.fixed_shapes = False
        """Compare with padding too in a search: see `FlatModel.fixed_shapes`."""

    def child_logits(self, state: Tensor, level: int, children: Children) -> Tensor:
        """Logits [..., C] from a state [..., S]: see `SidModel`."""
        query, code_logits = self.depth.read(state, level)
        logits = code_logits.gather(-1, children.codes)
        if self.item_residuals is None:
            return logits
        numbers, legal = children.nodes, children.legal
        if self._learned_nodes is not None:
            # A node with none but further items has no residual.
            numbers = self._learned_nodes[level][numbers]
            numbers, legal = numbers.clamp(min=0), legal & (numbers >= 0)
        if level == self.trie.num_levels - 1:
            # A node is an item, and the mean its own residual.
            numbers, table = (self._learned_trie or self.trie).items[numbers], self.item_residuals.weight
        else:
            table = self.node_means(level)
        if level == 0:
            dots = (query @ table.T).gather(-1, numbers)
            return logits + (dots if self._learned_nodes is None else dots.masked_fill(~legal, 0))
        if self.fixed_shapes:
            return logits + (table[numbers] @ query.unsqueeze(-1)).squeeze(-1).masked_fill(~legal, 0)
        # Children are few on average and padded to the widest node, so that only the real ones are worth a product.
        rows, slots = legal.flatten(0, -2).nonzero(as_tuple=True)
        dots = pair_dots(query.flatten(0, -2), table, rows, numbers.flatten(0, -2)[rows, slots])
        return logits + torch.zeros_like(logits).masked_scatter(legal, dots)

    def with_items(self, further_codes: IntArray, further_vectors: npt.NDArray[np.float32] | None) -> Self:
        """The same model over more items, with no training; this one stays as it is, and the two share all weights.

        Args:
            further_codes: int64 [K, L], of the items behind its own.
            further_vectors: float32 [K, V], when the model reads content.
        """
        twin = self._grown(further_codes, further_vectors)
        twin.trie = self.trie.with_items(further_codes)
        if self.item_residuals is not None:
            twin._learned_trie = self._learned_trie or self.trie
            device, nodes = self.codes.device, twin.trie.nodes_in(twin._learned_trie)
            twin._learned_nodes = [table.to(device) if isinstance(table, Tensor) else table for table in nodes]
        return twin

    def node_means(self, level: int) -> Tensor:
        """float32 [M_l, D]: the mean residual of the learned items below each node of `level`, or 0."""
        trie = self._learned_trie or self.trie
        return self.mean_residuals(level, trie.paths[:, level], len(trie.codes[level]))

    def target_log_probs(
        self, items: Tensor, lengths: Tensor, first_target: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """float32 [P]: log-probability of every target item given the items before it, row by row.

        Args:
            items: int64 [B, T], right-padded.
            lengths: int64 [B].
            first_target: int64 [B], items before it are context only, and make up the user where the model has rows of
                users; None makes every item a target, of nobody in particular.
            smoothing: share of the target's mass spread over its siblings on each level; 0 for true log-probabilities.
        """
        is_target = target_mask(items, lengths, first_target)
        hidden = self.hidden_states(items[:, :-1], first_target)[is_target]
        return self.item_log_probs(hidden.unsqueeze(1), items[is_target], smoothing)

    def item_log_probs(
        self, hidden: Tensor, targets: Tensor, smoothing: float = 0.0, *, over_vocabulary: bool = False
    ) -> Tensor:
        """float32 [P]: log-probabilities of `targets` (int64 [P]) from the states [P, 1, D] before their rows.

        `over_vocabulary`: see `likelihood.path_log_probs`, of which decoding makes no use.
        """
        state = hidden.squeeze(1)
        kept = torch.arange(len(targets), device=targets.device)

        def logits(level: int, rows: Tensor, children: Children) -> Tensor:
            nonlocal state, kept
            if level:
                # Not an index: with several threads its gradient is summed in no fixed order.
                going_on = nn.functional.embedding(torch.searchsorted(kept, rows), state)
                state = self.depth.step(going_on, level - 1, self.codes_of(targets[rows])[:, level - 1])
            kept = rows
            return self.child_logits(state, level, children)

        codes = (lambda level, rows: self.depth.read(state, level)[1]) if over_vocabulary else None
        return path_log_probs(self.trie, targets, logits, smoothing, codes)

    def advance(self, state: Tensor, level: int, beams: Tensor, codes: Tensor) -> Tensor:
        """State [B, W, S] after a step: see `SidModel`."""
        parents = state.gather(1, beams.unsqueeze(-1).expand(-1, -1, state.shape[-1]))
        return self.depth.step(parents, level, codes)

    def with_depth(self, depth: DepthDecoder | DepthHeads) -> Self:
        """The same model with another depth decoder; this one stays as it is, and the two share all other weights."""
        twin = copy.copy(self)
        # A shallow copy shares the very table that names the modules, in which only the decoder is to differ.
        twin._modules = {**self._modules, "depth": depth}
        return twin
