"""The scheduler as clients and applications see it, on a real server."""

import json
import random
import re
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from admin_client import AdminClient
from metrics import Metrics
from serving import Server, Servers, free_port, wait_until
from wire import PATIENCE, Connection, Response, all_closed, get, post, post_chunked

PIECE_BYTES = 65536
# A time to wait in the queue for, and longer than any request waits that is to be handled.
QUEUE_SECONDS = 3.0
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def threads(count: int, **others: Any) -> dict[str, Any]:
    """Return a configuration with so many threads."""
    return {"concurrency": {"threads": count, **others}}


@pytest.fixture(scope="module")
def usual(serve_module: Servers) -> Server:
    """A server with the default configuration."""
    return serve_module("concurrency:app")


@pytest.fixture(scope="module")
def single(serve_module: Servers) -> Server:
    """A server with one thread."""
    return serve_module("concurrency:app", threads(1))


class Load:
    """Clients in threads of their own that ask for a target again and again."""

    def __init__(self, server: Server, target: str, clients: int) -> None:
        self.answered = 0
        self._target = target
        self._server = server
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_until(
            lambda: self.answered >= 2 * len(self._threads) or self._errors,
            PATIENCE,
            lambda: f"only {self.answered} of {self._target} were answered",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not self._errors, self._errors

    def _run(self) -> None:
        try:
            with self._server.connect() as connection:
                while not self._stopping.is_set():
                    connection.send(get(self._target))
                    assert connection.response().status == 200
                    self.answered += 1
        except BaseException as error:
            self._errors.append(error)


def seconds_of_each(server: Server, target: str, count: int) -> list[float]:
    """Ask for a target so many times on one connection; return the times, sorted."""
    times = []
    with server.connect() as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.send(get(target))
            assert connection.response().status == 200
            times.append(time.perf_counter() - began)
    return sorted(times)


def ask(server: Server, target: str) -> Any:
    """Return what the application answers on a connection of its own, read as JSON."""
    response = server.exchange(get(target))
    assert response.status == 200, response
    return response.json()


def ask_at_once(server: Server, targets: list[str]) -> list[Response]:
    """Send every request on a connection of its own before the first answer is read."""
    with all_closed([server.connect() for _ in targets]) as connections:
        for connection, target in zip(connections, targets, strict=True):
            connection.send(get(target))
        return [connection.response() for connection in connections]


def begin_gated(server: Server, name: str, count: int) -> list[Connection]:
    """Occupy so many threads until the gate is opened."""
    connections = [server.connect() for _ in range(count)]
    for number, connection in enumerate(connections):
        connection.send(get(f"/gate?{name}&{number}"))
    for number in range(count):
        server.wait_event("begun", query=f"{name}&{number}")
    return connections


def wait_readable(connections: list[Connection], count: int) -> list[Connection]:
    """Wait until so many connections have something to read, and return them."""
    by_socket = {connection.socket: connection for connection in connections}

    def found() -> list[socket.socket] | None:
        readable = select.select(list(by_socket), [], [], 0)[0]
        return readable if len(readable) >= count else None

    readable = wait_until(found, PATIENCE, lambda: f"not {count} of the connections are readable")
    return [by_socket[one] for one in readable]


def pieces_of(connection: Connection, count: int) -> list[Any]:
    """Read so many pieces of /stream."""
    pieces = [connection.chunk() for _ in range(count)]
    assert all(len(piece) == PIECE_BYTES for piece in pieces)
    return [json.loads(piece) for piece in pieces]


def begin_stream(server: Server, target: str, tag: str) -> Connection:
    """Ask for a stream that is far longer than sockets hold, and read none of it."""
    connection = server.connect(receive_buffer=4096)
    connection.send(get(target))
    server.wait_event("begun", tag=tag)
    return connection


def wait_parked(server: Server, tag: str) -> None:
    """Wait until the stream with this tag has its thread no more: the one thread answers."""
    assert server.exchange(get(f"/fast?{tag}")).body == f"fast {tag}".encode()


# Threads, queue, switch interval


@pytest.mark.parametrize("count", [1, 2, 5])
def test_so_many_calls_at_once(serve: Servers, count: int) -> None:
    """concurrency.threads: that many calls block at once, one more does not begin."""
    server = serve("concurrency:app", threads(count))
    with all_closed([]) as connections:
        connections += begin_gated(server, "full", count)
        for number in range(2 * count):
            connections.append(server.connect())
            connections[-1].send(get(f"/gate?full&late {number}".replace(" ", "-")))
        # Answered without a thread: what was sent before it has been read.
        assert server.raw(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        time.sleep(0.1)
        assert len(server.events("begun")) == count
        server.open_gate("full")
        assert [connection.response().status for connection in connections] == [200] * 3 * count
    assert ask(server, "/peak") == count


@pytest.mark.parametrize("count", [1, 3])
def test_never_more_calls_at_once(serve: Servers, count: int) -> None:
    """The bound holds however fast, blocking and computing handlers are mixed."""
    server = serve("concurrency:app", threads(count))
    targets = ["/fast?1", "/sleep?0.003", "/spin?0.002", "/sleep?0.0006"] * 40
    assert {response.status for response in ask_at_once(server, targets)} == {200}
    assert ask(server, "/peak") == count


@pytest.mark.parametrize("count", [2, 3, 4])
def test_queue_limit(serve: Servers, count: int) -> None:
    """concurrency.queue: up to it requests wait, past it they are answered 503 at once."""
    limit = 3
    server = serve("concurrency:app", threads(2, queue=limit))
    with all_closed(begin_gated(server, "queue", 2)) as connections:
        waiting = [server.connect() for _ in range(count)]
        connections += waiting
        for connection in waiting:
            connection.send(get("/fast?queued"))
        shed = wait_readable(waiting, count - limit) if count > limit else []
        for connection in shed:
            response = connection.response()
            assert response.status == 503
            assert int(str(response.value("Retry-After"))) >= 1
            assert response.closes
            connection.expect_close()
        assert len(shed) == max(0, count - limit)
        for connection in waiting:
            if connection not in shed:
                connection.expect_silence(0.05)
        server.open_gate("queue")
        for connection in connections:
            if connection not in shed:
                assert connection.response().status == 200


def test_queue_place_is_free_again(serve: Servers) -> None:
    """What was shed is not counted against those that come later."""
    server = serve("concurrency:app", threads(1, queue=1, queue_timeout=600.0))
    for number in range(5):
        with all_closed(begin_gated(server, f"again{number}", 1)) as connections:
            others = [server.connect() for _ in range(4)]
            connections += others
            for connection in others:
                connection.send(get("/fast?again"))
            assert len(wait_readable(others, 3)) == 3
            server.open_gate(f"again{number}")
            statuses = sorted(connection.response().status for connection in connections)
            assert statuses == [200, 200, 503, 503, 503]


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_queued_request_whose_client_has_gone_is_dropped(serve: Servers, way: str) -> None:
    """It is never begun, and counted; the others in the queue are answered."""
    admin = AdminClient(f"127.0.0.1:{free_port()}")
    server = serve("concurrency:app", {**threads(1), "admin": {"bind": admin.bind}})
    with all_closed(begin_gated(server, "gone", 1)) as connections:
        leaver, stayer = server.connect(), server.connect()
        connections += [leaver, stayer]
        leaver.send(get("/gate?leaver"))
        stayer.send(get("/fast"))
        if way == "reset":
            leaver.reset()
        else:
            leaver.close()
        # Answered without a thread: what came before has been seen.
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        # As long as a client may be waiting that has only closed its sending side.
        time.sleep(0.4)
        server.open_gate("gone")
        assert connections[0].response().status == 200
        assert stayer.response().status == 200
    assert server.events("begun", query="leaver") == []

    def dropped(phase: str) -> float:
        text = admin.ask("/metrics", "Accept: application/openmetrics-text").body.decode()
        return Metrics(text).value("dropped", phase=phase)

    # Whoever polls counts it, which may be after the others have their answers.
    wait_until(lambda: dropped("queue") == 1, PATIENCE, lambda: f"dropped: {dropped('queue')}")
    assert dropped("write") == 0


def test_queue_timeout_while_all_threads_block(serve: Servers) -> None:
    """concurrency.queue_timeout: nobody needs a thread to be told that there is none."""
    server = serve("concurrency:app", threads(3, queue_timeout=QUEUE_SECONDS))
    with all_closed(begin_gated(server, "timeout", 3)) as connections:
        waiting = [server.connect() for _ in range(20)]
        connections += waiting
        began = time.monotonic()
        for connection in waiting:
            connection.send(get("/fast?waiting"))
        for connection in waiting:
            response = connection.response()
            assert response.status == 503
            assert int(str(response.value("Retry-After"))) >= 1
            assert time.monotonic() - began > QUEUE_SECONDS * 0.75
        server.open_gate("timeout")
        for connection in connections[:3]:
            assert connection.response().status == 200
    assert server.exchange(get("/fast?after")).status == 200


def test_queue_timeout_while_the_gil_is_held(serve: Servers) -> None:
    """The queue is watched without the GIL."""
    server = serve("concurrency:app", threads(4, queue_timeout=QUEUE_SECONDS))
    with server.connect() as holding, server.connect() as waiting:
        holding.send(get("/hold?gil"))
        with server.blocked("gil"):
            waiting.send(get("/fast?waiting"))
            assert waiting.response().status == 503
            assert not server.events("done"), "the GIL was free again"
        assert holding.response().status == 200


def test_switch_interval_by_default(usual: Server) -> None:
    assert ask(usual, "/interval") == pytest.approx(0.005)


def test_switch_interval(serve: Servers) -> None:
    """concurrency.switch_interval is sys.setswitchinterval."""
    server = serve("concurrency:app", {"concurrency": {"switch_interval": 0.001}})
    assert ask(server, "/interval") == pytest.approx(0.001)


# Fast handlers beside others


def seconds_beside(server: Server, target: str, clients: int) -> list[float]:
    """Return how long a fast handler took beside clients of another, none of which starve."""
    with Load(server, target, clients) as load:
        answered = load.answered
        times = seconds_of_each(server, "/fast?beside", 100)
        wait_until(
            lambda: load.answered > answered,
            PATIENCE,
            lambda: f"nothing of {target} was answered",
        )
    return times


BESIDE = pytest.mark.parametrize(
    ("target", "clients"), [("/sleep?0.05", 16), ("/sleep?0.002", 8), ("/spin?0.02", 2)]
)


@BESIDE
def test_fast_beside_slow(usual: Server, target: str, clients: int) -> None:
    """A fast handler and slow ones are answered beside each other."""
    seconds_beside(usual, target, clients)


@pytest.mark.timing
@BESIDE
def test_fast_is_not_behind_slow(usual: Server, target: str, clients: int) -> None:
    """A fast handler is not behind the slow ones."""
    times = seconds_beside(usual, target, clients)
    assert times[98] < 0.1, times[-5:]


def test_fast_beside_blocked(usual: Server) -> None:
    """Nor behind handlers that block for good: all threads but one."""
    with all_closed(begin_gated(usual, "blocked", 31)) as connections:
        times = seconds_of_each(usual, "/fast?beside", 100)
        assert times[98] < 0.1, times[-5:]
        usual.open_gate("blocked")
        for connection in connections:
            assert connection.response().status == 200


def test_blocking_handlers_run_side_by_side(serve: Servers) -> None:
    """Sixteen that wait for the same are all inside at once, also the first time."""
    server = serve("concurrency:app")
    with all_closed([server.connect() for _ in range(16)]) as connections:
        for connection in connections:
            connection.send(get("/gate?sixteen"))
        server.wait_event("begun", query="sixteen", count=16)
        server.open_gate("sixteen")
        assert {connection.response().status for connection in connections} == {200}


def test_spinning_handlers_do_not_starve_each_other(usual: Server) -> None:
    """Three that compute share the GIL: the short one is not last."""
    with usual.connect() as long, usual.connect() as short:
        long.send(get("/spin_until?long"))
        usual.wait_event("begun", query="long")
        short.send(get("/spin?0.05"))
        assert short.response().status == 200
        assert not select.select([long.socket], [], [], 0)[0]
        usual.open_gate("long")
        assert long.response().status == 200


@pytest.mark.parametrize("count", [1, 32])
def test_gil_held_in_c(serve: Servers, count: int) -> None:
    """While an extension keeps the GIL clients are served as far as that goes without Python."""
    server = serve("concurrency:app", threads(count))
    seconds_of_each(server, "/fast?warm", 20)
    with all_closed([server.connect()]) as connections:
        connections[0].send(get("/hold?gil"))
        with server.blocked("gil"):
            for number in range(20):
                connections.append(server.connect())
                connections[-1].send(get(f"/fast?{number}"))
            # Accepted, read and answered by the poller alone.
            refused = server.exchange(b"nonsense\r\n\r\n")
            assert refused.status == 400
            assert not server.events("done"), "the GIL was free again"
        assert connections[0].response().status == 200
        for number, connection in enumerate(connections[1:]):
            assert connection.response().body == f"fast {number}".encode()


def test_gil_held_while_others_block(serve: Servers) -> None:
    """A handler that holds the GIL, others that block, and requests that come meanwhile."""
    server = serve("concurrency:app", threads(4))
    with all_closed(begin_gated(server, "beside", 2)) as connections:
        first, second, late = (server.connect() for _ in range(3))
        connections += [first, second, late]
        first.send(get("/hold?first"))
        with server.blocked("first"):
            second.send(get("/hold?second"))
            late.send(get("/fast?late"))
        with server.blocked("second"):
            pass
        assert late.response().body == b"fast late"
        server.open_gate("beside")
        assert {connection.response().status for connection in connections[:-1]} == {200}


# What goes wrong in a handler


KINDS = ["SystemExit", "SystemExit+without+a+code", "KeyboardInterrupt", "GeneratorExit"]
KINDS += ["StopIteration", "MemoryError", "OSError", "OwnBaseException"]


@pytest.mark.parametrize("kind", KINDS)
def test_exception_on_any_thread(usual: Server, kind: str) -> None:
    """No exception ends a thread or the server, whichever thread it is raised on."""
    before = thread_count(usual)
    gate = f"gate-{KINDS.index(kind)}"
    usual.errors_expected = True
    with all_closed([usual.connect() for _ in range(6)]) as connections:
        # All six wait in the handler at once, so on six threads.
        for connection in connections:
            connection.send(get(f"/failing?{kind}&{gate}"))
        wait_until(
            lambda: len(usual.events("begun", query=f"{kind}&{gate}")) == 6,
            PATIENCE,
            lambda: f"{usual.events('begun')}",
        )
        usual.open_gate(gate)
        assert [connection.response().status for connection in connections] == [500] * 6
    statuses = [one.status for one in ask_at_once(usual, [f"/failing?{kind}"] * 6)]
    assert statuses == [500] * 6
    assert usual.exchange(get("/fast?after")).status == 200
    assert thread_count(usual) == before


@pytest.mark.parametrize("kind", KINDS)
def test_exception_while_iterating(usual: Server, kind: str) -> None:
    """With the head sent, the client sees the connection end before the body does."""
    usual.errors_expected = True
    for _ in range(3):
        answer = usual.raw(get(f"/failing?{kind}&generator"))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"5\r\nfirst\r\n")
    assert usual.exchange(get("/fast?after")).status == 200


@pytest.mark.parametrize("target", ["/deep", "/interrupted"])
def test_interpreter_breaks_in(usual: Server, target: str) -> None:
    """RecursionError, and an exception that another thread has set."""
    usual.errors_expected = True
    assert [one.status for one in ask_at_once(usual, [target] * 3)] == [500] * 3
    assert usual.exchange(get("/fast?after")).status == 200


def test_fork_in_a_handler(usual: Server) -> None:
    """A forked child that ends takes nothing of the server with it."""
    responses = ask_at_once(usual, ["/forking", "/fast?beside"] * 4)
    assert {one.status for one in responses} == {200}
    assert {one.body for one in responses[::2]} == {b"7"}
    seconds_of_each(usual, "/fast?after", 10)


def test_signals_masked_in_a_handler(serve: Servers) -> None:
    """A thread that a handler has made deaf to signals does not make the server deaf."""
    server = serve("concurrency:app", threads(1))
    for _ in range(4):
        assert server.exchange(get("/masking")).status == 200
    assert server.stop() == 0


# Connections while their handler runs


@pytest.mark.parametrize("how", ["reset", "close", "finish"])
def test_client_leaves_while_its_handler_runs(serve: Servers, how: str) -> None:
    """Nothing of a connection is lost or used twice when its client leaves early."""
    server = serve("concurrency:app", threads(4))
    seconds_of_each(server, "/fast?warm", 5)
    for round_number in range(3):
        with all_closed(begin_gated(server, f"{how}{round_number}", 4)) as connections:
            for connection in connections:
                getattr(connection, how)()
            # The poller has seen it: this comes later and is answered without a thread.
            assert server.exchange(b"nonsense\r\n\r\n").status == 400
            server.open_gate(f"{how}{round_number}")
            if how == "finish":
                for connection in connections:
                    assert connection.response().status == 200
                    connection.expect_close()
        assert server.exchange(get("/fast?after")).status == 200


def test_client_leaves_while_its_request_waits(serve: Servers) -> None:
    """The same in the queue; those behind it are answered."""
    server = serve("concurrency:app", threads(1))
    with all_closed(begin_gated(server, "waits", 1)) as connections:
        connections += [server.connect() for _ in range(20)]
        for number, connection in enumerate(connections[1:]):
            connection.send(get(f"/fast?{number}"))
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        for connection in connections[1::2]:
            connection.reset()
        server.open_gate("waits")
        assert connections[0].response().status == 200
        for number, connection in enumerate(connections[1:]):
            if number % 2:
                assert connection.response().body == f"fast {number}".encode()


def test_pipeline_that_arrives_while_the_handler_runs(usual: Server) -> None:
    """Bytes in odd pieces behind a request that runs are answered in order."""
    with usual.connect() as connection:
        connection.send(get("/gate?pipeline"))
        usual.wait_event("begun", query="pipeline")
        rest = b"".join(
            get(f"/fast?{number}") if number % 3 else post("/upload", b"x" * number)
            for number in range(60)
        )
        connection.send_slowly(rest[:-30], size=97)
        assert usual.exchange(get("/fast?beside")).status == 200
        usual.open_gate("pipeline")
        assert connection.response().body == b"gate pipeline"
        connection.send_slowly(rest[-30:], size=7)
        for number in range(60):
            expected = f"fast {number}" if number % 3 else str(number)
            assert connection.response().body == expected.encode()
        connection.expect_silence(0.05)


def test_pipelines_of_mixed_handlers(usual: Server) -> None:
    """Many pipelines at once, each beginning again while its last request runs."""
    targets = ["/fast?", "/sleep?0.001&", "/fast?", "/spin?0.0005&", "/sleep?0.0004&"]
    with all_closed([usual.connect() for _ in range(12)]) as connections:
        for start in range(0, 40, 4):
            for index, connection in enumerate(connections):
                for number in range(start, start + 4):
                    target = targets[(number + index) % len(targets)]
                    connection.send(get(f"{target}{index}-{number}"))
        for number in range(40):
            for index, connection in enumerate(connections):
                body = connection.response().body
                assert body.endswith(f"{index}-{number}".encode()), body


def test_burst(usual: Server) -> None:
    """Several hundred connections at once on all kinds of handlers: each answer is right."""
    requests: list[tuple[bytes, Callable[[Response], bool]]] = []
    for number in range(400):
        match number % 8:
            case 0:
                target, body = f"/sleep?0.02&{number}", f"sleep 0.02&{number}"
            case 1:
                target, body = f"/spin?0.001&{number}", f"spin 0.001&{number}"
            case 2:
                requests.append((post("/upload", b"u" * number * 50), is_json(number * 50)))
                continue
            case 3:
                chunks = [b"c" * (number + 1)] * 5
                requests.append((post_chunked("/upload", *chunks), is_json(5 * number + 5)))
                continue
            case 4:
                requests.append((get(f"/none{number}"), lambda one: one.status == 404))
                continue
            case 5:
                requests.append((get(f"/listed?{number % 16 + 1}"), has_length(number % 16 + 1)))
                continue
            case _:
                target, body = f"/fast?{number}", f"fast {number}"
        requests.append((get(target), is_text(body)))
    with all_closed([]) as connections:
        for data, _ in requests:
            connections.append(usual.connect())
            connections[-1].send(data)
        for connection, (data, is_right) in zip(connections, requests, strict=True):
            response = connection.response()
            assert is_right(response), (data[:60], response.status, response.body[:60])


class Visitor:
    """One client that does as its random numbers say: asks, pipelines, uploads, leaves early."""

    def __init__(self, server: Server, seed: int) -> None:
        self.wrong: list[str] = []
        self._server = server
        self._random = random.Random(seed)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a client was not answered"

    def _run(self) -> None:
        try:
            for _ in range(12):
                with self._server.connect(receive_buffer=65536) as connection:
                    self._visit(connection)
        except BaseException as error:
            self.wrong.append(repr(error))

    def _visit(self, connection: Connection) -> None:
        chosen = [self._request() for _ in range(self._random.randint(1, 6))]
        data = b"".join(request for request, _ in chosen)
        if self._random.random() < 0.25:
            connection.send(data[: self._random.randint(1, len(data))])
            time.sleep(self._random.choice([0, 0, 0.0005, 0.003, 0.01]))
            if self._random.random() < 0.7:
                connection.reset()
            return
        connection.send_slowly(data, size=self._random.choice([len(data), 300, 61]))
        for request, is_right in chosen:
            response = connection.response()
            if not is_right(response):
                self.wrong.append(f"{request[:60]!r}: {response.status} {response.body[:60]!r}")

    def _request(self) -> tuple[bytes, Callable[[Response], bool]]:
        number = self._random.randint(1, 2000)
        match self._random.randint(0, 8):
            case 0:
                return get(f"/sleep?0.002&{number}"), is_text(f"sleep 0.002&{number}")
            case 1:
                return get(f"/sleep?0.0005&{number}"), is_text(f"sleep 0.0005&{number}")
            case 2:
                return get(f"/spin?0.001&{number}"), is_text(f"spin 0.001&{number}")
            case 3:
                return post("/upload", b"u" * number), is_json(number)
            case 4:
                return post_chunked("/upload", b"c" * number, b"d"), is_json(number + 1)
            case 5:
                pieces = number % 4 * 10
                return get(f"/stream?{pieces}&v"), lambda one: len(one.chunks) == pieces
            case 6:
                return get("/nowhere"), lambda one: one.status == 404
            case _:
                return get(f"/fast?{number}"), is_text(f"fast {number}")


@pytest.mark.parametrize("count", [1, 3, 32])
def test_visitors(serve: Servers, count: int) -> None:
    """Clients of every kind together; whatever some do, the others are answered right."""
    server = serve("concurrency:app", threads(count))
    visitors = [Visitor(server, seed) for seed in range(16)]
    for visitor in visitors:
        visitor.join()
    assert [visitor.wrong for visitor in visitors] == [[]] * 16
    assert not server.events("lost")
    assert server.stop() == 0


def is_json(value: object) -> Callable[[Response], bool]:
    """Return a check for a body of JSON."""
    return lambda one: bool(one.status == 200 and one.json() == value)


def is_text(value: str) -> Callable[[Response], bool]:
    """Return a check for a body of text."""
    return lambda one: one.status == 200 and one.body == value.encode()


def has_length(pieces: int) -> Callable[[Response], bool]:
    """Return a check for the length of a list's body."""
    return lambda one: one.status == 200 and one.body == b"x" * 10_000 * pieces


# Drain


def test_drain_with_threads_blocked_and_requests_queued(serve: Servers) -> None:
    """Everything that was received is answered: running, queued, parked; then the server ends."""
    server = serve("concurrency:app", threads(2))
    with all_closed([server.connect(), begin_stream(server, "/stream?100&drain", "drain")]) as them:
        idle, stream = them
        idle.send(get("/fast?idle"))
        assert idle.response().status == 200
        blocked = begin_gated(server, "drain", 2)
        queued = [server.connect() for _ in range(5)]
        them += blocked + queued
        for number, connection in enumerate(queued):
            connection.send(get(f"/fast?{number}"))
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        server.send_signal(signal.SIGTERM)
        idle.expect_close()
        server.open_gate("drain")
        for connection in blocked:
            assert connection.response().status == 200
        for number, connection in enumerate(queued):
            response = connection.response()
            assert response.body == f"fast {number}".encode()
            assert response.closes
        assert stream.head().status == 200
        assert [one["number"] for one in pieces_of(stream, 100)] == list(range(100))
        assert stream.chunk() == b""
    assert server.wait() == 0


def test_drain_while_the_gil_is_held(serve: Servers) -> None:
    """SIGTERM while an extension keeps the GIL: it is acted on as soon as that is over."""
    server = serve("concurrency:app", threads(2))
    with server.connect() as holding, server.connect() as waiting:
        holding.send(get("/hold?gil"))
        with server.blocked("gil"):
            waiting.send(get("/fast?waiting"))
            server.send_signal(signal.SIGTERM)
        assert holding.response().status == 200
        assert waiting.response().body == b"fast waiting"
    assert server.wait() == 0


def test_drain_while_handlers_spin(serve: Servers) -> None:
    """A drain is not behind handlers that compute."""
    server = serve("concurrency:app", threads(4))
    with all_closed([server.connect() for _ in range(4)]) as connections:
        for connection in connections:
            connection.send(get("/spin?0.2"))
        # A whole exchange, without a thread: the four have been read.
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        server.send_signal(signal.SIGTERM)
        assert {connection.response().status for connection in connections} == {200}
    assert server.wait() == 0


@pytest.mark.parametrize("count", [1, 2])
def test_drain_timeout_with_parked_streams(serve: Servers, count: int) -> None:
    """Clients that take nothing do not keep the server: status 4, and no crash."""
    server = serve("concurrency:app", {**threads(1), "timeouts": {"drain": 0.5}})
    with all_closed([]) as connections:
        for number in range(count):
            connections.append(begin_stream(server, f"/stream?200&d{number}", f"d{number}"))
            wait_parked(server, f"d{number}")
        assert server.stop() == 4


def test_second_signal_with_a_parked_stream(serve: Servers) -> None:
    """Nor does a parked response keep a server that was told twice."""
    server = serve("concurrency:app", {**threads(2), "timeouts": {"drain": 600.0}})
    with all_closed([begin_stream(server, "/stream?200&twice", "twice")]):
        wait_parked(server, "twice")
        server.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        server.send_signal(signal.SIGTERM)
        assert server.wait() != 0


# Threads as an application sees them


def thread_count(server: Server) -> int:
    """Return how many threads the process has, on Linux."""
    path = Path(f"/proc/{server.process.pid}/task")
    return len(list(path.iterdir())) if path.exists() else 0


def test_threads_are_real(usual: Server) -> None:
    """Names, identity and threading.current_thread are those of a plain threaded server."""
    with all_closed([usual.connect() for _ in range(12)]) as connections:
        for connection in connections:
            connection.send(get("/thread?gate-real"))
        usual.wait_event("begun", query="gate-real", count=12)
        usual.open_gate("gate-real")
        answers = [connection.response().json() for connection in connections]
    for answer in answers:
        assert re.fullmatch(r"serve-zig-[0-9]+", answer["name"]), answer
        assert answer["type"] == "threading.Thread"
        assert answer["is_ident"]
        assert answer["is_native"]
        assert answer["is_listed"]
        assert not answer["is_main"]
    # Twelve waited at once: twelve threads with twelve names.
    assert len({answer["ident"] for answer in answers}) == 12
    assert len({answer["name"] for answer in answers}) == 12


def test_thread_local_stays_with_the_thread(serve: Servers) -> None:
    """threading.local counts each thread's requests as the thread's identity does."""
    server = serve("concurrency:app", threads(6))
    answers = []
    for seconds in (0, 0.002, 0, 0.001):
        responses = ask_at_once(server, [f"/thread?{seconds}"] * 30)
        answers += [one.json() for one in responses]
    assert len(answers) == 120
    assert all(answer["local"] == answer["counted"] for answer in answers)
    idents = {answer["ident"] for answer in answers}
    assert 1 <= len(idents) <= 7
    assert len({(answer["ident"], answer["name"], answer["native"]) for answer in answers}) == len(
        idents
    )
    for ident in idents:
        counts = sorted(answer["local"] for answer in answers if answer["ident"] == ident)
        assert counts == list(range(1, len(counts) + 1))


@pytest.mark.timing
def test_few_threads_for_a_low_load(serve: Servers) -> None:
    """Most recently used first: thread-local database connections stay few."""
    server = serve("concurrency:app")
    # The kernel may keep a thread from running for a while, which looks like a blocking handler;
    # on a busy machine it does so again and again, but not all the time.
    for _ in range(8):
        used: Counter[str] = Counter()
        with server.connect() as connection:
            for number in range(150):
                connection.send(get("/thread?0.002" if number % 3 == 0 else "/thread"))
                used[connection.response().json()["name"]] += 1
        if len(used) <= 6 and sum(count for _, count in used.most_common(3)) >= 120:
            return
    raise AssertionError(f"spread over {used}")


@pytest.mark.timing
def test_few_threads_after_a_burst(serve: Servers) -> None:
    """That many were needed once does not spread later requests over all of them."""
    server = serve("concurrency:app")
    names = {one.json()["name"] for one in ask_at_once(server, ["/thread?0.2"] * 20)}
    assert len(names) == 20
    used: Counter[str] = Counter()
    for _ in range(60):
        used[ask(server, "/thread")["name"]] += 1
    assert len(used) <= 6, used


def test_context_is_fresh(usual: Server) -> None:
    """contextvars: nothing that a request sets is seen by the next, on any thread."""
    usual.errors_expected = True
    found: list[Any] = []
    for number in range(15):
        found += [one.json() for one in ask_at_once(usual, [f"/context?{number}"] * 8)]
        # One that sets the variable and fails, and one that fails while it is iterated.
        ask_at_once(usual, ["/failing?OwnBaseException", "/failing?OSError"])
        usual.raw(get("/failing?SystemExit&generator"))
    assert {answer["found"] for answer in found} == {"fresh"}
    assert {answer["kept"] for answer in found} == {True}


def test_context_and_thread_of_a_parked_stream(single: Server) -> None:
    """A generator sees one context and one thread from its first piece to its end."""
    with begin_stream(single, "/stream?120&parked", "parked") as connection:
        assert connection.head().status == 200
        pieces = pieces_of(connection, 1)
        for number in range(6):
            # The one thread serves others meanwhile, which set the same variable.
            answer = ask(single, f"/context?{number}")
            assert answer["found"] == "fresh"
            pieces += pieces_of(connection, 15)
        pieces += pieces_of(connection, 120 - len(pieces))
        assert connection.chunk() == b""
    assert [piece["number"] for piece in pieces] == list(range(120))
    assert {piece["found"] for piece in pieces} == {"fresh"}
    assert {piece["kept"] for piece in pieces} == {True}
    assert len({piece["ident"] for piece in pieces}) == 1
    assert not single.events("lost")
    (closed,) = single.wait_event("closed", tag="parked")
    assert closed["seen"] == "parked 119"
    assert closed["ident"] == pieces[0]["ident"]


def test_context_and_thread_of_many_parked_streams(serve: Servers) -> None:
    """The same for streams of several threads beside blocking and computing handlers."""
    server = serve("concurrency:app", threads(4))
    with (
        Load(server, "/sleep?0.005", 3),
        all_closed([]) as connections,
    ):
        for number in range(8):
            connections.append(begin_stream(server, f"/stream?60&many{number}", f"many{number}"))
        for connection in connections:
            assert connection.head().status == 200
        pieces: list[list[Any]] = [[] for _ in connections]
        for _ in range(6):
            for one, connection in zip(pieces, connections, strict=True):
                one += pieces_of(connection, 10)
    for one in pieces:
        assert [piece["number"] for piece in one] == list(range(60))
        assert {piece["kept"] for piece in one} == {True}
        assert len({piece["ident"] for piece in one}) == 1
    for number in range(8):
        (closed,) = server.wait_event("closed", tag=f"many{number}")
        assert closed["seen"] == f"many{number} 59"
        assert closed["ident"] == pieces[number][0]["ident"]
    assert not server.events("lost")


@pytest.mark.parametrize("how", ["reset", "close"])
def test_parked_stream_is_closed_in_its_context_and_thread(single: Server, how: str) -> None:
    """A client that leaves a parked stream: close() runs where the pieces were made."""
    ident = ask(single, "/thread")["ident"]
    with begin_stream(single, f"/stream?500&{how}", how) as connection:
        wait_parked(single, how)
        getattr(connection, how)()
        (closed,) = single.wait_event("closed", tag=how)
    assert re.fullmatch(f"{how} [0-9]+", closed["seen"])
    # One thread runs handlers at a time, but either of the two may.
    assert isinstance(ident, int)
    assert not single.events("lost")


def test_sqlite_connection_of_a_parked_stream(serve: Servers) -> None:
    """What checks its thread (sqlite3's check_same_thread) can be used by a stream."""
    server = serve("concurrency:app", threads(3))
    with all_closed([server.connect(receive_buffer=4096) for _ in range(5)]) as connections:
        for connection in connections:
            connection.send(get("/database?80"))
        for connection in connections:
            assert connection.head().status == 200
        for start in range(0, 80, 20):
            assert {one.status for one in ask_at_once(server, ["/sleep?0.01"] * 6)} == {200}
            for connection in connections:
                for number in range(start, start + 20):
                    assert connection.chunk() == b"%08d" % number + b"x" * (PIECE_BYTES - 8)
        for connection in connections:
            assert connection.chunk() == b""
    server.wait_event("closed", tag="database", count=5)


def test_parked_stream_does_not_wait_for_another_handler(serve: Servers) -> None:
    """A stream whose client reads on goes on while other handlers block, with threads to spare."""
    server = serve("concurrency:app", threads(8))
    with all_closed([begin_stream(server, "/stream?100&free", "free")]) as connections:
        stream = connections[0]
        assert stream.head().status == 200
        pieces_of(stream, 1)
        seconds_of_each(server, "/fast?parked", 5)
        connections += begin_gated(server, "free", 4)
        assert len(pieces_of(stream, 99)) == 99
        assert stream.chunk() == b""
        server.open_gate("free")
        for connection in connections[1:]:
            assert connection.response().status == 200


def test_lock_of_a_parked_stream(serve: Servers) -> None:
    """A stream that holds a lock and a handler that wants it: the client that reads frees both."""
    server = serve("concurrency:app", threads(8))
    with all_closed([begin_stream(server, "/locked_stream?100", "locked_stream")]) as connections:
        stream = connections[0]
        assert stream.head().status == 200
        seconds_of_each(server, "/fast?parked", 5)
        for _ in range(3):
            connections.append(server.connect())
            connections[-1].send(get("/locking?0"))
        assert server.exchange(get("/fast?beside")).status == 200
        assert len(pieces_of(stream, 100)) == 100
        assert stream.chunk() == b""
        for connection in connections[1:]:
            assert connection.response().body == b"locked"


def test_reentrant_lock_of_a_parked_stream(serve: Servers) -> None:
    """A lock that belongs to a thread is not given to another request of the same thread."""
    server = serve("concurrency:app", threads(8))
    with begin_stream(server, "/locked_stream?100", "locked_stream") as stream:
        assert stream.head().status == 200
        taken = [ask(server, "/reentering") for _ in range(40)]
        assert len(pieces_of(stream, 100)) == 100
        assert stream.chunk() == b""
    assert taken == [False] * 40


def test_trace_and_profile(serve: Servers) -> None:
    """threading.settrace and setprofile, as coverage and debuggers use them, see handlers."""
    server = serve("concurrency:create_traced()", threads(4))
    assert {one.status for one in ask_at_once(server, ["/sleep?0.05"] * 4)} == {200}
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get("/stream?40&traced"))
        assert len(connection.response().chunks) == 40
    answer = ask(server, "/trace")
    assert answer["active"]
    found = answer["traced"]
    assert found["call sleep"] == 4
    assert found["return sleep"] == 4
    assert found["line sleep"] >= 12
    assert found["profiled sleep"] == 4
    # Once for each next(), also of those after the stream was parked.
    assert found["call stream"] == 41


