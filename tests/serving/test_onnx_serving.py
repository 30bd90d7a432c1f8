"""`recsys serve --onnx`: the export of the bundle's own model decodes, in the fusion too; any other is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from recsys.bundle import Bundle
from recsys.data import Examples, Sequences
from recsys.errors import ArtifactError
from recsys.generator.onnx import GateConfig, OnnxBody, publish
from recsys.retrieval import FusedRecommender
from serving.cli import app
from serving.runtime import RecommenderRuntime

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a fusion, and the export of its model."""
    home = tmp_path_factory.mktemp("home")
    write_toy_bundle(home / "bundle", fusion=home / "fusion")
    recommender = Bundle.load(home / "bundle").recommender
    histories = Sequences.from_lists([[1, 2], [3]])
    cases = Examples(histories=histories, targets=recommender.recommend(histories, 1).items[:, 0])
    loose = GateConfig(max_recall_drop=1, max_ndcg_drop=1, min_overlap=0)
    publish(
        recommender,
        home / "onnx",
        cases,
        lambda side, asked: side.recommend(asked.histories, 10).items,
        int8=False,
        gate=loose,
    )
    return home


def test_onnx_runtime_decodes_the_lists_of_pytorch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(home / "bundle")
    runtimes = [RecommenderRuntime.from_bundle(bundle, onnx) for onnx in (None, home / "onnx")]
    calls: list[int] = []
    prefill = OnnxBody.prefill

    def counted(body: OnnxBody, inputs: object) -> object:
        calls.append(1)
        return prefill(body, inputs)

    monkeypatch.setattr(OnnxBody, "prefill", counted)
    lists = []
    for runtime, uses_onnx in zip(runtimes, (False, True), strict=True):
        calls.clear()
        answer = runtime.recommend(["i1", "i2", "i9"], k=8)
        assert answer.source == "fusion"
        assert bool(calls) == uses_onnx
        lists.append([(pick.item, round(pick.score, 3)) for pick in answer.picks])
    assert lists[0] == lists[1]
    # If the fusion fails, the generator that takes its place is the exported one too.
    calls.clear()
    monkeypatch.setattr(FusedRecommender, "recommend", lambda *_, **__: 1 / 0)
    assert runtimes[1].recommend(["i1"], k=3).source == "generator"
    assert calls


def test_an_export_of_another_model_is_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "bundle", seed=1)
    result = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "0", "--onnx", str(home / "onnx")])
    assert isinstance(result.exception, ArtifactError), result.output
    assert "was exported from other weights; export again with" in str(result.exception)
    assert not (tmp_path / "store").exists()


def test_a_changed_or_missing_export_is_refused(home: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(home / "bundle")
    with pytest.raises(ArtifactError, match="make it with `recsys export RUN`"):
        RecommenderRuntime.from_bundle(bundle, tmp_path)
    shutil.copytree(home / "onnx", tmp_path / "onnx")
    (tmp_path / "onnx" / "body.onnx.data").write_bytes(b"")
    with pytest.raises(ArtifactError, match="missing or was changed"):
        RecommenderRuntime.from_bundle(bundle, tmp_path / "onnx")
