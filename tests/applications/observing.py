"""What a request knows of itself, and what the server knows of all of them.

`/metrics` is the server's own text, fetched from the launcher's frames: the application has no
other way to it. `/environ` answers with the keys that are about the request; the rest is in
`working`.
"""

import json
import sys
import tempfile
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import working

KEYS = ("serve_zig.request_id", "serve_zig.queue_seconds", "HTTP_TRACEPARENT", "HTTP_X_REQUEST_ID")


def server() -> Any:
    """Return the `_core.Server` that this process runs."""
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    while frame is not None:
        for value in frame.f_locals.values():
            for one in (value, getattr(value, "_server", None)):
                # Not the class, which the launcher has in a variable too.
                if hasattr(one, "metrics_text") and not isinstance(one, type):
                    return one
        frame = frame.f_back
    raise LookupError("no server")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Do what the path says."""
    path = environ["PATH_INFO"]
    if path == "/metrics":
        body = server().metrics_text().encode()
    elif path == "/environ":
        body = json.dumps({key: environ.get(key) for key in KEYS}).encode()
    elif path == "/own-id":
        start_response("200 OK", [("X-Request-Id", "mine"), ("Content-Length", "0")])
        return []
    elif path == "/missing":
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    elif path == "/error":
        raise ValueError("on purpose\nin two lines")
    elif path == "/large":
        body = b"x" * int(environ["QUERY_STRING"])
    elif path == "/file":
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the server
        file.truncate(int(environ["QUERY_STRING"]))
        start_response("200 OK", [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped
    elif path == "/written":
        write = start_response("200 OK", [])
        for _ in range(100):
            write(bytes(int(environ["QUERY_STRING"]) // 100))
        return []
    else:
        return working.app(environ, start_response)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
