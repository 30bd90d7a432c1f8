"""Where a new item stands in a model: its vector and its semantic ID, with everything learned left as it is.

The vector comes from the item's text, by the encoder of the bundle. That takes seconds to load, and may be missing on
the machine; then the mean of the vectors of the item's categories takes its place: right about the kind of thing, and
about no more. The semantic ID follows from the vector by the frozen tokenizer. Once an item has both it keeps them,
whatever becomes of its text, since histories and caches name items by them. Until then it stands where its categories
are, is listed by what compares vectors, and is not generated. Knows no store.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import structlog
import torch

from recsys.bundle import Bundle
from recsys.data import Catalog
from recsys.data.sequences import IntArray
from recsys.encoder.config import split_segment
from recsys.encoder.text import item_texts
from recsys.errors import AssetError, ConfigError, DataError
from recsys.generator.trie import ItemTrie
from recsys.tokenizer.nearest import NearestCodeTokenizer
from serving.overlay import ChangedItem

FloatArray = npt.NDArray[np.float32]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Where an item stands in a model."""

    codes: tuple[int, ...]
    """The semantic ID."""
    vector: FloatArray
    """float32 [dim], of the same space as the bundle's embeddings."""

    @property
    def place(self) -> str:
        """Names the semantic ID, which no other item has."""
        return ".".join(map(str, self.codes))

    def to_json(self) -> str:
        """As the store keeps it."""
        packed = base64.b64encode(self.vector.astype("<f4").tobytes()).decode()
        return json.dumps({"codes": self.codes, "vector": packed})

    @classmethod
    def from_json(cls, text: str) -> Placement:
        """What `to_json` made."""
        value = json.loads(text)
        vector = np.frombuffer(base64.b64decode(value["vector"]), dtype="<f4").astype(np.float32)
        return cls(codes=tuple(value["codes"]), vector=vector)


class Placer(Protocol):
    """Places new items of one model. Its methods may be called from several threads at a time."""

    def vectors(self, items: Catalog) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """The vectors of new items, float32 [k, dim], and bool [k]: which of them there are."""

    def codes(self, vectors: FloatArray, taken: IntArray) -> IntArray:
        """int64 [k, levels]: semantic IDs; none is that of an item of the bundle or in `taken` (int64 [m, levels]),
        none twice.

        Raises:
            DataError: no codes are left.
        """

    def stand_in(self, categories: Sequence[str]) -> tuple[FloatArray, bool]:
        """A vector by the categories alone, float32 [dim], and whether any of them is known: else it is the centre."""


class BundlePlacer:
    """Places new items in the model of a bundle; reads encoder and tokenizer when they are first needed.

    Args:
        bundle: the model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._has_encoder = True
        vectors = bundle.embeddings.vectors
        members = bundle.catalog.frame.with_row_index("index").select("index", "categories").explode("categories")
        self._by_category: Mapping[str, FloatArray] = {
            str(category): vectors[group["index"].to_numpy()].mean(axis=0)
            for (category,), group in members.drop_nulls().group_by("categories")
        }
        self._centre = vectors.mean(axis=0)

    def vectors(self, items: Catalog) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """See `Placer`: by the text, or by the categories where there is no text or no encoder."""
        bundle = self._bundle
        stand_ins = [self.stand_in(categories) for categories in items.frame["categories"].to_list()]
        vectors = np.stack([vector for vector, _ in stand_ins])
        exists = np.array([is_known for _, is_known in stand_ins])
        with_text = self._with_text(items)
        if self._has_encoder and len(with_text):
            try:
                texts = item_texts(Catalog(frame=items.frame[with_text]), bundle.embeddings.encoder)
                vectors[with_text] = bundle.embeddings.match(bundle.text_encoder.encode_few(texts))
                exists[with_text] = True
            except (AssetError, ConfigError) as error:
                self._has_encoder = False
                _log.warning(
                    "no text encoder: new items take the vectors of their categories until the next start",
                    model_version=bundle.manifest.model_version,
                    error=str(error),
                )
        return vectors, exists

    def codes(self, vectors: FloatArray, taken: IntArray) -> IntArray:
        """See `Placer`."""
        tokenizer, codes = self._bundle.tokenizer, self._bundle.semantic_ids.codes
        if isinstance(tokenizer, NearestCodeTokenizer):
            near = _in_the_way(tokenizer.encode_raw(vectors), self._trie, codes, taken)
        else:
            near = np.concatenate([codes, taken])
        return tokenizer.encode(vectors, near)

    @cached_property
    def _trie(self) -> ItemTrie:
        trie = self._bundle.recommender.trie
        return trie if isinstance(trie, ItemTrie) else ItemTrie(self._bundle.semantic_ids.codes, trie.codebook_sizes)

    def stand_in(self, categories: Sequence[str]) -> tuple[FloatArray, bool]:
        """See `Placer`."""
        known = [self._by_category[name] for name in categories if name in self._by_category]
        return (np.mean(known, axis=0, dtype=np.float32), True) if known else (self._centre, False)

    def _with_text(self, items: Catalog) -> IntArray:
        """int64: the rows of items that the encoder's template finds any text in."""
        columns = [split_segment(segment)[1] for segment in self._bundle.embeddings.encoder.template]
        names = [name for name in columns if name in items.frame.columns]
        has_text = [
            pl.col(name).list.len() > 0
            if items.frame.schema[name] == pl.List(pl.String())
            else pl.col(name).is_not_null()
            for name in names
        ]
        found = items.frame.select(pl.any_horizontal(has_text).fill_null(False).alias("has"))["has"]
        return found.arg_true().to_numpy().astype(np.int64)


