"""Responses that park until an event of their own, and trailers, on a real server."""

import signal
import socket
import struct
import time

import pytest

from serving import Server, Servers, wait_until
from wire import Connection, all_closed, get, post, post_chunked


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """Two threads, so that whoever holds one is found out."""
    return serve_module("suspending:app", {"concurrency": {"threads": 2}})


def body_of(server: Server, target: str) -> bytes:
    """Return the body of a GET."""
    answer = server.exchange(get(target, "Connection: close"))
    assert answer.status == 200, answer
    return answer.body


def test_a_time_ends_a_wait(server: Server) -> None:
    """The response goes on after its time and can tell that this was why."""
    began = time.monotonic()
    assert body_of(server, "/by-time?ms=150") == b"timeout timeout "
    assert 0.3 <= time.monotonic() - began < 2.0


def test_another_thread_resumes(server: Server) -> None:
    """`resume` works from any thread, in every round; thread and context stay the same."""
    assert body_of(server, "/by-other-thread?rounds=20") == b"begun same"


def test_resume_before_the_wait_is_not_lost(server: Server) -> None:
    """A wait that was ended before it began does not begin."""
    assert body_of(server, "/early") == b"went on"


def test_resume_after_the_request_does_nothing(server: Server) -> None:
    """`resume` may be called for ever after; `suspend` is refused then."""
    assert body_of(server, "/early") == b"went on"
    assert body_of(server, "/from-elsewhere") == b"kept"
    assert body_of(server, "/call-kept") == b"refused"
    assert body_of(server, "/by-other-thread") == b"begun same"


def test_start_response_may_come_after_the_wait(server: Server) -> None:
    """The head is whatever start_response says in the end."""
    answer = server.exchange(get("/late-head"))
    assert (answer.status, answer.body) == (202, b"late")
    assert answer.value("content-length") == "4"


def test_a_head_that_waits_is_not_mixed_up(server: Server) -> None:
    """Heads begun before a wait survive what other requests do on the same threads."""
    with all_closed([server.connect() for _ in range(8)]) as connections:
        for number, connection in enumerate(connections):
            connection.send(get(f"/kept-head?name=n{number}"))
        for _ in range(20):
            assert body_of(server, "/hello") == b"hello"
        for number, connection in enumerate(connections):
            answer = connection.response()
            assert (answer.status, answer.reason) == (203, "Kept")
            assert answer.value("x-kept") == f"n{number}"
            assert answer.body == f"n{number}".encode()


def test_an_exception_after_the_wait_is_a_500(server: Server) -> None:
    """Nothing was sent, so the client gets a whole answer."""
    assert server.exchange(get("/failing")).status == 500
    server.wait_log("ValueError: after the wait")


@pytest.mark.parametrize("how", ["", "?object=1"])
def test_descriptors_are_waited_for(server: Server, how: str) -> None:
    """Readable, not readable in time, writable, at its end."""
    assert body_of(server, "/descriptor" + how) == b"news timeout writable ended"


def test_many_responses_wait_for_one_descriptor(server: Server) -> None:
    """Each is told; none of the server's descriptors is left."""
    before = int(body_of(server, "/descriptors"))
    with all_closed([server.connect() for _ in range(5)]) as connections:
        for connection in connections:
            connection.send(get("/same-descriptor"))
        server.wait_event("watching", count=5)
        assert body_of(server, "/wake-shared") == b"sent"
        for connection in connections:
            assert connection.response().body == b"ready"
    wait_until(
        lambda: int(body_of(server, "/descriptors")) <= before,
        5,
        lambda: "descriptors are left open",
    )


def test_a_file_is_always_ready(server: Server) -> None:
    """As select has it."""
    assert body_of(server, "/regular-file") == b"ready"


def test_wrong_arguments_raise(server: Server) -> None:
    """Each mistake is an exception where it is made."""
    expected = "ValueError TypeError TypeError ValueError TypeError OSError TypeError ValueError"
    assert body_of(server, "/wrong-arguments").decode() == expected + " TypeError"


