"""serve-zig top: the live view of a running server, printed once and in a terminal."""

import http.server
import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from admin_client import serve_with_admin
from serve_zig import top
from serving import REPOSITORY, Server, Servers, wait_until
from wire import PATIENCE, get

COMMAND = [sys.executable, "-m", "serve_zig", "top"]


def run(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        # Wide enough that no line is cut.
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_once(serve: Servers) -> None:
    """One picture: what the server is, how it does, and who is in flight, the oldest first."""
    server, admin = serve_with_admin(serve, "holding:app", {"concurrency": {"threads": 2}})
    with server.connect() as first, server.connect() as second, server.connect() as third:
        first.send(get("/gate?top&"))
        second.send(get("/gate?top"))
        server.wait_event("begun", path="/gate", count=2)
        third.send(get("/queued"))
        wait_until(lambda: admin.json()["queue"]["depth"] == 1, PATIENCE, lambda: "not queued")
        done = run(f"http://{admin.bind}", "--once", "--interval=0.2")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"serve-zig 0.1.0 · serving · pid {server.process.pid} · up ")
        shown = "\n".join(lines)
        assert "[████████████████████] 2 running, 0 waiting for the GIL" in shown
        assert "queue        1 of 1024 waiting, 3 in flight, saturation 1.50" in shown
        table = lines[lines.index(next(line for line in lines if "AGE" in line)) + 1 :]
        assert len(table) == 3
        assert re.fullmatch(
            r" +\d.* (s|ms)  app    serve-zig-\d +127\.0\.0\.1 +GET /gate\?top&?", table[0]
        )
        assert re.fullmatch(r" +\d.* (s|ms)  queue +127\.0\.0\.1 +GET /queued", table[2])
        # A pipe is no terminal: no escape sequences, and one picture is enough.
        assert "\x1b" not in done.stdout
        (server.folder / "gate-top&").touch()
        server.open_gate("top")
        for connection in (first, second, third):
            assert connection.response().status == 200


def test_address_from_the_config_file(serve: Servers) -> None:
    """In the folder of serve.toml no address is needed."""
    server, admin = serve_with_admin(serve)
    done = run("--once", "--interval=0.1", cwd=server.folder)
    assert done.returncode == 0, done.stderr
    assert admin.bind in done.stdout.splitlines()[0]


def test_unix_socket(serve: Servers) -> None:
    """An admin listener without a port."""
    with tempfile.TemporaryDirectory(prefix="sz", dir="/tmp") as folder:
        serve("echo:app", {"admin": {"bind": f"unix:{folder}/admin.sock"}})
        done = run(f"unix:{folder}/admin.sock", "--once", "--interval=0.1")
        assert done.returncode == 0, done.stderr
        assert "serving" in done.stdout


def test_nobody_answers(serve: Servers) -> None:
    """One line with the mend; a server that is no admin listener is told apart."""
    done = run("http://127.0.0.1:9", "--once")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "127.0.0.1:9" in done.stderr
    assert "admin.bind" in done.stderr
    server = serve("echo:app")
    done = run(server.url, "--once")
    assert done.returncode == 1
    assert "admin" in done.stderr
    done = run("nonsense", "--once")
    assert done.returncode == 2


def read_until(descriptor: int, pattern: str, within: float = PATIENCE) -> str:
    """Read a terminal's output until it matches."""
    text = ""
    deadline = time.monotonic() + within
    while not re.search(pattern, text):
        left = deadline - time.monotonic()
        ready = left > 0 and select.select([descriptor], [], [], left)[0]
        assert ready, text[-2000:]
        text += os.read(descriptor, 1 << 16).decode("utf-8", "replace")
    return text


