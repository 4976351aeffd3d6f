"""Responses that are parked while their thread does something else, or read their body then."""

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import concurrency
import events

PLAIN = [("Content-Type", "text/plain")]
resumes: dict[str, Callable[[], None]] = {}


def waiting(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Wait for /resume, twice; "name", or "name&any": the second time any thread may go on."""
    name, _, how = environ["QUERY_STRING"].partition("&")
    start_response("200 OK", PLAIN)
    began = threading.get_ident()
    try:
        yield b"begun "
        resumes[name] = environ["x-wsgiorg.suspend"]()
        yield b""
        if how == "any":
            environ["serve_zig.any_thread"]()
        yield b"again "
        resumes[name] = environ["x-wsgiorg.suspend"]()
        yield b""
        # The last piece is seen as soon as it is made, wherever the response ends.
        yield b"same" if threading.get_ident() == began else b"other"
    finally:
        events.record("closed", tag=name, is_same=threading.get_ident() == began)


def resume(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Resume the response with this name."""
    resumes.pop(environ["QUERY_STRING"])()
    return concurrency.answer_text(start_response, "resumed")


class Download:
    """A file that the server sends by itself, and that tells on which thread it is closed."""

    def __init__(self, tag: str, size: int) -> None:
        self._tag = tag
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the server
        self._file.truncate(size)
        self._began = threading.get_ident()
        self.read = self._file.read
        self.fileno = self._file.fileno

    def close(self) -> None:
        """Tell where."""
        self._file.close()
        events.record("closed", tag=self._tag, is_same=threading.get_ident() == self._began)


def download(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a file that is more than its client takes at once."""
    start_response("200 OK", PLAIN)
    file = Download(environ["QUERY_STRING"], 8 << 20)
    return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]


def reading(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Another thread reads the body in two halves, the second while the response is parked."""
    how = environ["QUERY_STRING"]
    stream = environ["wsgi.input"]
    half = int(environ["CONTENT_LENGTH"]) // 2
    if how == "piece":
        start_response("200 OK", PLAIN)
    first = b"" if how == "unasked" else stream.read(half)
    found: list[str] = [first.decode()]
    wake = environ["x-wsgiorg.suspend"](20_000)

    def read() -> None:
        events.wait_gate("read")
        events.record("reading")
        try:
            found.append(stream.read(half).decode())
            found.append(stream.readline().decode())
        except (OSError, RuntimeError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
            events.record("failed", kind=type(error).__name__)
        wake()

    reader = threading.Thread(target=read)
    reader.start()
    if how == "piece":
        yield b"begun "
    yield b""
    reader.join()
    if how != "piece":
        start_response("200 OK", PLAIN)
    # A line that is short: the test may read the file while it is written.
    events.record("read", found=[one if len(one) < 300 else one[:1] * 300 for one in found])
    events.record("lengths", found=[len(one) for one in found])
    yield "|".join(found).encode()


def writing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Another thread calls `write` while the response is suspended."""
    write = start_response("200 OK", PLAIN)
    wake = environ["x-wsgiorg.suspend"](20_000)
    messages = []

    def intrude() -> None:
        events.wait_gate("write")
        try:
            write(b"intruded")
        except RuntimeError as error:
            messages.append(str(error))
        wake()

    threading.Thread(target=intrude).start()
    yield b"begun "
    yield b""
    yield messages[0].encode()


ROUTES = {
    f"/{handler.__name__}": handler for handler in (waiting, resume, download, reading, writing)
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Route by path; everything else is for concurrency.app."""
    return ROUTES.get(environ["PATH_INFO"], concurrency.app)(environ, start_response)
