"""`serve-zig --reload`: a real supervisor, its server, and sources that change."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from serving import REPOSITORY, free_port, wait_until
from wire import PATIENCE, Connection, get

HELLO = """
import os, time
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/slow":
        open("slow", "w").close()
        time.sleep(0.6)
    if environ["PATH_INFO"] == "/exit":
        os._exit(7)
    return [b"VERSION " + str(os.getpid()).encode()]
"""


class Reloading:
    """A serve-zig --reload in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.write("one")
        self.configure(f'bind = "127.0.0.1:{self.port}"')
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, version: str, text: str = HELLO) -> None:
        """Write the application."""
        (self.folder / "hello.py").write_text(dedent(text).replace("VERSION", version), "utf-8")

    def configure(self, listen: str) -> None:
        """Write the config."""
        (self.folder / "serve.toml").write_text(
            f'[app]\ntarget = "hello:app"\n[listen]\n{listen}\n[timeouts]\ndrain = 20.0\n', "utf-8"
        )

    def start(self, *arguments: str) -> None:
        """Start the supervisor in a process group of its own, as a shell does."""
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve_zig", "--reload", *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)},
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor."""
        assert self._process is not None
        return self._process

    def log(self) -> str:
        """Return what both have written."""
        return (self.folder / "log").read_text("utf-8")

    def wait_log(self, pattern: str, count: int = 1) -> None:
        """Wait until the log matches so many times."""
        wait_until(
            lambda: len(re.findall(pattern, self.log())) >= count or None,
            PATIENCE,
            lambda: f"no {count} of {pattern!r}:\n{self.log()}",
        )

    def wait_serving(self, count: int = 1) -> None:
        """Wait until so many servers have begun to serve."""
        self.wait_log(r"info serve-zig .* serves ", count)

    def ask(self, path: str = "/", timeout: float = PATIENCE) -> bytes:
        """Send a request on a new connection and return the body of the answer."""
        with Connection(socket.AF_INET, ("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.send(get(path, "Connection: close"))
            return connection.response().body

    def wait_version(self, version: str) -> None:
        """Wait until a version answers."""
        wait_until(
            lambda: self.ask().startswith(version.encode() + b" ") or None,
            PATIENCE,
            lambda: f"{version} does not answer:\n{self.log()}",
        )

    def server(self) -> int:
        """Return the process id of the server."""
        return int(self.ask().split()[1])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the supervisor and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End what still runs."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE)


@pytest.fixture
def reloading(tmp_path: Path) -> Iterator[Reloading]:
    """Return a supervisor to start, ended with the test."""
    one = Reloading(tmp_path)
    yield one
    one.close()


def has_ended(process: int) -> bool:
    """Return whether a process is gone, or only waits to be collected by whoever adopted it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_change_is_served_and_nobody_is_refused(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    failures: list[str] = []
    asked = 0
    is_over = threading.Event()

    def ask_on() -> None:
        nonlocal asked
        while not is_over.is_set():
            try:
                reloading.ask()
                asked += 1
            except Exception as error:
                failures.append(repr(error))

    client = threading.Thread(target=ask_on)
    client.start()
    try:
        for count, version in enumerate(("two", "three", "four"), 2):
            reloading.write(version)
            reloading.wait_serving(count)
            reloading.wait_version(version)
    finally:
        is_over.set()
        client.join(PATIENCE)
    assert failures == []
    assert asked > 10
    assert reloading.end() == 0
    assert reloading.log().count("hello.py changed; restarting") == 3
    assert "rror" not in reloading.log()


def test_requests_in_flight_are_answered_by_the_old_server(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(reloading.ask("/slow")))
    client.start()
    wait_until(lambda: (reloading.folder / "slow").exists() or None, PATIENCE, reloading.log)
    reloading.write("two")
    reloading.wait_version("two")
    client.join(PATIENCE)
    assert answers[0].startswith(b"one ")
    assert reloading.end() == 0


def test_several_changes_at_once_are_one(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    # However long it takes to write them: the supervisor sees them together.
    reloading.process.send_signal(signal.SIGSTOP)
    for name in ("a.py", "b.py", "c.py", "d.py"):
        (reloading.folder / name).write_text("", "utf-8")
    reloading.process.send_signal(signal.SIGCONT)
    reloading.wait_serving(2)
    assert reloading.log().count("restarting") == 1
    assert "a.py, b.py, c.py and 1 more changed; restarting" in reloading.log()


SLOW_WATCHFILES = """
import time
class DefaultFilter:
    pass
def watch(folder, *, stop_event, **others):
    time.sleep(2)
    open("watched", "w").close()
    while not stop_event.is_set():
        time.sleep(0.05)
    return iter(())
"""


def test_server_starts_when_its_sources_are_watched(reloading: Reloading) -> None:
    """Else a change is missed that comes as soon as the server says that it serves."""
    (reloading.folder / "watchfiles.py").write_text(SLOW_WATCHFILES, "utf-8")
    reloading.start()
    reloading.wait_serving()
    assert (reloading.folder / "watched").exists()


def test_what_is_no_source_restarts_nothing(reloading: Reloading) -> None:
    (reloading.folder / "node_modules").mkdir()
    reloading.start()
    reloading.wait_serving()
    for name in ("data.sqlite3", "page.html", "hello.py~", ".hello.py.swp", "node_modules/a.py"):
        (reloading.folder / name).write_text("x", "utf-8")
    # Seen in order, so the others have been passed over when this one is acted on.
    reloading.write("two")
    reloading.wait_version("two")
    changed = re.findall(r"--reload: (.*) changed", reloading.log())
    assert changed == ["hello.py"]


def test_syntax_error_waits_for_the_next_change(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    reloading.write("", "def app(:\n")
    reloading.wait_log(r"the server has ended with status 3; waiting for a change")
    assert "SyntaxError: invalid syntax" in reloading.log()
    assert "hello.py" in reloading.log()
    # A client is not refused: it waits.
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(reloading.ask()))
    client.start()
    reloading.write("mended")
    client.join(PATIENCE)
    assert answers[0].startswith(b"mended ")
    assert "hello.py changed; starting" in reloading.log()
    assert reloading.end() == 0


def test_server_that_dies_waits_for_the_next_change(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    with contextlib.suppress(Exception):
        reloading.ask("/exit")
    reloading.wait_log(r"the server has ended with status 7; waiting for a change")
    assert reloading.process.poll() is None
    reloading.write("two")
    reloading.wait_version("two")
    os.kill(reloading.server(), signal.SIGKILL)
    reloading.wait_log(r"the server has ended with SIGKILL; waiting for a change")
    assert reloading.end(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_the_server(reloading: Reloading, number: signal.Signals) -> None:
    reloading.start()
    reloading.wait_serving()
    server = reloading.server()
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(reloading.ask("/slow")))
    client.start()
    wait_until(lambda: (reloading.folder / "slow").exists() or None, PATIENCE, reloading.log)
    assert reloading.end(number) == 0
    client.join(PATIENCE)
    assert answers[0].startswith(b"one ")
    assert has_ended(server)
    assert "drained; the server ends" in reloading.log()


def test_interrupt_of_the_terminal_reaches_both_and_counts_once(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(reloading.ask("/slow")))
    client.start()
    wait_until(lambda: (reloading.folder / "slow").exists() or None, PATIENCE, reloading.log)
    os.killpg(reloading.process.pid, signal.SIGINT)
    assert reloading.process.wait(PATIENCE) == 0
    client.join(PATIENCE)
    assert answers[0].startswith(b"one ")
    assert "the second signal" not in reloading.log()


def test_second_signal_ends_the_server_at_once(reloading: Reloading) -> None:
    reloading.write("one", HELLO.replace("0.6", "600"))
    reloading.start()
    reloading.wait_serving()
    with socket.create_connection(("127.0.0.1", reloading.port)) as connection:
        connection.sendall(get("/slow"))
        wait_until(lambda: (reloading.folder / "slow").exists() or None, PATIENCE, reloading.log)
        reloading.process.send_signal(signal.SIGTERM)
        reloading.wait_log("draining for at most")
        assert reloading.end() == 1


def test_other_signals_are_passed_on(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    reloading.process.send_signal(signal.SIGHUP)
    reloading.wait_log("SIGHUP")
    assert reloading.ask().startswith(b"one ")


def test_server_ends_with_its_supervisor(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    server = reloading.server()
    reloading.process.kill()
    wait_until(lambda: has_ended(server) or None, PATIENCE, reloading.log)
    assert "drained; the server ends" in reloading.log()


def test_config_is_read_again(reloading: Reloading) -> None:
    reloading.start()
    reloading.wait_serving()
    reloading.configure('bind = "nonsense"')
    reloading.wait_log("the config is wrong; waiting for a change")
    assert 'serve.toml:4: listen.bind: found "nonsense", which has no port' in reloading.log()
    reloading.port = free_port()
    reloading.configure(f'bind = "127.0.0.1:{reloading.port}"')
    reloading.wait_serving(2)
    assert reloading.ask().startswith(b"one ")
    assert reloading.end() == 0


def test_unix_socket_stays_while_the_server_is_replaced(reloading: Reloading) -> None:
    path = reloading.folder / "app.sock"
    reloading.configure('bind = "unix:app.sock"')
    reloading.start()
    reloading.wait_serving()
    identity = path.stat().st_ino
    reloading.write("two")
    reloading.wait_serving(2)
    assert path.stat().st_ino == identity
    with Connection(socket.AF_UNIX, str(path)) as connection:
        connection.send(get("/", "Connection: close"))
        assert connection.response().body.startswith(b"two ")
    assert reloading.end() == 0
    assert not path.exists()


def test_mistakes_before_the_first_start(reloading: Reloading) -> None:
    reloading.configure('bind = "nonsense"')
    reloading.start()
    assert reloading.process.wait(PATIENCE) == 2
    assert 'serve.toml:4: listen.bind: found "nonsense"' in reloading.log()
    reloading.configure(f'bind = "127.0.0.1:{reloading.port}"')
    with socket.create_server(("127.0.0.1", reloading.port)):
        reloading.start()
        assert reloading.process.wait(PATIENCE) == 1
        assert "is taken: the address is in use" in reloading.log()


def test_without_watchfiles_it_says_what_to_install(reloading: Reloading) -> None:
    (reloading.folder / "watchfiles.py").write_text("raise ImportError('not here')\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "serve_zig", "--reload"],
        cwd=reloading.folder,
        env={**os.environ, "PYTHONPATH": f"{reloading.folder}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "serve-zig: error: --reload needs watchfiles (not here); install it: pip install "
        "'serve-zig[reload]'\n"
    )


def test_check_starts_nothing(reloading: Reloading) -> None:
    reloading.start("--check")
    assert reloading.process.wait(PATIENCE) == 0
    assert 'target = "hello:app"' in reloading.log()
