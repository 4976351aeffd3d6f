"""The service manager: READY, STOPPING, RELOADING, STATUS, WATCHDOG, and sockets that it passes."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from serve_zig import notify
from serve_zig.activation import Activation
from serve_zig.notify import Notifier
from serving import REPOSITORY, Server, Servers, free_port, wait_until
from wire import PATIENCE, Connection, get

UNITS = REPOSITORY / "examples" / "systemd"

# Becomes the server, as systemd's child does: descriptors from 3 on, and LISTEN_PID its own.
ACTIVATE = """
import fcntl, os, sys
numbers = [int(number) for number in sys.argv[1].split(",")]
copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 100) for number in numbers]
os.closerange(3, 100)
for index, number in enumerate(copies):
    os.dup2(number, 3 + index)
os.environ["LISTEN_PID"] = os.environ.get("TEST_LISTEN_PID") or str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(numbers))
os.execv(sys.argv[2], sys.argv[2:])
"""

SPEAKING = """
import os, subprocess, sys
NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS",
         "LISTEN_FDNAMES")
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    found = [name for name in NAMES if name in os.environ]
    code = f"import os; print([n for n in {NAMES} if n in os.environ], os.listdir('/proc/self/fd'))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, close_fds=False)
    return [repr(found).encode(), b" ", child.stdout]
"""


class Manager:
    """A service manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        self._socket.settimeout(0.05)
        self.messages: list[tuple[float, dict[str, str]]] = []

    def read(self) -> list[dict[str, str]]:
        """Return all messages so far."""
        with contextlib.suppress(TimeoutError):
            while True:
                text = self._socket.recv(65536).decode()
                fields = dict(line.split("=", 1) for line in text.split("\n"))
                self.messages.append((time.monotonic(), fields))
        return [fields for _, fields in self.messages]

    def wait(self, name: str, value: str = "", *, within: float = PATIENCE) -> dict[str, str]:
        """Return the first message with this line, whose value begins so, and forget it."""

        def found() -> dict[str, str] | None:
            for index, fields in enumerate(self.read()):
                if name in fields and fields[name].startswith(value):
                    del self.messages[: index + 1]
                    return fields
            return None

        return wait_until(found, within, lambda: f"no {name}={value} in {self.messages}")

    def times(self, name: str) -> list[float]:
        """Return when messages with this line were read."""
        self.read()
        return [when for when, fields in self.messages if name in fields]

    def environment(self, **more: str) -> dict[str, str]:
        """Return what a service's process is given."""
        return {"NOTIFY_SOCKET": self.address, **more}

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A manager on either kind of socket."""
    made = Manager(str(tmp_path / "n") if request.param == "path" else f"@serve-zig-{tmp_path}")
    yield made
    made.close()


@pytest.fixture
def one_manager(tmp_path: Path) -> Iterator[Manager]:
    """A manager."""
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


# Messages


def test_ready_comes_when_it_serves(serve: Servers, manager: Manager) -> None:
    """Without it a unit of Type=notify is killed after TimeoutStartSec."""
    server = serve(
        "holding:app",
        {"app": {"startup": "holding:startup"}},
        environment=manager.environment(HOLDING_IMPORT_GATE="import", STARTUP_GATE="startup"),
        wait=False,
    )
    manager.wait("STATUS", "importing holding:app")
    server.wait_event("importing")
    assert not any("READY" in one for one in manager.read())
    server.open_gate("import")
    manager.wait("STATUS", "running app.startup: holding:startup")
    assert not any("READY" in one for one in manager.read())
    server.open_gate("startup")
    ready = manager.wait("READY", "1")
    assert ready["STATUS"] == f"serving holding:app on {server.url}"
    assert server.exchange(get("/")).status == 200
    assert server.stop() == 0
    manager.wait("STOPPING", "1")


def test_start_within_startup_timeout_has_its_time(serve: Servers, one_manager: Manager) -> None:
    server = serve(
        "echo:app", {"app": {"startup_timeout": 200.0}}, environment=one_manager.environment()
    )
    told = one_manager.wait("STATUS", "importing")
    assert int(told["EXTEND_TIMEOUT_USEC"]) >= 200_000_000
    one_manager.wait("READY")
    assert server.stop() == 0


def test_stopping_asks_for_the_time_of_the_drain(serve: Servers, one_manager: Manager) -> None:
    """And says how many requests are left."""
    config = {"timeouts": {"drain": 100.0, "drain_delay": 0.1}}
    server = serve("working:app", config, environment=one_manager.environment())
    one_manager.wait("READY")
    with server.connect() as connection:
        connection.send(get("/gate?drain"))
        server.wait_event("begun")
        server.send_signal(signal.SIGTERM)
        stopping = one_manager.wait("STOPPING", "1")
        assert stopping["STATUS"] == "draining"
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 100_000_000
        one_manager.wait("STATUS", "draining, 1 request left")
        server.open_gate("drain")
        assert connection.response().status == 200
    assert server.wait() == 0


def test_reload_is_told_of(serve: Servers, one_manager: Manager) -> None:
    """Type=notify-reload waits for RELOADING and READY, and compares the clock."""
    server = serve(environment=one_manager.environment())
    ready = one_manager.wait("READY")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    server.send_signal(signal.SIGHUP)
    reloading = one_manager.wait("RELOADING", "1")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert before <= int(reloading["MONOTONIC_USEC"]) <= after
    assert one_manager.wait("READY", "1") == ready
    assert server.stop() == 0


def test_failed_start_is_the_status(serve: Servers, one_manager: Manager) -> None:
    server = serve("missing:app", environment=one_manager.environment(), wait=False)
    assert server.wait() == 3
    server.errors_expected = True
    assert 'no module "missing"' in one_manager.wait("STATUS", "failed: ")["STATUS"]
    assert not any("READY" in one for one in one_manager.read())


def test_application_and_its_processes_do_not_speak_for_the_service(
    serve: Servers, one_manager: Manager
) -> None:
    server = serve(
        "speaking:app",
        files={"speaking.py": SPEAKING},
        environment=one_manager.environment(WATCHDOG_USEC="60000000", LISTEN_FDNAMES="x"),
    )
    assert server.exchange(get("/")).body.startswith(b"[] []")
    assert server.stop() == 0


@pytest.mark.parametrize("address", ["/missing/notify", "vsock:2:1234"])
def test_manager_that_cannot_be_told_is_a_warning(serve: Servers, address: str) -> None:
    server = serve(environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert server.exchange(get("/")).status == 200
    assert "warning NOTIFY_SOCKET: " in server.log()
    assert server.stop() == 0


def test_manager_that_does_not_read_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is full after some ten messages; a change of state alone waits for room."""
    told: list[str] = []
    slow = Manager(str(tmp_path / "notify"))
    notifier = Notifier(slow.environment(), told.append)
    with monkeypatch.context() as patched:
        patched.setattr(notify, "_SEND_SECONDS", 600.0)
        patched.setattr(time, "sleep", lambda _: pytest.fail("a status waited for room"))
        for number in range(1000):
            notifier.status(f"draining, {number} requests left")
    assert told == []
    notifier.ready("serving")
    assert "READY=1 could not be sent: the manager does not read" in told[0]
    reader = threading.Timer(0.2, slow.read)
    reader.start()
    notifier.stopping("draining", 5.0)
    reader.join()
    slow.wait("STOPPING")
    assert len(told) == 1
    notifier.close()
    slow.close()


