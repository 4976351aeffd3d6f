"""OpenTelemetry: a server span for each sampled request, exported by the SDK over OTLP/HTTP.

Nothing here is imported unless ``telemetry.otlp_endpoint`` is set. Then the application is called
through ``_Traced``, a WSGI middleware that the server does not know of. The spans are the SDK's,
and so are the queue, the background thread and their limits: a collector that is down costs spans,
never a request.

The attributes are those of OpenTelemetry's semantic conventions for HTTP server spans.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from serve_zig.addresses import MASK, mask_secrets
from serve_zig.application_traceback import describe_exception, type_name
from serve_zig.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextvars import Token
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from serve_zig.application import Application
    from serve_zig.config import Config
    from serve_zig.logging import Log

    StartResponse = Callable[..., Any]
    Attributes = dict[str, str | int | float]

# How long the spans of the last requests may take to be sent, when the server ends.
FLUSH_SECONDS = 3.0

# The exporter logs each failure; one line of each kind a minute says as much.
_REPEAT_SECONDS = 60.0

_TRACES_PATH = "/v1/traces"

# "http.request.method": what is not one of these could be anything, and there is no end to it.
_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
)

# "url.query": parameters that hold secrets, by the conventions.
_SECRET_PARAMETERS = frozenset({"AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature"})
_REDACTED = "REDACTED"

# The phases of a request before the application is called, in the order of the server's tuple of
# seconds in the environ.
_PHASES_BEFORE = ("head", "body", "queue", "gil")
_PHASES_KEY = "serve_zig.phases"

Environ = dict[str, "Any"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Telemetry:
    """The provider of spans, from the start to the end of the server."""

    def __init__(self, config: Config, log: Log) -> None:
        """Raises ConfigError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"{config.place('telemetry.otlp_endpoint')}: needs OpenTelemetry ({error}); "
                "install it: pip install 'serve-zig[otel]'"
            ) from None
        ratio = config.value("telemetry.sample_ratio")
        assert isinstance(ratio, float)
        self._log = log
        # Else the client may be whom a proxy names, and the environ does not tell the peer.
        self._is_direct = not config.strings("proxy.trusted")
        url = traces_url(config.text("telemetry.otlp_endpoint"))
        self._handler = _Handler(log, url)
        logging.getLogger("opentelemetry").addHandler(self._handler)
        self._provider = TracerProvider(
            resource=_resource(config),
            sampler=_sampler(ratio),
            # The SDK would wait for the collector when the interpreter ends, for as long as it
            # likes.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        service = self._provider.resource.attributes.get("service.name")
        log.info(f"telemetry: the spans of {service} go to {mask_secrets(url)}")

    def wrap(self, application: Application) -> Application:
        """Return the application so that each call is a span.

        Spans that the application makes through the API alone are exported as well, unless it has
        a provider of its own; then its spans go there, and have ours for a parent all the same.
        """
        from opentelemetry import trace

        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(self._provider)
        tracer = self._provider.get_tracer("serve_zig")
        return _Traced(application, tracer, self._log, is_direct=self._is_direct)

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send the spans that are left, within so many seconds, and end."""
        # The SDK's own limit does not reach into an export that is being tried again.
        closing = threading.Thread(
            target=self._provider.shutdown, name="serve-zig-telemetry", daemon=True
        )
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self._log.warning(f"telemetry: not every span could be sent within {seconds:g} s")
        logging.getLogger("opentelemetry").removeHandler(self._handler)


def traces_url(endpoint: str) -> str:
    """Return where spans go; an endpoint without the path of traces is the base of it."""
    parts = urlsplit(endpoint)
    if parts.path.endswith(_TRACES_PATH):
        return endpoint
    return parts._replace(path=parts.path.rstrip("/") + _TRACES_PATH).geturl()


def _resource(config: Config) -> Any:
    from opentelemetry.sdk.resources import Resource

    # Resource.create reads OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, and what is given here
    # counts more than those.
    given: dict[str, str] = {}
    name = config.text("telemetry.service_name")
    is_in_environment = bool(
        os.environ.get("OTEL_SERVICE_NAME")
        or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    )
    if name or not is_in_environment:
        given["service.name"] = name or config.text("app.target").partition(":")[0]
    return Resource.create(given)


def _sampler(ratio: float) -> Any:
    """Return the sampler; None, for the SDK to choose, where the environment names one."""
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    # A request that belongs to a trace is sampled if the trace is, whatever the ratio.
    return None if os.environ.get("OTEL_TRACES_SAMPLER") else ParentBased(TraceIdRatioBased(ratio))


class _Handler(logging.Handler):
    """Puts what the SDK logs into the server's log, each kind once in a while."""

    def __init__(self, log: Log, url: str) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        # An exception of the exporter may tell the URL, or a part of it.
        parts = urlsplit(url)
        secrets = (parts.netloc.rpartition("@")[0], parts.password, parts.query)
        self._secrets = [secret for secret in secrets if secret]
        self._seen: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record."""
        now = time.monotonic()
        last = self._seen.get(record.msg)
        if last is not None and now - last < _REPEAT_SECONDS:
            return
        self._seen[record.msg] = now
        text = " ".join(record.getMessage().split())
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        self._log.warning(f"telemetry: {text}")


class _Traced:
    """The application, with a span around each call and around the iteration that follows it.

    The server runs a request, its iteration and ``close`` inside one contextvars context of its
    own. So the span that is made current here is the current one wherever the response goes on.
    """

    def __init__(
        self, application: Application, tracer: Tracer, log: Log, *, is_direct: bool = True
    ) -> None:
        # Imported once: what follows is done for each request.
        from opentelemetry import context, propagate, trace

        self._application = application
        self._is_direct = is_direct
        self._tracer = tracer
        self.log = log
        self._extract = propagate.extract
        self._getter = _fields_getter()
        self.attach = context.attach
        self.detach = context.detach
        self.current_span = trace.get_current_span
        self._with_span = trace.set_span_in_context
        self._server_kind = trace.SpanKind.SERVER
        self.error = trace.StatusCode.ERROR

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            request = self._begin(environ, start_response)
        except Exception as error:
            self.log.error(f"telemetry: no span for a request: {describe_exception(error)}")
            return self._application(environ, start_response)  # type: ignore[no-any-return]
        if not request.span.is_recording():
            # Not sampled: nothing is measured. The application's spans are told by the context,
            # which is the request's own and ends with it.
            return self._application(environ, start_response)  # type: ignore[no-any-return]
        try:
            result = self._application(environ, request.start_response)
        except BaseException as error:
            request.fail(error)
            request.end()
            raise
        if type(result) in (list, tuple) or type(result) is environ.get("wsgi.file_wrapper"):
            # As it is: the server knows these, and sends them in one piece, or by the kernel.
            request.end()
            return result  # type: ignore[no-any-return]
        return _SizedBody(result, request) if hasattr(result, "__len__") else _Body(result, request)

    def _begin(self, environ: Environ, start_response: StartResponse) -> _Request:
        now_ns = time.time_ns()
        phases = _phases(environ)
        start_ns = now_ns - sum(nanoseconds for _, nanoseconds in phases)
        parent = self._extract(environ, getter=self._getter)
        span = self._tracer.start_span(
            _method(environ)[0],
            context=parent,
            kind=self._server_kind,
            attributes=_attributes(environ, is_direct=self._is_direct),
            start_time=start_ns,
        )
        if span.is_recording():
            moment_ns = start_ns
            for phase, nanoseconds in phases:
                span.add_event(phase, {"serve_zig.seconds": nanoseconds / 1e9}, moment_ns)
                moment_ns += nanoseconds
            span.add_event("app", timestamp=now_ns)
        token = self.attach(self._with_span(span, parent))
        return _Request(self, span, token, environ, start_response)


class _Request:
    """The span of one request, until it ends."""

    __slots__ = ("_environ", "_has_begun", "_route", "_start_response", "_token", "_traced", "span")

    def __init__(
        self,
        traced: _Traced,
        span: Span,
        token: Token[Context],
        environ: Environ,
        start_response: StartResponse,
    ) -> None:
        self.span = span
        self._traced = traced
        self._token: Token[Context] | None = token
        self._environ = environ
        self._start_response = start_response
        self._has_begun = False
        self._route = ""

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """Take note of the status that the application gives, once the server has accepted it."""
        write = self._start_response(status, headers, exc_info)
        code = status[:3]
        if code.isascii() and code.isdigit():
            self._set_status(int(code))
        # Now, because Flask takes its request out of the environ when it returns.
        self._route = _route(self._environ)
        return write

    def begin_writing(self) -> None:
        """The first piece of the response goes out."""
        if not self._has_begun:
            self._has_begun = True
            self.span.add_event("write")

    def fail(self, error: BaseException) -> None:
        """The application raised: it is answered 500, or cut off if it had begun."""
        kind = type(error)
        is_plain = kind.__module__ == "builtins"
        name = kind.__qualname__ if is_plain else f"{kind.__module__}.{kind.__qualname__}"
        if not self._has_begun:
            self._set_status(500)
        try:
            self.span.record_exception(error)
        except Exception as other:
            # The exception's own __str__ may fail; the span has its name all the same.
            self._traced.log.error(f"telemetry: an exception is not recorded: {type_name(other)}")
        self.span.set_attribute("error.type", name)
        self.span.set_status(self._traced.error, name)

    def end(self) -> None:
        """End the span, once, and make current what was so before."""
        token, self._token = self._token, None
        if token is None:
            return
        self.begin_writing()
        if self._route:
            self.span.set_attribute("http.route", self._route)
            self.span.update_name(f"{_method(self._environ)[0]} {self._route}")
        self.span.end()
        # A token belongs to the context in which it was made. A response that is given up may be
        # closed in another one; and an application may have left a span of its own behind.
        if self._traced.current_span() is self.span:
            self._traced.detach(token)

    def _set_status(self, code: int) -> None:
        self.span.set_attribute("http.response.status_code", code)
        if code >= 500:
            self.span.set_attribute("error.type", str(code))
            self.span.set_status(self._traced.error)


class _Body:
    """The application's iterable, whose end is the span's."""

    __slots__ = ("_iterable", "_iterator", "_request")

    def __init__(self, iterable: Iterable[bytes], request: _Request) -> None:
        self._iterable = iterable
        self._iterator: Iterator[bytes] | None = None
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            self._iterator = iter(self._iterable)
        except BaseException as error:
            self._request.fail(error)
            raise
        return self

    def __next__(self) -> bytes:
        assert self._iterator is not None
        try:
            piece = next(self._iterator)
        except StopIteration:
            raise
        except BaseException as error:
            self._request.fail(error)
            raise
        self._request.begin_writing()
        return piece

    def close(self) -> None:
        """Close the iterable, and end the span; the server calls it once, whatever happened."""
        try:
            close = getattr(self._iterable, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._request.fail(error)
            raise
        finally:
            self._request.end()


class _SizedBody(_Body):
    """The same for an iterable that has a length: of one piece the server knows the size."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]


def _phases(environ: Environ) -> list[tuple[str, int]]:
    """Return the phases before the application, with their nanoseconds.

    They are the server's word to this module, so the application does not get them.
    """
    spent = environ.pop(_PHASES_KEY, ())
    return [
        (phase, round(seconds * 1e9)) for phase, seconds in zip(_PHASES_BEFORE, spent, strict=False)
    ]


def _fields_getter() -> Any:
    """Return how propagators get at the request's fields, by their names in lower case."""
    from opentelemetry.propagators.textmap import Getter

    class Fields(Getter[Environ]):
        def get(self, carrier: Environ, key: str) -> list[str] | None:
            value = carrier.get(f"HTTP_{key.upper().replace('-', '_')}")
            return None if value is None else [value]

        def keys(self, carrier: Environ) -> list[str]:
            names = [name[5:] for name in carrier if name.startswith("HTTP_")]
            return [name.replace("_", "-").lower() for name in names]

    return Fields()


def _method(environ: Environ) -> tuple[str, str]:
    """Return the method for the name and for the attribute; what is not known is no name."""
    method = environ["REQUEST_METHOD"]
    return (method, method) if method in _METHODS else ("HTTP", "_OTHER")


def _attributes(environ: Environ, *, is_direct: bool) -> Attributes:
    """Return what is known when a request begins, which samplers may look at."""
    method = _method(environ)[1]
    scheme = environ["wsgi.url_scheme"]
    path, query = _target(environ)
    attributes: Attributes = {
        "http.request.method": method,
        "url.scheme": scheme,
        "url.path": path,
        "network.protocol.version": environ["SERVER_PROTOCOL"].partition("/")[2],
    }
    if method == "_OTHER":
        attributes["http.request.method_original"] = environ["REQUEST_METHOD"]
    if query:
        attributes["url.query"] = _redacted(query)
    host, _, port = _host(environ)
    attributes["server.address"] = host
    attributes["server.port"] = int(port[:5]) if port else _DEFAULT_PORTS.get(scheme, 80)
    for attribute, key in (
        ("client.address", "REMOTE_ADDR"),
        ("user_agent.original", "HTTP_USER_AGENT"),
        ("serve_zig.request_id", "serve_zig.request_id"),
    ):
        if environ.get(key):
            attributes[attribute] = _text(environ[key])
    client_port = environ.get("REMOTE_PORT", "")
    if client_port.isdigit():
        attributes["client.port"] = int(client_port)
    if is_direct and "client.address" in attributes:
        attributes["network.peer.address"] = attributes["client.address"]
        if "client.port" in attributes:
            attributes["network.peer.port"] = attributes["client.port"]
    return attributes


def _target(environ: Environ) -> tuple[str, str]:
    """Return path and query as the client sent them."""
    raw = environ.get("RAW_URI", "")
    if raw.startswith("/"):
        path, _, query = raw.partition("?")
        return _text(path), _text(query)
    # The absolute form, or an asterisk.
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return quote(path.encode("latin-1", "replace")) or "/", _text(environ.get("QUERY_STRING", ""))


def _redacted(query: str) -> str:
    if not any(name in query for name in _SECRET_PARAMETERS):
        return query
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode(
        [(name, _REDACTED if name in _SECRET_PARAMETERS else value) for name, value in pairs]
    )


def _host(environ: Environ) -> tuple[str, str, str]:
    """Return host, colon and port that the client asked for."""
    written = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
    host, colon, port = _text(written).rpartition(":")
    # Without a port: a name, or an IPv6 address in its brackets.
    if not colon or not (port.isascii() and port.isdigit()):
        host, colon, port = _text(written), "", ""
    return host.removeprefix("[").removesuffix("]"), colon, port


def _route(environ: Environ) -> str:
    """Return the route that a framework has left in the environ: Flask's, or Bottle's."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    rule = rule or environ.get("bottle.route")
    route = getattr(rule, "rule", "")
    return route if isinstance(route, str) else ""


def _text(value: str) -> str:
    """Return a native string of WSGI, bytes as Latin-1, as the UTF-8 that it most often is."""
    return value.encode("latin-1", "replace").decode("utf-8", "replace")
