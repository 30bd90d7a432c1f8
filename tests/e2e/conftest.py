"""A data set and a sentence encoder that are small enough for every stage to run in seconds, and real nevertheless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from dashboard_page import CHROMIUM, FLAGS
from toy_encoder import write_toy_encoder

NUM_ITEMS, NUM_USERS = 60, 80
COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("lamp", "chair", "table", "mug", "bag", "sofa", "clock", "vase", "rug", "shelf")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Vectors of toy items do not belong into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        if "RECSYS_CACHE" not in os.environ:
            patch.setenv("RECSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the import format: item i is followed by i + 1 (mostly), so that there is something to learn."""
    folder = tmp_path_factory.mktemp("toy_dataset")
    items = pl.DataFrame(
        {
            "item_id": [f"i{index}" for index in range(NUM_ITEMS)],
            "title": [f"{COLOURS[index % 6]} {THINGS[index // 6]} {index}" for index in range(NUM_ITEMS)],
            "categories": [[THINGS[index // 6]] for index in range(NUM_ITEMS)],
        }
    )
    random = np.random.default_rng(0)
    users, bought, positions = [], [], []
    for user in range(NUM_USERS):
        length = int(random.integers(5, 12))
        steps = np.where(random.random(length) < 0.8, 1, random.integers(2, 6, length))
        walk = (random.integers(NUM_ITEMS) + np.cumsum(steps)) % NUM_ITEMS
        users += [f"u{user}"] * length
        bought += [f"i{index}" for index in walk]
        positions += list(range(length))
    items.write_parquet(folder / "items.parquet")
    log = pl.DataFrame({"user_id": users, "item_id": bought, "position": positions})
    log.write_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture(scope="session")
def toy_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model with one layer and random weights, made here: nothing is downloaded."""
    words = [*COLOURS, *THINGS, *(str(number) for number in range(NUM_ITEMS))]
    return write_toy_encoder(tmp_path_factory.mktemp("toy_encoder"), words, 32)


@pytest.fixture(scope="session")
def toy_config_text(toy_dataset: Path, toy_encoder: Path) -> str:
    """A configuration of all stages over them."""
    return f"""
run: {{threads: 2}}
data: {{source: files, path: {toy_dataset}}}
encoder: {{model: {toy_encoder}, max_tokens: 16, collaborative_weight: 1}}
tokenizer: {{method: rqvae, levels: 2, codebook_size: 8, code_dim: 8, hidden: [16], warmup_steps: 10, steps: 40}}
generator:
  model: {{hidden_size: 16, num_layers: 1, num_heads: 2, max_history: 12}}
  beams: 10
fusion: {{depth: 20}}
fit: {{epochs: 3, batch_positions: 128, validation_beams: 10}}
evaluation:
  ks: [5, 10]
  n_bootstrap: 20
  sasrec: {{hidden_size: 16, num_layers: 1, num_heads: 2, max_history: 12, epochs: 2, batch_size: 32}}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A real browser; the test is skipped where there is none.

    Of one module: while it runs there is an event loop, in which no later test of the process could run its own.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}; install chromium or set RECSYS_CHROMIUM")
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
