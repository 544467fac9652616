"""Traces of a real server, at a collector of the test's own that speaks OTLP over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from e2b import Sandbox

from support.server import ServerProcess

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra atoll[otel] is not installed"
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ECHO = (
    "import http.server as h\n"
    "class Echo(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers()\n"
    "        self.wfile.write(self.headers.get('traceparent', 'none').encode())\n"
    "h.HTTPServer(('', 8000), Echo).serve_forever()\n"
)


class Collector:
    """Every span that it got, by name."""

    def __init__(self) -> None:
        self.spans: dict[str, object] = {}
        collected = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                request = trace_service.ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collected.spans.update({span.name: span for span in scope.spans})
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_a_request_goes_on_in_its_callers_trace(
    make_server: Callable[..., ServerProcess], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(
        options=["--isolation", "namespaces", "--end-sandboxes"],
        environ={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "ATOLL_LOG_FORMAT": "json"},
    )
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    sandbox = Sandbox.create(headers={"traceparent": TRACEPARENT})
    sandbox.commands.run(f'exec python3 -c "{ECHO}"', background=True)
    sandbox.commands.run("timeout 20 sh -c 'until curl -sf localhost:8000; do sleep 0.1; done'")
    through = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000", "traceparent": TRACEPARENT}
    assert httpx.get(server.url, headers=through).text == TRACEPARENT, "the edge hands it on to what runs inside"
    assert httpx.get(f"{server.url}/nonsense", headers={"X-API-Key": server.api_key}).status_code == 404
    assert httpx.get(f"{server.url}/health").status_code < 300
    assert server.stop() == 0, server.log_tail()

    spans = collector.spans
    request, create, node = (spans[name] for name in ("POST /v2/sandboxes", "create", "create: node"))
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    facts = {one.key: one.value.string_value or one.value.int_value for one in request.attributes}
    assert facts["http.response.status_code"] == 201
    assert facts["atoll.sandbox_id"] == sandbox.sandbox_id
    assert create.parent_span_id == request.span_id
    assert node.parent_span_id == create.span_id
    assert request.start_time_unix_nano <= node.end_time_unix_nano <= request.end_time_unix_nano
    assert {"create: running", "create: node_started"} <= spans.keys()
    assert "GET other" in spans, "a path that a stranger chose is no name"
    assert not any("health" in name for name in spans)
    created = next(line for line in server.log.read_text().splitlines() if '"sandbox.created"' in line)
    assert TRACE in created, "the log's line names the trace"


def test_a_collector_that_is_not_there_holds_up_nobody(
    make_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(
        options=["--isolation", "namespaces", "--end-sandboxes"],
        environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "100"},
    )
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    assert Sandbox.create().commands.run("echo on").stdout == "on\n"
    assert server.stop() == 0, server.log_tail()
