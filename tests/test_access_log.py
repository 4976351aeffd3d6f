"""The access log in both formats, the error log in JSON, request ids, phases; and that none of it
ever holds a request up, loses a line without saying so, or lets a client write into a log.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from admin_client import AdminClient
from metrics import Metrics
from serving import Server, Servers, free_port, wait_until
from wire import PATIENCE, Connection, all_closed, get, post

FIELDS = [
    "time", "client", "method", "target", "protocol", "status", "bytes_received", "bytes_sent",
    "seconds", "head", "body", "queue", "gil", "app", "write", "thread", "request_id", "trace_id",
    "referer", "user_agent",
]  # fmt: skip
PHASES = ["head", "body", "queue", "gil", "app", "write"]
ID = re.compile(r"[0-9a-f]{32}")
COMBINED = re.compile(
    r'(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "((?:[^"\\]|\\.)*)" (\d{3}) '
    r'(\d+) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)" (\S+)'
)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def lines_of(path: Path, count: int, within: float = PATIENCE) -> list[str]:
    """Wait until a log has so many lines and return them; each must be whole."""

    def found() -> list[str] | None:
        text = path.read_text("ascii") if path.exists() else ""
        lines = text.splitlines()
        return lines if len(lines) >= count and text.endswith("\n") else None

    lines = wait_until(
        found, within, lambda: f"no {count} lines: {path.read_text() if path.exists() else None}"
    )
    assert len(lines) == count, lines
    return lines


class Logged:
    """A server that logs into a file, read from where a test begins."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self.path = path
        self.begin()

    def begin(self) -> None:
        """Forget what is there."""
        self._seen = len(self.path.read_text("ascii").splitlines())

    def lines(self, count: int) -> list[str]:
        """Return the new lines, which are so many."""
        lines = lines_of(self.path, self._seen + count)[self._seen :]
        self._seen += count
        return lines

    def records(self, count: int) -> list[dict[str, Any]]:
        """Return the new lines read as JSON, every field checked."""
        return [checked(line) for line in self.lines(count)]


def checked(line: str) -> dict[str, Any]:
    """Return a record of the JSON access log if it is as the contract has it."""
    record: dict[str, Any] = json.loads(line)
    assert list(record) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
    assert isinstance(record["status"], int)
    for name in ("bytes_received", "bytes_sent"):
        assert isinstance(record[name], int)
    for name in ("seconds", *PHASES):
        assert isinstance(record[name], float)
    assert abs(record["seconds"] - sum(record[name] for name in PHASES)) < 0.00001
    assert ID.fullmatch(record["request_id"])
    assert record["thread"] is None or record["thread"] >= 0
    return record


def logging_server(servers: Servers, form: str, **more: Any) -> Logged:
    """Start a server that logs everything into a file."""
    server = servers(
        "observing:app",
        {
            "log": {"access": "logs/access.log", "format": form, **more},
            "concurrency": {"threads": 2},
            "timeouts": {"head": 4.0},
        },
        files={"logs/keep": ""},
    )
    return Logged(server, server.folder / "logs" / "access.log")


@pytest.fixture(scope="module")
def json_server(serve_module: Servers) -> Logged:
    """A server that logs as JSON."""
    return logging_server(
        serve_module, "json", slow_request=0.25, server_timing=True, access_exclude=["/health"]
    )


@pytest.fixture
def json_log(json_server: Logged) -> Logged:
    """The same, from here on."""
    json_server.begin()
    return json_server


@pytest.fixture(scope="module")
def text_server(serve_module: Servers) -> Logged:
    """A server that logs as text."""
    return logging_server(serve_module, "text", slow_request=0.25)


@pytest.fixture
def text_log(text_server: Logged) -> Logged:
    """The same, from here on."""
    text_server.begin()
    return text_server


# Formats


def test_combined_log_format(text_log: Logged) -> None:
    before = time.time()
    text_log.server.exchange(
        get("/large?13", "Referer: http://there/", "User-Agent: curl/8.0 (x; y)")
    )
    text_log.server.exchange(get("/missing", version="1.0", method="HEAD"), method="HEAD")
    first, second = text_log.lines(2)
    match = COMBINED.fullmatch(first)
    assert match is not None, first
    client, stamp, request, status, size, referer, agent, request_id = match.groups()
    assert (client, status, size) == ("127.0.0.1", "200", "13")
    assert request == "GET /large?13 HTTP/1.1"
    assert (referer, agent) == ("http://there/", "curl/8.0 (x; y)")
    assert ID.fullmatch(request_id)
    assert time.strftime("%d/%b/%Y:%H:%M", time.gmtime(before)) in stamp
    match = COMBINED.fullmatch(second)
    assert match is not None, second
    assert match[3] == "HEAD /missing HTTP/1.0"
    assert (match[4], match[5], match[6], match[7]) == ("404", "0", "-", "-")


