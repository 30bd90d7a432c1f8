"""What the service writes about its work names nobody: logs, metrics and audit lines are scanned for ids and keys."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from guarded import guarded_app

from feature_store import OnlineStore
from recsys.errors import ConfigError
from recsys.generator import GenerativeRecommender
from serving.app import create_app
from serving.guard.audit import AuditLog
from serving.logs import configure_logging
from serving.runtime import RecommenderRuntime
from serving.settings import ServingSettings

USER, EVENT = "ludwig-van-b", "event-98431"
SECRET = "0123456789abcdef"


def _use_everything(client: TestClient, headers: dict[str, str]) -> None:
    asked = {"headers": headers}
    client.post("/v1/events", json={"event_id": EVENT, "user_id": USER, "item_id": "i1"}, **asked)
    client.post("/v1/events", json={"event_id": EVENT, "user_id": USER, "item_id": "i2"}, **asked)
    client.post("/v1/events", json={"event_id": EVENT, "user_id": USER}, **asked)
    client.post("/v1/recommend", json={"user_id": USER}, **asked)
    client.post("/v1/recommend", json={"user_id": USER + USER}, **asked)
    for path in (f"/v1/users/{USER}", f"/v1/profiles/{USER}", f"/{USER}", f"/v1/users?query={USER}"):
        client.get(path, **asked)
        client.get(path, headers={"Authorization": f"Bearer {USER}"})
    client.put(f"/v1/profiles/{USER}", json={"statements": [USER], "revision": "x"}, **asked)
    client.delete(f"/v1/profiles/{USER}", **asked)


def test_logs_and_metrics_name_no_user_and_no_key(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging()
    with guarded_app(runtime, store, tmp_path) as guarded:
        _use_everything(guarded.client, guarded.as_("admin"))
        monkeypatch.setattr(GenerativeRecommender, "recommend", lambda *_, **__: 1 / 0)
        guarded.client.post("/v1/recommend", json={"user_id": USER}, headers=guarded.as_("admin"))
        metrics = guarded.client.get("/metrics", headers=guarded.as_("admin")).text
    monkeypatch.undo()
    nobody = OnlineStore.connect(f"unix://{tmp_path}/nobody-listens.sock")
    monkeypatch.setattr(sys, "stderr", written)
    with TestClient(create_app(runtime, nobody)) as client:
        _use_everything(client, {})
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) >= 20
    assert {line["client"] for line in requests} == {"admin", None}
    assert {"/v1/users/{user_id}", "/v1/recommend", "unmatched"} <= {line["route"] for line in requests}
    for text in (written.getvalue(), metrics):
        for secret in (USER, EVENT, *guarded.keys.values(), *(key[-20:] for key in guarded.keys.values())):
            assert secret not in text


def test_erasures_and_what_administrators_do_are_on_record_refused_or_not(
    runtime: RecommenderRuntime, store: OnlineStore, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    settings = ServingSettings.model_validate({"guard": {"audit_file": str(file), "audit_secret": SECRET}})
    with guarded_app(runtime, store, tmp_path, settings) as guarded:

        @guarded.app.post("/v1/admin/reload", operation_id="reload")
        def reload() -> str:
            return "done"

        guarded.client.delete("/v1/profiles/carla", headers=guarded.as_("write"))
        guarded.client.delete("/v1/profiles/carla", headers=guarded.as_("read"))
        guarded.client.get("/v1/profiles/carla", headers=guarded.as_("write"))
        guarded.client.post("/v1/admin/reload", headers=guarded.as_("read"))
        last = guarded.client.post("/v1/admin/reload", headers=guarded.as_("admin") | {"X-Request-ID": "r-1"})
        assert last.status_code == 200
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["client"], line["operation"], line["status"]) for line in lines] == [
        ("write", "delete_profile", 200),
        ("read", "delete_profile", 403),
        ("read", "reload", 403),
        ("admin", "reload", 200),
    ]
    assert lines[-1]["request_id"] == "r-1"
    assert lines[-1]["subject"] is None
    audit = AuditLog(None, settings.guard.audit_secret)
    assert lines[0]["subject"] == lines[1]["subject"] == audit.name_of("carla") != audit.name_of("bob")
    assert "carla" not in file.read_text()
    assert SECRET not in str(settings)
    assert file.stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_written_is_found_at_the_start_and_later_costs_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"audit_file: .* cannot be written"):
        AuditLog(tmp_path / "no" / "folder" / "audit", None)
    folder = tmp_path / "logs"
    folder.mkdir()
    audit = AuditLog(folder / "audit", None)
    (folder / "audit").unlink()
    folder.rmdir()
    audit.record(operation="reload", client="ops", status=200, request_id="r", subject=None)
    assert "operation=reload" in capsys.readouterr().out
