"""A response that has begun goes on in its own thread, whatever that does meanwhile."""

import signal
import threading
import time
import tomllib
from collections import Counter
from typing import Any

import pytest

from admin_client import AdminClient
from serving import Server, Servers, free_port, wait_until
from wire import PATIENCE, Connection, all_closed, get, post

PIECE_BYTES = 65536
APP = "own_thread:app"


def threads(count: int, **tables: Any) -> dict[str, Any]:
    """Return a configuration with so many threads."""
    admin = {"bind": f"127.0.0.1:{free_port()}"}
    return {"concurrency": {"threads": count}, "admin": admin, **tables}


def open_streams(server: Server, target: str, count: int) -> list[Connection]:
    """Open so many streams, one after the other, read none of them, and wait until all are parked.

    "{}" in the target is the number.
    """
    opened: list[Connection] = []
    for number in range(count):
        connection = server.connect(receive_buffer=4096)
        connection.send(get(target.format(number)))
        opened.append(connection)
        # Until the request has come the server is idle, too.
        wait_until(
            lambda: is_idle(server, len(opened)), PATIENCE, lambda: "the stream was not parked"
        )
    return opened


def is_idle(server: Server, parked: int = 0) -> bool:
    """Whether every thread is free, no request waits, and so many responses are parked.

    The admin listener is asked: the thread that answers a request of the test's would go on for a
    moment after its answer, and is not free for the next one then.
    """
    config = tomllib.loads((server.folder / "serve.toml").read_text("utf-8"))
    status = AdminClient(config["admin"]["bind"]).json()
    if "threads" not in status:
        return False  # it is being started
    count, connections = status["threads"], status["connections"]
    # One more than calls can be made at once, which polls; some may have to begin yet.
    has_all = count["idle"] + count["polling"] == count["limit"] + 1
    has_parked = connections["writing"] + connections["suspended"] >= parked
    return bool(has_all and has_parked and status["queue"]["depth"] == 0)


def block(server: Server, count: int) -> list[Connection]:
    """Occupy so many threads until the gate "block" is opened."""
    connections = [server.connect() for _ in range(count)]
    for number, connection in enumerate(connections):
        connection.send(get(f"/gate?block&{number}"))
    for number in range(count):
        server.wait_event("begun", query=f"block&{number}")
    return connections


class Reader:
    """Reads a whole response in a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self.chunks: list[bytes] = []
        self.error: BaseException | None = None
        self.is_whole = False
        self._connection = connection
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end, and check that it is one."""
        self._thread.join(PATIENCE)
        assert self.error is None, self.error
        assert self.is_whole

    def _run(self) -> None:
        try:
            assert self._connection.head().status == 200
            while chunk := self._connection.chunk():
                self.chunks.append(chunk)
            self.is_whole = True
        except BaseException as error:
            self.error = error


def test_sqlite_stream_whose_thread_is_in_another_call(serve: Servers) -> None:
    """The stream waits as long as that takes, and comes whole; streams of other threads do not."""
    server = serve(APP, threads(3))
    # There is a thread more than calls, and each has a stream.
    with all_closed(open_streams(server, "/database?120&{}", 4)) as streams:
        blocked = block(server, 2)
        readers = [Reader(stream) for stream in streams]
        wait_until(
            lambda: sum(reader.is_whole for reader in readers) == 2,
            PATIENCE,
            lambda: f"{[len(reader.chunks) for reader in readers]} pieces have come",
        )
        # Much longer than it takes to go on.
        time.sleep(1.0)
        assert sum(reader.is_whole for reader in readers) == 2
        server.open_gate("block")
        for reader in readers:
            reader.join()
            numbers = [int(chunk[:8]) for chunk in reader.chunks]
            assert numbers == list(range(120))
        for connection in blocked:
            assert connection.response().status == 200
            connection.close()
    server.wait_event("closed", tag="database", count=4)


def test_abandoned_streams_are_closed_in_their_threads(serve: Servers) -> None:
    """Also where the client has left long before the thread is free."""
    server = serve(APP, threads(3))
    streams = open_streams(server, "/stream?500&{}", 4)
    idents = {}
    for number, stream in enumerate(streams):
        assert stream.head().status == 200
        piece = stream.chunk()
        idents[str(number)] = int(piece.split(b'"ident": ')[1].split(b",")[0])
    assert len(set(idents.values())) == 4
    wait_until(lambda: is_idle(server), PATIENCE, lambda: "the streams were not parked")
    with all_closed(block(server, 2)) as blocked:
        for stream in streams:
            stream.reset()
        server.wait_event("closed", count=2)
        time.sleep(0.5)
        assert len(server.events("closed")) == 2
        server.open_gate("block")
        for connection in blocked:
            assert connection.response().status == 200
    closed = server.wait_event("closed", count=4)
    assert {event["tag"]: event["ident"] for event in closed} == idents


