"""Applications for OpenTelemetry: answers of every form, and spans of their own."""

import io
import time
from collections.abc import Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from opentelemetry import trace

tracer = trace.get_tracer("tests.traced")


class Sized:
    """An iterable of one piece that knows its length."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[bytes]:
        yield b"one piece"


class Closing:
    """An iterable with a close of its own, which makes a span too."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        self._pieces = pieces
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def close(self) -> None:
        with tracer.start_as_current_span("closing"):
            pass
        if self._error is not None:
            raise self._error


def stream(count: int, pause: float = 0.0) -> Iterator[bytes]:
    """Yield pieces, with a span for each."""
    for number in range(count):
        with tracer.start_as_current_span(f"piece {number}"):
            time.sleep(pause)
        yield b"piece\n"


def endless() -> Iterator[bytes]:
    """Yield until the client is gone, and make a span then."""
    try:
        while True:
            yield b"x" * 65536
    finally:
        with tracer.start_as_current_span("cleaning up"):
            pass


def failing() -> Iterator[bytes]:
    """Raise after the first piece."""
    yield b"piece\n"
    raise ValueError("broken off")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
    """Answer as the path says."""
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise LookupError("not found in here")
    status = environ["QUERY_STRING"].replace("+", " ") if path == "/status" else "200 OK"
    with tracer.start_as_current_span("handler") as span:
        span.set_attribute("context", format(span.get_span_context().trace_id, "032x"))
    write = start_response(status, [("Content-Type", "text/plain")])
    answers: dict[str, Any] = {
        "/list": lambda: [b"a", b"b"],
        "/tuple": lambda: (b"a",),
        "/sized": Sized,
        "/stream": lambda: stream(3),
        "/slow": lambda: stream(1, 0.3),
        "/endless": endless,
        "/closing": lambda: Closing([b"a"]),
        "/closing-fails": lambda: Closing([b"a"], ValueError("in close")),
        "/failing": failing,
        "/not-iterable": lambda: 3,
    }
    if path == "/file":
        return environ["wsgi.file_wrapper"](io.BytesIO(b"a file"))
    if path == "/write":
        write(b"written")
        return []
    if path == "/leak":
        # A span that is made current and never ended.
        trace.use_span(tracer.start_span("leaked")).__enter__()
    return answers.get(path, lambda: [b"hello"])()
