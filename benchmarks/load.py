"""Loads a server with wrk or at a fixed rate, after making sure that it answers as expected."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from process import Process
from workloads import HERE, Load, Workload

HOST = "127.0.0.1"
START_SECONDS = 30.0
# Beyond its own duration: wrk connects first, and waits for its threads at the end.
CLIENT_SPARE_SECONDS = 20


class LoadError(Exception):
    """The server could not be measured; the message is for the report."""


@dataclass(frozen=True)
class Figures:
    """What one client saw. Latencies are in milliseconds.

    Where no request was answered at all they are the length of the run: no less is known of them,
    and zero would read as the best there is.
    """

    requests: int
    rate: float
    p50: float
    p99: float
    p999: float
    errors: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def request(port: int, workload: Workload, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    with contextlib.closing(connection):
        body = b"x" * 10240 if workload.method == "POST" else None
        connection.request(workload.method, path, body)
        reply = connection.getresponse()
        return reply.status, reply.read()


def wait_until_answering(server: Process, port: int, workload: Workload) -> None:
    path = workload.loads[0].path if workload.loads else "/"
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            status, body = request(port, workload, path)
            break
        except (OSError, http.client.HTTPException) as error:
            if not server.running:
                raise LoadError(f"ended while starting: {server.log()}") from None
            if time.monotonic() > deadline:
                raise LoadError(f"does not answer: {error!r} {server.log()}") from None
            time.sleep(0.05)
    if status != 200 or len(body) != workload.reply_bytes:
        raise LoadError(f"answers {status} with {len(body)} bytes: {server.log()}")
    if workload.reply is not None and body != workload.reply:
        raise LoadError(f"answers {body[:40]!r}")


def pinned(cores: Sequence[int]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores))] if cores else []


def start_wrk(port: int, load: Load, seconds: int, cores: Sequence[int]) -> subprocess.Popen[str]:
    command = [
        *pinned(cores),
        *("wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout", "2s", "--latency"),
        *("-s", str(HERE / "wrk" / load.script), f"http://{HOST}:{port}{load.path}"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_open_loop(
    port: int, load: Load, seconds: int, cores: Sequence[int]
) -> subprocess.Popen[str]:
    command = [
        *pinned(cores),
        *(sys.executable, str(HERE / "open_loop.py"), str(port), load.path),
        *(str(load.connections), str(load.open_rate), str(seconds)),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_client(client: subprocess.Popen[str], seconds: int) -> Figures:
    """The figures of wrk, or of open_loop.py."""
    try:
        output, complaint = client.communicate(timeout=seconds + CLIENT_SPARE_SECONDS)
    except subprocess.TimeoutExpired:
        raise LoadError("the client did not end") from None
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if client.returncode != 0 or not lines:
        raise LoadError(f"the client failed: {(complaint or output).strip()[-300:]}")
    raw: dict[str, float] = json.loads(lines[-1])
    latencies = [raw[name] / 1000 for name in ("p50", "p99", "p999")]
    if raw["requests"] == 0:
        latencies = [raw["microseconds"] / 1000] * 3
    kinds = ("connect", "read", "write", "status", "timeout")
    return Figures(
        requests=int(raw["requests"]),
        rate=raw["requests"] / raw["microseconds"] * 1e6,
        p50=latencies[0],
        p99=latencies[1],
        p999=latencies[2],
        errors=int(sum(raw[kind] for kind in kinds)),
    )


def run_loads(
    port: int, workload: Workload, seconds: int, cores: Sequence[int], *, is_open: bool = False
) -> dict[str, Figures]:
    """All loads of the workload at once; figures by the name of the load.

    With ``is_open`` those that have a rate keep to it, and the figures are of these alone.
    """
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for load in workload.loads:
            start = start_open_loop if is_open and load.open_rate is not None else start_wrk
            running[load.name] = start(port, load, seconds, cores)
        figures = {name: finish_client(client, seconds) for name, client in running.items()}
    finally:
        for client in running.values():
            if client.poll() is None:
                client.kill()
                client.communicate()
    rated = {load.name for load in workload.loads if load.open_rate is not None}
    return {name: one for name, one in figures.items() if not is_open or name in rated}


class IdleConnections:
    """The client process of idle.py."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.answered = self._number()

    def _number(self) -> int:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise LoadError("the client of the idle connections failed")
        return int(line)

    def still_open(self) -> int:
        assert self._child.stdin is not None
        self._child.stdin.write("count\n")
        self._child.stdin.flush()
        return self._number()


@contextlib.contextmanager
def idle_connections(port: int, count: int, cores: Sequence[int]) -> Iterator[IdleConnections]:
    child = subprocess.Popen(
        [*pinned(cores), sys.executable, str(HERE / "idle.py"), str(port), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield IdleConnections(child)
    finally:
        child.kill()
        child.communicate()


def wrk_version() -> str:
    """wrk prints its version with its usage, and then exits with a failure."""
    output = subprocess.run(["wrk", "-v"], capture_output=True, text=True)
    words = (output.stdout + output.stderr).split()
    return words[1] if len(words) > 1 else "unknown"