def test_nothing_is_said_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"WATCHDOG_USEC": "1000000", "PATH": "/bin"}
    notifier = Notifier(environment, pytest.fail)
    notifier.ready("serving")
    assert not notifier.is_on
    assert notifier.watchdog_seconds == 0.0
    assert environment == {"PATH": "/bin"}


# The watchdog


def test_watchdog_is_fed_at_half_its_time_while_idle(serve: Servers, manager: Manager) -> None:
    server = serve(environment=manager.environment(WATCHDOG_USEC="600000"))
    manager.wait("READY")
    manager.wait("WATCHDOG", "1")
    wait_until(lambda: len(manager.times("WATCHDOG")) >= 6, PATIENCE, lambda: str(manager.messages))
    times = manager.times("WATCHDOG")
    # The mean, which does not depend on one late wake-up.
    assert (times[5] - times[0]) / 5 > 0.2
    assert server.stop() == 0


def test_watchdog_is_fed_while_a_handler_holds_the_gil(
    serve: Servers, one_manager: Manager
) -> None:
    """Nobody else wants it: /livez stays 200."""
    server = serve("holding:app", environment=one_manager.environment(WATCHDOG_USEC="200000"))
    one_manager.wait("READY")
    with server.connect() as connection:
        connection.send(get("/hold?gil"))
        with server.blocked("gil"):
            one_manager.read()
            one_manager.messages.clear()
            wait_until(
                lambda: len(one_manager.times("WATCHDOG")) >= 3,
                PATIENCE,
                lambda: "not fed while the GIL is held",
            )
        assert connection.response().status == 200
    assert server.stop() == 0