def test_streams_hold_no_thread(server: Server) -> None:
    """Many more event streams than threads are open, and everything else is answered."""
    count = 60
    with all_closed([server.connect() for _ in range(count)]) as connections:
        for number, connection in enumerate(connections):
            connection.send(get(f"/stream?name={number}"))
        for connection in connections:
            assert connection.head().value("content-type") == "text/event-stream"
            assert connection.chunk() == b"data: hello\n\n"
        for _ in range(3):
            assert body_of(server, "/hello") == b"hello"
            wait_until(
                lambda: body_of(server, "/publish") == str(count).encode(),
                5,
                lambda: "not all wait",
            )
            for number, connection in enumerate(connections):
                assert connection.chunk() == f"data: {number}\n\n".encode()
    server.wait_event("closed", count=count)


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_client_that_leaves_ends_its_generator(server: Server, way: str) -> None:
    """`GeneratorExit` is seen while nothing is sent, at once or after some patience."""
    connection = server.connect()
    connection.send(get(f"/stream?name=leaver-{way}"))
    connection.head()
    assert connection.chunk() == b"data: hello\n\n"
    began = time.monotonic()
    if way == "reset":
        connection.reset()
    else:
        connection.close()
    server.wait_event("left", stream=f"leaver-{way}", within=3)
    server.wait_event("closed", stream=f"leaver-{way}", within=3)
    assert time.monotonic() - began < 0.9


def test_a_half_closed_client_may_wait_for_a_moment(server: Server) -> None:
    """One that has only said that it sends no more gets what comes soon."""
    with server.connect() as connection:
        connection.send(get("/by-time?ms=60", "Connection: close"))
        connection.finish()
        assert connection.response().body == b"timeout timeout "


def test_how_a_wait_ended_is_told_as_a_truth_value(server: Server) -> None:
    """It prints, counts and compares as True and False do, in copies of the environ, too."""
    timeout, resumed = "True True 1 True True;", "False False 0 False False;"
    assert body_of(server, "/told") == (timeout * 2 + resumed * 2).encode()


def test_a_wait_begins_when_the_client_has_taken_what_was_sent(server: Server) -> None:
    """A slow client and a wait together: all bytes arrive, in order."""
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get("/piece-ahead"))
        connection.head()
        total = 0
        while True:
            chunk = connection.chunk()
            if not chunk:
                break
            total += len(chunk)
            last = chunk
        assert total == (8 << 20) + 3
        assert last == b"end"


def test_pipelined_requests_wait_their_turn(server: Server) -> None:
    """What a client sends behind a response that waits is answered after it."""
    with server.connect() as connection:
        connection.send(get("/by-time?ms=100") + get("/hello"))
        assert connection.response().body == b"timeout timeout "
        assert connection.response().body == b"hello"