def _in_the_way(raw: IntArray, trie: ItemTrie, codes: IntArray, taken: IntArray) -> IntArray:
    """int64 [m', L]: the codes of those items that new ones can meet; among all, the same codes come out.

    An item leaves a prefix of its nearest codes only where that has more items than codes. So those of the longest
    prefixes that have room are enough: a few of a million, which to sort would take most of the time.

    Args:
        raw: int64 [k, L], the nearest codes of new items.
        trie: of the items that there were.
        codes: int64 [N, L], of the same.
        taken: int64 [m, L], of further items.
    """
    sizes = trie.codebook_sizes
    for length in range(len(sizes) - 1, 0, -1):
        prefixes, counts = np.unique(raw[:, :length], axis=0, return_counts=True)
        spans = [trie.span(prefix.tolist()) for prefix in prefixes]
        further = [taken[(taken[:, :length] == prefix).all(axis=1)] for prefix in prefixes]
        room = prod(sizes[length:])
        if all(
            count + end - begin + len(rows) <= room
            for count, (begin, end), rows in zip(counts.tolist(), spans, further, strict=True)
        ):
            below = [codes[trie.items[torch.arange(begin, end)].cpu().numpy()] for begin, end in spans]
            return np.concatenate([*below, *further])
    return np.concatenate([codes, taken])


def placed_all(
    placer: Placer,
    num_levels: int,
    added: Sequence[ChangedItem],
    placed: Mapping[str, Placement],
    stood: Mapping[str, tuple[ChangedItem, Placement]],
) -> dict[str, Placement]:
    """Where added items stand, by their ids in their order; without those that no semantic ID is left for.

    An item without a placement of its own stands where its categories are.

    Args:
        placer: of the model.
        num_levels: of a semantic ID.
        added: the items that the bundle does not have.
        placed: placements of their own.
        stood: where items stood before, and what was known of them then: they stay there as long as that holds.
    """
    settled = {item.item_id: placed[item.item_id] for item in added if item.item_id in placed}
    taken = {each.codes for each in settled.values()}
    for item in added:
        before = stood.get(item.item_id)
        if item.item_id in settled or before is None or before[0].facts != item.facts or before[1].codes in taken:
            continue
        settled[item.item_id] = before[1]
        taken.add(before[1].codes)
    rest = [item for item in added if item.item_id not in settled]
    if rest:
        vectors = np.stack([placer.stand_in(item.facts.categories if item.facts else ())[0] for item in rest])
        others = np.array([each.codes for each in settled.values()], dtype=np.int64).reshape(-1, num_levels)
        for item, placement in zip(rest, place(placer, vectors, others), strict=True):
            if placement is not None:
                settled[item.item_id] = placement
    return {item.item_id: settled[item.item_id] for item in added if item.item_id in settled}


def place(placer: Placer, vectors: FloatArray, taken: IntArray) -> list[Placement | None]:
    """A placement for each of [k, dim] vectors; None for those that no semantic ID is left for.

    Args:
        placer: of the model.
        vectors: float32 [k, dim].
        taken: int64 [m, levels], semantic IDs of items that the bundle does not have.
    """
    try:
        codes = placer.codes(vectors, taken)
    except DataError as error:
        if len(vectors) == 1:
            _log.error("a new item gets no semantic ID", error=str(error))
            return [None]
        placements: list[Placement | None] = []
        for vector in vectors:
            (found,) = place(placer, vector[None, :], taken)
            placements.append(found)
            if found is not None:
                taken = np.concatenate([taken, [found.codes]])
        return placements
    return [Placement(codes=tuple(row), vector=vector) for row, vector in zip(codes.tolist(), vectors, strict=True)]
