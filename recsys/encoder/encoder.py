"""From texts to vectors by a sentence encoder or a causal language model. Knows no catalogue and no cache."""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.assets import ASSETS, fetch
from recsys.data import IntArray
from recsys.encoder.config import EncoderConfig
from recsys.errors import AssetError, ConfigError, DataError
from recsys.files import sha256_directory
from recsys.progress import progress_bar

FloatArray = npt.NDArray[np.float32]

_CHUNK_TEXTS = 512


class TextEncoder:
    """A model by asset name, directory or Hub name; loaded when it is first needed.

    `config.pooling` says what it is: a sentence-transformers model (`model`), or a causal language model whose hidden
    states are pooled (`mean`, `last`). Every method that needs the model raises AssetError when it can neither be
    fetched nor found.
    """

    def __init__(self, config: EncoderConfig, cache_dir: Path | None = None) -> None:
        self.config = config
        self._cache_dir = cache_dir
        self._mutex = threading.Lock()

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """float32 [n, dim], in the order of `texts`; equal texts get equal vectors."""
        distinct = list(dict.fromkeys(texts))
        row_of = {text: row for row, text in enumerate(distinct)}
        vectors = np.empty((len(distinct), self.dim), dtype=np.float32)
        for rows, part in self.stream(distinct):
            vectors[rows] = part
        return vectors[[row_of[text] for text in texts]]

    def stream(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray]]:
        """Encode piece by piece: (int64 [b] positions in `texts`, float32 [b, dim]), longest texts first.

        Texts of similar length share a batch, and if memory does not suffice the first batch shows it.

        Raises:
            DataError: the model gives values that are not finite.
        """
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        order = np.argsort(-lengths, kind="stable").astype(np.int64)
        started = time.monotonic()
        with progress_bar("encode texts", len(texts)) as advance:
            for start in range(0, len(order), _CHUNK_TEXTS):
                rows = order[start : start + _CHUNK_TEXTS]
                yield rows, self.encode_few([texts[row] for row in rows])
                advance(len(rows), f"{(start + len(rows)) / (time.monotonic() - started):.0f} texts/s")

    def encode_few(self, texts: Sequence[str]) -> FloatArray:
        """float32 [n, dim], in the order of `texts`, which are few enough to show no progress.

        Raises:
            DataError: the model gives values that are not finite.
        """
        with self._mutex:  # a tokenizer serves one thread at a time
            vectors = self._encode(list(texts))
        if broken := int((~np.isfinite(vectors)).any(axis=1).sum()):
            raise DataError(
                f"encoder.model {self.config.model!r} gives values that are not finite for {broken} of "
                f"{len(texts)} texts; its weights are damaged, choose another model"
            )
        return vectors

    @cached_property
    def dim(self) -> int:
        """Width of the vectors."""
        # Asked of a text: the method that tells it has changed its name between versions.
        return int(self._encode(["a"]).shape[1])

    def load_sentence_model(self) -> Any:
        """A new `SentenceTransformer` with the token limit of its own, for tuning.

        Raises:
            ConfigError: `config.pooling` says that the model is none.
        """
        if self.config.pooling != "model":
            raise ConfigError(
                f"encoder.pooling is {self.config.pooling}, but only a sentence-transformers model can be tuned; set "
                "it to model and choose such a model"
            )
        # Imported here: it takes seconds, and a run whose texts are all cached does without.
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        name = self.config.model
        try:
            return SentenceTransformer(str(self._directory or name))
        except (OSError, ValueError) as error:
            raise AssetError(
                f"encoder.model {name!r} is no asset, no model directory, and cannot be loaded from the Hub: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything a text's vector depends on: weights, modules (pooling), tokenizer, token limit."""
        if (directory := self._directory) is not None:
            # The files spare loading the model when all texts are cached.
            content = sha256_directory(directory)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                if self.config.pooling == "model":
                    self._model.save(scratch, create_model_card=False)
                else:
                    self._model.save(scratch)
                content = sha256_directory(Path(scratch))
        # A sentence encoder's pooling is among its files.
        pooling = "" if self.config.pooling == "model" else f"pooling={self.config.pooling};"
        return hashlib.sha256(f"max_tokens={self.config.max_tokens};{pooling}{content}".encode()).hexdigest()

    @cached_property
    def _directory(self) -> Path | None:
        """Where the files of an asset or a local model lie; None for a model of the Hub."""
        name = self.config.model
        asset = ASSETS.get(name)
        if asset is None:
            return Path(name) if Path(name).is_dir() else None
        if asset.kind != "model":
            raise AssetError(f"encoder.model {name!r} is an asset, but holds {asset.kind}, not a model")
        return fetch(name, self._cache_dir)

    def _encode(self, texts: list[str]) -> FloatArray:
        """float32 [n, dim]."""
        if self.config.pooling == "model":
            vectors = self._model.encode(
                texts, batch_size=self.config.batch_size, show_progress_bar=False, convert_to_numpy=True
            )
        else:
            vectors = self._model.encode(texts, self.config.batch_size)
        return np.asarray(vectors, dtype=np.float32)

    @cached_property
    def _model(self) -> Any:
        if self.config.pooling != "model":
            # Imported here like sentence_transformers below: for the time it takes.
            from recsys.encoder.hidden_states import HiddenStateModel

            source = str(self._directory or self.config.model)
            return HiddenStateModel(source, self.config.pooling, self.config.max_tokens)
        model = self.load_sentence_model()
        limit = model.get_max_seq_length()
        # Tables of words (static embeddings) have no attention that would grow with a text, and no limit to set.
        if limit != math.inf:
            model.max_seq_length = min(self.config.max_tokens, limit) if limit else self.config.max_tokens
        return model
