"""The end of a server's life: the drain and its delay, limits that end it, PID 1, restarts."""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from admin_client import serve_with_admin
from serve_zig import runner
from serving import REPOSITORY, Server, Servers, address_of, wait_until
from wire import PATIENCE, Connection, Silence, all_closed, get, post


def refuses(server: Server) -> bool:
    """Whether a new connection is not let in; its first packet may be dropped for a moment."""
    family, address = address_of(server.binds[0])
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(address) != 0


# The delay


def test_drain_delay_goes_on_accepting(serve: Servers) -> None:
    """/readyz fails at once; new connections are served, each for one request, until it is over."""
    server, admin = serve_with_admin(serve, "working:app", {"timeouts": {"drain_delay": 6.0}})
    with server.connect() as kept:
        kept.send(get("/before"))
        assert not kept.response().closes
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert admin.wait_ready(503) == "not ready: draining\n"
        assert admin.json()["state"] == "draining"
        kept.send(get("/kept"))
        response = kept.response()
        assert response.body == b"done /kept"
        assert response.closes
        kept.expect_close()
        for _ in range(20):
            response = server.exchange(get("/new"))
            assert response.body == b"done /new"
            assert response.closes
            time.sleep(0.02)
        assert server.wait() == 0
        assert time.monotonic() - began > 5.9
    assert re.search(r"SIGTERM: draining in 6 s, for at most 20 s", server.log())


def test_request_that_begins_in_the_delay_is_finished(serve: Servers) -> None:
    """The drain's own time begins after the delay."""
    config = {"timeouts": {"drain_delay": 4.0, "drain": 20.0}}
    server, _ = serve_with_admin(serve, "working:app", config)
    server.send_signal(signal.SIGTERM)
    server.wait_log("draining in")
    with server.connect() as connection:
        connection.send(get("/gate?delay"))
        server.wait_event("begun", path="/gate")
        wait_until(lambda: refuses(server), PATIENCE, lambda: "the delay does not end")
        server.open_gate("delay")
        assert connection.response().body == b"done /gate"
    assert server.wait() == 0


def test_second_signal_in_the_delay_ends_at_once(serve: Servers) -> None:
    """Who sends it twice does not want to wait."""
    server, _ = serve_with_admin(serve, "working:app", {"timeouts": {"drain_delay": 600.0}})
    server.send_signal(signal.SIGTERM)
    server.wait_log("draining in")
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 1


# Nothing accepted is lost


@pytest.mark.skipif(sys.platform != "linux", reason="stops the process with connections queued")
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_what_the_kernel_has_accepted_is_answered(
    serve: Servers, tmp_path: Path, kind: str
) -> None:
    """Connections in the accept queue when SIGTERM comes; the process has not seen them yet."""
    bind = {} if kind == "tcp" else {"listen": {"bind": f"unix:{tmp_path}/a.sock"}}
    server = serve("working:app", bind)
    # It accepts a moment before it serves, and a signal then ends the start.
    server.wait_log(" serves ")
    server.send_signal(signal.SIGSTOP)
    try:
        connections = [server.connect() for _ in range(50)]
        for number, connection in enumerate(connections):
            connection.send(get(f"/queued{number}"))
        server.send_signal(signal.SIGTERM)
    finally:
        server.send_signal(signal.SIGCONT)
    with all_closed(connections):
        for number, connection in enumerate(connections):
            response = connection.response()
            assert response.body == f"done /queued{number}".encode()
    assert server.wait() == 0


@pytest.mark.timing
def test_exit_soon_after_the_longest_request(serve: Servers) -> None:
    """At most 0.2 s after it, though its client keeps the connection, and another is idle."""
    best = 10.0
    for _ in range(3):
        server = serve("working:app")
        with server.connect() as idle, server.connect() as busy:
            idle.send(get("/idle"))
            assert idle.response().status == 200
            busy.send(get("/sleep?0.5"))
            server.wait_event("begun", path="/sleep")
            server.send_signal(signal.SIGTERM)
            assert busy.response().body == b"done /sleep"
            answered = time.monotonic()
            assert server.wait() == 0
            best = min(best, time.monotonic() - answered)
        if best < 0.2:
            break
    assert best < 0.2


# They end long before the drain would; how soon after the five seconds is a question of time.
FIVE_SECONDS = pytest.mark.parametrize(
    "seconds_max", [PATIENCE, pytest.param(6.5, marks=pytest.mark.timing)]
)