def test_json_has_the_fields_of_the_contract(json_log: Logged) -> None:
    request = post("/body?q=1", b"x" * 1000, "Referer: http://there/", "User-Agent: agent")
    with json_log.server.connect() as connection:
        connection.send(request)
        connection.response()
        connection.send(b"GET / HTTP/1.0\r\n\r\n")
        rest = connection.read_to_end()
    first, second = json_log.records(2)
    assert first["client"] == "127.0.0.1"
    assert (first["method"], first["target"]) == ("POST", "/body?q=1")
    assert first["protocol"] == "HTTP/1.1"
    assert first["status"] == 200
    assert first["bytes_received"] == len(request)
    assert (first["referer"], first["user_agent"]) == ("http://there/", "agent")
    assert first["trace_id"] is None
    assert 0 <= first["thread"] <= 2
    assert second["protocol"] == "HTTP/1.0"
    assert second["bytes_sent"] == len(rest)
    assert (second["referer"], second["user_agent"]) == (None, None)


def test_what_clients_say_cannot_leave_its_field(json_log: Logged, text_log: Logged) -> None:
    agent = "\xff\xfe\"\\\t'{}\xe9"
    target = "/%0a\"\\x'"
    for log in (json_log, text_log):
        log.server.exchange(get(target, f"User-Agent: {agent}", 'Referer: "'))
    (record,) = json_log.records(1)
    assert (record["user_agent"], record["target"], record["referer"]) == (agent, target, '"')
    (line,) = text_log.lines(1)
    match = COMBINED.fullmatch(line)
    assert match is not None, line
    assert match[3] == "GET /%0a\\\"\\\\x' HTTP/1.1"
    assert match[6] == '\\"'
    assert match[7] == "\\xff\\xfe\\\"\\\\\\x09'{}\\xe9"


def test_long_fields_are_cut(json_log: Logged) -> None:
    json_log.server.exchange(get("/" + "a" * 7000, "User-Agent: " + "\xff" * 5000))
    (record,) = json_log.records(1)
    assert record["target"] == "/" + "a" * 4095 + "..."
    assert record["user_agent"] == "\xff" * 1024 + "..."


def test_each_request_of_a_pipeline_has_a_line(json_log: Logged) -> None:
    with json_log.server.connect() as connection:
        connection.send(b"".join(get(f"/{number}") for number in range(50)))
        ids = [connection.response().value("X-Request-Id") for _ in range(50)]
    records = json_log.records(50)
    assert [record["target"] for record in records] == [f"/{number}" for number in range(50)]
    assert [record["request_id"] for record in records] == ids
    assert len(set(ids)) == 50


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_bytes_of_a_file_count(json_log: Logged, size: int) -> None:
    # Small ones are copied, large ones leave by sendfile.
    def sent(server: Server) -> float:
        text = server.exchange(get("/metrics")).body.decode()
        # What has a line has been counted.
        json_log.records(1)
        return Metrics(text).value("bytes_sent")

    first, second = sent(json_log.server), sent(json_log.server)
    with json_log.server.connect() as connection:
        connection.send(get(f"/file?{size}"))
        length = len(connection.response().body)
    (record,) = json_log.records(1)
    third = sent(json_log.server)
    assert length == size
    assert size < third - second - (second - first) < size + 600
    assert size < record["bytes_sent"] < size + 600


def test_excluded_paths_are_logged_when_they_fail(json_log: Logged) -> None:
    for target in ("/health", "/health?x=1", "/healthy", "/health"):
        json_log.server.exchange(get(target))
    json_log.server.exchange(get("/health", "X Y: z"))
    found = [(record["target"], record["status"]) for record in json_log.records(2)]
    assert found == [("/healthy", 200), ("/health", 400)]


def test_unix_clients_have_no_address(serve: Servers, tmp_path: Path) -> None:
    server = serve(
        "observing:app",
        {
            "listen": {"bind": [f"unix:{tmp_path}/s"]},
            "log": {"access": str(tmp_path / "log"), "format": "json"},
        },
    )
    server.exchange(get("/"))
    assert checked(*lines_of(tmp_path / "log", 1))["client"] == "unix:"


