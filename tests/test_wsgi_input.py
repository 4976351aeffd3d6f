"""wsgi.input: each method with each argument, each framing, in memory and from a file."""

import hashlib
import random
from typing import Any

import pytest

from serving import Server, Servers
from wire import get, post, post_chunked

BODY = b"abc\ndefgh\r\n\nlast without end"
LINES = ["abc\n", "defgh\r\n", "\n", "last without end"]
TEXT = BODY.decode()

CODINGS = ["length", "chunked", "expect length", "expect chunked"]


@pytest.fixture(scope="module", params=["memory", "file"])
def server(serve_module: Servers, request: pytest.FixtureRequest) -> Server:
    """A server that keeps bodies in memory, and one that keeps them in temporary files."""
    memory = 1 << 20 if request.param == "memory" else 4
    return serve_module("reading:app", {"limits": {"body_memory": memory}})


def ask(server: Server, way: str, body: bytes = BODY, coding: str = "length") -> Any:
    """Return what the application got that read the body in this way."""
    pieces = [body[start : start + 5] for start in range(0, len(body), 5)]
    request = post_chunked(f"/{way}", *pieces) if "chunked" in coding else post(f"/{way}", body)
    with server.connect() as connection:
        if "expect" in coding:
            head, _, rest = request.partition(b"\r\n\r\n")
            connection.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
            assert connection.interim_response().status == 100
            connection.send_slowly(rest, size=11 if len(rest) < 200 else 997, pause=0.002)
        else:
            connection.send(request)
        response = connection.response()
        assert response.status == 200, response.body
        result = response.json()
        # Whatever was read, the next request begins where it should.
        if not response.closes:
            connection.send(post("/read", b"next"))
            assert connection.response().json() == "next"
        return result


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    ("way", "expected"),
    [
        pytest.param("read", TEXT, id="read()"),
        pytest.param("read_negative", TEXT, id="Row: `wsgi.input.read(-1)`"),
        pytest.param("read_3_rest", ["abc", TEXT[3:]], id="Row: `read(3)` then `read()`"),
        pytest.param("read_zero", ["", TEXT], id="read(0)"),
        pytest.param("read_too_much", TEXT, id="read(more than there is)"),
        pytest.param("read_beyond", [TEXT, "", ""], id="read beyond the end"),
        pytest.param("readline", LINES, id="Row: `readline()` keeps newline and advances"),
        pytest.param("readline_negative", LINES, id="readline(-1)"),
        pytest.param("readline_zero", ["", TEXT], id="readline(0)"),
        pytest.param("readline_read", ["abc\n", TEXT[4:]], id="readline then read"),
        pytest.param("readline_beyond", [TEXT, ""], id="readline beyond the end"),
        pytest.param(
            "readline_size",
            ["abc", "\n", "def", "gh\r", "\n", "\n", "las", "t w", "ith", "out", " en", "d"],
            id="Row: `readline(size)` honours size",
        ),
        pytest.param("readlines", LINES, id="Row: `readlines()`"),
        pytest.param("readlines_negative", LINES, id="readlines(-1)"),
        pytest.param("iterate", LINES, id="Row: iteration"),
        pytest.param("next", ["abc\n", TEXT[4:]], id="next then read"),
    ],
)
def test_ways_of_reading(server: Server, way: str, expected: Any, coding: str) -> None:
    """Rows: each method of wsgi.input, as the id says."""
    assert ask(server, way, coding=coding) == expected


@pytest.mark.parametrize("coding", CODINGS)
def test_read_in_pieces(server: Server, coding: str) -> None:
    """read(n) returns at most n bytes and nothing only at the end."""
    pieces = ask(server, "read_pieces", coding=coding)
    assert "".join(pieces) == TEXT
    assert all(0 < len(piece) <= 7 for piece in pieces)


@pytest.mark.parametrize("coding", CODINGS)
def test_readlines_with_a_hint(server: Server, coding: str) -> None:
    """The hint may be ignored, PEP 3333 says; what is returned are whole lines from the start."""
    lines = ask(server, "readlines_hint", coding=coding)
    assert lines
    assert lines == LINES[: len(lines)]


@pytest.mark.parametrize("way", ["read", "readlines", "iterate", "readline", "read_pieces"])
@pytest.mark.parametrize(
    "request_without_body",
    [get("/{}"), post("/{}", b""), post_chunked("/{}")],
    ids=["none", "length", "chunked"],
)
def test_reading_nothing(server: Server, way: str, request_without_body: bytes) -> None:
    """Without a body every method returns at once, and nothing."""
    request = request_without_body.replace(b"{}", way.encode())
    assert server.exchange(request).json() == ("" if way == "read" else [])


def test_chunked_body_is_readable(server: Server) -> None:
    """Row: chunked request body readable; and `wsgi.input_terminated` = True."""
    terminated, length, _, body = ask(server, "flags", coding="chunked")
    assert terminated is True
    assert length in (None, str(len(BODY)))
    assert body == TEXT


def test_input_is_terminated_with_a_length_too(server: Server) -> None:
    """Row: `wsgi.input_terminated` = True."""
    assert ask(server, "flags")[:2] == [True, str(len(BODY))]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("way", ["digest", "digest_pieces", "digest_lines"])