def test_watchdog_is_not_fed_while_livez_is_503(serve: Servers, one_manager: Manager) -> None:
    server = serve(
        "holding:app",
        {"admin": {"livez_stall": 0.4, "in_band": "/-/"}},
        environment=one_manager.environment(WATCHDOG_USEC="200000"),
    )
    one_manager.wait("READY")
    one_manager.wait("WATCHDOG")
    with server.connect() as first, server.connect() as second:
        first.send(get("/hold?gil"))
        with server.blocked("gil"):
            second.send(get("/"))
            wait_until(
                lambda: server.exchange(get("/-/livez")).status == 503,
                PATIENCE,
                lambda: "/livez stays 200",
            )
            one_manager.read()
            one_manager.messages.clear()
            # Five periods in which it would have been fed.
            time.sleep(0.5)
            assert one_manager.times("WATCHDOG") == []
        assert first.response().status == 200
        assert second.response().status == 200
    one_manager.messages.clear()
    one_manager.wait("WATCHDOG")
    assert server.stop() == 0


@pytest.mark.parametrize("whose", ["own", "other"])
def test_watchdog_is_for_the_process_that_it_names(
    serve: Servers, one_manager: Manager, whose: str
) -> None:
    number = "$$" if whose == "own" else "1"
    server = serve(
        environment=one_manager.environment(WATCHDOG_USEC="100000"),
        prefix=["sh", "-c", f'export WATCHDOG_PID={number}; exec "$@"', "sh"],
    )
    one_manager.wait("READY")
    if whose == "own":
        one_manager.wait("WATCHDOG")
    else:
        time.sleep(0.5)
        assert one_manager.times("WATCHDOG") == []
    assert server.stop() == 0


# Sockets


@contextlib.contextmanager
def listening(count: int) -> Iterator[list[socket.socket]]:
    """Open listeners."""
    opened = []
    for _ in range(count):
        opened.append(socket.create_server(("127.0.0.1", 0)))
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


def activated(
    serve: Servers,
    sockets: list[socket.socket],
    names: str,
    config: Mapping[str, Any],
    app: str = "echo:app",
    **more: Any,
) -> Server:
    """Start the server as systemd does."""
    numbers = ",".join(str(one.fileno()) for one in sockets)
    return serve(
        app,
        config,
        environment={"LISTEN_FDNAMES": names, **more.pop("environment", {})},
        prefix=[sys.executable, "-c", ACTIVATE, numbers],
        pass_fds=[one.fileno() for one in sockets],
        wait=False,
        **more,
    )


def answer(one: socket.socket, path: str = "/") -> int:
    host, port = one.getsockname()
    with Connection(socket.AF_INET, (host, port)) as connection:
        # The admin listener answers for its own address alone.
        connection.send(get(path, f"Host: {host}:{port}"))
        return connection.response().status


def test_all_sockets_that_systemd_passes(serve: Servers) -> None:
    with listening(2) as sockets:
        server = activated(serve, sockets, "web:web", {"listen": {"bind": "fd://systemd"}})
        server.wait_log(" serves ")
        assert [answer(one) for one in sockets] == [200, 200]
        assert "no address of the config names" not in server.log()
        assert server.stop() == 0


def test_sockets_by_name(serve: Servers) -> None:
    """The admin listener has one, the rest of them are the application's."""
    config = {"listen": {"bind": ["fd://systemd:web"]}, "admin": {"bind": "fd://systemd:ops"}}
    with listening(3) as sockets:
        server = activated(serve, sockets, "web:ops:other", config)
        server.wait_log(" serves ")
        assert answer(sockets[0], "/livez") == 200
        assert answer(sockets[1], "/readyz") == 200
        assert "no address of the config names (other)" in server.log()
        assert server.stop() == 0


def test_all_are_those_that_no_other_address_names(serve: Servers) -> None:
    config = {"listen": {"bind": "fd://systemd"}, "admin": {"bind": "fd://systemd:ops"}}
    with listening(2) as sockets:
        server = activated(serve, sockets, "ops:web", config)
        server.wait_log(" serves ")
        assert answer(sockets[0], "/readyz") == 200
        assert answer(sockets[1], "/") == 200
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("bind", "names", "why"),
    [
        ("fd://systemd:wbe", "web", "there are: web"),
        ("fd://systemd:web", "", "there are: unknown"),
        (
            ["fd://systemd", "fd://systemd:web"],
            "web",
            "there are: none that no other address names",
        ),
    ],
)
def test_name_that_systemd_does_not_know(
    serve: Servers, bind: object, names: str, why: str
) -> None:
    with listening(1) as sockets:
        server = activated(serve, sockets, names, {"listen": {"bind": bind}})
        assert server.wait() == 1
        assert "systemd has passed no such socket; " + why in server.log()


def test_sockets_for_another_process_are_not_taken(serve: Servers) -> None:
    with listening(1) as sockets:
        server = activated(
            serve,
            sockets,
            "web",
            {"listen": {"bind": "fd://systemd"}},
            environment={"TEST_LISTEN_PID": "1"},
        )
        assert server.wait() == 1
        assert "are meant for the process 1 (LISTEN_PID)" in server.log()


