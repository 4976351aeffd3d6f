"""The command line as users run it: real processes, their messages and their exit status."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import tomli

import serve_zig
from serve_zig import descriptors, runner
from serve_zig.addresses import parse_address
from serve_zig.config import load
from serve_zig.errors import LauncherError
from serve_zig.logging import Log, escape
from wire import PATIENCE

REPOSITORY = Path(__file__).resolve().parent.parent

HELLO = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]
"""

LAUNCH = (sys.executable, "-m", "serve_zig")

# The same, but it does not wait as long for what the application has left behind.
IMPATIENT = (
    sys.executable,
    "-c",
    "import serve_zig.process_end as end; from serve_zig.__main__ import run; "
    "end._END_SECONDS = 0.3; end._FLUSH_SECONDS = 0.3; run()",
)

# The same, but it waits for that longer than a test does.
PATIENT = (*IMPATIENT[:2], IMPATIENT[2].replace("0.3", "600"))

# A record of the log: time, level, message.
RECORD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warning|info) \S.*")


def run(
    *arguments: str,
    folder: Path,
    environment: dict[str, str] | None = None,
    command: tuple[str, ...] = LAUNCH,
) -> subprocess.CompletedProcess[str]:
    """Run serve-zig to its end."""
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def fails(
    done: subprocess.CompletedProcess[str], status: int, *, detail: bool = False
) -> list[str]:
    """Return the lines on stderr of a run that failed with the status, and with nothing else."""
    lines = done.stderr.splitlines()
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "/serve_zig/" not in done.stderr
    assert ("Traceback" in done.stderr) == detail, done.stderr
    assert lines
    if not detail:
        assert all(line.startswith("serve-zig: error: ") for line in lines), lines
    return lines


class Process:
    """A server that runs beside the test."""

    def __init__(self, folder: Path, *arguments: str, command: tuple[str, ...] = LAUNCH) -> None:
        self._log = folder / "log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def log(self) -> str:
        """Return what was written to stderr."""
        return self._log.read_text(encoding="utf-8")

    def wait_log(self, pattern: str, seconds: float = PATIENCE) -> re.Match[str]:
        """Wait until the log has the pattern, and return the match."""
        deadline = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.log())
            if match is not None:
                return match
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def port(self) -> int:
        """Wait until the server serves and return its port."""
        return int(self.wait_log(r" serves .* on http://[0-9.]+:(\d+)")[1])

    def end(self, *numbers: signal.Signals) -> int:
        """Send signals and return the exit status."""
        for number in numbers:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)


class Project:
    """A folder with a config and an application; servers started from it end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self.write(HELLO)
        self.configure('[app]\ntarget = "hello:app"\n[listen]\nbind = "127.0.0.1:0"\n')

    def write(self, text: str) -> None:
        """Write the application, hello.py."""
        (self.folder / "hello.py").write_text(dedent(text), encoding="utf-8")

    def configure(self, text: str) -> None:
        """Write the config, serve.toml."""
        (self.folder / "serve.toml").write_text(text, encoding="utf-8")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run serve-zig in the folder to its end."""
        return run(*arguments, folder=self.folder, environment=environment)

    def start(self, *arguments: str, command: tuple[str, ...] = LAUNCH) -> Process:
        """Start serve-zig in the folder."""
        process = Process(self.folder, *arguments, command=command)
        self.processes.append(process)
        return process


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Return a project with an application that works."""
    made = Project(tmp_path)
    yield made
    for process in made.processes:
        process.close()


def get(port: int, target: str = "/") -> bytes:
    """Return the body of the answer to a GET request."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode("latin-1"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.partition(b"\r\n\r\n")[2]


def answering(expression: str, imports: str = "") -> str:
    """Return an application that answers with the value of an expression."""
    return (
        f"{imports}\n"
        "def app(environ, start_response):\n"
        f"    body = str({expression}).encode()\n"
        '    start_response("200 OK", [("Content-Length", str(len(body)))])\n'
        "    return [body]\n"
    )


# Versions, help, and what is not there.


def test_version_names_serve_zig_python_and_zig(project: Project) -> None:
    done = project.run("--version")
    assert done.returncode == 0, done.stderr
    python = ".".join(map(str, sys.version_info[:3]))
    manifest = (REPOSITORY / "build.zig.zon").read_text(encoding="utf-8")
    version = re.search(r'\.version = "(.*?)"', manifest)
    assert version is not None
    assert serve_zig.__version__ == version[1]
    assert re.fullmatch(
        rf"serve-zig {re.escape(version[1])} \(\w+ {python}, Zig \d+\.\d+\.\d+\S*, .+\)\n",
        done.stdout,
    )


