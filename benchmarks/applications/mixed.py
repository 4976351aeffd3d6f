"""Fast, waiting and computing requests side by side, told apart by their path.

`/sleep/<milliseconds>` waits as a database call does: without the GIL. `/compute` runs a loop of
`BENCHMARK_SPIN` steps that never lets go of it. The loop counts steps, not time: measured against
a clock it would grow shorter as the GIL is contended, which is just what the workload is to show.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

BODY = b"Hello, World!"
SPIN = int(os.environ.get("BENCHMARK_SPIN", "50000"))


def spin(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step
    return total


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith("/sleep/"):
        time.sleep(int(path[7:]) / 1000)
    elif path == "/compute":
        spin(SPIN)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [BODY]
