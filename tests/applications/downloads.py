"""Returns files through wsgi.file_wrapper, of the kind that the query describes.

The query is percent-encoded JSON: `kind`, `size` and `offset` of the file, `length` for a
Content-Length, `status`, `written` for what write() sends before, `wrap` for a middleware, `tag`.
When a file is closed, its position is recorded: one that the server has sent by itself stands where
it stood, and one that was read is at its end.
"""

import gzip
import io
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from wsgiref.types import StartResponse, WSGIEnvironment

import events

FOLDER = events.FOLDER


def pattern(size: int) -> bytes:
    """Return bytes that tell where they stand."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def path_of(size: int) -> Path:
    """Return a file of so many bytes; more than 8 MiB of them are a hole."""
    path = FOLDER / f"file-{size}"
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=FOLDER, delete=False) as file:
            file.write(pattern(min(size, 8 << 20)))
            file.truncate(size)
        os.rename(file.name, path)
    return path


class Proxy:
    """Stands for a file, as the file objects of frameworks do, and records its end."""

    def __init__(self, file: Any, tag: str) -> None:
        self._file = file
        self._tag = tag

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        """Record the call."""
        position = -1
        if not self._file.closed and self._file.seekable():
            position = self._file.tell()
        events.record("closed", tag=self._tag, position=position)
        self._file.close()


class Upper(io.FileIO):
    """A file of the right kind that reads in its own way."""

    def read(self, size: int | None = -1) -> bytes:
        """Read in upper case."""
        return (super().read(-1 if size is None else size) or b"").upper()


class Liar:
    """Something with the descriptor of a file that it does not read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._text = io.BytesIO(b"what it reads")
        self.fileno = file.fileno
        self.tell = file.tell
        self.seekable = file.seekable
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """Read something else."""
        return self._text.read(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def unflushed(size: int) -> Any:
    """Return a file with bytes that are still in its buffer."""
    file = tempfile.TemporaryFile(dir=FOLDER)  # noqa: SIM115 - closed by the server
    file.write(pattern(size))
    file.flush()
    file.seek(size - 4)
    file.write(b"tail")
    file.seek(size - 1)
    file.write(b"L")
    file.seek(0)
    file.read(1)
    file.seek(size - 2)
    file.write(b"a")
    return file


def packed(size: int) -> Any:
    """Return a compressed file, to be read as what is in it."""
    path = FOLDER / f"packed-{size}.gz"
    path.write_bytes(gzip.compress(pattern(size)))
    return gzip.open(path, "rb")


def piped(size: int) -> Any:
    """Return the reading end of a pipe with everything in it."""
    reading, writing = os.pipe()
    os.write(writing, pattern(size))
    os.close(writing)
    return os.fdopen(reading, "rb")


def named(size: int) -> Any:
    """Return a temporary file that has a name."""
    file = tempfile.NamedTemporaryFile(dir=FOLDER)  # noqa: SIM115 - closed by the server
    file.write(pattern(size))
    file.seek(0)
    return file


def spooled(size: int) -> Any:
    """Return a temporary file that is in memory at first."""
    file = tempfile.SpooledTemporaryFile(1 << 20, dir=FOLDER)  # noqa: SIM115 - closed by the server
    file.write(pattern(size))
    file.seek(0)
    return file


def shut(size: int) -> Any:
    """Return a file that is closed."""
    with open(path_of(size), "rb") as file:
        return file


KINDS: dict[str, Callable[[int], Any]] = {
    "file": lambda size: open(path_of(size), "rb"),  # noqa: SIM115
    "raw": lambda size: open(path_of(size), "rb", buffering=0),  # noqa: SIM115
    "random": lambda size: open(path_of(size), "r+b"),  # noqa: SIM115
    "unflushed": unflushed,
    "named": named,
    "spooled": spooled,
    "memory": lambda size: io.BytesIO(pattern(size)),
    "gzip": packed,
    "pipe": piped,
    "text": lambda size: open(path_of(size), encoding="latin-1"),  # noqa: SIM115
    "writing": lambda size: open(FOLDER / "written", "wb", buffering=0),  # noqa: SIM115
    "shut": shut,
    "upper": lambda size: Upper(path_of(size)),
    "liar": lambda size: Liar(open(path_of(size), "rb")),  # noqa: SIM115
    "proc": lambda size: open("/proc/version", "rb"),  # noqa: SIM115
}


def wrapped(kind: str, iterable: Any) -> Iterable[bytes]:
    """Put something round the wrapper, as a middleware does."""

    class Closing:
        def __iter__(self) -> Iterator[bytes]:
            return (piece.swapcase() for piece in iterable)

        def close(self) -> None:
            iterable.close()

    class Counting:
        def __iter__(self) -> Iterator[bytes]:
            return iter(iterable)

        def close(self) -> None:
            iterable.close()

    if kind == "generator":
        return (piece for piece in iterable)
    return Closing() if kind == "closing" else Counting()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the file."""
    if environ["PATH_INFO"] == "/hello":
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]
    spec = json.loads(unquote(environ["QUERY_STRING"]))
    size = spec.get("size", 1000)
    file = KINDS[spec.get("kind", "file")](size)
    if "offset" in spec:
        file.seek(spec["offset"])
    headers = [("Content-Type", "application/octet-stream")]
    if "length" in spec:
        headers.append(("Content-Length", str(spec["length"])))
    write = start_response(spec.get("status", "200 OK"), headers)
    if "written" in spec:
        write(spec["written"].encode())
    if "tag" in spec:
        file = Proxy(file, spec["tag"])
    if spec.get("steals"):
        threading.Thread(target=steal, args=(file, spec["tag"]), daemon=True).start()
    wrapper: Any = environ["wsgi.file_wrapper"]
    iterable = wrapper(file, spec["block"]) if "block" in spec else wrapper(file)
    return wrapped(spec["wrap"], iterable) if "wrap" in spec else iterable


def steal(file: Any, tag: str) -> None:
    """Close the file while it is sent, and open others that would get its descriptor."""
    events.wait_gate(tag)
    file._file.close()
    others = [open("/proc/version", "rb") for _ in range(20)]  # noqa: SIM115
    events.record("stolen", tag=tag, count=len(others))
    events.wait_gate(f"{tag}-end")
    for other in others:
        other.close()