# The application's own threads


def ticks(server: Server) -> int:
    """Return how often the application's own thread has run."""
    return (server.folder / "ticks").stat().st_size


def test_application_thread_makes_progress(serve: Servers) -> None:
    """A daemon thread of the application runs while the server idles and under any load."""
    server = serve("concurrency:create_ticking()")
    server.exchange(get("/fast?warm"))

    def expect_ticks() -> None:
        began = ticks(server)
        wait_until(
            lambda: ticks(server) >= began + 20, PATIENCE, lambda: f"{ticks(server) - began} ticks"
        )

    expect_ticks()
    for target, clients in (("/fast?load", 4), ("/spin?0.01", 2), ("/sleep?0.005", 8)):
        with Load(server, target, clients):
            expect_ticks()
    with all_closed(begin_gated(server, "ticking", 32)) as connections:
        expect_ticks()
        server.open_gate("ticking")
        for connection in connections:
            assert connection.response().status == 200


# What handlers do with threads, processes and loops


def test_event_loop_in_a_handler(usual: Server) -> None:
    """asyncio.run() works on every thread, beside others of its kind."""
    for _ in range(3):
        responses = ask_at_once(usual, ["/running_loop"] * 8)
        assert {one.body for one in responses} == {b"[0, 1, 2, 3, 4]"}


