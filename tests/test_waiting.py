"""Responses that wait for an event of the application, in unusual ways, on a real server."""

import contextlib
import random
import re
import threading
import time
from collections.abc import Callable

import pytest

from serving import APPLICATIONS, Server, Servers, wait_until
from wire import PATIENCE, Connection, all_closed, get, may_be_given_up, post

LARGE = 8 << 20


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """Two threads."""
    return serve_module("waiting:app", {"concurrency": {"threads": 2}})


@pytest.fixture(scope="module")
def single(serve_module: Servers) -> Server:
    """One thread, so that two workers serve everything."""
    return serve_module("waiting:app", {"concurrency": {"threads": 1}})


@pytest.fixture(scope="module")
def polled(serve_module: Servers) -> Server:
    """One thread, and room for what a client does not take."""
    config = {
        "concurrency": {"threads": 1},
        "limits": {"response_memory": LARGE},
        "log": {"access": "stdout"},
    }
    return serve_module("waiting:app", config)


def body_of(server: Server, target: str) -> bytes:
    """Return the body of a GET."""
    answer = server.exchange(get(target, "Connection: close"))
    assert answer.status == 200, answer
    return answer.body


def test_a_wait_asked_for_before_a_slow_piece_is_not_lost(server: Server) -> None:
    """The response parks for its client in between, and then for its event."""
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get("/asked-before-piece"))
        connection.head()
        time.sleep(0.2)
        taken = 0
        while taken < LARGE:
            taken += len(connection.chunk())
        connection.expect_silence(0.3)
        assert body_of(server, "/wake?name=early") == b"woken"
        assert connection.chunk() == b"resumed"
        assert connection.chunk() == b""


def test_the_flag_of_another_request_is_not_seen(single: Server) -> None:
    """No wait has timed out before the first."""
    for _ in range(5):
        assert body_of(single, "/forgetful") == b"went on"
        assert body_of(single, "/flag") == b"resumed"


def test_the_flag_alone_may_be_kept(single: Server) -> None:
    """Though other requests, which keep theirs, run on the same threads meanwhile."""
    with all_closed([single.connect() for _ in range(4)]) as connections:
        for connection in connections:
            connection.send(get("/flag-alone"))
        single.wait_event("waiting", count=4)
        for _ in range(12):
            assert body_of(single, "/keep") == b"kept"
        for connection in connections:
            assert connection.response().body == b"timeout"


def test_another_thread_may_write_during_a_wait(server: Server) -> None:
    """It needs the worker, so the response waits on that."""
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get("/written-meanwhile"))
        connection.head()
        time.sleep(0.4)
        assert connection.chunk() == bytes(LARGE)
        assert connection.chunk() == b"end"
        assert connection.chunk() == b""


@pytest.mark.parametrize("way", [Connection.close, Connection.reset, Connection.finish])
@pytest.mark.parametrize("spec", ["pieces=1", "pieces=0", "single=1", "pieces=400"])
def test_a_client_that_leaves_ends_a_wait_with_empty_strings(
    polled: Server, spec: str, way: Callable[[Connection], None]
) -> None:
    """PEP 3333 lets an iterable yield them until it has something; nothing is sent that tells."""
    tag = f"{spec}&{way.__name__}"
    with polled.connect(receive_buffer=4096) as connection:
        connection.send(get(f"/polling?{tag}"))
        polled.wait_event("polling", tag=tag)
        if way is Connection.finish and spec == "pieces=400":
            connection.head()
            for _ in range(400):
                connection.chunk()
        way(connection)
        polled.wait_event("closed", tag=tag)
    assert not polled.events("polled", tag=tag)
    assert body_of(polled, "/hello") == b"hello"
    status = "200" if "pieces=1" in spec or "400" in spec else "499"
    wait_until(
        lambda: re.search(rf'"GET /polling\?{tag} HTTP/1.1" {status} ', polled.output()),
        PATIENCE,
        lambda: polled.output(),
    )


@pytest.mark.timing
def test_a_client_that_takes_what_comes_is_there(polled: Server) -> None:
    """It has said that it sends no more, and that was long ago."""
    with polled.connect() as connection:
        connection.send(get("/beating", "Connection: close"))
        connection.finish()
        assert connection.response().body == b"beat" * 8


