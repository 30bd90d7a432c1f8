"""The nested shape: one position an item in a causal transformer body, and a depth decoder that emits codes.

A history of n items costs n positions, a search runs the depth decoder only, and training supervises every position in
one pass. The two-axis idea is that of RQ-Transformer (arXiv 2203.01941, section 3.2) applied to semantic IDs.

Shapes: B sequences, T items (right-padded), P supervised positions, W beams, D width, L levels, K codes of a level.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.generator.body import Body
from recsys.generator.config import ModelConfig
from recsys.generator.likelihood import path_log_probs, target_mask
from recsys.generator.trie import Children, ItemTrie


class DepthDecoder(nn.Module):
    """Emits one code after another from a hidden state: a gated residual MLP a level, weights not shared."""

    def __init__(self, hidden_size: int, codebook_sizes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.code_embeddings = nn.ModuleList(nn.Embedding(size, hidden_size) for size in codebook_sizes[:-1])
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(2 * hidden_size),
                nn.Linear(2 * hidden_size, 2 * hidden_size),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(2 * hidden_size, hidden_size),
            )
            for _ in codebook_sizes[:-1]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in codebook_sizes)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, size) for size in codebook_sizes)

    def read(self, state: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The query [..., D] of `level` and the logits [..., K] from a state [..., D]."""
        query = self.norms[level](state)
        return query, self.heads[level](query)

    def step(self, state: Tensor, level: int, codes: Tensor) -> Tensor:
        """The state [..., D] after `codes` (int64 [...]) were emitted on `level`."""
        taken = self.code_embeddings[level](codes)
        return state + cast(Tensor, self.steps[level](torch.cat([state, taken], dim=-1)))


class NestedModel(nn.Module):
    """A causal LM whose positions are items.

    Args:
        config: size of the model.
        trie: the catalogue.
        codes: int64 [N, L], the items' semantic IDs.
        item_vectors: float32 [N, V] that describe the items' content, or None.
    """

    def __init__(
        self,
        config: ModelConfig,
        trie: ItemTrie,
        codes: npt.NDArray[np.int64],
        item_vectors: npt.NDArray[np.float32] | None,
    ) -> None:
        super().__init__()
        self._frozen_nodes: dict[int, Tensor] = {}
        self.config = config
        self.trie = trie
        width = config.hidden_size
        self.register_buffer("codes", torch.from_numpy(codes), persistent=False)
        self.codes: Tensor
        self.begin = nn.Parameter(torch.zeros(width))
        self.code_embeddings = nn.ModuleList(nn.Embedding(size, width) for size in trie.codebook_sizes)
        self.item_residuals = nn.Embedding(len(codes), width) if config.item_residuals else None
        # Items that join after the fit have no residual, and do not water down the means of their nodes.
        self.register_buffer("learned", torch.ones(len(codes), dtype=torch.bool))
        self.learned: Tensor
        self.vector_projection: nn.Linear | None = None
        if config.text_input and item_vectors is not None:
            self.register_buffer("item_vectors", torch.from_numpy(item_vectors), persistent=False)
            self.item_vectors: Tensor
            self.vector_projection = nn.Linear(item_vectors.shape[1], width)
        self.body = Body(config, max_positions=config.max_history + 1)
        self.depth = DepthDecoder(width, trie.codebook_sizes, config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) and not name.startswith("body."):
                nn.init.normal_(module.weight, std=0.02)
        if self.item_residuals is not None:
            # From zero: what an item has beyond its codes and its vector must be earned by interactions.
            nn.init.zeros_(self.item_residuals.weight)

    def embed_items(self, items: Tensor) -> Tensor:
        """float32 [..., D]: the input of each item."""
        codes = self.codes[items]
        embedded: Tensor = sum(table(codes[..., level]) for level, table in enumerate(self.code_embeddings))
        if self.item_residuals is not None:
            embedded = embedded + self.item_residuals(items)
        if self.vector_projection is not None:
            embedded = embedded + self.vector_projection(self.item_vectors[items])
        return embedded

    def hidden_states(self, items: Tensor) -> Tensor:
        """float32 [B, T + 1, D]: entry t summarises the first t items; entry 0 is the empty history."""
        begin = self.begin.expand(len(items), 1, -1)
        return cast(Tensor, self.body(torch.cat([begin, self.embed_items(items)], dim=1)))

    def child_logits(self, state: Tensor, level: int, children: Children) -> Tensor:
        """Logits [..., C] from a state [..., D]: see `SidModel`."""
        query, code_logits = self.depth.read(state, level)
        logits = code_logits.gather(-1, children.codes)
        nodes = self._node_residuals(level)
        if nodes is None:
            return logits
        if level == 0:
            return logits + (query @ nodes.T).gather(-1, children.nodes)
        # Not nodes[children.nodes]: with several threads the gradient of indexing is summed in no fixed order.
        child_vectors = nn.functional.embedding(children.nodes, nodes)
        return logits + (child_vectors @ query.unsqueeze(-1)).squeeze(-1)

    def _node_residuals(self, level: int) -> Tensor | None:
        """float32 [M_l, D]: the mean residual of the learned items below each node of `level`, or 0."""
        if self.item_residuals is None:
            return None
        frozen = not self.training and not torch.is_grad_enabled()
        if frozen and level in self._frozen_nodes:
            return self._frozen_nodes[level]
        table = self.item_residuals.weight
        counts = torch.zeros(len(self.trie.codes[level]), 1, device=table.device)
        counts = counts.index_add(0, self.trie.paths[:, level], self.learned.to(table).unsqueeze(1))
        sums = torch.zeros(len(counts), table.shape[1], device=table.device)
        means = sums.index_add(0, self.trie.paths[:, level], table) / counts.clamp(min=1)
        if frozen:
            self._frozen_nodes[level] = means
        return means

    def train(self, mode: bool = True) -> NestedModel:
        """Switch between training and evaluation, and forget what was computed from the weights as they were.

        Weights change between a call of `train()` and the next of `eval()`. Their version counters cannot tell: fused
        optimizers do not raise them.
        """
        self._frozen_nodes = {}
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See `torch.nn.Module.load_state_dict`; forgets what was computed from the earlier weights."""
        self._frozen_nodes = {}
        return super().load_state_dict(*args, **kwargs)

    def target_log_probs(
        self, items: Tensor, lengths: Tensor, first_target: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """float32 [P]: log-probability of every target item given the items before it, row by row.

        Args:
            items: int64 [B, T], right-padded.
            lengths: int64 [B].
            first_target: int64 [B], items before it are context only; None makes every item a target.
            smoothing: share of the target's mass spread over its siblings on each level; 0 for true log-probabilities.
        """
        is_target = target_mask(items, lengths, first_target)
        targets = items[is_target]
        states = [self.hidden_states(items[:, :-1])[is_target]]
        for level in range(self.trie.num_levels - 1):
            states.append(self.depth.step(states[-1], level, self.codes[targets, level]))
        return path_log_probs(
            self.trie, targets, lambda level, children: self.child_logits(states[level], level, children), smoothing
        )

    def start(self, items: Tensor, lengths: Tensor) -> Tensor:
        """State [B, 1, D] of the decoder: see `SidModel`."""
        hidden = self.hidden_states(items)
        return hidden[torch.arange(len(items), device=items.device), lengths].unsqueeze(1)

    def advance(self, state: Tensor, level: int, beams: Tensor, codes: Tensor) -> Tensor:
        """State [B, W, D] after a step: see `SidModel`."""
        parents = state.gather(1, beams.unsqueeze(-1).expand(-1, -1, state.shape[-1]))
        return self.depth.step(parents, level, codes)
