"""Requests of every kind, many times, and what a server holds afterwards: for leaks."""

import contextlib
import re
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving import Server, Servers, wait_until
from wire import PATIENCE, Connection, Truncated, all_closed, chunked, get, post

#: Few threads, so that all of them have served before the first count; files for large bodies.
PATIENT: dict[str, Any] = {
    "concurrency": {"threads": 2},
    "limits": {"body_memory": 20_000, "response_memory": 100_000},
}
#: Every time limit is met again and again.
IMPATIENT: dict[str, Any] = {
    "concurrency": {"threads": 2, "queue": 40, "queue_timeout": 0.2},
    "limits": {"response_memory": 100_000},
    "timeouts": {"head": 0.1, "body": 0.1, "keep_alive": 0.1, "write": 0.1},
}

#: Makes some requests of a kind and returns how many.
Kind = Callable[[Server], int]

TOGETHER = 20


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
    with all_closed([server.connect() for _ in range(TOGETHER)]) as connections:
        for connection in connections:
            connection.send(request)
        for connection in connections:
            assert connection.response().status == status
    return TOGETHER


def aborted_upload(server: Server) -> int:
    """Leave in the middle of a body: in memory, in a file, before and after all was asked for."""
    head = get("/upload", "Transfer-Encoding: chunked", method="POST")
    expecting = get("/upload", "Content-Length: 9", "Expect: 100-continue", method="POST")
    with all_closed([server.connect() for _ in range(TOGETHER)]) as connections:
        for number, connection in enumerate(connections):
            if number == 0:
                connection.send(expecting)
            elif number % 2:
                connection.send(head + chunked(b"x" * 3000)[:-100])
            elif number % 3:
                connection.send(post("/upload", b"x" * 3000)[:-1000])
            else:
                connection.send(post("/upload", b"x" * 60_000)[:-1000])
        assert connections[0].interim_response().status == 100
        for number, connection in enumerate(connections):
            if number % 4 > 1:
                connection.reset()
    return TOGETHER


def aborted_stream(server: Server) -> int:
    """Leave in the middle of a response that a generator makes."""
    count = 10
    before = len(server.events("closed", tag="abort"))
    with all_closed([server.connect(receive_buffer=4096) for _ in range(count)]) as connections:
        for connection in connections:
            connection.send(get("/stream?200&abort"))
        for number, connection in enumerate(connections):
            connection.take(1000)
            if number % 2:
                connection.reset()
    server.wait_event("closed", tag="abort", count=before + count)
    (server.folder / "events").unlink()
    return count


def slow_readers(server: Server) -> int:
    """Let generators be parked, then read their responses to the end."""
    count = 5
    with all_closed([server.connect(receive_buffer=65536) for _ in range(count)]) as connections:
        for connection in connections:
            connection.send(get("/stream?20&slow"))
        # All of them are ahead of their clients when this one is answered.
        assert server.exchange(get("/fast?slow")).status == 200
        for connection in connections:
            assert len(connection.response().chunks) == 20
    (server.folder / "events").unlink()
    return count


def expecting_upload(server: Server) -> int:
    """Wait for 100 (Continue) before each body, on one connection."""
    with server.connect() as connection:
        for _ in range(TOGETHER):
            connection.send(
                get("/upload", "Content-Length: 3000", "Expect: 100-continue", method="POST")
            )
            assert connection.interim_response().status == 100
            connection.send(b"e" * 3000)
            assert connection.response().status == 200
    return TOGETHER


def suspended_and_gone(server: Server) -> int:
    """Leave while the response waits for an event that does not come."""
    before = int(server.exchange(get("/count_finished")).body)
    with all_closed([server.connect() for _ in range(TOGETHER)]) as connections:
        for connection in connections:
            connection.send(get("/suspending?60000"))
        for connection in connections:
            connection.head()
        for connection in connections:
            connection.reset()

    def over() -> bool:
        return int(server.exchange(get("/count_finished")).body) >= before + TOGETHER

    wait_until(over, PATIENCE, lambda: "suspended responses are not over")
    return TOGETHER


