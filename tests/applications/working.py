"""Handlers that take their time, for tests of signals, queues and slow clients."""

import time
from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import events

PLAIN = [("Content-Type", "text/plain")]


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Do what the path says: /sleep?seconds, /gate?name, /stream?pieces, /body, anything else."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    events.record("begun", path=path, query=query)
    if path == "/stream":
        return stream(int(query), start_response)
    if path == "/sleep":
        time.sleep(float(query))
    elif path == "/gate":
        events.wait_gate(query)
    elif path == "/body":
        events.record("body", length=len(environ["wsgi.input"].read()))
    elif path == "/unread":
        events.record("unread")
    elif path == "/stubborn":
        # Not even SystemExit or KeyboardInterrupt gets this one out.
        deadline = time.monotonic() + float(query)
        while time.monotonic() < deadline:
            try:
                time.sleep(0.05)
            except BaseException as error:
                events.record("interrupted", kind=type(error).__name__)
    events.record("done", path=path, query=query)
    body = f"done {path}".encode("latin-1")
    start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
    return [body]


def stream(pieces: int, start_response: StartResponse) -> Iterator[bytes]:
    """Yield so many pieces, a tenth of a second apart."""
    start_response("200 OK", PLAIN)
    for number in range(pieces):
        yield b"piece %d\n" % number
        time.sleep(0.1)
    events.record("done", path="/stream")
