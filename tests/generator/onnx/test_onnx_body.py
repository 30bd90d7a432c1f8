"""An exported body does what the body in PyTorch does, for every shape of model; 8 bits pass a gate or are refused."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from random_codes import random_codes
from torch import Tensor

from recsys.data.sequences import Examples, IntArray, Sequences
from recsys.errors import ArtifactError, ConfigError, QualityError
from recsys.files import write_json
from recsys.generator import Constraints, GenerativeRecommender, GeneratorConfig, ModelConfig, build_model
from recsys.generator.onnx import (
    GateConfig,
    GateReport,
    OnnxBody,
    onnx_recommender,
    publish,
    read_manifest,
)
from recsys.generator.onnx.export import export_body
from recsys.generator.onnx.gate import check, compare
from recsys.generator.onnx.quantize import quantize_graph, saturates
from recsys.generator.placement import place

NUM_ITEMS, SIZES = 500, (8, 16, 16)
HISTORIES = Sequences.from_lists([[], [1, 2, 3], list(range(14)), [4], [7, 7]])
BODIES = ["gpt2", "llama"]
SHAPES = ["nested", "flat"]


def make_recommender(shape: str, body: str) -> GenerativeRecommender:
    """Large random weights: scores spread widely, so that an order is not an accident of rounding."""
    config = GeneratorConfig(
        model=ModelConfig.model_validate({"shape": shape, "body": body, "hidden_size": 16, "max_history": 10})
    )
    codes = random_codes(NUM_ITEMS, SIZES)
    torch.manual_seed(0)
    model = build_model(config, codes, SIZES, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return GenerativeRecommender(config, codes, SIZES, None, model)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One body in three forms; the flat shape has the most positions, and the others take its body too."""

    recommenders: dict[str, GenerativeRecommender]
    graph: Path
    quantized: Path

    def pair(self, shape: str) -> tuple[GenerativeRecommender, GenerativeRecommender]:
        recommender = self.recommenders[shape]
        return recommender, recommender.with_body(OnnxBody(self.graph))


