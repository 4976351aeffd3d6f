"""timeouts.request: calls that take too long, logged, answered for and interrupted."""

import json
import re
import signal
import threading
import time
from typing import Any

import pytest

from admin_client import AdminClient, serve_with_admin
from serve_zig.diagnosis import Diagnosis
from serving import Server, Servers, wait_until
from wire import PATIENCE, get, post

#: Nothing that a test has answered in time comes near to it.
LIMIT = 1.0

Pair = tuple[Server, AdminClient]


@pytest.fixture(scope="module")
def logging(serve_module: Servers) -> Pair:
    """A server that only logs, for all tests that may share it, and its admin listener."""
    return serve_overdue(serve_module, "log")


@pytest.fixture(scope="module")
def answering(serve_module: Servers) -> Pair:
    """The same for one that answers."""
    return serve_overdue(serve_module, "answer")


@pytest.fixture(scope="module")
def raising(serve_module: Servers) -> Pair:
    """The same for one that raises as well."""
    return serve_overdue(serve_module, "raise")


def serve_overdue(
    serve: Servers, action: str, *, limit: float = LIMIT, threads: int = 32
) -> tuple[Server, AdminClient]:
    """Start a server whose application calls have a time limit."""
    return serve_with_admin(
        serve,
        "overdue:app",
        {
            "timeouts": {"request": limit, "request_action": action},
            "concurrency": {"threads": threads},
        },
    )


def timeouts(admin: AdminClient) -> int:
    """Return how many calls have been overdue."""
    count = admin.json()["counters"]["timeouts"]["app"]
    assert isinstance(count, int)
    return count


def log_lines(server: Server) -> list[str]:
    """Return the log's records about overdue calls, since the test began."""
    return [line for line in server.test_log().splitlines() if " request timeout: " in line]


# Log


def test_overdue_call_is_logged_once_with_its_stack(logging: Pair) -> None:
    """Method, target, client and request id, and where the thread is; the response is as ever."""
    server, admin = logging
    before = timeouts(admin)
    with server.connect() as connection:
        connection.send(get("/sleep?2"))
        server.wait_log(r"request timeout: GET \"/sleep\?2\" from 127\.0\.0\.1 .*request id \S+\)")
        assert connection.response().body == b"done /sleep"
    log = server.test_log()
    assert "in sleep_in_steps" in log
    assert "in app" in log
    assert "/serve_zig/" not in log
    assert "threading.py" not in log
    assert len(log_lines(server)) == 1
    assert "answered 504" not in log_lines(server)[0]
    assert timeouts(admin) - before == 1
    assert f'serve_zig_timeouts_total{{phase="app"}} {before + 1}\n' in admin.text("/metrics")


def test_call_in_time_is_not_logged(serve: Servers) -> None:
    """The limit is for a call, not for a worker or a connection."""
    server, admin = serve_overdue(serve, "answer", limit=3.0, threads=1)
    before = timeouts(admin)
    with server.connect() as connection:
        for _ in range(8):
            connection.send(get("/sleep?0.5"))
            assert connection.response().status == 200
    assert timeouts(admin) - before == 0
    assert not log_lines(server)


def test_waiting_in_the_queue_does_not_count(serve: Servers) -> None:
    """That has a limit of its own."""
    server, admin = serve_overdue(serve, "answer", limit=3.0, threads=1)
    before = timeouts(admin)
    clients = [server.connect() for _ in range(8)]
    for client in clients:
        client.send(get("/sleep?0.5"))
    for client in clients:
        assert client.response().status == 200
        client.close()
    assert timeouts(admin) - before == 0


def test_overdue_call_that_holds_the_gil(answering: Pair) -> None:
    """It is counted and answered at once; the log says what is known when it can."""
    server, admin = answering
    before = timeouts(admin)
    with server.connect() as connection:
        connection.send(get("/hold_gil?gil"))
        with server.blocked("gil"):
            assert connection.response().status == 504
            # Counted by the loop, once it has answered.
            wait_until(lambda: timeouts(admin) - before == 1, PATIENCE, lambda: "not counted")
            assert not server.events("done", path="/hold_gil")
    server.wait_log(r'request timeout: GET "/hold_gil\?gil"')


