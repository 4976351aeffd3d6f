"""What happens on one connection: persistence, pipelining, Expect, framing, the way it ends."""

import datetime
import email.utils
import re
import time

import pytest

from scripting import script
from serving import Server, Servers, wait_until
from wire import (
    PATIENCE,
    Truncated,
    all_closed,
    get,
    may_be_given_up,
    post,
    post_chunked,
    requests_of,
)

PIECES = ["one ", "two ", "three"]


@pytest.fixture(scope="module")
def echo(serve_module: Servers) -> Server:
    """A server of the echo application, with short times."""
    return serve_module("echo:app", {"limits": {"body": "64 KiB"}})


@pytest.fixture(scope="module")
def scripted(serve_module: Servers) -> Server:
    """A server of the scripted application."""
    return serve_module("scripted:app")


@pytest.fixture(scope="module")
def responding(serve_module: Servers) -> Server:
    """A server of the applications in responding.py."""
    return serve_module("responding:app", {"concurrency": {"threads": 2}})


@pytest.fixture(scope="module")
def reading(serve_module: Servers) -> Server:
    """A server of the application that reads its input."""
    return serve_module("reading:app")


# Persistent connections, RFC 9112 section 9.3


def test_http_1_1_stays_open(echo: Server) -> None:
    """Many requests one after the other on one connection."""
    with echo.connect() as connection:
        for number in range(20):
            connection.send(get(f"/{number}"))
            response = connection.response()
            assert response.json()["path"] == f"/{number}"
            assert not response.closes
        connection.expect_silence()


def test_bodies_and_no_bodies_take_turns(echo: Server) -> None:
    """Each kind of framing leaves the connection where the next request begins."""
    with echo.connect() as connection:
        for number in range(5):
            connection.send(post(f"/length/{number}", b"x" * number))
            assert connection.response().json()["body"] == "x" * number
            connection.send(post_chunked(f"/chunked/{number}", b"y", b"z" * (number + 1)))
            assert connection.response().json()["body"] == "y" + "z" * (number + 1)
            connection.send(get(f"/none/{number}"))
            assert connection.response().json()["body"] == ""


@pytest.mark.parametrize(
    "fields",
    [
        ["Connection: close"],
        ["Connection: CLOSE"],
        ["Connection: other, close"],
        ["Connection: keep-alive, close"],
        ["Connection: other ,\tClose , more"],
        ["Connection: ,,close"],
        ["Connection: keep-alive", "Connection: close"],
    ],
    ids=str,
)
def test_connection_close(echo: Server, fields: list[str]) -> None:
    """Connection is a case-insensitive list, and close is one of its members."""
    with echo.connect() as connection:
        connection.send(get("/", *fields))
        response = connection.response()
        assert response.status == 200
        assert response.closes
        connection.expect_close()


@pytest.mark.parametrize("value", ["closed", "not-close", "x-close, keep-alive", "", '"close"'])
def test_connection_other_than_close(echo: Server, value: str) -> None:
    """Only the word itself closes."""
    with echo.connect() as connection:
        for _ in range(2):
            connection.send(get("/", f"Connection: {value}"))
            response = connection.response()
            assert response.status == 200
            assert not response.closes


def test_http_1_0_closes(echo: Server) -> None:
    """RFC 9112 section 9.3: without the keep-alive option a 1.0 connection ends."""
    with echo.connect() as connection:
        connection.send(get("/", version="1.0"))
        assert connection.response().status == 200
        connection.expect_close()


@pytest.mark.parametrize("value", ["keep-alive", "Keep-Alive", "other, KEEP-ALIVE"])
def test_http_1_0_keep_alive(echo: Server, value: str) -> None:
    """A 1.0 client that asks for it may go on, and is told so."""
    with echo.connect() as connection:
        for _ in range(3):
            connection.send(get("/", f"Connection: {value}", version="1.0"))
            response = connection.response()
            assert response.status == 200
            assert str(response.value("Connection")).lower() == "keep-alive"
        connection.send(get("/last", version="1.0"))
        assert connection.response().json()["path"] == "/last"
        connection.expect_close()


def test_http_1_0_close_wins(echo: Server) -> None:
    """Both options at once: the connection ends."""
    with echo.connect() as connection:
        connection.send(get("/", "Connection: keep-alive, close", version="1.0"))
        assert connection.response().status == 200
        connection.expect_close()


