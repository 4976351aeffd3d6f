"""Holds many keep-alive connections open; a process of its own, told what to do by lines on stdin.

    python benchmarks/idle.py PORT COUNT

Each connection makes one request and then stays silent. Prints the number of those that were
answered, then, for each line read, the number of those still open; ends with stdin.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive\r\n\r\n"
BATCH = 200
OPEN_SECONDS = 20.0
# Closing with a reset leaves no connection in TIME_WAIT, which would use up the ports of a machine
# within a few servers.
RESET = struct.pack("ii", 1, 0)


class Client:
    def __init__(self, port: int) -> None:
        self.port = port
        self.poller = select.epoll()
        self.open: dict[int, socket.socket] = {}
        self.answered = 0

    def fill(self, count: int) -> None:
        deadline = time.monotonic() + OPEN_SECONDS
        while self.answered < count and time.monotonic() < deadline:
            batch = min(BATCH, count - self.answered)
            answered = self.add(batch, min(deadline, time.monotonic() + 5))
            if answered == 0:
                return
            self.answered += answered

    def add(self, count: int, deadline: float) -> int:
        waiting: dict[int, bytes] = {}
        for _ in range(count):
            if time.monotonic() > deadline:
                break
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.settimeout(2)
            try:
                connection.connect(("127.0.0.1", self.port))
                connection.sendall(REQUEST)
            except OSError:
                connection.close()
                continue
            connection.setblocking(False)
            fd = connection.fileno()
            self.open[fd] = connection
            waiting[fd] = b""
            self.poller.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        answered = 0
        while waiting and time.monotonic() < deadline:
            for fd, _ in self.poller.poll(0.1):
                if fd in waiting:
                    waiting[fd] += self.read(fd)
                    if b"Hello, World!" in waiting[fd] or fd not in self.open:
                        answered += fd in self.open
                        del waiting[fd]
                else:
                    self.read(fd)
        for fd in waiting:
            self.drop(fd)
        return answered

    def read(self, fd: int) -> bytes:
        """What has arrived; drops the connection at its end."""
        received = b""
        try:
            while part := self.open[fd].recv(4096):
                received += part
        except BlockingIOError:
            return received
        except OSError:
            pass
        self.drop(fd)
        return received

    def drop(self, fd: int) -> None:
        if fd in self.open:
            self.open.pop(fd).close()

    def still_open(self) -> int:
        while events := self.poller.poll(0):
            for fd, _ in events:
                self.read(fd)
        return len(self.open)


def main() -> None:
    port, count = map(int, sys.argv[1:])
    client = Client(port)
    client.fill(count)
    print(client.answered, flush=True)
    for _ in sys.stdin:
        print(client.still_open(), flush=True)


if __name__ == "__main__":
    main()
