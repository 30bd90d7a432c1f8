"""DAS: semantic IDs of items and of users, quantized and aligned with debiased behaviour in one stage.

After "DAS: Dual-Aligned Semantic IDs Empowered Industrial Recommender System" (arXiv 2508.10584). The three parts, the
six views and the sum of losses are the paper's as secondary sources report them; its formulas were not at hand, so
these are ours, and said to be so where they stand: `debias` (ICDM), `alignment` (MDAM), `sampling`, `training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.data import IntArray, Sequences
from recsys.errors import ArtifactError, ConfigError, DataError
from recsys.tokenizer.artifact import load_tensors, save_tokenizer, take_codebooks
from recsys.tokenizer.das.config import DASConfig
from recsys.tokenizer.das.debias import BehaviourVectors
from recsys.tokenizer.das.sampling import Behaviour
from recsys.tokenizer.das.side import SemanticSide
from recsys.tokenizer.das.training import DASTraining, TrainingSide
from recsys.tokenizer.residual import DoubleArray, FloatArray, summed_codes
from recsys.tokenizer.semantic_ids import SemanticIds, check_codes
from recsys.tokenizer.validation import check_embeddings, check_shape

_USERS = "users."
_VECTORS = ("interest", "property", "conformity", "popularity")


class DASTokenizer(SemanticSide):
    """The item side, with a user side beside it. Implements `SemanticIdTokenizer`.

    A new item or user is named from content alone: `encode` and `encode_users` read no behaviour.
    """

    def __init__(self, config: DASConfig) -> None:
        super().__init__(config)
        self.users = SemanticSide(config)
        """The user side: its codebooks, `latents`, `encode_raw`, `reconstruct`."""
        self.user_ids: SemanticIds | None = None
        """After `fit`: row i names the user of training sequence i, `train.users[i]`."""
        self.behaviour: BehaviourVectors | None = None
        """After `fit`: what the behaviour model learned; None when `behaviour_weight` is 0."""
        self._projections: dict[str, DoubleArray] = {}

    def fit(
        self, embeddings: FloatArray, train: Sequences | None = None, user_embeddings: FloatArray | None = None
    ) -> SemanticIds:
        """Train on float32 [n, dim] items and the clicks of `train`; name the items, and the users in `user_ids`.

        Args:
            embeddings: content vectors of the catalogue.
            train: TRAINING sequences over it, one a user.
            user_embeddings: float32 [len(train), user_dim], vectors of profile texts. None = as a stand-in, the unit
                mean of the embeddings of each user's training items, and zero for a user without any.

        Leaves torch's global random state as it was.

        Raises:
            ConfigError: `train` is None.
            DataError: NaN, fewer than 2 items or users, rows that do not match `train`, or behaviour in which no pair
                belongs together though a view asks for one.
        """
        if train is None:
            raise ConfigError("tokenizer.method is das, which needs training sequences; pass train to fit()")
        check_embeddings(embeddings)
        behaviour = Behaviour(train, len(embeddings), self.config.window)
        self._check_pairs(behaviour)
        if user_embeddings is None:
            user_embeddings = mean_embeddings(embeddings, train)
        elif len(user_embeddings) != len(train):
            raise DataError(
                f"user_embeddings has {len(user_embeddings)} rows, train has {len(train)} sequences; row i must be "
                "the user of sequence i"
            )
        _check_users(user_embeddings)
        for what, rows in (("items", embeddings), ("users", user_embeddings)):
            self._check_room(what, len(rows))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            sides = []
            for side, vectors in ((self, embeddings), (self.users, user_embeddings)):
                inputs, quantizer = side.prepare(vectors)
                sides.append(TrainingSide(side=side, inputs=inputs, quantizer=quantizer))
            training = DASTraining(sides[0], sides[1], behaviour, self.config)
            training.run()
        for part in sides:
            part.side.finish(part.quantizer)
        self._projections = {
            "item": training.alignment.item_projection.weight.detach().double().numpy(),
            "user": training.alignment.user_projection.weight.detach().double().numpy(),
        }
        self.behaviour = training.model.vectors() if training.model is not None else None
        self.user_ids = self.users.name_rows(user_embeddings)
        return self.name_rows(embeddings)

    def encode_users(self, user_embeddings: FloatArray, taken: IntArray) -> IntArray:
        """int64 [k, L]: codes for users outside of `fit`, from their profiles; as `encode` does for items."""
        return self.users.encode(user_embeddings, taken)

    def item_vectors(self, codes: IntArray) -> FloatArray:
        """float32 [n, behaviour_dim]: the summed codewords of items, projected.

        Their cosine with `user_vectors` tells how well a user and an item match.
        """
        return self._projected(self, codes, "item")

    def user_vectors(self, codes: IntArray) -> FloatArray:
        """float32 [n, behaviour_dim]: the same of users, from their codes."""
        return self._projected(self.users, codes, "user")

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        if self.user_ids is None:
            raise DataError("this tokenizer has not been fitted; call fit() first")
        tensors = self.learned_tensors() | self.users.learned_tensors(_USERS)
        tensors |= {f"{_USERS}codebook.{level}": book for level, book in enumerate(self.users.codebooks)}
        tensors |= {f"{_USERS}codes": self.user_ids.codes, f"{_USERS}raw_codes": self.user_ids.raw_codes}
        tensors[f"{_USERS}codebook_sizes"] = np.asarray(self.user_ids.codebook_sizes, dtype=np.int64)
        tensors |= {f"projection.{name}": weight for name, weight in self._projections.items()}
        if self.behaviour is not None:
            tensors |= {f"behaviour.{name}": getattr(self.behaviour, name) for name in _VECTORS}
        save_tokenizer(directory, self.config, self._codebooks, tensors)

    @classmethod
    def load(cls, directory: Path, config: DASConfig) -> DASTokenizer:
        """Read what `save` wrote; `load_tokenizer` finds the config.

        Raises:
            ArtifactError: an array is missing, or does not fit the config or the others.
        """
        tokenizer = cls(config)
        required = {"mean", "scale", "projection.item", "projection.user"}
        required |= {f"{_USERS}{name}" for name in ("mean", "scale", "codes", "raw_codes", "codebook_sizes")}
        if config.behaviour_weight:
            required |= {f"behaviour.{name}" for name in _VECTORS}
        codebooks, tensors = load_tensors(directory, required)
        tokenizer.restore(codebooks, tensors, directory)
        tokenizer.users.restore(take_codebooks(tensors, _USERS, directory), tensors, directory, _USERS)
        tokenizer.user_ids = _restored_ids(tensors, tokenizer.users, directory)
        for name, side in (("item", tokenizer), ("user", tokenizer.users)):
            weight = tensors[f"projection.{name}"]
            shape = (config.behaviour_dim, side.codebooks[0].shape[1])
            check_shape(weight, shape, f"projection.{name}", directory)
            tokenizer._projections[name] = weight
        if config.behaviour_weight:
            tokenizer.behaviour = _restored_behaviour(tensors, tokenizer.user_ids.num_items, config, directory)
        return tokenizer

    def _check_pairs(self, behaviour: Behaviour) -> None:
        if "co_item" in self.config.views and not behaviour.has_item_pairs:
            raise DataError("train: no user clicked two items, so view co_item has no pairs; leave it out of views")
        if "co_user" in self.config.views and not behaviour.has_user_pairs:
            raise DataError("train: no item was clicked by two users, so view co_user has no pairs; leave it out")

    def _check_room(self, what: str, count: int) -> None:
        """Before minutes of training: the names would not be unique. Levels that count have room for all."""
        room = min(self.config.codebook_size, count) ** self.config.levels
        if count > room and self.config.collisions != "extra_level":
            raise DataError(
                f"{count} {what} do not fit into {room} codes; raise tokenizer.levels or tokenizer.codebook_size"
            )

    def _projected(self, side: SemanticSide, codes: IntArray, name: str) -> FloatArray:
        depth = len(side.codebooks)
        check_codes(codes[:, :depth], side.codebook_sizes[:depth], f"{name} codes")
        return np.asarray(summed_codes(codes[:, :depth], side.codebooks) @ self._projections[name].T, dtype=np.float32)


def _restored_ids(tensors: Mapping[str, np.ndarray[Any, Any]], users: SemanticSide, directory: Path) -> SemanticIds:
    """The names of the users of `fit`, which must be in the codes of the user side."""
    sizes = tensors[f"{_USERS}codebook_sizes"].tolist()
    if sizes != list(users.codebook_sizes):
        raise ArtifactError(
            f"{directory}: {_USERS}codebook_sizes is {sizes}, but its user codebooks have "
            f"{list(users.codebook_sizes)}; fit the tokenizer again"
        )
    try:
        return SemanticIds(
            codes=tensors[f"{_USERS}codes"],
            raw_codes=tensors[f"{_USERS}raw_codes"],
            codebook_sizes=users.codebook_sizes,
            ordinal=users.config.collisions == "extra_level",
        )
    except DataError as error:
        raise ArtifactError(f"{directory}: {_USERS}codes: {error}; fit the tokenizer again") from error


def _restored_behaviour(
    tensors: Mapping[str, np.ndarray[Any, Any]], num_users: int, config: DASConfig, directory: Path
) -> BehaviourVectors:
    vectors = {name: tensors[f"behaviour.{name}"] for name in _VECTORS}
    num_items = sum(vectors["property"].shape[:1])
    for name, array in vectors.items():
        rows = num_users if name in ("interest", "conformity") else num_items
        width = config.behaviour_dim if config.debias or name in ("interest", "property") else 0
        check_shape(array, (rows, width), f"behaviour.{name}", directory)
    return BehaviourVectors(**vectors)


def mean_embeddings(embeddings: FloatArray, train: Sequences) -> FloatArray:
    """float32 [len(train), dim]: the mean of the embeddings of each sequence's items, at length 1; zero for none."""
    unit = np.zeros((len(train), embeddings.shape[1]), dtype=np.float32)
    for row, items in enumerate(train):
        if len(items):
            mean = embeddings[items].mean(axis=0, dtype=np.float64)
            unit[row] = mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)
    return unit


def _check_users(user_embeddings: FloatArray) -> None:
    try:
        check_embeddings(user_embeddings)
    except DataError as error:
        raise DataError(f"user_embeddings: {error}") from error