def test_files_are_closed_in_their_threads(serve: Servers) -> None:
    """Though the server sends them without the application, and without a thread."""
    server = serve(APP, threads(3))
    with all_closed(open_streams(server, "/download?{}", 4)) as connections:
        downloads = list(connections)
        connections += block(server, 2)
        lengths: list[int] = []

        def read(connection: Connection) -> None:
            lengths.append(len(connection.response().body))

        readers = [threading.Thread(target=read, args=(one,)) for one in downloads]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(PATIENCE)
        # The clients have all of it, and do not wait.
        assert lengths == [8 << 20] * 4
        server.wait_event("closed", count=2)
        time.sleep(0.5)
        assert len(server.events("closed")) == 2
        server.open_gate("block")
        closed = server.wait_event("closed", count=4)
    assert [event["is_same"] for event in closed] == [True] * 4


def test_streams_are_spread_before_threads_are_shared(serve: Servers) -> None:
    """Each thread has one before any has two, and two before any has three."""
    server = serve(APP, threads(3))
    with all_closed(open_streams(server, "/stream?40&{}", 8)) as streams:
        idents = []
        for stream in streams:
            reader = Reader(stream)
            reader.join()
            found = {chunk.split(b'"ident": ')[1].split(b",")[0] for chunk in reader.chunks}
            assert len(found) == 1
            assert len(reader.chunks) == 40
            idents.append(found.pop())
    assert sorted(Counter(idents).values()) == [2, 2, 2, 2]


def test_many_more_streams_than_threads_beside_slow_handlers(serve: Servers) -> None:
    """All come whole, each from one thread, and the handlers are answered, too."""
    server = serve(APP, threads(2))
    with all_closed([server.connect(receive_buffer=4096) for _ in range(24)]) as streams:
        for number, stream in enumerate(streams):
            target = f"/database?40&{number}" if number % 2 else f"/stream?40&{number}"
            stream.send(get(target))
        readers = [Reader(stream) for stream in streams]
        for _ in range(10):
            assert server.exchange(get("/sleep?0.1")).status == 200
            assert server.exchange(get("/fast")).status == 200
        for number, reader in enumerate(readers):
            reader.join()
            assert len(reader.chunks) == 40
            if number % 2 == 0:
                found = {chunk.split(b'"ident": ')[1].split(b",")[0] for chunk in reader.chunks}
                assert len(found) == 1
    server.wait_event("closed", tag="database", count=12)
    assert not server.events("lost")


def test_drain_names_the_stream_whose_thread_is_stuck(serve: Servers) -> None:
    """It ends by its time limit, with 4, and says which request waits for which thread."""
    server = serve(APP, threads(1, timeouts={"drain": 1.0}))
    with all_closed(open_streams(server, "/stream?200&{}", 2)) as streams:
        with all_closed(block(server, 1)):
            readers = [Reader(stream) for stream in streams]
            # One thread is in the call, and there may be no second one: both wait.
            time.sleep(0.3)
            server.send_signal(signal.SIGTERM)
            assert server.wait() == 4
        assert not any(reader.is_whole for reader in readers)
    for number in range(2):
        server.wait_log(rf'cut off: GET "/stream\?200&{number}" .*waits for thread serve-zig-\d')
    server.wait_log(r'cut off: GET "/gate\?block&0" .*\(app for')


def test_request_timeout_frees_the_thread_of_a_stream(serve: Servers) -> None:
    """timeouts.request bounds how long a stream waits for its thread, where that can be stopped."""
    limits = {"request": 2.0, "request_action": "raise"}
    server = serve(APP, threads(1, timeouts=limits))
    server.errors_expected = True
    with all_closed(open_streams(server, "/stream?60&{}", 2)) as connections:
        streams = list(connections)
        connections += block(server, 1)
        readers = [Reader(stream) for stream in streams]
        for reader in readers:
            reader.join()
            assert len(reader.chunks) == 60
        assert connections[-1].response().status == 504