@pytest.mark.parametrize("seconds", [0.1, 0.6])
def test_a_client_that_waits_gets_what_follows_empty_strings(
    polled: Server, seconds: float
) -> None:
    """For a moment also one that has only said that it sends no more."""
    is_half_closed = seconds < 0.25
    patience = may_be_given_up() if is_half_closed else contextlib.nullcontext()
    with polled.connect() as connection, patience:
        connection.send(get(f"/polling?seconds={seconds}", "Connection: close"))
        if is_half_closed:
            connection.finish()
        assert connection.response().body == b"end"


def test_a_client_that_still_takes_what_was_sent_has_not_left(polled: Server) -> None:
    """It says that it sends no more, and is slow."""
    tag = "pieces=400&seconds=1"
    with polled.connect(receive_buffer=4096) as connection:
        connection.send(get(f"/polling?{tag}"))
        polled.wait_event("polling", tag=tag)
        connection.finish()
        polled.wait_event("polled", tag=tag)
        assert connection.response().body == bytes(400 * 8 * 1024) + b"end"


@pytest.mark.parametrize("kind", ["piece", "file"])
def test_no_other_thread_writes_while_the_worker_sends(server: Server, kind: str) -> None:
    """The response cannot park, so its worker waits for the client, without the GIL."""
    with server.connect(receive_buffer=4096) as connection:
        connection.send(
            f"POST /sent-meanwhile?kind={kind} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert connection.interim_response().status == 100
        server.open_gate(f"reading-{kind}")
        (event,) = server.wait_event("intruded", kind=kind)
        message = "the response is being sent by another thread"
        assert event["message"] == f"{message}; {message}"
        connection.head()
        assert connection.take(LARGE) == bytes(LARGE)
        connection.expect_cut()


def test_no_other_thread_writes_while_a_file_is_opened(server: Server) -> None:
    """Its head would be sent, and the file be left out."""
    response = server.exchange(get("/opened-meanwhile"))
    (event,) = server.wait_event("told")
    assert event["message"] == "the response is being sent by another thread"
    assert response.body == (APPLICATIONS / "waiting.py").read_bytes()


def test_no_answer_between_early_hints_of_another_thread(serve: Servers) -> None:
    """A handler that fails meanwhile has its connection closed."""
    server = serve("waiting:app", {"limits": {"response_memory": 1}})
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get("/hinted-meanwhile"))
        server.wait_log("ValueError: while hints are sent")
        data = connection.read_to_end(reset_counts=True)
    server.wait_event("hinted")
    hint, rest = data.split(b"\r\n\r\n", 1)
    assert hint.startswith(b"HTTP/1.1 103 ")
    assert (hint + b"\r\n\r\n").startswith(rest.split(b"\r\n\r\n")[-1])
    assert b"500" not in data


#: The kernel alone would hold pieces back for 0.2 s.
SOON = pytest.mark.parametrize(
    "seconds_max", [PATIENCE, pytest.param(0.15, marks=pytest.mark.timing)], ids=["sent", "soon"]
)


@SOON
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("length", ["", "1"])
@pytest.mark.parametrize("kind", ["iterable", "write", "suspend"])
def test_pieces_do_not_wait_for_the_next(
    server: Server, kind: str, length: str, version: str, seconds_max: float
) -> None:
    """A burst is with the client soon, whatever the application does next."""
    gate = f"burst-{kind}-{length}-{version}-{seconds_max}"
    with server.connect() as connection:
        began = time.monotonic()
        target = f"/burst?kind={kind}&length={length}&gate={gate}"
        connection.send(get(target, version=version))
        head = connection.head()
        for _ in range(3):
            data = connection.chunk() if head.framing == "chunked" else connection.take(100)
            assert data == b"x" * 100
        assert time.monotonic() - began < seconds_max
        if kind == "suspend":
            assert body_of(server, f"/wake?name={gate}") == b"woken"
        else:
            server.open_gate(gate)
        data = connection.chunk() if head.framing == "chunked" else connection.take(100)
        assert data == b"y" * 100


@pytest.mark.parametrize("kind", ["iterable", "write"])
def test_what_is_kept_for_a_client_does_not_wait_for_the_next_piece(
    serve: Servers, kind: str
) -> None:
    """PEP 3333: a block goes on being sent while the application makes the next one."""
    # More than the kernel takes, and less than makes the response wait for its client.
    server = serve("waiting:app", {"limits": {"response_memory": 8 << 20}})
    with server.connect(receive_buffer=4096) as connection:
        connection.send(get(f"/ahead?kind={kind}"))
        server.wait_event("ahead", kind=kind)
        connection.head()
        for _ in range(400):
            assert connection.chunk() == bytes(8 * 1024)
        server.open_gate("ahead")
        assert connection.chunk() == b"end"
        assert connection.chunk() == b""


