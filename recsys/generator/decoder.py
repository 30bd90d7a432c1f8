"""Constrained beam search over an item trie: the one decoder of evaluation, rollouts and the API.

Knows a model only through `SidModel`: encode a batch of histories once, then read the logits of legal children and
advance the beams level by level; and a catalogue only through its `Walk`, over a prefix tree or sets of tokens.
Vectorised over requests and beams. Log-probabilities are normalised over a node's legal children, so those of all items
sum to 1; a request's constraints mask candidates without renormalising, so the order among permitted items is their
unconstrained order.

A search knows what it gave up. Ranks only fall on the way down, so a list whose last rank is above that of every
prefix that was given up is the list that scoring the whole catalogue gives: it is certified.

Shapes: B requests, W beams, C ways on from a beam, S = W * C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recsys.generator.constraints import Constraints, RangeCounter
from recsys.generator.set_trie import SetTrie
from recsys.generator.set_walk import SetWalk
from recsys.generator.trie import ItemTrie
from recsys.generator.walk import PrefixWalk, SidModel, Walk, temper


class Noise(Protocol):
    """Ranks that are not the scores: random ones, for samples (see `gumbel`)."""

    def ranks(self, totals: Tensor, walk: Walk) -> Tensor:
        """float64 [B, W, C]: of the ways on, from their log-probabilities `totals`; never above their beam's rank."""

    def keep(self, best: Tensor) -> None:
        """Go on with candidates `best` (int64 [B, W'], flat [W * C])."""


class Pruning(Protocol):
    """What is given up in spite of its score (see `consistency`)."""

    def doubtful(self, walk: Walk, level: int) -> Tensor | None:
        """bool [B, S]: candidates to give up as long as k others are left; None for none."""

    def keep(self, best: Tensor, codes: Tensor) -> None:
        """Go on with candidates `best` (int64 [B, W'], flat [W * C]), which took `codes` (int64 [B, W'])."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The lists of one search, best rank first; equal ranks are ordered by semantic ID."""

    items: Tensor
    """int64 [B, k]; -1 once no permitted item is left."""
    scores: Tensor
    """float32 [B, k]: log-probabilities; -inf beside -1."""
    ranks: Tensor
    """[B, k]: what the items are ordered by: the scores themselves, or those of a `Noise`; -inf beside -1."""
    places: Tensor
    """int64 [B, k]: each item's place among the sorted codes; N beside -1."""
    bound: Tensor
    """[B]: the best rank that was given up; -inf for none."""
    bound_place: Tensor
    """int64 [B]: no item below what was given up at that rank has a lower place."""

    certified: Tensor
    """bool [B]: nothing that was given up can come before the last item of the list."""

    def to(self, device: torch.device) -> Found:
        """The same on another device."""
        return Found(**{name: table.to(device) for name, table in vars(self).items()})

    def select(self, rows: Tensor) -> Found:
        """The lists of the requests at `rows` (int64 [R])."""
        return Found(**{name: table[rows] for name, table in vars(self).items()})

    def replace(self, rows: Tensor, lists: Found) -> Found:
        """These lists with those of the requests at `rows` (int64 [R]) being `lists`."""
        return Found(**{name: table.index_copy(0, rows, vars(lists)[name]) for name, table in vars(self).items()})


def is_certified(ranks: Tensor, places: Tensor, bound: Tensor, bound_place: Tensor) -> Tensor:
    """bool [B]: see `Found`, whose fields these are."""
    last, place = ranks[:, -1], places[:, -1]
    tied = (last == bound) & (place < bound_place)
    return (last > bound) | tied | (bound == -torch.inf)


