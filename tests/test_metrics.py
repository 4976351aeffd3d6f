"""The metrics: each name of the contract, what it counts, and that clients make no series."""

import platform
import re
import time

import pytest

from admin_client import serve_with_admin
from metrics import Metrics
from serving import Server, Servers, wait_until
from wire import PATIENCE, all_closed, chunked, get, post, post_chunked

PHASES = ("head", "body", "queue", "gil", "app", "write")
NAMES = {
    "requests": "counter",
    "request_seconds": "histogram",
    "queue_seconds": "histogram",
    "gil_wait_seconds": "histogram",
    "app_seconds": "histogram",
    "write_seconds": "histogram",
    "connections": "gauge",
    "threads": "gauge",
    "queue_depth": "gauge",
    "requests_in_flight": "gauge",
    "shed": "counter",
    "bad_requests": "counter",
    "timeouts": "counter",
    "dropped": "counter",
    "bytes_received": "counter",
    "bytes_sent": "counter",
    "app_exceptions": "counter",
    "draining": "gauge",
    "build": "info",
    "log_lines_dropped": "counter",
    "connections_accepted": "counter",
    "connections_closed": "counter",
    "accept_pauses": "counter",
    "saturation": "gauge",
    "threads_limit": "gauge",
    "queue_limit": "gauge",
    "connections_limit": "gauge",
    "buffer_memory_bytes": "gauge",
    "buffer_memory_limit_bytes": "gauge",
    "start_time_seconds": "gauge",
}


def read(server: Server) -> Metrics:
    """Return the metrics as they are now."""
    response = server.exchange(get("/metrics"))
    assert response.status == 200, response.body
    return Metrics(response.body.decode("ascii"))


def wait_value(server: Server, expected: float, name: str, suffix: str = "", **labels: str) -> None:
    """Wait until one metric has a value."""
    seen: list[float] = []

    def found() -> bool:
        seen.append(read(server).value(name, suffix, **labels))
        return seen[-1] == expected

    wait_until(found, PATIENCE, lambda: f"{name}{suffix} {labels} is {seen[-1]}, not {expected}")


@pytest.fixture(scope="module")
def observed(serve_module: Servers) -> Server:
    """A server that tells of itself; what a test counts is a difference."""
    return serve_module("observing:app", {"limits": {"body": 1000}})


def test_every_metric_of_the_contract_is_there(observed: Server) -> None:
    found = read(observed)
    kinds = {name: family.kind for name, family in found.families.items()}
    assert kinds == {f"serve_zig_{name}": kind for name, kind in NAMES.items()}
    (_, labels), value = next(iter(found.families["serve_zig_build"].samples.items()))
    assert value == 1
    build = dict(labels)
    assert build["python"] == platform.python_version()
    assert build["zig"] == "0.15.2"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", build["version"])
    assert 0 < time.time() - found.value("start_time_seconds") < 600


def test_requests_are_counted_by_method_and_status(observed: Server) -> None:
    before = read(observed)
    for request in (get("/"), get("/"), get("/missing"), post("/", b"abc"), get("/own-id")):
        observed.exchange(request)
    observed.exchange(get("/", method="HEAD"), method="HEAD")
    for method in ("BREW", "PROPFIND", "X" * 50, "get"):
        observed.exchange(get("/", method=method))
    after = read(observed)
    for method, status, count in (
        ("GET", "200", 3 + 1),
        ("GET", "404", 1),
        ("POST", "200", 1),
        ("HEAD", "200", 1),
        ("other", "200", 4),
    ):
        found = [one.value("requests", method=method, status=status) for one in (before, after)]
        assert found[1] - found[0] == count, (method, status, found)
    assert after.labels("requests", "method") <= {"GET", "HEAD", "POST", "other"}
    assert observed.errors_expected is False


