"""Ambiguous messages: refused where they could be read in two ways, so that none hides a request.

The corpus is tests/smuggling/corpus.toml. tests/test_smuggling_proxies.py sends the same through
real proxies.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving import Server, Servers
from wire import Connection, get

Calls = Callable[[], list[str]]

CORPUS = Path(__file__).resolve().parent / "smuggling" / "corpus.toml"

#: Octets that obfuscate a name or a value; none may stand anywhere but where the grammar has it.
ODD_OCTETS = [
    *range(0x00, 0x09),
    *range(0x0A, 0x21),
    0x22,
    0x2C,
    0x3B,
    0x7F,
    0x80,
    0x85,
    0xA0,
    0xAD,
    0xFF,
]


@dataclass(frozen=True)
class Message:
    """One entry of the corpus."""

    name: str
    kind: str
    rule: str
    answer: list[int]
    data: bytes

    @property
    def method(self) -> str:
        """The method, for reading the answer."""
        return self.data.lstrip(b"\r\n").partition(b" ")[0].decode("latin-1")


def read_corpus() -> list[Message]:
    """Return every message of the corpus."""
    with open(CORPUS, "rb") as file:
        entries = tomllib.load(file)
    return [
        Message(
            name,
            entry["kind"],
            entry["rule"],
            entry["answer"],
            "".join(entry["bytes"]).encode("latin-1"),
        )
        for name, entry in entries.items()
    ]


MESSAGES = read_corpus()
REMNANT = get("/smuggled?behind", "X-Mark: [remnant-1]")
VARIANTS = [
    b"POST /attack HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + line + b"\r\n0\r\n\r\n"
    for octet in ODD_OCTETS
    for odd in [bytes([octet])]
    for line in [
        odd + b"Transfer-Encoding: chunked\r\n",
        b"Transfer" + odd + b"Encoding: chunked\r\n",
        b"Transfer-Encoding" + odd + b": chunked\r\n",
        b"Transfer-Encoding:" + odd + b"chunked\r\n",
        b"Transfer-Encoding: chunked" + odd + b"\r\n",
        b"X-Field: x\r\n" + odd + b"Transfer-Encoding: chunked\r\n",
        # Visible octets are part of the value there, and nothing is hidden.
        b"X-Field: x" + (odd if octet < 0x20 else b"\x7f") + b"Transfer-Encoding: chunked\r\n",
    ]
]


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """One server for the whole module: a refused message may harm only its own connection."""
    return serve_module("marking:app")


@pytest.fixture
def calls(server: Server) -> Calls:
    """Return a function that gives the targets that the application was called for in this test."""
    before = len(server.events("called"))
    return lambda: [event["target"] for event in server.events("called")[before:]]


def expect_refusal(connection: Connection, statuses: list[int], method: str = "POST") -> None:
    """The next response refuses, closes, and is the last."""
    response = connection.response(method)
    assert response.status in statuses
    assert response.closes, response.fields
    assert response.value("X-Application") is None
    connection.expect_close()


REFUSED = [message for message in MESSAGES if message.answer != [200]]
ACCEPTED = [message for message in MESSAGES if message.answer == [200]]


def test_the_corpus_is_whole() -> None:
    """No kind of attack that was named is missing, and every rule is a section."""
    assert {message.kind for message in MESSAGES} == {
        "CL.0",
        "CL.TE",
        "Content-Length",
        "Expect",
        "Host and target",
        "TE.0",
        "TE.CL",
        "TE.TE",
        "chunked",
        "field names",
        "line ends",
        "obs-fold",
        "versions",
    }
    assert all(message.rule.startswith(("RFC 9110 ", "RFC 9112 ")) for message in MESSAGES)
    assert len({message.data for message in MESSAGES}) == len(MESSAGES) >= 300


@pytest.mark.parametrize("message", REFUSED, ids=lambda message: message.name)
def test_ambiguous_is_refused(server: Server, calls: Calls, message: Message) -> None:
    """It is refused, the connection ends, and neither it nor what is behind it is served."""
    with server.connect() as connection:
        connection.offer(message.data + REMNANT)
        expect_refusal(connection, message.answer, message.method)
    assert calls() == []


def test_ambiguous_after_a_good_request_is_refused(server: Server, calls: Calls) -> None:
    """The same on a connection that has served: what is before is answered, nothing behind."""
    for number, message in enumerate(REFUSED):
        with server.connect() as connection:
            connection.offer(get(f"/good?{number}") + message.data + REMNANT)
            assert connection.response().json()["target"] == f"/good?{number}", message
            expect_refusal(connection, message.answer, message.method)
    assert calls() == [f"/good?{number}" for number in range(len(REFUSED))]


def test_every_odd_octet_in_transfer_encoding_is_refused(server: Server, calls: Calls) -> None:
    """TE.TE with each octet that some reader skips, before, in and behind name and value."""
    # One of them is the field as it should be, beside Content-Length: refused for that.
    for data in VARIANTS:
        with server.connect() as connection:
            connection.offer(data + REMNANT)
            expect_refusal(connection, [400])
    assert calls() == []


@pytest.mark.parametrize("message", ACCEPTED, ids=lambda message: message.name)
def test_a_request_in_a_body_stays_there(server: Server, calls: Calls, message: Message) -> None:
    """With one reading only there is one answer, and the next request begins where it should."""
    with server.connect() as connection:
        connection.send(message.data)
        first = connection.response(message.method)
        assert first.status == 200
        assert not first.closes, first.fields
        connection.send(get("/next"))
        assert connection.response().json()["target"] == "/next"
        connection.expect_silence(0.02)
    targets = calls()
    assert len(targets) == 2
    assert not any("smuggled" in target for target in targets)


def test_a_body_that_was_not_asked_for_is_not_a_request(server: Server, calls: Calls) -> None:
    """Expect: a client that got its answer without a 100 may send the body or not: both end."""
    with server.connect() as connection:
        connection.send(get("/nothing", "Expect: 100-continue", "Content-Length: 9", method="POST"))
        response = connection.response("POST")
        assert response.status == 200
        assert response.interim == []
        connection.offer(REMNANT)
        assert response.closes, response.fields
        connection.expect_cut()
    assert calls() == ["/nothing"]


@pytest.mark.parametrize(
    "head",
    [
        get("/last", "Connection: close"),
        get("/last", version="1.0"),
        get("/last", "Connection: keep-alive, close", version="1.0"),
        get("/last", "Content-Length: 0", "Connection: close", method="POST"),
    ],
    ids=["close", "http_1_0", "http_1_0_both", "post"],
)
def test_nothing_behind_the_last_request_is_served(
    server: Server, calls: Calls, head: bytes
) -> None:
    """A pipelined remnant behind a request that ends the connection is dropped."""
    with server.connect() as connection:
        connection.offer(head + REMNANT)
        assert connection.response().json()["target"] == "/last"
        connection.expect_cut()
    assert calls() == ["/last"]
