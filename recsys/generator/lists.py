"""The lists of one batch of encoded histories: one search, more of them where a list must be proven or capped.

A history is read once: every search goes on from the same prefix, which stays as it is. Knows no users and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from recsys.generator.consistency import Consistency
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import Found, beam_search
from recsys.generator.diversity import capped
from recsys.generator.exact import widen
from recsys.generator.graphs import SearchGraphs
from recsys.generator.gumbel import GumbelNoise
from recsys.generator.recommendations import Shortage
from recsys.generator.scoring import PrefixModel
from recsys.generator.set_trie import SetTrie
from recsys.generator.tree_decoding import Prefix, select
from recsys.generator.trie import ItemTrie


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchPlan:
    """How lists are looked for."""

    k: int
    """Length of the lists."""
    beams: int
    """Width of the search."""
    max_beams: int | None = None
    """Up to how many beams a list that is not certified is searched again; None leaves it as it is."""
    temperature: float = 1.0
    """Of every step; see `walk.temper`."""
    consistency: Consistency | None = None
    """Gives up paths whose codes point to unrelated categories."""


@torch.inference_mode()
def find_lists(
    model: PrefixModel,
    trie: ItemTrie | SetTrie,
    prefix: Prefix,
    constraints: Constraints,
    plan: SearchPlan,
    seeds: Tensor | None = None,
    graphs: SearchGraphs | None = None,
) -> Found:
    """The lists of B requests, on the CPU.

    Args:
        model: gives the logits.
        trie: the catalogue.
        prefix: the encoded histories.
        constraints: of the B requests.
        plan: how to search.
        seeds: int64 [B]; lists are samples without replacement then, see `gumbel`.
        graphs: what of it a device may do at one go.
    """
    batch_size = len(prefix.lengths)

    def run(rows: Tensor, beams: int, floor: Tensor | None, held: Constraints) -> Found:
        part = prefix if len(rows) == batch_size else select(prefix, rows.to(prefix.hidden.device))
        search: Callable[..., Found]
        if graphs is None:
            search = partial(beam_search, model, trie, model.state(part), batch_size=len(rows))
        else:
            search = partial(graphs.search, model, trie, part)
        found = search(
            k=plan.k,
            beams=beams,
            constraints=held,
            temperature=plan.temperature,
            floor=None if floor is None else floor.to(part.hidden.device),
            noise=None if seeds is None else GumbelNoise(seeds[rows].to(part.hidden.device)),
            pruning=None if plan.consistency is None else plan.consistency.pruning(),
        )
        return found.to(torch.device("cpu"))

    def settle(rows: Tensor, held: Constraints) -> Found:
        found = run(rows, plan.beams, None, held)
        if plan.max_beams is None:
            return found
        return widen(
            lambda some, beams, floor: run(rows[some], beams, floor, held.select(some.numpy())),
            found,
            beams=max(plan.beams, plan.k),
            max_beams=plan.max_beams,
            at_a_time=batch_size,
        )

    if constraints.caps:
        return capped(settle, constraints, plan.k, batch_size)
    return settle(torch.arange(batch_size), constraints)


def shortages(items: Tensor, constraints: Constraints, num_items: int) -> Sequence[Shortage | None]:
    """Why each list (int64 [B, k], -1 for none) is short, of `num_items` in the catalogue; None for a full one."""
    k = items.shape[1]
    reasons: list[Shortage | None] = [None] * len(items)
    for row in (items[:, -1] < 0).nonzero().squeeze(1).tolist():
        permitted = constraints.num_permitted(row, num_items)
        if permitted == 0:
            reasons[row] = "nothing_permitted"
        elif permitted >= k:
            reasons[row] = "caps"
        elif num_items < k and permitted == num_items:
            reasons[row] = "small_catalogue"
        else:
            reasons[row] = "few_permitted"
    return reasons
