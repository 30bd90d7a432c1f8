"""A search's way through a `SetTrie`: which codebook each beam emits next, and which of its items are permitted.

The next codebook is the one whose best legal code is the most probable (confidence-based self-selection, REG4Rec, arXiv
2508.15308; the exact rule is ours). It follows from the beam's state alone, so each item is reached in exactly one
order: the probabilities of all items sum to 1, no item is found twice, and nothing has to be summed over orders.

Shapes: B requests, W beams, R = B * W rows, J codebooks that are left, M in all, K slots of a codebook, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.generator.constraints import Constraints
from recsys.generator.set_trie import Members, SetTrie


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenChildren:
    """What every row may emit next."""

    members: Members | None
    """The items still possible; None for the whole catalogue."""
    codebooks: Tensor
    """int64 [R, J]: the codebooks that are left, ascending."""
    legal: Tensor
    """bool [R, J, K]: codes that some possible item has."""


class _OrderFreeModel(Protocol):
    def child_logits(self, state: Any, level: int, children: TokenChildren) -> Tensor: ...


def confident_choice(logits: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the J codebooks left each row emits (int64 [R]), and its log-probabilities (float32 [R, K]).

    Each codebook is normalised over its own legal codes ([R, J, K] both); equal confidence goes to the first.
    """
    log_probs = logits.masked_fill(~legal, -torch.inf).log_softmax(-1)
    # Rows without any item, dead beams, would be NaN.
    log_probs = log_probs.masked_fill(~legal, -torch.inf)
    chosen = log_probs.amax(-1).argmax(-1)
    rows = torch.arange(len(chosen), device=chosen.device)
    return chosen, log_probs[rows, chosen]


def take_codebook(codebooks: Tensor, chosen: Tensor) -> Tensor:
    """int64 [R, J - 1]: `codebooks` [R, J] without the ones at `chosen` (int64 [R])."""
    others = torch.arange(codebooks.shape[1], device=codebooks.device) != chosen.unsqueeze(1)
    return codebooks[others].view(len(codebooks), -1)


class SetWalk:
    """The beams of B requests on their way from the whole catalogue to single items; see `walk.Walk`."""

    def __init__(self, trie: SetTrie, constraints: Constraints, batch_size: int) -> None:
        self.trie = trie
        self.permitted = _Permitted(trie, constraints, batch_size)
        self.batch_size = batch_size
        self.device = trie.items.device
        self.members: Members | None = None
        self.codebooks = torch.arange(trie.num_levels, device=self.device).expand(batch_size, -1)
        self.chosen = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self.legal: Tensor

    def expand(self, model: _OrderFreeModel, state: Any, level: int) -> Tensor:
        """float32 [B, W, K]: log-probabilities of the chosen codebook's codes; -inf where no item has them."""
        legal = torch.stack([self.trie.legal(self.members, column) for column in self.codebooks.unbind(1)], dim=1)
        children = TokenChildren(members=self.members, codebooks=self.codebooks, legal=legal)
        self.chosen, log_probs = confident_choice(model.child_logits(state, level, children), legal)
        self.legal = legal[torch.arange(len(legal), device=legal.device), self.chosen]
        return log_probs.view(self.batch_size, -1, self.trie.width)

    def alive(self) -> Tensor | None:
        """bool [B, W, K]: some permitted item has the code. None: all have one."""
        found = self.permitted.alive(self.members, self._codebook())
        return None if found is None else found.view(self.batch_size, -1, self.trie.width)

    def whole(self) -> Tensor:
        """bool [B, W, K]: some possible item has the code, and all that have it are permitted."""
        forbidden = self.permitted.forbidden(self.members, self._codebook())
        found = self.legal if forbidden is None else self.legal & ~forbidden
        return found.view(self.batch_size, -1, self.trie.width)

    def codes(self) -> Tensor:
        """int64 [B, W, K]: the token of each code; anything beyond a smaller codebook's end."""
        tokens = self.trie.offsets[self._codebook()].unsqueeze(1) + torch.arange(self.trie.width, device=self.device)
        return tokens.view(self.batch_size, -1, self.trie.width)

    def levels(self) -> Tensor:
        """int64 [B, W]: the codebook that each beam has chosen."""
        return self._codebook().view(self.batch_size, -1)

    def slots(self, items: Tensor) -> Tensor:
        """int64 [B, W]: the code that each beam's item (int64 [B, W]) has in the chosen codebook."""
        return self.trie.codes[items, self._codebook().view(items.shape)]

    def first_places(self, candidates: Tensor) -> Tensor:
        """int64 [B]: 0, as the items of a candidate may stand anywhere among the sorted codes."""
        return torch.zeros_like(candidates)

    def leaf_order(self) -> Tensor | None:
        """int64 [B, W * K]: the place of each way's one item among the sorted codes; None for a single codebook."""
        if self.members is None:
            return None
        slots = self.trie.slots(self.members, self._codebook())
        places = torch.zeros(len(self.codebooks) * self.trie.width, dtype=torch.int64, device=self.device)
        places[slots] = self.trie.positions[self.members.items]
        return places.view(self.batch_size, -1)

    def keep(self, level: int, best: Tensor) -> tuple[Tensor, Tensor]:
        """Go on with the candidates `best` (int64 [B, W'], flat [W * K]): their old beams and their tokens [B, W']."""
        beams, codes = best // self.trie.width, best % self.trie.width
        num_beams = len(self.codebooks) // self.batch_size
        parents = (beams + num_beams * torch.arange(self.batch_size, device=best.device).unsqueeze(1)).flatten()
        # A dead beam may hold a slot beyond its codebook; what it does no longer matters.
        tokens = (self.trie.offsets[self._codebook()][parents] + codes.flatten()).clamp(max=self.trie.num_tokens - 1)
        self.members = self.trie.narrow(self.members, parents, tokens)
        self.codebooks = take_codebook(self.codebooks, self.chosen)[parents]
        return beams, tokens.view(best.shape)

    def leaves(self) -> Tensor:
        """int64 [B, W]: the sorted position of each beam's one item, after the last step; 0 for a dead beam."""
        assert self.members is not None, "a search takes at least one step"
        positions = torch.zeros(len(self.codebooks), dtype=torch.int64, device=self.codebooks.device)
        positions[self.members.rows] = self.trie.positions[self.members.items]
        return positions.view(self.batch_size, -1)

    def _codebook(self) -> Tensor:
        """int64 [R]: the codebook that each row emits."""
        return self.codebooks.gather(1, self.chosen.unsqueeze(1)).squeeze(1)


