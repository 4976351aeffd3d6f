"""Ambiguous messages through real proxies: no byte of one client ever becomes another's.

Attackers send every message of the corpus while victims send marked requests through the same
proxy, over the same few connections to the server.
"""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from proxies import KINDS, Kind, Proxy
from serving import Server, Servers
from test_http_requests import MALFORMED, MALFORMED_TOO
from test_smuggling import MESSAGES, VARIANTS
from wire import Connection, WireError, get, post

ATTACKERS = 8
VICTIMS = 2
#: How long an attacker waits for a proxy that waits for more itself.
ATTACK_SECONDS = 0.1


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def edge(
    request: pytest.FixtureRequest,
    serve_module: Servers,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Server, Proxy]]:
    """A server and a proxy before it."""
    kind: Kind = request.param
    if kind.missing:
        pytest.skip(f"{kind.program} is not installed (Debian: nginx-light, haproxy)")
    server = serve_module("marking:app", {"timeouts": {"body": 1.0, "head": 1.0}})
    proxy = Proxy(kind, tmp_path_factory.mktemp("proxy"), server.port)
    try:
        proxy.wait_ready()
        yield server, proxy
    finally:
        proxy.close()


def hidden_in(data: bytes) -> list[bytes]:
    """A message with Content-Length and something like Transfer-Encoding, armed in both ways.

    Where one reader takes the length and the other the coding, what is left on the connection
    begins a request that swallows the next client's.
    """
    hidden = b"GET /smuggled?MARK HTTP/1.1\r\nHost: test.example\r\nX-Ignore: "
    by_length = b"0\r\n\r\n" + hidden
    by_coding = b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
    head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    return [
        re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % length, head) + body
        for length, body in ((len(by_length), by_length), (4, by_coding))
    ]


def attacks() -> list[bytes]:
    """Every message that there is: with a request behind it, and armed where it can be."""
    plain = [message.data for message in MESSAGES]
    plain += [request for request, _ in (MALFORMED | MALFORMED_TOO).values() if len(request) < 9000]
    behind = get("/smuggled?MARK")
    data = [one + behind for one in plain]
    for one in [*(message.data for message in MESSAGES if message.kind == "TE.TE"), *VARIANTS]:
        if b"Content-Length: " in one:
            data += hidden_in(one)
    return [
        one.replace(b"\r\n", b"\r\nX-Mark: MARK\r\n", 1).replace(b"MARK", b"[attack-%d]" % number)
        for number, one in enumerate(data)
    ]


def marks_in(connection: Connection) -> list[Any]:
    """Return what the application says in every response that comes."""
    found = []
    try:
        while True:
            response = connection.response()
            if response.value("X-Application") == "marking":
                found.append(json.loads(response.body))
            if response.closes:
                return found
    except (WireError, OSError):
        # The proxy ends the connection, waits for more, or answers as HTTP/0.9.
        return found


def attack(proxy: Proxy, number: int, data: bytes) -> list[str]:
    """Send one attack; what is wrong with its answers."""
    with proxy.connect(timeout=ATTACK_SECONDS) as connection:
        connection.offer(data)
        answers = marks_in(connection)
    own = f"[attack-{number}]"
    return [
        f"attack {number} {data!r} got {answer}"
        for answer in answers
        if not set(answer["marks"]) <= {own}
    ]


def be_victim(proxy: Proxy, done: threading.Event) -> tuple[int, list[str]]:
    """Send marked requests until the attacks are over; how many, and what is wrong."""
    wrong = []
    count = 0
    connection = proxy.connect()
    try:
        for count in itertools.count():
            mark = f"[victim-{threading.get_ident() % 1000}{count}]"
            body = f"body of {mark}".encode()
            if count % 2:
                connection.send(post(f"/victim?{mark}", body, f"X-Mark: {mark}"))
            else:
                body = b""
                connection.send(get(f"/victim?{mark}", f"X-Mark: {mark}"))
            response = connection.response()
            expected = {
                "method": "POST" if body else "GET",
                "target": f"/victim?{mark}",
                "body_length": len(body),
                "marks": [mark],
            }
            answer = response.json() if response.status == 200 else {"status": response.status}
            if {key: answer.get(key) for key in expected} != expected:
                wrong.append(f"victim sent {expected} and got {answer}")
            if response.closes or response.status != 200:
                connection.close()
                connection = proxy.connect()
            if done.is_set():
                return count, wrong
    finally:
        connection.close()
    raise AssertionError


def test_no_byte_of_one_client_becomes_anothers(edge: tuple[Server, Proxy]) -> None:
    """Victims see their own marks alone, and every request bears the proxy's number once."""
    server, proxy = edge
    before = len(server.events("called"))
    done = threading.Event()
    with ThreadPoolExecutor(ATTACKERS + VICTIMS) as pool:
        victims = [pool.submit(be_victim, proxy, done) for _ in range(VICTIMS)]
        try:
            sent = attacks()
            found = pool.map(attack, itertools.repeat(proxy), range(len(sent)), sent)
            wrong = [line for lines in found for line in lines]
        finally:
            done.set()
        for victim in victims:
            count, lines = victim.result(30)
            assert count > 100, "the victims hardly had a turn"
            wrong += lines
    calls = server.events("called")[before:]
    numbers = [call["number"] for call in calls]
    wrong += [f"past the proxy: {call}" for call in calls if call["proxy"] is None]
    wrong += [f"two clients in one: {call}" for call in calls if len(call["marks"]) > 1]
    assert wrong == []
    assert len(set(numbers)) == len(numbers), "one request of the proxy became two"
    reached = {mark for call in calls for mark in call["marks"]}
    # Not everything stops at the proxy, or this test would say nothing about the server.
    assert sum(mark.startswith("[attack") for mark in reached) > 20
