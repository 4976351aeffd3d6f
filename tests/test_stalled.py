"""Clients that take nothing of their response: they stay while there is room for them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from admin_client import AdminClient, serve_with_admin
from serve_zig import cgroup, runner, schema
from serving import Server, Servers, wait_until
from wire import PATIENCE, Connection, all_closed, get, post

#: From here on a client counts as stalled, and a little more (`stalled_ms_min`).
STALLED = 1.3
#: Between two clients of which one has stalled for longer: acknowledgments are looked at once a
#: second (`look_ms_max`), so that less does not tell them apart.
APART = 2.2
#: Of the application's large responses.
LARGE = 20_000_000


@pytest.fixture
def no_room(serve: Servers) -> tuple[Server, AdminClient]:
    """A server with two slots; its time limits are the defaults."""
    server, admin = serve_with_admin(serve, "responding:app", {"limits": {"connections": 2}})
    server.errors_expected = True
    return server, admin


def stalled_count(admin: AdminClient) -> int:
    """Return how many clients have been cut off to make room."""
    for line in admin.text("/metrics").splitlines():
        if line.startswith('serve_zig_connections_closed_total{reason="stalled"}'):
            return int(float(line.rpartition(" ")[2]))
    raise AssertionError("it is not counted")


def asks(server: Server, target: str) -> Connection:
    """Ask for a large response, and read nothing of it."""
    connection = server.connect(receive_buffer=4096)
    connection.send(get(target))
    return connection


def test_a_proxy_that_spools_a_gibibyte_is_waited_for() -> None:
    """nginx's default spool lasts for 18 minutes at 1 MB/s; the default is well beyond that."""
    key = next(key for key in schema.KEYS if key.path == "timeouts.write")
    assert key.default == 3600.0
    assert key.default > 3 * (1 << 30) / 1_000_000


@pytest.mark.parametrize("kind", ["list", "iterator"])
def test_a_full_table_cuts_off_the_longest_stalled(
    no_room: tuple[Server, AdminClient], kind: str
) -> None:
    """With no connection idle; the iterable is closed, and the client sees a reset."""
    server, admin = no_room
    with all_closed([]) as connections:
        for number in range(2):
            connections.append(asks(server, f"/large_{kind}"))
            server.wait_event("large", count=number + 1)
            time.sleep(APART)
        assert stalled_count(admin) == 0
        with server.connect() as good:
            good.send(get("/hello"))
            assert good.response().body == b"hello"
            assert stalled_count(admin) == 1
            server.wait_log(rf'warning cut off 200 stalled; GET "/large_{kind}"')
            server.wait_log(r"warning limits\.connections is reached, and no connection is idle: ")
            assert len(connections[0].read_to_end(reset_counts=True)) < LARGE
            if kind == "iterator":
                server.wait_event("closed", tag="large_iterator")
            # The other is whole, however long it has paused.
            assert len(connections[1].response().body) > LARGE
        assert stalled_count(admin) == 1


def test_short_buffer_memory_cuts_off_the_longest_stalled(serve: Servers) -> None:
    """Responses that are kept for clients who take nothing make room for others."""
    limits = {"buffer_memory": "1 MiB", "response_memory": "512 KiB"}
    server, admin = serve_with_admin(serve, "responding:app", {"limits": limits})
    server.errors_expected = True
    with all_closed([]) as connections:
        for number in range(3):
            connections.append(asks(server, "/large_small_pieces"))
            server.wait_event("large", count=number + 1)
            time.sleep(APART)
        wait_until(lambda: stalled_count(admin) > 0, PATIENCE, lambda: "nobody was cut off")
        server.wait_log(r"warning limits\.buffer_memory is reached: clients that take nothing")
        assert len(connections[0].read_to_end(reset_counts=True)) < LARGE
        assert len(connections[2].response().body) == LARGE


def test_a_waiting_request_frees_the_thread_of_a_stalled_write(serve: Servers) -> None:
    """write() holds its thread while its client takes nothing: no longer than others can wait."""
    config = {"concurrency": {"threads": 1}, "limits": {"response_memory": "64 KiB"}}
    server, admin = serve_with_admin(serve, "responding:app", config)
    server.errors_expected = True
    with asks(server, "/large_write") as stalled:
        server.wait_event("large")
        time.sleep(STALLED)
        assert stalled_count(admin) == 0
        assert server.exchange(get("/hello")).body == b"hello"
        assert stalled_count(admin) == 1
        server.wait_log(r"warning requests wait, and every thread is taken")
        assert len(stalled.read_to_end(reset_counts=True)) < LARGE


def test_a_parked_response_frees_the_thread_of_a_stalled_write(serve: Servers) -> None:
    """One that waits to go on counts as one that waits to begin."""
    config = {"concurrency": {"threads": 1}, "limits": {"response_memory": "64 KiB"}}
    server, admin = serve_with_admin(serve, "responding:app", config)
    server.errors_expected = True
    with asks(server, "/large_iterator") as parked:
        server.wait_event("large")
        with asks(server, "/large_write") as stalled:
            server.wait_event("large", count=2)
            assert len(parked.response().body) > LARGE
            assert stalled_count(admin) == 1
            assert len(stalled.read_to_end(reset_counts=True)) < LARGE


def test_no_more_holders_of_buffers_go_than_make_room(serve: Servers, tmp_path: Path) -> None:
    """Also where what they hold is the request's body, which is free when the slot is."""
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(LARGE)
    config = {
        "limits": {"buffer_memory": "1 MiB", "connections": 20},
        "static": [{"route": "/files", "directory": str(tmp_path)}],
    }
    server, admin = serve_with_admin(serve, "responding:app", config)
    server.errors_expected = True
    body = bytes(100_000)
    with all_closed([]) as connections:
        for _ in range(9):
            connection = server.connect(receive_buffer=4096)
            connections.append(connection)
            connection.send(get("/files/large.bin", f"Content-Length: {len(body)}") + body)
        time.sleep(APART)
        assert stalled_count(admin) == 0
        with server.connect() as last:
            last.send(post("/hello", bytes(300_000)))
            assert last.response().status == 200
        server.wait_log(r"warning limits\.buffer_memory is reached: clients that take nothing")
        assert 1 <= stalled_count(admin) <= 3


def test_stalled_clients_have_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the container's where it has a limit, else of the machine's."""
    assert runner.socket_memory() > 0
    monkeypatch.setattr(cgroup, "read", lambda: cgroup.Limits(None, 4096))
    assert runner.socket_memory() == 1024