class _Permitted:
    """Which items each request may be shown. Deny lists stay sparse, as sorted keys of request and item."""

    def __init__(self, trie: SetTrie, constraints: Constraints, batch_size: int) -> None:
        self.trie = trie
        self.batch_size = batch_size
        device = trie.items.device
        allow = constraints.allow_rows(trie.num_items, batch_size)
        # One mask for all requests is in memory once.
        shared = allow is not None and allow.strides[0] == 0
        self.allow = None
        if allow is not None:
            self.allow = torch.tensor(allow[:1] if shared else allow, device=device).expand(batch_size, -1)
        self.denied: Tensor | None = None
        deny = constraints.deny_rows(batch_size)
        if deny is not None:
            keys = [np.asarray(items, dtype=np.int64) + row * trie.num_items for row, items in enumerate(deny)]
            self.denied = torch.from_numpy(np.unique(np.concatenate(keys))).to(device)

    def alive(self, members: Members | None, codebook: Tensor) -> Tensor | None:
        """bool [R, K]: some permitted item of the row has the code in its `codebook` (int64 [R]). None: all do."""
        if self.allow is None and self.denied is None:
            return None
        if members is None:
            return self._counts_at_root(codebook) > 0
        requests = members.rows // (members.num_rows // self.batch_size)
        permitted = self._of(requests, members.items)
        alive = torch.zeros(len(codebook) * self.trie.width, dtype=torch.bool, device=codebook.device)
        alive[self.trie.slots(members, codebook)[permitted]] = True
        return alive.view(-1, self.trie.width)

    def forbidden(self, members: Members | None, codebook: Tensor) -> Tensor | None:
        """bool [R, K]: some possible item of the row with the code in its `codebook` is forbidden. None: none is."""
        if self.allow is None and self.denied is None:
            return None
        if members is None:
            return self._counts_at_root(codebook) < self._sizes_at_root(codebook)
        requests = members.rows // (members.num_rows // self.batch_size)
        permitted = self._of(requests, members.items)
        forbidden = torch.zeros(len(codebook) * self.trie.width, dtype=torch.bool, device=codebook.device)
        forbidden[self.trie.slots(members, codebook)[~permitted]] = True
        return forbidden.view(-1, self.trie.width)

    def _of(self, requests: Tensor, items: Tensor) -> Tensor:
        """bool [E]: whether each request (int64 [E]) may be shown the item (int64 [E])."""
        permitted = torch.ones_like(items, dtype=torch.bool)
        if self.allow is not None:
            permitted = self.allow[requests, items]
        if self.denied is not None and len(self.denied):
            keys = requests * self.trie.num_items + items
            found = torch.searchsorted(self.denied, keys).clamp(max=len(self.denied) - 1)
            permitted = permitted & (self.denied[found] != keys)
        return permitted

    def _sizes_at_root(self, codebook: Tensor) -> Tensor:
        """int64 [B, K]: the items of each code, for one row a request."""
        codes = self.trie.codes[:, codebook].T
        sizes = torch.zeros(self.batch_size, self.trie.width, dtype=torch.int64, device=codebook.device)
        return sizes.scatter_add(1, codes, torch.ones_like(codes))

    def _counts_at_root(self, codebook: Tensor) -> Tensor:
        """int64 [B, K]: the permitted items of each code, so that no deny list is spread over the catalogue."""
        width = self.trie.width
        if self.allow is None:
            counts = self._sizes_at_root(codebook)
        else:
            codes = self.trie.codes[:, codebook].T
            counts = torch.zeros(self.batch_size, width, dtype=torch.int64, device=codebook.device)
            counts = counts.scatter_add(1, codes, self.allow.long())
        if self.denied is not None:
            requests, items = self.denied // self.trie.num_items, self.denied % self.trie.num_items
            weight = torch.ones_like(items) if self.allow is None else self.allow[requests, items].long()
            slots = requests * width + self.trie.codes[items, codebook[requests]]
            counts = counts.flatten().index_add(0, slots, -weight).view(self.batch_size, width)
        return counts