def test_package_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError, match="module 'serve_zig' has no attribute 'versoin'"):
        serve_zig.versoin  # noqa: B018


def test_help_names_options_and_exit_statuses(project: Project) -> None:
    done = project.run("--help")
    assert done.returncode == 0
    for text in (
        "--config",
        "--set",
        "--check",
        "--reload",
        "--version",
        "exit status:",
        "4  the drain",
    ):
        assert text in done.stdout
    for text in ("commands:", "serve-zig init", "serve-zig migrate", "serve-zig schema"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["hello:app"], '"hello:app" is not a command; name the application in the config file'),
        (["serve"], '"serve" is not a command; see serve-zig --help'),
        (["-c", "serve.toml", "schema"], "the command schema stands first: serve-zig schema"),
        (["-c", "gone.toml"], "gone.toml: no such file in "),
        (["--set", "threads=1"], '--set: threads: unknown key; did you mean "concurrency.threads"'),
        (["--set", "listen.bind=8000"], "--set: listen.bind: found the integer 8000; allowed is"),
    ],
)
def test_mistake_on_the_command_line(project: Project, arguments: list[str], what: str) -> None:
    (line,) = fails(project.run(*arguments), 2)
    assert line.startswith(f"serve-zig: error: {what}")


def test_unknown_option_is_refused(project: Project) -> None:
    done = project.run("--wrong")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "serve-zig: error: unrecognized arguments: --wrong"
    # No abbreviations: what works today by chance must not change its meaning tomorrow.
    assert project.run("--che").returncode == 2


def test_missing_extension_module_is_one_clear_line(project: Project) -> None:
    code = (
        "import sys; sys.modules['serve_zig._core'] = None; from serve_zig.cli import main; "
        "sys.exit(main())"
    )
    for arguments in ([], ["--version"]):
        done = run(*arguments, folder=project.folder, command=(sys.executable, "-c", code))
        (line,) = fails(done, 1)
        assert "serve_zig._core cannot be loaded" in line
        assert "pip install" in line


