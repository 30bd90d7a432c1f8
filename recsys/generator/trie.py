"""The catalogue as a prefix tree over semantic IDs, in flat arrays. Knows nothing about models or scores.

Items are sorted by their codes, so that a node (a prefix) is a contiguous range of sorted positions and the children
of a node are contiguous nodes of the next level. Whatever restricts the catalogue for one request then is a range
count (engineering of STATIC, arXiv 2602.22647, without its dense tables).

Shapes: N items, L levels, M_l nodes on level l, C_l the most children that a node of level l - 1 has.
Level l holds the prefixes of length l + 1; the root is node 0 of "level -1".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.errors import ArtifactError


@dataclass(frozen=True, kw_only=True, eq=False)
class Children:
    """The children of a batch of nodes, padded to the widest node of the level; shape [..., C_l] each."""

    nodes: Tensor
    """int64: node numbers on the children's level; 0 where `legal` is false."""
    codes: Tensor
    """int64: the children's codes on their level; 0 where `legal` is false."""
    legal: Tensor
    """bool: false on padding."""


class ItemTrie:
    """An immutable trie; build a new one and swap it in to change the catalogue.

    Args:
        codes: int64 [N, L], rows unique, `0 <= codes[:, l] < codebook_sizes[l]`.
        codebook_sizes: number of codes on each level.

    Raises:
        ArtifactError: two items share a code, or a code is outside its codebook.
    """

    def __init__(self, codes: npt.NDArray[np.int64], codebook_sizes: Sequence[int]) -> None:
        codes = np.asarray(codes, dtype=np.int64)
        if codes.ndim != 2 or codes.shape[1] != len(codebook_sizes) or len(codes) == 0:
            raise ArtifactError(
                f"codes must be [items, {len(codebook_sizes)} levels] with at least one item, got {list(codes.shape)}"
            )
        out_of_range = (codes < 0) | (codes >= np.asarray(codebook_sizes))
        if out_of_range.any():
            item, level = (int(index) for index in np.argwhere(out_of_range)[0])
            raise ArtifactError(
                f"codes: item {item} has code {codes[item, level]} on level {level}, "
                f"whose codebook has {codebook_sizes[level]} codes"
            )
        order = np.lexsort(codes.T[::-1])
        ordered = codes[order]
        is_new_prefix = np.ones((len(codes), codes.shape[1]), dtype=bool)
        is_new_prefix[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
        if not is_new_prefix[:, -1].all():
            position = int(np.flatnonzero(~is_new_prefix[:, -1])[0])
            raise ArtifactError(
                f"codes: items {order[position - 1]} and {order[position]} share {ordered[position].tolist()}; "
                "resolve collisions before building a trie"
            )

        self.num_items, self.num_levels = codes.shape
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        self.items = torch.from_numpy(order)
        """int64 [N]: the item at each sorted position; positions are the nodes of the last level."""
        self.positions = torch.empty_like(self.items)
        """int64 [N]: the sorted position of each item."""
        self.positions[self.items] = torch.arange(self.num_items)
        self.starts: list[Tensor] = []
        """For each level int64 [M_l + 1]: node m covers sorted positions starts[m] .. starts[m + 1] - 1."""
        self.codes: list[Tensor] = []
        """For each level int64 [M_l]: the last code of each prefix."""
        self.first_child: list[Tensor] = []
        """For each level int64 [M_(l-1) + 1]: parent p has the children first_child[p] .. first_child[p + 1] - 1."""
        self.max_children: list[int] = []
        """For each level C_l."""
        node_of_position = np.cumsum(is_new_prefix, axis=0) - 1
        self.paths = torch.from_numpy(node_of_position[self.positions.numpy()])
        """int64 [N, L]: the node of each item on each level."""

        parent_starts = np.array([0, self.num_items])
        for level in range(self.num_levels):
            starts = np.append(np.flatnonzero(is_new_prefix[:, level]), self.num_items)
            first_child = np.searchsorted(starts, parent_starts)
            self.starts.append(torch.from_numpy(starts))
            self.codes.append(torch.from_numpy(ordered[starts[:-1], level]))
            self.first_child.append(torch.from_numpy(first_child))
            self.max_children.append(int(np.diff(first_child).max()))
            parent_starts = starts

    def children(self, level: int, parents: Tensor) -> Children:
        """The children on `level` of `parents` (int64 [...], nodes of level - 1)."""
        first = self.first_child[level][parents].unsqueeze(-1)
        last = self.first_child[level][parents + 1].unsqueeze(-1)
        nodes = first + torch.arange(self.max_children[level], device=parents.device)
        legal = nodes < last
        nodes = torch.where(legal, nodes, 0)
        return Children(nodes=nodes, codes=torch.where(legal, self.codes[level][nodes], 0), legal=legal)

    def child_slots(self, level: int, items: Tensor) -> tuple[Tensor, Tensor]:
        """For `items` (int64 [...]): the parent node on level - 1 and the item's slot among that parent's children."""
        nodes = self.paths[items, level]
        parents = self.paths[items, level - 1] if level else torch.zeros_like(nodes)
        return parents, nodes - self.first_child[level][parents]
