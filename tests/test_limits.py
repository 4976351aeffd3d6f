"""Limits far over, bytewise and by default; time-outs; slow clients. See test_every_limit.py."""

import hashlib
import random
import select
import socket
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from serving import Server, Servers, wait_until
from wire import PATIENCE, Connection, all_closed, chunked, get, post, post_chunked

# A time limit that a test waits for. Whoever must not meet it has LONG.
SHORT = 0.4
# Below this no time-out may have happened.
EARLY = SHORT * 0.75
# A time limit that a client keeps, which a busy machine may stop for seconds.
LONG = 5.0
# The time limits of a server on which whoever holds something holds it beyond the test.
FOR_EVER = {"head": 600.0, "body": 600.0, "keep_alive": 600.0, "write": 600.0}


def seconds_since(began: float) -> float:
    """Return the seconds since a reading of time.monotonic()."""
    return time.monotonic() - began


def expect_refused(server: Server, request: bytes, status: int) -> None:
    """The request is answered with this status, its connection ends, the application is spared."""
    called = len(server.events("called"))
    with server.connect() as connection:
        connection.offer(request)
        response = connection.response()
        assert response.status == status, response.body
        assert response.closes
        assert response.framing == "content-length"
        connection.finish()
        connection.expect_close()
    assert len(server.events("called")) == called


def expect_served(server: Server, request: bytes) -> None:
    """The request is answered with 200, and a second one on the same connection too."""
    with server.connect() as connection:
        for _ in range(2):
            connection.send(request)
            assert connection.response().status == 200


# Limits

LIMITS = {"request_line": 200, "head": 1000, "fields": 10, "body": 5000}


@pytest.fixture(scope="module")
def limited(serve_module: Servers) -> Server:
    """A server with small limits."""
    return serve_module("echo:app", {"limits": LIMITS})


def request_line_of(size: int) -> bytes:
    """Return a request whose request line has so many bytes, without its CRLF."""
    return get("/" + "a" * (size - len("GET / HTTP/1.1")))


def head_of(size: int) -> bytes:
    """Return a request whose head has so many bytes, from the first to the last CRLF."""
    return get("/", "X-Padding: " + "p" * (size - len(get("/", "X-Padding: "))))


def fields_of(count: int) -> bytes:
    """Return a request with so many field lines."""
    return get("/", *(f"X-Field-{number}: v" for number in range(count - 1)))


def length_of(size: int) -> bytes:
    """Return a request whose body has so many bytes, told beforehand."""
    return post("/", b"b" * size)


def chunked_of(size: int) -> bytes:
    """Return a request whose body has so many bytes, in chunks."""
    body = b"b" * size
    return post_chunked("/", *(body[start : start + 100] for start in range(0, size, 100)))


Make = Callable[[int], bytes]
CASES: list[tuple[Make, int, int]] = [
    (request_line_of, LIMITS["request_line"], 414),
    (head_of, LIMITS["head"], 431),
    (fields_of, LIMITS["fields"], 431),
    (length_of, LIMITS["body"], 413),
]
IDS = ["request_line", "head", "fields", "body"]


@pytest.mark.parametrize(("make", "limit", "status"), CASES, ids=IDS)
def test_limit_bytewise(limited: Server, make: Make, limit: int, status: int) -> None:
    """The same when the bytes trickle in."""
    for size, expected in ((limit, 200), (limit + 1, status)):
        with limited.connect() as connection:
            data = make(size)
            for start in range(0, len(data), 7):
                connection.offer(data[start : start + 7])
            assert connection.response().status == expected


@pytest.mark.parametrize(("make", "limit", "status"), CASES, ids=IDS)
def test_far_over_the_limit(limited: Server, make: Make, limit: int, status: int) -> None:
    """A hundred times the limit gets the same answer."""
    expect_refused(limited, make(limit * 100), status)


def test_limit_of_a_chunked_body(limited: Server) -> None:
    """The same limit holds for a body whose length nobody told."""
    limit = LIMITS["body"]
    expect_served(limited, chunked_of(limit - 1))
    expect_served(limited, chunked_of(limit))
    expect_refused(limited, chunked_of(limit + 1), 413)
    expect_refused(limited, post_chunked("/", b"b" * (limit + 1)), 413)
    expect_refused(limited, chunked_of(limit * 100), 413)


