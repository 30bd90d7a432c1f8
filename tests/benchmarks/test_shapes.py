"""`bench shapes` at a tiny size: both shapes get their seconds, and the table holds what was asked for."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

OPTIONS = [
    *("--seeds", "2", "--seconds", "0.2", "--looks", "2", "--hidden-size", "16", "--layers", "1", "--heads", "2"),
    *("--max-history", "8", "--batch-positions", "64", "--validation-users", "20", "--beams", "12", "--requests", "4"),
]


@pytest.fixture(scope="module")
def shapes() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "shapes.py"
    spec = spec_from_file_location("benchmarks_shapes", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 users who walk through 50 items."""
    folder = tmp_path_factory.mktemp("walks")
    random = np.random.default_rng(0)
    lengths = random.integers(6, 12, 80)
    walks = [(random.integers(50) + np.arange(length)) % 50 for length in lengths]
    log = {
        "user_id": np.repeat([f"u{user}" for user in range(80)], lengths),
        "item_id": [f"i{item}" for walk in walks for item in walk],
        "position": [place for length in lengths for place in range(length)],
    }
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    items = [f"i{item}" for item in range(50)]
    pl.DataFrame({"item_id": items, "title": items}).write_parquet(folder / "items.parquet")
    return folder


def test_shapes_are_compared_at_equal_seconds(
    shapes: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same work without the time that new processes take to import PyTorch.
    monkeypatch.setattr(shapes, "_in_process", shapes.run_job)
    found = shapes.main(["--data-path", str(folder), "--max-users", "60", *OPTIONS])
    assert found["settings"]["test_cases"] == 60
    for shape in ("nested", "flat"):
        measured = found["shapes"][shape]
        for run in measured["runs"]:
            # A step that was begun is finished.
            assert 0.2 <= run["seconds"] < 0.2 + 5 * run["seconds"] / run["steps"]
            assert run["epochs"] > 0
            assert 0 <= run["ndcg@10"] <= run["recall@10"] <= 1
            assert run["ms_8_requests"] > 0
        values = [run["recall@10"] for run in measured["runs"]]
        assert measured["recall@10"]["mean"] == pytest.approx(np.mean(values))
        assert measured["recall@10"]["std"] == pytest.approx(np.std(values, ddof=1))
    difference = found["differences"]["nested_minus_flat"]["recall@10"]
    means = [found["shapes"][shape]["recall@10"]["mean"] for shape in ("nested", "flat")]
    assert difference["value"] == pytest.approx(means[0] - means[1])
    assert "parameters" in capsys.readouterr().err


def test_the_rate_follows_the_seconds_and_not_the_steps(shapes: ModuleType, folder: Path, monkeypatch) -> None:
    begins = [0.0, 1.0, 1.5, 2.0, 3.0, 4.0]
    clock = iter([each for pair in pairwise(begins) for each in pair])  # at the begin and the end of each step
    monkeypatch.setattr(shapes, "clock", lambda: next(clock))
    rates: list[float] = []
    settings = shapes.load_config(shapes.packaged_config("beauty"), [f"data.path={folder}"])
    split = shapes.make_split(shapes.load_dataset(settings.data).interactions, settings.data)
    config = shapes.GeneratorConfig(model=shapes.ModelConfig(hidden_size=16, num_layers=1))
    codes = np.stack(np.divmod(np.arange(split.num_items), 8), axis=1)
    model = shapes.build_model(config, codes, (8, 8), None)
    job = shapes._Job(task="fit", home="", model={}, fit={}, seconds=4.0, looks=2, seed=0, beams=1, requests=1)
    config = shapes.FitConfig(batch_positions=64, warmup_share=0.25)
    timed = shapes._TimedFit(model, split, config, job)

    def loss(_: object) -> SimpleNamespace:
        rates.append(timed.optimizer.param_groups[0]["lr"])
        return SimpleNamespace(loss=torch.zeros((), requires_grad=True), num_items=1, item_loss=0.0)

    monkeypatch.setattr(timed.objective, "loss", loss)
    timed.until(2.0)
    timed.until(4.0)
    assert timed.spent == 4.0
    expected = [shapes.learning_rate_factor(begin / 4.0, 0.25) for begin in begins[:-1]]
    assert len(set(expected)) == 5
    assert np.array(rates) / config.learning_rate == pytest.approx(expected)


@pytest.mark.slow
def test_fits_and_services_are_processes_of_their_own(shapes: ModuleType, folder: Path) -> None:
    found = shapes.main(["--data-path", str(folder), "--shapes", "flat", "--seeds", "1", *OPTIONS[2:]])
    run = found["shapes"]["flat"]["runs"][0]
    assert run["recall@10"] > 0
    if run["fit_peak_mib"] is not None:
        assert run["fit_peak_mib"] >= run["fit_start_mib"] > 0
        assert run["serve_peak_mib"] >= run["serve_start_mib"] > 0
