"""64 chunks of 1 KiB from a generator, none known before the one before it is sent."""

from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

CHUNK = b"x" * 1024


def chunks() -> Iterator[bytes]:
    for _ in range(64):
        yield CHUNK


def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return chunks()
