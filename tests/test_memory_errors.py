"""Python's memory runs out at each allocation in turn: a 500 or a closed connection, no more."""

import pytest

from serving import Server, Servers
from wire import WireError, get, post

pytest.importorskip("_testcapi", reason="this Python has no way to have an allocation fail")

#: Allocations after the failing one is asked for: the rest of that request, and the next one.
ALLOCATIONS = 150

REQUESTS = {
    "ok": get("/ok"),
    "fields": get("/ok?query", "Cookie: a", "Cookie: b", "X-Own: c", "Accept: d"),
    "upload": post("/upload", b"u" * 3000),
    "stream": get("/stream?5"),
    "write": get("/write"),
    "hints": get("/early"),
    "head": get("/ok", method="HEAD"),
    "old": get("/stream?2", version="1.0"),
    "parked": get("/parking"),
    "suspended": get("/suspending"),
    "hints after a wait": get("/hinting"),
    "file": get("/file"),
    "blocks": get("/blocks"),
}


@pytest.fixture(scope="module")
def starving(serve_module: Servers) -> Server:
    """A server with one thread, whose allocations come one after the other."""
    server = serve_module("exhausting:app", {"concurrency": {"threads": 1}})
    server.has_memory = False
    for request in REQUESTS.values():
        server.exchange(request, method=method_of(request))
    return server


def method_of(request: bytes) -> str:
    return request.split(b" ", 1)[0].decode()


def exchange(server: Server, request: bytes) -> int:
    """Return the status of the answer, 0 where the connection ended without a whole one."""
    with server.connect() as connection:
        connection.offer(request)
        try:
            return connection.response(method_of(request)).status
        except WireError as error:
            # HTTP/1.0 can tell a body that was cut only by a reset.
            if "closed in" not in str(error) and "reset" not in str(error):
                raise
    return 0


def recover(server: Server) -> None:
    """The memory is back, as soon as the application can say so."""
    for _ in range(30):
        if exchange(server, get("/memory")) == 200:
            return
    raise AssertionError("no answer though memory is there")


def balance(server: Server) -> tuple[int, int]:
    """Return how many iterables are open, and how many contexts there are."""
    still_open, contexts = server.exchange(get("/balance")).body.split()
    return int(still_open), int(contexts)


@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("kind", REQUESTS)
def test_each_allocation_fails(starving: Server, kind: str, count: int) -> None:
    """One allocation fails, or two or twenty in a row, each time one later."""
    starving.errors_expected = True
    request = REQUESTS[kind]
    contexts = balance(starving)[1]
    statuses = []
    for number in range(ALLOCATIONS):
        assert exchange(starving, get(f"/memory?{number}&{count}")) in (200, 500, 0)
        statuses.append(exchange(starving, request))
        recover(starving)
        assert exchange(starving, request) == 200
    assert set(statuses) <= {200, 500, 0}
    # The last failure would have come after the request.
    assert statuses[-1] == 200
    assert set(statuses) != {200}
    starving.wait_log("MemoryError")
    # Every iterable was closed, and no context of a request is left.
    still_open, contexts_after = balance(starving)
    assert still_open == 0
    assert contexts_after <= contexts + 3
