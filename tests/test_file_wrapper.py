"""wsgi.file_wrapper: sent from the file where it is one, read where it is not, closed once."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from serving import Server, Servers, wait_until
from wire import PATIENCE, Connection, Response, Truncated, all_closed, get

MEBIBYTE = 1 << 20
SMALL_BUFFER = 16 * 1024

# Tests that look into /proc.
linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


def pattern(size: int) -> bytes:
    """Return what applications/downloads.py writes into its files."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def target(**spec: Any) -> str:
    """Return a request target for applications/downloads.py."""
    return f"/?{quote(json.dumps(spec), safe='')}"


@pytest.fixture(scope="module")
def files(serve_module: Servers) -> Server:
    """A server of applications/downloads.py."""
    return serve_module("downloads:app")


def fetch(server: Server, method: str = "GET", version: str = "1.1", **spec: Any) -> Response:
    """Ask on a new connection, which goes on after it where HTTP/1.1 says so."""
    with server.connect() as connection:
        connection.send(get(target(**spec), method=method, version=version))
        response = connection.response(method)
        if version == "1.1" and not response.closes:
            connection.send(get("/hello"))
            assert connection.response().body == b"hello"
        return response


def position_at_end(server: Server, tag: str) -> int:
    """Return where the file stood when it was closed, which was once."""
    server.wait_event("closed", tag=tag)
    (event,) = server.events("closed", tag=tag)
    return int(event["position"])


@pytest.mark.parametrize("size", [1, 1000, 32_768, 32_769, 200_000, 5_000_000])
@pytest.mark.parametrize("kind", ["file", "raw", "random"])
def test_file_is_sent_by_itself(files: Server, kind: str, size: int) -> None:
    """The length is known without the application's help, and nothing is read."""
    tag = f"self-{kind}-{size}"
    response = fetch(files, kind=kind, size=size, tag=tag)
    assert response.framing == "content-length"
    assert response.body == pattern(size)
    assert position_at_end(files, tag) == 0


@pytest.mark.parametrize("size", [1000, 200_000])
def test_offset_is_honoured(files: Server, size: int) -> None:
    tag = f"offset-{size}"
    response = fetch(files, size=size, offset=100, tag=tag)
    assert response.framing == "content-length"
    assert response.body == pattern(size)[100:]
    assert position_at_end(files, tag) == 100


@pytest.mark.parametrize("offset", [1000, 5000])
def test_file_at_its_end_and_beyond(files: Server, offset: int) -> None:
    response = fetch(files, size=1000, offset=offset)
    assert response.body == b""
    assert response.framing == "content-length"


def test_empty_file(files: Server) -> None:
    response = fetch(files, size=0)
    assert (response.body, response.framing) == (b"", "content-length")


@pytest.mark.parametrize("size", [1000, 200_000])
@pytest.mark.parametrize("kind", ["unflushed", "named"])
def test_temporary_files_are_sent_by_themselves(files: Server, kind: str, size: int) -> None:
    """What was written and is still in a buffer is part of the file."""
    offset = 0
    expected = pattern(size)
    if kind == "unflushed":
        expected = expected[: size - 4] + b"taaL"
    response = fetch(files, kind=kind, size=size, offset=offset)
    assert response.framing == "content-length"
    assert response.body == expected


@pytest.mark.parametrize("size", [1000, 200_000])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("memory", None),
        ("gzip", None),
        ("spooled", None),
        ("upper", bytes.upper),
        ("liar", lambda _: b"what it reads"),
    ],
)
def test_what_only_reading_can_tell_is_read(
    files: Server, kind: str, expected: Any, size: int
) -> None:
    """A descriptor alone says nothing about what `read` gives."""
    whole = pattern(size)
    response = fetch(files, kind=kind, size=size)
    assert response.body == (expected(whole) if expected else whole)


def test_pipe_is_read(files: Server) -> None:
    assert fetch(files, kind="pipe", size=1000).body == pattern(1000)


@linux
def test_file_whose_size_says_nothing_is_read(files: Server) -> None:
    assert fetch(files, kind="proc").body == Path("/proc/version").read_bytes()


@pytest.mark.parametrize("kind", ["text", "writing", "shut"])
def test_file_that_gives_no_bytes_is_an_error(files: Server, kind: str) -> None:
    with files.connect() as connection:
        connection.send(get(target(kind=kind, tag=f"error-{kind}")))
        assert connection.response().status == 500
    files.wait_log("application error")
    files.wait_event("closed", tag=f"error-{kind}")


