"""Takes descriptors and memory away from the process that serves it, as a test asks."""

import contextvars
import gc
import io
import os
from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

held: list[int] = []
still_open = [0]

LARGE = bytes(8 << 20)
held_pipe = os.pipe()


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


class Closing:
    """An iterable that is counted until it is closed, which takes no memory."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """Take the pieces; nothing fails once this one is counted."""
        self.pieces = pieces
        self.close = close_one
        still_open[0] += 1

    def __iter__(self) -> Iterator[bytes]:
        """Return the pieces."""
        return self.pieces


def close_one() -> None:
    """Count one fewer."""
    still_open[0] -= 1


def parking() -> Iterator[bytes]:
    """Yield what no socket takes at once."""
    yield LARGE
    yield LARGE


def suspending(environ: WSGIEnvironment) -> Iterator[bytes]:
    """Wait twice, before the head is sent and after."""
    for piece in (b"one", b"two"):
        environ["x-wsgiorg.suspend"](1)
        yield b""
        yield piece


def hinting(environ: WSGIEnvironment) -> Iterator[bytes]:
    """Send early hints after a wait."""
    yield environ["x-wsgiorg.fdevent.writable"](held_pipe[1], 1)
    environ["wsgi.early_hints"]([("Link", "</style.css>")])
    yield b"hinted"


def special(environ: WSGIEnvironment) -> Iterable[bytes] | None:
    """Return the response to /parking, /suspending, /hinting, /file or /blocks."""
    path = environ["PATH_INFO"]
    if path == "/file":
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))  # type: ignore[no-any-return]
    if path == "/blocks":
        return environ["wsgi.file_wrapper"](io.BytesIO(b"blocks"), 2)  # type: ignore[no-any-return]
    if path == "/parking":
        return Closing(parking())
    if path == "/suspending":
        return Closing(suspending(environ))
    return Closing(hinting(environ)) if path == "/hinting" else None


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
    elif path == "/balance":
        contexts = sum(type(one) is contextvars.Context for one in gc.get_objects())
        body = b"%d %d" % (still_open[0], contexts)
    elif path == "/memory":
        start_response("200 OK", [("Content-Length", "2")])
        first, _, count = number.partition("&")
        result = [body]
        fail_allocations(first, count)
        return result
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream(int(number))
    if path in {"/parking", "/suspending", "/hinting", "/file", "/blocks"}:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return special(environ) or []
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/write":
        write(b"written ")
    return [body]
