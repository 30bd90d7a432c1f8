"""User indexing: one short tuple of codes per user, out of review texts and behaviour (ULMRec, arXiv 2412.05543).

As secondary sources report, the paper quantizes reviews and a user's behaviour vector with a residual autoencoder over
both; its formulas were not at hand, so the fusion and the two reconstructions are ours. With e_u the behaviour vector
and b_k the vectors of a user's texts:

    w   = softmax_k(e_u^T W b_k / sqrt(dim e))              without behaviour (e_u = 0) all texts count the same
    v_u = LayerNorm(e_u + sum_k w_k W_v b_k)
    z_u = Enc(v_u),  z^_u = z_u + sg(sum_l q_l - z_u)       quantized as in `recsys.tokenizer.quantizer`
    L   = ||b_u - Dec_b(z^_u)||^2 + ||e_u - Dec_e(z^_u)||^2 + commitment,     b_u the mean of b_k

Two reconstructions, because one of v_u alone would let the behaviour die out. Some behaviour vectors are hidden in
training (and still have to be reconstructed), so that a new user can be named by reviews alone.

Logs without reviews: the texts of a user's training items stand in for them. Pass the items' text vectors and the
training sequences themselves.

Knows vectors, not texts or items. Shapes: U users, T texts, B rows, M texts a user, D_b, D_e widths of the streams.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from torch import Tensor, nn

from recsys.data import IntArray, Sequences
from recsys.encoder.collaborative import cooccurrence_embeddings
from recsys.errors import ArtifactError, DataError
from recsys.files import atomic_directory, write_json
from recsys.progress import progress_bar
from recsys.tokenizer.artifact import load_network, take_codebooks
from recsys.tokenizer.nearest import NearestCodeTokenizer
from recsys.tokenizer.networks import cosine_factor, endless_batches, mlp, squared_error
from recsys.tokenizer.quantizer import DEAD_CODE_SHARE, REVIVAL_SHARE, ResidualQuantizer
from recsys.tokenizer.residual import DoubleArray, FloatArray, nearest_codes
from recsys.tokenizer.semantic_ids import SemanticIds
from recsys.tokenizer.user_config import UserIndexerConfig
from recsys.tokenizer.validation import (
    check_codebooks,
    check_embeddings,
    check_shape,
    check_taken,
    effective_codebook_size,
)

BoolArray = npt.NDArray[np.bool]

_CONFIG_FILE = "user_indexer.json"
_TENSOR_FILE = "user_indexer.safetensors"
_FORMAT = 1
_BLOCK_ROWS = 1024


class UserIndexer:
    """Attention over a user's texts, then an RQ-VAE with a decoder for texts and one for behaviour."""

    def __init__(self, config: UserIndexerConfig) -> None:
        self.config = config
        self._codes = _LatentCodes(config)
        self._text_mean: DoubleArray = np.zeros(0)
        self._text_scale = 1.0
        self._behaviour_scale = 1.0
        self._network: _UserNetwork | None = None

    @property
    def codebooks(self) -> list[FloatArray]:
        """One float32 [K_l, code_dim] a level; empty before `fit`."""
        return self._codes.codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K_l of each level; empty before `fit`."""
        return self._codes.codebook_sizes

    def fit(self, text_vectors: FloatArray, texts: Sequences, behaviour: FloatArray) -> SemanticIds:
        """Train on these users and name them: row i of the result is the user of sequence i.

        Args:
            text_vectors: float32 [T, D_b], one a text.
            texts: sequence i holds the rows of `text_vectors` of user i's texts, oldest first; TRAINING texts only.
            behaviour: float32 [U, D_e], for example `spectral_users`.

        Leaves torch's global random state as it was.

        Raises:
            DataError: NaN, fewer than 2 users, another number of users, or a user without a text.
        """
        _check(behaviour, "behaviour")
        self._check_texts(text_vectors, texts, behaviour)
        self._text_mean = text_vectors.mean(axis=0, dtype=np.float64)
        self._text_scale, self._behaviour_scale = 1.0, _root_mean_square(behaviour)
        # Targets of unit mean square norm: neither stream outweighs the other by its width or scale.
        read = [mean_texts(read, there).numpy() for _, read, there in self._blocks(text_vectors, texts)]
        means = np.concatenate(read)
        self._text_scale = _root_mean_square(means)
        users = torch.from_numpy((behaviour / self._behaviour_scale).astype(np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._network = _UserNetwork(text_vectors.shape[1], behaviour.shape[1], self.config)
            self._train(self._network, text_vectors, texts, users, means)
        return self._codes.name_rows(self.latents(text_vectors, texts, behaviour))

    def latents(self, text_vectors: FloatArray, texts: Sequences, behaviour: FloatArray | None = None) -> DoubleArray:
        """float64 [U, code_dim]: the points that are quantized. Without `behaviour`, texts alone speak."""
        network = self._fitted()
        if behaviour is None:
            behaviour = np.zeros((len(texts), network.behaviour_dim), dtype=np.float32)
        _check(behaviour, "behaviour", network.behaviour_dim)
        self._check_texts(text_vectors, texts, behaviour, network.text_dim)
        latents = np.zeros((len(texts), network.code_dim))
        for block, read, there in self._blocks(text_vectors, texts):
            users = torch.from_numpy(behaviour[block].astype(np.float64) / self._behaviour_scale)
            with torch.no_grad():
                latents[block] = network.latent(users, read, there).numpy()
        return latents

    def encode_raw(self, text_vectors: FloatArray, texts: Sequences, behaviour: FloatArray | None = None) -> IntArray:
        """int64 [k, L]: the nearest codes, which two users may share."""
        return self._codes.raw(self.latents(text_vectors, texts, behaviour))

    def encode_users(
        self, text_vectors: FloatArray, texts: Sequences, taken: IntArray, behaviour: FloatArray | None = None
    ) -> IntArray:
        """int64 [k, L]: codes for users outside of `fit`, unlike each other and unlike all of `taken`.

        A user who has not clicked yet has no behaviour: None names all of them by their texts alone.
        """
        return self._codes.unlike(self.latents(text_vectors, texts, behaviour), taken)

    def save(self, directory: Path) -> None:
        """Write the directory, whole or not at all."""
        network = self._fitted()
        tensors: dict[str, np.ndarray[Any, Any]] = {
            f"network.{name}": value.numpy() for name, value in network.state_dict().items()
        }
        tensors |= {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}
        tensors["text_mean"] = self._text_mean
        tensors["scales"] = np.asarray([self._text_scale, self._behaviour_scale])
        facts = {"format": _FORMAT, "behaviour_dim": network.behaviour_dim, "config": self.config.model_dump()}
        with atomic_directory(directory) as temporary:
            write_json(temporary / _CONFIG_FILE, facts)
            arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
            save_file(arrays, temporary / _TENSOR_FILE)

    @classmethod
    def load(cls, directory: Path) -> UserIndexer:
        """Read what `save` wrote. Raises ArtifactError when it is missing, damaged or of another format."""
        try:
            facts = json.loads((directory / _CONFIG_FILE).read_text())
            if facts["format"] != _FORMAT:
                raise ArtifactError(f"{directory} has format {facts['format']}, this version reads {_FORMAT}")
            indexer = cls(UserIndexerConfig.model_validate(facts["config"]))
            tensors = load_file(directory / _TENSOR_FILE)
            text_mean, scales = tensors["text_mean"], tensors["scales"]
            check_shape(text_mean, (text_mean.size,), "text_mean", directory)
            check_shape(scales, (2,), "scales", directory)
            indexer._text_mean = text_mean
            indexer._text_scale, indexer._behaviour_scale = (float(scale) for scale in scales)
            network = _UserNetwork(text_mean.size, facts["behaviour_dim"], indexer.config)
            load_network(network, tensors, "network", directory)
            indexer._network = network
            codebooks = take_codebooks(tensors, "", directory)
            check_codebooks(codebooks, indexer.config, network.code_dim, directory)
            indexer._codes.keep(codebooks)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, ValidationError) as error:
            raise ArtifactError(f"cannot read the user indexer {directory}: {error}; fit it again") from error
        return indexer

    def _fitted(self) -> _UserNetwork:
        if self._network is None:
            raise DataError("this user indexer has not been fitted; call fit() or load() first")
        return self._network

    def _check_texts(
        self, text_vectors: FloatArray, texts: Sequences, behaviour: FloatArray, dim: int | None = None
    ) -> None:
        _check(text_vectors, "text_vectors", dim)
        if len(texts) != len(behaviour):
            raise DataError(
                f"texts has {len(texts)} users, behaviour has {len(behaviour)} rows; row i of both must be one user"
            )
        empty = np.flatnonzero(texts.lengths == 0)
        if len(empty):
            raise DataError(f"texts: {len(empty)} of {len(texts)} users have none, e.g. rows {empty[:3].tolist()}")
        if texts.items.min(initial=0) < 0 or texts.items.max(initial=0) >= len(text_vectors):
            raise DataError(f"texts names row {int(texts.items.max())}, text_vectors has {len(text_vectors)} rows")

    def _blocks(self, text_vectors: FloatArray, texts: Sequences) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Users in blocks: which they are, float64 [B, M, D_b] standardised texts, bool [B, M] which are there."""
        rows, inside = latest_texts(texts, self.config.max_texts)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = slice(start, min(start + _BLOCK_ROWS, len(rows)))
            read = (text_vectors[rows[block]] - self._text_mean) / self._text_scale
            yield block, torch.from_numpy(read), torch.from_numpy(inside[block])

    def _train(
        self, network: _UserNetwork, text_vectors: FloatArray, texts: Sequences, users: Tensor, means: DoubleArray
    ) -> None:
        """Fit the network and the codebooks.

        `users` are float32 [U, D_e] scaled behaviour vectors, `means` float64 [U, D_b] mean texts, not yet scaled.
        """
        config = self.config
        text_targets = torch.from_numpy((means / self._text_scale).astype(np.float32))
        table = torch.from_numpy(((text_vectors - self._text_mean) / self._text_scale).astype(np.float32))
        rows, inside = (torch.from_numpy(array) for array in latest_texts(texts, config.max_texts))
        batch_size = min(config.batch_size, len(users))
        codebook_size = effective_codebook_size(config.codebook_size, len(users))
        quantizer = ResidualQuantizer(
            dim=network.code_dim,
            levels=config.levels,
            codebook_size=codebook_size,
            commitment_weight=config.commitment_weight,
            decay=config.codebook_decay,
            dead_code_threshold=DEAD_CODE_SHARE * batch_size / codebook_size,
            kmeans_iterations=config.kmeans_iterations,
        )
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        total_steps = config.warmup_steps + config.steps
        with progress_bar("tokenizer: user index steps", total_steps) as advance:
            for step, batch in zip(range(total_steps), endless_batches(len(users), batch_size), strict=False):
                progress = (step - config.warmup_steps) / config.steps  # below 0 in the warm-up
                if step == config.warmup_steps:
                    with torch.no_grad():
                        blocks = torch.split(torch.arange(len(users)), _BLOCK_ROWS)
                        latents = [network.latent(users[part], table[rows[part]], inside[part]) for part in blocks]
                    quantizer.initialise(torch.cat(latents), config.seed)
                if progress >= REVIVAL_SHARE:
                    quantizer.stop_reviving()
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * cosine_factor(progress)
                targets = users[batch]
                shown = targets * (torch.rand(len(targets), 1) >= config.behaviour_dropout)
                longest = int(inside[batch].any(dim=0).sum())
                vector = network.latent(shown, table[rows[batch, :longest]], inside[batch, :longest])
                loss = torch.zeros(())
                if step >= config.warmup_steps:
                    quantized = quantizer(vector)
                    vector, loss = quantized.vector, quantized.loss
                loss = loss + squared_error(network.text_decoder(vector), text_targets[batch])
                loss = loss + squared_error(network.behaviour_decoder(vector), targets)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                advance(1, f"loss {loss.item():.4f}")
        self._codes.keep([quantizer.codebook(level).detach().clone().numpy() for level in range(config.levels)])
        network.double().requires_grad_(False)