@FIVE_SECONDS
def test_requests_not_fully_received_get_five_seconds(serve: Servers, seconds_max: float) -> None:
    """Neither at once nor as long as the drain: then 408."""
    config = {"timeouts": {"drain": 600.0, "head": 600.0, "body": 600.0}}
    server, _ = serve_with_admin(serve, "working:app", config)
    whole = post("/late", b"x" * 100)
    with server.connect() as head, server.connect() as body, server.connect() as in_time:
        head.send(whole[:30])
        body.send(whole[:-50])
        in_time.send(whole[:-10])
        # A whole exchange: the others have been read by then.
        assert server.exchange(get("/whole")).status == 200
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        in_time.send(whole[-10:])
        assert in_time.response().body == b"done /late"
        head.timeout = 2.0
        with pytest.raises(Silence):
            head.response()
        head.timeout = body.timeout = PATIENCE
        assert head.response().status == 408
        assert body.response().status == 408
        assert 4.5 < time.monotonic() - began < seconds_max
        head.close()
        body.close()
        assert server.wait() == 0


@FIVE_SECONDS
def test_streamed_uploads_get_five_seconds(serve: Servers, seconds_max: float) -> None:
    """Handlers that have begun and wait for the rest are told so, also where a little comes."""
    config = {"timeouts": {"drain": 600.0, "body": 600.0}}
    server, _ = serve_with_admin(serve, "working:app", config)
    head = get("/body", "Content-Length: 1000000", "Expect: 100-continue", method="POST")
    with server.connect() as silent, server.connect() as slow:
        for upload in (silent, slow):
            upload.send(head)
            assert upload.interim_response().status == 100
            upload.send(b"x" * 100)
        server.wait_event("begun", path="/body", count=2)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        while (
            time.monotonic() - began < PATIENCE and not select.select([slow.socket], [], [], 0.1)[0]
        ):
            slow.offer(b"x" * 100)
        assert slow.response().status == 408
        assert silent.response().status == 408
        assert 4.5 < time.monotonic() - began < seconds_max
        silent.close()
        slow.close()
        assert server.wait() == 0
    assert server.log().count("refused 408 body_timeout") == 2


def test_cut_off_requests_are_logged_with_their_stacks(serve: Servers) -> None:
    """Exit status 4, and who was still at what."""
    config = {"timeouts": {"drain": 0.4}, "concurrency": {"threads": 2}}
    server, admin = serve_with_admin(serve, "working:app", config)
    with server.connect() as first, server.connect() as second, server.connect() as third:
        for number, connection in enumerate((first, second)):
            connection.send(get(f"/stubborn?20{number}"))
        server.wait_event("begun", path="/stubborn", count=2)
        third.send(get("/queued"))
        wait_until(lambda: admin.json()["queue"]["depth"] == 1, PATIENCE, lambda: "not queued")
        assert server.stop() == 4
    log = server.log()
    for number in range(2):
        assert re.search(rf'error cut off: GET "/stubborn\?20{number}" .*\n(    .*\n)+', log)
    assert log.count("working.py") >= 2
    assert 'cut off: GET "/queued"' in log


# Limits on the whole process


def test_limit_on_requests(serve: Servers) -> None:
    """limits.requests: /readyz turns, then the drain, then status 0, for a replacement."""
    config = {"limits": {"requests": 20}, "timeouts": {"drain_delay": 4.0}}
    server, admin = serve_with_admin(serve, "working:app", config)
    with server.connect() as connection:
        for number in range(20):
            assert admin.text("/readyz") == "ready\n"
            connection.send(get(f"/{number}"))
            assert connection.response().status == 200
        assert admin.wait_ready(503) == "not ready: draining\n"
        assert server.exchange(get("/beyond")).status == 200
    assert server.wait() == 0
    assert "limits.requests: 20 requests have been answered: draining" in server.log()


def test_limit_on_requests_is_reached_by_a_file(serve: Servers, tmp_path: Path) -> None:
    """Also the last of them closes its connection only once the delay is over."""
    (tmp_path / "file").write_bytes(b"in here")
    config = {
        "limits": {"requests": 3},
        "timeouts": {"drain_delay": 4.0},
        "static": [{"route": "/files", "directory": str(tmp_path)}],
    }
    server, admin = serve_with_admin(serve, "working:app", config)
    with server.connect() as connection:
        for _ in range(3):
            connection.send(get("/files/file"))
            response = connection.response()
            assert response.body == b"in here"
        assert not response.closes
        assert admin.wait_ready(503) == "not ready: draining\n"
        connection.send(get("/files/file"))
        response = connection.response()
        assert response.body == b"in here"
        # As every response of the delay: connections end one by one, not all with the drain.
        assert response.closes
    assert server.wait() == 0


def test_limit_on_requests_under_load(serve: Servers) -> None:
    """Those that come meanwhile are answered."""
    server = serve("working:app", {"limits": {"requests": 50}})
    with all_closed([server.connect() for _ in range(20)]) as connections:
        for _ in range(10):
            for connection in list(connections):
                connection.send(get("/load"))
            for connection in list(connections):
                response = connection.response()
                assert response.status == 200
                if response.closes:
                    connections.remove(connection)
                    connection.close()
    assert server.wait() == 0


