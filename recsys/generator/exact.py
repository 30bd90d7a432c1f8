"""Lists that are proven: requests whose list is not certified are searched again, with more beams and less to look at.

The k-th rank of a list is a floor: no prefix below it leads to a better item. A further search therefore follows only
prefixes above the floor, as many as there are, up to a limit that grows fourfold until the list is certified or the
budget is spent. Knows no models: a search is a call.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from recsys.generator.decoder import Found, is_certified

_GROWTH = 4
_SLACK = 1e-4
"""Nats by which the floor lies lower: the same prefix in a batch of another size differs in its last bits."""


class Search(Protocol):
    """A search of some requests of a batch, whose histories are encoded already."""

    def __call__(self, rows: Tensor, beams: int, floor: Tensor | None, /) -> Found:
        """The lists of the requests at `rows` (int64 [R]), without what ranks below `floor` ([R])."""


def widen(search: Search, found: Found, *, beams: int, max_beams: int, at_a_time: int) -> Found:
    """`found` with every list certified that at most `max_beams` beams can certify; else the best that is known.

    Args:
        search: searches again.
        found: what `beams` beams gave for B requests.
        beams: width of the first search.
        max_beams: the budget; below `beams` nothing is searched again.
        at_a_time: requests that are searched together with `beams` beams; fewer, the more beams there are.
    """
    limit = beams
    while limit < max_beams:
        open_rows = (~found.certified).nonzero().squeeze(1)
        if len(open_rows) == 0:
            break
        limit = min(_GROWTH * limit, max_beams)
        for rows in torch.split(open_rows, max(1, at_a_time * beams // limit)):
            known = found.select(rows)
            found = found.replace(rows, _join(known, search(rows, limit, known.ranks[:, -1] - _SLACK)))
    return found


def _join(known: Found, new: Found) -> Found:
    """The best of both lists; what is given up is what the new search gave up, which looked at all that is above."""
    repeated = (known.items.unsqueeze(2) == new.items.unsqueeze(1)).any(2)
    places = torch.cat([known.places.masked_fill(repeated, torch.iinfo(torch.int64).max), new.places], dim=1)
    ranks = torch.cat([known.ranks.masked_fill(repeated, -torch.inf), new.ranks], dim=1)
    items, scores = (torch.cat(pair, dim=1) for pair in ((known.items, new.items), (known.scores, new.scores)))
    order = places.argsort(dim=1, stable=True)
    order = order.gather(1, ranks.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order[:, : known.items.shape[1]]
    items, scores, ranks, places = (table.gather(1, order) for table in (items, scores, ranks, places))
    none = ranks == -torch.inf
    return Found(
        items=items.masked_fill(none, -1),
        scores=scores.masked_fill(none, -torch.inf),
        ranks=ranks,
        places=places,
        bound=new.bound,
        bound_place=new.bound_place,
        certified=is_certified(ranks, places, new.bound, new.bound_place),
    )