# Answer


def test_overdue_call_is_answered(answering: Pair) -> None:
    """504 from the loop; what the handler says later is dropped, and the connection closes."""
    server, admin = answering
    before = timeouts(admin)
    with server.connect() as connection:
        began = time.monotonic()
        connection.send(get("/gate") + get("/never"))
        response = connection.response()
        assert response.status == 504
        assert response.closes
        assert response.body == b"504 Gateway Timeout: request_timeout\n"
        assert response.value("X-Request-Id")
        assert time.monotonic() - began > LIMIT - 0.05
        connection.expect_close()
    assert not server.events("done", path="/gate")
    server.open_gate("overdue")
    server.wait_event("done", path="/gate")
    assert not server.events("begun", path="/never")
    server.wait_log(r"the client was answered 504")
    # The worker is as good as new.
    for _ in range(50):
        assert server.exchange(get("/")).status == 200
    assert timeouts(admin) - before == 1
    metrics = admin.text("/metrics")
    assert re.search(r'requests_total\{method="GET",status="504"\} [1-9]', metrics)


def test_lines_of_an_overdue_call_are_told_by_its_id(serve: Servers) -> None:
    """Error and access log, and what was sent, though not by the application."""
    server, admin = serve_with_admin(
        serve,
        "overdue:app",
        {
            "timeouts": {"request": LIMIT, "request_action": "answer"},
            "log": {"format": "json", "access": "stdout"},
        },
    )
    wire = server.raw(get("/sleep?3"))
    found = re.search(rb"^X-Request-Id: (\w+)\r$", wire, re.MULTILINE)
    assert found is not None, wire
    given = found[1].decode()
    server.wait_log('"message":"request timeout: ')
    (line,) = [one for one in server.log().splitlines() if "request timeout" in one]
    record = json.loads(line)
    assert record["request_id"] == given
    assert (record["method"], record["target"]) == ("GET", "/sleep?3")
    assert record["client"] == "127.0.0.1"
    assert "in sleep_in_steps" in record["detail"]
    access = json.loads(wait_until(lambda: server.output(), PATIENCE, lambda: "no line"))
    assert access["request_id"] == given
    assert access["status"] == 504
    assert access["bytes_sent"] == len(wire)
    assert f"serve_zig_bytes_sent_total {len(wire)}\n" in admin.text("/metrics")


def test_answer_that_was_not_sent_is_not_counted(serve: Servers) -> None:
    """The client has gone when its time is over."""
    server, _ = serve_with_admin(
        serve,
        "overdue:app",
        {
            "timeouts": {"request": LIMIT, "request_action": "answer"},
            "log": {"format": "json", "access": "stdout"},
        },
    )
    connection = server.connect()
    connection.send(get("/sleep?0.6"))
    server.wait_event("begun")
    connection.reset()
    access = json.loads(wait_until(lambda: server.output(), PATIENCE, lambda: "no line"))
    assert access["bytes_sent"] == 0


def test_overdue_call_is_not_told_with_another_request(serve: Servers) -> None:
    """The thread may be in its next request when the launcher comes to look at it."""
    server, _ = serve_with_admin(
        serve,
        "overdue:app",
        {
            "timeouts": {"request": 0.05, "request_action": "log"},
            "concurrency": {"threads": 1, "switch_interval": 0.0005},
            "log": {"format": "json"},
        },
    )
    # Calls that end at about the time at which they are found, one behind the other.
    requests = [get(f"/sleep?{0.045 + 0.001 * (number % 20)}") for number in range(60)]
    requests += [get("/read")] * 60
    with server.connect() as first, server.connect() as second:
        first.send(b"".join(requests[:60]))
        second.send(b"".join(requests[60:]))
        for connection in (first, second):
            for _ in range(60):
                assert connection.response().status == 200
    for line in log_lines(server):
        record = json.loads(line)
        assert record["target"].startswith("/sleep")
        if "overdue.py" in record["detail"]:
            assert "in sleep_in_steps" in record["detail"] or "in app" in record["detail"]