@pytest.fixture(scope="module", params=BODIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exporting takes seconds, so it is done once a body."""
    directory = tmp_path_factory.mktemp(request.param)
    flat = make_recommender("flat", request.param)
    graph, quantized = directory / "float32" / "body.onnx", directory / "int8" / "body.onnx"
    graph.parent.mkdir()
    quantized.parent.mkdir()
    export_body(flat.model.body, graph)
    quantize_graph(graph, quantized, reduce_range=saturates())
    nested = make_recommender("nested", request.param).with_body(flat.model.body)
    return Exported(recommenders={"flat": flat, "nested": nested}, graph=graph, quantized=quantized)


@pytest.mark.parametrize("shape", SHAPES)
def test_lists_and_scores_are_those_of_pytorch(exported: Exported, shape: str) -> None:
    torch_side, onnx_side = exported.pair(shape)
    expected, found = torch_side.recommend(HISTORIES, 30), onnx_side.recommend(HISTORIES, 30)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_constraints_hold_as_in_pytorch(exported: Exported, shape: str) -> None:
    torch_side, onnx_side = exported.pair(shape)
    allow = np.random.default_rng(1).random(NUM_ITEMS) < 0.2
    constraints = Constraints(allow=allow, deny=list(HISTORIES))
    expected = torch_side.recommend(HISTORIES, 20, constraints=constraints)
    found = onnx_side.recommend(HISTORIES, 20, constraints=constraints)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert allow[found.items[found.items >= 0]].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_sessions_go_on_from_exported_caches(exported: Exported, shape: str) -> None:
    torch_side, onnx_side = exported.pair(shape)
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, NUM_ITEMS, size=size) for size in (0, 1, 4)]
    for _ in range(3):
        batch = Sequences.from_lists(histories)
        found = onnx_side.recommend(batch, 20, sessions=["a", "b", "c"])
        expected = torch_side.recommend(batch, 20)
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        histories = [np.append(history, rng.integers(0, NUM_ITEMS, size=2)) for history in histories]
    counts = onnx_side.sessions.counts
    assert (counts.misses, counts.extensions, counts.hits) == (3, 6, 0)


def test_hidden_states_and_caches_are_those_of_pytorch(exported: Exported) -> None:
    body, onnx_body = exported.recommenders["flat"].model.body, OnnxBody(exported.graph)
    inputs, further = torch.randn(3, 6, 16), torch.randn(3, 2, 16)
    positions = torch.full((3, 2), 6)
    # The second row does not see the first, as two beams do not.
    visible = torch.cat([torch.ones(3, 2, 6, dtype=torch.bool), torch.eye(2, dtype=torch.bool).expand(3, -1, -1)], -1)
    with torch.inference_mode():
        sides: list[tuple[Tensor, ...]] = []
        for side in (body, onnx_body):
            hidden, cache = side.prefill(inputs)
            grown = side.extend(further, cache, positions, visible)
            tables = [table for layer in cache.layers for table in (layer.keys, layer.values)]
            sides.append((hidden, grown, side(inputs), *tables))
    for expected, found in zip(*sides, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_scoring_given_items_needs_no_search(exported: Exported) -> None:
    torch_side, onnx_side = exported.pair("nested")
    items, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    with torch.no_grad():
        expected = torch_side.model.target_log_probs(items, lengths)
        torch.testing.assert_close(onnx_side.model.target_log_probs(items, lengths), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="an exported body cannot be trained"):
        onnx_side.model.target_log_probs(items, lengths)


def test_the_recommender_that_was_exported_stays_as_it_is(exported: Exported) -> None:
    torch_side, onnx_side = exported.pair("flat")
    assert isinstance(onnx_side.model.body, OnnxBody)
    assert not isinstance(torch_side.model.body, OnnxBody)
    assert onnx_side.model.embedding.weight is torch_side.model.embedding.weight
    assert onnx_side.sessions is not torch_side.sessions


def test_a_new_catalogue_keeps_the_exported_body(exported: Exported) -> None:
    torch_side, onnx_side = exported.pair("flat")
    codes = random_codes(NUM_ITEMS + 20, SIZES)
    found, expected = (
        side.with_catalog(codes, None, np.arange(NUM_ITEMS)).recommend(HISTORIES, 20)
        for side in (onnx_side, torch_side)
    )
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_an_exported_body_has_no_weights_to_save(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save the recommender that it was exported from"):
        exported.pair("flat")[1].save(tmp_path)


def test_eight_bits_take_every_product_with_weights_and_stay_near_the_scores(exported: Exported) -> None:
    recommender = exported.recommenders["flat"]
    found = recommender.with_body(OnnxBody(exported.quantized)).recommend(HISTORIES, 20)
    expected = recommender.recommend(HISTORIES, 20)
    np.testing.assert_allclose(found.scores, expected.scores, atol=0.3)
    assert not np.array_equal(found.scores, expected.scores)
    assert _weight_products(exported.graph, {"MatMul", "Gemm"}) == _weight_products(
        exported.quantized, {"MatMulInteger"}
    )


def _weight_products(graph: Path, kinds: set[str]) -> int:
    model = onnx.load(graph)
    constants = {table.name for table in model.graph.initializer}
    return sum(node.op_type in kinds and node.input[1] in constants for node in model.graph.node)


def test_a_file_that_is_no_body_is_refused(tmp_path: Path) -> None:
    (tmp_path / "body.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match=r"onnx: cannot load .*body\.onnx"):
        OnnxBody(tmp_path / "body.onnx")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_lists_and_scores_of_a_gpu_are_those_of_pytorch(exported: Exported, shape: str) -> None:
    torch_side = exported.pair(shape)[0]
    device = torch.device("cuda")
    on_gpu = make_recommender(shape, torch_side.config.model.body)
    place(on_gpu.model, device)
    onnx_side = on_gpu.with_body(OnnxBody(exported.graph, device=device))
    expected, found = torch_side.recommend(HISTORIES, 30), onnx_side.recommend(HISTORIES, 30)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime computes on a GPU"
)
def test_a_gpu_needs_an_onnx_runtime_that_knows_one(exported: Exported) -> None:
    with pytest.raises(ConfigError, match=r"no CUDAExecutionProvider here; install with: pip install 'recsys\[gpu\]'"):
        OnnxBody(exported.graph, device=torch.device("cuda"))


def test_tensors_of_another_device_are_refused(exported: Exported) -> None:
    with pytest.raises(ValueError, match="inputs are on meta, this body computes on cpu"):
        OnnxBody(exported.graph).prefill(torch.zeros(1, 2, 16, device="meta"))


def test_without_the_extra_export_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"pip install 'recsys\[onnx\]'"):
        export_body(make_recommender("nested", "gpt2").model.body, tmp_path / "body.onnx")


@pytest.mark.parametrize(("flags", "expected"), [("fma avx2", True), ("avx2 avx512_vnni", False), ("avx_vnni", False)])
def test_cpus_without_vnni_need_seven_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: bool
) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert saturates(facts) is expected
    assert saturates(tmp_path / "absent") is True
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert saturates(facts) is False


# ---------------------------------------------------------------------------------------------------------------------
# the gate
# ---------------------------------------------------------------------------------------------------------------------


def lists_with_target_at(ranks: list[int]) -> IntArray:
    """Target i is item 100 + i; rank 0 = not in the list."""
    lists = np.tile(np.arange(10), (len(ranks), 1))
    for row, rank in enumerate(ranks):
        if rank:
            lists[row, rank - 1] = 100 + row
    return lists


def cases(count: int) -> Examples:
    return Examples(histories=Sequences.from_lists([[0]] * count), targets=100 + np.arange(count))


def test_the_gate_measures_losses_and_what_lists_share() -> None:
    report = compare(lists_with_target_at([1, 3, 0, 1]), lists_with_target_at([1, 0, 0, 3]), cases(4))
    assert report == GateReport(
        cases=4, recall=0.75, recall_after=0.5, ndcg=2.5 / 4, ndcg_after=1.5 / 4, overlap=(1 + 0.9 + 1 + 0.9) / 4
    )
    assert report.recall_drop == pytest.approx(1 / 3)
    assert report.ndcg_drop == pytest.approx(0.4)


def test_the_gate_names_every_figure_that_is_too_low() -> None:
    report = compare(lists_with_target_at([1, 3, 0, 1]), lists_with_target_at([1, 0, 0, 3]), cases(4))
    check(report, GateConfig(max_recall_drop=0.4, max_ndcg_drop=0.4, min_overlap=0.9))
    with pytest.raises(QualityError) as caught:
        check(report, GateConfig(min_overlap=0.97))
    assert str(caught.value) == (
        "export: Recall@10 falls by 33.3% (0.7500 to 0.5000), 2.0% is allowed; NDCG@10 falls by 40.0% (0.6250 to "
        "0.3750), 2.0% is allowed; the lists share 95.0% of their items, 97.0% are asked for (4 cases); "
        "export without int8"
    )


def test_a_gain_passes_and_no_hit_at_all_is_refused() -> None:
    better = compare(lists_with_target_at([2, 0]), lists_with_target_at([1, 1]), cases(2))
    assert better.recall_drop == -1.0
    check(better, GateConfig(min_overlap=0.5))
    with pytest.raises(QualityError, match="the model has no hit among 2"):
        compare(lists_with_target_at([0, 0]), lists_with_target_at([1, 1]), cases(2))


def test_missing_items_at_the_end_of_short_lists_are_not_shared() -> None:
    lists = np.array([[100, 5, -1, -1, -1, -1, -1, -1, -1, -1]])
    after = np.array([[100, 6, -1, -1, -1, -1, -1, -1, -1, -1]])
    assert compare(lists, after, cases(1)).overlap == 0.5


# ---------------------------------------------------------------------------------------------------------------------
# the directory
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied_export(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """Publishing takes the graphs that are there instead of making them again."""

    def copy_graph(source: Path, target: Path) -> None:
        shutil.copy(source, target)
        shutil.copy(f"{source}.data", f"{target}.data")

    artifact = "recsys.generator.onnx.artifact"
    monkeypatch.setattr(f"{artifact}.export_body", lambda body, graph: copy_graph(exported.graph, graph))
    monkeypatch.setattr(
        f"{artifact}.quantize_graph", lambda source, target, reduce_range: copy_graph(exported.quantized, target)
    )
    return exported


def rank(recommender: GenerativeRecommender, examples: Examples) -> IntArray:
    return recommender.recommend(examples.histories, 10).items


def hits(recommender: GenerativeRecommender) -> Examples:
    """Cases whose targets the recommender finds."""
    return Examples(histories=HISTORIES, targets=recommender.recommend(HISTORIES, 3).items[:, 2])


def test_what_was_published_is_verified_and_runs(copied_export: Exported, tmp_path: Path) -> None:
    recommender = copied_export.recommenders["nested"]
    manifest = publish(recommender, tmp_path / "onnx", hits(recommender), rank, int8=False, gate=GateConfig())
    assert manifest.gate.overlap == 1.0
    assert (manifest.gate.recall, manifest.gate.recall_after, manifest.int8) == (1.0, 1.0, False)
    assert sorted(file.name for file in (tmp_path / "onnx").iterdir()) == [
        "body.onnx",
        "body.onnx.data",
        "manifest.json",
    ]
    assert read_manifest(tmp_path / "onnx") == manifest
    loaded = onnx_recommender(recommender, tmp_path / "onnx", threads=1)
    np.testing.assert_array_equal(loaded.recommend(HISTORIES, 10).items, recommender.recommend(HISTORIES, 10).items)
    with pytest.raises(ValueError, match="its body is an exported one already"):
        onnx_recommender(loaded, tmp_path / "onnx")


@pytest.mark.parametrize("name", ["body.onnx", "body.onnx.data"])
def test_a_changed_or_missing_file_is_refused(copied_export: Exported, tmp_path: Path, name: str) -> None:
    recommender = copied_export.recommenders["flat"]
    publish(recommender, tmp_path / "onnx", hits(recommender), rank, int8=False, gate=GateConfig())
    file = tmp_path / "onnx" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is missing or was changed"):
        onnx_recommender(recommender, tmp_path / "onnx")
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing or was changed"):
        onnx_recommender(recommender, tmp_path / "onnx")


def test_an_export_of_another_fit_is_refused(copied_export: Exported, tmp_path: Path) -> None:
    recommender = copied_export.recommenders["flat"]
    publish(recommender, tmp_path / "onnx", hits(recommender), rank, int8=False, gate=GateConfig())
    other = make_recommender("nested", "gpt2")
    with pytest.raises(ArtifactError, match="was exported from other weights"):
        onnx_recommender(other, tmp_path / "onnx")


def test_eight_bits_that_lose_too_much_leave_the_earlier_export(copied_export: Exported, tmp_path: Path) -> None:
    recommender = copied_export.recommenders["flat"]
    loose = GateConfig(max_recall_drop=0.99, max_ndcg_drop=0.99, min_overlap=0.5)
    manifest = publish(recommender, tmp_path / "onnx", hits(recommender), rank, int8=True, gate=loose)
    assert manifest.int8
    assert manifest.reduce_range == saturates()
    assert 0.5 <= manifest.gate.overlap <= 1

    def rank_badly(side: GenerativeRecommender, examples: Examples) -> IntArray:
        found = rank(side, examples)
        return np.roll(found, 1, axis=0) if isinstance(side.model.body, OnnxBody) else found

    with pytest.raises(QualityError, match="Recall@10 falls by"):
        publish(recommender, tmp_path / "onnx", hits(recommender), rank_badly, int8=True, gate=GateConfig())
    assert read_manifest(tmp_path / "onnx") == manifest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_eight_full_bits_are_refused_where_sums_overflow(
    copied_export: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recommender = copied_export.recommenders["flat"]
    manifest = publish(recommender, tmp_path / "onnx", hits(recommender), rank, int8=False, gate=GateConfig())
    full = manifest.model_copy(update={"int8": True, "reduce_range": False})
    write_json(tmp_path / "onnx" / "manifest.json", full.model_dump(mode="json"))
    monkeypatch.setattr("recsys.generator.onnx.artifact.saturates", lambda: True)
    with pytest.raises(ArtifactError, match="need a CPU with VNNI"):
        onnx_recommender(recommender, tmp_path / "onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        ("[]", "cannot read"),
        ('{"format": 9}', "has format 9, this version reads 1"),
        ('{"format": 1}', "cannot read"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path)
