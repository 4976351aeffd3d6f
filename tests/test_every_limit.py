"""Every limit and timeout of serve.toml: one below, at it, one above; status, counter, log line.

`TABLE` has a row for each key of [limits] and [timeouts], and for the others that bound something;
a key without a row fails `test_every_limit_has_a_row`. A row is a function that meets the limit and
breaks it, or the name of the test that does where the limit is not about a client.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from admin_client import serve_with_admin
from metrics import Metrics
from serve_zig.schema import KEYS
from serving import Server, Servers, wait_until
from wire import PATIENCE, Connection, all_closed, chunked, get, post, post_chunked

#: Time limits are broken by waiting for SHORT, and met where they are LONG: a busy machine may stop
#: a client for seconds.
SHORT = 0.4
LONG = 5.0
PAUSE = 0.2
FROM = r"from 127\.0\.0\.1"
ID = r"request id [0-9a-f]{32}"


class Watched:
    """A server, its counters, and the lines of its log, from the last `begin` on."""

    def __init__(self, servers: Servers, app: str, config: dict[str, Any]) -> None:
        self.server, self.admin = serve_with_admin(servers, app, config)
        self.server.wait_log("info cgroup: ")  # the last that a start says
        self.before: dict[tuple[str, str, str], float] = {}
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self.server.begin_test()
        self.before = self.counters()

    def counters(self) -> dict[tuple[str, str, str], float]:
        """Return every counter that has a reason or a phase, and those of statuses."""
        return {
            (name.removeprefix("serve_zig_"), *dict(labels).popitem()): value
            for name, family in self.metrics().families.items()
            if family.kind == "counter"
            for (_, labels), value in family.samples.items()
            if len(labels) == 1
        }

    def value(self, name: str) -> float:
        """Return a metric without labels."""
        return self.metrics().value(name)

    def metrics(self) -> Metrics:
        """Return all of them."""
        fields = "Accept: application/openmetrics-text; version=1.0.0"
        return Metrics(self.admin.ask("/metrics", fields).body.decode())

    def counted(self) -> dict[tuple[str, str, str], int]:
        """Return what has been counted since `begin`."""
        after = self.counters()
        changes = {key: int(after[key] - self.before[key]) for key in after}
        return {key: change for key, change in changes.items() if change}

    def expect_counted(self, *expected: tuple[str, str, str]) -> None:
        """Each of these once, and nothing else."""
        wanted = dict.fromkeys(expected, 1)
        wait_until(
            lambda: self.counted() == wanted, PATIENCE, lambda: f"{self.counted()}, not {wanted}"
        )

    def expect_line(self, pattern: str) -> None:
        """One line, which is this one, and whole."""
        self.server.wait_log(rf"(?m)^\S+Z {pattern}$")
        lines = self.server.test_log().splitlines()
        assert len(lines) == 1, lines

    def expect_nothing(self) -> None:
        """Nothing was counted or logged."""
        assert self.counted() == {}
        assert self.server.test_log() == ""


Start = Callable[[str, dict[str, Any]], Watched]


@pytest.fixture
def start(serve: Servers) -> Start:
    """Start servers to watch."""

    def started(app: str, config: dict[str, Any]) -> Watched:
        return Watched(serve, app, config)

    return started


# Requests of some size


def request_line_of(size: int) -> bytes:
    """Return a request whose request line has so many bytes, without its CRLF."""
    return get("/read?" + "a" * (size - len("GET /read? HTTP/1.1")))


def head_of(size: int) -> bytes:
    """Return a request whose head has so many bytes, from the first to the last CRLF."""
    return get("/read", "X-Padding: " + "p" * (size - len(get("/read", "X-Padding: "))))


def fields_of(count: int) -> bytes:
    """Return a request with so many field lines."""
    return get("/read", *(f"X-Field-{number}: v" for number in range(count - 1)))


def length_of(size: int) -> bytes:
    """Return a request whose body has so many bytes, told beforehand."""
    return post("/read", b"b" * size)


def chunked_of(size: int) -> bytes:
    """Return a request whose body has so many bytes, in chunks."""
    body = b"b" * size
    return post_chunked("/read", *(body[start : start + 7] for start in range(0, size, 7)))


def asked_for(size: int) -> bytes:
    """Return a chunked one whose client would wait for 100, had it not sent the body already."""
    fields = ("Transfer-Encoding: chunked", "Expect: 100-continue")
    return get("/read", *fields, method="POST") + chunked(b"b" * size)


def answered(connection: Connection) -> int:
    """Return the status of the final response."""
    status = 100
    while status == 100:
        status = connection.head().status
    return status


def of_some_size(start: Start, key: str, makes: list[Callable[[int], bytes]], refused: str) -> None:
    """Meet and break a limit on a part of a request."""
    limit = 300
    watched = start("reading:app", {"limits": {key: limit if key != "fields" else 10}})
    limit = limit if key != "fields" else 10
    status, reason = refused.split()
    for make in makes:
        for size in (limit - 1, limit):
            watched.begin()
            with watched.server.connect() as connection:
                connection.offer(make(size))
                assert answered(connection) == 200, (make.__name__, size)
            watched.expect_nothing()
        with watched.server.connect() as connection:
            connection.offer(make(limit + 1))
            assert answered(connection) == int(status), make.__name__
            connection.read_to_end(reset_counts=True)
        watched.expect_counted(("bad_requests", "reason", reason))
        what = "" if key == "request_line" else r'[A-Z]+ "/\w*" '
        watched.expect_line(f"info refused {refused}; {what}{FROM}, {ID}")


def limits_request_line(start: Start) -> None:
    of_some_size(start, "request_line", [request_line_of], "414 request_line_too_long")


def limits_head(start: Start) -> None:
    of_some_size(start, "head", [head_of], "431 head_too_large")


def limits_fields(start: Start) -> None:
    of_some_size(start, "fields", [fields_of], "431 too_many_fields")


def limits_body(start: Start) -> None:
    of_some_size(start, "body", [length_of, chunked_of, asked_for], "413 body_too_large")


# Places: connections, the queue, memory


def asks(connection: Connection, target: str = "/hello") -> None:
    """Be answered, and stay."""
    connection.send(get(target))
    assert connection.response().status == 200


def limits_connections(start: Start) -> None:
    """An idle connection makes room; with none idle accepting pauses, and goes on."""
    watched = start("working:app", {"limits": {"connections": 4}})
    with all_closed([]) as connections:
        for _ in range(4):
            connections.append(watched.server.connect())
            asks(connections[-1])
        watched.expect_nothing()
        connections.append(watched.server.connect())
        asks(connections[-1])
        connections[0].expect_close()
        watched.expect_counted(("connections_closed", "reason", "evicted"))
        watched.expect_line(r"warning limits\.connections is reached: .*")
        watched.begin()
        for connection in connections[1:]:
            connection.send(get("/gate?full", "Connection: close"))
        watched.server.wait_event("begun", path="/gate", count=4)
        waiting = watched.server.connect()
        connections.append(waiting)
        waiting.send(get("/hello"))
        waiting.expect_silence(0.2)
        watched.expect_counted(("accept_pauses", "reason", "connections"))
        watched.expect_line(r"warning accepting pauses: limits\.connections is reached and .*")
        watched.server.open_gate("full")
        assert waiting.response().status == 200


def limits_requests_per_connection(start: Start) -> None:
    watched = start("reading:app", {"limits": {"requests_per_connection": 3}})
    with watched.server.connect() as connection:
        for _ in range(2):
            connection.send(length_of(1))
            assert not connection.response().closes
        watched.expect_nothing()
        # The one behind the last is not answered.
        connection.offer(length_of(1) * 2)
        assert connection.response().closes
        connection.expect_cut()
    watched.expect_counted(("connections_closed", "reason", "requests_per_connection"))


def temporary_files(server: Server) -> int:
    """Return how many files without a name the process has open."""
    folder = Path(f"/proc/{server.process.pid}/fd")
    targets = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(path.readlink()))
    names = [name for name in targets if name.endswith("(deleted)") and "memfd" not in name]
    return len([name for name in names if not name.startswith(str(server.folder))])


def limits_body_memory(start: Start) -> None:
    watched = start("reading:before_reading", {"limits": {"body_memory": 50_000}})
    server = watched.server
    for number, (size, files) in enumerate(((49_999, 0), (50_000, 0), (50_001, 1)), start=1):
        with server.connect() as connection:
            connection.send(length_of(size))
            server.wait_event("started", count=number)
            assert temporary_files(server) == files, size
            server.open_gate("read")
            assert connection.response().json() == "b" * size
        (server.folder / "gate-read").unlink()
    watched.expect_nothing()


def limits_buffer_memory(start: Start) -> None:
    """Up to the limit every body is in memory; beyond it 64 KiB of each, and the rest in a file."""
    limits = {"body_memory": "2 MiB", "buffer_memory": "1 MiB"}
    watched = start("reading:before_reading", {"limits": limits})
    server = watched.server
    last = 100_000
    for turn, (held, in_memory) in enumerate(((2**20 - last, last), (2**20, 65_536))):
        server.begin_test()
        sizes = (held - 20_000, 20_000, last)
        with all_closed([server.connect() for _ in sizes]) as connections:
            for number, (connection, size) in enumerate(zip(connections, sizes, strict=True)):
                connection.send(length_of(size))
                server.wait_event("started", count=3 * turn + number + 1)
            assert watched.value("buffer_memory_bytes") == held + in_memory
            assert temporary_files(server) == int(in_memory < last)
            server.open_gate("read")
            for connection, size in zip(connections, sizes, strict=True):
                assert connection.response().json() == "b" * size
        (server.folder / "gate-read").unlink()
        wait_until(
            lambda: watched.value("buffer_memory_bytes") == 0, PATIENCE, lambda: "some is held"
        )
        if turn == 0:
            server.wait_log("limits.buffer_memory is reached")
    assert watched.counted() == {}


def queued(start: Start, more: int) -> Watched:
    """Let so many requests more than the queue holds wait for a thread."""
    size = 3
    watched = start("working:app", {"concurrency": {"threads": 1, "queue": size}})
    with all_closed([watched.server.connect() for _ in range(1 + size + more)]) as connections:
        connections[0].send(get("/gate?queue"))
        watched.server.wait_event("begun", path="/gate")
        for connection in connections[1:]:
            connection.send(get("/queued"))
        if more > 0:
            wait_until(lambda: watched.counted() != {}, PATIENCE, lambda: "nothing was shed")
        watched.server.open_gate("queue")
        statuses = sorted(connection.response().status for connection in connections)
    assert statuses == [200] * (1 + size + min(more, 0)) + [503] * max(more, 0)
    return watched


def concurrency_queue(start: Start) -> None:
    for more in (-1, 0):
        queued(start, more).expect_nothing()
    watched = queued(start, 1)
    watched.expect_counted(("shed", "reason", "queue_full"))
    watched.expect_line(f'warning refused 503 queue_full; GET "/queued" {FROM}, {ID}')


# Times


def concurrency_queue_timeout(start: Start) -> None:
    for name, limit, status in (("early", LONG, 200), ("late", LONG / 2, 503)):
        settings = {"threads": 1, "queue_timeout": limit}
        watched = start("working:app", {"concurrency": settings})
        with watched.server.connect() as running, watched.server.connect() as waiting:
            running.send(get(f"/gate?{name}"))
            watched.server.wait_event("begun", query=name)
            waiting.send(get("/waiting"))
            if status == 200:
                time.sleep(PAUSE)
                watched.server.open_gate(name)
            assert waiting.response().status == status
            watched.server.open_gate(name)
            assert running.response().status == 200
        if status == 200:
            watched.expect_nothing()
    watched.expect_counted(
        ("shed", "reason", "queue_timeout"),
        ("timeouts", "phase", "queue"),
    )
    watched.expect_line(f'warning refused 503 queue_timeout; GET "/waiting" {FROM}, {ID}')


def timeouts_head(start: Start) -> None:
    watched = start("reading:app", {"timeouts": {"head": LONG}})
    with watched.server.connect() as connection:
        request = length_of(1)
        connection.send(request[:20])
        time.sleep(PAUSE)
        connection.send(request[20:])
        assert connection.response().status == 200
    watched.expect_nothing()
    watched = start("reading:app", {"timeouts": {"head": SHORT}})
    with watched.server.connect() as connection:
        connection.send(get("/read")[:-2])
        assert connection.response().status == 408
    watched.expect_counted(("timeouts", "phase", "head"))
    watched.expect_line(f'info refused 408 head_timeout; GET "/read" {FROM}, {ID}')


def timeouts_body(start: Start) -> None:
    """Whether the server takes the body in, or the application reads it as it comes."""
    patient = start("reading:app", {"timeouts": {"body": LONG}})
    watched = start("reading:app", {"timeouts": {"body": SHORT}})
    head = get("/read", "Content-Length: 2", method="POST")
    asking = get("/read", "Content-Length: 2", "Expect: 100-continue", method="POST")
    for request in (head, asking):
        with patient.server.connect() as connection:
            connection.send(request + b"1")
            time.sleep(PAUSE)
            connection.send(b"2")
            assert answered(connection) == 200
        patient.expect_nothing()
        watched.begin()
        with watched.server.connect() as connection:
            connection.send(request + b"1")
            assert answered(connection) == 408
        watched.expect_counted(("timeouts", "phase", "body"))
        watched.expect_line(f'info refused 408 body_timeout; POST "/read" {FROM}, {ID}')


def timeouts_keep_alive(start: Start) -> None:
    """It ends without a word, as clients expect; a line for each would say nothing."""
    watched = start("reading:app", {"timeouts": {"keep_alive": LONG}})
    with watched.server.connect() as connection:
        for _ in range(2):
            connection.send(length_of(1))
            assert connection.response().status == 200
            time.sleep(PAUSE)
        watched.expect_nothing()
        connection.expect_close()
    watched.expect_counted(("connections_closed", "reason", "keep_alive_timeout"))
    assert watched.server.test_log() == ""


def timeouts_write(start: Start) -> None:
    watched = start("responding:app", {"timeouts": {"write": LONG}})
    with watched.server.connect(receive_buffer=65536) as connection:
        connection.send(get("/large_list"))
        for _ in range(6):
            time.sleep(PAUSE)
            connection.take(300_000)
        watched.expect_nothing()
    watched = start("responding:app", {"timeouts": {"write": SHORT}})
    with watched.server.connect(receive_buffer=4096) as connection:
        connection.send(get("/large_list"))
        wait_until(lambda: watched.counted() != {}, PATIENCE, lambda: "nothing was counted")
    watched.expect_counted(("timeouts", "phase", "write"))
    watched.expect_line(f'info cut off 200 write_timeout; GET "/large_list" {FROM}, {ID}')


def timeouts_request(start: Start) -> None:
    watched = start("working:app", {"timeouts": {"request": LONG, "request_action": "answer"}})
    assert watched.server.exchange(get(f"/sleep?{PAUSE}")).status == 200
    watched.expect_nothing()
    watched = start("working:app", {"timeouts": {"request": SHORT, "request_action": "answer"}})
    with watched.server.connect() as connection:
        connection.send(get("/gate?overdue"))
        assert connection.response().status == 504
        watched.server.open_gate("overdue")
    wait_until(lambda: watched.counted() != {}, PATIENCE, lambda: "nothing was counted")
    assert watched.counted()["timeouts", "phase", "app"] == 1
    pattern = rf'(?m)^\S+Z warning request timeout: GET "/gate\?overdue" {FROM} .*{ID}'
    watched.server.wait_log(pattern)


def timeouts_drain(start: Start) -> None:
    for name, limit, status in (("early", 20.0, 0), ("late", SHORT, 4)):
        watched = start("working:app", {"timeouts": {"drain": limit}})
        with watched.server.connect() as connection:
            connection.send(get(f"/gate?{name}"))
            watched.server.wait_event("begun", query=name)
            if status == 0:
                watched.server.open_gate(name)
            assert watched.server.stop() == status
        watched.server.errors_expected = True


# The table

Row = Callable[[Start], None] | str
TABLE: dict[str, Row] = {
    "app.startup_timeout": "test_admin.py::test_startup_and_import_have_a_time_limit",
    "concurrency.queue": concurrency_queue,
    "concurrency.queue_timeout": concurrency_queue_timeout,
    "limits.connections": limits_connections,
    "limits.request_line": limits_request_line,
    "limits.head": limits_head,
    "limits.fields": limits_fields,
    "limits.body": limits_body,
    "limits.body_memory": limits_body_memory,
    "limits.requests_per_connection": limits_requests_per_connection,
    "limits.buffer_memory": limits_buffer_memory,
    "limits.response_memory": "test_bodies.py::test_a_large_download_takes_no_memory",
    "limits.requests": "test_drain.py::test_limit_on_requests",
    "limits.requests_jitter": "test_drain.py::test_limit_on_requests_is_spread",
    "limits.memory": "test_drain.py::test_limit_on_memory",
    "timeouts.head": timeouts_head,
    "timeouts.body": timeouts_body,
    "timeouts.keep_alive": timeouts_keep_alive,
    "timeouts.write": timeouts_write,
    "timeouts.drain_delay": "test_drain.py::test_drain_delay_goes_on_accepting",
    "timeouts.drain": timeouts_drain,
    "timeouts.request": timeouts_request,
    "timeouts.request_action": "test_request_timeout.py::test_exception_is_raised_in_the_handler",
}


def test_every_limit_has_a_row() -> None:
    """A key that limits something and has no row here is not tested; a row without a key is old."""
    keys = {key.path for key in KEYS if key.table in ("limits", "timeouts")}
    keys |= {key.path for key in KEYS if "timeout" in key.name}
    keys |= {"concurrency.queue"}
    assert set(TABLE) == keys
    for row in TABLE.values():
        if isinstance(row, str):
            file, name = row.split("::")
            source = (Path(__file__).parent / file).read_text("utf-8")
            assert f"def {name}(" in source, row


ROWS = {key: row for key, row in TABLE.items() if not isinstance(row, str)}


@pytest.mark.parametrize("key", ROWS)
def test_limit(start: Start, key: str) -> None:
    """What its row says."""
    ROWS[key](start)


# Statuses that are no limit's

ANSWERS: list[tuple[bytes, int, str]] = [
    (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "bare_lf"),
    (b"GET / HTTP/1.1\r\n\r\n", 400, "missing_host"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "duplicate_host"),
    (get("/", "Content-Length: x", method="POST"), 400, "bad_content_length"),
    (get("/", "Transfer-Encoding: chunked", method="POST") + b"z\r\n", 400, "bad_chunk_size"),
    (get("/", "Expect: x"), 417, "expectation_failed"),
    (get("/", "Transfer-Encoding: gzip, chunked", method="POST"), 501, "unsupported_transfer_c"),
    (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501, "connect"),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "unsupported_version"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "unsupported_version"),
]


@pytest.fixture(scope="module")
def believing(serve_module: Servers) -> Watched:
    """A server that trusts its peers, and logs everything as text."""
    return Watched(serve_module, "reading:app", {"proxy": {"trusted": ["127.0.0.1"]}})


@pytest.mark.parametrize(("request_bytes", "status", "reason"), ANSWERS, ids=lambda v: str(v)[:40])
def test_other_answers(believing: Watched, request_bytes: bytes, status: int, reason: str) -> None:
    """One status, one counter, one line."""
    believing.begin()
    with believing.server.connect() as connection:
        connection.offer(request_bytes)
        assert connection.response().status == status
        connection.read_to_end(reset_counts=True)
    wait_until(lambda: believing.counted() != {}, PATIENCE, lambda: "nothing was counted")
    ((name, label, found), count) = believing.counted().popitem()
    assert (name, label, count) == ("bad_requests", "reason", 1)
    assert found.startswith(reason)
    believing.expect_line(rf"info refused {status} {found}; (\w+ \"\S+\" )?{FROM}, {ID}")


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("X-Forwarded-For: nonsense!", "bad_forwarded_for"),
        ("X-Forwarded-Proto: gopher", "bad_forwarded_proto"),
        ("X-Forwarded-Host: a b", "bad_forwarded_host"),
        ("X-Forwarded-Port: 99999", "bad_forwarded_port"),
        ("X-Forwarded-Prefix: x", "bad_forwarded_prefix"),
    ],
    ids=lambda value: value,
)
def test_what_a_proxy_says_has_reasons_of_its_own(
    believing: Watched, field: str, reason: str
) -> None:
    """Not "other", which says nothing."""
    test_other_answers(believing, get("/read", field), 400, reason)


def test_a_request_for_https_has_a_reason_of_its_own(start: Start) -> None:
    """Of a peer that is not trusted."""
    watched = start("reading:app", {})
    test_other_answers(watched, get("https://a/read"), 421, "misdirected")


def test_trailers_have_limits_of_their_own(start: Start) -> None:
    """8 KiB with their line ends, and 32 lines, whatever limits.head and limits.fields are."""
    watched = start("reading:app", {"limits": {"head": "256 B", "fields": 8}})
    longest = b"X-A: " + b"a" * (8 * 1024 - 7) + b"\r\n"
    for trailer in (longest, b"A: b\r\n" * 32):
        assert watched.server.exchange(post_chunked("/read", b"x", trailer=trailer)).status == 200
        more = trailer.replace(b"\r\n", b"a\r\n") if trailer == longest else trailer + b"A: b\r\n"
        request = post_chunked("/read", b"x", trailer=more)
        test_other_answers(watched, request, 431, "trailer_too_large")


PROTOCOL = {"trusted": ["127.0.0.1"], "protocol": True}


def test_proxy_header_that_is_none(start: Start) -> None:
    """It is closed without an answer, counted, and has a line of its own; one line says why."""
    watched = start("reading:app", {"proxy": PROTOCOL})
    for data in (get("/"), b"PROXY TCP4 \x1b[31m\r\n\r\n", b"\r\n\r\n\0\r\nQUIT\nx" * 9):
        watched.begin()
        assert watched.server.raw(data) == b""
        watched.expect_counted(("bad_requests", "reason", "bad_proxy_header"))
        watched.server.wait_log(rf"(?m)^\S+Z info closed bad_proxy_header; {FROM}$")
        assert "\x1b" not in watched.server.test_log()


def test_proxy_header_that_does_not_come(start: Start) -> None:
    """timeouts.head is for it, too."""
    watched = start("reading:app", {"proxy": PROTOCOL, "timeouts": {"head": LONG}})
    with watched.server.connect() as connection:
        connection.send(b"PROXY TCP4 ")
        time.sleep(PAUSE)
        connection.send(b"192.0.2.1 192.0.2.2 1 2\r\n" + length_of(1))
        assert connection.response().status == 200
    watched.expect_nothing()
    watched = start("reading:app", {"proxy": PROTOCOL, "timeouts": {"head": SHORT}})
    with watched.server.connect() as connection:
        connection.offer(b"PROXY TCP4 ")
        assert connection.read_to_end(reset_counts=True) == b""
    watched.expect_counted(("timeouts", "phase", "head"))
    watched.expect_line(f"info closed proxy_header_timeout; {FROM}")


@pytest.mark.parametrize("body", [b"zz\r\n", b"1\r\nxx\r\n", b"1;a=\x01\r\n"], ids=repr)
def test_a_body_that_fails_after_it_was_asked_for(start: Start, body: bytes) -> None:
    """The client's fault is 400 and one line, not 500 and a traceback."""
    watched = start("reading:app", {})
    request = get("/read", "Transfer-Encoding: chunked", "Expect: 100-continue", method="POST")
    with watched.server.connect() as connection:
        connection.send(request)
        assert connection.interim_response().status == 100
        connection.send(body)
        response = connection.response()
        assert (response.status, response.closes) == (400, True)
    wait_until(lambda: watched.counted() != {}, PATIENCE, lambda: "nothing was counted")
    ((name, _, reason), count) = watched.counted().popitem()
    assert (name, count) == ("bad_requests", 1)
    watched.expect_line(rf"info refused 400 {reason}; POST \"/read\" {FROM}, {ID}")