def select_best(ranks: Tensor, count: int, order: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The `count` largest of `ranks` [B, S] and the best one after them; of equal ones the first.

    `topk` alone breaks ties arbitrarily, which would let batch size or engine change a list; so it compares integers
    that hold a rank and then its place. No step waits for a device.

    Args:
        ranks: float32 [B, S] without NaN, or float64 whose ties do not matter.
        count: at most S.
        order: int64 [B, S] in 0..2^31 - 1, which of equal ones is the first; their index when None.

    Returns:
        Their indices (int64 [B, count], ascending), and the index (int64 [B]) of the best of the others; None when
        there are no others.
    """
    size = ranks.shape[1]
    if ranks.dtype == torch.float32:
        # The bits of a float32, read as an integer, order positive numbers; those of negative ones must be turned over.
        # Adding 0 makes the two zeros one.
        bits = (ranks + 0.0).view(torch.int32)
        keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
        keys = keys - (torch.arange(size, device=ranks.device) if order is None else order)
    else:
        keys = ranks
    best = keys.topk(min(count + 1, size), dim=-1).indices
    return best[:, :count].sort(-1).values, best[:, count] if count < size else None


def start_walk(trie: ItemTrie | SetTrie, constraints: Constraints | RangeCounter, batch_size: int) -> Walk:
    """A walk at the root, one beam a request; over an `ItemTrie`, constraints may have been counted already."""
    if isinstance(trie, SetTrie):
        assert isinstance(constraints, Constraints), "ranges are those of an ItemTrie"
        return SetWalk(trie, constraints, batch_size)
    counted = constraints if isinstance(constraints, RangeCounter) else RangeCounter(trie, constraints, batch_size)
    return PrefixWalk(trie, counted, batch_size)


@torch.inference_mode()
def beam_search(
    model: SidModel,
    trie: ItemTrie | SetTrie,
    state: Any,
    *,
    batch_size: int,
    k: int,
    beams: int,
    constraints: Constraints | RangeCounter,
    temperature: float = 1.0,
    floor: Tensor | None = None,
    noise: Noise | None = None,
    pruning: Pruning | None = None,
) -> Found:
    """The k best items of each request that the beam finds; all permitted ones when k exceeds their number.

    Args:
        model: gives the logits.
        trie: the catalogue.
        state: what `model` made of B requests, one beam each: its `start`, or another way in that it has.
        batch_size: B.
        k: length of the lists.
        beams: prefixes kept a level, at least k are kept.
        constraints: of the B requests (see `start_walk`); caps are not the business of one search (see `diversity`).
        temperature: every step's log-probabilities are divided by it and normalised again.
        floor: [B], what ranks below it is of no interest. Beams are then as many as are needed, up to `beams`.
        noise: gives the ranks; they are the scores when None.
        pruning: gives prefixes up in spite of their score.
    """
    beams = max(beams, k)
    walk = start_walk(trie, constraints, batch_size)
    device = trie.items.device
    scores = torch.zeros((batch_size, 1), device=device)
    ranks = scores
    bound = torch.full(
        (batch_size,), -torch.inf, dtype=torch.float32 if noise is None else torch.float64, device=device
    )
    bound_place = torch.full((batch_size,), trie.num_items, dtype=torch.int64, device=device)
    for level in range(trie.num_levels):
        is_leaf = level == trie.num_levels - 1
        # A beam without permitted items enters with -inf, and -inf + x stays there, so it cannot revive.
        totals = scores.unsqueeze(-1) + temper(walk.expand(model, state, level), temperature)
        candidates = totals if noise is None else noise.ranks(totals, walk)
        alive = walk.alive()
        if alive is not None:
            candidates = candidates.masked_fill(~alive, -torch.inf)
        candidates = candidates.flatten(1)
        if pruning is not None:
            doubtful = pruning.doubtful(walk, level)
            if doubtful is not None:
                doubtful = _as_long_as_others_are_left(candidates, doubtful, k)
                given_up = candidates.masked_fill(~doubtful, -torch.inf).amax(-1)
                bound, bound_place = torch.maximum(bound, given_up), torch.where(given_up >= bound, 0, bound_place)
                candidates = candidates.masked_fill(doubtful, -torch.inf)
        width = min(k if is_leaf else beams, candidates.shape[1])
        if floor is not None and not is_leaf:
            candidates = candidates.masked_fill(candidates < floor.unsqueeze(1), -torch.inf)
            width = min(width, max(k, int((candidates > -torch.inf).sum(-1).max())))
        best, cut = select_best(candidates, width, walk.leaf_order() if is_leaf else None)
        if cut is not None and not is_leaf:
            # Leaves that are cut stand behind all that are kept: only prefixes can hide something better.
            rank, place = candidates.gather(1, cut.unsqueeze(1)).squeeze(1), walk.first_places(cut)
            first = torch.where(rank == bound, torch.minimum(place, bound_place), bound_place)
            bound_place = torch.where(rank > bound, place, first)
            bound = torch.maximum(bound, rank)
        scores, ranks = totals.flatten(1).gather(1, best), candidates.gather(1, best)
        scores = scores.masked_fill(ranks == -torch.inf, -torch.inf)
        if noise is not None:
            noise.keep(best)
        parents, codes = walk.keep(level, best)
        if pruning is not None:
            pruning.keep(best, codes)
        if not is_leaf:
            state = model.advance(state, level, parents, codes)
    places, by_sid = walk.leaves().sort(dim=-1)
    ranks, order = ranks.gather(1, by_sid).sort(dim=-1, descending=True, stable=True)
    order = by_sid.gather(1, order)
    places, scores = walk.leaves().gather(1, order), scores.gather(1, order)
    none = ranks == -torch.inf
    missing = (0, k - ranks.shape[1])
    ranks = torch.nn.functional.pad(ranks, missing, value=-torch.inf)
    items = torch.nn.functional.pad(trie.items[places].masked_fill(none, -1), missing, value=-1)
    places = torch.nn.functional.pad(places.masked_fill(none, trie.num_items), missing, value=trie.num_items)
    return Found(
        items=items,
        scores=torch.nn.functional.pad(scores, missing, value=-torch.inf),
        ranks=ranks,
        places=places,
        bound=bound,
        bound_place=bound_place,
        certified=is_certified(ranks, places, bound, bound_place),
    )


def _as_long_as_others_are_left(candidates: Tensor, doubtful: Tensor, k: int) -> Tensor:
    """bool [B, S]: `doubtful` without its best ones, of which as many stay as others are fewer than `k`."""
    others = ((candidates > -torch.inf) & ~doubtful).sum(-1, keepdim=True)
    count = min(k, candidates.shape[1])
    ranked = candidates.masked_fill(~doubtful, -torch.inf)
    best, _ = select_best(ranked, count)
    # From best to worst: `select_best` gives them in the order of their place.
    order = ranked.gather(1, best).sort(dim=-1, descending=True, stable=True).indices
    best = best.gather(1, order)
    stays = torch.arange(count, device=best.device) < k - others
    return doubtful & ~torch.zeros_like(doubtful).scatter(1, best, stays)
