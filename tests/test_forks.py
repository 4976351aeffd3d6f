"""Processes that the application forks: the server is their parent's alone."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin_client import serve_with_admin
from serving import Server, Servers, wait_until
from wire import PATIENCE, get, post


@pytest.fixture
def forking(serve: Servers, tmp_path: Path) -> Server:
    return serve("forking:app", environment={"FORKING_FILE": str(tmp_path / "file")})


@pytest.fixture
def parent_of_one(serve: Servers) -> Iterator[Server]:
    """A server with a child that lives until the test is over."""
    server, _ = serve_with_admin(serve, "forking:app", {"timeouts": {"keep_alive": 5.0}})
    child = int(server.exchange(get("/waits")).body.split()[1])
    yield server
    server.open_gate("children")
    wait_until(lambda: has_ended(child), PATIENCE, lambda: f"the child {child} lives")


def has_ended(pid: int) -> bool:
    """Whether a process is no more, or waits for its parent."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def files_of(pid: int) -> list[str]:
    """What the process has open, as /proc names it."""
    return [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/exit", 7, ""),
        ("/exit_plainly", 0, ""),
        ("/exit_with_words", 1, "the child says goodbye"),
        ("/raise", 1, "LookupError: in the child"),
        ("/read", 1, r"\(pid \d+\) has returned from its handler"),
        ("/write", 1, "Error"),
        ("/yield", 1, "has returned from its handler"),
        ("/file", 1, "has returned from its handler"),
        ("/thread", 1, "has returned from its handler"),
        ("/return", 1, "has returned from its handler"),
    ],
)
def test_child_that_comes_back_ends(
    forking: Server, path: str, status: int, said: str, tmp_path: Path
) -> None:
    """It answers nobody, neither the request nor another one."""
    forking.errors_expected = True
    with forking.connect() as connection:
        connection.send(post(path, b"body"))
        assert connection.response().body == f"{forking.process.pid} {status}".encode()
        connection.send(get("/pid"))
        assert connection.response().body == f"{forking.process.pid} ".encode()
    assert re.search(said, forking.log())
    if path == "/file":
        assert (tmp_path / "file").read_bytes() == b""
    assert forking.stop() == 0


def test_child_of_a_child_has_all_files(serve: Servers) -> None:
    """What the server had under their numbers was closed once."""
    server, _ = serve_with_admin(serve, "forking:app")
    with server.connect() as other:
        other.send(get("/pid"))
        assert other.response().status == 200
        assert server.exchange(get("/nested")).body.split()[1] == b"40"


def test_connection_ends_whatever_children_there_are(parent_of_one: Server) -> None:
    """Its client would send the next request on it, and wait for an answer."""
    with parent_of_one.connect() as connection:
        connection.send(get("/pid"))
        assert connection.response().status == 200
        connection.expect_close()


def test_port_is_free_whatever_children_there_are(parent_of_one: Server, serve: Servers) -> None:
    port = parent_of_one.port
    assert parent_of_one.stop() == 0
    second = serve("echo:app", {"listen": {"bind": f"127.0.0.1:{port}"}})
    assert second.exchange(get("/")).status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_child_has_nothing_to_poll(parent_of_one: Server) -> None:
    """Else it could take an event that is its parent's; and its signals are its own."""
    with parent_of_one.connect() as connection:
        connection.send(get("/waits"))
        child = int(connection.response().body.split()[1])
        wait_until(
            lambda: "anon_inode:[eventpoll]" not in files_of(child), PATIENCE, lambda: "polls"
        )
        os.kill(child, signal.SIGTERM)
        wait_until(lambda: has_ended(child), PATIENCE, lambda: f"the child {child} lives")
        connection.send(get("/pid"))
        assert connection.response().status == 200


def test_child_of_the_import_has_no_listener(serve: Servers, tmp_path: Path) -> None:
    """It was forked before the server served, and lives on after its end."""
    server = serve("forking_early:app")
    port = server.port
    child = int(server.exchange(get("/")).body)
    assert server.stop() == 0
    assert not has_ended(child)
    try:
        second = serve("echo:app", {"listen": {"bind": f"127.0.0.1:{port}"}})
        assert second.exchange(get("/")).status == 200
    finally:
        os.kill(child, signal.SIGKILL)
