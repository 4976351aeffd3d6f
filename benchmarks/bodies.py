"""What bodies of any size cost serve-zig: memory, and the requests beside them.

    python benchmarks/bodies.py [--only NAME] [--gib N] [--rounds N] [--seconds N] [--output FOLDER]

upload, download: one body of so many GiB; how much the server's resident memory grows.
uploads: 200 clients that send 50 KB/s each, beside the 13-byte workload.
events: 10,000 event streams on 8 threads, all woken once a second, beside the same.

The server is held on the first core, its clients on the second. Writes bodies.md, bodies.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from load import (
    HOST,
    Figures,
    finish_client,
    free_port,
    pinned,
    start_wrk,
    wait_until_answering,
)
from peers import environment, python
from process import Process
from workloads import HERE, Load, Workload

ROOT = HERE.parent
GIB = 1 << 30
SERVER_CORES = [0]
CLIENT_CORES = [1]
HELLO = Workload("bodies", "13-byte reply", "bodies", (Load("hello", "/", 64),))
UPLOADS = 200
UPLOAD_RATE = 50_000
STREAMS = 10_000
MEMORY_BAR = 8 << 20
STREAM_BAR = 8 << 10


@dataclass(frozen=True)
class Bar:
    """One line of the report."""

    name: str
    text: str
    figure: str
    met: bool


@contextlib.contextmanager
def server(threads: int | None = None) -> Iterator[tuple[Process, int]]:
    """A server of the application `bodies`, ready."""
    port = free_port()
    lines = [
        "[app]",
        f"target = {json.dumps(HELLO.target)}",
        f"directory = {json.dumps(str(ROOT))}",
        "[listen]",
        f'bind = "{HOST}:{port}"',
        "[limits]",
        'body = "64 GiB"',
        f"connections = {STREAMS + 1000}",
        "[timeouts]",
        "drain = 0.5",
    ]
    if threads is not None:
        lines += ["[concurrency]", f"threads = {threads}"]
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "serve.toml"
        config.write_text("\n".join(lines) + "\n")
        command = python("-m", "serve_zig", "-c", str(config))
        with Process(
            command, cores=SERVER_CORES, directory=ROOT, environment=environment(0)
        ) as process:
            wait_until_answering(process, port, HELLO)
            yield process, port


class Peak:
    """The most resident memory while it is open, in bytes beyond what it was before."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._stopping = threading.Event()
        self._before = process.memory().rss
        self._most = self._before
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(0.02):
            self._most = max(self._most, self._process.memory().rss)

    @property
    def growth(self) -> int:
        return (self._most - self._before) * 1024


def transfer(name: str, gib: float, run: Callable[[int, int], int]) -> Bar:
    size = int(gib * GIB)
    with server() as (process, port):
        # Once small, so that what is made once does not count.
        run(port, 1 << 20)
        began = time.monotonic()
        with Peak(process) as peak:
            assert run(port, size) == size
        seconds = time.monotonic() - began
    figure = f"{peak.growth / (1 << 20):.1f} MiB, {size / seconds / 1e6:,.0f} MB/s"
    text = f"{gib:g} GiB {name} with at most 8 MiB more memory"
    return Bar(name, text, figure, peak.growth <= MEMORY_BAR)