def test_body_is_refused_before_it_is_sent(limited: Server) -> None:
    """Where Content-Length tells, the answer comes without a byte of the body."""
    with limited.connect() as connection:
        connection.send(get("/", f"Content-Length: {LIMITS['body'] + 1}", method="POST"))
        assert connection.response().status == 413


def test_chunk_is_refused_before_it_is_sent(limited: Server) -> None:
    """The same where the size of the next chunk tells."""
    with limited.connect() as connection:
        head = get("/", "Transfer-Encoding: chunked", method="POST")
        connection.send(head + b"%x\r\n" % (LIMITS["body"] + 1))
        assert connection.response().status == 413


def test_tiny_chunks_are_not_a_way_round(limited: Server) -> None:
    """A body of single bytes, each with its own size line, is read like any other."""
    request = post_chunked("/", *(b"b" for _ in range(3000)))
    expect_served(limited, request)


def test_limits_are_per_request(limited: Server) -> None:
    """Twenty requests at their limits on one connection do not add up."""
    with limited.connect() as connection:
        for make, limit, _ in CASES * 5:
            connection.send(make(limit))
            assert connection.response().status == 200


@pytest.mark.parametrize(("size", "status"), [(9_000, 200), (70_000, 431), (600_000, 431)], ids=str)
def test_default_head_limit(serve_defaults: Server, size: int, status: int) -> None:
    """Row: header 9 KB / 70 KB / 600 KB."""
    request = head_of(size)
    if status == 200:
        expect_served(serve_defaults, request)
    else:
        expect_refused(serve_defaults, request, status)


@pytest.mark.parametrize(
    ("size", "status"), [(5_000, 200), (20_000, 414), (70_000, 414), (600_000, 414)], ids=str
)
def test_default_request_line_limit(serve_defaults: Server, size: int, status: int) -> None:
    """Row: URL 5 K / 20 K / 70 K / 600 K."""
    request = request_line_of(size)
    if status == 200:
        expect_served(serve_defaults, request)
    else:
        expect_refused(serve_defaults, request, status)


@pytest.mark.parametrize(
    ("count", "status"), [(100, 200), (101, 431), (201, 431), (1001, 431), (5000, 431)], ids=str
)
def test_default_fields_limit(serve_defaults: Server, count: int, status: int) -> None:
    """Row: 101 / 201 / 1001 / 5000 headers."""
    request = fields_of(count)
    if status == 200:
        expect_served(serve_defaults, request)
    else:
        expect_refused(serve_defaults, request, status)


@pytest.fixture(scope="module")
def serve_defaults(serve_module: Servers) -> Server:
    """A server with the limits that it has when nobody sets any."""
    return serve_module("echo:app")


def test_default_body_limit(serve: Servers) -> None:
    """Row: 20 MB body, default config."""
    server = serve("reading:app")
    body = random.Random(1).randbytes(20_000_000)
    digest = hashlib.sha256(body).hexdigest()
    assert server.exchange(post("/digest", body), timeout=30).json() == digest
    pieces = [body[start : start + 99_991] for start in range(0, len(body), 99_991)]
    request = post_chunked("/digest_pieces", *pieces)
    assert server.exchange(request, timeout=30).json() == digest