# Phases


# How long the kernel keeps the server from running is nobody's phase, and in each of them.
ELSEWHERE = pytest.mark.parametrize(
    "seconds_max", [0.0, pytest.param(0.15, marks=pytest.mark.timing)], ids=["spent", "alone"]
)


@ELSEWHERE
def test_time_is_in_the_phase_in_which_it_was_spent(json_log: Logged, seconds_max: float) -> None:
    server = json_log.server
    pause = 0.3
    with server.connect() as connection:
        connection.send(b"GET /slow-head HTTP/1.1\r\n")
        time.sleep(pause)
        connection.send(b"Host: a\r\n\r\n")
        connection.response()
        connection.send(get("/slow-body", "Content-Length: 2", method="POST"))
        time.sleep(pause)
        connection.send(b"ab")
        connection.response()
        connection.send(get(f"/sleep?{pause}"))
        connection.response()
    records = json_log.records(3)
    for record, slow in zip(records, ("head", "body", "app"), strict=True):
        assert record[slow] >= pause * 0.95, record
        if seconds_max:
            assert max(record[phase] for phase in PHASES if phase != slow) < seconds_max, record


def test_time_in_the_queue(json_log: Logged) -> None:
    server = json_log.server
    with all_closed([server.connect() for _ in range(3)]) as clients:
        for client in clients[:2]:
            client.send(get("/gate?queued"))
        server.wait_event("begun", path="/gate", query="queued", count=2)
        clients[2].send(get("/environ"))
        # Answered without a thread: it is in the queue by then.
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        time.sleep(0.3)
        server.open_gate("queued")
        told = clients[2].response().json()["serve_zig.queue_seconds"]
        for client in clients[:2]:
            client.response()
    record = next(one for one in json_log.records(4) if one["target"] == "/environ")
    assert record["queue"] + record["gil"] > 0.25
    assert abs(told - record["queue"] - record["gil"]) < 0.00001


@ELSEWHERE
def test_time_in_which_the_client_is_slow(json_log: Logged, seconds_max: float) -> None:
    with json_log.server.connect(receive_buffer=4096) as connection:
        connection.send(get("/large?8000000"))
        time.sleep(0.3)
        connection.response()
    (record,) = json_log.records(1)
    assert record["write"] >= 0.25
    if seconds_max:
        assert record["app"] < seconds_max
    assert record["bytes_sent"] > 8_000_000


@pytest.mark.parametrize("target", ["/large?6000000", "/written?6000000", "/file?6000000"])
def test_every_byte_of_a_slow_response_counts(json_log: Logged, target: str) -> None:
    """Whoever sent it, the worker, the poller, or a worker that waited for the client."""
    with json_log.server.connect(receive_buffer=4096) as connection:
        connection.send(get(target, "Connection: close"))
        time.sleep(0.2)
        received = len(connection.read_to_end())
    (record,) = json_log.records(1)
    assert record["bytes_sent"] == received > 6_000_000


@ELSEWHERE
def test_a_stream_that_waits_for_its_client_is_not_the_applications_time(
    json_log: Logged, seconds_max: float
) -> None:
    # While the application reads what the client holds back, it is the body's time.
    with json_log.server.connect() as connection:
        connection.send(get("/body", "Content-Length: 3", "Expect: 100-continue", method="POST"))
        assert connection.interim_response().status == 100
        time.sleep(0.3)
        connection.send(b"abc")
        connection.response()
    (record,) = json_log.records(1)
    assert record["body"] >= 0.25
    if seconds_max:
        assert record["app"] < seconds_max


def test_server_timing(json_log: Logged) -> None:
    value = json_log.server.exchange(get("/sleep?0.05")).value("Server-Timing")
    assert value is not None
    parts = dict(part.split(";dur=") for part in value.split(", "))
    assert list(parts) == ["head", "body", "queue", "gil", "app"]
    assert 50 <= float(parts["app"]) <= json_log.records(1)[0]["app"] * 1000


def test_no_server_timing_unless_asked_for(text_log: Logged) -> None:
    assert text_log.server.exchange(get("/")).values("Server-Timing") == []


