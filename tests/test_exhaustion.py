"""What the process has not got: descriptors and Python's memory. It stays alive and recovers."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from admin_client import AdminClient
from serving import Server, Servers, free_port, wait_until
from wire import PATIENCE, Connection, all_closed, get, post

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets limits and reads /proc")

DESCRIPTORS = 100
# What a client keeps open stays open beyond the test.
FOR_EVER = {"head": 600.0, "body": 600.0, "keep_alive": 600.0, "write": 600.0}


@pytest.fixture
def scarce(serve: Servers) -> Server:
    """A server under `ulimit -n`: half of the descriptors go to connections."""
    server = serve(
        "exhausting:app",
        {
            "concurrency": {"threads": 2},
            "limits": {"body_memory": 1000},
            "timeouts": FOR_EVER,
        },
        prefix=["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh"],
    )
    assert "limits.connections is cut from 10000 to 50" in server.log()
    return server


def held_back(server: Server) -> Connection:
    """Take every descriptor of the process; the connection that can give them back."""
    connection = server.connect()
    # Twice: the connection that found out whether the server accepts may have been open the first
    # time. What is read for the second one is behind its end.
    for _ in range(2):
        connection.send(get("/take"))
        assert int(connection.response().body) > 20
    return connection


def give(connection: Connection, count: int) -> None:
    """Let the process have so many descriptors again."""
    connection.send(get(f"/give?{count}"))
    assert connection.response().status == 200


def ask(connection: Connection) -> None:
    """A request on this connection is answered."""
    connection.send(get("/ok"))
    assert connection.response().body == b"ok"


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_out_of_descriptors(scarce: Server) -> None:
    """Clients wait in the backlog, at no cost, and are served when there are descriptors again."""
    with held_back(scarce) as owner, all_closed([]) as waiting:
        # It is at work, so that it does not make room itself.
        owner.send(get("/ok")[:-2])
        for _ in range(30):
            waiting.append(scarce.connect())
            waiting[-1].send(get("/ok"))
        before = scarce.cpu_seconds()
        waiting[0].expect_silence(1.0)
        assert scarce.cpu_seconds() - before < 0.2
        # Said once, however many wait and however often it was tried.
        said = "warning accepting pauses: the process may open no more files (ulimit -n)\n"
        wait_until(lambda: said in scarce.log(), PATIENCE, scarce.log)
        assert scarce.log().count(said) == 1
        owner.send(b"\r\n")
        assert owner.response().status == 200
        give(owner, 40)
        for connection in waiting:
            assert connection.response().body == b"ok"
    idle = DESCRIPTORS // 2
    wait_until(lambda: descriptors(scarce) < idle + 40, PATIENCE, lambda: str(descriptors(scarce)))
    assert scarce.exchange(get("/ok")).status == 200


def test_a_client_that_leaves_makes_room(scarce: Server) -> None:
    """The descriptor of one is the next one's, at once."""
    with held_back(scarce) as owner, all_closed([]) as connections:
        give(owner, 10)
        owner.send(get("/ok")[:-2])
        for _ in range(10):
            connections.append(scarce.connect())
            ask(connections[-1])
            connections[-1].send(get("/ok")[:-2])  # not idle
        late = scarce.connect()
        connections.append(late)
        late.send(get("/ok"))
        late.expect_silence(0.3)
        connections[0].close()
        assert late.response().body == b"ok"


@pytest.mark.parametrize(
    "seconds_max", [PATIENCE, pytest.param(0.09, marks=pytest.mark.timing)], ids=["", "soon"]
)
def test_the_longest_idle_makes_room_for_descriptors(scarce: Server, seconds_max: float) -> None:
    """As at limits.connections: who has been idle longest goes, and everybody is served."""
    with held_back(scarce) as owner, all_closed([]) as connections:
        give(owner, 10)
        owner.send(get("/ok")[:-2])
        times = []
        for _ in range(30):
            connections.append(scarce.connect())
            began = time.monotonic()
            ask(connections[-1])
            times.append(time.monotonic() - began)
        # Not after a pause, such as there is when nobody can go.
        assert sorted(times)[15] < seconds_max, times
        said = "warning the process may open no more files (ulimit -n): for each new connection"
        wait_until(lambda: said in scarce.log(), PATIENCE, scarce.log)
        assert scarce.log().count(said) == 1
        for connection in connections[:20]:
            connection.expect_close()
        for connection in connections[20:]:
            ask(connection)


def test_nobody_has_to_go_while_nobody_waits(scarce: Server) -> None:
    """The last descriptor is in use, and every idle connection stays open."""
    with held_back(scarce) as owner, all_closed([]) as connections:
        give(owner, 5)
        for _ in range(5):
            connections.append(scarce.connect())
            ask(connections[-1])
        ask(owner)
        for connection in connections:
            ask(connection)


def test_upload_without_descriptors(scarce: Server) -> None:
    """No temporary file for a body: 503, and the next one is taken in again."""
    upload = post("/upload", b"u" * 50_000)
    with held_back(scarce) as owner:
        give(owner, 1)
        connection = scarce.connect()
        connection.offer(upload)
        response = connection.response()
        assert response.status == 503
        assert b"no_descriptors" in response.body
        connection.close()
        give(owner, 5)
        assert scarce.exchange(upload).body == b"50000"


def limited(count: int) -> list[str]:
    """Return a command that gives the one behind it so many descriptors."""
    return ["sh", "-c", f'ulimit -n {count}; exec "$@"', "sh"]


