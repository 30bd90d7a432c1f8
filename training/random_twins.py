"""Random models over synthetic catalogues, and a stopwatch: what benchmarks of decoding share.

Seconds of decoding depend on sizes, on how wide the logits spread and on how uneven the catalogue's trie is, not on
what a model has learned; so these are set and nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel

from recsys.bundle import Bundle, Manifest
from recsys.data import Catalog, IntArray, Sequences
from recsys.encoder import EncoderConfig, ItemEmbeddings
from recsys.errors import AssetError
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.flat import FlatModel
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.tokenizer import RKMeansConfig, SemanticIds, build_tokenizer
from training.transformers_twin import item_tokens

T = TypeVar("T")

LEVELS = 4
"""Codes of a synthetic semantic ID."""
CODES = 256
"""Size of each of its codebooks."""
_TOKENIZER_SAMPLE = 5000
"""Vectors that a random bundle's tokenizer is fitted to."""


def synthetic_codes(num_items: int) -> IntArray:
    """int64 [num_items, 4]: distinct codes below 256, as uneven below each prefix as those of product catalogues.

    Every code follows a Zipf-like law (perplexity 158 of 256) that begins at another code for each prefix.
    """
    rng = np.random.default_rng(0)
    weights = 1 / (8 + np.arange(CODES))
    keys = np.zeros(0, dtype=np.int64)
    while len(keys) < num_items:
        count = num_items + num_items // 4 - len(keys)
        drawn = np.zeros(count, dtype=np.int64)
        for _ in range(LEVELS):
            rank = rng.choice(CODES, size=count, p=weights / weights.sum())
            drawn = drawn * CODES + (rank + drawn * 2_654_435_761 // 97) % CODES
        keys = np.unique(np.concatenate([keys, drawn]))
    keys = rng.permutation(keys)[:num_items]
    return np.stack([keys >> 8 * (LEVELS - 1 - level) & 255 for level in range(LEVELS)], axis=1)


class RandomHistories:
    """Batches of random histories of equal length; another one each time."""

    def __init__(self, num_items: int, length: int) -> None:
        self.num_items = num_items
        self.length = length
        self._rng = np.random.default_rng(1)

    def draw(self, count: int) -> Sequences:
        """The next `count` histories."""
        return Sequences.from_lists(self._rng.integers(0, self.num_items, (count, self.length)))


def random_recommender(
    shape: Literal["flat", "nested"],
    codes: IntArray,
    sizes: tuple[int, ...],
    *,
    hidden_size: int,
    num_layers: int,
    max_history: int,
    beams: int,
) -> GenerativeRecommender:
    """A recommender with a Llama body and random weights, the same ones each time.

    Args:
        shape: of the generator; the logits of a flat one spread as `initialise` says.
        codes: int64 [N, L], of the catalogue.
        sizes: of the L codebooks.
        hidden_size: width of the body; a head for every 64.
        num_layers: of the body.
        max_history: items.
        beams: of the search.
    """
    config = GeneratorConfig(
        model=ModelConfig(
            shape=shape,
            body="llama",
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=max(1, hidden_size // 64),
            max_history=max_history,
            dropout=0.0,
        ),
        beams=beams,
    )
    torch.manual_seed(0)
    model = build_model(config, codes, sizes, None)
    if isinstance(model, FlatModel):
        initialise(model)
    return GenerativeRecommender(config, codes, sizes, None, model)


def smollm2_config() -> LlamaConfig:
    """The shape of SmolLM2-135M, without its vocabulary."""
    return LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
    )


def give_body(model: FlatModel, make: Callable[[], PreTrainedModel]) -> None:
    """Put the body that `make` makes in place, and embedding and heads that fit its width; the same ones each time."""
    torch.manual_seed(0)
    transformer = make().eval()
    width = transformer.config.hidden_size
    model.body.transformer = transformer
    model.embedding = nn.Embedding(model.embedding.num_embeddings, width)
    model.heads = nn.ModuleList(nn.Linear(width, size) for size in model.trie.codebook_sizes)
    initialise(model)


def initialise(model: FlatModel) -> None:
    """Random embedding and heads, whose logits spread as widely as a trained model's (standard deviation 2)."""
    width = model.embedding.embedding_dim
    with torch.no_grad():
        model.embedding.weight.normal_(std=0.5)
        for head in model.heads:
            assert isinstance(head, nn.Linear)
            # The last norm leaves vectors of length sqrt(width).
            head.weight.normal_(std=2 / width**0.5)
            head.bias.zero_()


def history_prompts(model: FlatModel, histories: Sequences) -> Tensor:
    """int64 [B, 1 + T * L]: histories of equal length as tokens of `model` and its twin, behind token 0."""
    items = torch.from_numpy(histories.items.reshape(len(histories), -1))
    return nn.functional.pad(item_tokens(model)[items].flatten(1), (1, 0))


def num_parameters(module: nn.Module) -> int:
    """Numbers that `module` holds."""
    return sum(parameter.numel() for parameter in module.parameters())


def clock_name() -> str:
    """Which seconds `timed` counts: one thread CPU seconds, which other processes disturb least; more wall seconds."""
    return "cpu seconds" if torch.get_num_threads() == 1 else "wall seconds"


def clock() -> float:
    """Seconds, see `clock_name`."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What `action` returns, and its seconds."""
    started = clock()
    result = action()
    return result, clock() - started


def random_bundle(num_items: int, *, dim: int, config: GeneratorConfig) -> Bundle:
    """A bundle that was not read from disk: random vectors, codes and weights, two categories an item, a title.

    It has a fitted tokenizer, and no text encoder.

    Args:
        num_items: of the catalogue.
        dim: components of an item's vector.
        config: of the generator.
    """
    random, numbers = np.random.default_rng(0), np.arange(num_items)
    catalog = Catalog(
        frame=pl.DataFrame({"n": numbers}).select(
            item_id=pl.format("B{}", "n"),
            title=pl.format("Item number {} of the catalogue", "n"),
            categories=pl.concat_list(pl.format("c{}", pl.col("n") % 50), pl.format("d{}", pl.col("n") % 1000)),
            price=(pl.col("n") % 100).cast(pl.String),
        )
    )
    vectors = random.normal(size=(num_items, dim)).astype(np.float32)
    tokenizer = build_tokenizer(RKMeansConfig(levels=LEVELS, codebook_size=CODES))
    tokenizer.fit(random.normal(size=(_TOKENIZER_SAMPLE, dim)).astype(np.float32))
    codes, sizes = synthetic_codes(num_items), (CODES,) * LEVELS
    torch.manual_seed(0)
    model = build_model(config, codes, sizes, vectors)
    bundle = Bundle(
        path=Path(),
        manifest=Manifest(
            name="random",
            model_version="random",
            created_at=datetime.now(UTC),
            libraries={},
            config={},
            metrics={},
            files={},
        ),
        catalog=catalog,
        embeddings=ItemEmbeddings(vectors=vectors, text_dim=dim, encoder=EncoderConfig()),
        semantic_ids=SemanticIds(codes=codes, raw_codes=codes, codebook_sizes=sizes),
        recommender=GenerativeRecommender(config, codes, sizes, vectors, model),
        fused=None,
        item_counts=np.random.default_rng(1).integers(0, 100, num_items),
        report={},
    )
    bundle.__dict__.update(tokenizer=tokenizer, text_encoder=_NoEncoder())
    return bundle


class _NoEncoder:
    def encode_few(self, texts: object) -> object:
        raise AssetError("a random bundle has no text encoder")
