"""The any-order shape: one position an item, and a decoder that emits an item's tokens in the order it is sure of them.

For items whose codes are a set (parallel codebooks; REG4Rec, arXiv 2508.15308). The history is read as by the nested
shape. The decoder knows no levels: its state goes on through one network, whatever the codebook, and each codebook has
a head that can be asked at any time. The codebook that is emitted next is the one with the most probable legal code
(`confident_choice`), which follows from the state alone: each item has exactly one order and one likelihood.

Training takes the tokens in the order that decoding would take with probability `confidence_order`, else in a random
one, and sums the cross-entropies over the legal codes. With random orders in it that sum is a training signal, not the
likelihood; in evaluation mode `target_log_probs` is exact.

A token's logit also holds the mean residual of the possible items that own it: over the whole catalogue it is a vector
a token, later the items are few, and pairs of a row and an item are scored one by one.

Shapes: B sequences, T items, P targets, R rows (beams or unfinished targets), E pairs of a row and a possible item,
D width, M codebooks, J of them left, K codes of the largest one, V tokens.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.generator.config import ModelConfig
from recsys.generator.history import HistoryModel
from recsys.generator.likelihood import smoothed_gather, target_mask
from recsys.generator.pair_dots import pair_dots
from recsys.generator.set_trie import Members, SetTrie
from recsys.generator.set_walk import TokenChildren, confident_choice, take_codebook


class TokenDecoder(nn.Module):
    """Emits tokens in any order from a hidden state: a gated residual MLP for all codebooks, a head for each."""

    def __init__(self, hidden_size: int, codebook_sizes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.width = max(codebook_sizes)
        self.token_embeddings = nn.Embedding(sum(codebook_sizes), hidden_size)
        self.codebook_embeddings = nn.Embedding(len(codebook_sizes), hidden_size)
        self.update = nn.Sequential(
            nn.LayerNorm(2 * hidden_size),
            nn.Linear(2 * hidden_size, 2 * hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * hidden_size, hidden_size),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in codebook_sizes)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, size) for size in codebook_sizes)

    def read(self, state: Tensor, codebook: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries [R, D] of each row's `codebook` (int64 [R]) and logits [R, K] of its codes, from states [R, D].

        `extra` (float32 [M, K, D]) is added to the output vectors of the tokens.
        """
        # Rows of one codebook go through its head together, and back to their places.
        order = codebook.argsort(stable=True)
        sizes = torch.bincount(codebook, minlength=len(self.heads)).tolist()
        queries, logits = [], []
        parts = torch.split(_gather(state, order), sizes)
        for index, (part, norm, head) in enumerate(zip(parts, self.norms, self.heads, strict=True)):
            queries.append(norm(part))
            found = head(queries[-1])
            found = nn.functional.pad(found, (0, self.width - found.shape[-1]))
            logits.append(found if extra is None else found + queries[-1] @ extra[index].T)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return _gather(torch.cat(queries), back), _gather(torch.cat(logits), back)

    def step(self, state: Tensor, tokens: Tensor, codebook: Tensor) -> Tensor:
        """The states [R, D] after `tokens` of `codebook` (int64 [R] both) were emitted."""
        taken = self.token_embeddings(tokens) + self.codebook_embeddings(codebook)
        return state + cast(Tensor, self.update(torch.cat([state, taken], dim=-1)))


