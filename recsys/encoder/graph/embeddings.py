"""The artifact of a graph encoder: vectors of items and users in one space, and how a new item joins it.

Methods are told apart here and nowhere else. Nothing of the trained graph is left: all is arrays and small networks.

Shapes: N items, d width of the vectors (CM3: (M + 1) * `dim` for M modalities).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys.data import IntArray, Sequences
from recsys.encoder.collaborative import FloatArray, unit_rows
from recsys.encoder.graph.cm3 import CM3, CM3Placement
from recsys.encoder.graph.config import CM3Config, GraphConfig, SIGERConfig
from recsys.encoder.graph.lightgcn import LightGCN, NeighbourPlacement
from recsys.encoder.graph.model import GraphModel, NewItems, Placement, to_array
from recsys.encoder.graph.propagation import interaction_matrix
from recsys.encoder.graph.siger import SIGER, SIGERPlacement
from recsys.encoder.graph.training import train_model
from recsys.encoder.modalities import Modality, check_modalities
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.files import atomic_directory

_FILE = "graph_embeddings.safetensors"
_FORMAT = 1


def fit_graph_encoder(
    modalities: Sequence[Modality], train: Sequences, num_items: int, config: GraphConfig
) -> GraphEmbeddings:
    """Train the graph encoder that `config.method` names.

    The same input and seed give the same vectors. Leaves torch's global random state as it was.

    Args:
        modalities: what is known about the items. LightGCN reads them only to place items without interactions, and
            can do without. A modality made of behaviour has seen the interactions that training stops by, and makes
            it stop late: set `steps` with care.
        train: TRAINING sequences; never validation or test items, they would leak into the vectors.
        num_items: size of the catalogue; items without an interaction get vectors too.
        config: method and settings.

    Raises:
        DataError: a modality is empty or not of this catalogue, there are none but the method needs one, or fewer
            than 2 items have training interactions.
        ConfigError: a setting does not fit the modalities, or the loss became NaN.
    """
    check_modalities(modalities, num_items)
    interactions, users = interaction_matrix(train, num_items)
    if len(np.unique(interactions.indices)) < 2:
        raise DataError("the graph encoder needs training interactions with at least 2 items, found 1; use more data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _new_model(modalities, len(users), num_items, config)
        train_model(model, train, num_items, config)
        with torch.no_grad():
            user_table, item_table = (to_array(table) for table in model.representations())
            placement = model.placement().requires_grad_(False)
    if not (np.isfinite(user_table).all() and np.isfinite(item_table).all()):
        raise ConfigError("graph encoder: training ended with vectors that are not finite; lower learning_rate")
    if config.normalise:
        user_table, item_table = unit_rows(user_table), unit_rows(item_table)
    return GraphEmbeddings(
        config=config,
        item_vectors=item_table,
        user_ids=users,
        user_table=user_table,
        modalities=tuple(modalities),
        placement=placement,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphEmbeddings:
    """Vectors whose dot products rank items for users."""

    config: GraphConfig
    """How they were made."""
    item_vectors: FloatArray
    """float32 [N, d]; row i belongs to item i of those that `fit_graph_encoder` was given. Of unit norm if
    `config.normalise`."""
    user_ids: IntArray
    """int64 [U], ascending: the users of the training sequences."""
    user_table: FloatArray
    """float32 [U, d]: their vectors."""
    modalities: tuple[Modality, ...]
    """Of the catalogue: where the neighbours of new items are found."""
    placement: Placement
    """From content to vectors."""

    @property
    def dim(self) -> int:
        """d."""
        return int(self.item_vectors.shape[1])

    def user_vectors(self, histories: Sequences, *, from_history: bool = False) -> FloatArray:
        """float32 [len(histories), d].

        A user of the training sequences, by `histories.users`, has the trained vector, whatever the history. Any other
        user has the mean of the vectors of the history's items (zero for an empty history), of unit norm if
        `config.normalise`. With `from_history` all users have that mean: it knows what came after training.
        """
        place = np.minimum(np.searchsorted(self.user_ids, histories.users), len(self.user_ids) - 1)
        known = (self.user_ids[place] == histories.users) & (not from_history)
        vectors = np.zeros((len(histories), self.dim), dtype=np.float32)
        vectors[known] = self.user_table[place[known]]
        for row in np.flatnonzero(~known & (histories.lengths > 0)):
            vectors[row] = self.item_vectors[histories[int(row)]].mean(axis=0, dtype=np.float64)
        if self.config.normalise:
            vectors[~known] = unit_rows(vectors[~known])
        return vectors

    def embed_new(self, modalities: Sequence[Modality]) -> FloatArray:
        """float32 [k, d]: vectors of k items outside of the catalogue, by their content.

        Args:
            modalities: of the k items, with the catalogue's names and widths. A modality that they all lack may be
                left out.

        Raises:
            DataError: a name or width is not the catalogue's, or an item has no modality at all.
        """
        aligned = self._aligned(modalities)
        others = max(self.config.neighbours - 1, 1)
        with torch.no_grad():
            vectors = to_array(self.placement(NewItems.of(aligned, self.modalities, others)))
        return unit_rows(vectors) if self.config.normalise else vectors

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        tensors = {f"placement.{name}": value for name, value in self.placement.state_dict().items()}
        tensors |= {
            "item_vectors": torch.from_numpy(self.item_vectors),
            "user_ids": torch.from_numpy(self.user_ids),
            "user_table": torch.from_numpy(self.user_table),
        }
        for number, modality in enumerate(self.modalities):
            tensors[f"modality.{number}.vectors"] = torch.from_numpy(modality.vectors)
            tensors[f"modality.{number}.present"] = torch.from_numpy(modality.present)
        facts = {
            "format": _FORMAT,
            "config": self.config.model_dump(mode="json"),
            "modalities": [modality.name for modality in self.modalities],
        }
        with atomic_directory(directory) as temporary:
            # One key only: safetensors writes several in random order, and equal content must give equal bytes.
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                temporary / _FILE,
                metadata={"facts": json.dumps(facts)},
            )

    @classmethod
    def load(cls, directory: Path) -> GraphEmbeddings:
        """Read what `save` wrote. Raises ArtifactError when it is missing, damaged or of another format."""
        adapter: TypeAdapter[GraphConfig] = TypeAdapter(GraphConfig)
        try:
            with safe_open(directory / _FILE, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                if facts["format"] != _FORMAT:
                    raise ArtifactError(f"{directory} has format {facts['format']}, this version reads {_FORMAT}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            config = adapter.validate_python(facts["config"])
            modalities = tuple(
                Modality(
                    name=name,
                    vectors=tensors[f"modality.{number}.vectors"].numpy(),
                    present=tensors[f"modality.{number}.present"].numpy(),
                )
                for number, name in enumerate(facts["modalities"])
            )
            return cls(
                config=config,
                item_vectors=tensors["item_vectors"].numpy(),
                user_ids=tensors["user_ids"].numpy(),
                user_table=tensors["user_table"].numpy(),
                modalities=modalities,
                placement=_loaded_placement(config, modalities, tensors),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, DataError) as error:
            message = " ".join(str(error).split())[:300]
            raise ArtifactError(f"cannot read graph embeddings from {directory}: {message}") from error

    def _aligned(self, modalities: Sequence[Modality]) -> list[Modality]:
        """In the catalogue's order; those left out as absent."""
        known = {modality.name: modality for modality in self.modalities}
        given = {modality.name: modality for modality in modalities}
        if not given.keys() & known.keys() or given.keys() - known.keys():
            raise DataError(
                f"new items need modalities out of {', '.join(known) or 'none (fitted without any)'}; found "
                f"{', '.join(given) or 'none'}"
            )
        count = modalities[0].num_items
        for modality in modalities:
            if modality.num_items != count or modality.dim != known[modality.name].dim:
                raise DataError(
                    f"modality {modality.name!r} of the new items must be [{count}, {known[modality.name].dim}], found "
                    f"{list(modality.vectors.shape)}; use the encoder that the catalogue was encoded with"
                )
        bare = ~np.logical_or.reduce([modality.present for modality in modalities])
        if bare.any():
            raise DataError(
                f"{int(bare.sum())} of {count} new items have no modality, e.g. row {int(np.flatnonzero(bare)[0])}"
            )
        absent = np.zeros(count, dtype=bool)
        return [
            given.get(name)
            or Modality(name=name, vectors=np.zeros((count, modality.dim), dtype=np.float32), present=absent)
            for name, modality in known.items()
        ]


def _new_model(modalities: Sequence[Modality], num_users: int, num_items: int, config: GraphConfig) -> GraphModel:
    if isinstance(config, CM3Config):
        return CM3(config, modalities, num_users)
    if isinstance(config, SIGERConfig):
        return SIGER(config, modalities, num_users, num_items)
    return LightGCN(config, modalities, num_users, num_items)


def _loaded_placement(config: GraphConfig, modalities: Sequence[Modality], tensors: dict[str, Tensor]) -> Placement:
    prefix = "placement."
    state: dict[str, Any] = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
    dims = [modality.dim for modality in modalities]
    # Networks are made with random weights, which the stored ones replace.
    with torch.random.fork_rng(devices=[]):
        placement: Placement
        if isinstance(config, CM3Config):
            placement = CM3Placement(config, dims)
        elif isinstance(config, SIGERConfig):
            placement = SIGERPlacement(config, dims)
        else:
            placement = NeighbourPlacement(torch.zeros(0))
    for name, buffer in placement.named_buffers():
        placement.register_buffer(name, torch.empty_like(state[name], dtype=buffer.dtype))
    placement.load_state_dict(state)
    return placement.requires_grad_(False)
