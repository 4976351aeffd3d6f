"""Fifty clients of each bad kind against four threads: the others notice nothing."""

import contextlib
import hashlib
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import Server, Servers, wait_until
from wire import PATIENCE, Connection, all_closed, chunked, get, post, post_chunked

COUNT = 50
#: Requests of a good client while the bad ones are there.
REQUESTS = 100
TCP_REPAIR = 19  # linux/tcp.h
LARGE_DIGEST = hashlib.sha256(bytes(range(256)) * (24 << 12)).digest()


@pytest.fixture
def four_threads(serve: Servers) -> Server:
    """A server with four threads; its time limits are far longer than a test."""
    times = {"head": 600.0, "body": 600.0, "keep_alive": 600.0, "write": 600.0}
    server = serve("responding:app", {"concurrency": {"threads": 4}, "timeouts": times})
    # A handler that waits for a client is told when the client leaves, at the end of a test.
    server.errors_expected = True
    return server


def expect_unnoticed(server: Server) -> list[float]:
    """A good client is answered, though bad ones hold what they hold beyond the test.

    Return the times that it took, sorted.
    """
    # What the bad ones asked for goes first.
    assert server.exchange(get("/hello")).body == b"hello"
    times = []
    with all_closed([server.connect() for _ in range(4)]) as connections:
        for number in range(REQUESTS):
            began = time.monotonic()
            connection = connections[number % 4]
            connection.send(post("/hello", b"body") if number % 3 else get("/hello"))
            assert connection.response().body == b"hello"
            times.append(time.monotonic() - began)
    return sorted(times)


# Each begins with a new connection and leaves it as a bad client does; some have something to say
# in the end, and get their answer.


def silent(connection: Connection, number: int) -> None:
    """Connect, and that is all."""


def half_open(connection: Connection, number: int) -> None:
    """Vanish without a word, half of them while a response is under way.

    Linux forgets a socket in repair mode as a client does that has lost its power; without the
    right to do that the client just stays.
    """
    connection.send(get("/hello" if number % 2 else "/large_iterator?400"))
    connection.take(100)
    with contextlib.suppress(PermissionError):
        connection.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        connection.close()


def half_head(connection: Connection, number: int) -> None:
    """Send a part of a head, of a length that differs from client to client."""
    connection.send(get("/hello", "X-Field: value")[: 1 + number])


def half_body(connection: Connection, number: int) -> None:
    """Send a part of a body: small, larger than memory is for, and chunked."""
    if number % 3 == 0:
        connection.send(post("/hello", b"x" * 1000)[:-1])
    elif number % 3 == 1:
        connection.send(get("/hello", "Content-Length: 3000000", method="POST"))
        connection.send(b"x" * (1_100_000 if number < 6 else 5000))
    else:
        connection.send(post_chunked("/hello", b"x" * 1000)[: -1 - number])


def expecting(connection: Connection, number: int) -> None:
    """Announce a body that the server may ask for, and never send it."""
    framing = "Content-Length: 1000" if number % 2 else "Transfer-Encoding: chunked"
    connection.send(get("/reading", framing, "Expect: 100-continue", method="POST"))


def not_reading_iterator(connection: Connection, number: int) -> None:
    """Ask for 26 MB in pieces, and read none."""
    connection.send(get("/large_iterator?400"))


def not_reading_list(connection: Connection, number: int) -> None:
    """Ask for 24 MB in one piece, and read none."""
    connection.send(get("/large_list"))


def not_reading_pipeline(connection: Connection, number: int) -> None:
    """Send request after request until nothing more is taken."""
    connection.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(1000):
            connection.socket.send(get("/hello") * 500)


def half_closed(connection: Connection, number: int) -> None:
    """Ask for much, say that nothing more will be sent, and read nothing."""
    connection.send(get("/large_iterator?400"))
    connection.finish()


KINDS: dict[str, Callable[[Connection, int], None]] = {
    kind.__name__: kind
    for kind in (
        silent,
        half_open,
        half_head,
        half_body,
        expecting,
        not_reading_iterator,
        not_reading_list,
        not_reading_pipeline,
        half_closed,
    )
}


@contextlib.contextmanager
def bad_clients(server: Server, kinds: list[str]) -> Iterator[dict[str, list[Connection]]]:
    """Fifty of each of the kinds, at work when the server has what they sent."""
    found: dict[str, list[Connection]] = {}
    with all_closed([]) as connections:
        for kind in kinds:
            found[kind] = []
            for number in range(COUNT):
                connection = server.connect(receive_buffer=4096)
                connections.append(connection)
                found[kind].append(connection)
                KINDS[kind](connection, number)
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_bad_clients(four_threads: Server, kind: str) -> None:
    """One kind alone."""
    with bad_clients(four_threads, [kind]):
        expect_unnoticed(four_threads)
        expect_unnoticed(four_threads)


