"""Reading and searching as CUDA graphs: a request is a few launches instead of thousands.

A small model on a GPU waits for Python: each of a search's kernels takes microseconds, and so does its launch. A graph
is recorded once for a size (requests, rows of the prefix, beams, length of the lists) and replayed for every request
that fits into it. All levels of a search are one graph, as their number is known (the fixed steps of xGR, arXiv
2512.11529). What is recorded is the decoder itself, over tensors that stay where they are and whose shapes do not
depend on what is in them (`FlatModel.fixed_shapes`); its lists are those of `beam_search`.

On a device without graphs the same function runs over the same tensors, at every call: slower than without them, and
how its results are checked where there is no GPU.

Shapes: B requests, S rows, T items, k items of a list.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from recsys.generator import caches
from recsys.generator.constraints import Constraints, RangeCounter
from recsys.generator.decoder import Found, Noise, Pruning, beam_search
from recsys.generator.flat import FlatModel
from recsys.generator.mask_counts import CountTable
from recsys.generator.nested import NestedModel
from recsys.generator.scoring import PrefixModel
from recsys.generator.sessions import SessionModel
from recsys.generator.set_trie import SetTrie
from recsys.generator.tree_decoding import Prefix
from recsys.generator.trie import ItemTrie

_LEAST_ITEMS, _ROW_STEP, _LEAST_DENIED = 8, 32, 16
"""Prefixes are padded to multiples, histories and denied items to powers of two from the least on."""
_FOUND = tuple(field.name for field in fields(Found))

_log = logging.getLogger(__name__)


class Recorded:
    """A function of tensors that stay where they are, run for values that are put there.

    Args:
        function: reads `buffers` and returns tensors; no shape may depend on a value, and nothing may leave the device.
        buffers: all of one device.
        pool: of the memory of graphs that never run at the same time.
    """

    def __init__(self, function: Callable[[], Sequence[Tensor]], buffers: Sequence[Tensor], pool: Any) -> None:
        self._function = function
        self._buffers = buffers
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: Sequence[Tensor] = ()
        self._device = buffers[0].device
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                self._record(pool)

    def _record(self, pool: Any) -> None:
        # Libraries set up their work space at the first call, and models what they keep from call to call.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._function()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = self._function()

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        """What the function returns, in memory of the caller's own.

        Args:
            values: one for each buffer, at most as large in each dimension. What is behind them there stays as it was.
        """
        regions = [buffer[tuple(map(slice, value.shape))] for buffer, value in zip(self._buffers, values, strict=True)]
        torch._foreach_copy_(regions, list(values))
        if self._graph is None:
            return list(self._function())
        with torch.cuda.device(self._device):
            self._graph.replay()
        # The next replay writes over them.
        kept = [torch.empty_like(output) for output in self._outputs]
        torch._foreach_copy_(kept, list(self._outputs))
        return kept


@dataclass(frozen=True, kw_only=True)
class GraphCounts:
    """What passes over a model came to, since the beginning."""

    recorded: int
    """Graphs that were recorded."""
    replayed: int
    """Passes by a graph."""
    eager: Mapping[str, int]
    """Passes without one, by the reason."""


class SearchGraphs:
    """The graphs of one model, recorded as requests need them. May be shared by threads.

    Args:
        model: on its device. Its weights may not change any more.
        batch_sizes: a batch is padded to the next of them; larger ones do without a graph.
        max_graphs: no further ones are recorded.
    """

    def __init__(
        self,
        model: FlatModel | NestedModel,
        *,
        batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
        max_graphs: int = 256,
    ) -> None:
        self.model = model
        self._fixed = copy.copy(model)
        self._fixed.fixed_shapes = True
        if isinstance(self._fixed, NestedModel):
            # Graphs know where tables lie: these are their own, and stay.
            self._fixed._frozen_means = {}
        self._batch_sizes = sorted(batch_sizes)
        self._max_graphs = max_graphs
        self._pool = torch.cuda.graph_pool_handle() if model.learned.is_cuda else None
        self._lock = threading.Lock()
        """Held while a graph is recorded, for as long as that takes."""
        self._count_lock = threading.Lock()
        self._graphs: dict[Hashable, Recorded] = {}
        self._empty_cache: Any = None
        self._replayed = 0
        self._eager: Counter[str] = Counter()

    @property
    def counts(self) -> GraphCounts:
        """See `GraphCounts`."""
        with self._count_lock:
            return GraphCounts(recorded=len(self._graphs), replayed=self._replayed, eager=dict(self._eager))

    def pass_over(self, reason: str) -> None:
        """Count a pass without a graph."""
        with self._count_lock:
            is_first = reason not in self._eager
            self._eager[reason] += 1
        if is_first:
            _log.info("without a CUDA graph, %s", reason)

    @torch.inference_mode()
    def encode(self, model: SessionModel, items: Tensor, lengths: Tensor) -> Prefix:
        """What `model.encode` makes of histories (int64 [B, T], right-padded) of `lengths` (int64 [B])."""
        batch_size, count = items.shape
        width = min(_power_of_two(count, _LEAST_ITEMS), self.model.config.max_history)

        def record(size: int) -> Recorded:
            buffers = [items.new_zeros(size, width), lengths.new_zeros(size)]

            def read() -> Sequence[Tensor]:
                prefix = self._fixed.encode(*buffers)
                tables = caches.tables(prefix.cache)
                self._empty_cache = caches.over(prefix.cache, [items.new_empty(0)] * len(tables))
                return [prefix.hidden, prefix.lengths, *tables]

            return Recorded(read, buffers, self._pool)

        obstacle = self._other(model) or (None if self.model.users is None else "tokens of users")
        found = self._replay(("encode", width), record, [items, lengths], obstacle)
        if found is None:
            return model.encode(items, lengths)
        hidden, ends, *tables = (output[:batch_size] for output in found)
        return Prefix(hidden=hidden, cache=caches.over(self._empty_cache, tables), lengths=ends)

    @torch.inference_mode()
    def search(
        self,
        model: PrefixModel,
        trie: ItemTrie | SetTrie,
        prefix: Prefix,
        *,
        k: int,
        beams: int,
        constraints: Constraints,
        temperature: float = 1.0,
        floor: Tensor | None = None,
        noise: Noise | None = None,
        pruning: Pruning | None = None,
    ) -> Found:
        """What `beam_search` finds for B requests from what `model` has read; see there for the arguments.

        Floors, noise and pruning are those of searches without a graph.
        """
        counted: Constraints | RangeCounter = constraints
        if isinstance(trie, ItemTrie):
            counted = RangeCounter(trie, constraints, len(prefix.lengths), in_table=True)
            special = {"exact lists": floor, "samples": noise, "consistency": pruning}
            obstacle = self._other(model) or next((name for name, value in special.items() if value is not None), None)
            found = self._search(trie, prefix, counted, k, beams, temperature, obstacle)
            if found is not None:
                return found
        return beam_search(
            model,
            trie,
            model.state(prefix),
            batch_size=len(prefix.lengths),
            k=k,
            beams=beams,
            constraints=counted,
            temperature=temperature,
            floor=floor,
            noise=noise,
            pruning=pruning,
        )

    def _search(
        self,
        trie: ItemTrie,
        prefix: Prefix,
        counter: RangeCounter,
        k: int,
        beams: int,
        temperature: float,
        obstacle: str | None,
    ) -> Found | None:
        batch_size = len(prefix.lengths)
        allowed, denied = None, counter.denied
        if counter.allowed is not None:
            assert isinstance(counter.allowed, CountTable), "as it was asked for"
            allowed = counter.allowed.table
        if denied is not None:
            width = _power_of_two(denied.shape[1], _LEAST_DENIED)
            denied = torch.nn.functional.pad(denied, (0, width - denied.shape[1]), value=trie.num_items)
        # A nested model's search reads no keys and values.
        tables = caches.tables(prefix.cache) if isinstance(self._fixed, FlatModel) else []
        rows = _multiple(prefix.cache.get_seq_length(), _ROW_STEP) if tables else 0
        one_for_all = allowed is not None and len(allowed) < batch_size

        def record(size: int) -> Recorded:
            hidden = prefix.hidden.new_zeros(size, prefix.hidden.shape[1])
            lengths = prefix.lengths.new_ones(size)
            past = [table.new_zeros(size, table.shape[1], rows, table.shape[3]) for table in tables]
            read = Prefix(hidden=hidden, cache=caches.over(prefix.cache, past) if past else None, lengths=lengths)
            held, limits = RangeCounter(trie, Constraints(), size), []
            if allowed is not None:
                limits.append(allowed.new_zeros(1 if one_for_all else size, allowed.shape[1]))
                held.allowed = CountTable(limits[-1])
            if denied is not None:
                limits.append(denied.new_full((size, denied.shape[1]), trie.num_items))
                held.denied = limits[-1]

            def search() -> Sequence[Tensor]:
                found = beam_search(
                    self._fixed,
                    trie,
                    self._fixed.state(read),
                    batch_size=size,
                    k=k,
                    beams=beams,
                    constraints=held,
                    temperature=temperature,
                )
                return [getattr(found, name) for name in _FOUND]

            return Recorded(search, [hidden, lengths, *past, *limits], self._pool)

        limits = [table for table in (allowed, denied) if table is not None]
        filters = (allowed is not None, one_for_all, 0 if denied is None else denied.shape[1])
        found = self._replay(
            ("search", rows, k, beams, temperature, *filters),
            record,
            [prefix.hidden, prefix.lengths, *tables, *limits],
            obstacle,
        )
        if found is None:
            return None
        return Found(**{name: table[:batch_size] for name, table in zip(_FOUND, found, strict=True)})

    def _other(self, model: object) -> str | None:
        return None if model is self.model else "another model"

    def _replay(
        self,
        kind: tuple[Hashable, ...],
        record: Callable[[int], Recorded],
        values: Sequence[Tensor],
        obstacle: str | None,
    ) -> list[Tensor] | None:
        """What the graph of a kind makes of `values`, recorded when there is none yet; None, and counted, without."""
        size = next((size for size in self._batch_sizes if size >= len(values[0])), None)
        with self._lock:
            if obstacle is None and size is not None:
                graph = self._graphs.get((*kind, size))
                if graph is None and len(self._graphs) < self._max_graphs:
                    graph = record(size)
                    with self._count_lock:
                        self._graphs[(*kind, size)] = graph
                if graph is not None:
                    with self._count_lock:
                        self._replayed += 1
                    return graph(values)
        self.pass_over(f"{kind[0]}: {obstacle or ('large batch' if size is None else 'many sizes')}")
        return None


def _power_of_two(count: int, least: int) -> int:
    """The next one from `count` on, and from `least`, which is one."""
    return max(least, 1 << (count - 1).bit_length())


def _multiple(count: int, step: int) -> int:
    """`count` rounded up to a multiple of `step`."""
    return -(-count // step) * step