def test_unread_body_does_not_desynchronise(reading: Server) -> None:
    """An application that ignores a body leaves nothing of it for the next request."""
    with reading.connect() as connection:
        for number in range(3):
            connection.send(post("/nothing", b"GET /read HTTP/1.1\r\nHost: a\r\n\r\n" * 50))
            assert connection.response().json() is None
            connection.send(post_chunked("/nothing", b"GET /", b" HTTP/1.1\r\n\r\n"))
            assert connection.response().json() is None
            connection.send(post("/read", b"%d" % number))
            assert connection.response().json() == str(number)


# Pipelining, RFC 9112 section 9.3.2


def test_pipelining_three_in_one_packet(echo: Server) -> None:
    """Row: pipelining (3 in one packet)."""
    with echo.connect() as connection:
        connection.send(get("/1") + get("/2") + get("/3"))
        assert [connection.response().json()["path"] for _ in range(3)] == ["/1", "/2", "/3"]
        connection.expect_silence()


def test_pipelining_many(echo: Server) -> None:
    """Far more requests than any buffer holds are all answered, in order."""
    count = 2000
    with echo.connect() as connection:
        pipeline = b"".join(get(f"/{number}", "X-Padding: " + "p" * 100) for number in range(count))
        for start in range(0, len(pipeline), 30_000):
            connection.send(pipeline[start : start + 30_000])
            if start == 0:
                first = connection.response()
                assert first.json()["path"] == "/0"
        for number in range(1, count):
            assert connection.response().json()["path"] == f"/{number}"


def test_pipelining_with_bodies(echo: Server) -> None:
    """Bodies of either framing between the requests of a pipeline."""
    with echo.connect() as connection:
        connection.send(
            post("/1", b"first")
            + post_chunked("/2", b"sec", b"ond")
            + get("/3")
            + post("/4", b"")
            + post_chunked("/5")
            + post("/6", b"six")
        )
        bodies = [connection.response().json()["body"] for _ in range(6)]
        assert bodies == ["first", "second", "", "", "", "six"]


def test_pipelining_keeps_the_order(serve: Servers) -> None:
    """A slow request holds back the answers behind it, although there are threads for them."""
    server = serve("working:app", {"concurrency": {"threads": 4}})
    with server.connect() as connection:
        connection.send(get("/sleep?0.3") + get("/fast") + get("/sleep?0.1") + get("/last"))
        bodies = [connection.response().body for _ in range(4)]
        assert bodies == [b"done /sleep", b"done /fast", b"done /sleep", b"done /last"]


def test_pipelining_malformed_in_the_middle(echo: Server) -> None:
    """What is before a malformed request is answered, what is behind it is not served."""
    with echo.connect() as connection:
        connection.send(get("/1") + get("/2") + get("/3", "Bad Name: 1") + get("/behind"))
        assert [connection.response().status for _ in range(3)] == [200, 200, 400]
        connection.expect_close()
    assert not echo.events("called", target="/behind")


def test_pipelining_close_in_the_middle(echo: Server) -> None:
    """After the response to a request with close nothing more is answered."""
    with echo.connect() as connection:
        connection.send(get("/1") + get("/2", "Connection: close") + get("/beyond"))
        assert [connection.response().status for _ in range(2)] == [200, 200]
        connection.expect_cut()
    assert not echo.events("called", target="/beyond")


def test_pipelining_application_error_in_the_middle(scripted: Server) -> None:
    """A 500 in a pipeline is one whole response; the connection goes on or says that it ends."""
    good = get(script(pieces=["good"]))
    with scripted.connect() as connection:
        connection.send(good + get(script(raise_at="call")) + good)
        assert connection.response().body == b"good"
        error = connection.response()
        assert error.status == 500
        if error.closes:
            connection.expect_cut()
        else:
            assert connection.response().body == b"good"
    scripted.wait_log("scripted at call")


def test_pipelining_head_between(scripted: Server) -> None:
    """HEAD has no body whatever its Content-Length says, so the next response follows at once."""
    with scripted.connect() as connection:
        target = script(pieces=["body"], headers=[["Content-Length", "4"]])
        connection.send(get(target, method="HEAD") + get(target) + get(target, method="HEAD"))
        assert connection.response("HEAD").body == b""
        assert connection.response("GET").body == b"body"
        assert connection.response("HEAD").body == b""
        connection.expect_silence()