def test_histograms_have_each_request_once_and_its_time(observed: Server) -> None:
    before = read(observed)
    observed.exchange(get("/sleep?0.3"))
    after = read(observed)
    for name in ("request", "queue", "gil_wait", "app", "write"):
        metric = f"{name}_seconds"
        # The request for `before` itself ended after it was counted.
        assert after.value(metric, "_count") - before.value(metric, "_count") == 2, name
    for name in ("request", "app"):
        spent = after.value(f"{name}_seconds", "_sum") - before.value(f"{name}_seconds", "_sum")
        assert spent >= 0.3, (name, spent)
    for name in ("request", "app"):
        slow = [
            one.value(f"{name}_seconds", "_count")
            - one.value(f"{name}_seconds", "_bucket", le="0.25")
            for one in (before, after)
        ]
        # The one for the metrics, too, on a busy machine.
        assert 1 <= slow[1] - slow[0] <= 2, (name, slow)


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", "bare_lf"),
        (b"GET / HTTP/1.1\r\n\r\n", "missing_host"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "unsupported_version"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "connect"),
        (get("https://test.example/"), "misdirected"),
        (post("/", b"x" * 1001), "body_too_large"),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"x\r\n", "bad_chunk_size"),
        (b"\x16\x03\x01\x02\x00\x01", "control_character"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_are_counted_by_reason(
    observed: Server, request_bytes: bytes, reason: str
) -> None:
    before = read(observed).value("bad_requests", reason=reason)
    assert observed.exchange(request_bytes).closes
    wait_value(observed, before + 1, "bad_requests", reason=reason)


def test_bytes_are_those_of_the_sockets(observed: Server) -> None:
    big = get("/large?100000")
    upload = get("/body", "Transfer-Encoding: chunked", method="POST") + chunked(b"x" * 900)
    first = read(observed)
    second = read(observed)
    # What the reading of the metrics itself comes to, by the length of its own answer.
    with observed.connect() as connection:
        connection.send(big)
        head = connection.head()
        connection.take(head.length)
        connection.send(upload)
        connection.response()
    third = read(observed)
    received = [one.value("bytes_received") for one in (first, second, third)]
    assert received[1] - received[0] == len(get("/metrics"))
    assert received[2] - received[1] == len(get("/metrics")) + len(big) + len(upload)
    sent = [one.value("bytes_sent") for one in (first, second, third)]
    itself = sent[1] - sent[0]
    rest = sent[2] - sent[1] - itself
    assert 100_000 < rest < 100_000 + 600


def test_exceptions_of_the_application_are_counted(observed: Server) -> None:
    before = read(observed).value("app_exceptions")
    observed.errors_expected = True
    assert observed.exchange(get("/error")).status == 500
    assert read(observed).value("app_exceptions") == before + 1


def test_gauges_of_connections(observed: Server) -> None:
    states = ("idle", "reading", "queued", "running", "writing", "suspended", "lingering")
    assert read(observed).labels("connections", "state") == set(states)
    wait_value(observed, 0, "connections", state="idle")
    with all_closed([observed.connect() for _ in range(5)]) as clients:
        clients[0].send(get("/"))
        clients[0].response()
        clients[1].send(b"GET / HT")
        clients[2].send(get("/", "Content-Length: 5", method="POST") + b"abc")
        clients[3].send(b"nonsense\r\n\r\n")
        clients[3].response()
        wait_value(observed, 2, "connections", state="idle")
        wait_value(observed, 2, "connections", state="reading")
        wait_value(observed, 1, "connections", state="lingering")
    for state in ("idle", "reading", "lingering"):
        wait_value(observed, 0, "connections", state=state)
    assert read(observed).value("connections", state="running") == 1


def test_clients_that_leave_are_counted_by_phase(observed: Server) -> None:
    before = read(observed)
    for part in (b"GET / HT", get("/", "Content-Length: 5", method="POST") + b"abc"):
        with observed.connect() as connection:
            connection.send(part)
            wait_value(observed, 1, "connections", state="reading")
    with observed.connect(receive_buffer=4096) as connection:
        connection.send(get("/large?8000000"))
        wait_value(observed, 1, "connections", state="writing")
        assert read(observed).value("requests_in_flight") == 2
        connection.reset()
    for phase in ("head", "body", "write"):
        wait_value(observed, before.value("dropped", phase=phase) + 1, "dropped", phase=phase)
    gone = before.value("requests", method="POST", status="499")
    wait_value(observed, gone + 1, "requests", method="POST", status="499")


def test_a_static_file_that_a_client_takes_slowly_is_in_flight(serve: Servers) -> None:
    size = 20_000_000
    server = serve(
        "observing:app",
        {"static": [{"route": "/files", "directory": "files"}]},
        files={"files/large": b"x" * size},
    )
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get("/files/large"))
        wait_value(server, 1, "connections", state="writing")
        assert read(server).value("requests_in_flight") == 2
        assert read(server).value("connections", state="reading") == 0
        assert len(connection.response().body) == size
    wait_value(server, 1, "requests_in_flight")
    assert read(server).value("bytes_sent") > size


