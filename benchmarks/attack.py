"""One kind of abusive client; a process of its own, which ends with its stdin.

    python benchmarks/attack.py KIND PORT COUNT

slow_heads, slow_bodies, slow_readers: so many connections that go on for ever, a few bytes at a
time; one that the server ends is replaced. stalled_readers: the same, and they read nothing at
all. new_connections: so many a second, each with one
request. pipeline: one connection that sends as much as is taken. same_fields, new_fields: so many
heads of 60 KiB a second on one connection, with one field name again and again, or with names
that come but once.

Prints "ready" when it is at work, and at the end a line of JSON with what it did.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

HOST = "127.0.0.1"
HELLO = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#: Closing with a reset leaves no connection in TIME_WAIT, which would use up the ports.
RESET = struct.pack("ii", 1, 0)
#: Seconds between two sips of a slow connection.
SIP_SECONDS = 2.0
#: Connections that are opened before the clock is looked at again, and the pause after them: a
#: flood is another attack than this one.
BATCH = 5
PAUSE_SECONDS = 0.01
FIELD_BYTES = 600
FIELDS = 98


class Attack:
    """What all kinds share: non-blocking connections, counted."""

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.count = count
        self.poller = select.epoll()
        self.poller.register(sys.stdin.fileno(), select.EPOLLIN)
        self.open: dict[int, socket.socket] = {}
        self.done: Counter[str] = Counter()
        self.has_ended = False

    def connect(self, first: bytes, receive_buffer: int = 0) -> socket.socket | None:
        """Open a connection that has something to say from the start; None where it failed."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(1)
        try:
            connection.connect((HOST, self.port))
            connection.setblocking(False)
            connection.send(first)
        except OSError:
            self.done["refused"] += 1
            connection.close()
            return None
        self.done["opened"] += 1
        self.open[connection.fileno()] = connection
        return connection

    def drop(self, fd: int) -> None:
        self.done["closed"] += 1
        self.open.pop(fd).close()

    def poll(self, seconds: float) -> list[int]:
        """Descriptors that are ready; notes the end of stdin."""
        ready = [fd for fd, _ in self.poller.poll(max(0.0, seconds))]
        if sys.stdin.fileno() in ready:
            self.has_ended = True
        return [fd for fd in ready if fd != sys.stdin.fileno()]

    def ready(self) -> None:
        print("ready", flush=True)

    def run(self) -> None:
        raise NotImplementedError


class Slow(Attack):
    """Connections that never finish what they do."""

    def __init__(
        self, port: int, count: int, first: bytes, sip: bytes, receive_buffer: int
    ) -> None:
        super().__init__(port, count)
        self.first = first
        #: What is sent from time to time; empty: a little is received instead.
        self.sip = sip
        self.receive_buffer = receive_buffer
        self.due: list[tuple[float, int, int]] = []
        self.number = 0

    def add(self) -> None:
        connection = self.connect(self.first, self.receive_buffer)
        if connection is None:
            return
        # The server's end is an event; what it says before is none of our business.
        self.poller.register(connection, select.EPOLLRDHUP | select.EPOLLET)
        self.plan(connection.fileno(), SIP_SECONDS * (self.number % 1000) / 1000)

    def plan(self, fd: int, seconds: float) -> None:
        self.number += 1
        heapq.heappush(self.due, (time.monotonic() + seconds, self.number, fd))

    def take_sip(self, fd: int) -> None:
        connection = self.open.get(fd)
        if connection is None:
            return
        try:
            if self.sip:
                connection.send(self.sip)
            else:
                connection.recv(512)
        except BlockingIOError:
            pass
        except OSError:
            return self.drop(fd)
        self.done["sips"] += 1
        self.plan(fd, SIP_SECONDS)

    def fill(self) -> None:
        for _ in range(min(BATCH, self.count - len(self.open))):
            self.add()

    def run(self) -> None:
        is_ready = False
        while not self.has_ended:
            missing = len(self.open) < self.count
            if not missing and not is_ready:
                is_ready = True
                self.ready()
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                self.take_sip(heapq.heappop(self.due)[2])
            wait = PAUSE_SECONDS if missing or not self.due else self.due[0][0] - now
            for fd in self.poll(min(wait, 0.5)):
                if fd in self.open:
                    self.drop(fd)
            self.fill()


