"""Engines: what they are called, what they leave alone, and that several processes learn what one does."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import test_group_policy as policies
import torch
from torch import nn

from recsys.data.sequences import Sequences
from recsys.encoder.alignment.gradient_cache import backward_in_chunks
from recsys.errors import ConfigError, DataError
from recsys.generator.config import GeneratorConfig, ModelConfig
from recsys.generator.recommender import GenerativeRecommender, build_model
from recsys.progress import console
from recsys.ranks import ALONE, Ranks
from recsys.tokenizer.config import RQVAEConfig
from recsys.tokenizer.rqvae import RQVAETokenizer
from training.config import RunConfig, load_config
from training.engines import RayEngine, TorchrunEngine, start
from training.engines.ray import check_room
from training.engines.start import build_in_rank
from training.fit import FitConfig, fit_generator
from training.objectives import WindowObjective
from training.pipeline import Stage, Workspace
from training.runs import execute
from training.stages import build_stages, tokenize

NUM_ITEMS, SIZES = 30, (4, 8)
TRAJECTORY = Path(__file__).parent / "engine_trajectory.json"
"""Losses of every step of `fit` in one process. Written anew by `python tests/training/test_engines.py`."""
TWO = TorchrunEngine(name="torchrun", processes=2, max_restarts=1)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("data: {source: movielens}\ntokenizer: {method: rkmeans}\n")
    return path


def test_an_engine_is_named_or_described(config_file: Path) -> None:
    assert load_config(config_file).engine.name == "local"
    named = load_config(config_file, ["engine=torchrun"]).engine
    assert isinstance(named, TorchrunEngine)
    described = load_config(config_file, ["engine=torchrun", "engine.processes=4", "engine.parallel=fsdp"]).engine
    assert described == TorchrunEngine(name="torchrun", processes=4, parallel="fsdp")
    config_file.write_text(config_file.read_text() + "engine: {name: ray, processes: 3}\n")
    assert load_config(config_file).engine == RayEngine(name="ray", processes=3)
    assert load_config(config_file, ["engine=local"]).engine.name == "local"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine=torchrum"], "engine.name must be .*'torchrun'"),
        (["engine.processes=2"], "engine.name must be"),
        (["engine=local", "engine.processes=2"], "unknown key 'engine.processes'"),
        (["engine=ray", "engine.processes=0"], "engine.processes"),
    ],
)
def test_a_wrong_engine_is_named_with_what_is_allowed(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, overrides)


def test_no_result_depends_on_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Stage(name="data", version=1, inputs=(), settings=None, build=lambda workspace: None)
    monkeypatch.setattr("training.stages.data.stage", lambda config: raw)
    values = {"data": {"source": "movielens"}, "tokenizer": {"method": "rqvae"}}
    runs = [RunConfig.model_validate(values | {"engine": engine}) for engine in ("local", "torchrun", "ray")]
    settings = [{stage.name: stage.settings for stage in build_stages(run)} for run in runs]
    assert settings[0] == settings[1] == settings[2]


def test_ray_without_its_extra_says_which_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'recsys\[ray\]'"):
        start(RayEngine(name="ray"), print, tmp_path)


def test_more_processes_than_ray_has_room_for_on_one_machine_are_refused() -> None:
    check_room(RayEngine(name="ray", processes=2), "CPU", {"CPU": 2.0})
    with pytest.raises(ConfigError, match=r"engine\.processes=3, and Ray has 2 CPUs .* set engine\.processes=2, or"):
        check_room(RayEngine(name="ray", processes=3), "CPU", {"CPU": 2.0})


def test_ray_is_asked_for_before_the_first_of_the_stages_that_it_would_share(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = [Stage(name=name, version=1, inputs=(), settings=None, build=noted) for name in ("data", "encode")]
    built.append(replace(built[0], name="train", shared=True))
    monkeypatch.setattr("training.runs.build_stages", lambda config: built)
    monkeypatch.setitem(sys.modules, "ray", None)
    config = load_config(config_file, ["engine=ray", f"run.dir={tmp_path}", "run.name=made"])
    for until in (None, "train"):
        with pytest.raises(ConfigError, match=r"pip install 'recsys\[ray\]'"):
            execute(config, until)
    assert not config.run_dir.exists()
    execute(config, "encode")
    assert (config.run_dir / "encode" / "made").exists()


def noted(workspace: Workspace) -> None:
    (workspace.output / "made").touch()


def write(workspace: Workspace) -> None:
    (workspace.output / "result").write_text(f"process {workspace.ranks.rank}")
    (workspace.run_dir / "metrics.jsonl").write_text("")
    console.print("progress")


def test_only_the_leader_writes_and_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "quiet", False)
    output, run_dir = tmp_path / "output", tmp_path / "run"
    for directory in (output, run_dir):
        directory.mkdir()
    (output / "of an attempt that died").touch()
    workspace = Workspace(inputs={}, output=output, resume=tmp_path, run_dir=run_dir)
    build_in_rank(write, workspace, None, Ranks(rank=0, size=2))
    assert [file.name for file in output.iterdir()] == ["result"]
    build_in_rank(write, workspace, None, Ranks(rank=1, size=2))
    assert (output / "result").read_text() == "process 0"
    assert capsys.readouterr().err.count("progress") == 1


def test_what_the_leader_does_not_see_yet_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    monkeypatch.setattr(Ranks, "told", lambda self, value: False)
    monkeypatch.setattr(RQVAETokenizer, "learn", lambda self, vectors, train, ranks: learned.append(ranks.rank))
    monkeypatch.setattr(RQVAETokenizer, "name", lambda self, vectors: None)
    (tmp_path / "tokenizer").mkdir()
    follower = Workspace(inputs={}, output=tmp_path, resume=tmp_path, run_dir=tmp_path, ranks=Ranks(rank=1, size=2))
    tokenize._fitted(RQVAEConfig(), np.zeros((4, 2), dtype=np.float32), cycles(), follower)
    assert learned == [1]


# --- parts of batches -------------------------------------------------------------------------------------------------


def test_parts_of_a_batch_are_the_batch_and_too_small_a_one_leaves_some_without() -> None:
    objective = WindowObjective(fresh().model, cycles(), 64, 0.0)
    batch = objective.epoch(0, np.random.default_rng(0))[0]
    parts = [objective.part(batch, Ranks(rank=rank, size=3)) for rank in range(3)]
    assert sorted(np.concatenate([part for part in parts if part is not None])) == sorted(batch)
    assert objective.part(batch[:1], Ranks(rank=1, size=2)) is None
    whole = objective.loss(batch)
    losses = [objective.loss(part) for part in parts if part is not None]
    mean = sum(float(part.loss) * part.weight for part in losses) / sum(part.weight for part in losses)
    assert mean == pytest.approx(float(whole.loss), rel=1e-5)


# --- processes --------------------------------------------------------------------------------------------------------


def cycles() -> Sequences:
    """Users who walk through the catalogue one item at a time."""
    rng = np.random.default_rng(0)
    return Sequences.from_lists(
        [(start + np.arange(length)) % NUM_ITEMS for start, length in rng.integers(3, 12, size=(30, 2))]
    )


def fresh() -> GenerativeRecommender:
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), SIZES), axis=1).astype(np.int64)
    config = GeneratorConfig(model=ModelConfig(shape="nested", hidden_size=32, max_history=8, dropout=0.0))
    torch.manual_seed(0)
    return GenerativeRecommender(config, codes, SIZES, None, build_model(config, codes, SIZES, None))


def fit(
    directory: Path, stop_at: int | None, kill_at: int | None, ranks: Ranks, device: Literal["cpu", "cuda"] = "cpu"
) -> None:
    """Four epochs; the losses of the steps taken by the leader are added to `losses.json`, by step.

    With `stop_at` the fit ends there with a DataError; with `kill_at` the last process is killed there, once.
    """
    losses: dict[str, float] = {}

    def log(tag: str, value: float, step: int) -> None:
        if tag != "train/loss":
            return
        losses[str(step)] = value
        if ranks.leads:
            (directory / "losses.json").write_text(json.dumps(read(directory) | losses))
        if step == stop_at:
            raise DataError("enough")
        if step == kill_at and ranks.rank == ranks.size - 1 and not (directory / "killed").exists():
            (directory / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    config = FitConfig(epochs=4, batch_positions=64, device=device, precision="float32")
    recommender = fresh()
    later_is_better = iter(range(100))
    fit_generator(
        recommender.model,
        cycles(),
        config,
        seed=0,
        validate=lambda: float(next(later_is_better)),
        checkpoint_dir=directory / "resume",
        log=log,
        ranks=ranks,
    )
    if ranks.leads:
        found = recommender.recommend(Sequences.from_lists([[3, 4, 5], [10, 11]]), k=5)
        (directory / "lists.json").write_text(json.dumps(found.items.tolist()))


def read(directory: Path) -> dict[str, float]:
    file = directory / "losses.json"
    return json.loads(file.read_text()) if file.exists() else {}


def check(directory: Path) -> None:
    """Every step's loss is that of one process, and so are the lists in the end."""
    committed: dict[str, Any] = json.loads(TRAJECTORY.read_text())
    found = read(directory)
    assert found == pytest.approx(committed["losses"], rel=1e-4)
    residuals = np.array([found[step] - loss for step, loss in committed["losses"].items()])
    assert abs(residuals.mean()) < 1e-5
    assert json.loads((directory / "lists.json").read_text()) == committed["lists"]