def test_slow_requests(json_log: Logged, text_log: Logged) -> None:
    for log in (json_log, text_log):
        log.server.exchange(get("/sleep?0.3"))
        log.server.exchange(get("/sleep?0.01"))
    records = json_log.records(2)
    record = records[0]
    pattern = r'.*"message":"slow request: \d+\.\d+ s".*'
    match = json_log.server.wait_log(pattern)
    slow = json.loads(match[0])
    assert list(slow) == ["time", "level", "message", *FIELDS[1:]]
    assert slow["level"] == "warning"
    assert {name: slow[name] for name in FIELDS[1:]} == {name: record[name] for name in FIELDS[1:]}
    # On a busy machine the other may be slow, too.
    slow_count = sum(one["seconds"] >= 0.25 for one in records)
    wait_until(
        lambda: len(re.findall(pattern, json_log.server.test_log())) == slow_count,
        PATIENCE,
        lambda: f"not {slow_count} slow requests",
    )
    text_log.server.wait_log(
        r"Z warning slow request: \d+\.\d+ s \(head \d+\.\d{6}, body \d+\.\d{6}, "
        r"queue \d+\.\d{6}, gil \d+\.\d{6}, app \d+\.\d{6}, write \d+\.\d{6}\), status 200, "
        r'thread \d; GET "/sleep\?0\.3" from 127\.0\.0\.1, request id [0-9a-f]{32}\n'
    )


# Ids and traces


def test_request_id_is_everywhere(json_log: Logged) -> None:
    server = json_log.server
    response = server.exchange(get("/environ", f"traceparent: {TRACEPARENT}"))
    known = response.json()
    request_id = response.value("X-Request-Id")
    assert request_id is not None
    assert ID.fullmatch(request_id)
    assert known["serve_zig.request_id"] == request_id
    assert known["HTTP_TRACEPARENT"] == TRACEPARENT
    assert isinstance(known["serve_zig.queue_seconds"], float)
    (record,) = json_log.records(1)
    assert (record["request_id"], record["trace_id"]) == (request_id, TRACE)

    server.errors_expected = True
    failed = server.exchange(get('/error?"\\'))
    request_id = failed.value("X-Request-Id")
    assert json_log.records(1)[0]["request_id"] == request_id
    match = server.wait_log(r'.*"application error.*')
    error = json.loads(match[0])
    assert error["level"] == "error"
    assert error["message"] == "application error: ValueError"
    assert error["request_id"] == request_id
    assert (error["method"], error["target"]) == ("GET", '/error?"\\')
    assert error["client"] == "127.0.0.1"
    assert error["detail"].startswith("Traceback (most recent call last):\n")
    assert error["detail"].endswith("ValueError: on purpose\nin two lines")


def test_request_id_in_the_error_log_as_text(text_log: Logged) -> None:
    text_log.server.errors_expected = True
    request_id = text_log.server.exchange(get("/error")).value("X-Request-Id")
    text_log.server.wait_log(
        f'error application error: ValueError; GET "/error" from 127.0.0.1, request id {request_id}'
    )


def test_an_id_of_the_application_stands(json_log: Logged) -> None:
    response = json_log.server.exchange(get("/own-id"))
    assert response.values("X-Request-Id") == ["mine"]
    assert json_log.records(1)[0]["request_id"] != "mine"


def test_an_id_of_a_client_is_not_believed(json_log: Logged) -> None:
    response = json_log.server.exchange(
        get("/environ", "X-Request-Id: forged", "X-Request-Start: t=1.0", "traceparent: 00-x")
    )
    (record,) = json_log.records(1)
    assert response.value("X-Request-Id") == record["request_id"] != "forged"
    # Since 1970, if it were believed.
    assert response.json()["serve_zig.queue_seconds"] < 600
    assert record["trace_id"] is None


