"""Handlers of different lengths, for restarts under load: each answer can be checked."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

PLAIN = ("Content-Type", "text/plain")
PROCESS = ("X-Process", str(os.getpid()))


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer /hello, /sleep?milliseconds, /echo with a body, /stream?pieces."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/stream":
        start_response("200 OK", [PLAIN, PROCESS])
        return stream(int(query))
    body = b"hello"
    if path == "/sleep":
        time.sleep(int(query) / 1000)
        body = b"slept"
    elif path == "/echo":
        body = environ["wsgi.input"].read()
    start_response("200 OK", [PLAIN, PROCESS, ("Content-Length", str(len(body)))])
    return [body]


def stream(pieces: int) -> Iterator[bytes]:
    """Yield pieces of ten bytes with a pause after each."""
    for _ in range(pieces):
        yield b"123456789\n"
        time.sleep(0.01)