def test_head_request_is_answered_without_a_body(answering: Pair) -> None:
    """RFC 9110 section 9.3.2."""
    server, _ = answering
    with server.connect() as connection:
        connection.send(get("/sleep?3", method="HEAD"))
        assert connection.response("HEAD").status == 504
        connection.expect_close()


def test_handler_can_see_that_nobody_waits(answering: Pair) -> None:
    """serve_zig.client_disconnected says so once the client has its 504."""
    server, _ = answering
    assert server.exchange(get("/gone?60")).status == 504
    server.wait_event("nobody_waits")


def test_interim_response_comes_before(answering: Pair) -> None:
    """103 and then 504 is a response like any other."""
    server, _ = answering
    response = server.exchange(get("/hints?3"))
    assert [one.status for one in response.interim] == [103]
    assert response.status == 504


def test_stream_may_take_long(raising: Pair) -> None:
    """Each piece begins the time anew: an event stream is not stuck."""
    server, admin = raising
    before = timeouts(admin)
    response = server.exchange(get(f"/stream?{LIMIT * 2}"))
    assert response.body.count(b"piece\n") > 5
    assert server.events("done", path="/stream")
    assert timeouts(admin) - before == 0


def test_stream_that_hangs_cannot_be_answered(answering: Pair) -> None:
    """Its head has left; it is logged and goes on."""
    server, admin = answering
    before = timeouts(admin)
    response = server.exchange(get("/stuck_stream?2.5"))
    assert response.body == b"piece\nlate\n"
    assert timeouts(admin) - before == 1
    assert len(log_lines(server)) == 1
    assert "answered 504" not in log_lines(server)[0]


def test_suspended_response_does_not_count(answering: Pair) -> None:
    """It holds no thread while it waits for its event."""
    server, admin = answering
    before = timeouts(admin)
    assert server.exchange(get("/suspended?2")).body == b"resumed"
    assert timeouts(admin) - before == 0


def test_response_that_is_suspended_too_late(answering: Pair) -> None:
    """The client has its 504; the iterable is closed and its connection ends."""
    server, _ = answering
    with server.connect() as connection:
        connection.send(get("/suspend?3"))
        assert connection.response().status == 504
        connection.expect_close()
    server.wait_event("ended")
    assert server.exchange(get("/")).status == 200


def test_slow_upload_does_not_count(answering: Pair) -> None:
    """A handler that waits for its client is bounded by timeouts.body."""
    server, admin = answering
    before = timeouts(admin)
    with server.connect() as connection:
        whole = post("/read", b"x" * 8, "Expect: 100-continue")
        connection.send(whole[:-8])
        assert connection.interim_response().status == 100
        for _ in range(8):
            time.sleep(LIMIT / 4)
            connection.send(b"x")
        assert connection.response().status == 200
    assert timeouts(admin) - before == 0


def test_response_begins_while_a_thread_reads(answering: Pair) -> None:
    """The thread that waits for the body keeps the poller from answering, not the worker."""
    server, _ = answering
    with server.connect() as connection:
        whole = post("/answer_and_read", b"x" * 8, "Expect: 100-continue")
        connection.send(whole[:-8])
        assert connection.interim_response().status == 100
        server.open_gate("answering")
        assert connection.head().status == 200
        assert connection.chunk() == b"begun, "
        connection.send(whole[-8:])
        assert connection.chunk() == b"x" * 8


