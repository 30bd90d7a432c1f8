"""The artifact: one vector per item, and how the vector of a new item is made to match. Knows no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recsys.assets import default_cache_dir
from recsys.data import Catalog, IntArray, Sequences
from recsys.encoder.cache import encode_cached
from recsys.encoder.collaborative import cooccurrence_embeddings, fuse
from recsys.encoder.config import EncoderConfig, ModalityConfig, SpectralConfig
from recsys.encoder.encoder import FloatArray, TextEncoder
from recsys.encoder.graph.config import GraphConfig
from recsys.encoder.graph.embeddings import GraphEmbeddings, fit_graph_encoder
from recsys.encoder.modalities import Modality, check_modalities, modality_from_column, modality_from_file
from recsys.encoder.text import item_texts
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.files import atomic_directory
from recsys.progress import console
from recsys.ranks import ALONE, Ranks

_FILE = "item_embeddings.safetensors"
_GRAPH = "graph"
_TEXT = "text"


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemEmbeddings:
    """Vectors of all items; row i belongs to the item with dense index i."""

    vectors: FloatArray
    """float32 [num_items, dim]: the text's vector, or `[text ; modalities ; collaborative]` when fused."""
    text_dim: int
    """Width of the text part."""
    modality_dims: tuple[int, ...] = ()
    """Widths of the further modalities' parts, in the order of `encoder.modalities`."""
    encoder: EncoderConfig
    """How the vectors were made."""
    graph: GraphEmbeddings | None = None
    """The graph encoder that the collaborative part comes from, if it does. Its items are those that it was fitted on:
    where some were held out, its rows are not the catalogue's."""

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.vectors.shape[1])

    def match(self, text_vectors: FloatArray, modalities: Sequence[Modality] = ()) -> FloatArray:
        """float32 [k, dim]: vectors of items outside of the training data, from their text's [k, text_dim].

        A graph encoder places them by their content; the collaborative part of the others is zero.

        Args:
            text_vectors: of the encoder that the catalogue was encoded with.
            modalities: what else is known about the k items; those that they all lack may be left out.

        Raises:
            DataError: another width, or a modality that the catalogue does not have.
        """
        if text_vectors.ndim != 2 or text_vectors.shape[1] != self.text_dim:
            raise DataError(f"text vectors must be [k, {self.text_dim}], found {list(text_vectors.shape)}")
        given = {modality.name: modality for modality in modalities}
        dims = {part.name: dim for part, dim in zip(self.encoder.modalities, self.modality_dims, strict=True)}
        if unknown := given.keys() - dims.keys():
            raise DataError(f"the catalogue has no modality {', '.join(sorted(unknown))}; leave it out")
        for name, modality in given.items():
            if modality.vectors.shape != (len(text_vectors), dims[name]):
                raise DataError(
                    f"modality {name!r} of the new items must be [{len(text_vectors)}, {dims[name]}], found "
                    f"{list(modality.vectors.shape)}"
                )
        if self.dim == self.text_dim:
            return text_vectors
        parts = [(text_vectors, 1.0)]
        for config, dim in zip(self.encoder.modalities, self.modality_dims, strict=True):
            known = given.get(config.name)
            vectors = known.vectors if known is not None else np.zeros((len(text_vectors), dim), dtype=np.float32)
            parts.append((vectors, config.weight))
        width = self.dim - self.text_dim - sum(self.modality_dims)
        if self.graph is not None:
            content = [Modality.from_vectors(_TEXT, text_vectors), *modalities]
            parts.append((self.graph.embed_new(content), self.encoder.collaborative_weight))
        elif width:
            parts.append((np.zeros((len(text_vectors), width), dtype=np.float32), 1.0))
        return fuse(*parts)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        facts = {
            "text_dim": self.text_dim,
            "modality_dims": list(self.modality_dims),
            "encoder": self.encoder.model_dump(mode="json"),
        }
        with atomic_directory(directory) as temporary:
            save_file(
                {"vectors": np.ascontiguousarray(self.vectors)},
                temporary / _FILE,
                # One key only: safetensors writes several in random order, and equal content must give equal bytes.
                metadata={"facts": json.dumps(facts)},
            )
            if self.graph is not None:
                self.graph.save(temporary / _GRAPH)

    @classmethod
    def load(cls, directory: Path) -> ItemEmbeddings:
        """Read what `save` wrote. Raises ArtifactError when it is missing or damaged."""
        try:
            # By way of PyTorch the vectors are a map of the file, one in memory for all processes that load it.
            with safe_open(directory / _FILE, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                vectors = file.get_tensor("vectors").numpy()
            encoder = EncoderConfig.model_validate(facts["encoder"])
            return cls(
                vectors=vectors,
                text_dim=int(facts["text_dim"]),
                modality_dims=tuple(facts["modality_dims"]),
                encoder=encoder,
                graph=GraphEmbeddings.load(directory / _GRAPH) if _reads_graph(encoder) else None,
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"cannot read item embeddings from {directory}: {error}") from error


def encode_catalog(
    catalog: Catalog,
    config: EncoderConfig,
    cache_dir: Path | None = None,
    train: Sequences | None = None,
    *,
    held_out: IntArray | None = None,
    tuned_model: Path | None = None,
    ranks: Ranks = ALONE,
) -> ItemEmbeddings:
    """Vectors of all items of a catalogue; texts encoded before come from the cache.

    Args:
        catalog: whose items are encoded, in the order of their dense indices.
        config: what is read, by which model, and whether it is tuned and fused.
        cache_dir: $RECSYS_CACHE or ~/.cache/recsys when None.
        train: training sequences over the same items; needed when something is fitted (`alignment`, or
            `collaborative_weight` above 0). Never pass validation or test items: they would leak into the codes.
        held_out: int64 [m], items that no graph encoder is fitted on; they are placed as any new item would be.
        tuned_model: directory for the tuned text model; needed for `alignment`.
        ranks: processes that tune its layers together; alone where only a head is tuned.

    Raises:
        ConfigError: the template fits no column, the training sequences or the directory are missing, or a catalogue
            of one item is to be fused.
        DataError: a modality is empty, broken, or not of this catalogue.
        AssetError: the model can neither be fetched nor found.
    """
    if (config.collaborative_weight > 0 or config.alignment is not None) and train is None:
        raise ConfigError(
            "encoder.alignment and encoder.collaborative_weight above 0 need the training sequences; leave them out"
        )
    if config.collaborative_weight > 0 and catalog.num_items < 2:
        raise ConfigError(
            f"encoder.collaborative_weight is above 0, which needs at least 2 items, found {catalog.num_items}; "
            "set it to 0"
        )
    text = _text_vectors(catalog, config, cache_dir, train, tuned_model, ranks)
    modalities = [_read_modality(modality, catalog) for modality in config.modalities]
    check_modalities(modalities, catalog.num_items)
    parts = [(text, 1.0)]
    parts += [(modality.vectors, part.weight) for modality, part in zip(modalities, config.modalities, strict=True)]
    graph = None
    if config.collaborative_weight > 0 and train is not None:
        if isinstance(config.collaborative, SpectralConfig):
            collaborative = _spectral(train, catalog.num_items, config.collaborative)
        else:
            content = [Modality.from_vectors(_TEXT, text), *modalities]
            held_out = held_out if held_out is not None else np.zeros(0, dtype=np.int64)
            graph, collaborative = _graph_vectors(content, train, config.collaborative, held_out)
        parts.append((collaborative, config.collaborative_weight))
    return ItemEmbeddings(
        vectors=fuse(*parts) if len(parts) > 1 else text,
        text_dim=text.shape[1],
        modality_dims=tuple(modality.dim for modality in modalities),
        encoder=config,
        graph=graph,
    )


def _reads_graph(config: EncoderConfig) -> bool:
    return config.collaborative_weight > 0 and not isinstance(config.collaborative, SpectralConfig)


def _text_vectors(
    catalog: Catalog,
    config: EncoderConfig,
    cache_dir: Path | None,
    train: Sequences | None,
    tuned_model: Path | None,
    ranks: Ranks,
) -> FloatArray:
    """float32 [num_items, text_dim], by the model as it is or as it was tuned."""
    texts, cache_dir = item_texts(catalog, config), cache_dir or default_cache_dir()
    if config.alignment is None or train is None:
        return encode_cached(TextEncoder(config, cache_dir), texts, cache_dir)
    # Imported here: they take sklearn and a second.
    from recsys.encoder.alignment.towers import apply_head
    from recsys.encoder.alignment.tuning import tune_encoder

    if tuned_model is None:
        raise ConfigError("encoder.alignment needs a directory for the tuned model; pass tuned_model")
    tune_encoder(config, catalog, train, config.alignment, tuned_model, cache_dir, ranks)
    if config.alignment.trainable_layers == 0:
        return apply_head(tuned_model, encode_cached(TextEncoder(config, cache_dir), texts, cache_dir))
    vectors = None
    if ranks.leads:
        tuned = TextEncoder(config.model_copy(update={"model": str(tuned_model)}), cache_dir)
        vectors = encode_cached(tuned, texts, cache_dir)
    vectors = ranks.told(vectors)
    assert vectors is not None, "the leader encoded"
    return vectors


def _read_modality(config: ModalityConfig, catalog: Catalog) -> Modality:
    if config.file is not None:
        return modality_from_file(config.name, config.file, catalog.item_ids)
    if config.column not in catalog.frame.columns:
        raise ConfigError(
            f"encoder.modalities: {config.name!r} names column {config.column!r}, but the catalogue has only "
            f"{', '.join(catalog.frame.columns)}"
        )
    return modality_from_column(config.name, catalog.frame[config.column])


def _spectral(train: Sequences, num_items: int, config: SpectralConfig) -> FloatArray:
    dim = min(config.dim, num_items - 1)
    vectors, covered = cooccurrence_embeddings(train, num_items, dim, config.window)
    console.print(
        f"encoder: fused with {dim} collaborative dimensions; {int(covered.sum())} of {len(covered)} items have "
        "neighbours in training, the others keep zeros there",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return vectors


def _graph_vectors(
    content: Sequence[Modality], train: Sequences, config: GraphConfig, held_out: IntArray
) -> tuple[GraphEmbeddings, FloatArray]:
    """The fitted encoder, and float32 [num_items, d]: its items, and beside them those that were held out."""
    num_items = content[0].num_items
    fitted = np.setdiff1d(np.arange(num_items), held_out)
    index = np.full(num_items, -1)
    index[fitted] = np.arange(len(fitted))
    graph = fit_graph_encoder([_select(part, fitted) for part in content], train.renumber(index), len(fitted), config)
    vectors = np.empty((num_items, graph.dim), dtype=np.float32)
    vectors[fitted] = graph.item_vectors
    if len(held_out):
        vectors[held_out] = graph.embed_new([_select(part, held_out) for part in content])
    return graph, vectors


def _select(modality: Modality, rows: IntArray) -> Modality:
    return Modality(name=modality.name, vectors=modality.vectors[rows], present=modality.present[rows])