@pytest.mark.parametrize("block", [1, 100, 100_000])
def test_block_size(files: Server, block: int) -> None:
    for kind in ("file", "memory"):
        assert fetch(files, kind=kind, size=1000, block=block).body == pattern(1000)


# Content-Length


@pytest.mark.parametrize("length", [0, 1, 999, 1000])
@pytest.mark.parametrize("kind", ["file", "memory", "gzip"])
def test_no_more_than_the_content_length(files: Server, kind: str, length: int) -> None:
    """PEP 3333: transmission ends when Content-Length bytes have been sent. It is no error."""
    tag = f"cut-{kind}-{length}"
    response = fetch(files, kind=kind, size=1000, length=length, tag=tag)
    assert response.framing == "content-length"
    assert response.body == pattern(1000)[:length]
    assert not response.closes
    position_at_end(files, tag)


def test_part_of_a_large_file(files: Server) -> None:
    response = fetch(files, size=5_000_000, offset=1_000_000, length=3_000_000)
    assert response.body == pattern(5_000_000)[1_000_000:4_000_000]


@pytest.mark.parametrize("size", [1000, 200_000, 3_000_000])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_less_than_the_content_length(files: Server, kind: str, size: int) -> None:
    """The client sees that something is missing, and so does the log."""
    tag = f"short-{kind}-{size}"
    with files.connect() as connection:
        connection.send(get(target(kind=kind, size=size, length=size + 5, tag=tag)))
        with pytest.raises(Truncated):
            connection.response()
    files.wait_log("shorter than its Content-Length")
    position_at_end(files, tag)


# Without a body


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")],
)
def test_responses_without_a_body(files: Server, kind: str, method: str, status: str) -> None:
    tag = f"none-{kind}-{method}-{status[:3]}"
    response = fetch(files, method, kind=kind, size=100_000, status=status, tag=tag)
    assert response.status == int(status[:3])
    assert response.framing == "none"
    position_at_end(files, tag)


def test_head_tells_the_length_of_get(files: Server) -> None:
    assert fetch(files, "HEAD", size=100_000, offset=100).value("Content-Length") == "99900"


# What else may be round it


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_versions(files: Server, kind: str, version: str) -> None:
    assert fetch(files, version=version, kind=kind, size=200_000).body == pattern(200_000)


def test_connection_of_http_1_0_is_kept(files: Server) -> None:
    """It can be, since the length is known."""
    with files.connect() as connection:
        for _ in range(2):
            request = get(target(size=100_000), "Connection: keep-alive", version="1.0")
            connection.send(request)
            assert connection.response().body == pattern(100_000)


@pytest.mark.parametrize("wrap", ["generator", "closing", "counting"])
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_middleware_round_the_wrapper(files: Server, kind: str, wrap: str) -> None:
    """It iterates, and the file is read."""
    tag = f"wrap-{kind}-{wrap}"
    body = fetch(files, kind=kind, size=100_000, wrap=wrap, tag=tag).body
    assert body == (pattern(100_000).swapcase() if wrap == "closing" else pattern(100_000))
    if wrap != "generator":
        assert position_at_end(files, tag) == 100_000


@pytest.mark.parametrize("size", [1000, 100_000])
def test_file_after_write(files: Server, size: int) -> None:
    """What was written comes first, with a Content-Length and in chunks."""
    whole = b"first" + pattern(size)
    response = fetch(files, size=size, written="first", length=size + 5)
    assert (response.framing, response.body) == ("content-length", whole)
    response = fetch(files, size=size, written="first")
    assert (response.framing, response.body) == ("chunked", whole)


def test_pipelined_files_come_in_order(files: Server) -> None:
    sizes = [1000, 200_000, 0, 40_000, 3_000_000, 5] * 3
    with files.connect() as connection:
        connection.send(b"".join(get(target(size=size)) + get("/hello") for size in sizes))
        for size in sizes:
            assert connection.response().body == pattern(size)
            assert connection.response().body == b"hello"


# Slow clients, and those that leave


