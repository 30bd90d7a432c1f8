"""A process of the service whose supervisor is gone."""

from __future__ import annotations

import asyncio
import socket

import pytest
from fastapi.testclient import TestClient

from feature_store import OnlineStore
from serving.app import create_app
from serving.fleet import EndingError
from serving.metrics import Metrics
from serving.runtime import RecommenderRuntime
from serving.workers.member import FleetMember


def test_what_is_asked_of_a_supervisor_that_is_gone_is_refused_at_once() -> None:
    async def run() -> None:
        theirs, ours = socket.socketpair()
        gone = asyncio.Event()
        member = FleetMember(ours, "0", Metrics(None), None, gone.set)
        await member.start()
        asked = asyncio.create_task(member.render_metrics())
        await asyncio.sleep(0)
        theirs.close()
        await gone.wait()
        with pytest.raises(EndingError, match="is ending"):
            await asked
        with pytest.raises(EndingError, match="is ending"):
            await asyncio.wait_for(member.render_metrics(), 20)

    asyncio.run(run())


def test_what_concerns_all_processes_is_then_unavailable_and_nothing_breaks(
    runtime: RecommenderRuntime, store: OnlineStore
) -> None:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        app = create_app(runtime, store)
        member = FleetMember(ours, "0", Metrics(None), None, lambda: None)
        member._is_orphaned = True
        app.state.context.fleet = member
        with TestClient(app) as client:
            for path in ("/metrics", "/v1/traffic", "/v1/admin/models"):
                answer = client.get(path)
                assert (answer.status_code, answer.json()["detail"]) == (503, "the service is ending; ask again")
                assert int(answer.headers["Retry-After"]) >= 1
            assert client.post("/v1/recommend", json={"history": ["i1"]}).status_code == 200