def test_what_a_trusted_proxy_says(serve: Servers, tmp_path: Path) -> None:
    server = serve(
        "observing:app",
        {
            "proxy": {"trusted": ["127.0.0.1"]},
            "log": {"access": str(tmp_path / "log"), "format": "json"},
        },
    )
    ago = f"t={time.time() - 1000:.3f}"
    response = server.exchange(
        get(
            "/environ",
            "X-Request-Id: 7d1f-22.x/+=",
            f"X-Request-Start: {ago}",
            "X-Forwarded-For: 192.0.2.7",
        )
    )
    known = response.json()
    assert known["serve_zig.request_id"] == response.value("X-Request-Id") == "7d1f-22.x/+="
    assert known["HTTP_X_REQUEST_ID"] == "7d1f-22.x/+="
    assert 999 < known["serve_zig.queue_seconds"] < 2000
    refused = server.exchange(get("/", "X-Request-Id: seen", "Content-Length: 9" + "9" * 15))
    assert (refused.status, refused.value("X-Request-Id")) == (413, "seen")
    for bad in ('a"b', "a b", "x" * 129, ""):
        made = server.exchange(get("/", f"X-Request-Id: {bad}")).value("X-Request-Id")
        assert ID.fullmatch(made or ""), bad
    metrics = Metrics(server.exchange(get("/metrics")).body.decode())
    assert metrics.value("queue_seconds", "_sum") > 999
    first, second, *_ = (json.loads(line) for line in lines_of(tmp_path / "log", 7))
    assert (first["request_id"], first["client"]) == ("7d1f-22.x/+=", "192.0.2.7")
    assert first["queue"] < 999
    assert second["request_id"] == "seen"


def test_ids_of_two_processes_differ(serve: Servers) -> None:
    halves = set()
    for _ in range(2):
        request_id = serve("observing:app").exchange(get("/")).value("X-Request-Id")
        assert request_id is not None
        halves.add(request_id[:16])
    assert len(halves) == 2


# Requests that the server itself refuses


def test_refused_requests_have_a_line_in_both_logs(json_log: Logged, text_log: Logged) -> None:
    for log in (json_log, text_log):
        response = log.server.exchange(get('/a"b', "X Y: z"))
        assert response.status == 400
        assert ID.fullmatch(response.value("X-Request-Id") or "")
        log.server.exchange(b"\x16\x03\x01")
        log.server.exchange(b"GET /new HTTP/2.0\r\nHost: a\r\n\r\n")
    first, second, third = json_log.records(3)
    assert (third["status"], third["target"], third["protocol"]) == (505, "/new", None)
    assert (first["status"], first["target"], first["thread"]) == (400, '/a"b', None)
    assert (second["method"], second["target"], second["protocol"]) == (None, None, None)
    record = json.loads(json_log.server.wait_log(r'.*"refused 400 bad_field_name".*')[0])
    assert list(record) == ["time", "level", "message", "reason", *FIELDS[1:]]
    assert (record["level"], record["reason"]) == ("info", "bad_field_name")
    assert record["request_id"] == first["request_id"]
    first_line, second_line, third_line = text_log.lines(3)
    assert '"GET /new" 505 ' in third_line
    assert '"GET /a\\"b HTTP/1.1" 400 ' in first_line
    assert '"-" 400 ' in second_line
    text_log.server.wait_log(
        r'Z info refused 400 bad_field_name; GET "/a\\"b" from 127.0.0.1, request id [0-9a-f]{32}\n'
    )
    text_log.server.wait_log(
        r"Z info refused 400 control_character; from 127.0.0.1, request id [0-9a-f]{32}\n"
    )


def test_time_outs_and_clients_that_leave(json_log: Logged) -> None:
    server = json_log.server
    with server.connect() as connection:
        connection.send(b"GET /late HTTP/1.1\r\n")
        assert connection.response().status == 408
    with server.connect() as connection:
        connection.send(get("/left", "Content-Length: 5", method="POST") + b"ab")
        time.sleep(0.05)
    # Of a head that never ended nothing is known, and there is no line.
    with server.connect() as connection:
        connection.send(b"GET /never")
    server.exchange(get("/last"))
    found = {(record["target"], record["status"]) for record in json_log.records(3)}
    assert found == {("/late", 408), ("/left", 499), ("/last", 200)}


def test_a_flood_of_bad_requests_does_not_fill_the_log(serve: Servers) -> None:
    server = serve("observing:app")
    began = time.monotonic()
    for _ in range(300):
        with server.connect() as connection:
            connection.offer(b"nonsense\r\n\r\n")
    server.wait_log(r"warning and (\d+) more requests refused, not logged one by one\n")

    def counts() -> tuple[int, int]:
        log = server.test_log()
        rest = sum(map(int, re.findall(r"and (\d+) more requests refused", log)))
        return len(re.findall(r" refused 400 bad_request_line; ", log)), rest

    # The rest of each second is told at its end.
    wait_until(lambda: sum(counts()) == 300, PATIENCE, lambda: f"logged, counted: {counts()}")
    seconds = time.monotonic() - began
    assert 10 <= counts()[0] <= 10 * (seconds + 1)


