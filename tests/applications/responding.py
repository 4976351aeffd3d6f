"""Applications for the corners of start_response, the file wrapper and long responses."""

import ctypes
import gc
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol
from wsgiref.types import StartResponse, WSGIEnvironment

import events

PLAIN = [("Content-Type", "text/plain")]

# One object for all: a test may have many clients that do not read it.
LARGE = bytes(range(256)) * (24 << 12)


class Application(Protocol):
    """A WSGI application, as a route's value."""

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse, /
    ) -> Iterable[bytes]: ...


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer at once."""
    start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
    return [b"hello"]


# start_response


def twice(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Call start_response again without exc_info, which must raise."""
    start_response("200 First", [*PLAIN, ("X-Call", "first")])
    try:
        start_response("201 Second", [*PLAIN, ("X-Call", "second")])
    except Exception as error:
        return [b"raised ", type(error).__name__.encode()]
    return [b"did not raise"]


def exc_info_replaces(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Replace status and fields while nothing is sent."""
    start_response("200 Old", [*PLAIN, ("X-Old", "1"), ("Content-Length", "100")])
    try:
        raise ValueError("replaced")
    except ValueError:
        start_response("409 New", [*PLAIN, ("X-New", "1")], sys.exc_info())
    return [b"new ", b"body"]


def exc_info_first(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Give exc_info in the only call."""
    try:
        raise ValueError("from the start")
    except ValueError:
        start_response("503 Sorry", PLAIN, sys.exc_info())
    return [b"sorry"]


def exc_info_none(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Give None for exc_info, which is as good as nothing."""
    start_response("200 OK", PLAIN, None)
    return [b"none"]


def exc_info_too_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Change the mind after the first bytes: the server raises what it is given."""
    start_response("200 OK", PLAIN)
    yield b"first"
    events.wait_gate("too-late")
    try:
        raise LookupError("after the head")
    except LookupError:
        try:
            start_response("500 Late", PLAIN, sys.exc_info())
        except BaseException as error:
            events.record("reraised", kind=type(error).__name__, message=str(error))
            raise
        events.record("not reraised")
    yield b"never"


WRONG_EXC_INFO: dict[str, object] = {
    "no exception class": (bytes, b"y" * 100, None),
    "no exception": (ValueError, object(), None),
    "text": (ValueError, "text", None),
    "class alone": (ValueError, None, None),
    "no traceback": (ValueError, ValueError("given"), "text"),
    "traceback alone": (None, None, "text"),
    "pair": (ValueError, ValueError("given")),
    "list": [ValueError, ValueError("given"), None],
    "bare exception": ValueError("given"),
    "true": True,
    "outside": (None, None, None),
}


def wrong_exc_info(environ: WSGIEnvironment, start_response: Any) -> Iterable[bytes]:
    """Give what the query names for exc_info, after the head if it says so, and tell the error."""
    kind, _, when = environ["QUERY_STRING"].replace("+", " ").partition("&")
    write = start_response("200 OK", PLAIN)
    if when == "late":
        write(b"late ")
    try:
        start_response("500 Replaced", PLAIN, WRONG_EXC_INFO[kind])
    except Exception as error:
        return [f"{type(error).__name__}: {error}".encode()]
    return [b"no error"]


def never(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return a body without a head."""
    return [b"no head"]


def never_and_empty(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return nothing at all."""
    return []


def started_in_iter(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Call start_response where the iteration begins."""

    class Late:
        def __iter__(self) -> Iterator[bytes]:
            start_response("200 OK", [*PLAIN, ("X-Late", "iter")])
            return iter([b"late"])

    return Late()


def write_text(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Give write() a str."""
    write: Callable[[Any], object] = start_response("200 OK", PLAIN)
    write("text")
    return []


def write_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Use write() while the server is already iterating: what is written comes first."""
    write = start_response("200 OK", PLAIN)
    write(b"one ")
    yield b"two "
    write(b"three ")
    yield b"four"


class Odd:
    """Two pieces; whatever else is asked of it may raise what the query names."""

    def __init__(self, query: str) -> None:
        self._pieces = iter([b"one ", b"two"])
        self._where, _, self._kind = query.partition("&")

    def _look(self, where: str) -> None:
        if self._where == where:
            raise {
                "AttributeError": AttributeError,
                "MemoryError": MemoryError,
                "NotImplementedError": NotImplementedError,
                "TypeError": TypeError,
                "ValueError": ValueError,
            }[self._kind](f"odd {where}")

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def __len__(self) -> int:
        self._look("len")
        return 2

    def read(self, size: int = -1) -> bytes:
        """Give the pieces, as a file."""
        return next(self._pieces, b"")

    @property
    def close(self) -> Callable[[], None]:
        """What the server looks for."""
        self._look("close")
        return lambda: None


def odd(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return something that is odd where the query says."""
    start_response("200 OK", PLAIN)
    return Odd(environ["QUERY_STRING"])


def odd_file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return a file that is odd where the query says."""
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](Odd(environ["QUERY_STRING"]))  # type: ignore[no-any-return]


class OddTruth:
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("odd truth")


def odd_truth(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return a file that cannot say whether it is readable, which it is."""
    start_response("200 OK", PLAIN)
    file: Any = io.FileIO(__file__)
    file.readable = OddTruth
    return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]


class Faceless(Exception):
    """Does not tell what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise KeyError("faceless class")


def faceless(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fail when the client has left, with something that is not to be taken for its failure."""
    try:
        environ["wsgi.input"].read()
    except OSError:
        raise Faceless("in the middle") from None
    return hello(environ, start_response)


# wsgi.file_wrapper


def temporary_file(content: bytes) -> Any:
    """Return an open file with a descriptor, at its start."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the server
    file.write(content)
    file.seek(0)
    return file


class Recorded:
    """Something to read with a close method and no descriptor."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name

    def read(self, size: int = -1) -> bytes:
        """Read from the wrapped file."""
        return self._file.read(size)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Record the call."""
        events.record("closed", tag=self._name)
        self._file.close()


class RecordedFile(Recorded):
    """The same with a descriptor."""

    def fileno(self) -> int:
        """Return the wrapped file's descriptor."""
        return self._file.fileno()  # type: ignore[no-any-return]

    def tell(self) -> int:
        """Return the wrapped file's position."""
        return self._file.tell()  # type: ignore[no-any-return]


def file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return a file of the kind that the query names."""
    kind, _, length = environ["QUERY_STRING"].partition("&")
    headers = [*PLAIN]
    if length:
        headers.append(("Content-Length", length))
    start_response("200 OK", headers)
    wrapper = environ["wsgi.file_wrapper"]
    if kind == "real":
        return wrapper(RecordedFile(temporary_file(LARGE), "real"))  # type: ignore[no-any-return]
    if kind == "plain":
        return wrapper(temporary_file(LARGE), 8192)  # type: ignore[no-any-return]
    if kind == "offset":
        opened = temporary_file(LARGE)
        opened.seek(1000)
        return wrapper(opened)  # type: ignore[no-any-return]
    if kind == "memory":
        return wrapper(Recorded(io.BytesIO(LARGE), "memory"), 100_000)  # type: ignore[no-any-return]
    if kind == "empty":
        return wrapper(RecordedFile(temporary_file(b""), "empty"))  # type: ignore[no-any-return]
    if kind == "pipe":
        reading, writing = os.pipe()
        os.write(writing, b"through a pipe")
        os.close(writing)
        return wrapper(os.fdopen(reading, "rb"))  # type: ignore[no-any-return]
    if kind == "wrapped":
        # A middleware that looks at each piece must still be able to iterate.
        return (piece.upper() for piece in wrapper(io.BytesIO(b"abcdef"), 4))
    raise KeyError(kind)


class Cyclic:
    """A file that has its own wrapper, and counts the files that there are."""

    alive = 0

    def __init__(self, wrapper: Any) -> None:
        Cyclic.alive += 1
        self.wrapper = wrapper(self)
        self.block = wrapper(io.BytesIO(), self)

    def __del__(self) -> None:
        Cyclic.alive -= 1

    def read(self, size: int = -1) -> bytes:
        """Read nothing."""
        return b""


def cycle(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Make files that hold their wrappers, and tell how many are left."""
    for _ in range(100):
        Cyclic(environ["wsgi.file_wrapper"])
    gc.collect()
    start_response("200 OK", PLAIN)
    return [f"{Cyclic.alive} left".encode()]


def collected(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Use a wrapper that the collector has begun to take apart, as the rest of a cycle may."""
    wrapper = environ["wsgi.file_wrapper"](io.BytesIO(b"its file"))
    slot = ctypes.pythonapi.PyType_GetSlot
    slot.restype = ctypes.c_void_p
    slot.argtypes = [ctypes.py_object, ctypes.c_int]
    tp_clear = 51
    ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object)(slot(type(wrapper), tp_clear))(wrapper)
    start_response("200 OK", PLAIN)
    return wrapper  # type: ignore[no-any-return]


# Long ones


def large_list(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer 24 MB in one piece."""
    events.record("large", kind="list")
    start_response("200 OK", [*PLAIN, ("Content-Length", str(len(LARGE)))])
    return [LARGE]


class Fresh:
    """Pieces of 64 KiB that are each their own object, so many of them."""

    def __init__(self, count: int, tag: str) -> None:
        self.left = count
        self.tag = tag

    def __iter__(self) -> "Fresh":
        return self

    def __next__(self) -> bytes:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return bytes([self.left % 256]) * 65536

    def close(self) -> None:
        """Record the call, and how many pieces were not asked for."""
        events.record("closed", tag=self.tag, left=self.left)


def large_iterator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer as many pieces of 64 KiB as the query says."""
    count = int(environ["QUERY_STRING"] or 400)
    events.record("large", kind="iterator")
    start_response("200 OK", PLAIN)
    return Fresh(count, "large_iterator")


def large_small_pieces(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer 20 MB in pieces that are copied for a client that does not take them."""
    events.record("large", kind="small_pieces")
    start_response("200 OK", PLAIN)
    return (b"s" * 10_000 for _ in range(2000))


def large_write(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Give 20 MB to write()."""
    write = start_response("200 OK", PLAIN)
    events.record("large", kind="write")
    for _ in range(2000):
        write(b"w" * 10_000)
    return []


def drip(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Yield a short piece again and again until nobody wants more."""
    start_response("200 OK", PLAIN)
    events.record("dripping")
    try:
        for _ in range(10_000):
            yield b"drip\n"
            time.sleep(0.02)
        events.record("dripped out")
    finally:
        events.record("closed", tag="drip")


def gated(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Yield two pieces; the second once the test has opened the gate in the query."""
    start_response("200 OK", PLAIN)
    yield b"first"
    events.wait_gate(environ["QUERY_STRING"])
    yield b"second"


def reading(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read the whole body, then answer its length."""
    length = len(environ["wsgi.input"].read())
    start_response("200 OK", PLAIN)
    return [b"%d" % length]


# What the server offers besides


def errors(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Write to wsgi.errors."""
    stream = environ["wsgi.errors"]
    stream.write("written with caf\u00e9\n")
    stream.writelines(["lines one\n", "lines two\n"])
    stream.flush()
    print("printed for good measure", file=stream)
    start_response("200 OK", PLAIN)
    return [b"ok"]


def hints(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Send early hints, twice."""
    environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload; as=style")])
    environ["wsgi.early_hints"]([("Link", "</a.js>; rel=preload"), ("X-Hint", "two")])
    start_response("200 OK", [*PLAIN, ("Content-Length", "2")])
    return [b"ok"]


def disconnected(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Ask whether the client is there until it has gone."""
    gone = environ["serve_zig.client_disconnected"]
    events.record("asked", gone=bool(gone()))
    deadline = time.monotonic() + 60
    while not gone() and time.monotonic() < deadline:
        time.sleep(0.01)
    events.record("noticed", gone=bool(gone()))
    start_response("200 OK", PLAIN)
    return [b"nobody reads this"]


ROUTES: dict[str, Application] = {
    f"/{application.__name__}": application
    for application in (
        hello,
        twice,
        exc_info_replaces,
        exc_info_first,
        exc_info_none,
        exc_info_too_late,
        wrong_exc_info,
        never,
        never_and_empty,
        started_in_iter,
        write_text,
        write_late,
        odd,
        odd_file,
        odd_truth,
        faceless,
        file,
        cycle,
        collected,
        large_list,
        large_iterator,
        large_small_pieces,
        large_write,
        drip,
        gated,
        reading,
        errors,
        hints,
        disconnected,
    )
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Hand over to the application that the path names."""
    return ROUTES[environ["PATH_INFO"]](environ, start_response)
