from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from feature_store import OnlineStore
from recsys.errors import ConfigError
from serving.app import create_app
from serving.runtime import RecommenderRuntime
from serving.seeding import Seeding
from serving.tracing import TraceSettings, otlp_provider

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    def __init__(self, app: FastAPI, client: TestClient, exporter: InMemorySpanExporter) -> None:
        self.app, self.client, self._exporter = app, client, exporter

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def request(self) -> ReadableSpan:
        (span,) = [span for span in self.spans() if span.kind is SpanKind.SERVER]
        return span


@pytest.fixture
def traced(runtime: RecommenderRuntime, store: OnlineStore) -> Iterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(runtime, store, seeding=Seeding(store, "v1", {"carla": ["i0"]}), tracer_provider=provider)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Traced(app, client, exporter)
    provider.shutdown()


def test_a_request_is_a_span_with_one_for_each_step_and_joins_the_senders_trace(traced: Traced) -> None:
    with capture_logs() as logs:
        response = traced.client.post(
            "/v1/recommend", json={"user_id": "carla"}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
        )
    request = traced.request
    assert (request.name, request.status.status_code) == ("POST /v1/recommend", StatusCode.UNSET)
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/recommend",
        "http.response.status_code": 200,
    }
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert response.headers["traceresponse"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert [entry["trace_id"] for entry in logs if entry["event"] == "request"] == [TRACE]

    steps = [span for span in traced.spans() if span.kind is SpanKind.INTERNAL]
    timings = response.json()["timings_ms"]
    assert {span.name for span in steps} == timings.keys() - {"total"}
    assert {"history", "decode"} <= timings.keys()
    for span in steps:
        assert span.parent.span_id == request.context.span_id
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(timings[span.name], abs=0.01)
        assert request.start_time <= span.start_time
        assert span.end_time <= request.end_time


def test_a_failure_is_an_error_and_no_span_names_a_user(traced: Traced) -> None:
    @traced.app.get("/crash")
    def crash() -> None:
        raise RuntimeError("boom")

    with capture_logs():
        traced.client.get("/crash")
    assert traced.request.status.status_code is StatusCode.ERROR
    traced.client.get("/v1/users/carla")
    assert "GET /v1/users/{user_id}" in [span.name for span in traced.spans()]
    assert "carla" not in "".join(span.to_json() for span in traced.spans())


def test_who_did_not_ask_for_traces_gets_none(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"history": []}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert "traceresponse" not in response.headers


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'recsys\[otel\]'"):
        otlp_provider(TraceSettings(enabled=True))


def test_the_exporter_is_made_from_settings() -> None:
    provider = otlp_provider(TraceSettings(enabled=True, sample_ratio=0, service_name="shop"))
    assert provider.resource.attributes["service.name"] == "shop"
    assert not provider.get_tracer("t").start_span("s").is_recording()
    provider.shutdown()