def test_a_client_that_leaves_while_its_body_is_read(start: Start) -> None:
    """Nobody can be told, and there is no traceback that clients could fill the log with."""
    watched = start("reading:app", {})
    for number in range(4):
        with watched.server.connect() as connection:
            fields = ("Content-Length: 9", "Expect: 100-continue")
            connection.send(get("/read", *fields, method="POST"))
            assert connection.interim_response().status == 100
            connection.send(b"some")
            if number % 2:
                connection.reset()
        watched.server.wait_event("failed", count=number + 1)
    wait_until(lambda: bool(watched.counted()), PATIENCE, lambda: "nothing was counted")
    assert watched.server.exchange(length_of(1)).status == 200
    assert watched.server.test_log() == ""


# What a client says cannot become a line, or colour a terminal

#: Each of them ends something for somebody: lines, quotes, fields, terminals, C strings.
HOSTILE = ["\n", "\r", "\r\n", "\x1b[2J", '"', "\\", "\\n", "\0", "\x7f", "\x85", "\x9b", "\t", "ÿ"]
FORGED = "2026-01-01T00:00:00.000Z error FORGED"

#: Where a client's bytes can be on their way to a line. `%s` is where the bytes go.
PLACES: dict[str, str] = {
    "method": "G%sT / HTTP/1.1\r\nHost: a\r\n\r\n",
    "target": "GET /%s HTTP/1.1\r\nHost: a\r\n\r\n",
    "query": "GET /?%s HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute target": "GET http://a%s/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "version": "GET / HTTP/1.1%s\r\nHost: a\r\n\r\n",
    "host": "GET / HTTP/1.1\r\nHost: a%s\r\n\r\n",
    "field name": "GET / HTTP/1.1\r\nHost: a\r\nX%s: v\r\n\r\n",
    "refused later": "GET /%s HTTP/1.1\r\nHost: a\r\nBad\r\n\r\n",
    "referer": "GET / HTTP/1.1\r\nHost: a\r\nReferer: %s\r\n\r\n",
    "user agent": "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: %s\r\n\r\n",
    "request id": "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: %s\r\n\r\n",
    "trace": "GET / HTTP/1.1\r\nHost: a\r\nTraceparent: 00-%s-1-01\r\n\r\n",
    "client of a proxy": "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %s\r\n\r\n",
    "host of a proxy": "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: %s\r\n\r\n",
    "prefix of a proxy": "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Prefix: /%s\r\n\r\n",
    "chunk extension": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;%s\r\n",
    "trailer": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%s\r\n\r\n",
    "exception": "GET /error?%s HTTP/1.1\r\nHost: a\r\nX-Raise: %s\r\n\r\n",
}