def test_process_from_a_handler(usual: Server) -> None:
    """A process that a handler starts has no signal blocked and ends by SIGTERM."""
    for response in ask_at_once(usual, ["/child"] * 3):
        assert response.json() == {"began": "up", "blocked": 0, "status": -signal.SIGTERM}


@LINUX
def test_process_inherits_no_descriptor(usual: Server) -> None:
    """Nor has it a hold on the server's sockets: those of the process and the list's own."""
    assert ask(usual, "/descriptors") == ["0", "1", "2", "3"]


def test_locks_between_handlers(serve: Servers) -> None:
    """Handlers that share locks get them one after the other; the server waits for none."""
    server = serve("concurrency:app", threads(4))
    with all_closed([server.connect() for _ in range(60)]) as connections:
        for connection in connections:
            connection.send(get("/locking?0.002"))
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        assert {connection.response().body for connection in connections} == {b"locked"}
    assert ask(server, "/peak") <= 4


def test_handlers_wait_for_each_other(serve: Servers) -> None:
    """One handler waits for what another brings: the second gets a thread at once."""
    server = serve("concurrency:app", threads(3))
    for number in range(10):
        with server.connect() as first, server.connect() as second:
            first.send(get(f"/waiting?{number}"))
            second.send(get(f"/waiting?{number}"))
            server.wait_event("begun", query=str(number), count=2)
            assert server.exchange(get(f"/notifying?{number}")).body == b"noted"
            assert first.response().body == b"true"
            assert second.response().body == b"true"


