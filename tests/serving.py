"""A real `serve-zig` process for a test: its configuration, its port, its log and its end."""

import contextlib
import fcntl
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from wire import PATIENCE, Connection, Response

T = TypeVar("T")

#: timeouts.drain of every server that is given none: less than a test waits for its end.
DRAIN_SECONDS = 20.0

REPOSITORY = Path(__file__).resolve().parent.parent
APPLICATIONS = Path(__file__).resolve().parent / "applications"

# What may never stand in the log, whatever the application did: a Zig panic, a crash, an
# exception that Python could only print, or a frame of the launcher in a user's traceback. The
# last two are all that is left to say when there is no memory even for the log.
CRASHES = re.compile(r"panic: |Segmentation fault|Fatal Python error|Exception in thread")
UNRAISABLE = re.compile(r"Exception ignored in|/serve_zig/\w+\.py\"")
TRACEBACK = "Traceback (most recent call last)"


#: What applications/events.py writes into a FIFO to block.
BLOCK_BYTES = 1 << 20


class StartError(AssertionError):
    """The server did not begin to accept."""


class Server:
    """One running server. Made by the `serve` fixture, which also ends it."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        binds: Sequence[str],
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.folder = folder
        self.binds = list(binds)
        self.errors_expected = False
        self.has_memory = True
        #: Unless log.level hides it, the log says when the server serves.
        self.says_serving = True
        self.exit_status: int | None = None
        self._log_start = 0
        with open(folder / "stdout", "wb") as stdout, open(folder / "stderr", "wb") as stderr:
            self.process = subprocess.Popen(
                list(command),
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "SERVE_TEST_FOLDER": str(folder),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(pass_fds),
            )

    # Where it listens

    @property
    def port(self) -> int:
        """The port of the first TCP listener."""
        return next(int(bind.rpartition(":")[2]) for bind in self.binds if "unix:" not in bind)

    @property
    def url(self) -> str:
        """The URL of the first TCP listener, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def connect(
        self,
        bind: str | None = None,
        *,
        timeout: float = PATIENCE,
        receive_buffer: int = 0,
        source: str = "",
    ) -> Connection:
        """Open a raw connection to the first listener, or to another one.

        `source` is the address that it comes from; on Linux all of 127.0.0.0/8 is there.
        """
        family, address = address_of(bind or self.binds[0])
        return Connection(
            family, address, timeout=timeout, receive_buffer=receive_buffer, source=source
        )

    def raw(self, data: bytes, *, timeout: float = PATIENCE, half_close: bool = False) -> bytes:
        """Send data on a new connection and return all that comes until the server closes."""
        with self.connect(timeout=timeout) as connection:
            connection.offer(data)
            if half_close:
                connection.finish()
            return connection.read_to_end(reset_counts=True)

    def exchange(self, data: bytes, *, method: str = "GET", timeout: float = PATIENCE) -> Response:
        """Send data on a new connection and return its one response."""
        with self.connect(timeout=timeout) as connection:
            connection.offer(data)
            return connection.response(method)

    # What it wrote

    def log(self) -> str:
        """Return what the process has written to stderr."""
        return (self.folder / "stderr").read_text("utf-8", "replace")

    def output(self) -> str:
        """Return what the process has written to stdout."""
        return (self.folder / "stdout").read_text("utf-8", "replace")

    def test_log(self) -> str:
        """Return what stderr has got since the current test began."""
        data = (self.folder / "stderr").read_bytes()[self._log_start :]
        return data.decode("utf-8", "replace")

    def begin_test(self) -> None:
        """Judge from here on: a server may be shared by the tests of a module."""
        self._log_start = (self.folder / "stderr").stat().st_size
        self.errors_expected = False

    def wait_log(self, pattern: str, *, within: float = PATIENCE) -> re.Match[str]:
        """Wait until the log of this test matches; tracebacks in it are then expected."""
        self.errors_expected = True
        return wait_until(
            lambda: re.search(pattern, self.test_log()),
            within,
            lambda: f"no {pattern!r} in the log:\n{self.test_log()}",
        )

    def events(self, name: str | None = None, **details: Any) -> list[dict[str, Any]]:
        """Return what the test application has recorded, filtered by name and details."""
        path = self.folder / "events"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [
            event
            for event in found
            if (name is None or event["event"] == name)
            and all(event.get(key) == value for key, value in details.items())
        ]

    def wait_event(
        self, name: str, *, count: int = 1, within: float = PATIENCE, **details: Any
    ) -> list[dict[str, Any]]:
        """Wait until the test application has recorded the event so many times."""

        def found() -> list[dict[str, Any]] | None:
            events = self.events(name, **details)
            return events if len(events) >= count else None

        return wait_until(found, within, lambda: f"no {count} of {name} {details}: {self.events()}")

    def open_gate(self, name: str) -> None:
        """Let applications pass that wait in `events.wait_gate(name)`."""
        (self.folder / f"gate-{name}").touch()

    @contextlib.contextmanager
    def blocked(self, name: str) -> Iterator[None]:
        """Wait until an application is in `events.block` or `events.hold_gil`; let it go after."""
        path = self.folder / f"pipe-{name}"
        wait_until(path.exists, PATIENCE, lambda: f"nothing blocks for {name}")
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert select.select([pipe], [], [], PATIENCE)[0], f"nothing blocks for {name}"
            yield
        finally:
            left = BLOCK_BYTES
            while left > 0 and select.select([pipe], [], [], PATIENCE)[0]:
                read = len(os.read(pipe, left))
                left -= read or left  # none is left of a process that has ended
            os.close(pipe)

    def resident_bytes(self) -> int:
        """Return the resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None, status
        return int(found[1]) * 1024

    def cpu_seconds(self) -> float:
        """Return the processor time that the process has used, its own and the kernel's for it."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text("ascii", "replace")
        fields = text[text.rindex(")") + 2 :].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # Its end

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end of the process and return its exit status."""
        try:
            self.exit_status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.exit_status = self.process.wait(PATIENCE)
            raise AssertionError(f"the server did not end in {timeout} s") from None
        return self.exit_status

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send SIGTERM (or another signal) and return the exit status."""
        if self.exit_status is None:
            self.send_signal(number)
            self.wait(timeout)
        assert self.exit_status is not None
        return self.exit_status

    def wait_ready(self, within: float = PATIENCE) -> None:
        """Wait until every listener accepts."""

        def ready() -> bool:
            if self.process.poll() is not None:
                self.exit_status = self.process.returncode
                raise StartError(f"exit status {self.exit_status}:\n{self.log()}")
            for bind in self.binds:
                family, address = address_of(bind)
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.settimeout(PATIENCE)
                    if probe.connect_ex(address) != 0:
                        return False
            return True

        wait_until(ready, within, lambda: f"does not accept:\n{self.log()}", StartError)
        # It listens before it serves, and a signal in between is no drain.
        if self.says_serving:
            wait_until(
                lambda: " serves " in self.log() or self.process.poll() is not None,
                within,
                lambda: f"does not serve:\n{self.log()}",
                StartError,
            )

    def check(self) -> None:
        """Fail if the server has died or failed since the current test began."""
        if self.exit_status is None:
            # Told once: the other tests of the module have their own failures.
            self.exit_status = self.process.poll()
            if self.exit_status is not None:
                raise AssertionError(f"the server died with {self.exit_status}:\n{self.log()}")
        crash = CRASHES.search(self.test_log())
        if crash is None and self.has_memory:
            crash = UNRAISABLE.search(self.test_log())
        assert crash is None, f"{crash and crash[0]!r} in the log:\n{self.test_log()}"
        if not self.errors_expected:
            assert TRACEBACK not in self.test_log(), f"a traceback:\n{self.test_log()}"

    def close(self) -> None:
        """End the process, and judge how it ended unless the test has done that."""
        judged = self.exit_status is not None
        try:
            self.check()
            status = self.stop()
            self.check()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(PATIENCE)
        assert judged or status == 0, f"exit status {status}:\n{self.log()}"