def test_many_at_once_and_others_beside_them(answering: Pair) -> None:
    """Overdue calls are answered one by one, and nobody else's response is touched."""
    server, admin = answering
    before = timeouts(admin)
    statuses: list[int] = []
    stop = threading.Event()
    failures: list[str] = []

    def ask_fast() -> None:
        with server.connect() as connection:
            while not stop.is_set():
                connection.send(get("/fast"))
                response = connection.response()
                if response.body != b"done /fast":
                    failures.append(repr(response))

    def ask_slow() -> None:
        statuses.append(server.exchange(get("/sleep?3")).status)

    fast = [threading.Thread(target=ask_fast) for _ in range(2)]
    slow = [threading.Thread(target=ask_slow) for _ in range(12)]
    for thread in fast + slow:
        thread.start()
    for thread in slow:
        thread.join()
    stop.set()
    for thread in fast:
        thread.join()
    assert failures == []
    assert statuses == [504] * 12
    assert timeouts(admin) - before == 12


def test_responses_that_come_just_then(serve: Servers) -> None:
    """Handlers that end about when they are overdue: 200 or 504, whole, and one of them."""
    server, admin = serve_overdue(serve, "raise", limit=0.05)
    before = timeouts(admin)
    seen = set()
    for number in range(60):
        response = server.exchange(get(f"/sleep?0.0{40 + number % 20}"))
        assert response.status in (200, 504)
        assert response.body in (b"done /sleep", b"504 Gateway Timeout: request_timeout\n")
        seen.add(response.status)
        # An exception that came too late must not reach the next request, which may be late, too.
        assert server.exchange(get("/")).status in (200, 504)
    assert timeouts(admin) - before >= (504 in seen)
    server.errors_expected = True
    kinds = set(re.findall(r"application error: (\w+)", server.log()))
    assert kinds <= {"RequestTimeout"}


# Raise


def test_exception_is_raised_in_the_handler(raising: Pair) -> None:
    """serve_zig.RequestTimeout, in exactly that thread; the client has its 504 already."""
    server, _ = raising
    assert server.exchange(get("/sleep?600")).status == 504
    (event,) = server.wait_event("raised", path="/sleep")
    assert "timeouts.request" in event["text"]
    server.wait_log(r"application error: RequestTimeout; GET \"/sleep\?600\"")
    for _ in range(50):
        assert server.exchange(get("/")).status == 200


def test_exception_ends_an_iterable_and_closes_it(raising: Pair) -> None:
    """PEP 3333: close is called whatever happens."""
    server, _ = raising
    assert server.exchange(get("/closing?600")).status == 504
    server.wait_event("raised", path="/closing")
    server.wait_event("closed")
    server.wait_log(r"application error: RequestTimeout; GET \"/closing")


def test_exception_in_a_stream_cuts_it(raising: Pair) -> None:
    """The client sees that something is missing."""
    server, _ = raising
    with server.connect() as connection:
        connection.send(get("/stuck_stream?600"))
        assert connection.head().status == 200
        assert connection.chunk() == b"piece\n"
        connection.expect_cut()
    server.wait_event("raised", path="/stuck_stream")
    server.wait_log(r"application error: RequestTimeout; GET \"/stuck_stream")


def test_handler_that_swallows_the_exception(raising: Pair) -> None:
    """It is raised once; the handler ends when it likes, and no other hears of it."""
    server, admin = raising
    before = timeouts(admin)
    assert server.exchange(get("/swallow?3")).status == 504
    assert [event["kind"] for event in server.wait_event("swallowed")] == ["RequestTimeout"]
    server.wait_event("done", path="/swallow")
    assert len(server.events("swallowed")) == 1
    assert server.exchange(get("/")).status == 200
    assert timeouts(admin) - before == 1


def test_exception_for_a_call_in_c_that_ends_late(serve: Servers) -> None:
    """It is raised when the call is back in Python, or forgotten; the next request is safe."""
    server, _ = serve_overdue(serve, "raise", threads=1)
    with server.connect() as connection:
        connection.send(get("/hold_gil?gil"))
        with server.blocked("gil"):
            assert connection.response().status == 504
    for _ in range(100):
        assert server.exchange(get("/")).body == b"done /"
    server.errors_expected = True


# SIGUSR1


