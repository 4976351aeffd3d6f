"""Handlers whose client does not go on with the body that it was asked for."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import events

PLAIN = [("Content-Type", "text/plain")]


class UploadError(Exception):
    """What a library makes of a failed read."""


def escapes(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Let the exception of the read through."""
    start_response("200 OK", [("X-Size", str(len(environ["wsgi.input"].read())))])
    return [b"read"]


def wraps(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Say what it was in other words."""
    try:
        return escapes(environ, start_response)
    except OSError as error:
        raise UploadError("no upload") from error


def wraps_twice(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The same without `from`, and once more."""
    try:
        return wraps(environ, start_response)
    except UploadError:
        raise UploadError("nothing at all")  # noqa: B904


def answers(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Make a page of it, as frameworks do."""
    try:
        return escapes(environ, start_response)
    except OSError:
        start_response("500 Internal Server Error", PLAIN)
        return [b"the framework's page"]


def swallows(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Take what came for all."""
    with contextlib.suppress(OSError):
        environ["wsgi.input"].read()
    start_response("200 OK", PLAIN)
    return iter([b"", b"as if ", b"nothing had happened"])


def writes(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the callable of start_response."""
    try:
        environ["wsgi.input"].read()
    except OSError:
        start_response("500 Internal Server Error", PLAIN)(b"written")
        return []
    return answers(environ, start_response)


def writes_on(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The same, whatever write says."""
    try:
        environ["wsgi.input"].read()
        return answers(environ, start_response)
    except OSError:
        write = start_response("500 Internal Server Error", PLAIN)
        for _ in range(3):
            try:
                write(b"written")
            except OSError as error:
                events.record("write failed", message=str(error))
    return [b"and more"]


def replaces(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Begin, and begin anew with exc_info."""
    start_response("200 OK", PLAIN)
    try:
        environ["wsgi.input"].read()
    except OSError:
        start_response("500 Internal Server Error", PLAIN, sys.exc_info())
    return [b"replaced"]


def sends_a_file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with a file."""
    with contextlib.suppress(OSError):
        environ["wsgi.input"].read()
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](open(__file__, "rb"))  # type: ignore[no-any-return]


def is_lazy(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read while the response is made, of which nothing has been sent."""
    start_response("200 OK", PLAIN)
    yield b""
    yield environ["wsgi.input"].read()


def begins_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A generator that answers after the read."""
    with contextlib.suppress(OSError):
        environ["wsgi.input"].read()
    start_response("200 OK", PLAIN)
    yield b"late"


def retries(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read again and again."""
    kinds = set()
    for size in (-1, 1, 2):
        try:
            environ["wsgi.input"].read(size)
        except OSError as error:
            kinds.add(type(error).__name__)
    events.record("retried", kinds=sorted(kinds))
    start_response("200 OK", PLAIN)
    return [b"retried"]


def reads_elsewhere(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Let another thread read."""
    failures: list[BaseException] = []

    def read() -> None:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
    if failures:
        raise UploadError("in a thread") from failures[0]
    return answers(environ, start_response)


def has_answered(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Decide on the response before the read, and stay with it."""
    start_response("202 Accepted", PLAIN)
    try:
        environ["wsgi.input"].read()
    except OSError:
        return [b"as far as it came"]
    return [b"whole"]


def has_sent(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read a little, send a part of the response, then read and fail."""
    environ["wsgi.input"].read(1)
    start_response("200 OK", PLAIN)
    yield b"begun "
    yield environ["wsgi.input"].read()


def has_a_bug(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fail for a reason of its own."""
    with contextlib.suppress(OSError):
        environ["wsgi.input"].read()
    raise UploadError("a bug")


def says_nothing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return without start_response."""
    with contextlib.suppress(OSError):
        environ["wsgi.input"].read()
    return []


ROUTES: dict[str, Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]] = {
    f"/{handler.__name__}": handler
    for handler in (
        escapes,
        wraps,
        wraps_twice,
        answers,
        swallows,
        writes,
        writes_on,
        replaces,
        sends_a_file,
        is_lazy,
        begins_late,
        retries,
        reads_elsewhere,
        has_answered,
        has_sent,
        has_a_bug,
        says_nothing,
    )
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Hand over to the handler that the path names."""
    return ROUTES[environ["PATH_INFO"]](environ, start_response)