class Stalled(Slow):
    """Connections that ask and read nothing."""

    def plan(self, fd: int, seconds: float) -> None:
        """Nothing is ever due."""


class NewConnections(Attack):
    """So many a second; each makes a request and is gone with its answer."""

    def run(self) -> None:
        self.ready()
        began = time.monotonic()
        while not self.has_ended:
            owed = int((time.monotonic() - began) * self.count) - self.done["opened"]
            for _ in range(min(owed, 100)):
                connection = self.connect(HELLO)
                if connection is not None:
                    self.poller.register(connection, select.EPOLLIN)
            for fd in self.poll(0.001):
                if fd in self.open:
                    self.drop(fd)


class Pipeline(Attack):
    """One connection that always has requests waiting."""

    def run(self) -> None:
        requests = HELLO * 200
        connection = self.connect(HELLO)
        if connection is None:
            raise SystemExit("cannot connect")
        self.poller.register(connection, select.EPOLLIN | select.EPOLLOUT)
        self.ready()
        rest = requests
        while not self.has_ended:
            self.poll(1)
            try:
                while sent := connection.send(rest):
                    self.done["bytes sent"] += sent
                    rest = rest[sent:] or requests
            except BlockingIOError:
                pass
            try:
                while data := connection.recv(1 << 16):
                    self.done["answers"] += data.count(b"HTTP/1.1 200")
            except BlockingIOError:
                pass


class Fields(Attack):
    """One connection with so many large heads a second, one at a time."""

    def __init__(self, port: int, count: int, name: Callable[[int], str]) -> None:
        super().__init__(port, count)
        self.name = name

    def head(self) -> bytes:
        start = self.done["heads"] * FIELDS
        value = "v" * (FIELD_BYTES - 20)
        lines = [f"{self.name(start + number)}: {value}" for number in range(FIELDS)]
        return ("GET / HTTP/1.1\r\nHost: a\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()

    def run(self) -> None:
        connection = self.connect(HELLO)
        if connection is None:
            raise SystemExit("cannot connect")
        connection.settimeout(5)
        connection.recv(4096)
        self.ready()
        began = time.monotonic()
        while not self.has_ended:
            ahead = self.done["heads"] / self.count - (time.monotonic() - began)
            self.poll(ahead)
            connection.sendall(self.head())
            answer = connection.recv(4096)
            self.done["answers"] += answer.startswith(b"HTTP/1.1 200")
            self.done["heads"] += 1


def attack_of(kind: str, port: int, count: int) -> Attack:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    large = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
    if kind == "slow_heads":
        return Slow(port, count, head, b"X-a: b\r\n", 0)
    if kind == "slow_bodies":
        return Slow(port, count, body, b"x", 0)
    if kind == "slow_readers":
        return Slow(port, count, large, b"", 4096)
    if kind == "stalled_readers":
        return Stalled(port, count, large, b"", 4096)
    if kind == "new_connections":
        return NewConnections(port, count)
    if kind == "pipeline":
        return Pipeline(port, count)
    if kind == "same_fields":
        return Fields(port, count, lambda number: "X-Same")
    if kind == "new_fields":
        return Fields(port, count, lambda number: f"X-New-{number:09}")
    raise SystemExit(f"attack.py: no kind is called {kind!r}")


def main() -> None:
    kind, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    attack = attack_of(kind, port, count)
    before = os.times()
    try:
        attack.run()
    except OSError as error:
        attack.done[f"ended by {error!r}"] = 1
    used = os.times()
    cpu = used.user + used.system - before.user - before.system
    print(json.dumps({**attack.done, "open": len(attack.open), "cpu_seconds": cpu}), flush=True)


if __name__ == "__main__":
    main()
