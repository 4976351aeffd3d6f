"""A reply of as many KiB as the path says: `/64` is one of 64 KiB."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

BODIES = {f"/{kib}": b"x" * (kib * 1024) for kib in (64, 1024)}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    body = BODIES[environ["PATH_INFO"]]
    start_response(
        "200 OK",
        [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))],
    )
    return [body]