@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("size", [9_999, 10_000, 10_001, 300_000])
def test_body_memory(serve_spooling: Server, coding: str, size: int) -> None:
    """limits.body_memory: a body comes out the same, from memory or from the temporary file."""
    body = random.Random(size).randbytes(size)
    digest = hashlib.sha256(body).hexdigest()
    for way in ("digest", "digest_pieces", "digest_lines"):
        request = post(f"/{way}", body)
        if coding == "chunked":
            request = post_chunked(f"/{way}", body[: size // 3], body[size // 3 :])
        with serve_spooling.connect() as connection:
            for _ in range(2):
                connection.send(request)
                assert connection.response().json() == digest
            connection.send(post("/read", b"small"))
            assert connection.response().json() == "small"


@pytest.fixture(scope="module")
def serve_spooling(serve_module: Servers, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that holds little of a body in memory."""
    folder = tmp_path_factory.mktemp("spool")
    return serve_module(
        "reading:app",
        {"limits": {"body_memory": 10_000}},
        environment={"TMPDIR": str(folder), "SPOOL": str(folder)},
    )


def test_body_file_has_no_name(serve: Servers, tmp_path: Path) -> None:
    """The temporary file of an upload is unlinked while it is in use, and gone afterwards."""
    server = serve(
        "reading:before_reading",
        {"limits": {"body_memory": 1000}},
        environment={"TMPDIR": str(tmp_path)},
    )
    with server.connect() as connection:
        connection.send(post("/digest", b"x" * 100_000))
        server.wait_event("started")
        assert list(tmp_path.iterdir()) == []
        server.open_gate("read")
        assert connection.response().status == 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_body_files_are_closed(serve: Servers) -> None:
    """Descriptors and memory are given back, also when clients leave in the middle."""
    server = serve("reading:app", {"limits": {"body_memory": 1000}})

    def descriptors() -> int:
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    server.exchange(post("/digest", b"x" * 50_000))
    before = descriptors()
    for _ in range(20):
        server.exchange(post("/digest", b"x" * 50_000))
        with server.connect() as connection:
            connection.send(post("/digest", b"x" * 50_000)[:-10])
    wait_until(lambda: descriptors() <= before, PATIENCE, lambda: f"{descriptors()} > {before}")


def test_requests_per_connection(serve: Servers) -> None:
    """limits.requests_per_connection: the last response says close, and the connection ends."""
    server = serve("echo:app", {"limits": {"requests_per_connection": 3}})
    with server.connect() as connection:
        for last in (False, False, True):
            connection.send(get("/"))
            response = connection.response()
            assert response.status == 200
            assert response.closes is last
        connection.expect_close()
    with server.connect() as connection:
        connection.send(get("/1") + get("/2") + get("/3") + get("/4"))
        assert [connection.response().closes for _ in range(3)] == [False, False, True]
        connection.expect_cut()
    assert not server.events("called", target="/4")


def test_connections_evicts_the_longest_idle(serve: Servers) -> None:
    """limits.connections: past it the connection that has been idle longest makes room."""
    server = serve("echo:app", {"limits": {"connections": 4}})
    with all_closed([]) as connections:
        for number in range(6):
            connections.append(server.connect())
            connections[-1].send(get(f"/{number}"))
            assert connections[-1].response().json()["path"] == f"/{number}"
        connections[0].expect_close()
        connections[1].expect_close()
        for connection in connections[2:]:
            connection.send(get("/again"))
            assert connection.response().status == 200


def test_queue_sheds(serve: Servers) -> None:
    """concurrency.queue: past it a request is answered 503 with Retry-After, not held."""
    server = serve("working:app", {"concurrency": {"threads": 1, "queue": 2}})
    with all_closed([server.connect() for _ in range(6)]) as connections:
        connections[0].send(get("/gate?queue"))
        server.wait_event("begun", path="/gate")
        for connection in connections[1:]:
            connection.send(get("/queued"))
        # The three that found no place are answered while the application still blocks.
        sockets = [connection.socket for connection in connections]

        def answered() -> list[socket.socket] | None:
            readable = select.select(sockets, [], [], 0)[0]
            return readable if len(readable) >= 3 else None

        wait_until(answered, PATIENCE, lambda: f"only {answered()} were shed")
        server.open_gate("queue")
        responses = [connection.response() for connection in connections]
        statuses = [response.status for response in responses]
        assert statuses.count(200) == 3, statuses
        assert statuses.count(503) == 3, statuses
        for response in responses:
            if response.status == 503:
                assert int(str(response.value("Retry-After"))) >= 0
                assert response.value("Content-Length") is not None


# Timeouts


@pytest.fixture(scope="module")
def impatient(serve_module: Servers) -> Server:
    """A server with short timeouts for heads and bodies."""
    return serve_module("reading:app", {"timeouts": {"head": SHORT, "body": SHORT}})


@pytest.fixture(scope="module")
def patient(serve_module: Servers) -> Server:
    """A server with timeouts that a client can keep."""
    times = {"head": LONG, "body": LONG, "keep_alive": LONG, "write": LONG}
    return serve_module("responding:app", {"timeouts": times})


def expect_408(connection: Connection, began: float) -> None:
    """The connection is answered 408, not before its time, and ends."""
    response = connection.response()
    assert response.status == 408
    assert seconds_since(began) > EARLY
    assert response.closes
    assert response.framing == "content-length"
    connection.finish()
    connection.expect_close()


@pytest.mark.parametrize("size", [1, 20, -1])
def test_head_timeout(impatient: Server, size: int) -> None:
    """timeouts.head: an unfinished head is answered 408."""
    with impatient.connect() as connection:
        began = time.monotonic()
        connection.send(get("/")[:size])
        expect_408(connection, began)


def test_head_timeout_counts_from_the_first_byte(impatient: Server) -> None:
    """A head that trickles makes no progress that counts: the whole of it has the time."""
    with impatient.connect() as connection:
        began = time.monotonic()
        head = get("/", "X-Padding: " + "p" * 500)
        for number in range(len(head)):
            connection.offer(head[number : number + 1])
            time.sleep(0.02)
            if seconds_since(began) > SHORT + 0.5:
                break
        expect_408(connection, began)


def test_head_timeout_of_a_later_request(impatient: Server) -> None:
    """The second head on a connection has its own time."""
    with impatient.connect() as connection:
        for _ in range(3):
            time.sleep(SHORT / 2)
            connection.send(post("/read", b""))
            assert connection.response().status == 200
        began = time.monotonic()
        connection.send(get("/")[:-2])
        expect_408(connection, began)


def test_head_in_time(patient: Server) -> None:
    """A head that comes in two parts, in less than the time, is served."""
    with patient.connect() as connection:
        request = get("/hello")
        connection.send(request[:10])
        time.sleep(0.2)
        connection.send(request[10:])
        assert connection.response().body == b"hello"


@pytest.mark.parametrize("coding", ["length", "chunked", "chunk size", "trailers"])
def test_body_timeout(impatient: Server, coding: str) -> None:
    """timeouts.body: a body that stops is answered 408, and the application is not called."""
    called = len(impatient.events("called"))
    requests = {
        "length": post("/read", b"x" * 1000)[:-1],
        "chunked": post_chunked("/read", b"x" * 1000)[:-500],
        "chunk size": post_chunked("/read", b"x" * 1000)[:-5] + b"5",
        "trailers": post_chunked("/read", b"x" * 1000, trailer=b"X-Field: 1\r\n")[:-4],
    }
    with impatient.connect() as connection:
        began = time.monotonic()
        connection.send(requests[coding])
        expect_408(connection, began)
    assert len(impatient.events("called")) == called


def test_progress_begins_each_time_anew(patient: Server) -> None:
    """Bodies, readers and idle connections may take longer altogether as long as they go on."""
    pauses = 10
    with all_closed([patient.connect(receive_buffer=65536) for _ in range(4)]) as connections:
        body, idle, *readers = connections
        body.send(get("/reading", f"Content-Length: {pauses}", method="POST"))
        for kind, reader in zip(("list", "iterator"), readers, strict=True):
            reader.send(get(f"/large_{kind}"))
        for _ in range(pauses):
            time.sleep(LONG / pauses * 1.2)
            body.send(b"x")
            idle.send(get("/hello"))
            assert idle.response().body == b"hello"
            for reader in readers:
                reader.take(300_000)
        assert body.response().body == b"%d" % pauses
        for reader in readers:
            reader.send(get("/hello", "Connection: close"))
            left = reader.read_to_end()
            assert left.endswith(b"hello")
            assert len(left) > 20_000_000


@pytest.fixture
def short_keep_alive(serve: Servers) -> Server:
    """A server that lets idle connections go soon."""
    return serve("reading:app", {"timeouts": {"keep_alive": SHORT}})


def test_keep_alive_timeout(serve: Servers) -> None:
    """timeouts.keep_alive: an idle connection ends without a word."""
    # Long enough for the first request to come in time.
    server = serve("reading:app", {"timeouts": {"keep_alive": LONG}})
    with server.connect() as connection:
        began = time.monotonic()
        connection.send(post("/read", b""))
        assert connection.response().status == 200
        connection.expect_close()
        assert seconds_since(began) > LONG * 0.75


def test_keep_alive_is_not_the_time_of_the_application(serve: Servers) -> None:
    """No timeout of the client's runs while its request is being worked on."""
    times = {"head": SHORT, "body": SHORT, "keep_alive": LONG, "write": SHORT}
    server = serve("working:app", {"timeouts": times})
    assert server.exchange(get(f"/sleep?{LONG + 1}")).body == b"done /sleep"


def test_silent_connection_ends(short_keep_alive: Server) -> None:
    """One that never says anything is let go of too."""
    began = time.monotonic()
    with short_keep_alive.connect() as connection:
        answer = connection.read_to_end()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")
        assert seconds_since(began) > EARLY


@pytest.mark.timing
def test_time_limits_are_met_soon(impatient: Server, short_keep_alive: Server) -> None:
    """What is over its time is let go within a second."""
    for request in (get("/")[:-2], post("/read", b"x" * 9)[:-1]):
        with impatient.connect() as connection:
            began = time.monotonic()
            connection.send(request)
            expect_408(connection, began)
            assert seconds_since(began) < SHORT + 1
    with short_keep_alive.connect() as connection:
        connection.read_to_end()
        assert seconds_since(began) < 2 * (SHORT + 1)


@pytest.mark.parametrize("kind", ["list", "iterator"])
def test_write_timeout(serve: Servers, kind: str) -> None:
    """timeouts.write: a client that takes nothing loses its connection; the iterable is closed."""
    server = serve("responding:app", {"timeouts": {"write": SHORT}})
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get(f"/large_{kind}"))
        server.wait_event("large")
        if kind == "iterator":
            server.wait_event("closed", tag="large_iterator")
        else:
            server.wait_log("write_timeout")
        data = connection.read_to_end(reset_counts=True)
        assert len(data) < 20_000_000
    assert server.exchange(get("/hello")).body == b"hello"
    server.errors_expected = True


# Many slow clients, one thread: a client holds descriptors, never a thread


def expect_working(server: Server) -> None:
    """The server answers a good client; what the bad ones hold they hold beyond the test."""
    for number in range(5):
        assert server.exchange(get("/hello")).body == b"hello", number


@pytest.fixture
def one_thread(serve: Servers) -> Server:
    """A server with one thread for the application."""
    return serve("responding:app", {"concurrency": {"threads": 1}, "timeouts": FOR_EVER})


@pytest.mark.parametrize("count", [50, 300])
def test_silent_clients(one_thread: Server, count: int) -> None:
    """Rows: still serves with 50 silent TCP connections; ...300 silent connections."""
    with all_closed([one_thread.connect() for _ in range(count)]):
        expect_working(one_thread)


def test_half_sent_heads(one_thread: Server) -> None:
    """Row: ...20 half-sent headers."""
    with all_closed([one_thread.connect() for _ in range(50)]) as connections:
        for number, connection in enumerate(connections):
            connection.send(get("/hello", "X-Field: value")[: 1 + number])
        expect_working(one_thread)


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_half_sent_bodies(one_thread: Server, size: int) -> None:
    """Row: ...20 half-sent bodies; in memory and in temporary files."""
    with all_closed([one_thread.connect() for _ in range(50)]) as connections:
        for number, connection in enumerate(connections):
            if number % 2 and size == 1000:
                connection.send(post_chunked("/hello", b"x" * size)[:-100])
            else:
                sent = min(size // 2, 1_100_000 if number < 4 else 5000)
                connection.send(get("/hello", f"Content-Length: {size}", method="POST"))
                connection.send(b"x" * sent)
        expect_working(one_thread)


def test_clients_not_reading_an_iterator(one_thread: Server) -> None:
    """Row: ...12 clients not reading a 60 MB generator."""
    with all_closed([one_thread.connect(receive_buffer=4096) for _ in range(12)]) as connections:
        for number, connection in enumerate(connections, start=1):
            connection.send(get("/large_iterator?960"))
            one_thread.wait_event("large", count=number)
        expect_working(one_thread)
        # And each of them still gets its own, whole.
        assert len(connections[0].response().body) == 960 * 65536


def test_clients_not_reading_a_list(one_thread: Server) -> None:
    """Row: ...6 clients not reading a 60 MB list."""
    with all_closed([one_thread.connect(receive_buffer=4096) for _ in range(6)]) as connections:
        for number, connection in enumerate(connections, start=1):
            connection.send(get("/large_list"))
            one_thread.wait_event("large", count=number)
        expect_working(one_thread)
        assert hashlib.sha256(connections[0].response().body).digest() == LARGE_DIGEST


LARGE_DIGEST = hashlib.sha256(bytes(range(256)) * (24 << 12)).digest()


def test_idle_clients(one_thread: Server) -> None:
    """Row: ...50 idle keep-alive connections."""
    with all_closed([one_thread.connect() for _ in range(50)]) as connections:
        for connection in connections:
            connection.send(get("/hello"))
            assert connection.response().body == b"hello"
        expect_working(one_thread)


def test_all_of_them_together(one_thread: Server) -> None:
    """Silent, half a head, half a body and not reading, beside one that works."""
    with all_closed([one_thread.connect(receive_buffer=4096) for _ in range(170)]) as connections:
        for connection in connections[50:100]:
            connection.send(get("/hello")[:20])
        for connection in connections[100:150]:
            connection.send(post("/hello", b"x" * 1000)[:-500])
        for connection in connections[150:160]:
            connection.send(get("/large_iterator?960"))
        for connection in connections[160:170]:
            connection.send(get("/large_list"))
        one_thread.wait_event("large", count=20)
        expect_working(one_thread)


def test_clients_leaving_in_the_middle(one_thread: Server) -> None:
    """Those that leave, politely or not, cost nothing afterwards."""
    for number in range(40):
        with one_thread.connect(receive_buffer=4096) as connection:
            connection.send(get("/large_iterator?400"))
            connection.take(10_000)
            if number % 2:
                connection.reset()
    closed = one_thread.wait_event("closed", tag="large_iterator", count=40)
    assert all(event["left"] > 0 for event in closed)
    expect_working(one_thread)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_client_not_reading(one_thread: Server) -> None:
    """Row: RSS growth in MB, one client not reading a 200 MB generator of fresh chunks."""
    assert one_thread.exchange(get("/large_iterator?100")).status == 200
    before = one_thread.resident_bytes()
    with one_thread.connect(receive_buffer=4096) as connection:
        connection.send(get("/large_iterator?3200"))
        one_thread.wait_event("large", count=2)
        highest = before
        for _ in range(20):
            highest = max(highest, one_thread.resident_bytes())
            time.sleep(0.05)
        assert highest - before < 20_000_000
    # Nor does the iteration run on into memory after the client has left.
    one_thread.wait_event("closed", tag="large_iterator", count=2)
    assert one_thread.resident_bytes() - before < 20_000_000


def test_requests_run_in_parallel(serve: Servers) -> None:
    """Row: 4 x 1.5 s requests in parallel take (1.5 s; here four wait for the same at once)."""
    server = serve("working:app", {"concurrency": {"threads": 4}})
    with all_closed([server.connect() for _ in range(4)]) as connections:
        for connection in connections:
            connection.send(get("/gate?parallel"))
        server.wait_event("begun", path="/gate", count=4)
        server.open_gate("parallel")
        for connection in connections:
            assert connection.response().status == 200


def test_pipelines_do_not_starve_others(one_thread: Server) -> None:
    """A client that sends more and more without reading leaves room for the others."""
    with all_closed([one_thread.connect() for _ in range(4)]) as connections:
        for connection in connections:
            connection.socket.setblocking(False)
            sent = 0
            try:
                while sent < 50_000_000:
                    sent += connection.socket.send(get("/hello") * 500)
            except BlockingIOError:
                pass
        expect_working(one_thread)


def test_chunked_uploads_together(serve: Servers) -> None:
    """Forty uploads that arrive interleaved keep their bodies apart."""
    server = serve("reading:app", {"limits": {"body_memory": 2000}})
    bodies = [random.Random(number).randbytes(5000 + number) for number in range(40)]
    with all_closed([server.connect() for _ in bodies]) as connections:
        for connection in connections:
            connection.send(get("/digest", "Transfer-Encoding: chunked", method="POST"))
        for start in range(0, 6000, 500):
            for connection, body in zip(connections, bodies, strict=True):
                piece = body[start : start + 500]
                if piece:
                    connection.send(chunked(piece)[: -len(b"0\r\n\r\n")])
        for connection in connections:
            connection.send(b"0\r\n\r\n")
        for connection, body in zip(connections, bodies, strict=True):
            assert connection.response().json() == hashlib.sha256(body).hexdigest()


def test_empty_lines_are_no_way_to_stay(serve: Servers) -> None:
    """One may come before a request (RFC 9112 2.2), in one piece or in two; the next is refused."""
    server = serve("echo:app", {"timeouts": {"keep_alive": 30, "head": 30}})
    for pieces in (("\r\n\r\n",), ("\r\n", "\r\n"), ("\r", "\n", "\r"), ("\r\n\r", "\n")):
        with server.connect() as connection:
            for piece in pieces:
                connection.offer(piece.encode())
                time.sleep(0.05)
            assert connection.response().status == 400, pieces
            connection.expect_close()
    for pieces in (("\r\n",), ("\r", "\n")):
        with server.connect() as connection:
            # After a request another one may come.
            for _ in range(3):
                for piece in pieces:
                    connection.send(piece.encode())
                    time.sleep(0.05)
                connection.send(get("/"))
                assert connection.response().status == 200


def test_an_empty_line_is_followed_by_the_keep_alive_timeout(serve: Servers) -> None:
    """Nothing has begun: no 408, whichever time is longer."""
    cases = [(SHORT, LONG), (600.0, LONG - 1)]
    servers = [
        serve("echo:app", {"timeouts": {"head": head, "keep_alive": keep_alive}})
        for head, keep_alive in cases
    ]
    with all_closed([server.connect() for server in servers]) as connections:
        began = time.monotonic()
        for connection in connections:
            connection.send(get("/"))
            assert connection.response().status == 200
            connection.send(b"\r")
            time.sleep(0.05)
            connection.send(b"\n")
        # The shorter one is over first.
        for connection, (_, keep_alive) in reversed(list(zip(connections, cases, strict=True))):
            connection.expect_close()
            assert seconds_since(began) > keep_alive * 0.75


RAISED = {
    "limits": {
        "head": "16 MiB",
        "request_line": "8 KiB",
        "fields": 10_000,
        "buffer_memory": "64 MiB",
    }
}


@pytest.mark.parametrize(
    ("name", "key", "separator"),
    [
        ("X-Many", "HTTP_X_MANY", ", "),
        ("Accept", "HTTP_ACCEPT", ", "),
        ("Cookie", "HTTP_COOKIE", "; "),
    ],
)
def test_field_repeated_thousands_of_times(
    serve: Servers, name: str, key: str, separator: str
) -> None:
    """Its lines are joined in a time that grows with their length and not with its square."""
    server = serve("counting:app", RAISED, files={"counting.py": COUNTING})
    value = "v" * 1000
    lines = [f"{name}: {value}{number}" for number in range(9000)]
    before = server.cpu_seconds()
    found = server.exchange(get(f"/{key}", *lines), timeout=60).json()
    spent = server.cpu_seconds() - before
    expected = separator.join(f"{value}{number}" for number in range(9000))
    assert found == [len(expected), zlib.crc32(expected.encode())]
    # The square took more than a minute.
    assert spent < 5, spent


def test_many_fields_repeated_once(serve: Servers) -> None:
    """What is collected for one field costs the others nothing."""
    server = serve("counting:app", RAISED, files={"counting.py": COUNTING})
    lines = [f"X-{number % 4500}: {number}" for number in range(9000)]
    before = server.cpu_seconds()
    found = server.exchange(get("/HTTP_X_4499", *lines), timeout=60).json()
    assert server.cpu_seconds() - before < 5
    expected = b"4499, 8999"
    assert found == [len(expected), zlib.crc32(expected)]


COUNTING = """
import json, zlib
def app(environ, start_response):
    value = environ.get(environ["PATH_INFO"][1:], "")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([len(value), zlib.crc32(value.encode("latin-1"))]).encode()]
"""