class _UserNetwork(nn.Module):
    """The fusion, the encoder and the two decoders."""

    def __init__(self, text_dim: int, behaviour_dim: int, config: UserIndexerConfig) -> None:
        super().__init__()
        self.text_dim, self.behaviour_dim = text_dim, behaviour_dim
        self.code_dim = min(config.code_dim, behaviour_dim)
        self.query = nn.Linear(behaviour_dim, text_dim, bias=False)
        self.value = nn.Linear(text_dim, behaviour_dim, bias=False)
        self.norm = nn.LayerNorm(behaviour_dim)
        self.encoder = mlp([behaviour_dim, *config.hidden, self.code_dim])
        self.text_decoder = mlp([self.code_dim, *config.hidden[::-1], text_dim])
        self.behaviour_decoder = mlp([self.code_dim, *config.hidden[::-1], behaviour_dim])

    def latent(self, users: Tensor, texts: Tensor, inside: Tensor) -> Tensor:
        """float [B, code_dim] from behaviour [B, D_e] and texts [B, M, D_b], of which [B, M] are there."""
        # W and W_v are applied to what is summed, not to every text: the same numbers, M times cheaper.
        logits = (texts @ self.query(users).unsqueeze(2)).squeeze(2) / math.sqrt(self.behaviour_dim)
        weights = logits.masked_fill(~inside, -torch.inf).softmax(dim=1)
        read = (weights.unsqueeze(1) @ texts).squeeze(1)
        latent: Tensor = self.encoder(self.norm(users + self.value(read)))
        return latent


