"""Start, signals, drain and end of the process; every kind of listener."""

import os
import signal
import socket
import stat
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Server, Servers, address_of, free_port, wait_until
from wire import PATIENCE, Connection, all_closed, get, post

SIGNALS = [signal.SIGTERM, signal.SIGINT]
# What keeps a server until the end of its drain keeps it beyond the test.
LONG_DRAIN = {"timeouts": {"drain": 600.0, "head": 600.0, "body": 600.0}}


def begin(server: Server, target: str) -> Connection:
    """Send a request and return when the application works on it."""
    count = len(server.events("begun"))
    connection = server.connect()
    connection.send(get(target))
    server.wait_event("begun", count=count + 1)
    return connection


def refuses(server: Server) -> bool:
    """Whether a new connection is not let in, rather than taken and then dropped."""
    family, address = address_of(server.binds[0])
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # For a moment the first packet of a handshake is dropped, before it is refused.
        probe.settimeout(0.2)
        return probe.connect_ex(address) != 0


# Signals


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_an_idle_server(serve: Servers, number: signal.Signals) -> None:
    """Row: exit code."""
    server = serve("echo:app", LONG_DRAIN)
    server.exchange(get("/"))
    assert server.stop(number) == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_finishes_what_runs(serve: Servers, number: signal.Signals) -> None:
    """Rows: SIGTERM: in-flight request completes; that response says `Connection: close`."""
    server = serve("working:app")
    with begin(server, "/gate?running") as connection:
        server.send_signal(number)
        wait_until(lambda: refuses(server), PATIENCE, lambda: "still accepts")
        server.open_gate("running")
        response = connection.response()
        assert response.body == b"done /gate"
        assert response.closes
        connection.expect_close()
    assert server.wait() == 0


def test_new_connections_are_refused_while_draining(serve: Servers) -> None:
    """Row: SIGTERM: new connection during drain."""
    server = serve("working:app")
    with begin(server, "/gate?draining") as connection:
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server), PATIENCE, lambda: "still accepts")
        # Not once more: a balancer that retries elsewhere must be told at the door.
        for _ in range(20):
            assert refuses(server)
            time.sleep(0.005)
        server.open_gate("draining")
        assert connection.response().status == 200
    assert server.wait() == 0


def test_request_on_an_open_connection_while_draining(serve: Servers) -> None:
    """Row: SIGTERM: next request on an open keep-alive connection."""
    server = serve("working:app", {"concurrency": {"threads": 2}})
    with server.connect() as idle, begin(server, "/gate?open") as busy:
        idle.send(get("/first"))
        assert idle.response().status == 200
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server), PATIENCE, lambda: "still accepts")
        idle.offer(get("/second"))
        answer = idle.read_to_end(reset_counts=True)
        # Closed before it came, or answered with close: either is an honest answer.
        assert answer == b"" or b"connection: close" in answer.lower()
        server.open_gate("open")
        assert busy.response().status == 200
    assert server.wait() == 0


def test_pipelined_request_behind_the_running_one(serve: Servers) -> None:
    """What was received behind the last answered request is served or left, never half of it."""
    server = serve("working:app")
    with server.connect() as connection:
        connection.send(get("/gate?pipelined") + get("/behind"))
        server.wait_event("begun", path="/gate")
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server), PATIENCE, lambda: "still accepts")
        server.open_gate("pipelined")
        first = connection.response()
        assert first.body == b"done /gate"
        if first.closes:
            connection.expect_cut()
        else:
            last = connection.response()
            assert last.body == b"done /behind"
            assert last.closes
    assert server.wait() == 0


def test_idle_connection_does_not_hold_the_server(serve: Servers) -> None:
    """Row (second battery): SIGTERM with 1 idle keep-alive connection."""
    server = serve("echo:app", LONG_DRAIN)
    with server.connect() as connection:
        connection.send(get("/"))
        assert connection.response().status == 200
        server.send_signal(signal.SIGTERM)
        connection.expect_close()
        assert server.wait() == 0


def test_silent_connection_does_not_hold_the_server(serve: Servers) -> None:
    """Row (second battery): SIGTERM with 1 silent connection."""
    server = serve("echo:app", LONG_DRAIN)
    with server.connect() as silent, server.connect() as other:
        other.send(get("/"))
        assert other.response().status == 200
        server.send_signal(signal.SIGTERM)
        silent.expect_close()
        assert server.wait() == 0


