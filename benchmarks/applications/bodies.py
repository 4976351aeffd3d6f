"""Uploads, downloads and event streams of any size, beside the 13-byte reply."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

BLOCK = 64 * 1024
EVENT = b"data: tick\n\n"

waiting: list[Callable[[], None]] = []
lock = threading.Lock()


def wake_all() -> None:
    """Wakes every stream once a second, in one go."""
    global waiting
    due = time.monotonic()
    while True:
        due += 1.0
        time.sleep(max(0.0, due - time.monotonic()))
        with lock:
            woken, waiting = waiting, []
        for resume in woken:
            resume()


threading.Thread(target=wake_all, daemon=True).start()


def upload(environ: WSGIEnvironment) -> bytes:
    received = 0
    while block := environ["wsgi.input"].read(BLOCK):
        received += len(block)
    return str(received).encode()


def download(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield number.to_bytes(8, "big") * (BLOCK // 8)


def events(environ: WSGIEnvironment) -> Iterator[bytes]:
    suspend = environ["x-wsgiorg.suspend"]
    while True:
        yield EVENT
        resume = suspend()
        with lock:
            waiting.append(resume)
        yield b""


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/upload":
        body = upload(environ)
    elif path == "/events":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events(environ)
    elif path.startswith("/download/"):
        size = int(path.rpartition("/")[2])
        start_response("200 OK", [("Content-Length", str(size))])
        return download(size // BLOCK)
    else:
        body = b"Hello, World!"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
