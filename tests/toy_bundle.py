"""A real bundle over 40 made-up films, with a model of random weights: small enough to make in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from recsys.bundle import Manifest, write_bundle
from recsys.data import Catalog, Interactions, Sequences
from recsys.encoder import EncoderConfig, ItemEmbeddings, TextEncoder
from recsys.encoder.text import item_texts
from recsys.evaluation import SasRecConfig
from recsys.evaluation.baselines import SkipGram
from recsys.generator import GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.retrieval import FusionConfig, Retrieval, SasRecTower
from recsys.retrieval.features import feature_names
from recsys.retrieval.ranker import ConditionalLogit
from recsys.tokenizer import RKMeansConfig, build_tokenizer

NUM_ITEMS, NUM_USERS, HISTORY = 40, 12, 6
GENRES = ("Drama", "Comedy", "Sci-Fi", "Noir")
XSS_ITEM, XSS_TITLE = "i7", "<img src=x onerror=\"document.title='owned'\"> & <script>alert(1)</script>"
REPORT = {
    "protocol": {"split": "leave_last_out", "subset": "test", "mask_seen": True, "confidence": 0.95},
    "models": {
        name: {
            metric: {"value": value * scale, "low": value * scale * 0.9, "high": value * scale * 1.1}
            for metric, scale in (("recall@10", 1.0), ("ndcg@10", 0.6), ("mrr@10", 0.5))
        }
        for name, value in (("generator", 0.2), ("popularity", 0.08), ("item_knn", 0.15), ("sasrec", 0.19))
    },
}


def write_toy_bundle(
    path: Path, *, seed: int = 0, fusion: Path | None = None, encoder: Path | None = None, hidden_size: int = 16
) -> Manifest:
    """Users u0 .. u11, items i0 .. i39; the title of i7 is an attack on the page that shows it.

    `fusion` is a directory to make, of a fusion that goes into the bundle. `encoder` is a sentence encoder of 16
    dimensions that the items' vectors come from; without, they are drawn at random. `hidden_size` is the model's width.
    """
    random = np.random.default_rng(seed)
    index = range(NUM_ITEMS)
    catalog = Catalog(
        frame=pl.DataFrame(
            {
                "item_id": [f"i{i}" for i in index],
                "title": [XSS_TITLE if f"i{i}" == XSS_ITEM else f"Film number {i}" for i in index],
                "categories": [[GENRES[i % 4]] for i in index],
                "year": [str(1950 + i) for i in index],
            }
        )
    )
    items = np.concatenate([random.choice(NUM_ITEMS, HISTORY, replace=False) for _ in range(NUM_USERS)])
    interactions = Interactions(
        frame=pl.DataFrame(
            {
                "user": np.repeat(np.arange(NUM_USERS), HISTORY),
                "item": items.astype(np.int64),
                "event_type": ["view"] * len(items),
                "rating": pl.Series([None] * len(items), dtype=pl.Float64),
                "timestamp": np.arange(len(items)),
                "position": np.tile(np.arange(HISTORY), NUM_USERS),
            }
        ),
        user_ids=[f"u{user}" for user in range(NUM_USERS)],
        num_items=NUM_ITEMS,
    )
    encoding = EncoderConfig() if encoder is None else EncoderConfig(model=str(encoder), max_tokens=16)
    vectors = random.normal(size=(NUM_ITEMS, 16)).astype(np.float32)
    if encoder is not None:
        vectors = TextEncoder(encoding).encode(item_texts(catalog, encoding))
    tokenizer = build_tokenizer(RKMeansConfig(levels=2, codebook_size=8, code_dim=8))
    ids = tokenizer.fit(vectors)
    config = GeneratorConfig(
        model=ModelConfig(hidden_size=hidden_size, num_layers=1, num_heads=2, max_history=10), beams=40
    )
    torch.manual_seed(seed)
    model = build_model(config, ids.codes, ids.codebook_sizes, vectors)
    item_counts = np.bincount(items, minlength=NUM_ITEMS)
    if fusion is not None:
        _write_fusion(fusion, interactions.sequences(), item_counts, vectors)
    return write_bundle(
        path,
        name="toy",
        config={"run": {"name": "toy"}},
        catalog=catalog,
        interactions=interactions,
        item_counts=item_counts,
        embeddings=ItemEmbeddings(vectors=vectors, text_dim=16, encoder=encoding),
        semantic_ids=ids,
        tokenizer=tokenizer,
        recommender=GenerativeRecommender(config, ids.codes, ids.codebook_sizes, vectors, model),
        report=REPORT,
        fusion=fusion,
    )


def _write_fusion(directory: Path, train: Sequences, item_counts: np.ndarray, vectors: np.ndarray) -> None:
    """A ranker with weights made up over sources that were fitted for real."""
    sasrec = SasRecConfig(hidden_size=16, num_layers=1, max_history=10, epochs=1)
    retrieval = Retrieval.build(
        FusionConfig(depth=10),
        item_counts=item_counts,
        fitted=np.arange(NUM_ITEMS),
        tower=SasRecTower(sasrec).fit(train, NUM_ITEMS),
        counter=SkipGram().fit(train, NUM_ITEMS),
        vectors=vectors,
    )
    names = feature_names(("generator", "sasrec", "skip_gram", "content", "popularity"))
    weights = np.where([name in ("generator value", "content value") for name in names], 1.0, 0.0)
    directory.mkdir()
    retrieval.save(directory, ConditionalLogit(names=names, weights=weights, outside=0.0), {})