@pytest.mark.parametrize("how", ["own", "any"])
def test_suspended_stream_whose_thread_is_in_another_call(serve: Servers, how: str) -> None:
    """It waits for that; a response that has called serve_zig.any_thread does not."""
    server = serve(APP, threads(3))
    names = [f"s{number}" for number in range(4)]
    streams = [server.connect() for _ in names]
    with all_closed(streams):
        for name, stream in zip(names, streams, strict=True):
            stream.send(get(f"/waiting?{name}&{how}"))
            assert stream.head().status == 200
            assert stream.chunk() == b"begun "
            wait_until(lambda: is_idle(server), PATIENCE, lambda: "the stream was not suspended")
        # Each has a thread of its own now.
        for name, stream in zip(names, streams, strict=True):
            assert server.exchange(get(f"/resume?{name}")).status == 200
            assert stream.chunk() == b"again "
        wait_until(lambda: is_idle(server), PATIENCE, lambda: "not all are suspended again")
        with all_closed(block(server, 2)) as blocked:
            for name in names:
                assert server.exchange(get(f"/resume?{name}")).status == 200
            server.wait_event("closed", count=2 if how == "own" else 4)
            if how == "own":
                time.sleep(0.5)
                assert len(server.events("closed")) == 2
            server.open_gate("block")
            for connection in blocked:
                assert connection.response().status == 200
        closed = server.wait_event("closed", count=4)
        same = [event["is_same"] for event in closed]
        pieces = []
        for stream in streams:
            pieces.append(stream.chunk())
            assert stream.chunk() == b""
        if how == "own":
            assert same == [True] * 4
            assert pieces == [b"same"] * 4
        else:
            # Those of the two threads in the gate.
            assert same.count(False) >= 2
            assert pieces.count(b"other") >= 2


# wsgi.input of a response that is parked


@pytest.mark.parametrize("how", ["piece", "silent"])
@pytest.mark.parametrize("size", [10, 4 << 20])
def test_input_is_read_while_the_response_is_suspended(serve: Servers, how: str, size: int) -> None:
    """By another thread, from memory and from a file; what it reads is what was sent."""
    server = serve(APP, threads(2))
    half = size // 2
    with server.connect() as connection:
        connection.send(post(f"/reading?{how}", b"a" * half + b"b" * half))
        wait_until(lambda: is_idle(server, 1), PATIENCE, lambda: "the response was not suspended")
        server.open_gate("read")
        (event,) = server.wait_event("lengths")
        assert event["found"] == [half, half, 0]
        body = connection.response().body.removeprefix(b"begun ")
    assert body == b"a" * half + b"|" + b"b" * half + b"|"


def test_input_that_still_comes_is_read_while_the_response_is_suspended(serve: Servers) -> None:
    """The client was told to continue, and sends the rest while no worker has the response."""
    server = serve(APP, threads(2))
    with server.connect() as connection:
        connection.send(
            b"POST /reading?silent HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.interim_response().status == 100
        connection.send(b"aaaaa")
        wait_until(lambda: is_idle(server, 1), PATIENCE, lambda: "the response was not suspended")
        server.open_gate("read")
        server.wait_event("reading")
        time.sleep(0.1)
        connection.send(b"bbbbb")
        assert connection.response().body == b"aaaaa|bbbbb|"
        # The connection is in order: the next request is read from its first byte.
        connection.send(get("/fast?after"))
        assert connection.response().body == b"fast after"


def test_input_that_was_not_asked_for_says_why_it_cannot_be_read(serve: Servers) -> None:
    """The request has not ended: it is the response's own thread that has to ask for the body."""
    server = serve(APP, threads(2))
    with server.connect() as connection:
        connection.send(
            b"POST /reading?unasked HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        wait_until(lambda: is_idle(server, 1), PATIENCE, lambda: "the response was not suspended")
        server.open_gate("read")
        (event,) = server.wait_event("read")
    assert event["found"][1].startswith("RuntimeError: wsgi.input cannot be read while its")


def test_client_that_leaves_while_input_is_read_in_a_suspended_response(serve: Servers) -> None:
    """The reader is told, and the response ends."""
    server = serve(APP, threads(2))
    connection = server.connect()
    connection.send(
        b"POST /reading?silent HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    assert connection.interim_response().status == 100
    connection.send(b"aaaaa")
    wait_until(lambda: is_idle(server, 1), PATIENCE, lambda: "the response was not suspended")
    server.open_gate("read")
    server.wait_event("reading")
    connection.reset()
    server.wait_event("failed", kind="ConnectionResetError")
    wait_until(lambda: is_idle(server), PATIENCE, lambda: "the response has not ended")
    assert server.exchange(get("/fast?after")).status == 200
    assert server.stop() == 0


def test_write_while_the_response_is_suspended_says_so(serve: Servers) -> None:
    """Its request has not ended either."""
    server = serve(APP, threads(2))
    with server.connect() as connection:
        connection.send(get("/writing"))
        assert connection.head().status == 200
        assert connection.chunk() == b"begun "
        wait_until(lambda: is_idle(server, 1), PATIENCE, lambda: "the response was not suspended")
        server.open_gate("write")
        assert connection.chunk().startswith(b"a callable of the request was called while its")