def test_a_response_that_cannot_park_waits_on_its_thread(server: Server) -> None:
    """Another thread reads the request's body, so the worker is needed."""
    with server.connect() as connection:
        connection.send(
            b"POST /blocked HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.interim_response().status == 100
        server.wait_event("waited", timed_out=True)
        connection.send(b"x")
        assert connection.response().body == b"read"


def test_a_drain_waits_for_a_response_that_waits(serve: Servers) -> None:
    """And ends as soon as it is done."""
    server = serve("suspending:app")
    with server.connect() as connection:
        connection.send(get("/by-time?ms=400"))
        # Begun, and not to be done before the signal.
        time.sleep(0.1)
        server.send_signal(signal.SIGTERM)
        assert connection.response().body == b"timeout timeout "
    assert server.wait(2.0) == 0


def test_trailers_are_given_apart_from_the_fields(server: Server) -> None:
    """After the body has been read, as they came, and never as HTTP_ keys."""
    data = post_chunked("/trailers", b"hello", trailer=b"X-Checksum: abc\r\nX-Two:  2 \r\n")
    found = "[('X-Checksum', 'abc'), ('X-Two', '2')]"
    assert server.exchange(data).body.decode() == f"[{found}, 5, {found}, []]"
    data = post_chunked("/trailers", b"hello")
    assert server.exchange(data).body.decode() == "[[], 5, [], []]"
    assert server.exchange(post("/trailers", b"hello")).body == b"[['none'], 5, None, []]"


def test_trailers_of_a_body_that_was_asked_for(server: Server) -> None:
    """It is gathered like any other chunked body."""
    with server.connect() as connection:
        connection.send(
            b"POST /trailers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.interim_response().status == 100
        connection.send(b"5\r\nhello\r\n0\r\nX-Checksum: abc\r\n\r\n")
        found = "[('X-Checksum', 'abc')]"
        assert connection.response().body.decode() == f"[{found}, 5, {found}, []]"


@pytest.mark.parametrize("name", ["Content-Type", "vary", "CONTENT-ENCODING", "If-Match", "Date"])
def test_trailers_that_may_not_stand_there_are_discarded(server: Server, name: str) -> None:
    """RFC 9112 section 7.1.2: they decide nothing, and the request is served without them."""
    trailer = f"X-One: 1\r\n{name}: a\r\nX-Two: 2\r\n".encode()
    data = post_chunked("/trailers", b"hello", trailer=trailer)
    found = "[('X-One', '1'), ('X-Two', '2')]"
    with server.connect() as connection:
        for _ in range(2):
            connection.send(data)
            response = connection.response()
            assert (response.status, response.closes) == (200, False)
            assert response.body.decode() == f"[{found}, 5, {found}, []]"


@pytest.mark.parametrize(
    "name",
    ["Content-Length", "transfer-encoding", "Host", "X-Forwarded-For", "AUTHORIZATION", "Cookie"],
)
def test_trailers_of_framing_routing_and_trust_are_refused(server: Server, name: str) -> None:
    """RFC 9110 section 6.5.1: only an attack sends them there."""
    response = server.exchange(post_chunked("/trailers", trailer=f"{name}: 1\r\n".encode()))
    assert (response.status, response.closes) == (400, True)
    server.wait_log("refused 400 forbidden_trailer")


def test_streams_end_with_their_clients_and_leave_nothing(server: Server) -> None:
    """Hundreds that are cut in every phase: descriptors come back."""
    before = int(body_of(server, "/descriptors"))
    for number in range(150):
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(get(f"/stream?name=cut{number}"))
            if number % 3:
                raw.recv(100)
            if number % 5 == 0:
                body_of(server, "/publish")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.wait_event("closed", stream="cut149", within=5)
    wait_until(
        lambda: int(body_of(server, "/descriptors")) <= before,
        5,
        lambda: "descriptors are left open",
    )


def open_streams(server: Server, count: int) -> list[Connection]:
    """Open so many event streams and read their first event."""
    connections = [server.connect() for _ in range(count)]
    for number, connection in enumerate(connections):
        connection.send(get(f"/stream?name={number}"))
    for connection in connections:
        connection.head()
        assert connection.chunk() == b"data: hello\n\n"
    return connections


def test_a_parked_stream_costs_little_memory(serve: Servers) -> None:
    """At most 8 KiB each, the generator included."""
    server = serve("suspending:app", {"concurrency": {"threads": 8}})
    count = 400
    # As many before, so that what is made once, as by each thread's first request, does not count.
    with all_closed(open_streams(server, count)):
        before = server.resident_bytes()
        with all_closed(open_streams(server, count)):

            def each() -> float:
                return (server.resident_bytes() - before) / count

            # The last of them have been heard of, and may be about to wait.
            wait_until(lambda: each() <= 8 * 1024, 5, lambda: f"{each():.0f} bytes for each stream")