def upload(port: int, size: int) -> int:
    block = bytes(1 << 20)
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(
            f"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        left = size
        while left:
            part = min(left, len(block))
            connection.sendall(memoryview(block)[:part])
            left -= part
        answer = connection.recv(65536)
    return int(answer.rpartition(b"\r\n")[2])


def download(port: int, size: int) -> int:
    buffer = bytearray(1 << 20)
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(f"GET /download/{size} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        first = connection.recv(65536)
        while b"\r\n\r\n" not in first:
            first += connection.recv(65536)
        received = len(first.partition(b"\r\n\r\n")[2])
        while received < size:
            count = connection.recv_into(buffer)
            if count == 0:
                break
            received += count
    return received


def load_hello(port: int, seconds: int) -> Figures:
    return finish_client(start_wrk(port, HELLO.loads[0], seconds, CLIENT_CORES), seconds)


class Beside:
    """Clients in a process of their own: `bodies.py --client KIND PORT COUNT`."""

    def __init__(self, kind: str, port: int, count: int) -> None:
        command = [*pinned(CLIENT_CORES), sys.executable, str(HERE / "bodies.py"), "--client"]
        self._child = subprocess.Popen(
            [*command, kind, str(port), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def count(self) -> int:
        """Whatever the kind of client counts."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        return int(self._line())

    def stop(self) -> None:
        self._child.kill()
        self._child.communicate()


@contextlib.contextmanager
def beside(kind: str, port: int, count: int) -> Iterator[Beside]:
    client = Beside(kind, port, count)
    try:
        yield client
    finally:
        client.stop()


def uploads(rounds: int, seconds: int) -> list[Bar]:
    ratios, rates = [], []
    with server() as (_, port):
        load_hello(port, 1)
        for _ in range(rounds):
            alone = load_hello(port, seconds)
            with beside("uploads", port, UPLOADS) as client:
                before, began = client.count(), time.monotonic()
                both = load_hello(port, seconds)
                rates.append((client.count() - before) / (time.monotonic() - began))
            ratios.append(both.rate / alone.rate)
    ratio, rate = statistics.median(ratios), statistics.median(rates)
    text = f"{UPLOADS} uploads at 50 KB/s cost the 13-byte workload under 10 %"
    figure = f"{ratio:.3f} of its rate, at {rate / UPLOADS / 1000:.1f} KB/s each"
    return [Bar("uploads", text, figure, ratio > 0.9 and rate > 0.9 * UPLOADS * UPLOAD_RATE)]


def events(rounds: int, seconds: int) -> list[Bar]:
    p99s, rates = [], []
    with server(threads=8) as (process, port):
        load_hello(port, 1)
        # So many at once that what is made once is there; they leave again.
        with beside("events", port, 300):
            time.sleep(1.5)
        time.sleep(2.5)
        before = process.memory().rss
        with beside("events", port, STREAMS) as client:
            time.sleep(3)
            each = (process.memory().rss - before) * 1024 / STREAMS
            for _ in range(rounds):
                count, began = client.count(), time.monotonic()
                figures = load_hello(port, seconds)
                rates.append((client.count() - count) / (time.monotonic() - began))
                p99s.append(figures.p99)
    p99, rate = statistics.median(p99s), statistics.median(rates)
    return [
        Bar(
            "events",
            f"{STREAMS:,} event streams on 8 threads at most 8 KiB each",
            f"{each / 1024:.1f} KiB",
            each <= STREAM_BAR,
        ),
        Bar(
            "events",
            "woken once a second, with the 13-byte workload's p99 under 10 ms",
            f"p99 {p99:.1f} ms (rounds {', '.join(f'{value:.1f}' for value in p99s)}), "
            f"{rate:,.0f} events/s",
            p99 < 10 and rate > 0.9 * STREAMS,
        ),
    ]


# ---- The clients ---------------------------------------------------------------------------------


def run_client(kind: str, port: int, count: int) -> None:
    """Counts until stdin ends: bytes sent, or events received."""
    import select

    poller = select.epoll()
    connections: dict[int, socket.socket] = {}
    for _ in range(count):
        connection = socket.create_connection((HOST, port))
        if kind == "uploads":
            size = UPLOAD_RATE * 3600
            connection.sendall(
                f"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode()
            )
        else:
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            poller.register(connection, select.EPOLLIN)
        connection.setblocking(False)
        connections[connection.fileno()] = connection
    print("ready", flush=True)
    poller.register(0, select.EPOLLIN)
    total = 0
    step = 0.1
    part = bytes(int(UPLOAD_RATE * step))
    due = time.monotonic()
    while True:
        due += step
        if kind == "uploads":
            for connection in connections.values():
                with contextlib.suppress(BlockingIOError):
                    total += connection.send(part)
        while (left := due - time.monotonic()) > 0:
            for fd, _ in poller.poll(left, 256):
                if fd == 0:
                    if not os.read(0, 100):
                        return
                    print(total, flush=True)
                else:
                    total += connections[fd].recv(65536).count(b"data: tick")


# ---- The report ----------------------------------------------------------------------------------


def write_report(bars: list[Bar], folder: Path, what: str) -> None:
    lines = ["# Bodies of any size", "", what, "", "| bar | figure | met |", "| --- | --- | --- |"]
    lines += [f"| {bar.text} | {bar.figure} | {'yes' if bar.met else '**no**'} |" for bar in bars]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bodies.md").write_text("\n".join(lines) + "\n")
    (folder / "bodies.json").write_text(json.dumps([asdict(bar) for bar in bars], indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["upload", "download", "uploads", "events"])
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--client", nargs=3, metavar=("KIND", "PORT", "COUNT"))
    options = parser.parse_args()
    if options.client:
        kind, port, count = options.client
        return run_client(kind, int(port), int(count))
    parts: dict[str, Callable[[], list[Bar]]] = {
        "upload": lambda: [transfer("upload", options.gib, upload)],
        "download": lambda: [transfer("download", options.gib, download)],
        "uploads": lambda: uploads(options.rounds, options.seconds),
        "events": lambda: events(options.rounds, options.seconds),
    }
    bars: list[Bar] = []
    for name, run in parts.items():
        if options.only in (None, name):
            bars += run()
            print(*(f"{bar.text}: {bar.figure}" for bar in bars[-2:]), sep="\n", flush=True)
    what = (
        f"Medians of {options.rounds} rounds of {options.seconds} s; the server on one core, its "
        "clients on another. Written by benchmarks/bodies.py."
    )
    if options.only is None:
        write_report(bars, options.output, what)


if __name__ == "__main__":
    main()