# Idle


def wake_ups(server: Server) -> int:
    """Return how often threads of the process went to sleep by themselves, so far."""
    total = 0
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        status = (task / "status").read_text("ascii")
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", status, re.MULTILINE)
        assert found is not None, status
        total += int(found[1])
    return total


def expect_quiet(server: Server, count: int, seconds: float) -> None:
    """There comes a time with no more wake-ups than these; what was before it dies down first."""
    found: list[int] = []

    def quiet() -> bool:
        before = wake_ups(server)
        time.sleep(seconds)
        found.append(wake_ups(server) - before)
        return found[-1] <= count

    wait_until(quiet, PATIENCE, lambda: f"wake-ups in {seconds} s each: {found}")


@LINUX
@pytest.mark.parametrize("kept", [0, 50])
def test_idle_costs_nothing(serve: Servers, kept: int) -> None:
    """No thread wakes up while nothing happens, with and without idle connections."""
    server = serve("concurrency:app")
    targets = ["/fast?warm", "/sleep?0.01", "/spin?0.005", "/thread"] * 15
    assert {one.status for one in ask_at_once(server, targets)} == {200}
    with all_closed([server.connect() for _ in range(kept)]) as connections:
        for connection in connections:
            connection.send(get("/fast?kept"))
            assert connection.response().status == 200
        expect_quiet(server, 4, 2)


@LINUX
def test_blocked_handlers_cost_nothing(serve: Servers) -> None:
    """Nor does the server wake up again and again while handlers block.

    The bound leaves room for the monitor's looks at one long call, not for a look every tick by
    several threads.
    """
    server = serve("concurrency:app", threads(3))
    with all_closed([server.connect() for _ in range(2)]) as connections:
        for number, connection in enumerate(connections):
            connection.send(get(f"/block?{number}"))
        with server.blocked("0"), server.blocked("1"):
            expect_quiet(server, 20, 1)
        for connection in connections:
            assert connection.response().status == 200


@pytest.fixture(autouse=True)
def _no_descriptors_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Connections of the shared servers are closed when a test is over."""
    yield
    for name in ("usual", "single"):
        if name not in request.fixturenames or sys.platform != "linux":
            continue
        server = request.getfixturevalue(name)
        wait_until(partial(has_no_sockets, server), PATIENCE, lambda: "sockets are open")


def has_no_sockets(server: Server) -> bool:
    """Whether the server has closed every connection."""
    port = f":{server.port:04X}"
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        if local.endswith(port) and state in ("01", "08"):  # established, closed by the client
            return False
    return True