def test_timeouts_are_counted_by_phase(serve: Servers) -> None:
    short = {"head": 0.2, "body": 0.2, "write": 0.2}
    server = serve("observing:app", {"timeouts": short})
    with all_closed([server.connect(receive_buffer=4096) for _ in range(3)]) as clients:
        clients[0].send(b"GET / HT")
        clients[1].send(get("/", "Content-Length: 5", method="POST") + b"abc")
        clients[2].send(get("/large?8000000"))
        assert [client.response().status for client in clients[:2]] == [408, 408]
        for phase in ("head", "body", "write"):
            wait_value(server, 1, "timeouts", phase=phase)
    assert read(server).labels("timeouts", "phase") == set(PHASES) - {"gil"}


def test_an_upload_that_is_slow_is_seen(serve: Servers) -> None:
    """Which one, and from whom; it holds no thread, so an autoscaler does not count it."""
    server, admin = serve_with_admin(serve, "working:app")
    for whole in (post("/body", b"x" * 3000), post_chunked("/body", *[b"x" * 100] * 30)):
        with server.connect() as upload:
            upload.send(whole[:-2000])
            (request,) = wait_until(
                lambda: admin.json()["requests"], PATIENCE, lambda: "nothing is in flight"
            )
            assert (request["method"], request["target"]) == ("POST", "/body")
            assert (request["phase"], request["thread"]) == ("body", None)
            assert admin.json()["requests_in_flight"] == 0
            upload.send(whole[-2000:])
            assert upload.response().body == b"done /body"
            # Its worker has sent the answer before it has done with it.
            wait_until(
                lambda: not admin.json()["requests"], PATIENCE, lambda: "it is in flight still"
            )
            # One that is given up, too.
            upload.send(whole[:-2000])
            wait_until(lambda: admin.json()["requests"], PATIENCE, lambda: "nothing is in flight")
        wait_until(
            lambda: not admin.json()["requests"], PATIENCE, lambda: "it is in flight for ever"
        )


def test_a_full_server_says_so(serve: Servers) -> None:
    server = serve(
        "observing:app",
        {"concurrency": {"threads": 1, "queue": 1, "queue_timeout": 3.0}},
    )
    idle = read(server)
    assert idle.value("threads_limit") == 1
    assert idle.value("queue_limit") == 1
    assert idle.value("saturation") == 1.0
    with all_closed([server.connect() for _ in range(3)]) as clients:
        clients[0].send(get("/gate?full"))
        server.wait_event("begun", path="/gate")
        clients[1].send(get("/"))
        # The queue has room for one, and so none for the third.
        wait_until(
            lambda: server.exchange(get("/")).status == 503, PATIENCE, lambda: "the queue has room"
        )
        assert clients[1].response().status == 503
        server.open_gate("full")
        assert clients[0].response().status == 200
    after = read(server)
    assert after.value("shed", reason="queue_full") >= 1
    assert after.value("shed", reason="queue_timeout") >= 1
    assert after.value("timeouts", phase="queue") == after.value("shed", reason="queue_timeout")
    assert after.value("requests", method="GET", status="503") == sum(
        after.value("shed", reason=reason) for reason in ("queue_full", "queue_timeout")
    )


def test_threads_and_requests_in_flight(serve: Servers) -> None:
    server = serve("observing:app", {"concurrency": {"threads": 4}})
    with all_closed([server.connect() for _ in range(3)]) as clients:
        for client in clients:
            client.send(get("/gate?on"))
        server.wait_event("begun", path="/gate", count=3)
        # The one that reads the metrics is the fourth.
        wait_value(server, 4, "threads", state="running")
        found = read(server)
        assert found.value("requests_in_flight") == 4
        assert found.value("saturation") == 1.0
        states = ("idle", "polling", "attaching", "running")
        assert found.labels("threads", "state") == set(states)
        assert sum(found.value("threads", state=state) for state in states) == 5
        server.open_gate("on")
        for client in clients:
            client.response()
    wait_value(server, 1, "requests_in_flight")
