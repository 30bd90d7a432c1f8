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

from recsys.data.sequences import IntArray
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
        if (codes.min(axis=0) < 0).any() or (codes.max(axis=0) >= np.asarray(codebook_sizes)).any():
            out_of_range = (codes < 0) | (codes >= np.asarray(codebook_sizes))
            item, level = (int(index) for index in np.argwhere(out_of_range)[0])
            raise ArtifactError(
                f"codes: item {item} has code {codes[item, level]} on level {level}, "
                f"whose codebook has {codebook_sizes[level]} codes"
            )
        order, starts_of_level = _sort(codes, codebook_sizes)
        if len(starts_of_level[-1]) < len(codes):
            position = int(np.setdiff1d(np.arange(len(codes)), starts_of_level[-1])[0])
            first, second = sorted(order[position - 1 : position + 1].tolist())
            raise ArtifactError(
                f"codes: items {first} and {second} share {codes[first].tolist()}; "
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
        node_of_position = np.empty(codes.shape, dtype=np.int64)
        parent_starts = np.array([0, self.num_items])
        for level, firsts in enumerate(starts_of_level):
            starts = np.append(firsts, self.num_items)
            node_of_position[:, level] = np.repeat(np.arange(len(firsts)), np.diff(starts))
            first_child = np.searchsorted(starts, parent_starts)
            self.starts.append(torch.from_numpy(starts))
            self.codes.append(torch.from_numpy(codes[order[firsts], level]))
            self.first_child.append(torch.from_numpy(first_child))
            self.max_children.append(int(np.diff(first_child).max()))
            parent_starts = starts
        self.paths = torch.from_numpy(node_of_position[self.positions.numpy()])
        """int64 [N, L]: the node of each item on each level."""

    @property
    def num_bytes(self) -> int:
        """Memory of all its arrays."""
        tables = [self.items, self.positions, self.paths, *self.starts, *self.codes, *self.first_child]
        return sum(table.nbytes for table in tables)

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


def _sort(codes: IntArray, codebook_sizes: Sequence[int]) -> tuple[IntArray, list[IntArray]]:
    """The items in the order of their codes (int64 [N]), and for each level the sorted positions where prefixes begin.

    Codes that fit 64 bits together are sorted as one integer, which is several times faster than column by column.
    """
    widths = [max(1, (int(size) - 1).bit_length()) for size in codebook_sizes]
    if sum(widths) > 64:
        order = np.lexsort(codes.T[::-1])
        ordered = codes[order]
        differs = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
        return order, [np.append(0, np.flatnonzero(column) + 1) for column in differs.T]
    keys = np.zeros(len(codes), dtype=np.uint64)
    for level, width in enumerate(widths):
        keys = (keys << np.uint64(width)) | codes[:, level].astype(np.uint64)
    order = np.argsort(keys)
    keys = keys[order]
    changes = keys[1:] ^ keys[:-1]
    begins = []
    for level in range(len(widths)):
        # A prefix begins where a bit of its own code, or of one before it, changes.
        below = np.uint64(sum(widths[level + 1 :]))
        begins.append(np.append(0, np.flatnonzero(changes >> below) + 1))
    return order, begins