def watch(server: Server, bind: str) -> None:
    """Run it in a terminal until a key ends it."""
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, bind, "--interval=0.1"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        first = read_until(terminal, r"\x1b\[\?1049h.*serve-zig 0\.1\.0 · serving")
        assert "\x1b[?25l" in first
        server.exchange(get("/"))
        read_until(terminal, r"so far +[1-9]\d* requests")
        os.write(terminal, b"q")
        read_until(terminal, r"\x1b\[\?25h\x1b\[\?1049l")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_terminal(serve: Servers) -> None:
    """It draws on a screen of its own, again and again, and leaves the terminal as it was."""
    server, admin = serve_with_admin(serve)
    watch(server, admin.bind)


def test_numbers_are_easy_to_read() -> None:
    """Units that fit."""
    times = [0, 0.0000004, 0.00025, 0.0123, 0.99996, 1.26, 75, 5000]
    assert [top.duration(one) for one in times] == [
        "0 µs",
        "0 µs",
        "250 µs",
        "12.3 ms",
        "1.0 s",
        "1.3 s",
        "1.2 min",
        "1.4 h",
    ]
    amounts = [0, 7, 7.25, 123.4, 9999, 12_345, 2_500_000, 3e9]
    assert [top.amount(one) for one in amounts] == [
        "0",
        "7",
        "7.2",
        "123",
        "9999",
        "12.3 k",
        "2.5 M",
        "3 G",
    ]
    assert top.bars([0, 5, 10]) == "▁▄█"
    assert top.bars([0, 0]) == ""


def test_quantile_is_of_what_came_since() -> None:
    """Not of the whole life of the server."""
    before = {"bounds": [0.1, 1.0], "request": {"buckets": [100, 0, 0]}}
    now = {"bounds": [0.1, 1.0], "request": {"buckets": [100, 99, 1]}}
    assert top.quantile(now, before, 0.99) == 1.0
    assert top.quantile(now, now, 0.99) == 0.0
    both = {"count": 4, "sum": 3.0}
    assert top.mean(both, {"count": 2, "sum": 2.0}) == 0.5
    assert top.mean(both, both) == 0.0


class Answering(http.server.BaseHTTPRequestHandler):
    """An endpoint that answers everything with what its server was given."""

    def do_GET(self) -> None:
        status, body = self.server.given  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def top_of(status: int, body: bytes) -> subprocess.CompletedProcess[str]:
    """Run top once against an endpoint that answers so."""
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        server.given = (status, body)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            return run(f"127.0.0.1:{server.server_port}", "--once", "--interval=0.1")
        finally:
            server.shutdown()
            thread.join()


def test_escape_sequences_of_a_hostile_endpoint_are_shown() -> None:
    """The terminal obeys none of them."""
    hostile = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\ud800"
    status = {
        "version": hostile,
        "state": hostile,
        "python": hostile,
        "pid": hostile,
        "uptime": 1.0,
        "stalled": 0,
    }
    done = top_of(200, json.dumps(status).encode())
    assert done.returncode == 0, done.stderr
    assert "owned" in done.stdout
    assert all(one.isprintable() for one in done.stdout.strip("\n"))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"state": "serving"}'),
        (
            200,
            b'{"state": "serving", "version": "1", "pid": 1, "uptime": "\\u001b[2J", "python": ""}',
        ),
        (
            200,
            b'{"state": "serving", "version": "1", "pid": 1, "uptime": 1, "python": "", '
            b'"counters": []}',
        ),
        (200, b"[]"),
        (200, b'"state"'),
        (200, b"<html>the application</html>"),
        (200, b"[" * 100_000),
        (404, b"not found"),
        (404, b'{"state": 1}'),
    ],
)
def test_what_is_not_an_admin_listener_is_said_so(status: int, body: bytes) -> None:
    """As where the main port was named: in one line, which says where to look."""
    done = top_of(status, body)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "is not the admin listener of a serve-zig" in line
    assert "admin.bind" in line
    assert line.isprintable()


def test_refusal_of_the_admin_listener_is_shown() -> None:
    done = top_of(421, b"name it in admin.hosts\x1b[2J\n")
    assert done.returncode == 1
    assert "name it in admin.hosts" in done.stderr
    assert "\x1b" not in done.stderr
