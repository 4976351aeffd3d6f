"""Forks a process when it is imported, which lives on; answers with its id."""

import os
import time
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

child = os.fork()
if child == 0:
    time.sleep(30)
    os._exit(0)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the child's id."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(child).encode()]
