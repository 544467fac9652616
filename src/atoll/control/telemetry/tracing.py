"""Traces of requests and creates, where the operator has set a collector; else nothing, and nothing of it is imported.

The variables are OpenTelemetry's own: `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) turns it on, all others
(headers, timeout, sampler, service name) mean what the library says. A request's span goes on from its `traceparent`.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from atoll.model.errors import InvalidRequest

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_CLOSE_WITHIN_S = 3.0
_UNTRACED = frozenset({"/health", "/metrics"})

Facts = dict[str, str | int]
"""Attributes of a span, by OpenTelemetry's names."""


class Tracing(Protocol):
    """Never raises; costs a request what the library costs."""

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[Facts]:
        """A span around it. What is in the facts at the end of the block describes it; `trace_id` is there at once."""
        ...

    def created(self, tier: str, steps_ms: Mapping[str, float]) -> None:
        """Of a create that has just ended, in the task of its request or one that it began: a span for each step."""
        ...

    def close(self) -> None:
        """Sends what waits, for a few seconds at most."""
        ...


class NoTracing:
    """Without a collector."""

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[Facts]:
        """See Tracing."""
        yield {}

    def created(self, tier: str, steps_ms: Mapping[str, float]) -> None:
        """See Tracing."""

    def close(self) -> None:
        """See Tracing."""


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """Whether a collector is set. Raises InvalidRequest: it is, and the library is not there."""
    if not any(environ.get(name) for name in ENDPOINTS):
        return False
    if any(not _is_there(name) for name in _NEEDED):
        raise InvalidRequest(
            f"{ENDPOINTS[0]} is set, and OpenTelemetry's library is not installed", hint="pip install 'atoll[otel]'"
        )
    return True


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def tracing_of(environ: Mapping[str, str]) -> Tracing:
    """By the settings of this process's environment, which the library reads itself. Raises InvalidRequest."""
    return OpenTelemetry() if is_asked_for(environ) else NoTracing()


class OpenTelemetry:
    """To the collector, in batches, by a thread of the library's."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace: Any = trace
        self._context: Any = TraceContextTextMapPropagator()
        self._provider: Any = TracerProvider(resource=Resource.create({"service.name": "atoll"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Any = self._provider.get_tracer("atoll")

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[Facts]:
        """See Tracing."""
        if path in _UNTRACED:
            yield {}
            return
        parent = self._context.extract(headers)
        span = self._tracer.start_span(method, context=parent, kind=self._trace.SpanKind.SERVER)
        facts: Facts = {"trace_id": format(span.get_span_context().trace_id, "032x")}
        try:
            with self._trace.use_span(span):
                yield facts
        finally:
            del facts["trace_id"]
            span.update_name(f"{method} {facts.get('http.route', 'other')}")
            span.set_attributes(facts)
            if int(facts.get("http.response.status_code", 500)) >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            span.end()

    def created(self, tier: str, steps_ms: Mapping[str, float]) -> None:
        """See Tracing. The node's own steps (`node_…`) lie within the step `node`, one after the other."""
        outer = {name: value for name, value in steps_ms.items() if not name.startswith("node_")}
        begin = time.time_ns() - int(sum(outer.values()) * 1e6)
        whole = self._tracer.start_span("create", start_time=begin, attributes={"atoll.tier": tier})
        with self._trace.use_span(whole):
            self._one_after_the_other(begin, outer)
            self._one_after_the_other(
                begin, {name: value for name, value in steps_ms.items() if name.startswith("node_")}
            )
        whole.end(time.time_ns())

    def _one_after_the_other(self, begin: int, steps_ms: Mapping[str, float]) -> None:
        for name, value in steps_ms.items():
            end = begin + int(value * 1e6)
            self._tracer.start_span(f"create: {name}", start_time=begin).end(end)
            begin = end

    def close(self) -> None:
        """See Tracing."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_WITHIN_S)
