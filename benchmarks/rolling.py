"""Rolling restarts behind a real proxy, under load: not one request may fail.

Two serve-zig processes stand behind HAProxy or nginx. One after the other is stopped with SIGTERM,
waited for, started again, and waited for until the proxy uses it, while clients go on asking. Each
answer is checked; whatever is not the whole, right answer is a failure. Nothing is retried by the
clients. HAProxy asks /readyz and retries nothing either. nginx has no health checks of its own in
its free edition: it meets a server that is gone and turns to the other, as its defaults have it.

    python benchmarks/rolling.py --proxy haproxy --restarts 50 --requests 200000
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 30.0
ANSWER_SECONDS = 30.0

# Longer than the proxy needs to hear of it: five checks.
DRAIN_DELAY_SECONDS = 0.5
CHECK_MILLISECONDS = 100


class RollingError(Exception):
    """The run could not be made; the message says why."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RollingError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.02)


# ---- The servers ---------------------------------------------------------------------------------


class Backend:
    """One serve-zig process, again and again on the same port."""

    def __init__(self, name: str, folder: Path, drain_delay: float) -> None:
        self.name = name
        self.port = free_port()
        self.admin_port = free_port()
        self.folder = folder
        self.exits: Counter[int] = Counter()
        self.stop_seconds: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / f"{name}.toml"
        self._config.write_text(
            "[app]\n"
            'target = "rolling:app"\n'
            f'directory = "{ROOT / "benchmarks" / "applications"}"\n'
            f'[listen]\nbind = "{HOST}:{self.port}"\n'
            f"[timeouts]\ndrain_delay = {drain_delay}\ndrain = 20.0\n"
            f'[admin]\nbind = "{HOST}:{self.admin_port}"\n'
        )

    def start(self) -> None:
        log = open(self.folder / f"{self.name}.log", "ab")  # noqa: SIM115 - the child's
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve_zig", "-c", str(self._config)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RollingError(
                f"{self.name} ended: {(self.folder / f'{self.name}.log').read_text()}"
            )
        try:
            with urllib.request.urlopen(
                f"http://{HOST}:{self.admin_port}/readyz", timeout=ANSWER_SECONDS
            ) as got:
                return bool(got.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        self.exits[status] += 1
        self.stop_seconds.append(time.monotonic() - began)


# ---- The proxies ---------------------------------------------------------------------------------


class Proxy:
    """A proxy in the foreground, with a config of ours."""

    name: str

    def __init__(self, backends: list[Backend], folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "proxy.conf").write_text(self.config(backends))

    def config(self, backends: list[Backend]) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def uses(self, backend: Backend) -> bool:
        """Whether the proxy sends requests to this one."""
        raise NotImplementedError

    def start(self) -> None:
        with open(self.folder / "proxy.log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self.accepts, START_SECONDS, "the proxy")

    def accepts(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RollingError(f"the proxy ended: {(self.folder / 'proxy.log').read_text()}")
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)


class HAProxy(Proxy):
    """Health checks on /readyz, and nothing that would hide a failure: no retry, no redispatch.

    Without `timeout check` an answer later than `inter` counts as none, and a busy machine would
    take both servers out.
    """

    name = "haproxy"

    def config(self, backends: list[Backend]) -> str:
        servers = "\n".join(
            f"    server {one.name} {HOST}:{one.port} check port {one.admin_port} "
            f"inter {CHECK_MILLISECONDS}ms fall 1 rise 1"
            for one in backends
        )
        return f"""\
global
    maxconn 2000
    stats socket {self.folder}/haproxy.sock level user
defaults
    mode http
    timeout connect 5s
    timeout check 5s
    timeout client 60s
    timeout server 60s
    retries 0
frontend front
    bind {HOST}:{self.port}
    default_backend back
backend back
    balance roundrobin
    option httpchk GET /readyz
    http-reuse always
{servers}
"""

    def command(self) -> list[str]:
        return ["haproxy", "-q", "-db", "-f", str(self.folder / "proxy.conf")]

    def uses(self, backend: Backend) -> bool:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(ANSWER_SECONDS)
            try:
                control.connect(str(self.folder / "haproxy.sock"))
            except OSError:  # HAProxy gives it its name when it listens already
                return False
            control.sendall(b"show stat\n")
            text = b""
            while part := control.recv(65536):
                text += part
        rows = csv.DictReader(io.StringIO(text.decode().lstrip("# ")))
        states = {row["svname"]: row["status"] for row in rows if row["pxname"] == "back"}
        return states[backend.name] == "UP"


class Nginx(Proxy):
    """Its defaults: a server that cannot be reached, or that says nothing, is passed over."""

    name = "nginx"

    def config(self, backends: list[Backend]) -> str:
        servers = "\n".join(f"        server {HOST}:{one.port} max_fails=0;" for one in backends)
        return f"""\
daemon off;
master_process off;
pid {self.folder}/nginx.pid;
error_log {self.folder}/nginx-error.log warn;
events {{ worker_connections 2000; }}
http {{
    access_log off;
    client_body_temp_path {self.folder}/body;
    proxy_temp_path {self.folder}/proxy;
    fastcgi_temp_path {self.folder}/fastcgi;
    uwsgi_temp_path {self.folder}/uwsgi;
    scgi_temp_path {self.folder}/scgi;
    keepalive_requests 1000000;
    upstream back {{
{servers}
        keepalive 32;
    }}
    server {{
        listen {HOST}:{self.port};
        location / {{
            proxy_pass http://back;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""

    def command(self) -> list[str]:
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "proxy.conf")]

    def uses(self, backend: Backend) -> bool:
        return backend.is_ready()


PROXIES = {one.name: one for one in (HAProxy, Nginx)}


# ---- The clients ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """What the clients saw."""

    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    processes: set[str] = field(default_factory=set)
    longest: float = 0.0


class Client:
    """One connection after the other to the proxy, one request after the other on each."""

    def __init__(self, port: int, tally: Tally, seed: int) -> None:
        self._port = port
        self._tally = tally
        self._random = random.Random(seed)

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection(HOST, self._port)
            except OSError as error:
                self._tally.failures[f"connect: {type(error).__name__}"] += 1
                await asyncio.sleep(0.05)
                continue
            try:
                while not stop.is_set() and await self._ask(reader, writer):
                    pass
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send one request and check its answer; False when the connection is done with."""
        request, expected = self._choose()
        began = time.monotonic()
        try:
            writer.write(request)
            async with asyncio.timeout(ANSWER_SECONDS):
                keeps = await self._read_answer(reader, expected)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self._tally.failures[f"{type(error).__name__}: {str(error)[:60]}"] += 1
            return False
        self._tally.answered += 1
        self._tally.longest = max(self._tally.longest, time.monotonic() - began)
        return keeps

    def _choose(self) -> tuple[bytes, bytes]:
        number = self._random.random()
        if number < 0.85:
            return b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n", b"hello"
        if number < 0.95:
            body = b"x" * self._random.randrange(1, 20_000)
            head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            return head + body, body
        if number < 0.99:
            milliseconds = self._random.randrange(10, 100)
            return b"GET /sleep?%d HTTP/1.1\r\nHost: a\r\n\r\n" % milliseconds, b"slept"
        return b"GET /stream?10 HTTP/1.1\r\nHost: a\r\n\r\n", b"123456789\n" * 10

    async def _read_answer(self, reader: asyncio.StreamReader, expected: bytes) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        if " 200 " not in head[0]:
            raise ValueError(head[0])
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:-2])
        }
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(fields["content-length"]))
        if body != expected:
            raise ValueError(f"{len(body)} bytes, and not the {len(expected)} expected")
        self._tally.processes.add(fields["x-process"])
        return fields.get("connection", "").lower() != "close"