def test_sigusr1_dumps_requests_and_threads(serve: Servers) -> None:
    """Every request in flight and every thread's stack, and the server goes on."""
    server = serve("holding:app", {"concurrency": {"threads": 1}})
    with server.connect() as running, server.connect() as queued:
        running.send(get("/gate?dump"))
        server.wait_event("begun", path="/gate")
        queued.send(get("/waits"))
        wait_until(
            lambda: dump(server).count("in flight: ") == 2,
            PATIENCE,
            lambda: "two are not in flight",
        )
        log = dump(server)
        assert re.search(r'in flight: GET "/gate\?dump" from 127\.0\.0\.1 \(app for \d', log)
        assert re.search(r'in flight: GET "/waits" from 127\.0\.0\.1 \(queue for \d', log)
        assert re.search(r"warning thread serve-zig-\d+ \(\d+\)\n(    .*\n)+.*in wait_gate", log)
        # The others are the server's own.
        assert "thread MainThread" not in log
        assert re.search(r"\d threads are in no code of the application: MainThread, serve-", log)
        server.open_gate("dump")
        assert running.response().status == 200
        assert queued.response().status == 200


def dump(server: Server) -> str:
    """Return what SIGUSR1 writes to the log."""
    before = len(server.log())
    server.send_signal(signal.SIGUSR1)
    return wait_until(
        lambda: found if " in no code " in (found := server.log()[before:]) else None,
        PATIENCE,
        lambda: f"no dump:\n{server.log()}",
    )


def test_sigusr1_during_the_import(serve: Servers) -> None:
    """Where a start hangs."""
    server = serve("holding:app", wait=False, environment={"HOLDING_IMPORT_GATE": "import"})
    server.wait_event("importing")
    server.send_signal(signal.SIGUSR1)
    server.wait_log(r"warning thread MainThread \(\d+\)\n(    .*\n)+.*in wait_gate")
    server.open_gate("import")
    server.wait_ready()
    assert server.exchange(get("/")).status == 200


@pytest.mark.parametrize("action", ["log", "answer", "raise"])
def test_drain_with_an_overdue_call(serve: Servers, action: str) -> None:
    """It ends when the handler does."""
    server, _ = serve_overdue(serve, action)
    with server.connect() as connection:
        connection.send(get("/sleep?2.5"))
        server.wait_event("begun", path="/sleep")
        server.errors_expected = True
        assert server.stop() == 0
        assert connection.response().status == (200 if action == "log" else 504)


@pytest.mark.parametrize("still", [True, False])
def test_stack_is_that_of_the_overdue_call(still: bool) -> None:
    """Python may switch threads while it is taken; the thread may be in another call then."""

    class Core:
        """A server with one overdue call, which ends while its stack is formatted, or not."""

        def __init__(self) -> None:
            self.reports = [
                {
                    "method": "GET",
                    "target": "/",
                    "client": "",
                    "request_id": "",
                    "phase": "app",
                    "age": 1.0,
                    "waited": 1.0,
                    "answered": False,
                    "thread": 0,
                    "call": 7,
                }
            ]
            self.interrupted: list[int] = []

        def take_overdue(self) -> Any:
            return self.reports.pop() if self.reports else None

        def is_in_call(self, thread: int, call: int) -> bool:
            return still

        def interrupt(self, thread: int, call: int, exception: type) -> bool:
            self.interrupted.append(call)
            return still

    class Told:
        """A log that keeps what it is told."""

        def __init__(self) -> None:
            self.details: list[str] = []

        def record(self, level: str, message: str, detail: str, **_: object) -> None:
            self.details.append(detail)

    core: Any = Core()
    log: Any = Told()
    ends = threading.Event()
    worker = threading.Thread(target=lambda: ends.wait(30))
    worker.start()
    Diagnosis(core, [worker], log, raises=True).act_on_overdue()
    ends.set()
    worker.join()
    (detail,) = log.details
    assert ("test_request_timeout.py" in detail) == still
    assert core.interrupted == [7]
