"""The fit: it learns, it stops, and a fit that was killed ends like one that was not."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recsys.data.sequences import Sequences
from recsys.errors import ArtifactError
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.nested import NestedModel
from recsys.generator.placement import place
from recsys.generator.recommender import GenerativeRecommender, build_model
from training.fit import FitConfig, fit_generator, learning_rate_factor
from training.objectives import BatchLoss
from training.shares import SharedLoss

NUM_ITEMS = 30
SIZES = (4, 8)


def cycles(num_users: int = 30) -> Sequences:
    """Users who walk through the catalogue one item at a time: the next item is certain."""
    rng = np.random.default_rng(0)
    return Sequences.from_lists(
        [(start + np.arange(length)) % NUM_ITEMS for start, length in rng.integers(3, 12, size=(num_users, 2))]
    )


def fresh(shape: str) -> GenerativeRecommender:
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1).astype(np.int64)
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": shape, "hidden_size": 32, "max_history": 8, "dropout": 0.1})
    )
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, SIZES, None, build_model(config, codes, SIZES, None))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_certain_successor_is_learned(shape: str) -> None:
    recommender = fresh(shape)
    epochs = iter(range(100))
    fit_generator(
        recommender.model,
        cycles(),
        FitConfig(epochs=60, batch_positions=128, learning_rate=1e-2),
        seed=0,
        validate=lambda: float(next(epochs)),
    )
    histories = [[start, start + 1, start + 2] for start in range(3, 12)]
    found = recommender.recommend(Sequences.from_lists(histories), k=1)
    assert found.items[:, 0].tolist() == [start + 3 for start in range(3, 12)]


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_killed_fit_resumes_to_the_very_same_weights(shape: str, tmp_path: Path) -> None:
    config = FitConfig(epochs=5, batch_positions=128)
    scores = [0.1, 0.3, 0.2, 0.4, 0.35]

    def run(directory: Path, kill_after: int | None) -> tuple[NestedModel, list[dict[str, float]]]:
        recommender = fresh(shape)
        calls = 0

        def validate() -> float:
            nonlocal calls
            if kill_after is not None and calls == kill_after:
                raise KilledError
            calls += 1
            return scores[_epochs_done(directory)]

        result = fit_generator(recommender.model, cycles(), config, seed=7, validate=validate, checkpoint_dir=directory)
        return recommender.model, result.curve

    whole, curve = run(tmp_path / "whole", None)
    for kill_after in (2, 1):
        with pytest.raises(KilledError):
            run(tmp_path / "killed", kill_after)
    resumed, resumed_curve = run(tmp_path / "killed", None)
    assert curve == resumed_curve
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def _epochs_done(directory: Path) -> int:
    return max((len(json.loads(path.read_text())) for path in directory.glob("checkpoint-*/curve.json")), default=0)


def kill_when_called(patch: pytest.MonkeyPatch, target: str, fatal_call: int) -> None:
    module_name, _, name = target.partition(":")
    module = importlib.import_module(module_name)
    original: Callable[..., object] = getattr(module, name)
    calls = 0

    def deadly(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == fatal_call:
            raise KilledError
        return original(*args, **kwargs)

    patch.setattr(module, name, deadly)


# The points of the second save; the first one had no older one to delete.
@pytest.mark.parametrize(
    ("target", "fatal_call"),
    [
        ("training.checkpoints:save", 2),
        ("training.checkpoints:write_json", 2),
        ("os:rename", 2),
        ("os:rmdir", 1),
    ],
    ids=["tensors", "curve", "taking its name", "older one half deleted"],
)
def test_a_fit_killed_anywhere_in_a_save_goes_on_from_a_whole_checkpoint(
    target: str, fatal_call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FitConfig(epochs=3, batch_positions=128)

    def run(directory: Path) -> dict[str, torch.Tensor]:
        model = fresh("nested").model
        fit_generator(model, cycles(), config, seed=7, validate=lambda: 0.1, checkpoint_dir=directory)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_when_called(patch, target, fatal_call)
        with pytest.raises(KilledError):
            run(tmp_path / "killed")
    assert _epochs_done(tmp_path / "killed") in (1, 2)
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["checkpoint-3"]


def test_a_checkpoint_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    old = tmp_path / "checkpoint-1"
    old.mkdir()
    save_file({"body.weight": torch.zeros(2)}, old / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"checkpoint-1 .*delete it"):
        fit_generator(
            fresh("nested").model, cycles(), FitConfig(), seed=0, validate=lambda: 0.0, checkpoint_dir=tmp_path
        )


def test_the_weights_of_the_best_validation_are_kept_and_patience_ends_the_fit() -> None:
    recommender = fresh("nested")
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    seen = []

    def validate() -> float:
        seen.append({name: value.clone() for name, value in recommender.model.state_dict().items()})
        return next(scores)

    result = fit_generator(recommender.model, cycles(), FitConfig(epochs=7, patience=3), seed=0, validate=validate)
    assert result.best_epoch == 2
    assert len(result.curve) == 5
    for name, value in recommender.model.state_dict().items():
        assert torch.equal(value, seen[1][name])


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [learning_rate_factor(step / 100, 0.1) for step in range(1, 100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.001


def _loss_curve(**changes: object) -> list[float]:
    recommender = fresh("nested")
    config = FitConfig.model_validate({"epochs": 3, "batch_positions": 128, **changes})
    epochs = iter(range(100))
    result = fit_generator(recommender.model, cycles(), config, seed=0, validate=lambda: float(next(epochs)))
    return [entry["loss"] for entry in result.curve]


def test_gradient_checkpointing_changes_memory_and_not_the_fit() -> None:
    np.testing.assert_allclose(_loss_curve(gradient_checkpointing=True), _loss_curve(), rtol=1e-5)


def test_lower_precision_learns_what_full_precision_learns_nearly() -> None:
    full, half = _loss_curve(), _loss_curve(precision="bfloat16")
    assert full != half
    np.testing.assert_allclose(half, full, rtol=0.02)


def test_on_a_cpu_auto_is_full_precision() -> None:
    assert _loss_curve(device="cpu", precision="auto") == _loss_curve(device="cpu", precision="float32")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["nested", "flat"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fit_on_a_gpu_learns_and_its_lists_are_those_of_the_cpu(shape: str, precision: str) -> None:
    recommender = fresh(shape)
    epochs = iter(range(100))
    config = {"epochs": 60, "batch_positions": 128, "learning_rate": 1e-2, "device": "cuda", "precision": precision}
    curve = fit_generator(
        recommender.model,
        cycles(),
        FitConfig.model_validate(config),
        seed=0,
        validate=lambda: float(next(epochs)),
    ).curve
    assert np.isfinite([entry["loss"] for entry in curve]).all()
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert recommender.model.learned.is_cuda
    histories = Sequences.from_lists([[3, 4, 5], [7, 8]])
    on_gpu = recommender.recommend(histories, k=10)
    assert on_gpu.items[:, 0].tolist() == [6, 9]
    place(recommender.model, torch.device("cpu"))
    on_cpu = recommender.recommend(histories, k=10)
    np.testing.assert_array_equal(on_gpu.items, on_cpu.items)
    np.testing.assert_allclose(on_gpu.scores, on_cpu.scores, atol=1e-3)


def test_only_steps_in_half_precision_round_the_other_products(monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    seen = []
    step = SharedLoss.backward

    def backward(*arguments: Any) -> BatchLoss:
        seen.append(products.fp32_precision)
        return step(*arguments)

    monkeypatch.setattr(SharedLoss, "backward", backward)
    _loss_curve(precision="float32")
    assert set(seen) == {before}
    seen.clear()
    _loss_curve(precision="bfloat16")
    assert set(seen) == {"tf32"}
    assert products.fp32_precision == before