class _LatentCodes(NearestCodeTokenizer):
    """Names points that are latents already."""

    def __init__(self, config: UserIndexerConfig) -> None:
        super().__init__()
        self.config: UserIndexerConfig = config

    def latents(self, embeddings: FloatArray) -> DoubleArray:
        """The points themselves."""
        return embeddings.astype(np.float64)

    def keep(self, codebooks: list[FloatArray]) -> None:
        """Take these codebooks."""
        self._codebooks = codebooks
        self._mean = np.zeros(codebooks[0].shape[1])

    def raw(self, latents: DoubleArray) -> IntArray:
        """int64 [k, L]: the nearest codes."""
        return nearest_codes(latents, self._codebooks)

    def unlike(self, latents: DoubleArray, taken: IntArray) -> IntArray:
        """int64 [k, L]: codes that neither each other nor `taken` share."""
        check_taken(taken, self.codebook_sizes)
        return self._resolve(self.raw(latents), latents, taken)

    def name_rows(self, latents: DoubleArray) -> SemanticIds:
        """The semantic IDs of float64 [U, code_dim]."""
        return self._name_items(latents)


def spectral_items(train: Sequences, num_items: int, dim: int = 64, window: int = 3) -> DoubleArray:
    """float64 [num_items, dim]: what each item adds to the behaviour vector of a user who had it.

    Its spectral vector (`cooccurrence_embeddings`) at length 1, weighted by 1 / sqrt(clicks), so that what everybody
    clicked says little. Zero for an item without a neighbour.
    """
    vectors, _ = cooccurrence_embeddings(train, num_items, dim, window)
    clicks = np.bincount(train.items, minlength=num_items)
    lengths = np.linalg.norm(vectors, axis=1)
    weights = 1 / np.sqrt(np.maximum(clicks, 1)) / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(vectors.astype(np.float64) * weights[:, None])


