"""What every semantic-ID tokenizer can do, and the two doors to one: by config or from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from recsys.data import IntArray, Sequences
from recsys.tokenizer.artifact import load_config
from recsys.tokenizer.choice import TokenizerConfig
from recsys.tokenizer.config import RKMeansConfig, RQVAEConfig
from recsys.tokenizer.mpq_config import MPQConfig
from recsys.tokenizer.residual import DoubleArray, FloatArray
from recsys.tokenizer.rkmeans import RKMeansTokenizer
from recsys.tokenizer.semantic_ids import SemanticIds


class SemanticIdTokenizer(Protocol):
    """Turns item embeddings into short tuples of codes, one unique tuple per item.

    Shapes: n items, dim the embeddings' width, L levels, K_l codes on level l.
    """

    @property
    def codebooks(self) -> list[FloatArray]:
        """One float32 [K_l, code_dim] a level, zeros for one that counts (`extra_level`); empty before `fit`."""
        ...

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K_l of each level; empty before `fit`."""
        ...

    def fit(self, embeddings: FloatArray, train: Sequences | None = None) -> SemanticIds:
        """Learn from float32 [n, dim] and name these items: row i of the result belongs to row i.

        `train` holds TRAINING sequences over the same items, for tokenizers that align codes with behaviour; the
        others leave it unread. Never pass validation or test items: they would leak into the codes.

        Raises DataError for NaN, fewer than 2 items, or more items than codes; ConfigError when behaviour is
        configured and `train` is None.
        """
        ...

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """float64 [n, code_dim]: the points that are quantized, in the space of the codebooks."""
        ...

    def encode_raw(self, embeddings: FloatArray) -> IntArray:
        """int64 [k, L]: the nearest codes. Repeats `SemanticIds.raw_codes` exactly for the items of `fit`."""
        ...

    def encode(self, embeddings: FloatArray, taken: IntArray) -> IntArray:
        """int64 [k, L]: codes for items never seen, with everything learned left as it is.

        `taken` (int64 [m, L]) holds the codes of all existing items; the result shares none with it and none
        twice. Raises DataError for another width, NaN, codes of another tokenizer, or no code left.
        """
        ...

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """float32 [n, dim]: the embeddings that int64 [n, depth <= L] codes stand for."""
        ...

    def save(self, directory: Path) -> None:
        """Write a directory that `load_tokenizer` reads."""
        ...


def build_tokenizer(config: TokenizerConfig) -> SemanticIdTokenizer:
    """An unfitted tokenizer."""
    tokenizer: SemanticIdTokenizer = _implementation(config)(config)
    return tokenizer


def load_tokenizer(directory: Path) -> SemanticIdTokenizer:
    """A fitted tokenizer from what `save` wrote. Raises ArtifactError when it is missing or damaged."""
    config = load_config(directory)
    tokenizer: SemanticIdTokenizer = _implementation(config).load(directory, config)
    return tokenizer


def _implementation(config: TokenizerConfig) -> Any:
    """The class for these settings. All but one are imported when asked for, because importing torch takes seconds."""
    if isinstance(config, RKMeansConfig):
        return RKMeansTokenizer
    if isinstance(config, RQVAEConfig):
        from recsys.tokenizer.rqvae import RQVAETokenizer

        return RQVAETokenizer
    if isinstance(config, MPQConfig):
        from recsys.tokenizer.mpq import MPQTokenizer

        return MPQTokenizer
    from recsys.tokenizer.das.tokenizer import DASTokenizer

    return DASTokenizer