def test_no_sockets_passed_is_told(serve: Servers) -> None:
    server = serve("echo:app", {"listen": {"bind": "fd://systemd"}}, wait=False)
    assert server.wait() == 1
    assert "systemd has passed no sockets to this process (LISTEN_FDS is not set)" in server.log()


def test_children_have_neither_sockets_nor_variables(serve: Servers) -> None:
    with listening(2) as sockets:
        server = activated(
            serve,
            sockets,
            "web:unused",
            {"listen": {"bind": "fd://systemd:web"}},
            "speaking:app",
            files={"speaking.py": SPEAKING},
        )
        server.wait_log(" serves ")
        with Connection(socket.AF_INET, sockets[0].getsockname()) as connection:
            connection.send(get("/"))
            body = connection.response().body.decode()
        # 0, 1 and 2, and that of the listing itself.
        assert body.startswith("[] [] ['0', '1', '2', '3']"), body
        assert server.stop() == 0


def test_sockets_for_the_first_process_of_a_container(serve: Servers) -> None:
    """podman passes them to PID 1, which leaves serving to its child."""
    namespace = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not make a process namespace")
    with listening(1) as sockets:
        numbers = [str(one.fileno()) for one in sockets]
        server = serve(
            "echo:app",
            {"listen": {"bind": "fd://systemd"}},
            prefix=[*namespace, sys.executable, "-c", ACTIVATE, ",".join(numbers)],
            pass_fds=[one.fileno() for one in sockets],
            wait=False,
        )
        server.wait_log(r"\(pid 2\) serves ")
        assert answer(sockets[0]) == 200
        outer = server.process.pid
        inner = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
        os.kill(int(inner), signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize("count", ["x", "0", "-1", "99999"])
def test_number_of_sockets_that_is_none(count: str) -> None:
    activation = Activation({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
    assert activation.absence == f"LISTEN_FDS={count} is not a number of sockets"
    assert activation.left() == []


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd is not installed"
)
def test_socket_of_systemd_itself(tmp_path: Path) -> None:
    """systemd-socket-activate(1) passes sockets as a socket unit does."""
    port = free_port()
    (tmp_path / "serve.toml").write_text(
        '[app]\ntarget = "hello:app"\n[listen]\nbind = "fd://systemd:web"\n', "utf-8"
    )
    (tmp_path / "hello.py").write_text(SPEAKING, "utf-8")
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=web"]
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(
            [*command, sys.executable, "-m", "serve_zig", "-c", str(tmp_path / "serve.toml")],
            stderr=log,
        ) as process,
    ):
        try:

            def connected() -> Connection | None:
                with contextlib.suppress(ConnectionRefusedError):
                    return Connection(socket.AF_INET, ("127.0.0.1", port))
                return None

            with wait_until(connected, PATIENCE, lambda: "it does not listen") as connection:
                connection.send(get("/"))
                assert connection.response().body.startswith(b"[] []")
            process.terminate()
            assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()


# --reload


def test_supervisor_speaks_for_the_service(one_manager: Manager, tmp_path: Path) -> None:
    """NotifyAccess=main lets the main process speak alone, and the server is its child."""
    with listening(1) as (listener,):
        (tmp_path / "serve.toml").write_text(
            '[app]\ntarget = "speaking:app"\n[listen]\nbind = "fd://systemd"\n', "utf-8"
        )
        (tmp_path / "speaking.py").write_text(SPEAKING, "utf-8")
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", ACTIVATE, str(listener.fileno())),
                *(sys.executable, "-m", "serve_zig", "--reload"),
            ],
            cwd=tmp_path,
            env={**os.environ, **one_manager.environment(WATCHDOG_USEC="400000")},
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            assert one_manager.wait("READY")["STATUS"].startswith("--reload: watching")
            one_manager.wait("WATCHDOG")
            with Connection(socket.AF_INET, listener.getsockname()) as connection:
                connection.send(get("/"))
                assert connection.response().body.startswith(b"[] []")
            process.send_signal(signal.SIGHUP)
            assert int(one_manager.wait("RELOADING")["MONOTONIC_USEC"]) > 0
            one_manager.wait("READY")
            process.terminate()
            one_manager.wait("STOPPING")
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


# The units of examples/systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_units_are_valid(tmp_path: Path) -> None:
    for unit in UNITS.glob("shop.*"):
        # The program need not be there, but systemd wants one that is.
        text = unit.read_text("utf-8").replace("/srv/shop/.venv/bin/serve-zig", "/bin/true")
        (tmp_path / unit.name).write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "shop.service", "shop.socket"],
        cwd=tmp_path,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stderr, done.stderr
