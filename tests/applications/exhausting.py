"""Takes descriptors and memory away from the process that serves it, as a test asks."""

import os
from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

held: list[int] = []


def take_descriptors() -> int:
    """Take every descriptor that the process may have."""
    while True:
        try:
            held.append(os.dup(0))
        except OSError:
            return len(held)


def give_descriptors(count: int) -> int:
    """Give so many of them back."""
    for descriptor in held[:count]:
        os.close(descriptor)
    del held[:count]
    return len(held)


def fail_allocations(first: str, count: str) -> None:
    """Have so many of Python's allocations fail, the first one so far from here; none if empty."""
    import _testcapi  # type: ignore[import-not-found]

    if first:
        _testcapi.set_nomemory(int(first), int(first) + int(count))
    else:
        _testcapi.remove_mem_hooks()


def stream(pieces: int) -> Iterator[bytes]:
    """Yield pieces that a client reads in a moment, or later."""
    for _ in range(pieces):
        yield b"x" * 20_000


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Do what the path says: /take, /give?N, /memory?N&M, /stream?N and so on."""
    path = environ["PATH_INFO"]
    number = environ["QUERY_STRING"]
    body = b"ok"
    if path == "/take":
        body = b"%d" % take_descriptors()
    elif path == "/give":
        body = b"%d" % give_descriptors(int(number))
    elif path == "/upload":
        body = b"%d" % len(environ["wsgi.input"].read())
    elif path == "/early":
        environ["wsgi.early_hints"]([("Link", "</style.css>")])
    elif path == "/memory":
        start_response("200 OK", [("Content-Length", "2")])
        first, _, count = number.partition("&")
        result = [body]
        fail_allocations(first, count)
        return result
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream(int(number))
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/write":
        write(b"written ")
    return [body]