BAD_REQUESTS = (
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nA: b\nC: d\r\n\r\n",
    b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 66_000 + b"\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nContent-Length: 8\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: the-worst\r\nContent-Length: 1\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
)


def bad_requests(server: Server) -> int:
    """Say what is refused, in every way."""
    with all_closed([server.connect() for _ in BAD_REQUESTS]) as connections:
        for connection, request in zip(connections, BAD_REQUESTS, strict=True):
            connection.offer(request)
        for connection, request in zip(connections, BAD_REQUESTS, strict=True):
            assert 400 <= connection.response().status < 600, request
    return len(BAD_REQUESTS)


PATIENT_KINDS: dict[str, Kind] = {
    "ok": lambda server: pipelined(server, get("/fast?leak"), 200),
    "not found": lambda server: pipelined(server, get("/nowhere"), 404),
    "head": lambda server: pipelined(server, get("/fast?leak", method="HEAD"), 200, "HEAD"),
    "connections": lambda server: on_connections_of_their_own(server, get("/fast?leak"), 200),
    "exception": lambda server: on_connections_of_their_own(
        server, get("/failing?OwnBaseException"), 500
    ),
    "bad request": bad_requests,
    "context": lambda server: pipelined(server, get("/context?leak"), 200),
    "upload": lambda server: pipelined(server, post("/upload", b"u" * 3000), 200),
    "chunked upload": lambda server: pipelined(
        server,
        get("/upload", "Transfer-Encoding: chunked", method="POST") + chunked(b"u" * 900, b"v" * 9),
        200,
    ),
    "upload to a file": lambda server: on_connections_of_their_own(
        server, post("/upload", b"u" * 50_000), 200
    ),
    "expecting upload": expecting_upload,
    "aborted upload": aborted_upload,
    "aborted stream": aborted_stream,
    "list": lambda server: pipelined(server, get("/listed?3"), 200),
    "large list": lambda server: on_connections_of_their_own(server, get("/listed?30"), 200),
    "file": lambda server: on_connections_of_their_own(server, get("/spooled?9000"), 200),
    "write and hints": lambda server: pipelined(server, get("/written"), 200),
    "kept environ": lambda server: pipelined(server, get("/keeping"), 200),
    "slow reader": slow_readers,
    "HTTP/1.0 stream": lambda server: on_connections_of_their_own(
        server, get("/suspending?1", version="1.0"), 200
    ),
    "suspended": lambda server: on_connections_of_their_own(
        server, get("/suspending?9000&resumed"), 200
    ),
    "suspended and gone": suspended_and_gone,
}


# Time limits: the connections of a round meet theirs together


def refused_in_time(server: Server, request: bytes) -> int:
    """Send a part of a request and wait for 408."""
    refused = 0
    with all_closed([]) as connections:
        for _ in range(TOGETHER * 5):
            connections.append(server.connect())
            connections[-1].offer(request)
        for connection in connections:
            refused += was_answered(connection, 408)
    return max(1, refused)


def was_answered(connection: Connection, *statuses: int) -> bool:
    """Whether there is a response; on a busy machine a request may come to an idle time-out."""
    try:
        assert connection.response().status in statuses
    except Truncated as error:
        if "a line: b''" not in str(error):
            raise
        return False
    return True


def idle(server: Server) -> int:
    """Make one request, stay, and be closed."""
    answered = 0
    with all_closed([server.connect() for _ in range(TOGETHER * 5)]) as connections:
        # Some may have been closed before they had said anything.
        with contextlib.suppress(OSError, Truncated):
            for connection in connections:
                connection.send(get("/fast?idle"))
                answered += connection.response().status == 200
        for connection in connections:
            connection.read_to_end(reset_counts=True)
    return max(1, answered)


def not_reading(server: Server) -> int:
    """Ask for much, read nothing, and be cut off: a list that is pinned, a parked generator."""
    count = TOGETHER * 2
    with all_closed([server.connect(receive_buffer=4096) for _ in range(count)]) as connections:
        for number, connection in enumerate(connections):
            connection.offer(get("/stream?90&cut" if number % 2 else "/listed?300"))
        for connection in connections:
            wait_for_cut(connection)
    with contextlib.suppress(FileNotFoundError):
        (server.folder / "events").unlink()
    return count