def behaviour_vectors(items: DoubleArray | FloatArray, histories: Sequences) -> FloatArray:
    """float32 [len(histories), dim]: the sum of each history's rows of `items`, at length 1; zero where all are."""
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    shape = (len(histories), len(items))
    member = sparse.csr_array((np.ones(len(owner)), (owner, histories.items)), shape=shape)
    summed = member @ items.astype(np.float64)
    norms = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.asarray(summed / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def spectral_users(train: Sequences, num_items: int, dim: int = 64, window: int = 3) -> FloatArray:
    """float32 [len(train), dim]: behaviour vectors of users without a trained recommender.

    The sum of what a user's training items say (`spectral_items`), at length 1. Zero for users none of whose items has
    a neighbour.
    """
    return behaviour_vectors(spectral_items(train, num_items, dim, window), train)


def latest_texts(texts: Sequences, max_texts: int) -> tuple[IntArray, BoolArray]:
    """The latest texts of each user: int64 [U, M] rows, 0 where bool [U, M] says that there is none.

    M is `max_texts`, whoever is asked for: sums over a fixed width do not depend on the company.
    """
    lengths = np.minimum(texts.lengths, max_texts)
    position = np.arange(max_texts)
    inside = position < lengths[:, None]
    start = texts.offsets[1:] - lengths
    rows = np.zeros(inside.shape, dtype=np.int64)
    rows[inside] = texts.items[(start[:, None] + position)[inside]]
    return rows, inside


def mean_texts(texts: Tensor, inside: Tensor) -> Tensor:
    """float [B, D_b]: the mean of those of [B, M, D_b] that are there."""
    weight = inside.to(texts.dtype)
    return (texts * weight.unsqueeze(2)).sum(dim=1) / weight.sum(dim=1, keepdim=True)


def _root_mean_square(vectors: FloatArray | DoubleArray) -> float:
    """The root of the mean square norm of the rows; 1 when all are zero."""
    return float(np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1).mean())) or 1.0


def _check(vectors: FloatArray, name: str, dim: int | None = None) -> None:
    try:
        check_embeddings(vectors, dim=dim)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
