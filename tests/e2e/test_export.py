"""`recsys export`: a finished run's generator for ONNX Runtime, judged on the run's own cases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys.data.sequences import Sequences
from recsys.errors import ArtifactError
from recsys.generator.onnx import GateConfig, OnnxBody, read_manifest
from training.config import RunConfig, config_yaml, load_config
from training.export import export_run, load_exported
from training.layout import CONFIG_FILE, DATA, ENCODE, ONNX, TOKENIZE, TRAIN
from training.pipeline import run_stages
from training.stages import build_stages, encode, tokenize, train

HISTORIES = Sequences.from_lists([[], [1, 2], [5, 6, 7]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, toy_config_text: str) -> RunConfig:
    """A run whose model is trained, and which is neither evaluated nor bundled."""
    home = tmp_path_factory.mktemp("home")
    (home / "toy.yaml").write_text(toy_config_text)
    config = load_config(home / "toy.yaml", [f"run.dir={home / 'runs'}"])
    run_stages(
        config.run_dir, [stage for stage in build_stages(config) if stage.name in (DATA, ENCODE, TOKENIZE, TRAIN)]
    )
    (config.run_dir / CONFIG_FILE).write_text(config_yaml(config))
    return config


def test_the_exported_generator_gives_the_lists_of_the_run(trained: RunConfig) -> None:
    manifest = export_run(trained, int8=False, gate=GateConfig(), max_cases=20)
    assert (manifest.gate.cases, manifest.gate.overlap, manifest.int8) == (20, 1.0, False)
    exported = load_exported(trained)
    assert isinstance(exported.model.body, OnnxBody)
    ids, embeddings = tokenize.load_ids(trained.run_dir / TOKENIZE), encode.load_embeddings(trained.run_dir / ENCODE)
    stored = train.load_recommender(trained.run_dir / TRAIN, trained.generator, ids, embeddings)
    np.testing.assert_array_equal(exported.recommend(HISTORIES, 5).items, stored.recommend(HISTORIES, 5).items)


def test_the_command_prints_the_manifest_that_it_wrote(trained: RunConfig) -> None:
    command = [sys.executable, "-m", "recsys", "export", str(trained.run_dir), "--int8", "--min-overlap", "0.5"]
    loose = ["--max-recall-drop", "1", "--max-ndcg-drop", "1", "--json"]
    result = subprocess.run([*command, *loose], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == read_manifest(trained.run_dir / ONNX).model_dump(mode="json")
    assert document["int8"] is True
    load_exported(trained)


def test_a_run_without_a_trained_model_is_one_line(tmp_path: Path, toy_config_text: str) -> None:
    (tmp_path / "toy.yaml").write_text(toy_config_text)
    config = load_config(tmp_path / "toy.yaml", [f"run.dir={tmp_path / 'runs'}"])
    with pytest.raises(ArtifactError, match="not finished: data, encode, tokenize, train; finish the run with"):
        export_run(config, int8=False, gate=GateConfig(), max_cases=20)
