"""Expect: 100-continue with a chunked body: it arrives as any other, RFC 9110 section 10.1.1."""

import signal
from typing import Any

import pytest

from serving import APPLICATIONS, Server, Servers
from wire import Connection, chunked, get, post, post_chunked

#: Each reads the body in its framework's usual way and answers its length.
FRAMEWORKS = """
import bottle
import falcon
import flask
from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", MIDDLEWARE=[])

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse(str(len(request.body))))]
django_app = get_wsgi_application()

flask_app = flask.Flask(__name__)
flask_app.post("/")(lambda: str(len(flask.request.get_data())))

bottle_app = bottle.Bottle()
bottle_app.post("/")(lambda: str(len(bottle.request.body.read())))


class Root:
    def on_post(self, request, response):
        response.text = str(len(request.bounded_stream.read()))


falcon_app = falcon.App()
falcon_app.add_route("/", Root())


def app(environ, start_response):
    apps = {"flask": flask_app, "django": django_app, "falcon": falcon_app, "bottle": bottle_app}
    return apps[environ["QUERY_STRING"]](environ, start_response)
"""


def asking(target: str, *fields: str, version: str = "1.1") -> bytes:
    """Return the head of a chunked upload whose client waits for 100."""
    framing = ("Transfer-Encoding: chunked", "Expect: 100-continue")
    return get(target, *framing, *fields, version=version, method="POST")


@pytest.fixture(scope="module")
def reading(serve_module: Servers) -> Server:
    """A server whose bodies may have 1000 bytes, of which 100 are in memory."""
    limits = {"body": 1000, "body_memory": 100}
    return serve_module("reading:app", {"limits": limits, "timeouts": {"body": 0.5}})


@pytest.fixture(scope="module")
def frameworks(serve_module: Servers) -> Server:
    """Four frameworks in one application."""
    return serve_module("app:app", {}, {"app.py": FRAMEWORKS})


@pytest.mark.parametrize("name", ["flask", "django", "falcon", "bottle"])
@pytest.mark.parametrize("size", [0, 11, 2_000_000])
def test_frameworks_get_a_chunked_body_that_was_asked_for(
    frameworks: Server, name: str, size: int
) -> None:
    """They look for CONTENT_LENGTH, or undo the coding themselves where it is shown."""
    body = b"x" * size
    pieces = [body[start : start + 100_000] for start in range(0, size, 100_000)]
    with frameworks.connect() as connection:
        connection.send(asking(f"/?{name}"))
        assert connection.interim_response().status == 100
        connection.send(chunked(*pieces))
        response = connection.response()
        assert (response.status, response.body) == (200, str(size).encode())
        connection.send(asking(f"/?{name}"))
        assert connection.interim_response().status == 100
        connection.send(chunked(b"next"))
        assert connection.response().body == b"4"


def flags(connection: Connection, request: bytes, body: bytes = b"") -> Any:
    """Return what the application finds in its environ beside the body."""
    connection.send(request)
    if body:
        assert connection.interim_response().status == 100
        connection.send(body)
    response = connection.response()
    assert response.status == 200
    return response.json()


@pytest.mark.parametrize("pieces", [[], [b"hello"], [b"x" * 99, b"y" * 900, b"z"]], ids=len)
def test_the_environ_is_that_of_any_chunked_body(reading: Server, pieces: list[bytes]) -> None:
    """CONTENT_LENGTH, no Transfer-Encoding, the same bytes; in memory and from a file."""
    with reading.connect() as connection:
        expected = flags(connection, post_chunked("/flags", *pieces))
        assert flags(connection, asking("/flags"), chunked(*pieces)) == expected
        assert expected[1:3] == [str(len(b"".join(pieces))), None]


def test_it_is_gathered_before_the_application_is_called(reading: Server) -> None:
    """A client that is slow with it holds no thread."""
    with reading.connect() as connection:
        connection.send(asking("/read?gathered"))
        assert connection.interim_response().status == 100
        connection.send(b"5\r\nhello\r\n")
        connection.expect_silence(0.1)
        assert not reading.events("called", tag="gathered")
        connection.send(b"0\r\n\r\n")
        assert connection.response().json() == "hello"


