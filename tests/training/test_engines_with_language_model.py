"""A language model that several processes teach: their losses are those of one, with weights repeated or split."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import test_teaching as teaching
from tiny_lm import save_tiny_lm
from torch import nn

from recsys.data.sequences import Sequences
from recsys.ranks import ALONE, Ranks
from training.engines.config import TorchrunEngine
from training.engines.start import start
from training.fit import FitConfig
from training.teach import TeachConfig

STEPS = 4


def teach(directory: Path, tuning: str, file: str, ranks: Ranks) -> None:
    """Two epochs; the leader writes the losses of all steps, and lists of the taught model."""
    losses: list[float] = []

    def log(tag: str, value: float, step: int) -> None:
        if tag == "train/loss":
            losses.append(value)

    recommender = teaching.fresh(directory / "lm", "nested", tuning=tuning)
    for module in recommender.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process draws its own
    config = TeachConfig(tasks=teaching.TASKS, line_rows=128, steps_per_epoch=STEPS)
    teaching.teach(recommender, config, FitConfig(epochs=2, batch_positions=512), log=log, ranks=ranks)
    found = recommender.recommend(Sequences.from_lists([[4, 5, 6], [6, 7]]), k=3)
    if ranks.leads:
        (directory / file).write_text(json.dumps([losses, found.scores.tolist()]))


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_teach_a_language_model_as_one_does(
    tmp_path: Path, tuning: str, parallel: Literal["ddp", "fsdp"]
) -> None:
    save_tiny_lm(tmp_path / "lm", hidden_size=32)
    teach(tmp_path, tuning, "alone.json", ALONE)
    engine = TorchrunEngine(name="torchrun", processes=2, parallel=parallel, max_restarts=0)
    start(engine, partial(teach, tmp_path, tuning, "together.json"), tmp_path / "engine")
    (alone, lists), (together, other_lists) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "together")
    )
    assert len(alone) == 2 * STEPS
    assert together == pytest.approx(alone, rel=1e-3)
    assert [score for row in other_lists for score in row] == pytest.approx([s for row in lists for s in row], abs=0.02)