def has_begun_or_ended(server: Server) -> bool:
    """Whether the server says that it serves, or is no more."""
    return " serves " in server.log() or server.process.poll() is not None


def test_hardly_any_descriptors(serve: Servers) -> None:
    """With too few for itself the server says so; with none for clients it waits, and ends."""
    launcher = [sys.executable, "-m", "serve_zig", "--version"]
    least = 3
    while subprocess.run([*limited(least), *launcher], capture_output=True).returncode != 0:
        least += 1
    logs = []
    for count in range(least, least + 60):
        server = serve("exhausting:app", prefix=limited(count), wait=False)
        server.errors_expected = True
        # Not when it accepts: it listens before the core is made.
        wait_until(partial(has_begun_or_ended, server), PATIENCE, server.log)
        if server.process.poll() is None:
            break
        # 2 where there is none for the config file, 3 where there is none for the application.
        assert server.wait() in (1, 2, 3)
        logs.append(server.log())
    assert any("core cannot start: OSError: the system refused" in log for log in logs), logs
    # The start may have needed a few more than it keeps.
    with all_closed([server.connect() for _ in range(6)]) as connections:
        for connection in connections:
            connection.send(get("/ok")[:-2])
        before = server.cpu_seconds()
        connections[-1].expect_silence(0.5)
        assert server.cpu_seconds() - before < 0.2
        for connection in connections:
            connection.close()
    assert server.stop() == 0


def test_a_full_table_costs_nothing(serve: Servers) -> None:
    """At limits.connections with nobody idle, clients in the backlog cost no time."""
    server = serve("exhausting:app", {"limits": {"connections": 3}, "timeouts": FOR_EVER})
    with all_closed([server.connect() for _ in range(3)]) as connections:
        for connection in connections:
            ask(connection)
            connection.send(get("/ok")[:-2])
        for _ in range(20):
            connections.append(server.connect())
            connections[-1].send(get("/ok", "Connection: close"))
        before = server.cpu_seconds()
        connections[-1].expect_silence(1.0)
        assert server.cpu_seconds() - before < 0.2
        for connection in connections[:3]:
            connection.send(b"\r\n")
            assert connection.response().status == 200
            connection.close()
        for connection in connections[3:]:
            assert connection.response().body == b"ok"


def test_silent_connections_make_room(serve: Servers) -> None:
    """Who never said anything is idle, too, and goes first; who is in the middle stays."""
    server = serve("exhausting:app", {"limits": {"connections": 20}, "timeouts": FOR_EVER})
    with server.connect() as half, all_closed([]) as connections:
        half.send(get("/ok")[:20])
        silent = [server.connect() for _ in range(19)]
        connections += silent
        for _ in range(19):
            connections.append(server.connect())
            ask(connections[-1])
        for connection in silent:
            connection.expect_close()
        half.send(get("/ok")[20:])
        assert half.response().body == b"ok"


def test_admin_answers_without_descriptors(serve: Servers) -> None:
    """Else an orchestrator would end a server that is alive, whose clients hold them all."""
    bind = f"127.0.0.1:{free_port()}"
    server = serve(
        "exhausting:app",
        {"admin": {"bind": bind}, "concurrency": {"threads": 2}, "timeouts": FOR_EVER},
        prefix=limited(DESCRIPTORS),
    )
    admin = AdminClient(bind)
    with held_back(server) as owner, all_closed([]) as waiting:
        owner.send(get("/ok")[:-2])
        for _ in range(30):
            waiting.append(server.connect())
            waiting[-1].send(get("/ok"))
        waiting[0].expect_silence(0.3)
        # Connections that persist take no more than what is held back.
        with all_closed([]) as kept:
            for _ in range(5):
                kept.append(admin.connect())
                kept[-1].send(admin.request("/livez"))
                assert kept[-1].response().status == 200
                assert admin.ask("/readyz").status == 200
                assert admin.ask("/metrics").status == 200
        assert admin.ask("/livez").status == 200
        waiting[0].expect_silence(0.1)
        owner.send(b"\r\n")
        assert owner.response().status == 200
        give(owner, 40)


def test_files_do_not_take_the_applications_descriptors(serve: Servers, tmp_path: Path) -> None:
    """A client of a file holds two: limits.connections of them leave the application its own."""
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    server = serve(
        "exhausting:app",
        {
            "limits": {"connections": 300},
            "static": [{"route": "/files", "directory": str(tmp_path)}],
        },
        prefix=["sh", "-c", 'ulimit -Sn 400; exec "$@"', "sh"],
    )
    with all_closed([server.connect(receive_buffer=4096) for _ in range(290)]) as readers:
        for reader in readers:
            reader.send(get("/files/large"))
        wait_until(lambda: descriptors(server) > 580, PATIENCE, lambda: str(descriptors(server)))
        with server.connect() as connection:
            connection.send(get("/take"))
            assert int(connection.response().body) > 200
            give(connection, 300)


def test_admin_answers_with_few_descriptors(serve: Servers) -> None:
    """Fewer than it could have connections, which poll(2) would refuse to look at."""
    bind = f"127.0.0.1:{free_port()}"
    server = serve("echo:app", {"admin": {"bind": bind}}, prefix=limited(40))
    admin = AdminClient(bind)
    for _ in range(3):
        assert admin.ask("/livez").status == 200
    before = server.cpu_seconds()
    time.sleep(0.5)
    assert server.cpu_seconds() - before < 0.1