class AnyOrderModel(HistoryModel):
    """A causal transformer over items that emits the next item's tokens in the order of its confidence.

    Args:
        config: size of the model.
        trie: the catalogue.
        codes: int64 [N, M], the items' semantic IDs.
        item_vectors: float32 [N, V] that describe the items' content, or None.
    """

    def __init__(
        self,
        config: ModelConfig,
        trie: SetTrie,
        codes: npt.NDArray[np.int64],
        item_vectors: npt.NDArray[np.float32] | None,
    ) -> None:
        super().__init__(config, codes, trie.codebook_sizes, item_vectors)
        self.trie = trie
        self.decoder = TokenDecoder(config.hidden_size, trie.codebook_sizes, config.dropout)
        self.initialise_embeddings()

    def _logits(self, state: Tensor, codebook: Tensor, members: Members | None) -> Tensor:
        """float32 [R, K]: logits of each row's `codebook` (int64 [R]) from states [R, D]; anything on illegal codes."""
        query, logits = self.decoder.read(state, codebook, self._token_residuals() if members is None else None)
        if self.item_residuals is None or members is None:
            return logits
        slots = self.trie.slots(members, codebook)
        learned = self.learned[members.items].to(query)
        counts = torch.zeros(logits.numel(), device=query.device).index_add(0, slots, learned)
        # An item that joined after the fit has a residual of zero: it adds nothing, and is not counted.
        dots = pair_dots(query, self.item_residuals.weight, members.rows, members.items)
        means = torch.zeros_like(counts).index_add(0, slots, dots) / counts.clamp(min=1)
        return logits + means.view_as(logits)

    def _token_residuals(self) -> Tensor | None:
        """float32 [M, K, D]: the mean residual of the learned items that own each token, or 0."""
        if self.item_residuals is None:
            return None
        columns = enumerate(self.trie.codes.unbind(1))
        return torch.stack([self.mean_residuals(codebook, codes, self.trie.width) for codebook, codes in columns])

    def target_log_probs(
        self, items: Tensor, lengths: Tensor, first_target: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """float32 [P]: log-probability of every target item given the items before it, row by row.

        In training mode some tokens may be taken in another order than decoding's (see the module), which torch's
        global random state decides: what it returns then is a training signal.

        Args:
            items: int64 [B, T], right-padded.
            lengths: int64 [B].
            first_target: int64 [B], items before it are context only; None makes every item a target.
            smoothing: share of the target's mass spread over the legal codes at each step; 0 for true ones.
        """
        is_target = target_mask(items, lengths, first_target)
        targets = items[is_target]
        state = self.hidden_states(items[:, :-1])[is_target]
        total = torch.zeros(len(targets), device=items.device)
        rows = torch.arange(len(targets), device=items.device)
        codebooks = torch.arange(self.trie.num_levels, device=items.device).expand(len(targets), -1)
        by_confidence = torch.ones_like(rows, dtype=torch.bool)
        if self.training:
            by_confidence = torch.rand(len(rows), device=items.device) < self.config.confidence_order
        members: Members | None = None
        for step in range(self.trie.num_levels):
            chosen = self._choose(state, codebooks, members, by_confidence[rows])
            codebook = codebooks.gather(1, chosen.unsqueeze(1)).squeeze(1)
            legal = self.trie.legal(members, codebook)
            logits = self._logits(state, codebook, members).masked_fill(~legal, -torch.inf)
            codes = self.trie.codes[targets[rows], codebook]
            total = total.index_add(0, rows, smoothed_gather(logits.log_softmax(-1), codes, legal, smoothing))
            if step == self.trie.num_levels - 1:
                break
            tokens = self.trie.offsets[codebook] + codes
            here = torch.arange(len(rows), device=rows.device)
            members = self.trie.narrow(members, here, tokens)
            # A row with one possible item is finished: all that it may still emit is certain.
            open_rows = (members.counts() > 1).nonzero().squeeze(1)
            if len(open_rows) == 0:
                break
            members = members.select(open_rows)
            rows, codebooks = rows[open_rows], take_codebook(codebooks, chosen)[open_rows]
            state = self.decoder.step(_gather(state, open_rows), tokens[open_rows], codebook[open_rows])
        return total

    def _choose(self, state: Tensor, codebooks: Tensor, members: Members | None, by_confidence: Tensor) -> Tensor:
        """int64 [R]: which of the codebooks left ([R, J]) to take, the one of decoding where `by_confidence` ([R])."""
        chosen = torch.randint(codebooks.shape[1], (len(codebooks),), device=codebooks.device)
        rows = by_confidence.nonzero().squeeze(1)
        if len(rows) == 0:
            return chosen
        if members is not None and len(rows) < len(codebooks):
            members = members.select(rows)
        with torch.no_grad():
            legal = torch.stack([self.trie.legal(members, column) for column in codebooks[rows].unbind(1)], dim=1)
            children = TokenChildren(members=members, codebooks=codebooks[rows], legal=legal)
            best, _ = confident_choice(self._all_logits(state[rows], children), legal)
        chosen[rows] = best
        return chosen

    def _all_logits(self, state: Tensor, children: TokenChildren) -> Tensor:
        """float32 [R, J, K] from states [R, D]."""
        return torch.stack(
            [self._logits(state, column, children.members) for column in children.codebooks.unbind(1)], dim=1
        )

    def child_logits(self, state: Tensor, level: int, children: TokenChildren) -> Tensor:
        """Logits [R, J, K] of the beams' tokens from a state [B, W, D]: see `SidModel`."""
        return self._all_logits(state.flatten(0, 1), children)

    def advance(self, state: Tensor, level: int, beams: Tensor, codes: Tensor) -> Tensor:
        """State [B, W, D] after a step, of which `codes` are the tokens: see `SidModel`."""
        parents = state.gather(1, beams.unsqueeze(-1).expand(-1, -1, state.shape[-1]))
        return self.decoder.step(parents, codes, self.trie.codebook_of_token[codes])


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table. Not table[rows]: with several threads its gradient is summed in no fixed order."""
    return nn.functional.embedding(rows, table)