@SOON
@pytest.mark.parametrize("target", ["/burst?kind=raise", "/slow-close?"])
def test_pieces_before_an_error_do_not_wait(
    server: Server, target: str, seconds_max: float
) -> None:
    """They are with the client before the end that shows the error."""
    gate = f"error-{len(target)}-{seconds_max}"
    with server.connect() as connection:
        began = time.monotonic()
        connection.send(get(f"{target}&gate={gate}"))
        connection.head()
        for _ in range(3):
            assert connection.chunk() == b"x" * 100
        assert time.monotonic() - began < seconds_max
        server.open_gate(gate)
        connection.expect_cut()
    server.wait_log("ValueError: in the middle")


@SOON
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_last_pieces_of_a_burst_leave_with_the_end(
    server: Server, version: str, seconds_max: float
) -> None:
    """Also where the end is the end of the connection."""
    with server.connect() as connection:
        began = time.monotonic()
        connection.send(get("/burst?kind=close", version=version))
        assert connection.response().body == b"x" * 300
        assert time.monotonic() - began < seconds_max


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 None"), ("GET", "304 Same")]
)
def test_responses_without_a_body_wait_too(server: Server, method: str, status: str) -> None:
    """Nothing but the head is sent, and the iterable is closed."""
    request = f"{method}{status[:3]}"
    target = f"/bodiless?request={request}&status={status.replace(' ', '+')}"
    with server.connect() as connection:
        connection.send(get(target, method=method) + get("/hello"))
        answer = connection.response(method)
        assert (answer.status, answer.body) == (int(status[:3]), b"")
        assert connection.response().body == b"hello"
    assert len(server.wait_event("closed", request=request)) == 1


def test_http_1_0_waits_too(server: Server) -> None:
    """Its body ends with the connection."""
    answer = server.exchange(get("/by-time?ms=30", version="1.0"))
    assert answer.body == b"timeout timeout "


def test_a_wait_without_a_head_is_a_500(server: Server) -> None:
    """PEP 3333 wants start_response before the end."""
    assert server.exchange(get("/headless")).status == 500
    server.wait_log("without having called start_response")


def test_a_head_can_be_replaced_after_a_wait(server: Server) -> None:
    """With exc_info, as long as nothing was sent."""
    answer = server.exchange(get("/replaced-head"))
    assert (answer.status, answer.reason, answer.body) == (500, "Replaced", b"replaced")


def test_a_body_can_be_read_after_a_wait(server: Server) -> None:
    """One that was gathered, and one whose client is told to go on only then."""
    assert server.exchange(post("/unread-body", bytes(200_000))).body == b"200000"
    with server.connect() as connection:
        connection.send(
            b"POST /unread-body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.interim_response().status == 100
        connection.send(b"hello")
        assert connection.response().body == b"5"


@pytest.mark.parametrize("how", ["finaliser", "signal"])
def test_resume_is_called_from_unusual_places(server: Server, how: str) -> None:
    """Where anything may be going on."""
    assert body_of(server, f"/by-{how}") == b"rrrrr"


def test_a_fork_does_not_disturb_a_wait(server: Server) -> None:
    """The child has the server's descriptors until it ends."""
    assert body_of(server, "/forking") == b"resumed"


@pytest.mark.parametrize("threads", [1, 3])
def test_every_response_that_waits_is_closed_once(serve: Servers, threads: int) -> None:
    """Whatever it waits for, and whatever its client does meanwhile."""
    server = serve("waiting:app", {"concurrency": {"threads": threads}})
    errors: list[BaseException] = []
    deadline = time.monotonic() + 2.0

    def visit(number: int) -> None:
        chance = random.Random(number)
        try:
            while time.monotonic() < deadline:
                seed = chance.randrange(1_000_000)
                with server.connect(receive_buffer=chance.choice([0, 4096])) as connection:
                    connection.send(get(f"/restless?rounds={chance.randrange(30)}&seed={seed}"))
                    if chance.random() < 0.5:
                        assert connection.response().status == 200
                        continue
                    time.sleep(chance.random() * 0.05)
                    if chance.random() < 0.7:
                        connection.reset()
        except BaseException as error:
            errors.append(error)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(PATIENCE)
    assert not errors, errors
    wait_until(
        lambda: body_of(server, "/count-restless") == b"0 0",
        PATIENCE,
        lambda: f"open, closed twice: {body_of(server, '/count-restless')!r}",
    )
    assert server.stop() == 0