RAISING = """
def app(environ, start_response):
    if "HTTP_X_RAISE" in environ:
        raise ValueError(environ["HTTP_X_RAISE"] + environ["PATH_INFO"] + environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


@contextlib.contextmanager
def logging_all(serve: Servers, form: str, tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    """A server that writes every line that it has, and the path of its access log."""
    access = tmp_path / "access"
    server = serve(
        "raising:app",
        {
            "log": {"format": form, "access": str(access), "slow_request": 0.000001},
            "proxy": {"trusted": ["127.0.0.1"]},
        },
        {"raising.py": RAISING},
    )
    server.errors_expected = True
    yield server, access
    server.stop()


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_client_writes_into_the_log(serve: Servers, form: str, tmp_path: Path) -> None:
    """At no place does what ends a line, a quote or an escape come through."""
    with logging_all(serve, form, tmp_path) as (server, access):
        for hostile in HOSTILE:
            for place, request in PLACES.items():
                text = request.replace("%s", f"{hostile}{FORGED}{hostile}{FORGED}")
                # Some places take no spaces, which must not be all that saves them.
                for data in (text, text.replace(FORGED, FORGED.replace(" ", "_"))):
                    answer = server.raw(data.encode("latin-1"), half_close=True)
                    assert not answer or answer.startswith(b"HTTP/1.1 "), place
        errors = server.folder / "stderr"
    assert b"FORGED" in access.read_bytes()
    assert b"FORGED" in errors.read_bytes()
    for path in (access, errors):
        for line in path.read_bytes().splitlines(keepends=True):
            assert line.decode().removesuffix("\n").isprintable(), line
            if form == "json":
                record = json.loads(line)
                assert not str(record.get("message", "")).startswith(FORGED), line
            elif path is errors:
                assert re.match(rb"[0-9T:.-]+Z (info|warning|error) |    ", line), line
                assert not line.startswith(FORGED.encode()), line
            else:
                assert line.startswith(b"127.0.0.1 - - ["), line
                assert len(re.findall(rb'(?<!\\)"', line)) == 6, line
