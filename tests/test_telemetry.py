"""[telemetry]: spans of real requests, received over OTLP/HTTP by a collector of the test's own."""

import contextvars
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span

from admin_client import serve_with_admin
from serve_zig.addresses import AddressError, parse_url
from serve_zig.logging import Log
from serve_zig.telemetry import _Traced
from serving import REPOSITORY, Server, Servers, free_port, wait_until
from wire import PATIENCE, get

SERVER = 2
ERROR = 2

# Fields that differ from one response to the next.
OWN = ("Date", "X-Request-Id")

# Batches leave after 50 ms instead of 5 s.
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


class Span:
    """A span as it came over the wire."""

    def __init__(self, message: Any, resource: Mapping[str, object], scope: str) -> None:
        self.message = message
        self.name: str = message.name
        self.kind: int = message.kind
        self.trace: str = message.trace_id.hex()
        self.id: str = message.span_id.hex()
        self.parent: str = message.parent_span_id.hex()
        self.attributes = values(message.attributes)
        self.events = [event.name for event in message.events]
        self.status: int = message.status.code
        self.seconds = (message.end_time_unix_nano - message.start_time_unix_nano) / 1e9
        self.resource = resource
        self.scope = scope


def values(pairs: Any) -> dict[str, object]:
    """Return OTLP's attributes as a dict."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class Collector:
    """An OTLP/HTTP receiver that keeps the spans."""

    def __init__(self, answers: threading.Event | None = None, status: int = 200) -> None:
        self.received: list[Span] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if answers is not None:
                    answers.wait()
                collector.take(self.path, dict(self.headers), body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the test says what matters."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What telemetry.otlp_endpoint says."""
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, fields: dict[str, str], body: bytes) -> None:
        """Decode what came."""
        self.requests.append((path, fields))
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = values(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                self.received += [
                    Span(span, resource, scope_spans.scope.name) for span in scope_spans.spans
                ]

    def wait(self, count: int) -> list[Span]:
        """Wait until so many spans have come, and return them."""
        return wait_until(
            lambda: self.received if len(self.received) >= count else None,
            PATIENCE,
            lambda: f"not {count} spans: {[span.name for span in self.received]}",
        )

    def server_span(self, count: int = 1) -> Span:
        """Wait until so many server spans have come, and return the last."""

        def found() -> list[Span] | None:
            spans = [span for span in self.received if span.kind == SERVER]
            return spans if len(spans) >= count else None

        return wait_until(
            found, PATIENCE, lambda: f"no {count}: {[span.name for span in self.received]}"
        )[-1]

    def named(self, name: str) -> Span:
        """Wait for a span by its name and return it."""
        return wait_until(
            lambda: next((span for span in self.received if span.name == name), None),
            PATIENCE,
            lambda: f"no {name}: {[span.name for span in self.received]}",
        )

    def close(self) -> None:
        """Stop receiving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Return a collector."""
    one = Collector()
    yield one
    one.close()


class Tracing:
    """Starts servers whose spans go to a collector."""

    def __init__(self, serve: Servers, collector: Collector) -> None:
        self._serve = serve
        self._collector = collector

    def __call__(
        self,
        app: str = "traced:app",
        environment: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        **telemetry: object,
    ) -> Server:
        """Start a server."""
        settings = {"otlp_endpoint": self._collector.url, "service_name": "shop", **telemetry}
        return self._serve(
            app,
            {"telemetry": settings, "timeouts": {"drain": 20.0}},
            files,
            environment={**QUICK, **(environment or {})},
        )


# The collectors come first: they must outlast the servers, which send their last spans at the end.


@pytest.fixture
def trace(collector: Collector, serve: Servers) -> Tracing:
    """Return a function that starts a server."""
    return Tracing(serve, collector)


@pytest.fixture(scope="module")
def common_collector() -> Iterator[Collector]:
    """Return the collector of the server that most tests share."""
    one = Collector()
    yield one
    one.close()


@pytest.fixture(scope="module")
def common_server(common_collector: Collector, serve_module: Servers) -> Server:
    """Return the server that most tests share."""
    return Tracing(serve_module, common_collector)()


@pytest.fixture
def shared(common_server: Server, common_collector: Collector) -> tuple[Server, Collector]:
    """Return both, as if they were new.

    The span of a request comes after those of its children, so a test that has seen the last of
    its server spans leaves nothing behind.
    """
    common_server.wait_ready()
    common_collector.received.clear()
    return common_server, common_collector


# What a span says.


def test_attributes_follow_the_conventions(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    response = server.exchange(
        get("/list/%C3%A4?q=1&sig=secret", "Host: shop.example:8443", "User-Agent: test/1")
    )
    assert response.status == 200
    span = collector.server_span()
    assert span.name == "GET"
    assert span.scope == "serve_zig"
    expected = {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/list/%C3%A4",
        "url.query": "q=1&sig=REDACTED",
        "server.address": "shop.example",
        "server.port": 8443,
        "client.address": "127.0.0.1",
        "user_agent.original": "test/1",
        "network.protocol.version": "1.1",
    }
    assert {key: span.attributes.get(key) for key in expected} == expected
    assert "error.type" not in span.attributes
    assert isinstance(span.attributes["client.port"], int)
    assert span.attributes["network.peer.address"] == "127.0.0.1"
    assert span.attributes["network.peer.port"] == span.attributes["client.port"]
    assert span.attributes["serve_zig.request_id"]
    assert span.resource["service.name"] == "shop"
    assert span.resource["telemetry.sdk.language"] == "python"
    assert collector.requests[0][0] == "/v1/traces"


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("shop.example", "shop.example", 80),
        ("[::1]:8080", "::1", 8080),
        ("[::1]", "::1", 80),
    ],
)
def test_host(host: str, address: str, port: int, shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    assert server.exchange(get("/", f"Host: {host}")).status == 200
    span = collector.server_span()
    assert (span.attributes["server.address"], span.attributes["server.port"]) == (address, port)


def test_client_behind_a_proxy_is_no_peer(serve: Servers, collector: Collector) -> None:
    server = serve(
        "traced:app",
        {
            "telemetry": {"otlp_endpoint": collector.url},
            "proxy": {"trusted": ["127.0.0.1"]},
        },
        environment=QUICK,
    )
    assert server.exchange(get("/list", "X-Forwarded-For: 192.0.2.1")).status == 200
    span = collector.server_span()
    assert span.attributes["client.address"] == "192.0.2.1"
    assert "network.peer.address" not in span.attributes


def test_method_that_is_not_known_is_no_name(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    assert server.exchange(get("/", method="FROBNICATE")).status == 200
    span = collector.server_span()
    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "FROBNICATE"


@pytest.mark.parametrize(
    ("status", "is_error"), [("204 No Content", False), ("404 Gone", False), ("503 Busy", True)]
)
def test_status(status: str, is_error: bool, shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    code = int(status[:3])
    assert server.exchange(get(f"/status?{status.replace(' ', '+')}")).status == code
    span = collector.server_span()
    assert span.attributes["http.response.status_code"] == code
    assert span.attributes.get("error.type") == (str(code) if is_error else None)
    assert (span.status == ERROR) == is_error


def test_exception_of_the_application(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    assert server.exchange(get("/raise")).status == 500
    server.wait_log(r"LookupError: not found in here")
    span = collector.server_span()
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == "LookupError"
    assert span.status == ERROR
    assert "exception" in span.events


def test_phases_are_events_in_order(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    assert server.exchange(get("/slow")).body == b"piece\n"
    span = collector.server_span()
    assert span.events == ["head", "body", "queue", "gil", "app", "write"]
    times = [event.time_unix_nano for event in span.message.events]
    assert times == sorted(times)
    assert span.message.start_time_unix_nano == times[0]
    assert span.seconds >= 0.3
    for event in span.message.events[:4]:
        assert float(str(values(event.attributes)["serve_zig.seconds"])) >= 0


def test_span_begins_with_the_first_byte(shared: tuple[Server, Collector]) -> None:
    """The time in which the head and the body came is the request's, too."""
    server, collector = shared
    with server.connect() as connection:
        for part in (b"POST /list HTTP/1.1\r\nHost: a\r\n", b"Content-Length: 2\r\n\r\na", b"b"):
            connection.send(part)
            # Long enough to be told from the rest.
            time.sleep(0.15)
        assert connection.response().status == 200
    span = collector.server_span()
    seconds = {
        event.name: float(str(values(event.attributes)["serve_zig.seconds"]))
        for event in span.message.events[:4]
    }
    assert seconds["head"] >= 0.1
    assert seconds["body"] >= 0.1
    assert span.seconds >= seconds["head"] + seconds["body"]


# Parents and children.

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_parent_is_read_and_children_follow(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    assert server.exchange(get("/list", f"traceparent: {PARENT}")).status == 200
    spans = collector.wait(2)
    own = collector.server_span()
    assert own.trace == "0af7651916cd43dd8448eb211c80319c"
    assert own.parent == "b7ad6b7169203331"
    handler = next(span for span in spans if span.name == "handler")
    assert (handler.trace, handler.parent) == (own.trace, own.id)
    assert handler.attributes["context"] == own.trace


@pytest.mark.parametrize(
    ("path", "children"),
    [
        ("/stream", ["handler", "piece 0", "piece 1", "piece 2"]),
        ("/closing", ["handler", "closing"]),
        ("/list", ["handler"]),
    ],
)
def test_spans_of_an_iteration_are_children_too(
    path: str, children: list[str], shared: tuple[Server, Collector]
) -> None:
    server, collector = shared
    assert server.exchange(get(path)).status == 200
    own = collector.server_span()
    found = [collector.named(name) for name in children]
    assert {span.parent for span in found} == {own.id}
    assert {span.trace for span in found} == {own.trace}


def test_each_request_has_a_trace_of_its_own(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    with server.connect() as connection:
        for path in ("/stream", "/leak", "/raise"):
            connection.send(get(path))
            assert connection.response().status == (500 if path == "/raise" else 200)
    with server.connect() as connection:
        for path in ("/list", "/stream", "/list"):
            connection.send(get(path))
            assert connection.response().status == 200
    server.wait_log("LookupError")
    collector.server_span(6)
    own = [span for span in collector.received if span.kind == SERVER]
    assert len({span.trace for span in own}) == 6
    assert all(span.parent == "" for span in own)


def test_concurrent_requests_do_not_mix(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    threads = [
        threading.Thread(target=lambda: server.exchange(get("/slow"), timeout=20)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    collector.server_span(8)
    spans = collector.wait(24)
    by_id = {span.id: span for span in spans}
    children = [span for span in spans if span.kind != SERVER]
    assert len(children) == 16
    assert all(by_id[span.parent].trace == span.trace for span in children)
    assert len({span.trace for span in spans}) == 8


# Forms of answers.


@pytest.fixture(scope="module")
def plain(serve_module: Servers) -> Server:
    """Return a server of the same application without telemetry."""
    return serve_module("traced:app")


@pytest.mark.parametrize(
    ("path", "length", "body"),
    [
        ("/list", "2", b"ab"),
        ("/tuple", "1", b"a"),
        ("/sized", "9", b"one piece"),
        ("/file", None, b"a file"),
        ("/stream", None, b"piece\n" * 3),
        ("/write", None, b"written"),
        ("/closing", None, b"a"),
    ],
)
def test_answers_are_what_they_are_without_telemetry(
    path: str,
    length: str | None,
    body: bytes,
    shared: tuple[Server, Collector],
    plain: Server,
) -> None:
    traced, collector = shared
    for method in ("GET", "HEAD"):
        request = get(path, method=method)
        with_span = traced.exchange(request, method=method)
        without = plain.exchange(request, method=method)
        ours = [field for field in with_span.fields if field[0] not in OWN]
        assert ours == [field for field in without.fields if field[0] not in OWN]
        assert with_span.body == without.body == (body if method == "GET" else b"")
        if method == "GET" and length is not None:
            assert with_span.value("Content-Length") == length
    span = collector.server_span(2)
    assert span.attributes["http.response.status_code"] == 200
    assert "write" in span.events


@pytest.mark.parametrize("path", ["/failing", "/closing-fails", "/not-iterable"])
def test_answers_that_go_wrong_end_their_span(path: str, shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    server.raw(get(path, "Connection: close"))
    server.wait_log("Error")
    span = collector.server_span()
    assert span.status == ERROR
    assert "exception" in span.events
    expected = "TypeError" if path == "/not-iterable" else "ValueError"
    assert span.attributes["error.type"] == expected
    # What had been answered stays what it was.
    assert span.attributes["http.response.status_code"] == (500 if expected == "TypeError" else 200)
    assert server.exchange(get("/list")).status == 200


def test_client_that_leaves_ends_the_span(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get("/endless"))
        connection.take(100)
    span = collector.server_span()
    cleaning = collector.named("cleaning up")
    assert cleaning.parent == span.id
    assert span.attributes["http.response.status_code"] == 200


FLASK = """
from flask import Flask
app = Flask(__name__)

@app.get("/things/<int:number>")
def thing(number):
    return str(number)
"""
BOTTLE = """
import bottle
app = bottle.Bottle()

@app.get("/things/<number:int>")
def thing(number):
    return str(number)
"""


@pytest.mark.parametrize(
    ("source", "route"), [(FLASK, "/things/<int:number>"), (BOTTLE, "/things/<number:int>")]
)
def test_route_of_a_framework_is_in_the_name(
    source: str, route: str, trace: Tracing, collector: Collector
) -> None:
    server = trace("web:app", files={"web.py": source})
    assert server.exchange(get("/things/7")).body == b"7"
    span = collector.server_span()
    assert span.name == f"GET {route}"
    assert span.attributes["http.route"] == route


# Sampling and the environment.


def test_ratio_is_that_of_new_traces(trace: Tracing, collector: Collector) -> None:
    server = trace(sample_ratio=0.0)
    for path in ("/list", "/stream", "/closing", "/raise"):
        server.raw(get(path, "Connection: close"))
    server.wait_log("LookupError")
    # One that belongs to a sampled trace is sampled all the same, and says that the others came.
    assert server.exchange(get("/list", f"traceparent: {PARENT}")).status == 200
    assert collector.server_span().parent == "b7ad6b7169203331"
    assert {span.trace for span in collector.received} == {"0af7651916cd43dd8448eb211c80319c"}


def test_trace_that_is_not_sampled_stays_so(shared: tuple[Server, Collector]) -> None:
    server, collector = shared
    not_sampled = f"{PARENT[:-2]}00"
    assert server.exchange(get("/stream", f"traceparent: {not_sampled}")).status == 200
    assert server.exchange(get("/list")).status == 200
    collector.server_span()
    assert "0af7651916cd43dd8448eb211c80319c" not in {span.trace for span in collector.received}


def test_environment_variables_are_honoured(trace: Tracing, collector: Collector) -> None:
    environment = {
        "OTEL_SERVICE_NAME": "from-the-environment",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.version=3",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=seven",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "200",
    }
    server = trace(environment=environment, service_name="", sample_ratio=0.0)
    assert server.exchange(get("/list")).status == 200
    span = collector.server_span()
    assert span.resource["service.name"] == "from-the-environment"
    assert span.resource["deployment.environment.name"] == "test"
    assert span.resource["service.version"] == "3"
    fields = {name.lower(): value for name, value in collector.requests[0][1].items()}
    assert fields["x-tenant"] == "seven"


def test_name_of_the_service_is_the_module_where_nothing_says_more(
    trace: Tracing, collector: Collector
) -> None:
    server = trace(service_name="")
    assert server.exchange(get("/list")).status == 200
    assert collector.server_span().resource["service.name"] == "traced"
    server.wait_log(rf"telemetry: the spans of traced go to {collector.url}/v1/traces")


def test_sdk_that_is_disabled_costs_nothing_but_the_wrapping(
    trace: Tracing, collector: Collector
) -> None:
    server = trace(environment={"OTEL_SDK_DISABLED": "true"})
    assert server.exchange(get("/stream")).body == b"piece\n" * 3
    assert server.stop() == 0
    assert collector.received == []


OWN_PROVIDER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("own")

def app(environ, start_response):
    with tracer.start_as_current_span("own"):
        pass
    (span,) = exporter.get_finished_spans()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [format(span.parent.span_id, "016x").encode()]
"""


def test_application_may_have_a_provider_of_its_own(trace: Tracing, collector: Collector) -> None:
    server = trace("own:app", files={"own.py": OWN_PROVIDER})
    parent = server.exchange(get("/")).body.decode()
    assert collector.server_span().id == parent
    assert [span.name for span in collector.received] == ["GET"]


OWN_PROVIDER_LATE = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
tracer = trace.get_tracer("own")

def startup():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

def app(environ, start_response):
    with tracer.start_as_current_span("own"):
        pass
    (span,) = exporter.get_finished_spans()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [format(span.parent.span_id, "016x").encode()]
"""


def test_application_may_set_its_provider_in_startup(serve: Servers, collector: Collector) -> None:
    server = serve(
        "own:app",
        {"app": {"startup": "own:startup"}, "telemetry": {"otlp_endpoint": collector.url}},
        {"own.py": OWN_PROVIDER_LATE},
        environment=QUICK,
    )
    parent = server.exchange(get("/")).body.decode()
    assert collector.server_span().id == parent
    assert [span.name for span in collector.received] == ["GET"]
    assert "not allowed" not in server.log()


# The end, and collectors that fail.


def test_spans_are_sent_before_the_server_ends(trace: Tracing, collector: Collector) -> None:
    server = trace(environment={"OTEL_BSP_SCHEDULE_DELAY": "60000"})
    for _ in range(5):
        assert server.exchange(get("/list")).status == 200
    assert collector.received == []
    assert server.stop() == 0
    assert len([span for span in collector.received if span.kind == SERVER]) == 5


def test_collector_that_is_slow_holds_the_end_up_for_a_bounded_time(serve: Servers) -> None:
    is_over = threading.Event()
    slow = Collector(answers=is_over)
    try:
        server = Tracing(serve, slow)(environment={"OTEL_BSP_SCHEDULE_DELAY": "60000"})
        assert server.exchange(get("/list")).status == 200
        assert server.stop() == 0
        assert "telemetry: not every span could be sent within 3 s" in server.log()
    finally:
        is_over.set()
        slow.close()


def test_collector_that_is_down_never_breaks_the_application(serve: Servers) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    server = serve(
        "traced:app",
        {"telemetry": {"otlp_endpoint": endpoint}},
        environment={
            **QUICK,
            "OTEL_BSP_MAX_QUEUE_SIZE": "16",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
        },
    )
    for _ in range(100):
        assert server.exchange(get("/stream")).body == b"piece\n" * 3
    server.wait_log(r"warning telemetry: ")
    # Told once in a while, and not for every batch.
    lines = [line for line in server.log().splitlines() if " telemetry: " in line]
    assert len(lines) < 10, lines
    assert server.stop() == 0


def test_collector_that_refuses_never_breaks_the_application(serve: Servers) -> None:
    refusing = Collector(status=400)
    try:
        server = Tracing(serve, refusing)()
        assert server.exchange(get("/list")).status == 200
        server.wait_log(r"telemetry: .*400")
        assert server.exchange(get("/list")).status == 200
        assert server.stop() == 0
    finally:
        refusing.close()


# The middleware by itself: what is current, and when a span ends.


class Direct:
    """The middleware around an application, called without a server."""

    def __init__(self, application: Any) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.traced = _Traced(application, provider.get_tracer("t"), Log("error"))

    def call(self, **environ: str) -> Any:
        """Call it and return what it returns."""
        given: dict[str, Any] = {}
        setup_testing_defaults(given)
        given["SERVER_PROTOCOL"] = "HTTP/1.1"
        return self.traced({**given, **environ}, lambda *_: None)

    def ended(self) -> int:
        """Return how many spans have ended."""
        return len(self.exporter.get_finished_spans())


def is_current() -> bool:
    """Return whether a span is current."""
    return get_current_span().get_span_context().is_valid


def generator(environ: Any, start_response: Any) -> Iterator[bytes]:
    """Answer in two pieces, inside the span."""
    start_response("200 OK", [])
    assert is_current()
    yield b"a"
    assert is_current()
    yield b"b"


def test_list_ends_the_span_at_once() -> None:
    direct = Direct(lambda environ, start_response: [str(is_current()).encode()])
    assert direct.call() == [b"True"]
    assert direct.ended() == 1
    assert not is_current()


def test_iteration_ends_the_span_when_it_is_closed() -> None:
    direct = Direct(generator)
    result = direct.call()
    assert list(result) == [b"a", b"b"]
    assert direct.ended() == 0
    result.close()
    result.close()
    assert direct.ended() == 1
    assert not is_current()


@pytest.mark.parametrize("pieces", [0, 1])
def test_iteration_that_is_closed_early_ends_the_span(pieces: int) -> None:
    direct = Direct(generator)
    result = direct.call()
    iterator = iter(result)
    for _ in range(pieces):
        next(iterator)
    result.close()
    assert direct.ended() == 1
    assert not is_current()


def test_response_that_is_never_iterated_ends_the_span_when_it_is_closed() -> None:
    direct = Direct(generator)
    direct.call().close()
    assert direct.ended() == 1
    assert not is_current()


def test_span_is_current_in_its_own_context_alone() -> None:
    direct = Direct(generator)
    first, second = contextvars.copy_context(), contextvars.copy_context()
    one, two = first.run(direct.call), second.run(direct.call)
    iterators = first.run(iter, one), second.run(iter, two)
    assert first.run(next, iterators[0]) == second.run(next, iterators[1]) == b"a"
    assert first.run(get_current_span) is not second.run(get_current_span)
    assert not is_current()
    first.run(one.close)
    assert not first.run(is_current)
    assert second.run(is_current)
    second.run(two.close)
    assert direct.ended() == 2


def test_close_in_another_context_ends_the_span_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    direct = Direct(generator)
    result = contextvars.copy_context().run(direct.call)
    result.close()
    assert direct.ended() == 1
    assert caplog.records == []


class SpeechlessError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise KeyError


@pytest.mark.parametrize("error", [KeyboardInterrupt, SpeechlessError])
def test_exception_of_any_kind_ends_the_span(error: type[BaseException]) -> None:
    def application(environ: Any, start_response: Any) -> Any:
        raise error

    direct = Direct(application)
    with pytest.raises(error):
        direct.call()
    assert direct.ended() == 1
    assert not is_current()


@pytest.mark.parametrize("host", ["a:" + "9" * 50, "a:\u00b2", "[::1", "", ":", "\xff\xfe:80"])
def test_odd_host_makes_no_odd_span(host: str) -> None:
    direct = Direct(lambda environ, start_response: [b"answered"])
    assert direct.call(HTTP_HOST=host) == [b"answered"]
    (span,) = direct.exporter.get_finished_spans()
    assert span.attributes is not None
    port = span.attributes["server.port"]
    assert isinstance(port, int)
    assert 0 <= port <= 99_999


def test_failure_to_make_a_span_is_not_the_applications(capfd: pytest.CaptureFixture[str]) -> None:
    direct = Direct(lambda environ, start_response: [b"answered"])
    assert direct.traced({}, lambda *_: None) == [b"answered"]
    assert direct.ended() == 0
    assert "error telemetry: no span for a request: KeyError" in capfd.readouterr().err


# Off, and not installed.


def test_nothing_is_imported_where_it_is_off(serve: Servers) -> None:
    source = """
import sys
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    found = [name for name in sys.modules if "opentelemetry" in name or "telemetry" in name]
    return [repr(found).encode()]
"""
    server = serve("plain:app", files={"plain.py": source})
    assert requests.get(server.url, timeout=PATIENCE).text == "[]"


def test_without_opentelemetry_it_says_what_to_install(tmp_path: Path) -> None:
    hidden = tmp_path / "opentelemetry"
    hidden.mkdir()
    (hidden / "__init__.py").write_text("raise ImportError('not here')\n", "utf-8")
    (tmp_path / "hello.py").write_text("def app(environ, start_response): ...\n", "utf-8")
    (tmp_path / "serve.toml").write_text(
        '[app]\ntarget = "hello:app"\n[listen]\nbind = "127.0.0.1:0"\n[telemetry]\n'
        'otlp_endpoint = "http://127.0.0.1:4318"\n',
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "serve_zig"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "serve-zig: error: serve.toml:6: telemetry.otlp_endpoint: needs OpenTelemetry (not here); "
        "install it: pip install 'serve-zig[otel]'\n"
    )


def test_secrets_of_the_endpoint_are_shown_to_nobody(serve: Servers, collector: Collector) -> None:
    """They reach the collector, and neither /status nor the log."""
    endpoint = f"http://user:letmein@127.0.0.1:{collector.port}/in?token=letmein&b=letmein"
    server, admin = serve_with_admin(
        serve,
        "traced:app",
        {"telemetry": {"otlp_endpoint": endpoint}},
        environment={**QUICK, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=letmein"},
    )
    shown = f"http://***@127.0.0.1:{collector.port}/in?token=***&b=***"
    assert admin.json()["config"]["telemetry"]["otlp_endpoint"] == shown
    for path in ("/", "/status", "/metrics", "/threads"):
        assert "letmein" not in admin.text(path), path
    assert server.exchange(get("/list")).status == 200
    collector.server_span()
    assert collector.requests[0][0] == "/in/v1/traces?token=letmein&b=letmein"
    collector.close()
    assert server.exchange(get("/list")).status == 200
    server.wait_log("telemetry: .*")
    server.stop()
    assert f"http://***@127.0.0.1:{collector.port}/in/v1/traces?token=***&b=***" in server.log()
    assert re.search("warning telemetry: ", server.log())
    assert "letmein" not in server.log()


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("ftp://user:letmein@host", "ftp://***@host"),
        ("http://user:let/mein@host:4318", "http://***@host:4318"),
        ("http://user:letmein@", "http://***@"),
    ],
)
def test_secrets_of_what_is_no_url_are_not_shown(endpoint: str, shown: str) -> None:
    with pytest.raises(AddressError, match=re.escape(f'found "{shown}"')):
        parse_url(endpoint)


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://a", "http://", "http://a:99999"])
def test_endpoint_that_is_no_url_is_refused(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(
        f'[app]\ntarget = "hello:app"\n[telemetry]\notlp_endpoint = "{endpoint}"\n', "utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "serve_zig", "--check"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f'serve.toml:4: telemetry.otlp_endpoint: found "{endpoint}"; write a URL' in done.stderr


def test_requests_over_a_unix_socket_have_no_client_address(
    collector: Collector, serve: Servers, tmp_path: Path
) -> None:
    bind = f"unix:{tmp_path}/app.sock"
    server = serve(
        "traced:app",
        {"listen": {"bind": bind}, "telemetry": {"otlp_endpoint": collector.url}},
        environment=QUICK,
    )
    with server.connect(bind) as connection:
        assert connection.socket.family == socket.AF_UNIX
        connection.send(get("/list", "Host: shop.example"))
        assert connection.response().status == 200
    span = collector.server_span()
    assert "client.address" not in span.attributes
    assert span.attributes["server.address"] == "shop.example"
