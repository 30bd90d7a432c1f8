"""A small world with every source for real: two rings of items, a model of random weights, two new items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recsys.data import Examples, Sequences
from recsys.evaluation import SasRecConfig
from recsys.evaluation.baselines import SkipGram
from recsys.evaluation.baselines.counting import item_counts
from recsys.generator import GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.retrieval import FusionConfig, Retrieval, SasRecTower
from recsys.retrieval.pool import Pool

NUM_ITEMS = 24
NEW = (22, 23)
"""In the catalogue, with vectors and codes like those of 0 and 1; in no training sequence."""
FITTED = np.arange(22)


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    train: Sequences
    valid: Examples
    vectors: np.ndarray
    generator: GenerativeRecommender
    retrieval: Retrieval

    @property
    def pool(self) -> Pool:
        return self.retrieval.pool(self.generator)


def _walks(seed: int, num_users: int) -> list[list[int]]:
    """Item i is followed by i + 1 on a ring of 11, most of the time."""
    random = np.random.default_rng(seed)
    walks = []
    for user in range(num_users):
        steps = np.where(random.random(6) < 0.7, 1, random.integers(2, 5, 6))
        ring = 11 * (user % 2)
        walks.append((ring + (random.integers(11) + np.cumsum(steps)) % 11).tolist())
    return walks


def make_world() -> World:
    walks = _walks(0, 120)
    train = Sequences.from_lists([walk[:-1] for walk in walks])
    valid = Examples(histories=train, targets=np.array([walk[-1] for walk in walks]))
    random = np.random.default_rng(1)
    vectors = np.eye(NUM_ITEMS)[[*FITTED, 0, 1]] + 0.02 * random.normal(size=(NUM_ITEMS, NUM_ITEMS))
    vectors = vectors.astype(np.float32)
    index = np.arange(NUM_ITEMS)
    codes = np.stack([index // 4, index % 4], axis=1)
    config = GeneratorConfig(model=ModelConfig(hidden_size=16, num_layers=1, num_heads=2, max_history=8), beams=24)
    torch.manual_seed(0)
    generator = GenerativeRecommender(config, codes, (6, 4), None, build_model(config, codes, (6, 4), None))
    sasrec = SasRecConfig(hidden_size=16, num_layers=1, dropout=0.0, max_history=8, epochs=3, batch_size=32)
    retrieval = Retrieval.build(
        FusionConfig(depth=6, held_out_users=0.25),
        item_counts=item_counts(train, NUM_ITEMS),
        fitted=FITTED,
        tower=SasRecTower(sasrec).fit(train, len(FITTED)),
        counter=SkipGram().fit(train, len(FITTED)),
        vectors=vectors,
    )
    return World(train=train, valid=valid, vectors=vectors, generator=generator, retrieval=retrieval)
