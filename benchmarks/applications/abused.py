"""The 13-byte reply, and under `/large` one of 1 MiB for clients that do not read it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

BODY = b"Hello, World!"
LARGE = b"x" * (1 << 20)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = LARGE if environ["PATH_INFO"] == "/large" else BODY
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
