"""Small real parts: a catalogue with a model of random weights over it, and a Valkey server of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from feature_store import OnlineStore
from recsys.data import Catalog
from recsys.generator import GenerativeRecommender, GeneratorConfig, ModelConfig, Recommender, build_model
from serving import chain
from serving.app import create_app
from serving.runtime import ModelInfo, RecommenderRuntime
from serving.seeding import Seeding
from serving.stages import Stage

NUM_ITEMS = 24
HISTORIES = {"ann": ["i0", "i1", "i2"], "bob": ["i5"], "ancient": ["gone"]}
REPORT = {"protocol": {"split": "leave_last_out"}, "models": {"generator": {"ndcg@10": {"value": 0.1}}}}

RuntimeFactory = Callable[..., RecommenderRuntime]


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a request takes longer than a service would let it; tests of deadlines say theirs."""
    monkeypatch.setattr(chain, "_LEAST_DEADLINE_S", 60.0)


def _recommender(codes: np.ndarray) -> GenerativeRecommender:
    config = GeneratorConfig(model=ModelConfig(hidden_size=16, num_layers=1, num_heads=2, max_history=8), beams=24)
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, (6, 4), None, build_model(config, codes, (6, 4), None))


@pytest.fixture(scope="session")
def make_runtime() -> RuntimeFactory:
    """A runtime over i0 .. i23; even items are "even", the first six "low"; i0 is the most popular."""
    index = np.arange(NUM_ITEMS)
    catalog = Catalog(
        frame=pl.DataFrame(
            {
                "item_id": [f"i{i}" for i in range(NUM_ITEMS)],
                "title": [None if i == 3 else f"The item {i}" for i in range(NUM_ITEMS)],
                "categories": [["even"] * (i % 2 == 0) + ["low"] * (i < 6) for i in range(NUM_ITEMS)],
                "brand": [f"brand {i % 3}" for i in range(NUM_ITEMS)],
            },
            schema_overrides={"categories": pl.List(pl.String)},
        )
    )
    codes = np.stack([index // 4, index % 4], axis=1)
    embeddings = np.random.default_rng(0).normal(size=(NUM_ITEMS, 8)).astype(np.float32)
    generator = _recommender(codes)

    def make(
        recommender: Recommender = generator,
        fused: Recommender | None = None,
        reasoner: GenerativeRecommender | None = None,
        reader: Recommender | None = None,
        dense: Recommender | None = None,
        counter: Recommender | None = None,
        version: str = "abc123",
        searches: Sequence[Stage] = (),
        columns: Mapping[str, Sequence[str | None]] = MappingProxyType({}),
    ) -> RecommenderRuntime:
        return RecommenderRuntime(
            info=ModelInfo(
                name="toy", model_version=version, created_at=datetime(2026, 1, 1, tzinfo=UTC), libraries={}
            ),
            catalog=Catalog(frame=catalog.frame.with_columns(pl.Series(name, each) for name, each in columns.items())),
            recommender=recommender,
            reader=reader,
            fused=fused,
            reasoner=reasoner,
            dense=dense,
            counter=counter,
            searches=searches,
            embeddings=embeddings,
            codes=codes,
            item_counts=NUM_ITEMS - index,
            report=REPORT,
        )

    return make


@pytest.fixture(scope="session")
def runtime(make_runtime: RuntimeFactory) -> RecommenderRuntime:
    return make_runtime()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OnlineStore]:
    store = OnlineStore.embedded(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def app(runtime: RecommenderRuntime, store: OnlineStore) -> FastAPI:
    return create_app(runtime, store, seeding=Seeding(store, "v1", HISTORIES))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def storeless_client(runtime: RecommenderRuntime, tmp_path: Path) -> Iterator[TestClient]:
    """A service whose store does not answer."""
    store = OnlineStore.connect(f"unix://{tmp_path}/nobody-listens.sock")
    with TestClient(create_app(runtime, store, seeding=Seeding(store, "v1", {}))) as client:
        yield client
