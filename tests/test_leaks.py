"""Nothing is left behind: memory, references, threads and descriptors after many requests."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import Server, Servers, wait_until
from wire import all_closed, chunked, get, post

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: Requests of one kind, and the seconds after which fewer will do: a leak of one object a request
#: shows in hundreds, and a busy machine must not make this a long test.
REQUESTS = 20_000
SECONDS = 1.0
REQUESTS_MIN = 100


@pytest.fixture(scope="module")
def small(serve_module: Servers) -> Server:
    """A server with few threads, so that all of them have served before the first count."""
    return serve_module("concurrency:app", {"concurrency": {"threads": 2}})


def pipelined(server: Server, request: bytes, status: int, method: str = "GET") -> int:
    """Send requests together on one connection and read every answer."""
    count = 100
    with server.connect() as connection:
        connection.send(request * count)
        for _ in range(count):
            assert connection.response(method).status == status
    return count


def on_connections_of_their_own(server: Server, request: bytes, status: int) -> int:
    """Send each request on a new connection."""
    count = 20
    with all_closed([server.connect() for _ in range(count)]) as connections:
        for connection in connections:
            connection.send(request)
        for connection in connections:
            assert connection.response().status == status
    return count


def aborted_upload(server: Server) -> int:
    """Leave in the middle of a body: before and after the handler has begun to read."""
    head = get("/upload", "Transfer-Encoding: chunked", method="POST")
    with all_closed([server.connect() for _ in range(20)]) as connections:
        for number, connection in enumerate(connections):
            if number % 2:
                connection.send(head + chunked(b"x" * 3000)[:-100])
            else:
                connection.send(post("/upload", b"x" * 3000)[:-1000])
        for number, connection in enumerate(connections):
            if number % 4 > 1:
                connection.reset()
    return 20


def aborted_stream(server: Server) -> int:
    """Leave in the middle of a response that a generator makes."""
    count = len(server.events("closed", tag="abort"))
    with all_closed([server.connect(receive_buffer=4096) for _ in range(10)]) as connections:
        for connection in connections:
            connection.send(get("/stream?200&abort"))
        for number, connection in enumerate(connections):
            connection.take(1000)
            if number % 2:
                connection.reset()
    server.wait_event("closed", tag="abort", count=count + 10)
    return 10


def slow_readers(server: Server) -> int:
    """Let generators be parked, then read their responses to the end."""
    with all_closed([server.connect(receive_buffer=65536) for _ in range(5)]) as connections:
        for connection in connections:
            connection.send(get("/stream?20&slow"))
        # All of them are ahead of their clients when this one is answered.
        assert server.exchange(get("/fast?slow")).status == 200
        for connection in connections:
            assert len(connection.response().chunks) == 20
    return 5


KINDS: dict[str, Callable[[Server], int]] = {
    "ok": lambda server: pipelined(server, get("/fast?leak"), 200),
    "not found": lambda server: pipelined(server, get("/nowhere"), 404),
    "head": lambda server: pipelined(server, get("/fast?leak", method="HEAD"), 200, "HEAD"),
    "connections": lambda server: on_connections_of_their_own(server, get("/fast?leak"), 200),
    "exception": lambda server: on_connections_of_their_own(
        server, get("/failing?OwnBaseException"), 500
    ),
    "refused": lambda server: on_connections_of_their_own(server, b"nonsense\r\n\r\n", 400),
    "context": lambda server: pipelined(server, get("/context?leak"), 200),
    "upload": lambda server: pipelined(server, post("/upload", b"u" * 3000), 200),
    "chunked upload": lambda server: pipelined(
        server,
        get("/upload", "Transfer-Encoding: chunked", method="POST") + chunked(b"u" * 900, b"v" * 9),
        200,
    ),
    "aborted upload": aborted_upload,
    "aborted stream": aborted_stream,
    "list": lambda server: pipelined(server, get("/listed?3"), 200),
    "large list": lambda server: on_connections_of_their_own(server, get("/listed?30"), 200),
    "file": lambda server: on_connections_of_their_own(server, get("/spooled?9000"), 200),
    "slow reader": slow_readers,
}


def numbers(server: Server) -> dict[str, Any]:
    """Return what must not grow, once every connection is closed."""
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    response = server.exchange(get("/numbers"))
    assert response.status == 200
    found: dict[str, Any] = response.json()
    port = f":{server.port:04X}"

    def closed() -> bool:
        table = Path("/proc/net/tcp").read_text("ascii")
        return not re.search(rf"{port} \S+ 0[18] ", table)

    wait_until(closed, 5, lambda: "connections are open")
    found["descriptors"] = len(list(descriptors.iterdir()))
    found["tasks"] = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
    found["resident"] = server.resident_bytes()
    return found


def repeated(server: Server, kind: str, count: int, seconds: float) -> int:
    """Send so many requests of a kind, or as many as the time allows; return how many."""
    began = time.monotonic()
    sent = 0
    while sent < count and (time.monotonic() - began < seconds or sent < REQUESTS_MIN):
        sent += KINDS[kind](server)
    return sent


def grown(before: dict[str, Any], after: dict[str, Any], sent: int) -> list[str]:
    """Return what there is more of than caches and fragmentation explain."""
    bounds = {
        "descriptors": 0,
        "tasks": 0,
        "threads": 0,
        "blocks": max(sent // 4, 60),
        "objects": max(sent // 4, 60),
        "heap": 50_000 + 16 * sent,
        "resident": 1_000_000 + 50 * sent,
    }
    found = [
        f"{name}: {before[name]} to {after[name]}"
        for name, bound in bounds.items()
        if after[name] - before[name] > bound
    ]
    found += [
        f"references of {name}: {before['references'][name]} to {count}"
        for name, count in after["references"].items()
        if count - before["references"][name] > sent // 10
    ]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left(small: Server, kind: str) -> None:
    """Counts after many requests are those from before.

    A table that doubles grows once; what leaks grows each time that one looks.
    """
    small.errors_expected = kind == "exception"
    repeated(small, kind, REQUESTS // 10, SECONDS / 4)
    before = numbers(small)
    for _ in range(3):
        sent = repeated(small, kind, REQUESTS, SECONDS)
        after = numbers(small)
        leaks = grown(before, after, sent)
        if not leaks:
            return
        before = after
    pytest.fail(f"after {sent} requests each time: {leaks}")
