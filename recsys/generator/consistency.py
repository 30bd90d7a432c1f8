"""Paths whose codes point to unrelated kinds of items are given up before they end (CORP, REG4Rec, arXiv 2508.15308).

The paper names the idea and gives no numbers; the form is ours. Two histograms of categories agree by the mass that
they share, sum_c min(P(c|a), P(c|b)). For codes that are a set, a path's score is the mean over all pairs of its
tokens. Codes of a prefix tree refine what stands before them and mean little alone, so there each step compares the
categories of its prefix with those of its code, and the score is the mean over the steps: one number a node.

Shapes: B requests, W beams, C ways on, S = W * C candidates, V tokens, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.generator.decoder import Pruning
from recsys.generator.groups import Groups
from recsys.generator.set_trie import SetTrie
from recsys.generator.set_walk import SetWalk
from recsys.generator.spliced import entries
from recsys.generator.trie import ItemTrie
from recsys.generator.walk import PrefixWalk, Walk


@dataclass(frozen=True, kw_only=True, eq=False)
class Consistency:
    """How well the codes of every path of a catalogue agree, and how well they must.

    At least k candidates stay on every level, whatever the threshold, so that lists stay full.
    """

    of_nodes: Sequence[Tensor] | None
    """Prefix tree: for each level float32 [M_l], the score of each node. None for sets."""
    of_pairs: Tensor | None
    """Sets: float32 [V, V], what each pair of tokens shares. None for a prefix tree."""
    threshold: float
    """Paths that score less are given up."""

    @classmethod
    def build(cls, trie: ItemTrie | SetTrie, categories: Groups, threshold: float = 0.2) -> Consistency:
        """From the categories of the catalogue's items.

        Dense: [M_l, G] for the levels of a prefix tree, [V, V] for a set.
        """
        if categories.num_items != trie.num_items:
            raise ValueError(f"categories must be of {trie.num_items} items, got {categories.num_items}")
        if isinstance(trie, SetTrie):
            histograms = np.concatenate(
                [
                    categories.histogram(trie.codes[:, codebook].cpu().numpy(), size)
                    for codebook, size in enumerate(trie.codebook_sizes)
                ]
            )
            shared = np.stack([np.minimum(row, histograms).sum(axis=1) for row in histograms])
            return cls(of_nodes=None, of_pairs=torch.from_numpy(shared).to(trie.items.device), threshold=threshold)
        # A first code is its own prefix: it agrees with itself, and there is no pair yet.
        device = trie.items.device
        of_nodes = [torch.ones(len(trie.codes[0]), device=device)]
        sums = torch.zeros(len(trie.codes[0]), device=device)
        for level in range(1, trie.num_levels):
            size, num_nodes = trie.codebook_sizes[level], len(trie.codes[level])
            codes, parents = entries(trie.codes[level]), _parents(trie, level)
            of_code = categories.histogram(codes[trie.paths[:, level]].cpu().numpy(), size)
            of_prefix = categories.histogram(trie.paths[:, level - 1].cpu().numpy(), len(trie.codes[level - 1]))
            shared = np.minimum(of_prefix[parents.cpu().numpy()], of_code[codes.cpu().numpy()]).sum(axis=1)
            sums = sums[parents] + torch.from_numpy(shared).to(device)
            assert len(sums) == num_nodes
            of_nodes.append(sums / level)
        return cls(of_nodes=of_nodes, of_pairs=None, threshold=threshold)

    def of_items(self, trie: ItemTrie | SetTrie) -> npt.NDArray[np.float32]:
        """float32 [N]: the lowest score on the way to each item; of a set, whatever the order of its tokens.

        A mean over pairs is at least the lowest pair, which is a path of its own: the lowest over all orders.
        """
        if isinstance(trie, SetTrie):
            assert self.of_pairs is not None, "built over sets"
            first, second = np.triu_indices(trie.num_levels, k=1)
            pairs = self.of_pairs[trie.tokens[:, first], trie.tokens[:, second]]
            return np.asarray(pairs.amin(-1).cpu().numpy() if len(first) else np.ones(trie.num_items, dtype=np.float32))
        assert self.of_nodes is not None, "built over a prefix tree"
        on_path = [table[trie.paths[:, level]] for level, table in enumerate(self.of_nodes)]
        return np.asarray(torch.stack(on_path).amin(0).cpu().numpy())

    def calibrated(self, trie: ItemTrie | SetTrie, items: IntArray, keep: float = 0.98) -> Consistency:
        """With the highest threshold that leaves the paths of at least `keep` of `items` (int64, true next items)."""
        if not 0 < keep <= 1 or len(items) == 0:
            raise ValueError(f"calibration needs items and 0 < keep <= 1, got {len(items)} items and keep={keep}")
        scores = np.sort(self.of_items(trie)[items])
        lost = int(np.floor(len(scores) * (1 - keep) + 1e-9))
        return Consistency(of_nodes=self.of_nodes, of_pairs=self.of_pairs, threshold=float(scores[lost]))

    def pruning(self) -> Pruning:
        """For one search."""
        return _OfNodes(self) if self.of_pairs is None else _OfPairs(self, self.of_pairs)


class _OfNodes:
    def __init__(self, consistency: Consistency) -> None:
        self._consistency = consistency

    def doubtful(self, walk: Walk, level: int) -> Tensor | None:
        assert isinstance(walk, PrefixWalk), "built over a prefix tree"
        assert self._consistency.of_nodes is not None, "built over a prefix tree"
        scores = self._consistency.of_nodes[level][walk.children.nodes]
        return (scores < self._consistency.threshold).flatten(1)

    def keep(self, best: Tensor, codes: Tensor) -> None:
        """A node's score is all there is."""


class _OfPairs:
    def __init__(self, consistency: Consistency, of_pairs: Tensor) -> None:
        self._threshold = consistency.threshold
        self._of_pairs = of_pairs
        self._sums: Tensor | None = None
        self._candidates: Tensor
        self._tokens: list[Tensor] = []

    def doubtful(self, walk: Walk, level: int) -> Tensor | None:
        assert isinstance(walk, SetWalk), "built over sets"
        # A slot beyond the end of the last codebook stands for no token.
        tokens = walk.codes().clamp(max=len(self._of_pairs) - 1)
        sums = torch.zeros(tokens.shape, device=tokens.device) if self._sums is None else self._sums.unsqueeze(-1)
        for earlier in self._tokens:
            sums = sums + self._of_pairs[earlier.unsqueeze(-1), tokens]
        self._candidates = sums.flatten(1)
        if level == 0:
            return None
        return self._candidates / (level * (level + 1) / 2) < self._threshold

    def keep(self, best: Tensor, codes: Tensor) -> None:
        parents = best // (self._candidates.shape[1] // self._num_beams())
        self._tokens = [earlier.gather(1, parents) for earlier in self._tokens] + [codes]
        self._sums = self._candidates.gather(1, best)

    def _num_beams(self) -> int:
        return 1 if self._sums is None else self._sums.shape[1]


def _parents(trie: ItemTrie, level: int) -> Tensor:
    """int64 [M_l]: the parent of each node of `level`."""
    numbers = torch.arange(len(trie.codes[level - 1]), device=trie.items.device)
    return torch.repeat_interleave(numbers, entries(trie.first_child[level]).diff())