def test_the_level_is_kept(serve: Servers) -> None:
    server = serve("observing:app", {"log": {"level": "warning", "slow_request": 0.1}})
    server.exchange(b"nonsense\r\n\r\n")
    server.exchange(get("/sleep?0.2"))
    server.wait_log("warning slow request")
    assert "refused" not in server.test_log()


# Where lines go


@contextlib.contextmanager
def piped(tmp_path: Path, **log: Any) -> Iterator[tuple[int, int, "subprocess.Popen[bytes]"]]:
    """Run a server whose stdout is a pipe; give its port, the pipe's end, the process."""
    port = free_port()
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in log.items())
    (tmp_path / "serve.toml").write_text(
        f'[app]\ntarget = "observing:app"\ndirectory = "{Path(__file__).parent}/applications"\n'
        f'[listen]\nbind = "127.0.0.1:{port}"\n[log]\n{settings}\n'
    )
    reading, writing = os.pipe()
    with open(tmp_path / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_zig", "-c", str(tmp_path / "serve.toml")],
            stdout=writing,
            stderr=stderr,
            env={**os.environ, "SERVE_TEST_FOLDER": str(tmp_path)},
        )
    os.close(writing)
    try:
        wait_until(
            lambda: "serves" in (tmp_path / "stderr").read_text(),
            PATIENCE,
            lambda: "does not serve",
        )
        yield port, reading, process
    finally:
        os.close(reading)
        process.kill()
        process.wait(PATIENCE)


def test_lines_go_to_stdout(serve: Servers) -> None:
    server = serve("observing:app", {"log": {"access": "stdout"}})
    server.exchange(get("/"))
    (line,) = lines_of(server.folder / "stdout", 1)
    assert COMBINED.fullmatch(line)


def test_lines_go_to_stderr(serve: Servers) -> None:
    server = serve("observing:app", {"log": {"access": "stderr", "format": "json"}})
    server.exchange(get("/"))
    checked(server.wait_log(r'\{"time":"[^"]*","client".*')[0])
    for line in server.log().splitlines():
        json.loads(line)