def test_any_bytes(server: Server, way: str, coding: str) -> None:
    """A binary body of some size comes through whole."""
    body = random.Random(7).randbytes(20_000)
    assert ask(server, way, body, coding) == hashlib.sha256(body).hexdigest()


def test_one_very_long_line(server: Server) -> None:
    """A line may be longer than any buffer."""
    body = b"x" * 2_000_000 + b"\n" + b"y" * 300_000
    request = post("/digest_lines", body)
    assert server.exchange(request).json() == hashlib.sha256(body).hexdigest()


def test_app_gets_the_whole_body_or_reads_it_as_it_comes(serve: Servers) -> None:
    """Row: app starts before the body is complete (streaming input): buffered here.

    But for a client that waits with Expect and a length: the application asks for its body.
    """
    server = serve("reading:app")
    with server.connect() as connection:
        request = post("/read?buffered", b"hello")
        connection.send(request[:-1])
        connection.expect_silence(0.2)
        assert not server.events("called")
        connection.send(request[-1:])
        assert connection.response().json() == "hello"
    with server.connect() as connection:
        head = get("/read?expect", "Content-Length: 5", "Expect: 100-continue", method="POST")
        connection.send(head)
        server.wait_event("called", tag="expect")
        assert connection.interim_response().status == 100
        connection.send(b"hello")
        assert connection.response().json() == "hello"


# Bodies that never become whole


def test_client_dies_mid_upload(server: Server) -> None:
    """Row (second battery): client dies mid-upload (50 of 100 KB, Content-Length): app sees."""
    with server.connect() as connection:
        connection.send(post("/read?mid-upload", b"x" * 100_000)[:-50_000])
    with server.connect() as connection:
        connection.send(post("/read?mid-upload-reset", b"x" * 100_000)[:-50_000])
        connection.reset()
    assert server.exchange(post("/read", b"alive")).json() == "alive"
    assert not server.events("called", tag="mid-upload")
    assert not server.events("called", tag="mid-upload-reset")


@pytest.mark.parametrize("missing", [1, 2, 5, 8])
def test_client_dies_mid_chunked_upload(server: Server, missing: int) -> None:
    """Row (second battery): client dies mid-chunked-upload: app sees."""
    tag = f"mid-chunked-{missing}"
    with server.connect() as connection:
        connection.send(post_chunked(f"/read?{tag}", b"hello")[:-missing])
    assert server.exchange(post("/read", b"alive")).json() == "alive"
    assert not server.events("called", tag=tag)


def test_half_closed_upload(server: Server) -> None:
    """A client that half-closes in the middle of its body is told, or dropped, at once."""
    request = post("/read?half-closed", b"x" * 100)[:-1]
    answer = server.raw(request, half_close=True, timeout=5)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert not server.events("called", tag="half-closed")


def test_malformed_chunk(server: Server) -> None:
    """Row (second battery): malformed chunk after 5 good bytes: status, app sees."""
    with server.connect() as connection:
        head = get("/read?bad-chunk", "Transfer-Encoding: chunked", method="POST")
        connection.send(head + b"5\r\nhello\r\nZZ\r\n")
        response = connection.response()
        assert response.status == 400
        assert response.closes
        connection.finish()
        connection.expect_close()
    assert not server.events("called", tag="bad-chunk")


@pytest.mark.parametrize("way", ["read", "read_pieces", "readline", "readlines", "iterate"])
@pytest.mark.parametrize("end", ["close", "reset", "half-close"])
def test_streamed_body_that_fails(serve: Servers, way: str, end: str) -> None:
    """Where the application has begun to read, a body that never gets whole is its exception."""
    server = serve("reading:app")
    with server.connect() as connection:
        fields = ("Content-Length: 100", "Expect: 100-continue")
        connection.send(get(f"/{way}", *fields, method="POST"))
        assert connection.interim_response().status == 100
        connection.send(b"hello\n" * 3)
        if end == "reset":
            connection.reset()
        elif end == "half-close":
            connection.finish()
        elif end == "close":
            connection.close()
        failed = server.wait_event("failed", way=way)[0]
        assert {"OSError", "ValueError"} & set(failed["kinds"]), failed
        assert failed["message"]
    assert not server.events("finished")
    assert server.exchange(post("/read", b"alive")).json() == "alive"


def test_streamed_body_that_stops(serve: Servers) -> None:
    """timeouts.body frees the thread of an application that waits for a silent client."""
    server = serve("reading:app", {"timeouts": {"body": 0.3}, "concurrency": {"threads": 2}})
    with server.connect() as connection:
        connection.send(get("/read", "Content-Length: 9", "Expect: 100-continue", method="POST"))
        assert connection.interim_response().status == 100
        connection.send(b"hello")
        failed = server.wait_event("failed")[0]
        assert {"OSError", "ValueError"} & set(failed["kinds"]), failed
        assert server.exchange(post("/read", b"alive")).json() == "alive"


def test_input_of_a_request_long_over(serve: Servers) -> None:
    """An application that keeps wsgi.input gets an error or nothing, and never another's body."""
    server = serve("reading:app")
    assert server.exchange(post("/keep", b"mine")).json() == "mi"
    for _ in range(10):
        server.exchange(post("/read", b"not yours"))
    with server.connect() as connection:
        connection.send(post("/kept", b"not yours either"))
        answer = connection.response().json()
    assert answer in ("", "ne") or answer.startswith("refused: ")
