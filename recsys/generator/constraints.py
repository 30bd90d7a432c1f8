"""What one request may be shown, as range counts over the trie. Masks candidates, never their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.generator.groups import Groups
from recsys.generator.mask_counts import MaskCounts, count_mask, count_table
from recsys.generator.trie import ItemTrie


@dataclass(frozen=True, kw_only=True, eq=False)
class Cap:
    """At most `most` items of one group in a list: what is walked in order of score skips items of full groups.

    Raises:
        ValueError: `most` below 1; deny items instead.
    """

    groups: Groups
    """The groups of every item; an item counts in all of its own."""
    most: int
    """Items of a group that a list may hold."""
    given: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 [P]: items that stand in the list beside those that are found, and count; they may be more than `most`."""

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}; deny the items of a group instead")


@dataclass(frozen=True, kw_only=True, eq=False)
class Constraints:
    """Restrictions of a batch of B requests; all kinds hold together."""

    allow: npt.NDArray[np.bool_] | None = None
    """bool [N] for all requests or [B, N] for each; None allows the whole catalogue."""
    deny: Sequence[npt.NDArray[np.int64]] | None = None
    """B arrays of item indices (seen or excluded items); duplicates are harmless."""
    caps: Sequence[Cap] = ()
    """Of every request: how much of a list may be alike."""

    def select(self, rows: npt.NDArray[np.int64]) -> Constraints:
        """The restrictions of the requests at `rows`, in that order."""
        return Constraints(
            allow=self.allow[rows] if self.allow is not None and self.allow.ndim == 2 else self.allow,
            deny=[self.deny[row] for row in rows] if self.deny is not None else None,
            caps=self.caps,
        )

    def deny_also(self, items: Sequence[IntArray]) -> Constraints:
        """These restrictions with further items denied, an array a request."""
        if self.deny is not None:
            items = [np.concatenate(pair).astype(np.int64) for pair in zip(self.deny, items, strict=True)]
        return Constraints(allow=self.allow, deny=items, caps=self.caps)

    def within(self, allow: npt.NDArray[np.bool_] | None) -> Constraints:
        """These restrictions to items that `allow`, bool [N], allows as well; None allows all."""
        if allow is None:
            return self
        return Constraints(allow=allow if self.allow is None else self.allow & allow, deny=self.deny, caps=self.caps)

    def num_permitted(self, row: int, num_items: int) -> int:
        """How many of `num_items` items allow and deny leave to the request at `row`."""
        allow = None if self.allow is None else self.allow[row] if self.allow.ndim == 2 else self.allow
        denied = np.zeros(0, dtype=np.int64) if self.deny is None else np.unique(self.deny[row]).astype(np.int64)
        if allow is None:
            return num_items - len(denied)
        return int(allow.sum() - allow[denied].sum())

    def allow_rows(self, num_items: int, batch_size: int) -> npt.NDArray[np.bool_] | None:
        """bool [B, N], not to be written to: rows of one mask are the same memory. None where everything is allowed.

        Raises:
            ValueError: it is not of B requests and N items.
        """
        if self.allow is None:
            return None
        allow = np.atleast_2d(self.allow)
        if allow.shape not in ((1, num_items), (batch_size, num_items)):
            raise ValueError(f"allow must be [{num_items}] or [{batch_size}, {num_items}], got {list(allow.shape)}")
        return np.broadcast_to(allow, (batch_size, num_items))

    def deny_rows(self, batch_size: int) -> Sequence[npt.NDArray[np.int64]] | None:
        """B arrays; None where nothing is denied. Raises ValueError when they are not of B requests."""
        if self.deny is not None and len(self.deny) != batch_size:
            raise ValueError(f"deny must hold one array a request: {batch_size}, got {len(self.deny)}")
        return self.deny


class RangeCounter:
    """Counts a request's permitted items below any node: a node is alive when that count is positive.

    A deny list stays sparse (sorted positions and a binary search), because a dense row a request would cost B * N for
    a few seen items; so does a mask of few items, see `recsys.generator.mask_counts`.

    Args:
        trie: the catalogue.
        constraints: of the B requests.
        batch_size: B.
        in_table: masks become a table of counts whatever they permit, so that a recorded search can be given others.
    """

    def __init__(self, trie: ItemTrie, constraints: Constraints, batch_size: int, *, in_table: bool = False) -> None:
        self.trie = trie
        device = trie.items.device
        self.allowed: MaskCounts | None = None
        """Of the allowed items; None: all are."""
        self.denied: Tensor | None = None
        """int64 [B, D]: positions that are denied, ascending, then N; None: none is."""
        rows = constraints.allow_rows(trie.num_items, batch_size)
        if rows is not None and constraints.allow is not None:
            one_for_all = constraints.allow.ndim == 1 or len(constraints.allow) == 1
            if one_for_all and device.type == "cpu" and not in_table:
                self.allowed = count_mask(trie, constraints.allow if constraints.allow.ndim == 1 else rows[0])
            else:
                self.allowed = count_table(trie, rows[:1] if one_for_all else rows)
        deny = constraints.deny_rows(batch_size)
        if deny is not None:
            unique = [np.unique(items) for items in deny]
            listed = np.full((batch_size, max(1, max(len(row) for row in unique))), -1, dtype=np.int64)
            for line, row in zip(listed, unique, strict=True):
                line[: len(row)] = row
            # One copy to the device for all requests.
            items = torch.from_numpy(listed).to(device)
            positions = trie.positions[items.clamp(min=0)]
            counts = items >= 0
            if self.allowed is not None:
                counts &= self.allowed.permits(positions)
            self.denied = positions.masked_fill(~counts, trie.num_items).sort(-1).values

    def counts(self, level: int, nodes: Tensor) -> Tensor | None:
        """Integers like `nodes` (int64 [B, W, C], nodes of `level`): permitted items below each. None: all are."""
        if self.allowed is None and self.denied is None:
            return None
        flat = nodes.flatten(1)
        start, end = self.trie.starts[level][flat], self.trie.starts[level][flat + 1]
        count = end - start if self.allowed is None else self.allowed.before(end) - self.allowed.before(start)
        if self.denied is not None:
            count = count - torch.searchsorted(self.denied, end) + torch.searchsorted(self.denied, start)
        return count.view(nodes.shape)

    def alive(self, level: int, nodes: Tensor) -> Tensor | None:
        """bool like `nodes` (int64 [B, W, C], nodes of `level`): some permitted item lies below. None: all do."""
        counts = self.counts(level, nodes)
        return None if counts is None else counts > 0