def test_a_file_is_appended_to_and_opened_anew(serve: Servers, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("before\n")
    server = serve("observing:app", {"log": {"access": str(path)}})
    server.exchange(get("/one"))
    lines_of(path, 2)
    server.exchange(get("/two"))
    path.rename(tmp_path / "old.log")
    server.send_signal(signal.SIGHUP)
    server.wait_log("info SIGHUP: log files are opened anew\n")
    wait_until(path.exists, PATIENCE, lambda: "no new file")
    server.exchange(get("/three"))
    (line,) = lines_of(path, 1)
    assert "/three" in line
    old = (tmp_path / "old.log").read_text().splitlines()
    assert old[0] == "before"
    assert ["/one" in old[1], "/two" in old[2]] == [True, True]
    assert len(old) == 3


def test_a_file_that_cannot_be_opened_anew_is_kept(serve: Servers, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    server = serve("observing:app", {"log": {"access": str(path)}})
    path.rename(tmp_path / "old.log")
    path.mkdir()
    server.send_signal(signal.SIGHUP)
    server.wait_log("error the access log cannot be opened anew; the old file is kept\n")
    server.exchange(get("/one"))
    lines_of(tmp_path / "old.log", 1)


def test_every_line_is_there_when_the_server_has_ended(serve: Servers, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    server = serve("observing:app", {"log": {"access": str(path)}})
    with server.connect() as connection:
        connection.send(b"".join(get(f"/{number}") for number in range(200)))
        for _ in range(200):
            connection.response()
    assert server.stop() == 0
    assert len(path.read_text().splitlines()) == 200


def test_lines_are_there_after_a_drain_that_timed_out(serve: Servers, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    server = serve("observing:app", {"log": {"access": str(path)}, "timeouts": {"drain": 0.2}})
    server.exchange(get("/first"))
    with server.connect() as connection:
        connection.send(get("/gate?never"))
        server.wait_event("begun", path="/gate")
        assert server.stop() == 4
    assert "/first" in path.read_text()
    server.errors_expected = True


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    with piped(tmp_path, access="stdout", format="json") as (port, reading, process):
        count = 6000
        with Connection(socket.AF_INET, ("127.0.0.1", port)) as connection:
            batch = b"".join(get("/", "User-Agent: " + "x" * 500) for _ in range(100))
            for _ in range(count // 100):
                connection.send(batch)
                for _ in range(100):
                    assert connection.response().status == 200

            def dropped() -> int:
                connection.send(get("/metrics"))
                found = Metrics(connection.response().body.decode())
                return int(found.value("log_lines_dropped"))

            def drained() -> bool:
                with contextlib.suppress(BlockingIOError):
                    while block := os.read(reading, 1 << 16):
                        text.extend(block)
                return text.count(b"\n") >= expected

            assert dropped() > 0
            os.set_blocking(reading, False)
            text = bytearray()
            # The line of the request for the metrics itself may have been dropped after it.
            expected = count - dropped()
            wait_until(drained, PATIENCE, lambda: f"not {expected} lines: {text.count(10)}")
            # Now there is room again.
            expected = count + 3 - dropped()
            wait_until(drained, PATIENCE, lambda: f"not {expected} lines: {text.count(10)}")
        lines = text.decode("ascii").splitlines()
        assert len(lines) == expected
        for line in lines:
            checked(line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


RAISING = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/":
        start_response("200 OK", [])
        return [b"fine"]
    raise ValueError("x" * 10000)
"""


def test_an_error_log_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    """Tracebacks past what the pipe holds: every request is answered, and the server ends."""
    (tmp_path / "raising.py").write_text(RAISING)
    port, admin = free_port(), AdminClient(f"127.0.0.1:{free_port()}")
    (tmp_path / "serve.toml").write_text(
        f'[app]\ntarget = "raising:app"\n[listen]\nbind = "127.0.0.1:{port}"\n'
        f'[admin]\nbind = "{admin.bind}"\n[concurrency]\nthreads = 2\n'
    )
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_zig", "-c", str(tmp_path / "serve.toml")], stderr=writing
    )
    os.close(writing)
    try:
        admin.wait_up()
        admin.wait_ready()
        for number in range(250):
            with Connection(socket.AF_INET, ("127.0.0.1", port)) as connection:
                connection.send(get("/" if number % 50 == 0 else "/raise"))
                assert connection.response().status == (200 if number % 50 == 0 else 500)
        wait_until(
            lambda: not re.search(r"log_lines_dropped_total 0$", admin.text("/metrics"), re.M),
            PATIENCE,
            lambda: "nothing was dropped",
        )
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        text = b""
        while block := os.read(reading, 1 << 16):
            text += block
        assert b" application error: ValueError" in text
    finally:
        os.close(reading)
        process.kill()
        process.wait(PATIENCE)


def test_a_pipe_that_nobody_reads_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    with piped(tmp_path, access="stdout") as (port, _, process):
        with Connection(socket.AF_INET, ("127.0.0.1", port)) as connection:
            for _ in range(20):
                connection.send(b"".join(get("/" + "x" * 500) for _ in range(50)))
                for _ in range(50):
                    connection.response()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_reader_that_has_gone_costs_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with piped(tmp_path, access=str(path)) as (port, _, process):
        os.close(reading)
        with Connection(socket.AF_INET, ("127.0.0.1", port)) as connection:
            connection.send(get("/"))
            assert connection.response().status == 200

            def dropped() -> bool:
                connection.send(get("/metrics"))
                body = connection.response().body.decode()
                return Metrics(body).value("log_lines_dropped") > 0

            wait_until(dropped, PATIENCE, lambda: "nothing was dropped")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_a_full_disk_costs_lines_alone(serve: Servers) -> None:
    server = serve("observing:app", {"log": {"access": "/dev/full"}})
    server.exchange(get("/"))

    def dropped() -> bool:
        body = server.exchange(get("/metrics")).body.decode()
        return Metrics(body).value("log_lines_dropped") > 0

    wait_until(dropped, PATIENCE, lambda: "nothing was dropped")


def test_a_log_that_cannot_be_opened_is_one_clear_line(serve: Servers) -> None:
    server = serve("observing:app", {"log": {"access": "/proc/log"}}, wait=False)
    assert server.wait() == 1
    assert re.fullmatch(
        r"serve-zig: error: \S+serve\.toml:\d+: log\.access: /proc/log cannot be opened \(.*\); "
        r'name a file that this user may write, or "stdout"\n',
        server.log(),
    )


def test_nothing_is_written_unless_asked_for(serve: Servers) -> None:
    server = serve("observing:app")
    server.exchange(get("/"))
    assert server.stop() == 0
    assert server.output() == ""
    assert "GET" not in server.log()
