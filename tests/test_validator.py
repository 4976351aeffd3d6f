"""wsgiref.validate around the applications: the server's side of PEP 3333, checked by another."""

import pytest

from serving import Server, Servers
from wire import Response, get, post, post_chunked


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """One server of the applications inside the validator."""
    return serve_module("validated:app")


BODIES = {
    "/list": b"hello body",
    "/generator": b"hello body",
    "/write": b"hello body and the rest",
    "/file": b"hello!",
    "/errors": b"",
    "/exc_info": b"sorry",
    "/lines": b"body|",
}
STATUSES = {"/generator": 201, "/exc_info": 409}


def check(path: str, response: Response, body: bytes) -> None:
    """The response is what the application under the validator made."""
    assert response.status == STATUSES.get(path, 200), response.body
    assert response.body == body


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_post(server: Server, path: str, version: str) -> None:
    """With a body of a known length."""
    check(path, server.exchange(post(path, b"body", version=version)), BODIES[path])


@pytest.mark.parametrize("path", BODIES)
def test_post_chunked(server: Server, path: str) -> None:
    """With a body in chunks."""
    check(path, server.exchange(post_chunked(path, b"bo", b"dy")), BODIES[path])


@pytest.mark.parametrize("path", BODIES)
def test_get(server: Server, path: str) -> None:
    """Without a body."""
    expected = BODIES[path].replace(b"body", b"")
    check(path, server.exchange(get(f"{path}?query=1", "Cookie: a=b", "X-Empty:")), expected)


@pytest.mark.parametrize("path", BODIES)
def test_head(server: Server, path: str) -> None:
    """HEAD, whose iterable must be closed as well: the validator complains if it is not."""
    with server.connect() as connection:
        for _ in range(3):
            connection.send(get(path, method="HEAD"))
            check(path, connection.response("HEAD"), b"")


@pytest.mark.parametrize("path", BODIES)
def test_keep_alive(server: Server, path: str) -> None:
    """Many on one connection."""
    with server.connect() as connection:
        for _ in range(5):
            connection.send(post(path, b"body"))
            check(path, connection.response(), BODIES[path])


def test_unusual_requests(server: Server) -> None:
    """Targets and fields that a careless environ gets wrong."""
    requests = [
        get("/list?", "X_Under: 1", "Content_Type: text/plain"),
        get("http://other.example/list", "Content-Type: text/plain"),
        get("/list", "Transfer-Encoding: chunked", method="PUT") + b"0\r\n\r\n",
        get("/list", "Content-Length: 0", method="DELETE"),
        b"GET /list HTTP/1.0\r\n\r\n",
    ]
    for request in requests:
        check("/list", server.exchange(request), b"hello ")


def test_errors_are_in_the_log(server: Server) -> None:
    """What goes to wsgi.errors is found there."""
    assert server.exchange(get("/errors")).status == 200
    server.wait_log("written to wsgi.errors")
    server.wait_log("two lines")
