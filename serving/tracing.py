"""Traces, for those who want them: one span a request, one for each of its steps, in W3C trace context in and out.

OpenTelemetry is imported by those who turn it on alone: `pip install 'recsys[otel]'` brings it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pydantic import Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.config import StrictConfig
from recsys.extras import require_extra

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

_INSTRUMENT = "recsys.serving"
_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


class TraceSettings(StrictConfig):
    """Whether and how many requests are traced. Where traces go is said by OpenTelemetry's own environment variables,
    such as `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    enabled: bool = False
    """Off by default: traces leave the machine."""
    sample_ratio: float = Field(default=0.1, ge=0, le=1)
    """Of the requests whose sender has not decided itself; a sender's decision is followed."""
    service_name: str = "recsys"
    """What the service is called in the traces."""


def otlp_provider(settings: TraceSettings) -> TracerProvider:
    """A provider that sends spans by OTLP over HTTP, in the background.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    require_extra("otel", needed_by="traces.enabled")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": settings.service_name}),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def record_stages(timings_ms: Mapping[str, float]) -> None:
    """A span for each measured step of the current request; nothing where nobody traces.

    The steps follow one another, so their spans are laid end to end, from as long ago as the `total` says; what lies
    between two steps shows as a gap after the last one.

    Args:
        timings_ms: milliseconds of each step, in their order, and their `total`.
    """
    tracer = _tracer.get()
    if tracer is None:
        return
    at = time.time_ns() - round(timings_ms.get("total", sum(timings_ms.values())) * 1e6)
    for name, milliseconds in timings_ms.items():
        if name != "total":
            span = tracer.start_span(name, start_time=at)
            at += round(milliseconds * 1e6)
            span.end(end_time=at)


def trace_id() -> str | None:
    """The id of the current trace, for the log; None where nobody traces."""
    if _tracer.get() is None:
        return None
    from opentelemetry import trace

    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


class TracingMiddleware:
    """A server span a request, child of the sender's (`traceparent`); the answer names it (`traceresponse`).

    Spans carry the route's template and the status, never ids of users.
    """

    def __init__(self, app: ASGIApp, *, provider: TracerProvider) -> None:
        self.app = app
        self.tracer = provider.get_tracer(_INSTRUMENT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = TraceContextTextMapPropagator().extract(carrier)
        with self.tracer.start_as_current_span(scope["method"], context=parent, kind=SpanKind.SERVER) as span:
            facts = span.get_span_context()

            async def send_with_trace(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        span.set_status(StatusCode.ERROR)
                    MutableHeaders(scope=message)["traceresponse"] = (
                        f"00-{format_trace_id(facts.trace_id)}-{format_span_id(facts.span_id)}-{facts.trace_flags:02x}"
                    )
                await send(message)

            span.set_attribute("http.request.method", scope["method"])
            token = _tracer.set(self.tracer)
            try:
                await self.app(scope, receive, send_with_trace)
            finally:
                _tracer.reset(token)
                if route := getattr(scope.get("route"), "path_format", None):
                    span.set_attribute("http.route", route)
                    span.update_name(f"{scope['method']} {route}")
