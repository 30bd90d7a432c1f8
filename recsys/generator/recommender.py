"""`GenerativeRecommender`: a trained model, its trie and its search behind one call. Knows no users, no HTTP."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recsys.data.sequences import IntArray, Sequences
from recsys.errors import ArtifactError, DataError
from recsys.files import write_json
from recsys.generator.any_order import AnyOrderModel
from recsys.generator.batches import history_batches
from recsys.generator.config import GeneratorConfig
from recsys.generator.constraints import Constraints
from recsys.generator.decoder import Recommendations, beam_search
from recsys.generator.flat import FlatModel
from recsys.generator.nested import NestedModel
from recsys.generator.new_items import reserve_slots
from recsys.generator.sessions import Sessions
from recsys.generator.set_trie import SetTrie
from recsys.generator.trie import ItemTrie

GeneratorModel: TypeAlias = NestedModel | FlatModel | AnyOrderModel
"""A model of any shape: `beam_search` decodes it, `target_log_probs` trains it."""

_FORMAT = 2
_PER_ITEM = frozenset({"learned", "item_residuals.weight"})


def build_model(
    config: GeneratorConfig,
    codes: IntArray,
    codebook_sizes: tuple[int, ...],
    item_vectors: npt.NDArray[np.float32] | None,
) -> GeneratorModel:
    """A model with random weights over the catalogue of `codes` (int64 [N, L], rows unique)."""
    if config.model.shape == "any_order":
        return AnyOrderModel(config.model, SetTrie(codes, codebook_sizes), codes, item_vectors)
    trie = ItemTrie(codes, codebook_sizes)
    if config.model.shape == "flat":
        return FlatModel(config.model, trie, codes)
    return NestedModel(config.model, trie, codes, item_vectors)


class GenerativeRecommender:
    """Generates ranked items for histories.

    Args:
        config: the generator's settings.
        codes: int64 [N, L], the items' semantic IDs; rows unique.
        codebook_sizes: number of codes on each level.
        item_vectors: float32 [N, V] content vectors, when the model takes them as input.
        model: trained weights over the same catalogue.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        codes: IntArray,
        codebook_sizes: tuple[int, ...],
        item_vectors: npt.NDArray[np.float32] | None,
        model: GeneratorModel,
    ) -> None:
        self.config = config
        self.codes = codes
        self.codebook_sizes = codebook_sizes
        self.item_vectors = item_vectors
        self.model = model.eval()
        self.sessions = Sessions(config.session_cache_mib << 20)
        """Histories that stay encoded, of requests that name their session."""

    @property
    def trie(self) -> ItemTrie | SetTrie:
        """The catalogue that the search is confined to."""
        return self.model.trie

    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        constraints: Constraints | None = None,
        beams: int | None = None,
        batch_size: int = 64,
        sessions: Sequence[str] | None = None,
    ) -> Recommendations:
        """The `k` best items for each history (item indices, oldest first; may be empty).

        Args:
            histories: B histories; the most recent `max_history` items are read.
            k: length of each list.
            constraints: restrictions of the B requests.
            beams: width of the search; the configured one when None.
            batch_size: histories decoded at a time; changes memory, not results.
            sessions: a key for each history, under which it stays encoded: the same history, or one that goes on from
                it, is then not read again. Changes time and memory, not results.

        Raises:
            ValueError: k or beams below 1, or an item index outside the catalogue.
        """
        beams = self.config.beams if beams is None else beams
        if k < 1 or beams < 1:
            raise ValueError(f"k and beams must be at least 1, got k={k}, beams={beams}")
        if len(histories.items) and not 0 <= histories.items.min() <= histories.items.max() < len(self.codes):
            raise ValueError(f"histories: item indices must lie in 0..{len(self.codes) - 1}")
        constraints = constraints if constraints is not None else Constraints()
        if sessions is not None and len(sessions) != len(histories):
            raise ValueError(f"sessions must hold one key a history: {len(histories)}, got {len(sessions)}")
        found = self._search(histories, k, constraints, beams, batch_size, sessions)
        slots = min(self.config.new_item_slots, k)
        if slots == 0 or self.model.learned.all():
            return found
        is_new = ~self.model.learned.numpy()
        allow = is_new if constraints.allow is None else constraints.allow & is_new
        new = self._search(histories, slots, replace(constraints, allow=allow), max(beams, slots), batch_size, sessions)
        return reserve_slots(found, new, is_new)

    def _search(
        self,
        histories: Sequences,
        k: int,
        constraints: Constraints,
        beams: int,
        batch_size: int,
        sessions: Sequence[str] | None,
    ) -> Recommendations:
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for rows, batch, lengths in history_batches(histories, self.config.model.max_history, batch_size):
            with torch.inference_mode():
                if sessions is None:
                    state = self.model.start(batch, lengths)
                else:
                    recent = [row[:length] for row, length in zip(batch.numpy(), lengths.tolist(), strict=True)]
                    keys = [sessions[int(row)] for row in rows]
                    state = self.model.state(self.sessions.read(self.model, keys, recent))
            result = beam_search(
                self.model,
                self.trie,
                state,
                batch_size=len(rows),
                k=k,
                beams=beams,
                constraints=constraints.select(rows),
            )
            items[rows], scores[rows] = result.items, result.scores
        return Recommendations(items=items, scores=scores)

    def with_body(self, body: nn.Module) -> GenerativeRecommender:
        """The same recommender with another body, for example an exported one (`recsys.generator.onnx`).

        This one stays as it is; the two share all weights beside the body.
        """
        model = copy.copy(self.model)
        # A shallow copy shares the very table that names the modules, in which only the body is to differ.
        model._modules = {**self.model._modules, "body": body}
        return GenerativeRecommender(self.config, self.codes, self.codebook_sizes, self.item_vectors, model)

    def with_catalog(
        self, codes: IntArray, item_vectors: npt.NDArray[np.float32] | None, known: IntArray
    ) -> GenerativeRecommender:
        """The same weights over another catalogue, with no training; this recommender stays as it is.

        A new item is read and generated through its code and its vector alone.

        Args:
            codes: int64 [N', L], semantic IDs of the same tokenizer; rows unique.
            item_vectors: float32 [N', V] of the same encoder, when the model takes them as input.
            known: int64 [N], where each item of this catalogue stands in the new one; -1 for one that is gone.

        Raises:
            ArtifactError: codes that the tokenizer cannot have made, or that repeat.
            DataError: `known` or `item_vectors` do not fit the catalogues.
        """
        kept_at = known[known >= 0]
        if known.shape != (len(self.codes),) or known.min() < -1 or known.max() >= len(codes):
            raise DataError(
                f"known must be [{len(self.codes)}], places in the new catalogue of {len(codes)} items or -1, found "
                f"{list(known.shape)} with values from {known.min()} to {known.max()}"
            )
        if len(np.unique(kept_at)) != len(kept_at):
            raise DataError(f"known sends {len(kept_at)} items to {len(np.unique(kept_at))} places; each needs its own")
        vectors = None
        if self.item_vectors is not None:
            shape = (len(codes), self.item_vectors.shape[1])
            if item_vectors is None or item_vectors.shape != shape:
                found = "none" if item_vectors is None else str(list(item_vectors.shape))
                raise DataError(f"item_vectors must be {list(shape)}, as this model reads them; found {found}")
            vectors = item_vectors
        model = build_model(self.config, codes, self.codebook_sizes, vectors)
        if self._body_is_exported:
            model.body = self.model.body
        state = dict(self.model.state_dict())
        kept = known >= 0
        for name, table in model.state_dict().items():
            if name in _PER_ITEM:
                state[name] = torch.zeros_like(table)
                state[name][known[kept]] = self.model.state_dict()[name][kept]
        model.load_state_dict(state)
        return GenerativeRecommender(self.config, codes, self.codebook_sizes, vectors, model)

    def save(self, directory: Path) -> None:
        """Write weights and settings into an existing directory; codes and vectors are artifacts of their own.

        Raises:
            ValueError: the body is an exported one, which has no weights here.
        """
        if self._body_is_exported:
            raise ValueError("an exported body has no weights to save; save the recommender that it was exported from")
        save_file(dict(self.model.state_dict()), directory / "model.safetensors")
        write_json(
            directory / "generator.json",
            {
                "format": _FORMAT,
                "config": self.config.model_dump(mode="json"),
                "codes_sha256": _digest(self.codes),
                "codebook_sizes": list(self.codebook_sizes),
                "vector_dim": None if self.item_vectors is None else self.item_vectors.shape[1],
            },
        )

    @property
    def _body_is_exported(self) -> bool:
        return next(self.model.body.parameters(), None) is None

    @classmethod
    def load(
        cls,
        directory: Path,
        codes: IntArray,
        codebook_sizes: tuple[int, ...],
        item_vectors: npt.NDArray[np.float32] | None,
    ) -> GenerativeRecommender:
        """Read what `save` wrote, over the catalogue that it was trained on.

        Raises:
            ArtifactError: a file is missing, or the catalogue is not the one of the weights.
        """
        try:
            facts = json.loads((directory / "generator.json").read_text())
            if facts["format"] != _FORMAT:
                raise ArtifactError(
                    f"generator: {directory} has format {facts['format']}, this version reads {_FORMAT}"
                )
            weights = load_file(directory / "model.safetensors")
            expected = (facts["codes_sha256"], tuple(facts["codebook_sizes"]))
            takes_vectors = facts["vector_dim"] is not None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ArtifactError(f"generator: cannot read {directory}: {error}") from error
        if expected != (_digest(codes), tuple(codebook_sizes)):
            raise ArtifactError(
                f"generator: the weights in {directory} were trained with other semantic IDs; "
                "load them with the ones of the same run"
            )
        config = GeneratorConfig.model_validate(facts["config"])
        vectors = item_vectors if takes_vectors else None
        model = build_model(config, codes, codebook_sizes, vectors)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ArtifactError(f"generator: the weights in {directory} do not fit its config: {reason}") from error
        return cls(config, codes, codebook_sizes, vectors, model)


def _digest(codes: IntArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(codes, dtype=np.int64).tobytes()).hexdigest()
