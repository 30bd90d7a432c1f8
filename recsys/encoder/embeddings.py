"""The artifact: one vector per item, and how the vector of a new item is made to match. Knows no tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recsys.assets import default_cache_dir
from recsys.data import Catalog, Sequences
from recsys.encoder.cache import encode_cached
from recsys.encoder.collaborative import cooccurrence_embeddings, fuse
from recsys.encoder.config import EncoderConfig
from recsys.encoder.encoder import FloatArray, TextEncoder
from recsys.encoder.text import item_texts
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.files import atomic_directory
from recsys.progress import console

_FILE = "item_embeddings.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemEmbeddings:
    """Vectors of all items; row i belongs to the item with dense index i."""

    vectors: FloatArray
    """float32 [num_items, dim]: the text's vector, or `[text ; collaborative]` when fused."""
    text_dim: int
    """Width of the text part."""
    encoder: EncoderConfig
    """How the vectors were made."""

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.vectors.shape[1])

    def match(self, text_vectors: FloatArray) -> FloatArray:
        """float32 [k, dim]: vectors of items outside of the training data, from their text's [k, text_dim].

        Their collaborative part, if there is one, is zero.
        """
        if text_vectors.ndim != 2 or text_vectors.shape[1] != self.text_dim:
            raise DataError(f"text vectors must be [k, {self.text_dim}], found {list(text_vectors.shape)}")
        if self.dim == self.text_dim:
            return text_vectors
        absent = np.zeros((len(text_vectors), self.dim - self.text_dim), dtype=np.float32)
        return fuse(text_vectors, absent, self.encoder.collaborative_weight)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        facts = {"text_dim": self.text_dim, "encoder": self.encoder.model_dump(mode="json")}
        with atomic_directory(directory) as temporary:
            save_file(
                {"vectors": np.ascontiguousarray(self.vectors)},
                temporary / _FILE,
                # One key only: safetensors writes several in random order, and equal content must give equal bytes.
                metadata={"facts": json.dumps(facts)},
            )

    @classmethod
    def load(cls, directory: Path) -> ItemEmbeddings:
        """Read what `save` wrote. Raises ArtifactError when it is missing or damaged."""
        try:
            with safe_open(directory / _FILE, framework="numpy") as file:
                facts = json.loads(file.metadata()["facts"])
                return cls(
                    vectors=file.get_tensor("vectors"),
                    text_dim=int(facts["text_dim"]),
                    encoder=EncoderConfig.model_validate(facts["encoder"]),
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"cannot read item embeddings from {directory}: {error}") from error


def encode_catalog(
    catalog: Catalog, config: EncoderConfig, cache_dir: Path | None = None, train: Sequences | None = None
) -> ItemEmbeddings:
    """Vectors of all items of a catalogue; texts encoded before come from the cache.

    Args:
        catalog: whose items are encoded, in the order of their dense indices.
        config: what is read, by which model, and whether it is fused.
        cache_dir: $RECSYS_CACHE or ~/.cache/recsys when None.
        train: training sequences over the same items; needed when `collaborative_weight` is above 0. Never pass
            validation or test items: they would leak into the codes.

    Raises:
        ConfigError: the template fits no column, the training sequences are missing, or a catalogue of one item is
            to be fused.
        AssetError: the model can neither be fetched nor found.
    """
    if config.collaborative_weight > 0 and train is None:
        raise ConfigError("encoder.collaborative_weight is above 0, which needs the training sequences; set it to 0")
    if config.collaborative_weight > 0 and catalog.num_items < 2:
        raise ConfigError(
            f"encoder.collaborative_weight is above 0, which needs at least 2 items, found {catalog.num_items}; "
            "set it to 0"
        )
    encoder = TextEncoder(config, cache_dir)
    text = encode_cached(encoder, item_texts(catalog, config), cache_dir or default_cache_dir())
    if config.collaborative_weight == 0 or train is None:
        return ItemEmbeddings(vectors=text, text_dim=text.shape[1], encoder=config)
    dim = min(config.collaborative_dim, catalog.num_items - 1)
    collaborative, covered = cooccurrence_embeddings(train, catalog.num_items, dim, config.collaborative_window)
    console.print(
        f"encoder: fused with {dim} collaborative dimensions; {int(covered.sum())} of {len(covered)} items have "
        "neighbours in training, the others keep zeros there",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return ItemEmbeddings(
        vectors=fuse(text, collaborative, config.collaborative_weight), text_dim=text.shape[1], encoder=config
    )
