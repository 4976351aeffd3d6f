"""Reads wsgi.input in each way that PEP 3333 allows and answers with what came, as JSON."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import InputStream, StartResponse, WSGIEnvironment

import events

KEPT: list[InputStream] = []


def text(data: bytes) -> str:
    """Return bytes in a form that JSON can hold."""
    assert type(data) is bytes, type(data)
    return data.decode("latin-1")


def read_in_pieces(stream: InputStream, size: int) -> list[str]:
    """Read so many bytes at a time until the end."""
    pieces = []
    while piece := stream.read(size):
        pieces.append(text(piece))
    return pieces


def lines_until_end(stream: InputStream, *size: int) -> list[str]:
    """Call readline until it returns nothing."""
    lines = []
    while line := stream.readline(*size):
        lines.append(text(line))
    return lines


def digest_in_pieces(stream: InputStream, size: int) -> str:
    """Hash the body without holding it."""
    digest = hashlib.sha256()
    while piece := stream.read(size):
        digest.update(piece)
    return digest.hexdigest()


def digest_of_lines(stream: InputStream) -> str:
    """Hash the body line by line."""
    digest = hashlib.sha256()
    for line in stream:
        digest.update(line)
    return digest.hexdigest()


WAYS: dict[str, Callable[[InputStream], Any]] = {
    "read": lambda stream: text(stream.read()),
    "read_negative": lambda stream: text(stream.read(-1)),
    "read_zero": lambda stream: [text(stream.read(0)), text(stream.read())],
    "read_3_rest": lambda stream: [text(stream.read(3)), text(stream.read())],
    "read_pieces": lambda stream: read_in_pieces(stream, 7),
    "read_too_much": lambda stream: text(stream.read(1_000_000)),
    "read_beyond": lambda stream: [text(stream.read()), text(stream.read()), text(stream.read(9))],
    "readline": lines_until_end,
    "readline_size": lambda stream: lines_until_end(stream, 3),
    "readline_negative": lambda stream: lines_until_end(stream, -1),
    "readline_zero": lambda stream: [text(stream.readline(0)), text(stream.read())],
    "readline_read": lambda stream: [text(stream.readline()), text(stream.read())],
    "readline_beyond": lambda stream: [text(stream.read()), text(stream.readline())],
    "readlines": lambda stream: [text(line) for line in stream.readlines()],
    "readlines_hint": lambda stream: [text(line) for line in stream.readlines(4)],
    "readlines_negative": lambda stream: [text(line) for line in stream.readlines(-1)],
    "iterate": lambda stream: [text(line) for line in stream],
    "next": lambda stream: [text(next(iter(stream))), text(stream.read())],
    "digest": lambda stream: hashlib.sha256(stream.read()).hexdigest(),
    "digest_pieces": lambda stream: digest_in_pieces(stream, 10_007),
    "digest_lines": digest_of_lines,
    "nothing": lambda stream: None,
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body in the way that the path names."""
    way = environ["PATH_INFO"].strip("/")
    events.record("called", way=way, tag=environ["QUERY_STRING"])
    stream = environ["wsgi.input"]
    try:
        if way == "keep":
            KEPT.append(stream)
            result: Any = text(stream.read(2))
        elif way == "kept":
            result = read_kept()
        elif way == "flags":
            result = [
                environ.get("wsgi.input_terminated"),
                environ.get("CONTENT_LENGTH"),
                environ.get("HTTP_TRANSFER_ENCODING"),
                text(stream.read()),
            ]
        else:
            result = WAYS[way](stream)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        events.record("failed", way=way, kinds=kinds, message=str(error))
        raise
    events.record("finished", way=way, tag=environ["QUERY_STRING"])
    body = json.dumps(result).encode("ascii")
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    )
    return [body]


def read_kept() -> str:
    """Read from the input of a request that is long over; anything but a crash will do."""
    try:
        return text(KEPT.pop().read())
    except (OSError, ValueError, RuntimeError) as error:
        return f"refused: {type(error).__name__}"


def before_reading(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Record the start, wait for the test, and only then read the body."""
    events.record("started")
    events.wait_gate("read")
    return app(environ, start_response)