def test_pipelining_streams(responding: Server) -> None:
    """A long streamed response is whole before the next one begins."""
    with responding.connect() as connection:
        connection.send(get("/large_iterator?40") + get("/hello") + get("/large_iterator?1"))
        assert len(connection.response().body) == 40 * 65536
        assert connection.response().body == b"hello"
        assert len(connection.response().body) == 65536


# Expect, RFC 9110 section 10.1.1


def test_expect_is_answered(reading: Server) -> None:
    """Row: Expect: 100-continue answered."""
    with reading.connect() as connection:
        connection.send(get("/read", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        interim = connection.interim_response()
        assert (interim.status, interim.fields) == (100, [])
        connection.send(b"hello")
        assert connection.response().json() == "hello"
        connection.send(post("/read", b"next"))
        assert connection.response().json() == "next"


@pytest.mark.parametrize(
    "value", ["100-Continue", "100-CONTINUE", ", 100-continue,", "100-continue,"]
)
def test_expect_in_other_words(reading: Server, value: str) -> None:
    """It is compared without regard to case, and empty elements are none (RFC 9110 5.6.1.2)."""
    with reading.connect() as connection:
        connection.send(get("/read", "Content-Length: 2", f"Expect: {value}", method="POST"))
        assert connection.interim_response().status == 100
        connection.send(b"ok")
        assert connection.response().json() == "ok"


def test_expect_chunked(reading: Server) -> None:
    """The chunked coding may be announced the same way; the application reads all of it."""
    with reading.connect() as connection:
        head = get("/read", "Transfer-Encoding: chunked", "Expect: 100-continue", method="POST")
        connection.send(head)
        assert connection.interim_response().status == 100
        connection.send_slowly(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", size=4, pause=0.01)
        assert connection.response().json() == "abcde"
        connection.send(get("/read"))
        assert connection.response().json() == ""


def test_expect_is_lazy(reading: Server) -> None:
    """Row: ...lazily (no 100 if app never reads)."""
    with reading.connect() as connection:
        head = get("/nothing", "Content-Length: 5", "Expect: 100-continue", method="POST")
        connection.send(head)
        response = connection.response("POST")
        assert response.status == 200
        assert response.interim == []
        if response.closes:
            connection.expect_close()
        else:
            connection.send(b"hello" + post("/read", b"next"))
            assert connection.response().json() == "next"


def test_expect_read_in_pieces_asks_once(reading: Server) -> None:
    """However often the application reads, there is one 100."""
    with reading.connect() as connection:
        head = get("/read_pieces", "Content-Length: 20", "Expect: 100-continue", method="POST")
        connection.send(head)
        assert connection.interim_response().status == 100
        connection.send_slowly(b"x" * 20, size=3, pause=0.005)
        response = connection.response()
        assert response.interim == []
        assert "".join(response.json()) == "x" * 20


def test_expect_with_the_body_already_there(reading: Server) -> None:
    """A client that does not wait may be spared the 100, and is understood either way."""
    with reading.connect() as connection:
        head = get("/read", "Content-Length: 5", "Expect: 100-continue", method="POST")
        connection.send(head + b"hello" + post("/read", b"next"))
        response = connection.response()
        assert [one.status for one in response.interim] in ([], [100])
        assert response.json() == "hello"
        assert connection.response().json() == "next"


@pytest.mark.parametrize("value", ["", ",", " , ,"])
def test_expect_nothing(reading: Server, value: str) -> None:
    """An empty list expects nothing: as if the field were not there (RFC 9110 10.1.1, 5.6.1.2)."""
    with reading.connect() as connection:
        connection.send(get("/read", "Content-Length: 5", f"Expect: {value}", method="POST"))
        connection.send(b"hello")
        response = connection.response()
        assert response.interim == []
        assert response.json() == "hello"
        connection.send(get("/read"))
        assert connection.response().json() == ""


@pytest.mark.parametrize("value", ["200-ok", "100-continue-not", "100-continue, other", ", other,"])
def test_expect_unknown(reading: Server, value: str) -> None:
    """Row: unknown Expect -> 417."""
    with reading.connect() as connection:
        connection.send(get("/read", "Content-Length: 5", f"Expect: {value}", method="POST"))
        response = connection.response()
        assert response.status == 417
        assert response.closes
        connection.expect_close()


def test_expect_without_body(reading: Server) -> None:
    """Where there is no body there is nothing to continue with."""
    with reading.connect() as connection:
        connection.send(get("/read", "Expect: 100-continue"))
        response = connection.response()
        assert [one.status for one in response.interim] in ([], [100])
        assert response.json() == ""


def test_expect_on_http_1_0_is_ignored(reading: Server) -> None:
    """RFC 9110 section 10.1.1: a 1.0 client knows no interim response."""
    with reading.connect() as connection:
        head = get(
            "/read", "Content-Length: 5", "Expect: 100-continue", version="1.0", method="POST"
        )
        connection.send(head + b"hello")
        response = connection.response()
        assert response.interim == []
        assert response.json() == "hello"


def test_expect_body_over_the_limit(echo: Server) -> None:
    """A body that would be refused is refused before it is asked for."""
    with echo.connect() as connection:
        head = get("/", "Content-Length: 100000", "Expect: 100-continue", method="POST")
        connection.send(head)
        response = connection.response()
        assert response.status == 413
        assert response.interim == []
        connection.expect_close()


# HEAD and the statuses without a body, RFC 9110 sections 9.3.2 and 15


@pytest.mark.parametrize(
    "shape", ["list", "tuple", "generator", "iterator", "sized", "write", "closing list"]
)
def test_head_has_no_body(scripted: Server, shape: str) -> None:
    """Row: HEAD: no body sent; and the connection goes on."""
    with scripted.connect() as connection:
        for _ in range(3):
            connection.send(get(script(pieces=PIECES, shape=shape), method="HEAD"))
            assert connection.response("HEAD").status == 200
        connection.send(get(script(pieces=PIECES, shape=shape)))
        assert connection.response().body == b"one two three"


@pytest.mark.parametrize("shape", ["list", "generator", "write"])
def test_head_keeps_content_length(scripted: Server, shape: str) -> None:
    """Row: HEAD: Content-Length kept, also when the application left out the body itself."""
    with scripted.connect() as connection:
        for length, pieces in (("13", PIECES), ("13", [])):
            headers = [["Content-Length", length]]
            target = script(pieces=pieces, shape=shape, headers=headers)
            connection.send(get(target, method="HEAD"))
            response = connection.response("HEAD")
            assert response.status == 200
            assert response.value("Content-Length") == length
        connection.expect_silence()


@pytest.mark.parametrize("shape", ["iterator", "generator", "closing list", "sized"])
def test_head_closes_the_iterable(scripted: Server, shape: str) -> None:
    """Row: HEAD: iterator close() called."""
    tag = f"head {shape}"
    with scripted.connect() as connection:
        connection.send(get(script(pieces=PIECES, shape=shape, tag=tag), method="HEAD"))
        connection.response("HEAD")
    scripted.wait_event("closed", tag=tag)
    scripted.exchange(get(script(pieces=[])))
    assert len(scripted.events("closed", tag=tag)) == 1


@pytest.mark.parametrize("shape", ["list", "generator", "write", "iterator"])
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_no_content_with_a_stray_body(scripted: Server, status: str, shape: str) -> None:
    """Row: 204 + stray body: stripped, connection reusable."""
    with scripted.connect() as connection:
        for _ in range(2):
            connection.send(get(script(status=status, pieces=PIECES, shape=shape)))
            response = connection.response()
            assert response.status == int(status[:3])
            assert not response.closes
        connection.send(get(script(pieces=["next"])))
        assert connection.response().body == b"next"
    scripted.errors_expected = True


def test_not_modified_keeps_its_length(scripted: Server) -> None:
    """A 304 may say how long the body would be, RFC 9110 section 8.6; the client waits for none."""
    with scripted.connect() as connection:
        headers = [["Content-Length", "99"], ["ETag", '"x"']]
        connection.send(get(script(status="304 Not Modified", headers=headers)))
        assert connection.response().value("ETag") == '"x"'
        connection.send(get(script(pieces=["next"])))
        assert connection.response().body == b"next"


# Framing of responses, RFC 9112 section 6


@pytest.mark.parametrize("shape", ["generator", "iterator", "write", "map"])
def test_unknown_length_is_chunked(scripted: Server, shape: str) -> None:
    """Row: chunked TE used for unknown length (keeps connection)."""
    with scripted.connect() as connection:
        for _ in range(2):
            connection.send(get(script(pieces=PIECES, shape=shape)))
            response = connection.response()
            assert response.framing == "chunked"
            assert response.body == b"one two three"
            assert not response.closes


@pytest.mark.parametrize("shape", ["generator", "iterator", "write"])
def test_unknown_length_ends_a_1_0_connection(scripted: Server, shape: str) -> None:
    """A 1.0 client knows no chunks: its response ends where the connection does."""
    with scripted.connect() as connection:
        target = script(pieces=PIECES, shape=shape)
        connection.send(get(target, "Connection: keep-alive", version="1.0"))
        response = connection.response()
        assert response.framing == "close"
        assert response.body == b"one two three"
        assert "keep-alive" not in [value.lower() for value in response.values("Connection")]


def test_known_length_keeps_a_1_0_connection(scripted: Server) -> None:
    """With a Content-Length of the application's the connection may go on."""
    with scripted.connect() as connection:
        target = script(pieces=PIECES, shape="generator", headers=[["Content-Length", "13"]])
        for _ in range(2):
            connection.send(get(target, "Connection: keep-alive", version="1.0"))
            response = connection.response()
            assert response.framing == "content-length"
            assert response.body == b"one two three"


def test_chunks_reach_the_client_as_yielded(responding: Server) -> None:
    """Row: response chunks reach the client as yielded."""
    with responding.connect() as connection:
        connection.send(get("/gated?chunks"))
        assert connection.head().framing == "chunked"
        assert connection.chunk() == b"first"
        responding.open_gate("chunks")
        assert connection.chunk() == b"second"
        assert connection.chunk() == b""


def test_a_head_is_sent_before_the_second_piece(responding: Server) -> None:
    """The same on 1.0, where only the bytes themselves tell."""
    with responding.connect() as connection:
        connection.send(get("/gated?until-close", version="1.0"))
        assert connection.head().framing == "close"
        assert connection.take(5) == b"first"
        responding.open_gate("until-close")
        assert connection.read_to_end() == b"second"


# Date and Server


def test_date_is_now(echo: Server) -> None:
    """RFC 9110 section 6.6.1: Date in its one preferred form."""
    before = datetime.datetime.now(datetime.UTC)
    response = echo.exchange(get())
    after = datetime.datetime.now(datetime.UTC)
    date = response.value("Date")
    assert date is not None
    assert re.fullmatch(
        "(Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-3][0-9] [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT", date
    )
    sent = email.utils.parsedate_to_datetime(date)
    # It has no fractions, and is made once a second; the kernel may keep the server from that.
    assert before - datetime.timedelta(seconds=PATIENCE) < sent <= after


def test_date_moves_on(echo: Server) -> None:
    """It is made once a second, on an idle server too."""
    first = echo.exchange(get()).value("Date")
    time.sleep(1.2)
    wait_until(
        lambda: echo.exchange(get()).value("Date") != first, PATIENCE, lambda: f"still {first}"
    )


@pytest.mark.timing
def test_date_is_made_once_a_second(echo: Server) -> None:
    """So it is not older than that."""
    time.sleep(1.2)
    before = datetime.datetime.now(datetime.UTC)
    sent = email.utils.parsedate_to_datetime(str(echo.exchange(get()).value("Date")))
    assert (before - sent).total_seconds() < 2


def test_server_names_itself(echo: Server) -> None:
    """One Server field, on errors too."""
    assert echo.exchange(get()).value("Server") == "serve-zig"
    assert echo.exchange(get("/", "Bad Name: 1")).value("Server") == "serve-zig"


def test_the_application_may_set_date_and_server(scripted: Server) -> None:
    """Its own Date and Server take the place of the server's."""
    date = "Thu, 01 Jan 1970 00:00:00 GMT"
    headers = [["date", date], ["SERVER", "mine/1.0"]]
    response = scripted.exchange(get(script(headers=headers, pieces=["x"])))
    assert response.value("Date") == date
    assert response.value("Server") == "mine/1.0"


# The ends of a connection


def test_half_closed_client_is_answered(serve: Servers) -> None:
    """Row (second battery): client half-closes after sending: answered?"""
    server = serve("working:app")
    with server.connect() as connection, may_be_given_up():
        connection.send(get("/now"))
        connection.finish()
        assert connection.response().status == 200
        connection.expect_close()
    with server.connect() as connection:
        connection.send(get("/gate?half"))
        server.wait_event("begun", path="/gate")
        connection.finish()
        time.sleep(0.3)
        server.open_gate("half")
        assert connection.response().status == 200
        connection.expect_close()


def test_half_closed_pipeline_is_answered(echo: Server) -> None:
    """Everything that was sent whole before the half-close is answered."""
    with echo.connect() as connection, may_be_given_up():
        connection.send(get("/1") + post("/2", b"two") + get("/3"))
        connection.finish()
        assert [connection.response().json()["path"] for _ in range(3)] == ["/1", "/2", "/3"]
        connection.expect_close()


def test_half_closed_in_the_middle_of_a_head(serve: Servers) -> None:
    """A head that can never be whole is refused or dropped, and not when its time is over."""
    server = serve("echo:app", {"timeouts": {"head": 600.0, "keep_alive": 600.0}})
    answer = server.raw(get("/half")[:-4], half_close=True)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert not server.events("called", target="/half")


def test_connections_that_say_nothing_leave_no_trace(echo: Server) -> None:
    """Connects, closes and resets of clients are no errors of the server."""
    for number in range(30):
        with echo.connect() as connection:
            connection.send(get("/gone")[: number * 3])
            if number % 2:
                connection.reset()
    assert echo.exchange(get("/alive")).status == 200
    assert "rror" not in echo.test_log()


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_too_large_a_body_is_told_to_a_client_still_sending(echo: Server, size: int) -> None:
    """RFC 9112 section 9.6, lingering close: the 413 is not destroyed by a reset."""
    with echo.connect() as connection:
        connection.send(get("/", f"Content-Length: {size}", method="POST"))
        # Half of it without reading: the answer must survive what arrives after it.
        connection.offer(b"x" * (size // 2))
        response = connection.response()
        assert response.status == 413
        assert response.closes
        connection.finish()
        connection.expect_close()


def test_too_large_a_body_is_told_to_a_slow_client_that_sends_all_of_it(echo: Server) -> None:
    """Many clients read only when they have sent everything, which may take its time."""
    with echo.connect() as connection:
        connection.send(get("/", "Content-Length: 3000000", method="POST"))
        # Longer than one that sends nothing is waited for.
        for _ in range(30):
            connection.send(b"x" * 100_000)
            time.sleep(0.1)
        assert connection.response().status == 413
        connection.finish()
        connection.expect_close()


def test_a_refused_head_is_told_to_a_client_still_sending(echo: Server) -> None:
    """The same for a malformed request with much behind it."""
    with echo.connect() as connection:
        connection.offer(get("/", "Bad Name: 1", "Content-Length: 1000000", method="POST"))
        connection.offer(b"x" * 1_000_000)
        assert connection.response().status == 400
        connection.finish()
        connection.expect_close()


def test_a_client_that_never_ends_is_not_waited_for(echo: Server) -> None:
    """Lingering is bounded: a refused client that sends nothing and keeps open is let go."""
    with echo.connect() as connection:
        connection.send(get("/", "Bad Name: 1"))
        assert connection.response().status == 400
        connection.expect_close()


def test_client_gone_before_the_response(serve: Servers) -> None:
    """A client that is killed while its request runs costs nothing but its own response."""
    server = serve("working:app")
    with server.connect() as connection:
        connection.send(get("/gate?gone"))
        server.wait_event("begun", path="/gate")
        connection.reset()
    server.open_gate("gone")
    server.wait_event("done", path="/gate")
    assert server.exchange(get("/next")).body == b"done /next"


def test_many_connections_at_once(echo: Server) -> None:
    """Three hundred open connections, each used twice."""
    with all_closed([echo.connect() for _ in range(300)]) as connections:
        for turn in range(2):
            for number, connection in enumerate(connections):
                connection.send(get(f"/{turn}/{number}"))
            for number, connection in enumerate(connections):
                assert connection.response().json()["path"] == f"/{turn}/{number}"


def test_the_reader_of_these_tests_is_strict(echo: Server) -> None:
    """A response that ends early is seen as such: Truncated is no empty promise."""
    head = requests_of("GET / HTTP/1.1\nHost: a\nConnection: close\n\n")
    with echo.connect() as connection:
        connection.send(head)
        response = connection.head()
        with pytest.raises(Truncated):
            connection.take(response.length + 1)
