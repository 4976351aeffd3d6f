"""Does what the test wrote into the query: status, fields, pieces, and where to fail.

The query is percent-encoded JSON, made by `script()` in the test modules:

- `status`, `headers`: given to start_response as they are
- `pieces`: the body, Latin-1 text for bytes; `shape`: the kind of iterable that holds it
- `raise_at`: "call", "started", "iter", "close" or the number of a piece; `kind`: the exception
- `gate_at`: the number of a piece that waits for the test; `tag`: names the recorded events

A value {"odd": "str"} stands for one that PEP 3333 does not allow there; see ODD.
"""

import builtins
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote
from wsgiref.types import StartResponse, WSGIEnvironment

import events

ODD: dict[str, Any] = {
    "str": "text",
    "int": 7,
    "none": None,
    "bytes": b"bytes",
    "str subclass": type("Text", (str,), {})("200 Subclass"),
    "wide": "\u20ac",
}


class OwnBaseException(BaseException):
    """One that no `except Exception` catches and nobody has heard of."""


def resolved(value: Any) -> Any:
    """Return the value that a script stands for."""
    if isinstance(value, dict):
        return ODD[value["odd"]]
    return value


def as_piece(value: Any) -> Any:
    """Return one piece of a body: text stands for bytes."""
    return resolved(value) if isinstance(value, dict) else value.encode("latin-1")


class Script:
    """What one request is to do."""

    def __init__(self, text: str, start_response: StartResponse) -> None:
        self.spec: dict[str, Any] = json.loads(text)
        self.tag: str = self.spec.get("tag", "")
        self.pieces = [as_piece(piece) for piece in self.spec.get("pieces", [])]
        self._start_response = start_response

    def start(self) -> Callable[[bytes], object]:
        """Call start_response with what the test gave."""
        status = resolved(self.spec.get("status", "200 OK"))
        headers = self.spec.get("headers", [])
        if isinstance(headers, list):
            headers = [tuple(resolved(part) for part in pair) for pair in headers]
        return self._start_response(status, resolved(headers))

    def reach(self, point: object) -> None:
        """Fail or wait here when the test wants it."""
        if self.spec.get("gate_at") == point:
            events.wait_gate(self.tag or "scripted")
        if self.spec.get("raise_at") == point:
            name = self.spec.get("kind", "RuntimeError")
            kind = getattr(builtins, name, OwnBaseException)
            raise kind(f"scripted at {point}")

    def piece(self, number: int) -> Any:
        """Return one piece of the body."""
        self.reach(number)
        events.record("piece", tag=self.tag, number=number)
        return self.pieces[number]

    def closed(self) -> None:
        """Record that close() was called, and fail there if wanted."""
        events.record("closed", tag=self.tag)
        self.reach("close")


class Pieces:
    """An iterator that has a close method and no length."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.next = 0

    def __iter__(self) -> "Pieces":
        self.script.reach("iter")
        return self

    def __next__(self) -> bytes:
        number = self.next
        self.next += 1
        if number >= len(self.script.pieces):
            self.script.reach(number)
            raise StopIteration
        return self.script.piece(number)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Record the call."""
        self.script.closed()


class Lazy(Pieces):
    """Calls start_response when the first piece is asked for."""

    def __next__(self) -> bytes:
        if self.next == 0:
            self.script.start()
        return super().__next__()


class Sized(Pieces):
    """An iterable that knows its length."""

    def __len__(self) -> int:
        return len(self.script.pieces)


class ClosingList(list[bytes]):
    """A list that has a close method."""

    script: Script

    def close(self) -> None:
        """Record the call."""
        self.script.closed()


class Indexed:
    """Iterable by the sequence protocol alone."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def __getitem__(self, number: int) -> bytes:
        if number >= len(self.script.pieces):
            raise IndexError(number)
        return self.script.piece(number)  # type: ignore[no-any-return]


def generated(script: Script) -> Iterator[bytes]:
    """Yield the pieces; start_response is called late."""
    script.start()
    try:
        for number in range(len(script.pieces)):
            yield script.piece(number)
        script.reach(len(script.pieces))
    finally:
        script.closed()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Perform the script in the query."""
    script = Script(unquote(environ["QUERY_STRING"]), start_response)
    script.reach("call")
    shape = script.spec.get("shape", "list")
    if shape == "generator":
        return generated(script)
    if shape == "lazy":
        return Lazy(script)
    write = script.start()
    script.reach("started")
    return iterable_of(script, shape, write)


def iterable_of(script: Script, shape: str, write: Callable[[bytes], object]) -> Iterable[bytes]:
    """Return the pieces in the shape that the script names."""
    pieces = script.pieces
    if shape == "write":
        for number in range(len(pieces)):
            write(script.piece(number))
        script.reach(len(pieces))
        return []
    if shape == "write and list":
        write(pieces[0])
        return pieces[1:]
    if shape == "closing list":
        closing = ClosingList(pieces)
        closing.script = script
        return closing
    if shape == "returned":
        # The one "piece" itself, whatever it is, in place of an iterable.
        return pieces[0]  # type: ignore[no-any-return]
    shapes: dict[str, Callable[[], Any]] = {
        "list": lambda: pieces,
        "tuple": lambda: tuple(pieces),
        "iterator": lambda: Pieces(script),
        "sized": lambda: Sized(script),
        "indexed": lambda: Indexed(script),
        "map": lambda: map(script.piece, range(len(pieces))),
    }
    return shapes[shape]()  # type: ignore[no-any-return]