def wait_for_cut(connection: Connection) -> None:
    """Wait, without reading, until the server has given up (or has refused in the first place)."""
    poller = select.poll()
    poller.register(connection.socket, select.POLLRDHUP)
    assert poller.poll(PATIENCE * 1000), "the server has not given up"


def overload(server: Server) -> int:
    """Send more than is let in while every thread is busy: served, or 503 early or late."""
    count = TOGETHER * 3
    with all_closed([server.connect() for _ in range(count)]) as connections:
        for number, connection in enumerate(connections):
            connection.offer(get("/sleep?0.25" if number < 3 else "/fast?overload"))
        for connection in connections:
            was_answered(connection, 200, 503)
    return count


IMPATIENT_KINDS: dict[str, Kind] = {
    "head timeout": lambda server: refused_in_time(server, get("/fast")[:-2]),
    "body timeout": lambda server: refused_in_time(server, post("/upload", b"u" * 300)[:-1]),
    "keep-alive timeout": idle,
    "write timeout": not_reading,
    "overload": overload,
}

KINDS = {**PATIENT_KINDS, **IMPATIENT_KINDS}

#: Kinds whose handlers end with an exception, which is logged.
LOGGING = ("exception", "aborted upload", "write timeout")


def start(servers: Servers, kind: str, target: str = "concurrency:app") -> Server:
    """Start the server that a kind is for."""
    return servers(target, PATIENT if kind in PATIENT_KINDS else IMPATIENT)


def numbers(server: Server) -> dict[str, Any]:
    """Return what must not grow, once every connection is closed."""
    process = Path(f"/proc/{server.process.pid}")
    port = f":{server.port:04X}"

    def closed() -> bool:
        table = Path("/proc/net/tcp").read_text("ascii")
        return not re.search(rf"{port} \S+ 0[18] ", table)

    def settled() -> dict[str, Any] | None:
        try:
            response = server.exchange(get("/numbers", "Connection: close"))
        except (OSError, Truncated):
            # A server with short time limits may give up a client that is not let run.
            return None
        if response.status == 503:
            return None
        assert response.status == 200
        found: dict[str, Any] = response.json()
        # A handler that waits for a thread of its own, or another connection that is not closed.
        return found if found["status"]["connections"] == 1 else None

    wait_until(closed, PATIENCE, lambda: "connections are open")
    found = wait_until(settled, PATIENCE, lambda: "slots are in use")
    wait_until(closed, PATIENCE, lambda: "connections are open")
    found["descriptors"] = len(list((process / "fd").iterdir()))
    found["tasks"] = len(list((process / "task").iterdir()))
    found["slots"] = found["status"]["connections"]
    found["resident"] = server.resident_bytes()
    return found


def repeated(server: Server, kind: str, count: int, seconds: float, count_min: int = 100) -> int:
    """Send so many requests of a kind, or as many as the time allows; return how many."""
    began = time.monotonic()
    sent = 0
    while sent < count and (time.monotonic() - began < seconds or sent < count_min):
        sent += KINDS[kind](server)
    return sent


def grown(before: dict[str, Any], after: dict[str, Any], sent: int) -> list[str]:
    """Return what there is more of than caches and fragmentation explain.

    One object in a hundred requests is a leak where there were many; some come and go whatever was
    asked.
    """
    bounds = {
        "slots": 0,
        "descriptors": 0,
        "tasks": 0,
        "threads": 0,
        "blocks": max(sent // 100, 150),
        "objects": max(sent // 100, 150),
        "heap": 100_000 + 4 * sent,
        "resident": 1_000_000 + 10 * sent,
    }
    found = [
        f"{name}: {before[name]} to {after[name]}"
        for name, bound in bounds.items()
        if after[name] - before[name] > bound
    ]
    found += [
        f"references of {name}: {before['references'][name]} to {count}"
        for name, count in after["references"].items()
        if count - before["references"][name] > max(sent // 100, 150)
    ]
    return found