def test_limit_on_requests_is_spread() -> None:
    """limits.requests_jitter: replicas that started together do not end together."""
    limits = {runner.requests_limit(1000, 50) for _ in range(500)}
    assert min(limits) >= 1000
    assert max(limits) <= 1050
    assert len(limits) > 20
    assert runner.requests_limit(1000, 0) == 1000
    assert runner.requests_limit(0, 50) == 0


GROWING = """
import os
kept = []
def app(environ, start_response):
    kept.append(os.urandom(1 << 20) * int(environ["QUERY_STRING"]))
    start_response("200 OK", [])
    return [b"grown"]
"""


def test_limit_on_memory(serve: Servers) -> None:
    """limits.memory: the same when the process has grown past it."""
    server = serve("growing:app", {"limits": {"memory": "80 MiB"}}, {"growing.py": GROWING})
    assert server.exchange(get("/?1")).status == 200
    time.sleep(1.2)
    assert server.process.poll() is None
    assert server.exchange(get("/?90")).status == 200
    assert server.wait() == 0
    assert re.search(
        r"limits\.memory: \d+\.\d MiB are resident, which is more than 80\.0 MiB: draining",
        server.log(),
    )


# PID 1

ORPHANS = """
import os, subprocess, time
def app(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/orphan":
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                time.sleep(0.2)
                os._exit(0)
            os._exit(0)
        os.waitpid(child, 0)
        return [b"orphaned"]
    # The application's own children are its own to wait for, also late.
    process = subprocess.Popen(["sh", "-c", "exit 7"])
    time.sleep(0.3)
    return [str(process.wait()).encode()]
"""


def can_unshare() -> bool:
    """Whether a process may have a PID namespace here."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False)
    return done.returncode == 0


def children_of(pid: int) -> dict[int, str]:
    """Return the state of each child of a process, by its id."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry}/stat").read_text("ascii", "replace")
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if int(fields[1]) == pid:
            found[int(entry)] = fields[0]
    return found


# Starts a program whose children the kernel waits for, telling nobody.
IGNORING = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)


@pytest.mark.skipif(not can_unshare(), reason="no PID namespaces here (unshare --pid)")
@pytest.mark.parametrize("before", [(), IGNORING], ids=["", "SIGCHLD ignored"])
def test_pid_1(tmp_path: Path, before: tuple[str, ...]) -> None:
    """Orphans are waited for, the application's own children are not, and signals do their work."""
    (tmp_path / "orphans.py").write_text(ORPHANS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "serve.toml").write_text(
        f'[app]\ntarget = "orphans:app"\n[listen]\nbind = "127.0.0.1:{port}"\n'
    )
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    with open(tmp_path / "log", "wb") as log:
        outer = subprocess.Popen(
            [
                *(*command, *before),
                *(sys.executable, "-m", "serve_zig", "-c", str(tmp_path / "serve.toml")),
            ],
            stderr=log,
            cwd=REPOSITORY,
        )
    try:
        init = wait_until(
            lambda: next(iter(children_of(outer.pid)), None), PATIENCE, lambda: "no PID 1"
        )
        address = ("127.0.0.1", port)
        wait_until(lambda: _accepts(address), PATIENCE, lambda: (tmp_path / "log").read_text())
        for _ in range(5):
            assert _ask(address, "/orphan") == b"orphaned"
        assert _ask(address, "/own") == b"7"
        (server,) = (pid for pid, state in children_of(init).items() if state != "Z")
        wait_until(
            lambda: set(children_of(init)) == {server},
            PATIENCE,
            lambda: f"left: {children_of(init)}",
        )
        os.kill(init, signal.SIGTERM)
        assert outer.wait(PATIENCE) == 0
        assert "SIGTERM: draining" in (tmp_path / "log").read_text()
    finally:
        outer.kill()
        outer.wait()


def _accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def _ask(address: tuple[str, int], path: str) -> bytes:
    with Connection(socket.AF_INET, address) as connection:
        connection.send(get(path))
        return connection.response().body


# Restarts behind a proxy


def test_rolling_restarts_lose_no_request() -> None:
    """Three restarts under load behind each proxy; docs/OPERATIONS.md records fifty."""
    proxies = [proxy for proxy in ("haproxy", "nginx") if shutil.which(proxy) is not None]
    if not proxies:
        pytest.skip("neither HAProxy nor nginx is installed (Debian: apt install haproxy nginx)")
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "rolling.py")]
    sizes = ["--restarts=3", "--requests=300", "--clients=8"]
    # A busy machine may keep a proxy from its checks for longer than the usual half second.
    sizes.append("--drain-delay=3")
    running = [
        subprocess.Popen([*command, f"--proxy={proxy}", *sizes], stdout=subprocess.PIPE, text=True)
        for proxy in proxies
    ]
    for process in running:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        found = json.loads(output)
        assert found["failed"] == 0
        assert found["restarts"] == 3
        assert found["requests"] >= 300
        assert found["exit_statuses"] == {"0": 3}
        assert found["processes"] >= 4
