"""Processes that the application forks: the server is their parent's alone."""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
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
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(one))
    return found


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


def test_child_touches_no_descriptor(serve: Servers) -> None:
    """Whatever it calls: the numbers are those of its own files by then."""
    server = serve("forking_apart:app")
    said = server.exchange(get("/calls")).body.decode()
    assert said == ("gone True, hints None, suspend True, readable True, writable True, write True")
    assert server.exchange(get("/")).body == b"answered"


def test_child_reads_a_body_in_memory_alone(serve: Servers) -> None:
    """The temporary file is the parent's."""
    server = serve("forking_apart:app", {"limits": {"body_memory": 4096}})
    assert server.exchange(post("/input", b"x" * 4096)).body == b"4096"
    refused = server.exchange(post("/input", b"x" * 100_000)).body
    assert refused.startswith(b"OSError: this process was forked")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fork_between_accept_and_slot(serve: Servers) -> None:
    """A socket that was accepted, or closed, just then is not the child's."""
    server = serve("forking_apart:app", {"concurrency": {"threads": 2}})
    ends = threading.Event()

    def come_and_go() -> None:
        while not ends.is_set():
            try:
                with server.connect() as connection:
                    connection.send(get("/"))
                    connection.response()
            except OSError:
                continue

    clients = [threading.Thread(target=come_and_go) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        found = server.exchange(get("/sockets?200"), timeout=60).body.split()
    finally:
        ends.set()
        for client in clients:
            client.join()
    assert len(found) == 200
    assert set(found) == {b"0"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_start_with_closed_standard_descriptors(serve: Servers) -> None:
    """No socket gets their numbers, so that nothing that is printed goes to a client."""
    closing = 'exec 0<&- 1>&- 2>&-; exec "$@"'
    server = serve(
        "printing:app",
        {"log": {"level": "error"}},  # there is no log that says when it serves
        files={"printing.py": PRINTING},
        prefix=["sh", "-c", closing, "sh"],
    )
    for _ in range(3):
        assert server.exchange(get("/")).body == b"answered"
    for number in range(3):
        assert os.readlink(f"/proc/{server.process.pid}/fd/{number}") == "/dev/null"


PRINTING = """
import os, subprocess, sys
def app(environ, start_response):
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    sys.stdin.read()
    os.write(1, b"plain"); os.write(2, b"plain")
    subprocess.run(["sh", "-c", "echo from a child; echo error >&2"], check=True)
    start_response("200 OK", [])
    return [b"answered"]
"""


FORKING_LATE = """
import os, weakref
kept, children = [], []
def fork(_):
    child = os.fork()
    if child:
        children.append(child)
def app(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/children":
        return [" ".join(map(str, children)).encode()]
    kept[:] = [weakref.ref(environ["wsgi.early_hints"], fork)]
    return [b"answered"]
"""


def test_child_of_a_callback_at_the_end_of_a_request_ends(serve: Servers) -> None:
    """It comes back where the worker has answered, and must not go on as that worker."""
    server = serve("forking_late:app", files={"forking_late.py": FORKING_LATE})
    server.errors_expected = True
    assert server.exchange(get("/")).body == b"answered"
    children = wait_until(
        lambda: server.exchange(get("/children")).body, PATIENCE, lambda: "nothing was forked"
    )
    for child in map(int, children.split()):
        wait_until(partial(has_ended, child), PATIENCE, lambda: "the child goes on")
    assert server.stop() == 0