@pytest.mark.timing
def test_bad_clients_cost_others_no_time(four_threads: Server) -> None:
    """A good client is answered about as soon as if it were alone."""
    with bad_clients(four_threads, list(KINDS)):
        times = expect_unnoticed(four_threads)
    assert times[REQUESTS * 95 // 100] < 0.5, times[-10:]
    assert times[REQUESTS // 2] < 0.05, times[REQUESTS // 2]


def test_all_kinds_together(four_threads: Server) -> None:
    """All at once; and who mends its ways is answered, whole."""
    with bad_clients(four_threads, list(KINDS)) as clients:
        expect_unnoticed(four_threads)
        clients["silent"][7].send(get("/hello"))
        assert clients["silent"][7].response().body == b"hello"
        clients["half_body"][0].send(b"x")
        assert clients["half_body"][0].response().body == b"hello"
        late = clients["expecting"][40]
        assert late.interim_response().status == 100
        late.send(chunked(b"late"))
        assert late.response().body == b"4"
        iterator = clients["not_reading_iterator"][49]
        assert len(iterator.response().body) == 400 * 65536
        body = clients["not_reading_list"][49].response().body
        assert hashlib.sha256(body).digest() == LARGE_DIGEST
        assert len(clients["half_closed"][49].response().body) == 400 * 65536
        expect_unnoticed(four_threads)


def kernel_bytes(server: Server, connection: Connection) -> int:
    """Return what the kernel holds of the server's that this client has not taken."""
    port = connection.socket.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{server.port:04X}") and fields[2].endswith(f":{port:04X}"):
            return int(fields[4].partition(":")[0], 16)
    raise AssertionError("no such connection")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kernel_memory_of_clients_not_reading(four_threads: Server) -> None:
    """The more connections there are, the less the kernel holds for one that does not read."""

    def held() -> int:
        with four_threads.connect() as connection:
            connection.send(get("/large_list"))
            # It lets a connection have more as more gets through; at first it remembers what came
            # of earlier connections to the same address.
            connection.take(12_000_000)
            seen = [-2, -1]

            def settled() -> bool:
                assert four_threads.exchange(get("/hello")).body == b"hello"
                seen.append(kernel_bytes(four_threads, connection))
                time.sleep(0.05)
                return 0 < seen[-1] == seen[-2] == seen[-3]

            wait_until(settled, PATIENCE, lambda: f"it goes on: {seen}")
            return seen[-1]

    assert held() > 1_000_000
    with all_closed([four_threads.connect() for _ in range(300)]):
        assert four_threads.exchange(get("/hello")).body == b"hello"
        assert 20_000 < held() < 300_000


def test_a_pipelining_client_takes_its_turn(serve: Servers) -> None:
    """Requests that always wait do not give their client more than one turn in each round."""
    server = serve("concurrency:app", {"concurrency": {"threads": 1}})
    rounds = 40
    with (
        all_closed([server.connect() for _ in range(6)]) as connections,
        server.connect() as greedy,
        server.connect() as first,
    ):
        # All requests are there before the first is handled.
        first.send(get("/gate?turns"))
        server.wait_event("begun", query="turns")
        greedy.send(get("/turn") * 10 * rounds)
        for connection in connections:
            connection.send(get("/turn") * rounds)
        assert server.exchange(b"nonsense\r\n\r\n").status == 400
        server.open_gate("turns")
        # How many calls, whoever asked for them, each answer came after.
        last = max(turn_of(connection) for connection in connections for _ in range(rounds))
        turns = [turn_of(greedy) for _ in range(10 * rounds)]
    before = sum(turn < last for turn in turns)
    assert 10 < before < 3 * rounds


def turn_of(connection: Connection) -> int:
    """Return the number in the next answer of /turn."""
    return int(connection.response().body.removeprefix(b"turn"))


def test_unfinished_large_heads_are_bounded_together(serve: Servers) -> None:
    """Past buffer_memory a head that is larger than a first buffer is answered 503."""
    server = serve("responding:app", {"limits": {"buffer_memory": "1 MiB"}})
    large = get("/hello", "X: " + "a" * 40_000)
    with all_closed([server.connect() for _ in range(40)]) as connections:
        for connection in connections:
            connection.send(large[:-2])
        sockets = {connection.socket: connection for connection in connections}
        refused = wait_until(
            lambda: found if len(found := select.select(sockets, [], [], 0.2)[0]) > 3 else None,
            PATIENCE,
            lambda: "all are taken",
        )
        assert len(refused) < 38
        for connection in connections:
            if connection.socket in refused:
                assert connection.response().status == 503
        assert server.exchange(get("/hello")).body == b"hello"
        taken = 0
        for connection in connections:
            if connection.socket not in refused:
                connection.send(large[-2:])
                # Heads that had not come whole when the first were refused may be refused too.
                taken += connection.response().status == 200
        assert taken > 3
    server.wait_log("refused 503 out_of_memory; GET")
    with server.connect() as connection:
        connection.send(large)
        assert connection.response().body == b"hello"
