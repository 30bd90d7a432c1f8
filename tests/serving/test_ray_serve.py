"""The API on Ray Serve: what is refused before anything starts, and the whole on a cluster of this machine."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from toy_bundle import write_toy_bundle

from feature_store import EmbeddedServer
from recsys.errors import ArtifactError, ConfigError
from serving.ray_serve import application


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_toy_bundle(tmp_path / "run" / "bundle")
    return tmp_path / "run" / "bundle"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replicas": "many", "bundles": "x"}, "bundle: Field required; replicas: .*; bundles: Extra inputs"),
        ({"bundle": "here"}, "store: is empty; replicas share one that runs elsewhere"),
        ({"bundle": "here", "store": "redis://h", "keys": "k", "no_auth": True}, "exclude each other"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_STORE", raising=False)
    with pytest.raises(ConfigError, match=message) as caught:
        application(arguments)
    assert "\n" not in str(caught.value)


def test_without_a_bundle_or_the_extra_nothing_starts(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_STORE", "redis://elsewhere")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ArtifactError, match="is missing"):
        application({"bundle": str(bundle.parent / "nowhere")})
    with pytest.raises(ConfigError, match=r"^serving\.ray_serve: needs the extra .*pip install 'recsys\[ray-serve\]'$"):
        application({"bundle": str(bundle)})


@pytest.fixture
def url(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two replicas on a cluster of this machine, over one store."""
    pytest.importorskip("grpc_reflection", reason="the extra `ray-serve` is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    import ray
    from ray import serve

    server = EmbeddedServer(bundle.parent / "store")
    server.ensure_running()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=200 << 20, _node_ip_address="127.0.0.1")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application({"bundle": str(bundle), "store": f"unix://{server.socket_path}", "replicas": 2}))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        server.stop()


@pytest.mark.ray
def test_two_replicas_answer_as_one_service(url: str, bundle: Path) -> None:
    version = json.loads((bundle / "manifest.json").read_text())["model_version"]
    replicas = set()
    for number in range(12):
        with httpx.Client(base_url=url, timeout=60) as client:
            event = {"event_id": f"e-{number}", "user_id": "new", "item_id": f"i{number}"}
            assert client.post("/v1/events", json=event).json()["accepted"] == 1
            answer = client.post("/v1/recommend", json={"user_id": "new", "k": 5}).json()
            assert (answer["model_version"], len(answer["items"])) == (version, 5)
            # Whichever replica is asked, the other one's events are there.
            assert len(client.get("/v1/users/new").json()["history"]) == number + 1
            replicas |= {
                line.split('worker="')[1].split('"')[0]
                for line in client.get("/metrics").text.splitlines()
                if line.startswith("recsys_requests_in_flight{")
            }
    assert len(replicas) == 2
    assert httpx.get(f"{url}/readyz").status_code == 200
    refused = httpx.post(f"{url}/v1/admin/models:rollback", json={})
    assert refused.status_code == 409
    assert "run it again with another bundle" in refused.json()["detail"]