def open_descriptors(server: Server) -> int:
    """Return how many descriptors the process has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@linux
def test_slow_clients_hold_no_thread_and_no_memory(serve: Servers) -> None:
    """One thread, ten clients in the middle of a file, and another one is served."""
    server = serve("downloads:app", {"concurrency": {"threads": 1}, "timeouts": {"write": 600.0}})
    size = 64 * MEBIBYTE
    server.exchange(get("/hello"))
    server.exchange(get(target(size=200_000)))
    before, descriptors = server.resident_bytes(), open_descriptors(server)
    with all_closed([]) as connections:
        for number in range(10):
            connection = server.connect(receive_buffer=SMALL_BUFFER)
            connections.append(connection)
            connection.send(get(target(size=size, tag=f"slow-{number}")))
            assert connection.head().length == size
        for _ in range(20):
            assert server.exchange(get("/hello")).body == b"hello"
        assert server.resident_bytes() - before < 8 * MEBIBYTE
        assert server.events("closed") == []
        take_all(connections[0], size)
        server.wait_event("closed", tag="slow-0")
        assert len(server.events("closed")) == 1
    server.wait_event("closed", count=10)
    wait_until(
        lambda: open_descriptors(server) <= descriptors,
        PATIENCE,
        lambda: f"{open_descriptors(server)} descriptors of {descriptors}",
    )


def take_all(connection: Connection, size: int) -> None:
    """Read a body whose first 8 MiB are the pattern."""
    first = min(size, 8 * MEBIBYTE)
    assert connection.take(first) == pattern(first)
    left = size - first
    while left:
        piece = min(left, MEBIBYTE)
        assert not any(connection.take(piece))
        left -= piece


@linux
def test_large_file_costs_no_memory(serve: Servers) -> None:
    server = serve("downloads:app")
    size = 256 * MEBIBYTE
    server.exchange(get(target(size=200_000)))
    before = server.resident_bytes()
    with server.connect() as connection:
        connection.send(get(target(size=size)))
        assert connection.head().length == size
        left = size
        while left:
            left -= len(connection.take(min(left, 8 * MEBIBYTE)))
            assert server.resident_bytes() - before < 8 * MEBIBYTE


@pytest.mark.parametrize("leave", [Connection.close, Connection.reset])
def test_client_that_leaves_ends_it_promptly(files: Server, leave: Any) -> None:
    tag = f"gone-{leave.__name__}"
    connection = files.connect(receive_buffer=SMALL_BUFFER)
    connection.send(get(target(size=64 * MEBIBYTE, tag=tag)))
    connection.take(1000)
    assert files.events("closed", tag=tag) == []
    leave(connection)
    files.wait_event("closed", tag=tag)
    assert "Traceback" not in files.test_log()


def test_client_that_takes_nothing_is_cut(serve: Servers) -> None:
    server = serve("downloads:app", {"timeouts": {"write": 0.4}})
    with server.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target(size=64 * MEBIBYTE, tag="stuck")))
        server.wait_event("closed", tag="stuck")
        with contextlib.suppress(ConnectionResetError):
            assert len(connection.read_to_end(reset_counts=True)) < 64 * MEBIBYTE


def test_client_that_takes_little_but_often_is_served(serve: Servers) -> None:
    server = serve("downloads:app", {"timeouts": {"write": 4.0}})
    size = 2 * MEBIBYTE
    with server.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target(size=size)))
        assert connection.head().length == size
        received = b""
        for _ in range(16):
            time.sleep(0.3)
            received += connection.take(size // 16)
        assert received == pattern(size)


def test_file_that_becomes_shorter_ends_the_connection(files: Server) -> None:
    """No hang, no crash, a line in the log."""
    size = 63 * MEBIBYTE
    with files.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target(size=size, tag="shrinks")))
        assert connection.head().length == size
        os.truncate(files.folder / f"file-{size}", 1000)
        rest = connection.read_to_end(reset_counts=True)
        assert len(rest) < size
    files.wait_log("shorter than its Content-Length")
    files.wait_event("closed", tag="shrinks")
    (files.folder / f"file-{size}").unlink()
    assert files.exchange(get("/hello")).body == b"hello"


@linux
def test_file_that_the_application_closes_meanwhile_is_sent_all_the_same(files: Server) -> None:
    """Its number may already stand for another file, which must not be sent."""
    size = 64 * MEBIBYTE
    with files.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target(size=size, tag="stolen", steals=True)))
        assert connection.head().length == size
        files.open_gate("stolen")
        files.wait_event("stolen")
        take_all(connection, size)
        files.wait_event("closed", tag="stolen")
        files.open_gate("stolen-end")


def test_drain_lets_a_file_end(serve: Servers) -> None:
    server = serve("downloads:app")
    size = 16 * MEBIBYTE
    with server.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target(size=size, tag="last")))
        assert connection.head().length == size
        server.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        take_all(connection, size)
    assert server.wait() == 0
    server.wait_event("closed", tag="last")
