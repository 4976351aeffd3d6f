"""The servers: how each is started, with the settings that its documentation gives for production.

One process, and as many threads as serve-zig is given where the server has threads. Beyond that a
peer gets whatever lets it serve the workload at all (a limit on connections, say), so that it is
measured at its best; serve-zig gets its defaults.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workloads import HERE, Workload

ROOT = HERE.parent
HOST = "127.0.0.1"
SERVE_ZIG = "serve-zig"
FLOOR = "floor"
BUILD_SECONDS = 300


@dataclass(frozen=True)
class Start:
    """One start of a server."""

    workload: Workload
    port: int
    scratch: Path

    @property
    def bind(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def connections_max(self) -> int:
        """Room for the connections of the load, and for the harness's own."""
        return max(1024, self.workload.connections + 256)


@dataclass(frozen=True)
class Server:
    name: str
    distribution: str
    command: Callable[[Start], list[str]]
    # Runs several application calls at once on threads of the operating system.
    threaded: bool = False
    settings: str = ""

    @property
    def is_peer(self) -> bool:
        return self.name not in (SERVE_ZIG, FLOOR)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def script(name: str) -> str:
    """A console script of the environment that the harness runs in."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def launch(name: str, start: Start) -> list[str]:
    workload = start.workload
    return python(
        str(HERE / "launch.py"),
        name,
        workload.target,
        str(start.port),
        str(workload.threads),
        str(start.connections_max),
    )


def serve_zig(start: Start) -> list[str]:
    workload = start.workload
    lines = [
        "[app]",
        f"target = {json.dumps(workload.target)}",
        f"directory = {json.dumps(str(ROOT))}",
        "[listen]",
        f"bind = {json.dumps(start.bind)}",
    ]
    if workload.threads_set:
        lines += ["[concurrency]", f"threads = {workload.threads}"]
    config = start.scratch / "serve.toml"
    config.write_text("\n".join(lines) + "\n")
    return python("-m", "serve_zig", "-c", str(config))


def floor(start: Start) -> list[str]:
    return [str(floor_path(start.scratch)), str(start.port)]


def bjoern(start: Start) -> list[str]:
    return launch("bjoern", start)


def fastpysgi(start: Start) -> list[str]:
    return launch("fastpysgi", start)


def cheroot(start: Start) -> list[str]:
    return launch("cheroot", start)


def granian(start: Start) -> list[str]:
    return python(
        *("-m", "granian", "--interface", "wsgi", "--host", HOST, "--port", str(start.port)),
        *("--workers", "1", "--blocking-threads", str(start.workload.threads)),
        *("--http", "1", "--no-ws", "--log-level", "warning"),
        *("--backlog", "2048", "--backpressure", str(start.connections_max)),
        start.workload.target,
    )


def gunicorn(start: Start, *worker: str) -> list[str]:
    return python(
        *("-m", "gunicorn", "--bind", start.bind, "--workers", "1", *worker),
        *("--worker-connections", str(start.connections_max), "--keep-alive", "75"),
        *("--worker-tmp-dir", "/dev/shm", "--no-control-socket", "--log-level", "warning"),
        start.workload.target,
    )


def gunicorn_gthread(start: Start) -> list[str]:
    return gunicorn(start, "--worker-class", "gthread", "--threads", str(start.workload.threads))


def gunicorn_gevent(start: Start) -> list[str]:
    return gunicorn(start, "--worker-class", "gevent")


def uwsgi(start: Start) -> list[str]:
    # Its HTTP/1.1 socket holds a thread for each connection, so it gets one for each (but not ten
    # thousand); its HTTP router, the other way to keep connections alive, is a second process and
    # answers a fifth as many requests.
    threads = min(256, max(start.workload.threads, start.workload.connections))
    return [
        *(script("uwsgi"), "--http11-socket", start.bind, "--master", "--processes", "1"),
        *("--enable-threads", "--threads", str(threads), "--listen", "1024"),
        *("--single-interpreter", "--need-app", "--die-on-term", "--disable-logging"),
        *("--module", start.workload.target),
    ]


def waitress(start: Start) -> list[str]:
    return python(
        *("-m", "waitress", f"--listen={start.bind}", f"--threads={start.workload.threads}"),
        *(f"--connection-limit={start.connections_max}", "--asyncore-use-poll"),
        start.workload.target,
    )


SERVERS = (
    Server(SERVE_ZIG, "serve-zig", serve_zig, True, "defaults; threads only where the title says"),
    Server("bjoern", "bjoern", bjoern, settings="`bjoern.run`; no threads"),
    Server("fastpysgi", "fastpysgi", fastpysgi, settings="`fastpysgi.run`; no threads"),
    Server("granian", "granian", granian, True, "one worker, `--blocking-threads`, `--http 1`"),
    Server("gunicorn-gthread", "gunicorn", gunicorn_gthread, True, "one worker, `--threads`"),
    Server("gunicorn-gevent", "gevent", gunicorn_gevent, settings="one worker, greenlets"),
    Server("uwsgi", "uwsgi", uwsgi, True, "`--http11-socket`, one process, a thread a connection"),
    Server("waitress", "waitress", waitress, True, "`--threads`, `--asyncore-use-poll`"),
    Server("cheroot", "cheroot", cheroot, True, "`numthreads`, room for the keep-alive clients"),
    Server(FLOOR, "ziglang", floor, settings="fixed replies from epoll, no Python (floor.zig)"),
)


def floor_path(scratch: Path) -> Path:
    return scratch / "floor"


def build_floor(scratch: Path) -> str:
    """Compiles floor.zig as the extension module is compiled; what went wrong, or nothing."""
    command = python(
        *("-m", "ziglang", "build-exe", "-OReleaseSafe", "-mcpu=baseline"),
        *("--cache-dir", str(scratch / "zig-cache"), f"-femit-bin={floor_path(scratch)}"),
        str(HERE / "floor.zig"),
    )
    try:
        built = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=BUILD_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"floor.zig did not compile within {BUILD_SECONDS} s"
    return "" if built.returncode == 0 else f"floor.zig does not compile: {built.stderr[-500:]}"


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(server: Server) -> str:
    """Why the server cannot be started here; empty when it can."""
    if server.name == SERVE_ZIG:
        trial = subprocess.run(
            python("-m", "serve_zig", "--version"),
            env=environment(0),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if trial.returncode != 0:
            lines = trial.stderr.strip().splitlines()
            return f"cannot be run: {lines[-1] if lines else 'no message'}"
        return ""
    if version(server.distribution) is None:
        return f"{server.distribution} is not installed"
    if server.name == "gunicorn-gevent" and version("gunicorn") is None:
        return "gunicorn is not installed"
    return ""


def core_build() -> str:
    """What the extension module says of itself: above all how it was optimised."""
    code = "import json, serve_zig._core as c; print(json.dumps(c.build_info()))"
    trial = subprocess.run(
        python("-c", code), env=environment(0), cwd=ROOT, capture_output=True, text=True
    )
    if trial.returncode != 0:
        return ""
    return ", ".join(f"{name} {value}" for name, value in json.loads(trial.stdout).items())


def environment(steps: int) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "BENCHMARK_SPIN": str(steps)}


def frameworks_missing(workload: Workload) -> str:
    """The package that the workload's application needs and that is not installed, if any."""
    package = {"flask_hello": "flask", "django_hello": "django"}.get(workload.module)
    if package is not None and importlib.util.find_spec(package) is None:
        return package
    return ""
