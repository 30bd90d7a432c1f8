"""The claim: an item is added, changed or removed in well under a second, in a catalogue of ten million items too.

What is measured is what a change through the API costs the service, beside HTTP: the store is told, the store is asked
what has changed, and a new version of the runtime (catalogue, filters, search, trie, generator, index) is made. A new
item goes through it twice: when it is put, and when it has its semantic ID from the frozen tokenizer. The text encoder
is not part of it: vectors come from categories.

    recsys bench catalogue [--sizes 10000 100000 1000000 10000000] [--repeats 5] [--json]

Items are synthetic: 4 codes of 256, 64 dimensions, two categories each, and a title. The generator is of the nested
shape with random weights; a filter that requests use by name is kept up to date. One thread, and its CPU time, which
other programs disturb least; the store's own, and that of its disk, comes on top.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from feature_store import OnlineStore
from recsys.bundle import Bundle
from recsys.data import Catalog
from recsys.generator import GeneratorConfig, ItemTrie, ModelConfig
from recsys.generator.filters import InRange, Range
from recsys.retrieval.index import ItemIndex
from recsys.retrieval.single import SourceRecommender
from recsys.retrieval.sources import TowerSource
from recsys.retrieval.towers import ContentTower
from serving.answers import Query
from serving.overlay import ItemFacts, Overlay
from serving.placing import BundlePlacer, Placement, place
from serving.runtime import ModelInfo, RecommenderRuntime
from training.random_twins import random_bundle

_DIM = 64
_GENERATOR = GeneratorConfig(model=ModelConfig(hidden_size=_DIM, num_layers=1, num_heads=2), beams=20)
_BULK = 1000
_CHEAP = InRange(range=Range(column="price", max=50))
_MIB = 1 << 20


def main(arguments: list[str]) -> dict[str, Any]:
    """CPU milliseconds, the median of some turns; mebibytes of the process."""
    parser = argparse.ArgumentParser(prog="recsys bench catalogue", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000], help="items")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each change")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [_measured(size, options.repeats) for size in options.sizes]
    return {"largest": rows[-1], "rows": rows}


def _measured(size: int, repeats: int) -> dict[str, Any]:
    bundle = random_bundle(size, dim=_DIM, config=_GENERATOR)
    started = time.process_time()
    trie = ItemTrie(bundle.semantic_ids.codes, bundle.semantic_ids.codebook_sizes)
    trie_ms = _ms(started)
    del trie
    with tempfile.TemporaryDirectory() as directory:
        store = OnlineStore.embedded(Path(directory) / "store")
        try:
            live = _Live(bundle, store)
            before = _rss_mib()
            added = [live.put({f"new{turn}": _facts(turn)}) for turn in range(repeats)]
            placed = [live.place([f"new{turn}"]) for turn in range(repeats)]
            changed = [live.put({f"B{turn}": _facts(turn)}) for turn in range(repeats)]
            removed = [live.remove(f"B{repeats + turn}") for turn in range(repeats)]
            live.ask()
            bulk = live.put({f"bulk{turn}": _facts(turn) for turn in range(_BULK)})
            return {
                "items": size,
                "add_ms": round(statistics.median(added), 1),
                "semantic_id_ms": round(statistics.median(placed), 1),
                "change_ms": round(statistics.median(changed), 1),
                "remove_ms": round(statistics.median(removed), 1),
                "bulk_1000_ms": round(bulk, 1),
                "bulk_1000_semantic_ids_ms": round(live.place([f"bulk{turn}" for turn in range(_BULK)]), 1),
                "trie_build_ms": round(trie_ms, 1),
                "rss_mib": round(before, 1),
                "rss_after_changes_mib": round(_rss_mib(), 1),
            }
        finally:
            store.close()


class _Live:
    """What `serving.live_catalogue` does for one model, without its event loop."""

    def __init__(self, bundle: Bundle, store: OnlineStore) -> None:
        tower = ContentTower(bundle.embeddings.vectors)
        num_items = bundle.catalog.num_items
        # Exact: to build a graph over a million vectors takes minutes, and a change does not touch it.
        content = TowerSource(tower, num_items, num_items, ItemIndex(tower.item_vectors, "flat"))
        self._placer = BundlePlacer(bundle)
        self._base = RecommenderRuntime(
            info=ModelInfo(name="bench", model_version="bench", created_at=datetime.now(UTC), libraries={}),
            catalog=bundle.catalog,
            recommender=bundle.recommender,
            dense=SourceRecommender(content, num_items),
            content=content,
            embeddings=bundle.embeddings.vectors,
            codes=bundle.semantic_ids.codes,
            item_counts=bundle.item_counts,
            report={},
            placer=self._placer,
        )
        self._base.rules.permitted(_CHEAP)
        _ = self._base.catalog.index_of(["B0"]), self._base.catalog.titles
        self._runtime, self._overlay, self._store = self._base, Overlay(), store
        self._placed: dict[str, Placement] = {}
        self.ask()

    def put(self, facts: Mapping[str, ItemFacts]) -> float:
        texts = {item_id: each.model_dump_json() for item_id, each in facts.items()}
        return self._change(lambda: self._store.items.put(texts))

    def remove(self, item_id: str) -> float:
        return self._change(lambda: self._store.items.remove([item_id]))

    def place(self, ids: list[str]) -> float:
        """As for new items whose vectors there are."""

        def work() -> object:
            runtime = self._runtime
            vectors, _ = self._placer.vectors(Catalog(frame=runtime.catalog.frame[runtime.catalog.index_of(ids)]))
            found = dict(zip(ids, place(self._placer, vectors, runtime.further_codes), strict=True))
            self._placed |= {item_id: each for item_id, each in found.items() if each is not None}
            kept = {item_id: (self._placed[item_id].place, self._placed[item_id].to_json()) for item_id in ids}
            return self._store.items.place("bench", kept)

        return self._change(work)

    def ask(self) -> None:
        """Lists of the generator and of the index, under the filter."""
        asked, _ = self._runtime.ask(Query(history=["B1", "B2", "B3"], k=10, filter=_CHEAP))
        for stage in self._runtime.stages(Query(history=["B1"], k=1))[:2]:
            assert stage.lists([asked])[0] is not None

    def _change(self, work: Callable[[], object]) -> float:
        started = time.process_time()
        work()
        version, changed = self._store.items.since(self._overlay.version)
        self._overlay = self._overlay.updated(version, changed)
        self._runtime = self._base.over(self._overlay, self._placed, previous=self._runtime, new_item_slots=1)
        for item in changed:
            assert (self._runtime.find(item.item_id) is None) == item.is_removed
        return _ms(started)


def _facts(turn: int) -> ItemFacts:
    return ItemFacts(title=f"New item {turn}", categories=(f"c{turn % 50}", "d1"), attributes={"price": "20"})


def _rss_mib() -> float:
    return psutil.Process().memory_info().rss / _MIB


def _ms(started: float) -> float:
    return (time.process_time() - started) * 1000