@pytest.mark.parametrize("part", ["head", "body"])
def test_half_sent_request_holds_the_server_no_longer_than_the_drain(
    serve: Servers, part: str
) -> None:
    """Row (second battery): SIGTERM with 1 half-sent request (head; body)."""
    server = serve("working:app", {"timeouts": {"drain": 1.0}})
    request = get("/half")[:-2] if part == "head" else post("/half", b"x" * 100)[:-50]
    with server.connect() as connection:
        connection.send(request)
        # A whole exchange on another connection: the half has been read by then.
        assert server.exchange(get("/whole")).status == 200
        assert server.stop() in (0, 4)
    assert not server.events("begun", path="/half")


def test_streaming_response_is_finished(serve: Servers) -> None:
    """Row (second battery): SIGTERM during a 1.6 s streaming response."""
    server = serve("working:app")
    with server.connect() as connection:
        connection.send(get("/stream?10"))
        assert connection.head().status == 200
        pieces = [connection.chunk()]
        server.send_signal(signal.SIGTERM)
        while piece := connection.chunk():
            pieces.append(piece)
        assert b"".join(pieces) == b"".join(b"piece %d\n" % number for number in range(10))
        connection.expect_close()
    assert server.wait() == 0


def test_slow_reader_gets_the_rest(serve: Servers) -> None:
    """A response that is made but not yet taken is still delivered."""
    server = serve("responding:app")
    with server.connect(receive_buffer=65536) as connection:
        connection.send(get("/large_list"))
        head = connection.head()
        connection.take(100_000)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert len(connection.take(head.length - 100_000)) == head.length - 100_000
        connection.expect_close()
    assert server.wait() == 0


def test_waiting_requests_are_answered(serve: Servers) -> None:
    """Row (second battery): SIGTERM with 8 x 1.5 s requests, 4 threads (here 8 x 0.4 s)."""
    server = serve("working:app", {"concurrency": {"threads": 4}})
    with all_closed([server.connect() for _ in range(8)]) as connections:
        for connection in connections:
            connection.send(get("/sleep?0.4"))
        server.wait_event("begun", count=4)
        # Answered without a thread: the other four are in the queue by then.
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        server.send_signal(signal.SIGTERM)
        for connection in connections:
            response = connection.response()
            assert response.body == b"done /sleep"
            assert response.closes
        assert server.wait() == 0


def test_drain_timeout(serve: Servers) -> None:
    """timeouts.drain: past it the server ends with status 4, whatever still runs."""
    server = serve("working:app", {"timeouts": {"drain": 0.5}})
    with begin(server, "/stubborn?600"):
        began = time.monotonic()
        assert server.stop() == 4
        assert time.monotonic() - began > 0.4
    assert "drain" in server.log().lower()


@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_ends_at_once(serve: Servers, number: signal.Signals) -> None:
    """Who sends it twice does not want to wait."""
    server = serve("working:app", LONG_DRAIN)
    with begin(server, "/stubborn?600"):
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server), PATIENCE, lambda: "still accepts")
        assert server.process.poll() is None
        server.send_signal(number)
        assert server.wait() != 0


def test_signal_right_after_the_start(serve: Servers) -> None:
    """There is no moment after the first accept at which a signal is an accident."""
    for _ in range(3):
        server = serve()
        assert server.stop() == 0


def test_sighup_is_survived(serve: Servers) -> None:
    """Row (second battery): SIGHUP."""
    server = serve()
    for _ in range(3):
        server.send_signal(signal.SIGHUP)
        assert server.exchange(get("/after")).status == 200
    assert server.stop() == 0


def test_signals_do_not_disturb_requests(serve: Servers) -> None:
    """System calls that a signal interrupts are begun again."""
    server = serve("working:app")
    with begin(server, "/sleep?0.5") as connection:
        for _ in range(20):
            server.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        assert connection.response().body == b"done /sleep"


def test_sigpipe_is_no_end(serve: Servers) -> None:
    """Writing to a client that has gone must not raise the signal that ends a process."""
    server = serve("responding:app")
    for _ in range(10):
        with server.connect() as connection:
            connection.send(get("/large_list") * 3)
            connection.reset()
    assert server.exchange(get("/hello")).body == b"hello"


# The start


@pytest.mark.timing
@pytest.mark.parametrize("kind", ["idle", "silent", "busy for a moment"])
def test_end_soon_after_a_signal(serve: Servers, kind: str) -> None:
    """What does not hold the server does not hold it for a second, either."""
    server = serve("working:app", LONG_DRAIN)
    with server.connect() as connection:
        if kind == "idle":
            connection.send(get("/"))
            assert connection.response().status == 200
        elif kind != "silent":
            connection.send(get("/sleep?0.2"))
            server.wait_event("begun", path="/sleep")
        assert server.exchange(get("/whole")).status == 200
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 1.5


