"""Histories that stay encoded between requests: a new event costs one short forward pass instead of a whole history.

An entry is what a model has read of one session. It answers for exactly the items that it was made of: a request whose
history goes on from them reads only what is new, any other one is read anew. Knows no search and no users' data but
item indices; belongs to one model, so that another version never meets its entries.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.data.sequences import IntArray
from recsys.data.windows import pad_right, similar_lengths
from recsys.generator.tree_decoding import Prefix, split, stack


class SessionModel(Protocol):
    """A model whose reading can be kept and gone on from."""

    learned: Tensor
    """On the model's device."""

    def encode(self, items: Tensor, lengths: Tensor) -> Prefix:
        """Read right-padded histories (int64 [B, T]) of `lengths` (int64 [B])."""

    def extend(self, prefix: Prefix, items: Tensor) -> Prefix:
        """Read `items` (int64 [B, E]) after what was read; the sequences of `prefix` must be equally long."""

    def goes_on(self, known: IntArray, history: IntArray) -> bool:
        """Whether reading `history`, which begins with `known`, begins as reading `known` does."""

    def state(self, prefix: Prefix) -> Any:
        """The decoder's state with one beam a request; `prefix` stays as it is."""


@dataclass(frozen=True, kw_only=True)
class SessionCounts:
    """What the requests with a session came to, since the beginning."""

    hits: int
    """The history was encoded as it stood."""
    extensions: int
    """The history went on from an encoded one."""
    misses: int
    """The history was read as a whole."""


@dataclass(frozen=True, eq=False)
class _Entry:
    items: IntArray
    prefix: Prefix


class Sessions:
    """Encoded histories by session key, least recently used ones first to go. May be shared by threads.

    Args:
        max_bytes: memory of all keys, values and states together.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._hits = self._extensions = self._misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return self._bytes

    @property
    def counts(self) -> SessionCounts:
        """See `SessionCounts`."""
        return SessionCounts(hits=self._hits, extensions=self._extensions, misses=self._misses)

    def forget(self, key: str) -> None:
        """Drop a session, if it is there."""
        with self._lock:
            self._drop(key)

    @torch.inference_mode()
    def read(self, model: SessionModel, keys: Sequence[str | None], histories: Sequence[IntArray]) -> Prefix:
        """What `model` makes of `histories` (item indices, cut to what it reads), in their order.

        Args:
            model: the one model whose readings are kept here.
            keys: a session a history; equal keys may repeat, and None is of no session: nothing is kept of it.
            histories: int64 arrays, oldest first; may be empty.
        """
        prefixes: list[Prefix | None] = [
            None if key is None else self._go_on(model, key, history)
            for key, history in zip(keys, histories, strict=True)
        ]
        missing = np.array([row for row, prefix in enumerate(prefixes) if prefix is None], dtype=np.int64)
        lengths = np.array([len(histories[row]) for row in missing], dtype=np.int64)
        for group in similar_lengths(lengths):
            read = self._read(model, [histories[row] for row in missing[group]], lengths[group])
            for row, prefix in zip(missing[group].tolist(), split(read), strict=True):
                prefixes[row] = prefix
                key = keys[row]
                if key is not None:
                    self._keep(key, histories[row], prefix)
        return stack([prefix for prefix in prefixes if prefix is not None])

    @staticmethod
    def _read(model: SessionModel, histories: Sequence[IntArray], lengths: IntArray) -> Prefix:
        items = pad_right(np.concatenate(histories), lengths.cumsum() - lengths, lengths)
        device = model.learned.device
        return model.encode(torch.from_numpy(items).to(device), torch.from_numpy(lengths).to(device))

    def _go_on(self, model: SessionModel, key: str, history: IntArray) -> Prefix | None:
        with self._lock:
            entry = self._entries.get(key)
            known = 0 if entry is None else len(entry.items)
            if entry is None or not (
                np.array_equal(entry.items, history[:known])
                and (known == len(history) or model.goes_on(entry.items, history))
            ):
                self._misses += 1
                return None
            self._entries.move_to_end(key)
            new = history[known:]
            self._extensions += len(new) > 0
            self._hits += len(new) == 0
        if len(new) == 0:
            return entry.prefix
        items = torch.from_numpy(np.asarray(new, dtype=np.int64)).to(model.learned.device)
        prefix = model.extend(entry.prefix, items.unsqueeze(0))
        self._keep(key, history, prefix)
        return prefix

    def _keep(self, key: str, history: IntArray, prefix: Prefix) -> None:
        size = prefix.num_bytes
        with self._lock:
            self._drop(key)
            if size > self.max_bytes:
                return
            while self._bytes + size > self.max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[key] = _Entry(np.array(history, dtype=np.int64), prefix)
            self._bytes += size

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.prefix.num_bytes
