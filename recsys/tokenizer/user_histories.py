"""Users named by what they had: from a history of items to the codes of its user, the same in training and in service.

The vectors of a history's items stand in for the review texts of ULMRec (arXiv 2412.05543), which the logs here do not
have; its behaviour stream is the spectral vector of the history. `UserIndexer` fuses the two and quantizes them. It is
fitted on training sequences; afterwards codes are a function of a history alone, so that anybody with a known item has
some: users who came after the fit, users whose history has grown, and histories without a name.

Codes are the nearest ones, which users of one taste may share. Codes that nobody shares would depend on who else there
is, and a change of one user's history would rename another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.data import IntArray, Sequences
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_directory
from recsys.tokenizer.report import code_usage
from recsys.tokenizer.residual import FloatArray
from recsys.tokenizer.semantic_ids import SemanticIds
from recsys.tokenizer.user_config import UserIndexerConfig
from recsys.tokenizer.users import UserIndexer, behaviour_vectors, spectral_items

_BEHAVIOUR_DIM = 64
_INDEXER, _BEHAVIOUR = "indexer", "behaviour.safetensors"


class HistoryIndexer:
    """Names the users of histories over one catalogue.

    Args:
        indexer: fitted.
        vectors: float32 [N, D_b], the items' content vectors.
        behaviour: float32 [N, D_e], what each item adds to a behaviour vector; zeros for items that nobody had yet.
    """

    def __init__(self, indexer: UserIndexer, vectors: FloatArray, behaviour: FloatArray) -> None:
        if len(vectors) != len(behaviour):
            raise ValueError(f"vectors are of {len(vectors)} items, behaviour of {len(behaviour)}; give the same items")
        self._indexer = indexer
        self._vectors = vectors
        self._behaviour = behaviour

    @classmethod
    def fit(
        cls, config: UserIndexerConfig, vectors: FloatArray, train: Sequences
    ) -> tuple[HistoryIndexer, SemanticIds]:
        """Learn from training sequences; also the codes of their users, unique ones and nearest ones.

        Args:
            config: all settings.
            vectors: float32 [N, D_b], the items' content vectors.
            train: int64 items below N; nothing of validation or test. Sequences without items are left out.

        Raises:
            DataError: fewer than 2 users have an item, or a vector is not finite.
        """
        train = train.select(np.flatnonzero(train.lengths > 0))
        # A small catalogue has no more directions than items.
        items = spectral_items(train, len(vectors), dim=min(_BEHAVIOUR_DIM, len(vectors) - 1)).astype(np.float32)
        indexer = UserIndexer(config)
        ids = indexer.fit(vectors, train, behaviour_vectors(items, train))
        return cls(indexer, vectors, items), ids

    @property
    def codebooks(self) -> list[FloatArray]:
        """One float32 [K_l, code_dim] a level."""
        return self._indexer.codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K_l of each level."""
        return self._indexer.codebook_sizes

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self._vectors)

    def encode(self, histories: Sequences) -> IntArray:
        """int64 [B, L]: the codes of each history's user; a row of -1 where a history has no item.

        Raises:
            DataError: an item is not of the catalogue.
        """
        codes = np.full((len(histories), len(self.codebook_sizes)), -1, dtype=np.int64)
        known = np.flatnonzero(histories.lengths > 0)
        if len(known):
            told = histories.select(known)
            if told.items.min() < 0 or told.items.max() >= self.num_items:
                raise DataError(f"histories: items must lie in 0..{self.num_items - 1}, found {told.items.max()}")
            codes[known] = self._indexer.encode_raw(self._vectors, told, behaviour_vectors(self._behaviour, told))
        return codes

    def with_items(self, vectors: FloatArray, known: IntArray) -> HistoryIndexer:
        """The same names over another catalogue: new items speak through their content alone.

        Args:
            vectors: float32 [N', D_b] of the same encoder.
            known: int64 [N], where each item stands in the new catalogue; -1 for one that is gone.
        """
        behaviour = np.zeros((len(vectors), self._behaviour.shape[1]), dtype=np.float32)
        kept = known >= 0
        behaviour[known[kept]] = self._behaviour[kept]
        return HistoryIndexer(self._indexer, vectors, behaviour)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all; the items' content vectors are an artifact of their own."""
        with atomic_directory(directory) as temporary:
            self._indexer.save(temporary / _INDEXER)
            save_file({"behaviour": np.ascontiguousarray(self._behaviour)}, temporary / _BEHAVIOUR)

    @classmethod
    def load(cls, directory: Path, vectors: FloatArray) -> Self:
        """Read what `save` wrote, with the content vectors of the same items (float32 [N, D_b]).

        Raises:
            ArtifactError: it is missing or damaged, or of another number of items.
        """
        try:
            behaviour = load_file(directory / _BEHAVIOUR)["behaviour"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ArtifactError(f"cannot read the user indexer {directory}: {error}; fit it again") from error
        if len(behaviour) != len(vectors):
            raise ArtifactError(
                f"{directory} names users of {len(behaviour)} items, the catalogue has {len(vectors)}; "
                "load it with the embeddings of the same run"
            )
        return cls(UserIndexer.load(directory / _INDEXER), vectors, behaviour)


def user_report(ids: SemanticIds, indexer: HistoryIndexer, train: Sequences) -> dict[str, Any]:
    """What the codes of users are like, as one JSON document.

    Args:
        ids: of the users of `train` that have items, as `HistoryIndexer.fit` gave them.
        indexer: that made them.
        train: the training sequences.

    Returns:
        num_users, levels, codebook_sizes; of nearest codes, which prompts hold, `nearest`, and of codes made unique
        `unique`: each dup_rate (1 - distinct tuples / users), in_group_rate, max_group, and per level perplexity,
        used_codes, dead_codes. `short`: the nearest codes of the first item alone of every user, as of new users:
        their perplexity per level, and `kept`, the least share of the trained users' perplexity on any level.
    """
    sizes = ids.codebook_sizes
    first = train.select(np.flatnonzero(train.lengths > 0))
    first = Sequences.from_lists(first.items[first.offsets[:-1], None])
    nearest, new = code_usage(ids.raw_codes, sizes), code_usage(indexer.encode(first), indexer.codebook_sizes)
    shares = [found / trained for found, trained in zip(new["perplexity"], nearest["perplexity"], strict=False)]
    return {
        "num_users": len(ids.codes),
        "levels": ids.levels,
        "codebook_sizes": list(sizes),
        "nearest": nearest,
        "unique": code_usage(ids.codes, sizes),
        "short": {"perplexity": new["perplexity"], "kept": min(shares)},
    }