@pytest.mark.timing
def test_start_up_time(serve: Servers, tmp_path: Path) -> None:
    """The first request is answered soon after exec: 0.15 s on a quiet machine.

    The bound here is three times that, for a machine that runs other things as well.
    """
    times = []
    for _ in range(5):
        began = time.monotonic()
        server = serve("echo:hello", wait=False)
        family, address = address_of(server.binds[0])

        def connected(family: int = family, address: object = address) -> Connection | None:
            try:
                return Connection(family, address)
            except ConnectionRefusedError:
                return None

        with wait_until(connected, PATIENCE, lambda: "does not accept") as connection:
            connection.send(get("/first"))
            assert connection.response().body == b"hello /first"
        times.append(time.monotonic() - began)
        assert server.stop() == 0
    assert statistics.median(times) < 0.45, times


def test_taken_port_is_one_clear_line(serve: Servers) -> None:
    """Two servers on one port: the second says so and ends with status 1."""
    first = serve()
    second = serve("echo:app", {"listen": {"bind": f"127.0.0.1:{first.port}"}}, wait=False)
    assert second.wait() == 1
    lines = [line for line in second.log().splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert str(first.port) in lines[0]
    assert "in use" in lines[0]
    assert first.exchange(get("/")).status == 200


def test_restart_on_the_same_port(serve: Servers) -> None:
    """Connections in TIME_WAIT do not keep the next server off the port."""
    first = serve()
    with first.connect() as connection:
        connection.send(get("/"))
        connection.response()
        # The server closes first, so that its side is the one to wait.
        assert first.stop() == 0
    second = serve("echo:app", {"listen": {"bind": f"127.0.0.1:{first.port}"}})
    assert second.exchange(get("/")).status == 200


# Listeners


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name fits into a unix socket's address."""
    with tempfile.TemporaryDirectory(prefix="sz", dir="/tmp") as folder:
        yield Path(folder)


def test_unix_socket(serve: Servers, short_folder: Path) -> None:
    """A unix socket serves like any other; there the client has no address."""
    path = short_folder / "app.sock"
    server = serve("inspecting:app", {"listen": {"bind": f"unix:{path}"}})
    with server.connect() as connection:
        for _ in range(3):
            connection.send(get("/over/unix"))
            environ = connection.response().json()["environ"]
            assert environ["PATH_INFO"] == "/over/unix"
            assert environ["REMOTE_ADDR"] == ""
            assert environ["SERVER_NAME"]
            assert isinstance(environ["SERVER_PORT"], str)
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_unix_socket_mode(serve: Servers, short_folder: Path, mode: int) -> None:
    """listen.unix_mode: who may connect, whatever the umask."""
    path = short_folder / "app.sock"
    server = serve("echo:app", {"listen": {"bind": f"unix:{path}", "unix_mode": mode}})
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert server.exchange(get("/")).status == 200


def test_stale_unix_socket_is_replaced(serve: Servers, short_folder: Path) -> None:
    """The file that a killed server left behind is no obstacle."""
    path = short_folder / "app.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    server = serve("echo:app", {"listen": {"bind": f"unix:{path}"}})
    assert server.exchange(get("/")).status == 200


def test_living_unix_socket_is_not_replaced(serve: Servers, short_folder: Path) -> None:
    """A server that listens there keeps its socket."""
    path = short_folder / "app.sock"
    first = serve("echo:app", {"listen": {"bind": f"unix:{path}"}})
    second = serve("echo:app", {"listen": {"bind": f"unix:{path}"}}, wait=False)
    assert second.wait() == 1
    assert str(path) in second.log()
    assert first.exchange(get("/")).status == 200


def test_other_file_is_not_replaced(serve: Servers, short_folder: Path) -> None:
    """What is no socket is not deleted."""
    path = short_folder / "precious"
    path.write_text("precious")
    server = serve("echo:app", {"listen": {"bind": f"unix:{path}"}}, wait=False)
    assert server.wait() in (1, 2)
    assert path.read_text() == "precious"
    assert str(path) in server.log()


def test_several_binds(serve: Servers, short_folder: Path) -> None:
    """Two ports and a unix socket at once; each connection knows its own port."""
    ports = [free_port(), free_port()]
    binds = [f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", f"unix:{short_folder}/app.sock"]
    server = serve("inspecting:app", {"listen": {"bind": binds}})
    for bind in binds * 2:
        with server.connect(bind) as connection:
            connection.send(get("/"))
            environ = connection.response().json()["environ"]
            if not bind.startswith("unix:"):
                assert environ["SERVER_PORT"] == bind.rpartition(":")[2]
    assert server.stop() == 0


def test_one_bind_of_several_is_taken(serve: Servers) -> None:
    """All or nothing: a server that cannot have each of its listeners does not start."""
    first = serve()
    binds = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{first.port}"]
    second = serve("echo:app", {"listen": {"bind": binds}}, wait=False)
    assert second.wait() == 1
    assert str(first.port) in second.log()


def has_ipv6() -> bool:
    """Whether the loopback has an IPv6 address here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6(serve: Servers) -> None:
    """[::1]:port, alone and beside an IPv4 listener on the same port."""
    port = free_port("::1")
    for binds in ([f"[::1]:{port}"], [f"[::1]:{port}", f"127.0.0.1:{port}"]):
        server = serve("inspecting:app", {"listen": {"bind": binds}})
        environ = server.exchange(get("/", f"Host: [::1]:{port}")).json()["environ"]
        assert environ["REMOTE_ADDR"] == "::1"
        assert environ["SERVER_PORT"] == str(port)
        assert environ["HTTP_HOST"] == f"[::1]:{port}"
        assert server.stop() == 0


def test_every_address(serve: Servers) -> None:
    """A port alone means every address, as a container needs it."""
    port = free_port()
    server = serve("echo:app", {"listen": {"bind": f":{port}"}})
    assert server.exchange(get("/")).status == 200


@pytest.mark.parametrize("blocking", [True, False])
def test_inherited_descriptor(serve: Servers, blocking: bool) -> None:
    """fd://N: a listener that somebody else has opened, blocking or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        listener.setblocking(blocking)
        port = listener.getsockname()[1]
        number = listener.fileno()
        server = serve(
            "inspecting:app",
            {"listen": {"bind": f"fd://{number}"}},
            pass_fds=[number],
            wait=False,
        )
        with Connection(socket.AF_INET, ("127.0.0.1", port)) as connection:
            for _ in range(3):
                connection.send(get("/"))
                environ = connection.response().json()["environ"]
                assert environ["SERVER_PORT"] == str(port)
                assert environ["REMOTE_ADDR"] == "127.0.0.1"
        assert server.stop() == 0


def test_descriptor_that_is_no_listener(serve: Servers) -> None:
    """fd:// with a number that nobody opened is a clear line."""
    server = serve("echo:app", {"listen": {"bind": "fd://77"}}, wait=False)
    assert server.wait() in (1, 2)
    assert "77" in server.log()
    assert len([line for line in server.log().splitlines() if line.strip()]) <= 2


def test_nothing_is_written_beside_it(serve: Servers) -> None:
    """The server leaves nothing in the folder that it runs in."""
    server = serve("working:app")
    assert server.exchange(post("/body", b"x" * 2_000_000)).status == 200
    assert server.stop() == 0
    found = {path.name for path in server.folder.iterdir()}
    assert found <= {"serve.toml", "stdout", "stderr", "events"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_connections_leave_no_descriptors(serve: Servers) -> None:
    """After a thousand connections of all kinds there are as many descriptors as before."""
    server = serve()
    folder = Path(f"/proc/{server.process.pid}/fd")

    def descriptors() -> int:
        return len(os.listdir(folder))

    for _ in range(10):
        server.exchange(get("/"))
    before = descriptors()
    for number in range(1000):
        with server.connect() as connection:
            data = get("/") if number % 3 else get("/", "Bad Name: 1")
            connection.send(data[: len(data) - number % 5])
            if number % 5 == 0:
                connection.response()
            if number % 2:
                connection.reset()
    wait_until(lambda: descriptors() <= before, PATIENCE, lambda: f"{descriptors()} > {before}")


# Memory


def test_no_request_comes_before_the_launcher_waits(serve: Servers) -> None:
    """Whatever the first request does with memory or the GIL, the start has ended."""
    files = {
        "app.py": "import time\n"
        "import serve_zig.runner as runner\n"
        "order = []\n"
        "wait = runner._Run.wait\n"
        "def wait_late(self):\n"
        "    time.sleep(0.5)\n"
        "    order.append('wait')\n"
        "    return wait(self)\n"
        "runner._Run.wait = wait_late\n"
        "def app(environ, start_response):\n"
        "    order.append('request')\n"
        "    start_response('200 OK', [])\n"
        "    return [','.join(order).encode()]\n"
    }
    server = serve("app:app", files=files)
    assert server.exchange(get()).body == b"wait,request"


def test_a_launcher_without_memory_goes_on(serve: Servers) -> None:
    """What it could not do it does when there is memory again, also what a signal asked for."""
    files = {
        "app.py": "import serve_zig.runner as runner\n"
        "left = [5]\n"
        "act = runner._Run._act\n"
        "def act_without_memory(self):\n"
        "    if left[0]:\n"
        "        left[0] -= 1\n"
        "        raise MemoryError\n"
        "    return act(self)\n"
        "runner._Run._act = act_without_memory\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [str(left[0]).encode()]\n"
    }
    server = serve("app:app", files=files)
    assert server.stop() == 0
    assert "SIGTERM: draining" in server.log()