# ---- The run -------------------------------------------------------------------------------------


async def roll(
    proxy: Proxy, backends: list[Backend], restarts: int, requests: int, clients: int
) -> dict[str, Any]:
    """Load the proxy until so many restarts and requests are done, and return what was seen."""
    tally = Tally()
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(Client(proxy.port, tally, seed).run(stop)) for seed in range(clients)
    ]
    began = time.monotonic()
    done = 0
    try:
        while done < restarts or tally.answered < requests:
            if done < restarts or tally.answered < requests * 0.99:
                await asyncio.to_thread(restart, backends[done % 2], proxy)
                done += 1
            else:
                await asyncio.sleep(0.1)
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    seconds = time.monotonic() - began
    stops = sorted(one for backend in backends for one in backend.stop_seconds)
    exits = sum((backend.exits for backend in backends), Counter[int]())
    return {
        "proxy": proxy_version(type(proxy)),
        "restarts": done,
        "requests": tally.answered + tally.failures.total(),
        "failed": tally.failures.total(),
        "failures": dict(tally.failures),
        "seconds": round(seconds, 1),
        "processes": len(tally.processes),
        "longest_answer": round(tally.longest, 3),
        "exit_statuses": {str(status): count for status, count in exits.items()},
        "median_stop": round(stops[len(stops) // 2], 3) if stops else 0,
        "longest_stop": round(stops[-1], 3) if stops else 0,
    }


def restart(backend: Backend, proxy: Proxy) -> None:
    backend.stop()
    backend.start()
    wait_until(backend.is_ready, START_SECONDS, f"the start of {backend.name}")
    wait_until(lambda: proxy.uses(backend), START_SECONDS, f"{backend.name} in the proxy")


def proxy_version(proxy: type[Proxy]) -> str:
    done = subprocess.run([proxy.name, "-v"], capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).splitlines()[0]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rolling", dir="/tmp") as name:
        folder = Path(name)
        backends = [Backend(one, folder, arguments.drain_delay) for one in ("first", "second")]
        proxy = PROXIES[arguments.proxy](backends, folder)
        try:
            for backend in backends:
                backend.start()
            for backend in backends:
                wait_until(backend.is_ready, START_SECONDS, f"the start of {backend.name}")
            proxy.start()
            for backend in backends:
                wait_until(
                    lambda one=backend: proxy.uses(one),
                    START_SECONDS,
                    f"{backend.name} in the proxy",
                )
            return asyncio.run(
                roll(proxy, backends, arguments.restarts, arguments.requests, arguments.clients)
            )
        finally:
            proxy.stop()
            for backend in backends:
                backend.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Rolling restarts behind a proxy, under load.")
    parser.add_argument("--proxy", choices=sorted(PROXIES), default="haproxy")
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--drain-delay", type=float, default=DRAIN_DELAY_SECONDS)
    arguments = parser.parse_args()
    if shutil.which(arguments.proxy) is None:
        name = arguments.proxy
        print(f"rolling.py: {name} is not installed (Debian: apt install {name})")
        return 2
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    found = run(arguments)
    print(json.dumps(found, indent=2))
    return 1 if found["failed"] or set(found["exit_statuses"]) != {"0"} else 0


if __name__ == "__main__":
    sys.exit(main())
