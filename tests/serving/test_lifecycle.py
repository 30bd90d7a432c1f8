from __future__ import annotations

import asyncio
import signal
import threading
from types import SimpleNamespace

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from feature_store import StoreUnavailableError
from serving.guard.settings import GuardSettings
from serving.lifecycle import Lifecycle, Phase, StoreProbe, judge
from serving.server import HttpServer


@pytest.mark.parametrize(
    ("phase", "has_model", "store_answers", "has_fallback", "state"),
    [
        ("serving", True, True, True, "ok"),
        ("serving", True, False, True, "degraded"),
        ("serving", True, False, False, "unavailable"),
        ("serving", False, True, True, "unavailable"),
        ("starting", True, True, True, "unavailable"),
        ("draining", True, True, True, "unavailable"),
    ],
)
def test_readiness(phase: Phase, has_model: bool, store_answers: bool, has_fallback: bool, state: str) -> None:
    found = judge(phase=phase, has_model=has_model, store_answers=store_answers, has_fallback=has_fallback)
    assert found.state == state
    assert (set(found.checks.values()) == {"ok"}) == (state == "ok")


def test_probes_follow_the_phase(app: FastAPI) -> None:
    lifecycle = app.state.lifecycle
    with TestClient(app) as client:
        assert lifecycle.phase == "serving"
        lifecycle.phase = "draining"
        draining = client.get("/readyz")
        assert (draining.status_code, draining.json()["checks"]["phase"]) == (503, "draining")
        assert draining.headers["retry-after"] == "2"
        assert client.get("/startupz").status_code == 200
        assert client.get("/healthz").status_code == 200, "a restart would not help"
        assert client.post("/v1/recommend", json={"history": []}).status_code == 200, "what still comes is answered"
        lifecycle.phase = "starting"
        assert client.get("/startupz").status_code == client.get("/readyz").status_code == 503
    assert lifecycle.phase == "draining"


def test_a_store_that_hangs_or_fails_costs_a_second_and_one_thread() -> None:
    release, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        release.wait(10)

    def fail() -> None:
        raise StoreUnavailableError("down")

    async def ask(ping, times: int) -> list[bool]:
        probe = StoreProbe(SimpleNamespace(ping=ping))
        try:
            return [await probe.answers() for _ in range(times)]
        finally:
            release.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.lifecycle._PING_S", 0.1)
        assert anyio.run(ask, hang, 2) == [False, False]
    assert len(asked) == 1
    assert anyio.run(ask, fail, 1) == [False]
    assert anyio.run(ask, lambda: None, 1) == [True]


@pytest.fixture
def ending() -> SimpleNamespace:
    """A server that drains for 5 seconds, at ten turns a second."""
    lifecycle = Lifecycle(phase="serving")
    api = FastAPI()
    api.state.lifecycle = lifecycle
    server = HttpServer(api, lambda: None, GuardSettings(drain_s=5))
    return SimpleNamespace(lifecycle=lifecycle, server=server, tick=lambda: asyncio.run(server.on_tick(1)))


def test_after_sigterm_it_answers_on_until_load_balancers_have_noticed(ending: SimpleNamespace) -> None:
    assert ending.tick() is False
    ending.server.handle_exit(signal.SIGTERM, None)
    assert ending.lifecycle.phase == "draining"
    assert [ending.tick() for _ in range(50)] == [False] * 49 + [True]
    assert not ending.server.force_exit


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
)
def test_ctrl_c_and_a_second_signal_end_it_at_once(
    ending: SimpleNamespace, signals: tuple[signal.Signals, ...]
) -> None:
    for sig in signals:
        ending.server.handle_exit(sig, None)
    assert ending.tick() is True
    assert ending.lifecycle.phase == "draining"


def test_answers_end_their_connections_once_it_drains(ending: SimpleNamespace) -> None:
    close = (b"connection", b"close")
    ending.server.config.load()

    def headers(counter: int) -> list[tuple[bytes, bytes]]:
        asyncio.run(ending.server.on_tick(counter))
        return ending.server.server_state.default_headers

    assert close not in headers(0)
    ending.server.handle_exit(signal.SIGTERM, None)
    for counter in (1, 2, 10, 11):  # every tenth turn the server makes them anew
        assert headers(counter).count(close) == 1
    assert ending.server.config.timeout_keep_alive > 60, "load balancers let go first"
