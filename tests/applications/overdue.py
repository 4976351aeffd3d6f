"""Handlers that take too long in different ways, and say what became of them."""

import threading
import time
from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import events

from serve_zig import RequestTimeout

PLAIN = [("Content-Type", "text/plain")]


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Do what the path says; the query is a number of seconds, or a name for /hold_gil."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    events.record("begun", path=path)
    seconds = float(query or 0) if path != "/hold_gil" else 0.0
    if path == "/sleep":
        sleep_in_steps(seconds, path)
    elif path == "/hold_gil":
        events.hold_gil(query)
    elif path == "/gate":
        # In one system call after the other; the exception comes between two of them.
        events.wait_gate("overdue")
    elif path == "/swallow":
        swallow(seconds)
    elif path == "/gone":
        wait_until_gone(environ, seconds)
    elif path == "/stream":
        return stream(seconds, start_response)
    elif path == "/stuck_stream":
        return stuck_stream(seconds, start_response)
    elif path == "/hints":
        environ["wsgi.early_hints"]([("Link", "</style.css>")])
        sleep_in_steps(seconds, path)
    elif path == "/closing":
        return Closing(seconds, start_response)
    elif path == "/suspend":
        return suspended(environ, start_response, seconds)
    elif path == "/suspended":
        return suspended(environ, start_response, 0.0, round(seconds * 1000))
    elif path == "/answer_and_read":
        return answer_and_read(environ, start_response)
    elif path == "/read":
        environ["wsgi.input"].read()
    events.record("done", path=path)
    start_response("200 OK", PLAIN)
    return [f"done {path}".encode()]


def answer_and_read(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Begin the response while a thread reads the body, and end it with what that has read."""
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(environ["wsgi.input"].read()))
    reader.start()
    events.wait_gate("answering")
    start_response("200 OK", PLAIN)
    yield b"begun, "
    reader.join()
    yield from read


def sleep_in_steps(seconds: float, path: str) -> None:
    """Sleep, and record an exception that comes meanwhile."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            time.sleep(0.01)
    except RequestTimeout as error:
        events.record("raised", path=path, text=str(error))
        raise


def swallow(seconds: float) -> None:
    """Go on whatever comes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            time.sleep(0.01)
        except Exception as error:
            events.record("swallowed", kind=type(error).__name__)


def wait_until_gone(environ: WSGIEnvironment, seconds: float) -> None:
    """Work until nobody waits for the answer any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if environ["serve_zig.client_disconnected"]():
            events.record("nobody_waits")
            return
        time.sleep(0.01)


def stream(seconds: float, start_response: StartResponse) -> Iterator[bytes]:
    """Yield for so long, in short steps."""
    start_response("200 OK", PLAIN)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield b"piece\n"
        time.sleep(0.05)
    events.record("done", path="/stream")


def stuck_stream(seconds: float, start_response: StartResponse) -> Iterator[bytes]:
    """Yield once, then hang."""
    start_response("200 OK", PLAIN)
    yield b"piece\n"
    sleep_in_steps(seconds, "/stuck_stream")
    yield b"late\n"


def suspended(
    environ: WSGIEnvironment, start_response: StartResponse, seconds: float, milliseconds: int = 50
) -> Iterator[bytes]:
    """Work for so long, then give the thread away before anything is sent."""
    try:
        time.sleep(seconds)
        environ["x-wsgiorg.suspend"](milliseconds)
        yield b""
        start_response("200 OK", PLAIN)
        yield b"resumed"
    finally:
        events.record("ended")


class Closing:
    """An iterable that records its end."""

    def __init__(self, seconds: float, start_response: StartResponse) -> None:
        self.seconds = seconds
        start_response("200 OK", PLAIN)

    def __iter__(self) -> Iterator[bytes]:
        sleep_in_steps(self.seconds, "/closing")
        yield b"late"

    def close(self) -> None:
        """Record it."""
        events.record("closed")