class Servers:
    """Starts servers for one fixture and ends them all."""

    #: Every server of the current test, for the hooks of conftest.py.
    known: ClassVar[list[Server]] = []

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._started: list[Server] = []

    def __call__(
        self,
        app: str = "echo:app",
        config: str | Mapping[str, Any] = "",
        files: Mapping[str, str | bytes] | None = None,
        *,
        config_file: Path | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        prefix: Sequence[str] = (),
        wait: bool = True,
    ) -> Server:
        """Start `serve-zig` with a configuration and return when it accepts.

        `config` is TOML text or a nested mapping, laid over what every test needs. `files` are
        written beside it; with Python files among them that folder becomes `app.directory`.
        `config_file` is served as it stands instead, but for the address. `prefix` is a command
        that becomes the server, such as `sh -c 'ulimit -n 99; exec "$@"' sh`. `wait=False`
        returns at once, for a server that is not expected to start.
        """
        folder = self._new_folder()
        for name, content in (files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        given = tomllib.loads(config) if isinstance(config, str) else config
        own_files = any(name.endswith(".py") for name in files or {})
        attempt = 0
        while True:
            attempt += 1
            bind = f"127.0.0.1:{free_port()}"
            command = [*prefix, sys.executable, "-m", "serve_zig", "-c"]
            if config_file is None:
                defaults = {
                    "app": {"target": app, "directory": str(folder if own_files else APPLICATIONS)},
                    "listen": {"bind": bind},
                    "timeouts": {"drain": DRAIN_SECONDS},
                }
                settings = merged(defaults, given)
                (folder / "serve.toml").write_text(to_toml(settings), "utf-8")
                command += [str(folder / "serve.toml"), *arguments]
                level = settings.get("log", {}).get("level", "info")
                found = settings["listen"]["bind"]
                binds = [found] if isinstance(found, str) else list(found)
            else:
                command += [str(config_file), "--set", f"listen.bind={bind}", *arguments]
                level = tomllib.loads(config_file.read_text()).get("log", {}).get("level", "info")
                binds = [bind]
            server = Server(
                folder,
                command,
                environment=environment or {},
                binds=binds,
                pass_fds=pass_fds,
            )
            server.says_serving = level == "info"
            Servers.known.append(server)
            if wait:
                try:
                    server.wait_ready()
                except StartError:
                    # Another program may take the port between the look and the bind.
                    if bind in binds and attempt < 3 and "in use" in server.log():
                        continue
                    server.process.kill()
                    server.exit_status = server.process.wait(PATIENCE)
                    raise
            self._started.append(server)
            return server

    def close(self) -> None:
        """End every server; the first failure is reported when all have ended."""
        with contextlib.ExitStack() as stack:
            for server in self._started:
                stack.callback(server.close)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return base with over laid over it, table by table."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both and below is not None else value
    return result


def to_toml(settings: Mapping[str, Any]) -> str:
    """Write tables, and lists of tables, as TOML."""
    lines: list[str] = []
    for table, content in settings.items():
        is_list = isinstance(content, list)
        for entries in content if is_list else [content]:
            lines.append(f"[[{table}]]" if is_list else f"[{table}]")
            # JSON's numbers, booleans, arrays and strings are TOML's too.
            lines += [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
            lines.append("")
    return "\n".join(lines)


def address_of(bind: str) -> tuple[int, Any]:
    """Return the address family and the socket address of a `listen.bind` value."""
    if bind.startswith("unix:"):
        return socket.AF_UNIX, bind.removeprefix("unix:").partition("?")[0]
    host, _, port = bind.rpartition(":")
    if host.startswith("["):
        return socket.AF_INET6, (host.strip("[]"), int(port))
    return socket.AF_INET, (host if host not in ("", "0.0.0.0") else "127.0.0.1", int(port))


_PORTS_EACH = 250


def _claim_ports() -> range:
    """Return ports that are this process' own among the test processes of the machine.

    Below the ephemeral range, so that no client socket takes one meanwhile. The lock on a file says
    whose they are, until this process ends.
    """
    for number in range(10_000 // _PORTS_EACH):
        path = Path(tempfile.gettempdir()) / f"serve-zig-tests-{os.getuid()}-ports-{number}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            first = 20_000 + number * _PORTS_EACH
            return range(first, first + _PORTS_EACH)
        os.close(descriptor)
    raise AssertionError("too many processes run tests on this machine")


def _port_candidates() -> Iterator[int]:
    # The next one each time: whoever has just left a port may still come back to it.
    yield from itertools.cycle(_claim_ports())


_ports = _port_candidates()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nothing listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in itertools.islice(_ports, _PORTS_EACH):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port
    raise AssertionError("no free port")


def wait_until(
    condition: Callable[[], T | None],
    within: float,
    message: Callable[[], str],
    error: type[AssertionError] = AssertionError,
) -> T:
    """Poll until the condition is true and return its value; fail after `within` seconds."""
    deadline = time.monotonic() + within
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise error(message())
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