def test_a_start_imports_little() -> None:
    code = "import sys, serve_zig.cli, serve_zig.runner; print(*sys.modules)"
    # -S and an own path: what site-packages load at the start is not the launcher's.
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {paths!r}; {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    heavy = {"asyncio", "dataclasses", "difflib", "inspect", "locale", "logging", "random", "ssl"}
    heavy |= {"subprocess", "tempfile", "traceback", "typing"}
    assert not heavy & set(done.stdout.split())


# Checking a config.


def test_check_prints_the_resolved_config(project: Project) -> None:
    done = project.run("--check", "--set", "concurrency.threads=3")
    assert done.returncode == 0, done.stderr
    printed = tomli.loads(done.stdout)
    assert printed["app"] == {
        "target": "hello:app",
        "directory": str(project.folder),
        "startup": "",
        "shutdown": "",
        "startup_timeout": 0.0,
    }
    assert printed["concurrency"]["threads"] == 3
    assert printed["limits"]["body"] == "1 GiB"
    project.configure(done.stdout)
    assert project.run("--check").stdout == done.stdout


def test_check_prints_utf8_in_every_locale(project: Project) -> None:
    folder = project.folder / "caf\xe9"
    folder.mkdir()
    (project.folder / "hello.py").rename(folder / "hello.py")
    done = subprocess.run(
        [*LAUNCH, "--check", "--set", "app.directory=caf\xe9"],
        cwd=project.folder,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert tomli.loads(done.stdout.decode("utf-8"))["app"]["directory"] == str(folder)


def test_check_starts_nothing(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = project.run("--check", "--set", f"listen.bind=127.0.0.1:{port}")
    assert done.returncode == 0, done.stderr


def test_check_keeps_what_the_application_prints_out_of_the_config(project: Project) -> None:
    project.write(HELLO + "print('loading')\n")
    done = project.run("--check")
    assert done.returncode == 0
    tomli.loads(done.stdout)
    assert done.stderr == "loading\n"


def test_check_does_not_wait_for_threads_of_the_application(project: Project) -> None:
    project.write(
        HELLO + "import threading, time\nthreading.Thread(target=time.sleep, args=[600]).start()\n"
    )
    done = project.run("--check")
    assert done.returncode == 0
    tomli.loads(done.stdout)


def test_check_reports_every_mistake_of_the_config(project: Project) -> None:
    project.configure("[app]\ntarget = 'hello'\n[limits]\nfeilds = 1\n")
    lines = fails(project.run("--check"), 2)
    assert lines == [
        'serve-zig: error: serve.toml:4: limits.feilds: unknown key; did you mean "limits.fields"?',
        'serve-zig: error: serve.toml:2: app.target: found "hello", which has no colon; allowed is '
        '"package.module:callable", or "package.module:create_app()" for a factory',
    ]


@pytest.mark.parametrize("check", [["--check"], []])
def test_application_that_cannot_be_imported(project: Project, check: list[str]) -> None:
    project.write("def read():\n    raise OSError('no database')\nread()\n")
    lines = fails(project.run(*check), 3, detail=True)
    # From Python 3.13 on a line of marks may stand below the code.
    assert [line for line in lines if line.strip(" ~^")] == [
        'serve-zig: error: serve.toml:2: app.target: importing "hello" raised OSError: no database',
        "Traceback (most recent call last):",
        f'  File "{project.folder}/hello.py", line 3, in <module>',
        "    read()",
        f'  File "{project.folder}/hello.py", line 2, in read',
        "    raise OSError('no database')",
        "OSError: no database",
    ]


@pytest.mark.parametrize("check", [["--check"], []])
def test_application_that_is_not_there(project: Project, check: list[str]) -> None:
    (line,) = fails(project.run(*check, "--set", "app.target=helo:app"), 3)
    assert line.startswith('serve-zig: error: --set: app.target: no module "helo" in ')
    assert line.endswith('; did you mean "hello"?')


def test_interrupt_of_a_check(project: Project) -> None:
    project.write("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(600)\n")
    done = project.run("--check")
    assert done.returncode == 130
    assert done.stderr == "serve-zig: interrupted\n"


# Serving.


def test_serves_with_the_default_file(project: Project) -> None:
    server = project.start()
    assert get(server.port()) == b"hello"
    assert server.end(signal.SIGTERM) == 0
    lines = server.log().splitlines()
    assert all(RECORD.fullmatch(line) for line in lines), lines
    assert re.fullmatch(
        rf"\S+ info serve-zig \S+ \(pid {server.process.pid}\) serves hello:app on "
        r"http://127\.0\.0\.1:\d+ with 32 threads",
        lines[0],
    )
    assert any("SIGTERM: draining for at most 30 s" in line for line in lines)
    assert lines[-1].endswith(" info drained; the server ends")


def test_reference_config_serves_the_example(tmp_path: Path) -> None:
    arguments = ["-c", str(REPOSITORY / "serve.toml"), "--set", "listen.bind=127.0.0.1:0"]
    server = Process(tmp_path, *arguments)
    try:
        assert get(server.port()) == b"Hello, World!"
        assert server.end(signal.SIGINT) == 0
    finally:
        server.close()


def test_log_level_hides_what_is_less_important(project: Project) -> None:
    server = project.start("--set", "log.level=error", "--set", f"listen.bind=unix:{'s'}")
    path = project.folder / "s"
    deadline = time.monotonic() + PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                break
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.01)
    server.process.send_signal(signal.SIGHUP)
    assert server.end(signal.SIGTERM) == 0
    assert server.log() == ""
    assert not path.exists()


def test_taken_port_is_one_clear_line(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f"127.0.0.1:{taken.getsockname()[1]}"
        (line,) = fails(project.run("--set", f"listen.bind={text}"), 1)
    assert line == (
        f'serve-zig: error: --set: listen.bind: "{text}" is taken: the address is in use; stop its '
        "user or choose another"
    )


def test_taken_port_is_told_before_the_application_is_imported(project: Project) -> None:
    project.write("raise OSError('imported')\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f"127.0.0.1:{taken.getsockname()[1]}"
        assert len(fails(project.run("--set", f"listen.bind={text}"), 1)) == 1


def test_nobody_waits_for_an_application_that_is_still_imported(project: Project) -> None:
    # In short steps: a signal just before a system call does not end it.
    project.write(
        "import time\nopen('importing', 'w').close()\nfor _ in range(6000):\n    time.sleep(0.1)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = project.start("--set", f"listen.bind=127.0.0.1:{port}")
    deadline = time.monotonic() + PATIENCE
    while not (project.folder / "importing").exists():
        assert server.process.poll() is None, server.log()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)
    assert server.end(signal.SIGTERM) == 0
    assert server.log().endswith(" info SIGTERM: stopped before the server served\n")


def test_signal_that_the_import_swallows_still_counts(project: Project) -> None:
    project.write(
        """
        import os, signal
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            app = print
        """
    )
    server = project.start()
    assert server.end() == 0
    assert "SIGTERM: stopped before the server served" in server.log()


@pytest.mark.parametrize("times", [1, 3])
def test_signal_in_a_callback_ends_the_start_too(project: Project, times: int) -> None:
    """Python can raise nothing out of a finalizer, nor out of the one of each import's lock."""
    project.write(
        f"""
        import os, signal, time

        class Last:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(1000):
                    pass

        class Busy:
            def __del__(self):
                time.sleep(0.3)

        Last()
        for _ in range({times} - 1):
            Busy()
        time.sleep(600)
        """
    )
    server = project.start("--set", "log.level=error")
    assert server.end() == 0
    assert server.log() == ""


def test_errors_of_finalizers_are_told_during_the_start(project: Project) -> None:
    project.write(
        """
        class Broken:
            def __del__(self):
                raise ValueError("in a finalizer")

        Broken()
        raise SystemExit(3)
        """
    )
    assert "ValueError: in a finalizer" in project.run().stderr


def test_signal_that_breaks_the_import_is_no_failure_of_it(project: Project) -> None:
    project.write(
        """
        import os, signal
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise ImportError("interrupted") from None
        """
    )
    server = project.start()
    assert server.end() == 0
    assert "stopped before the server served" in server.log()


def test_stacks_that_cannot_be_told_during_the_import_are_told_after_it(project: Project) -> None:
    project.write(
        """
        import os, signal, sys
        sys.modules["traceback"] = None
        os.kill(os.getpid(), signal.SIGUSR1)
        del sys.modules["traceback"]
        app = lambda environ, start_response: []
        """
    )
    server = project.start()
    server.wait_log("warning SIGUSR1: 0 requests in flight")
    assert server.end(signal.SIGTERM) == 0


def test_second_signal_during_the_import_ends_at_once(project: Project) -> None:
    project.write(
        """
        import os, signal, time
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        """
    )
    assert project.start().end() == 1


STUBBORN = """
import sys, time
def app(environ, start_response):
    print("running", file=sys.stderr, flush=True)
    until = time.monotonic() + 600
    while time.monotonic() < until:
        try:
            time.sleep(0.05)
        except BaseException:
            pass
"""


def begin(port: int) -> socket.socket:
    """Send a request that is not answered soon, and return its connection."""
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection


def test_drain_that_times_out_shows_what_still_runs(project: Project) -> None:
    project.write(STUBBORN)
    server = project.start("--set", "timeouts.drain=0.3")
    with begin(server.port()):
        server.wait_log("running")
        assert server.end(signal.SIGTERM) == 4
    log = server.log()
    assert re.search(r" error the drain timed out after 0\.3 s \(.*1 running", log)
    found = (
        r' error cut off: GET "/slow" from 127\.0\.0\.1 \(app for \d+\.\d s, thread serve-zig-\d+, '
    )
    assert re.search(rf"{found}request id \S+\)\n", log)
    assert re.search(rf'    File "{project.folder}/hello.py", line \d+, in app\n', log)
    assert "/serve_zig/" not in log
    assert "threading.py" not in log


def test_second_signal_ends_at_once(project: Project) -> None:
    project.write(STUBBORN)
    server = project.start()
    with begin(server.port()):
        server.wait_log("running")
        server.process.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        assert server.end(signal.SIGINT) == 1
    assert "warning SIGINT: the second signal; the server stops at once" in server.log()


def test_exception_out_of_a_signal_handler_of_the_application(project: Project) -> None:
    """It is raised in the main thread, wherever that is; SystemExit drains as SIGTERM does."""
    project.write(
        """
        import os, signal

        def too_slow(number, frame):
            raise TimeoutError("too slow")

        def leave(number, frame):
            raise SystemExit

        signal.signal(signal.SIGALRM, too_slow)
        signal.signal(signal.SIGUSR2, leave)

        def app(environ, start_response):
            os.kill(os.getpid(), getattr(signal, environ["PATH_INFO"][1:]))
            start_response("200 OK", [])
            return [b"sent"]
        """
    )
    server = project.start()
    for count in (1, 2):
        assert get(server.port(), "/SIGALRM") == b"sent"
        server.wait_log("(?s)" + r"server goes on\n.*TimeoutError: too slow\n.*" * count)
    assert get(server.port(), "/SIGUSR2") == b"sent"
    assert server.end() == 0
    assert "info SystemExit: draining" in server.log()
    assert server.log().endswith(" info drained; the server ends\n")


def test_signal_handler_that_raises_all_the_time(project: Project) -> None:
    """The main thread does its work all the same, between one and the next."""
    project.write(
        HELLO
        + """
import signal

def too_slow(number, frame):
    raise TimeoutError("too slow")

signal.signal(signal.SIGALRM, too_slow)

def begin():
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.05)
"""
    )
    server = project.start(
        *("--set", "app.startup=hello:begin", "--set", "timeouts.drain_delay=0.3"),
        command=IMPATIENT,
    )
    server.wait_log("TimeoutError: too slow")
    assert get(server.port()) == b"hello"
    server.process.send_signal(signal.SIGTERM)
    server.wait_log(r"info drained; the server ends")


@pytest.mark.parametrize("handler", ["lambda *_: None", "lambda *_: sys.exit(1)", "signal.SIG_DFL"])
def test_application_may_not_keep_the_signals_of_the_server(project: Project, handler: str) -> None:
    project.write(
        HELLO
        + f"""
import signal, sys
for one in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
    signal.signal(one, {handler})
"""
    )
    server = project.start()
    server.wait_log("warning the application has replaced the handling of SIGTERM, SIGPIPE, SIGINT")
    assert get(server.port()) == b"hello"
    assert server.end(signal.SIGTERM) == 0
    assert server.log().endswith(" info drained; the server ends\n")


# Replaces what starts threads, as the module of this name does.
REPLACED = """
import _thread
original = _thread.start_new_thread
def start_new_thread(*given):
    return original(*given)
start_new_thread.__module__ = {module!r}
_thread.start_new_thread = start_new_thread
"""


@pytest.mark.parametrize("broken", ["", "raise RuntimeError('cannot release un-acquired lock')"])
def test_greenlets_for_threads_are_refused(project: Project, broken: str) -> None:
    """What gevent.monkey.patch_all and eventlet.monkey_patch do; nothing would be answered."""
    project.write(REPLACED.format(module="gevent.thread") + broken + "\n" + HELLO)
    for arguments in ((), ("--check",)):
        (line,) = fails(project.run(*arguments), 3)
        assert "has put greenlets in the place of threads" in line


def test_a_debugger_may_start_threads_in_its_own_way(project: Project) -> None:
    project.write(REPLACED.format(module="_pydev_bundle.pydev_monkey") + HELLO)
    server = project.start()
    assert get(server.port()) == b"hello"
    assert server.end(signal.SIGTERM) == 0


def test_error_of_the_application_is_one_record(project: Project) -> None:
    project.write(
        r"""
        def app(environ, start_response):
            raise ValueError("first\n2030-01-01T00:00:00.000Z info forged \x1b[2J")
        """
    )
    server = project.start()
    get(server.port(), '/path?a="\\')
    server.wait_log("ValueError: first")
    assert server.end(signal.SIGTERM) == 0
    lines = server.log().splitlines()
    (number,) = [number for number, line in enumerate(lines) if " error " in line]
    assert RECORD.fullmatch(lines[number])
    assert re.search(r' error application error: .*ValueError.*; GET "/path\?a=', lines[number])
    assert " from 127.0.0.1" in lines[number]
    trace = lines[number + 1 : -2]
    assert trace[0] == "    Traceback (most recent call last):"
    assert trace[-1] == r"    2030-01-01T00:00:00.000Z info forged \x1b[2J"
    assert all(line.startswith("    ") for line in trace)
    assert "/serve_zig/" not in server.log()


def test_workers_are_named_threads(project: Project) -> None:
    project.write(answering("threading.current_thread().name", "import threading"))
    server = project.start("--set", "concurrency.threads=2")
    assert re.fullmatch(rb"serve-zig-[0-2]", get(server.port()))
    assert server.end(signal.SIGTERM) == 0


def test_switch_interval_is_set(project: Project) -> None:
    project.write(answering("sys.getswitchinterval()", "import sys"))
    server = project.start("--set", "concurrency.switch_interval=0.001")
    assert float(get(server.port())) == pytest.approx(0.001)
    assert server.end(signal.SIGTERM) == 0


def test_no_signal_is_blocked(project: Project) -> None:
    imports = "import signal\nmask = signal.pthread_sigmask(signal.SIG_BLOCK, [])"
    expression = "mask | signal.pthread_sigmask(signal.SIG_BLOCK, [])"
    project.write(answering(expression, imports))
    server = project.start()
    assert get(server.port()) == b"set()"
    assert server.end(signal.SIGTERM) == 0


def test_process_that_the_application_forks_can_be_ended(project: Project) -> None:
    project.write(
        """
        import os, signal, time, warnings
        warnings.simplefilter("ignore")
        def child(number):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.write(write, b".")
                    # In the child of a thread CPython 3.13 looks for signals in such calls alone.
                    while True:
                        time.sleep(0.1)
                        signal.signal(signal.SIGWINCH, signal.SIG_DFL)
                except KeyboardInterrupt:
                    os._exit(7)
            os.read(read, 1)
            os.kill(pid, number)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """
        + answering("(child(signal.SIGTERM), child(signal.SIGINT))").replace("\n", "\n" + " " * 8)
    )
    server = project.start()
    assert get(server.port()) == b"(-15, 7)"
    assert server.end(signal.SIGTERM) == 0


def test_forked_process_is_ended_while_it_computes(project: Project) -> None:
    """The server handles none of its signals, also where CPython 3.13 would not look for them."""
    project.write(
        """
        import os, signal, time, warnings
        warnings.simplefilter("ignore")
        def child():
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(write, b".")
                end = time.monotonic() + 60
                while time.monotonic() < end:
                    pass
                os._exit(0)
            os.read(read, 1)
            os.kill(pid, signal.SIGTERM)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """
        + answering("{child() for _ in range(20)}").replace("\n", "\n" + " " * 8)
    )
    server = project.start()
    assert get(server.port()) == b"{-15}"
    assert server.end(signal.SIGTERM) == 0
    assert "wakeup" not in server.log()


def test_exit_functions_of_the_application_run(project: Project) -> None:
    project.write(HELLO + "import atexit, sys\natexit.register(print, 'bye', file=sys.stderr)\n")
    server = project.start()
    server.port()
    assert server.end(signal.SIGTERM) == 0
    assert server.log().endswith("bye\n")


def test_threads_of_the_application_do_not_keep_the_process(project: Project) -> None:
    project.write(
        HELLO
        + "import threading, time\n"
        + "threading.Thread(target=time.sleep, args=[600], name='pump').start()\n"
    )
    server = project.start(command=IMPATIENT)
    server.port()
    assert server.end(signal.SIGTERM) == 0
    assert "(threads of the application: pump); the process ends now" in server.log()


@pytest.mark.parametrize(
    ("then", "arguments", "status"),
    [
        ("import missing_module", (), 3),
        ("import missing_module", ("--check",), 3),
        ("import os; os.kill(os.getpid(), 15)", (), 0),
    ],
)
def test_threads_of_the_application_do_not_keep_a_start_that_failed(
    project: Project, then: str, arguments: tuple[str, ...], status: int
) -> None:
    """Else whoever started the process would see one that runs."""
    project.write(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[600], name='pump').start()\n" + then
    )
    server = project.start(*arguments, command=IMPATIENT)
    assert server.end() == status
    assert "(threads of the application: pump); the process ends now" in server.log()


def test_signal_after_a_start_that_failed_ends_at_once(project: Project) -> None:
    project.write(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[600], name='pump').start()\n"
        "import missing_module"
    )
    server = project.start(command=PATIENT)
    server.wait_log("No module named 'missing_module'")
    assert server.end(signal.SIGTERM) == 3


def test_check_in_a_process_of_somebody_elses_leaves_that_alone(project: Project) -> None:
    project.write("import missing_module")
    code = (
        "import time, serve_zig.process_end as end; from serve_zig.cli import main; "
        "end._END_SECONDS = end._FLUSH_SECONDS = 0.1; "
        "assert main(['--check']) == main([]) == 3; time.sleep(1); print('lives on')"
    )
    done = run(folder=project.folder, command=(sys.executable, "-c", code))
    assert (done.returncode, done.stdout) == (0, "lives on\n"), done.stderr


@pytest.mark.parametrize("stdout", ["None", "open(pipe[1], 'w')"])
def test_streams_of_the_application_do_not_keep_the_process(project: Project, stdout: str) -> None:
    """Neither none nor one into a full pipe, which the interpreter flushes at its very end."""
    project.write(
        HELLO
        + f"""
import os, sys
pipe = os.pipe()
os.set_blocking(pipe[1], False)
try:
    while True:
        os.write(pipe[1], bytes(4096))
except BlockingIOError:
    os.set_blocking(pipe[1], True)
sys.stdout = {stdout}
if {stdout.startswith("open")}:
    print("never read")
"""
    )
    server = project.start(command=IMPATIENT)
    server.port()
    assert server.end(signal.SIGTERM) == 0


def test_drain_that_timed_out_ends_with_any_stream(project: Project) -> None:
    project.write(STUBBORN + "import sys\nsys.stdout = object()\n")
    server = project.start("--set", "timeouts.drain=0.3")
    with begin(server.port()):
        server.wait_log("running")
        assert server.end(signal.SIGTERM) == 4


@pytest.mark.parametrize("stderr", ["None", "open(os.devnull, 'w')"])
def test_errors_are_told_past_the_applications_streams(project: Project, stderr: str) -> None:
    project.write(f"import os, sys\nsys.stderr = {stderr}\nraise RuntimeError('told')\n")
    fails(project.run(), 3, detail=True)
    project.write(
        HELLO + f"import os, sys\ndef down():\n    sys.stderr = {stderr}\n"
        "    raise RuntimeError('told')\n"
    )
    server = project.start("--set", "app.shutdown=hello:down")
    server.port()
    assert server.end(signal.SIGTERM) == 3
    assert "RuntimeError: told" in server.log()


def test_signal_after_the_drain_ends_at_once(project: Project) -> None:
    project.write(
        HELLO + "import threading, time\nthreading.Thread(target=time.sleep, args=[600]).start()\n"
    )
    server = project.start(command=PATIENT)
    server.port()
    server.process.send_signal(signal.SIGTERM)
    server.wait_log("drained; the server ends")
    time.sleep(0.3)
    assert server.end(signal.SIGTERM) == 1


def test_as_process_1_it_handles_signals(project: Project) -> None:
    namespace = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not make a process namespace")
    server = project.start(command=(*namespace, *LAUNCH))
    assert get(server.port()) == b"hello"
    # PID 1 waits for orphans; the server is its child.
    assert "(pid 2)" in server.log()
    outer = server.process.pid
    inner = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
    os.kill(int(inner), signal.SIGTERM)
    assert server.end() == 0
    assert "drained; the server ends" in server.log()


# The parts of the runner that a real process cannot be brought to show.


class StubServer:
    """A core whose workers end by themselves."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.stopped = threading.Event()

    def worker_count(self) -> int:
        """Return the number of workers."""
        return 2

    def run_worker(self, number: int) -> None:
        """End at once."""
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Take note."""
        self.stopped.set()


@pytest.mark.parametrize(
    ("error", "why"), [(MemoryError("full"), "MemoryError: full"), (None, "it returned")]
)
def test_worker_that_ends_by_itself_ends_the_server(
    capfd: pytest.CaptureFixture[str], error: BaseException | None, why: str
) -> None:
    server = StubServer(error)
    workers = runner.Workers(server, Log("info"))  # type: ignore[arg-type]
    workers.start()
    assert workers.join(PATIENCE)
    assert server.stopped.is_set()
    assert workers.has_failed
    assert f"error the worker serve-zig-0 has ended ({why}); the server stops\n" in (
        capfd.readouterr().err
    )


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_worker_may_end_when_the_server_does(
    capfd: pytest.CaptureFixture[str], error: BaseException | None
) -> None:
    workers = runner.Workers(StubServer(error), Log("info"))  # type: ignore[arg-type]
    workers.ending()
    workers.start()
    assert workers.join(PATIENCE)
    assert not workers.has_failed
    assert capfd.readouterr().err == ""


def test_threads_that_the_system_refuses_are_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = StubServer(None)
    workers = runner.Workers(server, Log("info"))  # type: ignore[arg-type]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LauncherError, match=r"only 0 of 2 threads; lower concurrency.threads"):
        workers.start()
    assert server.stopped.is_set()
    assert workers.join(PATIENCE)


def test_options_of_the_core_are_milliseconds_and_bytes(project: Project) -> None:
    config = load(
        str(project.folder / "serve.toml"),
        ["timeouts.head=0.0015", "limits.body=2 KiB", "concurrency.queue_timeout=1.5"],
    )
    options = runner.core_options(config, 77)
    assert options == {
        "threads": 32,
        "queue": 1024,
        "queue_timeout_ms": 1500,
        "connections": 77,
        "request_line_bytes": 8192,
        "head_bytes": 65536,
        "fields": 100,
        "body_bytes": 2048,
        "body_memory_bytes": 2048,
        "requests_per_connection": 0,
        "response_memory_bytes": 1024**2,
        "buffer_memory_bytes": 256 * 1024**2,
        "head_timeout_ms": 2,
        "body_timeout_ms": 30_000,
        "keep_alive_timeout_ms": 75_000,
        "write_timeout_ms": 3_600_000,
        "drain_timeout_ms": 30_000,
        "temporary_directory": options["temporary_directory"],
        "proxy_trusted": "",
        "proxy_headers": "x-forwarded",
        "proxy_protocol": False,
        "python_version": options["python_version"],
        "access_log": "",
        "access_exclude": "",
        "log_json": False,
        "log_level": 2,
        "phases": False,
        "slow_request_ms": 0,
        "server_timing": False,
        "static": [],
        "in_band": "",
        "request_action": 0,
        "request_timeout_ms": 0,
        "requests_limit": 0,
    }
    assert os.path.isdir(str(options["temporary_directory"]))


def test_temporary_directory_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert runner.temporary_directory() == str(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setenv("TEMP", str(tmp_path))
    assert runner.temporary_directory() == str(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert runner.temporary_directory() == "/tmp"


@pytest.mark.parametrize(
    ("soft", "hard", "refused", "connections", "limit"),
    [
        (30_000, 30_000, False, 10_000, 30_000),
        (1024, 30_000, False, 10_000, 20_256),
        (1024, -1, False, 10_000, 20_256),
        (1024, 12_000, False, 10_000, 12_000),
        (10_000, 10_000, False, 9744, 10_000),
        (-1, -1, False, 10_000, -1),
        (1024, 4096, False, 3840, 4096),
        (1024, -1, True, 768, 1024),
        (256, 256, False, 128, 256),
        (1, 1, False, 1, 1),
    ],
)
def test_connections_fit_the_open_files(
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    refused: bool,
    connections: int,
    limit: int,
) -> None:
    limits = [(soft, hard)]

    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        if refused:
            raise ValueError("not allowed to raise maximum limit")
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert descriptors.fit_connections(10_000) == connections
    assert limits[-1] == (limit, hard)


def test_connections_that_do_not_fit_are_cut_with_a_warning(project: Project) -> None:
    command = ("/bin/sh", "-c", 'ulimit -n 512; exec "$0" "$@"', *LAUNCH)
    server = project.start(command=command)
    server.port()
    assert server.end(signal.SIGTERM) == 0
    assert (
        " warning limits.connections is cut from 10000 to 256: this process may open no more "
        "files (ulimit -n)\n"
    ) in server.log()


# The log.


def test_report_of_what_broke_the_protocol(capfd: pytest.CaptureFixture[str]) -> None:
    Log("error").report("protocol", 'the status "20" is no status', None, "GET", "/\x1b\xe9\n", "")
    line = capfd.readouterr().err
    assert RECORD.fullmatch(line.rstrip("\n"))
    assert line.endswith(
        ' error protocol error: the status "20" is no status; GET "/\\x1b\\xe9\\n" from a unix '
        "socket\n"
    )


def test_report_survives_an_exception_that_cannot_be_formatted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: BaseException) -> str:
        raise OSError("too many open files")

    monkeypatch.setattr("serve_zig.logging.format_exception", fail)
    Log("info").report("application", "raised", ValueError("x"), "GET", "/", "192.0.2.1")
    head, detail = capfd.readouterr().err.splitlines()
    assert head.endswith(' error application error: raised: ValueError; GET "/" from 192.0.2.1')
    assert detail == "    (no traceback: OSError)"


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(capfd: pytest.CaptureFixture[str], level: str, written: list[str]) -> None:
    log = Log(level)
    log.info("x")
    log.warning("x")
    log.error("x")
    assert [line.split()[1] for line in capfd.readouterr().err.splitlines()] == written


def test_log_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int, __: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", fail)
    Log("info").info("x")


def test_long_records_are_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[bytes] = []

    def write(_: int, data: bytes) -> int:
        parts.append(data[:10])
        return len(parts[-1])

    monkeypatch.setattr(os, "write", write)
    Log("info").error("x" * 100, "detail\nmore \ud800")
    assert b"".join(parts).endswith(b"x" * 100 + b"\n    detail\n    more \\ud800\n")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("/a?b=c", "/a?b=c"),
        ('/"', r"/\""),
        ("/\\", r"/\\"),
        ("/\r\n\x00\x1b\x7f", r"/\r\n\x00\x1b\x7f"),
        ("/\x9b\xff", r"/\x9b\xff"),
        ("/\u2028\ud800", r"/\u2028\ud800"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_default_address_is_loopback() -> None:
    # A server that is tried out must not be open to the network.
    config = load(str(REPOSITORY / "serve.toml"))
    for text in config.strings("listen.bind"):
        address = parse_address(text)
        assert getattr(address, "host", "") == "127.0.0.1"