def test_no_100_where_the_body_has_come(reading: Server) -> None:
    """Some of it is enough, RFC 9110 section 10.1.1; pipelined requests too."""
    whole = asking("/read") + chunked(b"hello")
    with reading.connect() as connection:
        connection.send(whole + whole + get("/read") + whole[:-5])
        for expected in ("hello", "hello", ""):
            response = connection.response()
            assert (response.json(), response.interim) == (expected, [])
        connection.send(whole[-5:])
        response = connection.response()
        assert (response.json(), response.interim) == ("hello", [])


def test_a_pipelined_request_asks_in_its_turn(reading: Server) -> None:
    """Its 100 comes behind the answer before it."""
    with reading.connect() as connection:
        connection.send(get("/read") + asking("/read"))
        response = connection.response()
        assert (response.json(), response.interim) == ("", [])
        assert connection.interim_response().status == 100
        connection.send(chunked(b"hello"))
        assert connection.response().json() == "hello"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n", 413, id="one byte too many"),
        pytest.param(b"3e9\r\n", 413, id="announced"),
        pytest.param(b"5\r\nhello\r\nzz\r\n", 400, id="malformed"),
        pytest.param(b"5\r\nhello\r\n0\r\nHost: b\r\n", 400, id="trailer"),
        pytest.param(b"0\r\n" + b"A: b\r\n" * 33, 431, id="trailers"),
        pytest.param(b"5\r\nhel", 408, id="stops"),
        pytest.param(b"", 408, id="never comes"),
    ],
)
def test_a_body_that_fails_is_the_servers_to_answer(
    reading: Server, body: bytes, status: int
) -> None:
    """As without Expect: the application is not called."""
    tag = f"failing-{status}-{len(body)}"
    with reading.connect() as connection:
        connection.send(asking(f"/read?{tag}"))
        assert connection.interim_response().status == 100
        connection.offer(body)
        response = connection.response()
        assert (response.status, response.closes) == (status, True)
        connection.finish()
        connection.expect_close()
    assert not reading.events("called", tag=tag)


def test_a_client_that_leaves_instead_of_sending_it(reading: Server) -> None:
    with reading.connect() as connection:
        connection.send(asking("/read?left"))
        assert connection.interim_response().status == 100
    assert reading.exchange(post("/read", b"alive")).json() == "alive"
    assert not reading.events("called", tag="left")


def test_what_is_refused_by_its_head_is_not_asked_for(reading: Server) -> None:
    """HTTP/1.0 has neither the coding nor 100 (RFC 9112 section 6.1, RFC 9110 section 15.2)."""
    for head in (
        asking("/read", version="1.0"),
        asking("/read", "Content-Length: 5"),
        asking("/read", "Expect: other"),
    ):
        response = reading.exchange(head)
        assert response.status in (400, 417)
        assert response.interim == []


def test_an_upload_that_nobody_reads_is_dropped(reading: Server) -> None:
    """The connection goes on."""
    with reading.connect() as connection:
        connection.send(asking("/nothing"))
        assert connection.interim_response().status == 100
        connection.send(chunked(b"hello") + get("/read"))
        assert connection.response().status == 200
        assert connection.response().json() == ""


def test_files_do_not_ask_for_a_body(serve: Servers) -> None:
    """Their answer does not depend on it; what they leave to the application does."""
    routes = [
        {"route": "/s", "directory": "site"},
        {"route": "/", "directory": "site", "fallthrough": True},
    ]
    files = {"site/page.html": "page", "app.py": "from reading import app\n"}
    server = serve(
        "app:app", {"static": routes}, files, environment={"PYTHONPATH": str(APPLICATIONS)}
    )
    for target, status in (("/s/page.html", 405), ("/s/none", 405)):
        response = server.exchange(asking(target))
        assert (response.status, response.interim, response.closes) == (status, [], True)
    asking_get = asking("/s/page.html").replace(b"POST", b"GET", 1)
    response = server.exchange(asking_get)
    assert (response.body, response.interim, response.closes) == (b"page", [], True)
    with server.connect() as connection:
        for _ in range(2):
            connection.send(asking("/read"))
            assert connection.interim_response().status == 100
            connection.send(chunked(b"hello"))
            assert connection.response().json() == "hello"


def test_an_upload_is_asked_for_in_a_drain(serve: Servers) -> None:
    """It was accepted before the signal; its body has the drain's time."""
    server = serve("reading:app")
    with server.connect() as connection:
        connection.send(asking("/read"))
        assert connection.interim_response().status == 100
        server.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        connection.send(chunked(b"hello"))
        response = connection.response()
        assert (response.json(), response.closes) == ("hello", True)
    assert server.wait() == 0
