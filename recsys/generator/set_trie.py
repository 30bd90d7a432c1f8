"""The catalogue as sets of tokens: items whose codes have no order. Knows nothing about models or scores.

A token is a code of one codebook. Tokens may be emitted in any order; what remains possible after some of them are
the items that own them all, the intersection of the tokens' posting lists. A search therefore carries, for each beam,
its possible items; no table over subsets of tokens is kept, and nothing is padded to the longest list.

Shapes: N items, M codebooks, K the codes of the largest one, V tokens in all, R rows (beams of all requests, or
training targets), E pairs of a row and an item that is possible for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.generator.trie import ItemTrie


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """The items still possible for each of R rows, as pairs in ascending order of rows."""

    rows: Tensor
    """int64 [E]."""
    items: Tensor
    """int64 [E]; ascending within a row."""
    num_rows: int
    """R."""

    def counts(self) -> Tensor:
        """int64 [R]: possible items of each row."""
        return torch.bincount(self.rows, minlength=self.num_rows)

    def select(self, chosen: Tensor) -> Members:
        """The members of the rows `chosen` (int64 [R']), which become rows 0 .. R' - 1."""
        return _segments(self.items, torch.nn.functional.pad(self.counts().cumsum(0), (1, 0)), chosen)


class SetTrie:
    """An immutable catalogue of token sets; build a new one and swap it in to change the catalogue.

    Args:
        codes: int64 [N, M], rows unique, `0 <= codes[:, r] < codebook_sizes[r]`.
        codebook_sizes: number of codes of each codebook.

    Raises:
        ArtifactError: two items share all codes, or a code is outside its codebook.
    """

    def __init__(self, codes: npt.NDArray[np.int64], codebook_sizes: Sequence[int]) -> None:
        # Uniqueness and ranges are the same question for tuples and for sets, and so is the order of ties.
        prefixes = ItemTrie(codes, codebook_sizes)
        self.num_items, self.num_levels = prefixes.num_items, prefixes.num_levels
        self.codebook_sizes = prefixes.codebook_sizes
        self.items = prefixes.items
        """int64 [N]: the items in the order of their codes, which is the order of ties."""
        self.positions = prefixes.positions
        """int64 [N]: the place of each item in that order."""
        self.codes = torch.from_numpy(np.ascontiguousarray(codes, dtype=np.int64))
        """int64 [N, M]."""
        self.width = max(self.codebook_sizes)
        """K: slots of a codebook; a smaller one leaves its last slots illegal."""
        offsets = np.cumsum([0, *self.codebook_sizes[:-1]])
        self.offsets = torch.from_numpy(offsets.astype(np.int64))
        """int64 [M]: code c of codebook r is token offsets[r] + c."""
        self.num_tokens = sum(self.codebook_sizes)
        """V."""
        tokens = codes + offsets
        self.tokens = torch.from_numpy(tokens.astype(np.int64))
        """int64 [N, M]: the tokens of each item."""
        self.posting_items = torch.from_numpy(np.argsort(tokens.T, axis=None, kind="stable") % self.num_items)
        """int64 [M * N]: the owners of every token, token by token."""
        lengths = np.bincount(tokens.ravel(), minlength=self.num_tokens)
        self.posting_starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
        """int64 [V + 1]: token t is owned by posting_items[posting_starts[t] : posting_starts[t + 1]]."""
        self.codebook_of_token = torch.repeat_interleave(
            torch.arange(self.num_levels), torch.tensor(self.codebook_sizes)
        )
        """int64 [V]."""
        self._owned = torch.zeros(self.num_levels, self.width, dtype=torch.bool)
        for codebook, size in enumerate(self.codebook_sizes):
            start = int(offsets[codebook])
            self._owned[codebook, :size] = torch.from_numpy(lengths[start : start + size] > 0)

    def owners(self, tokens: Tensor) -> Members:
        """The items that own the token of each row (int64 [R])."""
        return _segments(self.posting_items, self.posting_starts, tokens)

    def narrow(self, members: Members | None, parents: Tensor, tokens: Tensor) -> Members:
        """What remains possible for new rows: the items of old row `parents` (int64 [R]) that own `tokens` (int64 [R]).

        `members` None stands for the whole catalogue.
        """
        if members is None:
            return self.owners(tokens)
        wide = members.select(parents)
        wanted = tokens[wide.rows]
        owns = self.tokens[wide.items, self.codebook_of_token[wanted]] == wanted
        return Members(rows=wide.rows[owns], items=wide.items[owns], num_rows=wide.num_rows)

    def slots(self, members: Members, codebook: Tensor) -> Tensor:
        """int64 [E]: the place of each pair in a flat [R * K], by its item's code in its row's `codebook` ([R])."""
        return members.rows * self.width + self.codes[members.items, codebook[members.rows]]

    def legal(self, members: Members | None, codebook: Tensor) -> Tensor:
        """bool [R, K]: the codes of each row's `codebook` (int64 [R]) that some possible item has."""
        if members is None:
            return self._owned[codebook]
        legal = torch.zeros(len(codebook) * self.width, dtype=torch.bool, device=codebook.device)
        legal[self.slots(members, codebook)] = True
        return legal.view(-1, self.width)


def _segments(values: Tensor, starts: Tensor, chosen: Tensor) -> Members:
    """The segments `chosen` (int64 [R]) of `values`, of which segment s is values[starts[s] : starts[s + 1]]."""
    first = starts[chosen]
    lengths = starts[chosen + 1] - first
    rows = torch.repeat_interleave(torch.arange(len(chosen), device=chosen.device), lengths)
    before = lengths.cumsum(0) - lengths
    within = torch.arange(len(rows), device=chosen.device) - before[rows]
    return Members(rows=rows, items=values[first[rows] + within], num_rows=len(chosen))