def test_one_process_follows_the_committed_trajectory(tmp_path: Path) -> None:
    fit(tmp_path, None, None, ALONE)
    check(tmp_path)


@pytest.mark.gpu
def test_a_gpu_follows_the_committed_trajectory(tmp_path: Path) -> None:
    fit(tmp_path, None, None, ALONE, "cuda")
    check(tmp_path)


def everything(directory: Path, ranks: Ranks) -> None:
    """What several processes can do together, in one start of them, as starting takes longest."""
    fit(directory, None, 9, ranks)
    encode_together(ranks)
    tune_together(ranks)
    tokenize_together(ranks)


def encode_together(ranks: Ranks) -> None:
    """Gradients of a contrastive loss over chunks that processes share."""
    gradients = []
    for those in (ALONE, ranks):
        torch.manual_seed(0)
        network, chunks = nn.Linear(4, 3), torch.randn(7, 2, 4).unbind()
        backward_in_chunks(chunks, network, lambda rows: (rows @ rows.T).logsumexp(1).mean(), those)
        those.add_gradients(network.parameters())
        gradients.append([weight.grad for weight in network.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def tune_together(ranks: Ranks) -> None:
    """Group policy optimisation on prompts that processes share."""
    # Adam's steps follow the sign even of a gradient that is rounding.
    for precision, tolerance in (("float32", 5e-3), ("bfloat16", 2e-2)):
        tuned = []
        for those in (ALONE, ranks):
            recommender = policies.fresh()
            policy = {"kl_weight": 0.1, "supervised_weight": 0.1}
            config = policies.settings(updates=4, dropout=False, precision=precision, policy=policy)
            result = policies.tune(recommender, config, ranks=those)
            tuned.append(([entry["reward"] for entry in result.curve], policies.weights(recommender)))
        assert tuned[1][0] == pytest.approx(tuned[0][0], rel=1e-4)
        torch.testing.assert_close(tuned[1][1], tuned[0][1], rtol=0, atol=tolerance)


def tokenize_together(ranks: Ranks) -> None:
    """RQ-VAE on batches that processes share, whatever keeps its codebooks."""
    vectors = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    for codebook in ("ema", "gradient", "simvq"):
        config = RQVAEConfig(
            levels=2,
            codebook_size=8,
            code_dim=4,
            hidden=(8,),
            batch_size=31,
            warmup_steps=5,
            steps=15,
            codebook=codebook,
        )
        alone, together = RQVAETokenizer(config), RQVAETokenizer(config)
        alone.fit(vectors)
        together.fit(vectors, ranks=ranks)
        for one, other in zip(alone.codebooks, together.codebooks, strict=True):
            np.testing.assert_allclose(other, one, atol=1e-3, err_msg=codebook)


def test_two_processes_learn_what_one_does_though_one_of_them_is_killed(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    start(TWO, partial(everything, tmp_path), tmp_path / "engine")
    assert (tmp_path / "killed").exists()
    check(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow  # starts processes twice
def test_split_weights_of_two_processes_go_on_in_one_and_then_in_three(tmp_path: Path) -> None:
    split = TorchrunEngine(name="torchrun", processes=2, parallel="fsdp", max_restarts=0)
    with pytest.raises(DataError, match="enough"):
        start(split, partial(fit, tmp_path, 7, None), tmp_path / "engine")
    assert len(list(tmp_path.glob("resume/checkpoint-1/*.safetensors"))) == 2
    with pytest.raises(DataError, match="enough"):
        fit(tmp_path, 12, None, ALONE)
    start(split.model_copy(update={"processes": 3}), partial(fit, tmp_path, None, None), tmp_path / "engine")
    check(tmp_path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        fit(Path(scratch), None, None, ALONE)
        lists = json.loads((Path(scratch) / "lists.json").read_text())
        TRAJECTORY.write_text(json.dumps({"losses": read(Path(scratch)), "lists": lists}, indent=2) + "\n")
