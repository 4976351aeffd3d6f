"""Uploads of any size: `curl -T FILE http://127.0.0.1:8000/` answers with size and digest.

The server takes the body in before it calls the application, up to `limits.body_memory` in memory
and the rest in a temporary file without a name; so a slow client costs no thread and a large
upload no memory, and the application reads at the speed of the disk. `wsgi.input` is the same in
all cases, for bodies with Content-Length and for chunked ones (`curl -T - URL`).
"""

import hashlib
import json
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

BLOCK_BYTES = 256 * 1024


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body block by block and describe it."""
    if environ["REQUEST_METHOD"] not in ("PUT", "POST"):
        start_response("405 Method Not Allowed", [("Allow", "PUT, POST"), ("Content-Length", "0")])
        return []
    digest = hashlib.sha256()
    size = 0
    while block := environ["wsgi.input"].read(BLOCK_BYTES):
        digest.update(block)
        size += len(block)
    # Of a chunked upload: a checksum that the client could only know at the end, for example.
    trailers = dict(environ.get("serve_zig.trailers", ()))
    result = {"bytes": size, "sha256": digest.hexdigest(), "trailers": trailers}
    body = json.dumps(result).encode() + b"\n"
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    )
    return [body]
