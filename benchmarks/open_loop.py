"""Sends requests at a fixed rate, whatever the server does, and tells how late the answers came.

wrk sends a request on a connection when the one before it is answered (a closed loop): while the
server stands still nothing is sent, and what would have waited is missing from the percentiles
("coordinated omission"). Here each request has a time at which it is due, and its latency is
counted from then, as wrk2 does it. A connection has one request in flight; what becomes due
meanwhile is sent when its answer has come. A request that is not answered at the end counts as an
error, with the time that it has waited.

    python benchmarks/open_loop.py PORT PATH CONNECTIONS RATE SECONDS

Prints one line of JSON, with the names of wrk/report.lua and times in microseconds. `behind` is
the 99th percentile of how late this program was itself, where the connection was free.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

HOST = "127.0.0.1"
RECEIVE_BYTES = 1 << 18
# As wrk's --timeout.
TIME_OUT_SECONDS = 2.0


class Answer:
    """How much of a response is still to come."""

    def __init__(self) -> None:
        self._head = b""
        self._left: int | None = None
        self.status = 0

    def take(self, data: bytes) -> bool:
        """Return whether the response is complete; raise ValueError for one without a length."""
        if self._left is None:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            self.status = int(head[9:12])
            self._left = content_length(head) - len(rest)
        else:
            self._left -= len(data)
        return self._left <= 0


def content_length(head: bytes) -> int:
    """Of a response's head; raise ValueError where there is none."""
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    raise ValueError("a response without Content-Length cannot be told from the next one")


class Connection:
    """One connection: at most one request in flight, and the times of those that are due."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), TIME_OUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due: deque[float] = deque()
        self.answer: Answer | None = None

    def fileno(self) -> int:
        return self.socket.fileno()


class OpenLoop:
    """The whole load: ``run`` returns what report.lua would print."""

    def __init__(self, port: int, path: str, connections: int, rate: float) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()
        self._connections = [Connection(port) for _ in range(connections)]
        self._interval = 1 / rate
        self._poll = select.epoll()
        self._by_descriptor = {one.fileno(): one for one in self._connections}
        for one in self._connections:
            self._poll.register(one.fileno(), select.EPOLLIN)
        self._latencies: list[float] = []
        self._behind: list[float] = []
        self._errors = {"connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0}
        self._answered = 0

    def run(self, seconds: float) -> dict[str, float]:
        """Load the server for so long, and wait for the last answers."""
        began = time.monotonic()
        end = began + seconds
        number = 0
        while (now := time.monotonic()) < end:
            # Request N belongs to connection N modulo their number, as wrk2 spreads them.
            while (due := began + number * self._interval) <= now:
                one = self._connections[number % len(self._connections)]
                one.due.append(due)
                if one.answer is None:
                    self._behind.append(now - due)
                    self._send(one)
                number += 1
            self._receive(max(0.0, min(due, end) - time.monotonic()))
        limit = end + TIME_OUT_SECONDS
        while any(one.due for one in self._connections) and time.monotonic() < limit:
            self._receive(0.05)
        self._give_up()
        return self._figures(seconds)

    def close(self) -> None:
        """Close every connection."""
        self._poll.close()
        for one in self._connections:
            one.socket.close()

    def _send(self, one: Connection) -> None:
        one.answer = Answer()
        try:
            one.socket.send(self._request)
        except OSError:
            self._fail(one, "write")

    def _receive(self, seconds: float) -> None:
        # epoll's own time-out has a resolution of a millisecond.
        if seconds > 0 and not select.select([self._poll], [], [], seconds)[0]:
            return
        for descriptor, _ in self._poll.poll(0):
            one = self._by_descriptor[descriptor]
            try:
                data = one.socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._fail(one, "read")
            elif one.answer is not None and one.answer.take(data):
                self._complete(one)

    def _complete(self, one: Connection) -> None:
        assert one.answer is not None
        self._latencies.append(time.monotonic() - one.due.popleft())
        self._answered += 1
        if one.answer.status >= 400:
            self._errors["status"] += 1
        one.answer = None
        if one.due:
            self._send(one)

    def _fail(self, one: Connection, kind: str) -> None:
        """What waits on this connection will not be answered."""
        self._poll.unregister(one.fileno())
        one.socket.close()
        self._drop(one, kind)
        self._connections.remove(one)
        if not self._connections:
            raise ConnectionError("the server has closed every connection")

    def _give_up(self) -> None:
        for one in self._connections:
            self._drop(one, "timeout")

    def _drop(self, one: Connection, kind: str) -> None:
        now = time.monotonic()
        self._latencies += [now - due for due in one.due]
        self._errors[kind] += len(one.due)
        one.due.clear()

    def _figures(self, seconds: float) -> dict[str, float]:
        self._latencies.sort()
        self._behind.sort()
        return {
            "requests": self._answered,
            "microseconds": seconds * 1e6,
            "p50": percentile(self._latencies, 0.50) * 1e6,
            "p99": percentile(self._latencies, 0.99) * 1e6,
            "p999": percentile(self._latencies, 0.999) * 1e6,
            "behind": percentile(self._behind, 0.99) * 1e6,
            **self._errors,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 where there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def main(arguments: Sequence[str]) -> int:
    port, path, connections, rate, seconds = arguments
    gc.disable()
    load = OpenLoop(int(port), path, int(connections), float(rate))
    try:
        print(json.dumps(load.run(float(seconds))))
    finally:
        load.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
