"""A generator that searches on a GPU. Without one, its graphs are run over the same buffers on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from toy_bundle import write_toy_bundle
from typer.testing import CliRunner

from feature_store import OnlineStore
from recsys import bundle as bundles
from recsys.bundle import Bundle
from recsys.errors import ConfigError
from recsys.generator import GenerativeRecommender, graphs
from recsys.generator.graphs import Recorded, SearchGraphs
from serving.app import create_app
from serving.cli import app
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings, load_settings
from serving.warming import warm_up


@pytest.fixture(scope="module", params=["generator", "fusion"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    home = tmp_path_factory.mktemp("gpu")
    write_toy_bundle(home / "bundle", fusion=home / "fusion" if request.param == "fusion" else None)
    return Bundle.load(home / "bundle")


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does at one go is done on the CPU."""

    def graphs_on_the_cpu(generator: GenerativeRecommender) -> GenerativeRecommender:
        twin = copy.copy(generator)
        twin.graphs = SearchGraphs(generator.model)
        return twin

    monkeypatch.setattr(bundles, "on_gpu", graphs_on_the_cpu)


@pytest.fixture
def services(bundle: Bundle, tmp_path: Path) -> Iterator[tuple[TestClient, TestClient]]:
    """The same model on the CPU, and with graphs; started when entered."""
    stores = [OnlineStore.embedded(tmp_path / name) for name in ("cpu", "cuda")]
    found = []
    for store, device in zip(stores, ("cpu", "cuda"), strict=True):
        runtime = RecommenderRuntime.from_bundle(bundle, device=device)
        warm_up(runtime)
        settings = ServingSettings(device=device)
        found.append(TestClient(create_app(runtime, store, settings)))
    with found[0], found[1]:
        yield found[0], found[1]
    for store in stores:
        store.close()


def passes(client: TestClient) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = (line.rsplit(" ", 1) for line in lines if line.startswith("recsys_cuda_"))
    return {name: float(value) for name, value in found}


def test_lists_with_graphs_are_those_without(rehearsal: None, services: tuple[TestClient, TestClient]) -> None:
    on_cpu, on_gpu = services
    before = passes(on_gpu)
    for body in (
        {"history": ["i1", "i2", "i9"], "k": 8},
        {"history": ["i1"], "k": 1},
        {"history": ["i3", "i7"], "k": 5, "exclude_seen": "none"},
        {"history": ["i3"], "k": 5, "filter": {"contains": {"column": "categories", "value": "Drama"}}},
        {"history": ["i4", "i5"], "k": 6, "max_per": {"categories": 2}},
    ):
        expected, given = (client.post("/v1/recommend", json=body).json() for client in services)
        assert expected["source"] == given["source"]
        assert expected["fallback_reason"] is None
        assert [item["item_id"] for item in given["items"]] == [item["item_id"] for item in expected["items"]]
        scores = [item["score"] for item in expected["items"]]
        assert [item["score"] for item in given["items"]] == pytest.approx(scores, abs=1e-5)
    after = passes(on_gpu)
    assert after['recsys_cuda_passes_total{how="graph"}'] > before['recsys_cuda_passes_total{how="graph"}']
    assert not passes(on_cpu)


def test_the_first_requests_find_the_graphs_of_all_sizes(
    rehearsal: None, services: tuple[TestClient, TestClient]
) -> None:
    _, on_gpu = services
    before = passes(on_gpu)["recsys_cuda_graphs"]
    for k, length in ((1, 1), (3, 5), (10, 12), (40, 16)):
        history = [f"i{place}" for place in range(length)]
        assert on_gpu.post("/v1/recommend", json={"history": history, "k": k}).status_code == 200
    asked = [{"history": [f"i{place}", "i9"] * (1 + place), "k": 1 + place} for place in range(7)]
    assert on_gpu.post("/v1/recommend:batch", json={"requests": asked}).status_code == 200
    assert passes(on_gpu)["recsys_cuda_graphs"] == before


def test_metrics_do_not_wait_for_a_graph_that_is_recorded(
    rehearsal: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = RecommenderRuntime.from_bundle(Bundle.load(bundle.path), device="cuda")
    counted = []

    def recorded(*arguments: object) -> Recorded:
        counted.append(runtime.graph_counts)
        return Recorded(*arguments)

    monkeypatch.setattr(graphs, "Recorded", recorded)
    runtime.recommend(["i1"], k=3)
    assert [each.recorded for each in counted] == [0, 1]
    assert runtime.graph_counts.replayed == 2


def test_reading_a_session_is_counted(rehearsal: None, services: tuple[TestClient, TestClient]) -> None:
    _, on_gpu = services
    name = 'recsys_cuda_passes_total{how="encode: sessions"}'
    before = passes(on_gpu).get(name, 0)
    event = {"event_id": "e1", "user_id": "ann", "item_id": "i3"}
    assert on_gpu.post("/v1/events", json=event).status_code == 200
    assert on_gpu.post("/v1/recommend", json={"user_id": "ann", "k": 3}).status_code == 200
    assert passes(on_gpu)[name] > before


def test_without_a_gpu_the_service_says_so_in_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(app, ["serve", str(bundle.path), "--port", "0", "--device", "cuda"])
    assert isinstance(result.exception, ConfigError), result.output
    assert str(result.exception) == "device: PyTorch finds no CUDA device here; choose cpu"
    assert not (bundle.path.parent / "store").exists()


def test_the_settings_name_the_device_too(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("device: cuda\n")
    assert load_settings(tmp_path / "serve.yaml").device == "cuda"
    (tmp_path / "serve.yaml").write_text("device: tpu\n")
    with pytest.raises(ConfigError, match="device: Input should be 'cpu' or 'cuda'"):
        load_settings(tmp_path / "serve.yaml")


@pytest.mark.gpu
def test_a_service_on_a_gpu_lists_what_one_on_the_cpu_does(bundle: Bundle) -> None:
    history = ["i1", "i2", "i9"]
    expected = RecommenderRuntime.from_bundle(Bundle.load(bundle.path)).recommend(history, k=8)
    runtime = RecommenderRuntime.from_bundle(Bundle.load(bundle.path), device="cuda")
    warm_up(runtime)
    found = runtime.recommend(history, k=8)
    assert [pick.item for pick in found.picks] == [pick.item for pick in expected.picks]
    assert runtime.graph_counts is not None
    assert runtime.graph_counts.replayed > 0
