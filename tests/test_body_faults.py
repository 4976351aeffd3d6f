"""A body that fails while the application reads it is answered by the server, and so logged.

The application reads a body as it comes where the client sent Expect: 100-continue with a length.
"""

import itertools
import json
import re
from typing import Any

import pytest

from admin_client import AdminClient, serve_with_admin
from metrics import Metrics
from serving import Server, Servers, wait_until
from wire import Connection, get, post

#: Each reads the body in its framework's usual way, and has a page of its own for errors.
FRAMEWORKS = """
import bottle
import falcon
import flask
from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", MIDDLEWARE=[])

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

urlpatterns = [
    path("django", lambda request: HttpResponse(str(len(request.body)))),
    path("django-form", lambda request: HttpResponse(str(len(request.POST)))),
]
django_app = get_wsgi_application()

flask_app = flask.Flask(__name__)
flask_app.post("/flask", endpoint="data")(lambda: str(len(flask.request.get_data())))
flask_app.post("/flask-form", endpoint="form")(lambda: str(len(flask.request.form)))
flask_app.post("/flask-json", endpoint="json")(lambda: str(len(flask.request.get_json(force=True))))

bottle_app = bottle.Bottle()
bottle_app.post("/bottle")(lambda: str(len(bottle.request.body.read())))
bottle_app.post("/bottle-form")(lambda: str(len(bottle.request.forms)))


class Root:
    def on_post(self, request, response):
        response.text = str(len(request.bounded_stream.read()))


class Media:
    def on_post(self, request, response):
        response.text = str(len(request.media))


falcon_app = falcon.App()
falcon_app.add_route("/falcon", Root())
falcon_app.add_route("/falcon-media", Media())


def app(environ, start_response):
    apps = {"flask": flask_app, "django": django_app, "falcon": falcon_app, "bottle": bottle_app}
    name = environ["PATH_INFO"].strip("/").partition("-")[0]
    return apps[name](environ, start_response)
"""

NUMBERS = itertools.count()
SETTINGS: dict[str, Any] = {
    "timeouts": {"body": 0.3},
    "log": {"access": "access", "format": "json"},
}

#: Whatever a handler does after the fault, the client gets the server's answer.
SUPERSEDED = [
    "escapes",
    "wraps",
    "wraps_twice",
    "answers",
    "swallows",
    "writes",
    "writes_on",
    "replaces",
    "sends_a_file",
    "is_lazy",
    "begins_late",
    "retries",
    "reads_elsewhere",
]


class Faulty:
    """A server, and what it counts and logs of one request."""

    def __init__(self, server: Server, admin: AdminClient) -> None:
        self.server = server
        self.admin = admin
        self.before = self.counters()
        self.target = ""

    def counters(self) -> dict[str, float]:
        """Return those that a fault may change."""
        fields = "Accept: application/openmetrics-text; version=1.0.0"
        metrics = Metrics(self.admin.ask("/metrics", fields).body.decode())
        return {
            "timeouts": metrics.value("timeouts", phase="body"),
            "dropped": metrics.value("dropped", phase="app"),
            "exceptions": metrics.value("app_exceptions"),
        }

    def counted(self) -> dict[str, int]:
        """Return what has changed."""
        after = self.counters()
        changes = {key: int(after[key] - self.before[key]) for key in after}
        return {key: change for key, change in changes.items() if change}

    def statuses(self) -> list[int]:
        """Return those of the access log for this request."""
        path = self.server.folder / "access"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines]
        return [record["status"] for record in records if record["target"] == self.target]

    def expect(self, status: int, **counted: int) -> None:
        """One access record with this status, and these counters."""
        wait_until(self.statuses, 5, lambda: "there is no access record")
        assert self.statuses() == [status]
        wait_until(lambda: self.counted() == counted, 5, lambda: f"{self.counted()}, not {counted}")

    def begin(self, path: str, content_type: str = "text/plain") -> Connection:
        """Return a connection whose body has been asked for, and is half sent."""
        self.target = f"{path}?{next(NUMBERS)}"
        fields = ("Content-Length: 100", "Expect: 100-continue", f"Content-Type: {content_type}")
        connection = self.server.connect()
        connection.send(get(self.target, *fields, method="POST"))
        assert connection.interim_response().status == 100
        connection.send(b"a=half")
        return connection


@pytest.fixture(scope="module")
def plain(serve_module: Servers) -> tuple[Server, AdminClient]:
    """Handlers without a framework."""
    return serve_with_admin(serve_module, "failing_bodies:app", SETTINGS)


@pytest.fixture(scope="module")
def framed(serve_module: Servers) -> tuple[Server, AdminClient]:
    """Four frameworks in one application."""
    return serve_with_admin(serve_module, "app:app", SETTINGS, files={"app.py": FRAMEWORKS})


@pytest.mark.parametrize("handler", SUPERSEDED)
def test_a_body_that_stops_is_408_whatever_the_handler_makes_of_it(
    plain: tuple[Server, AdminClient], handler: str
) -> None:
    """One line as for a body that was gathered, and no traceback."""
    faulty = Faulty(*plain)
    with faulty.begin(f"/{handler}") as connection:
        response = connection.response()
        assert (response.status, response.closes) == (408, True)
        assert response.body == b"408 Request Timeout: body_timeout\n"
        connection.finish()
        connection.expect_close()
    faulty.expect(408, timeouts=1)
    (line,) = faulty.server.test_log().splitlines()
    assert re.search("refused.*408.*body_timeout", line), line
    if handler == "retries":
        assert faulty.server.events("retried")[-1]["kinds"] == ["TimeoutError"]
    if handler == "writes_on":
        assert len(faulty.server.events("write failed")) == 3
    assert faulty.server.exchange(post(f"/{handler}", b"whole")).status < 500


@pytest.mark.parametrize(
    "target",
    [
        "flask",
        "flask-form",
        "flask-json",
        "django",
        "django-form",
        "falcon",
        "falcon-media",
        "bottle",
        "bottle-form",
    ],
)
def test_a_body_that_stops_is_408_and_not_the_frameworks_500(
    framed: tuple[Server, AdminClient], target: str
) -> None:
    """A framework may log what it caught; the server has one line, and counts no exception."""
    faulty = Faulty(*framed)
    is_form = target.endswith("-form")
    kind = "application/x-www-form-urlencoded" if is_form else "application/json"
    with faulty.begin(f"/{target}", kind) as connection:
        response = connection.response()
        assert (response.status, response.closes) == (408, True)
        assert response.body == b"408 Request Timeout: body_timeout\n"
    faulty.expect(408, timeouts=1)
    faulty.server.wait_log("refused.*408.*body_timeout")
    assert "application error" not in faulty.server.test_log()


def test_the_response_of_a_handler_that_had_answered_stands(
    plain: tuple[Server, AdminClient],
) -> None:
    """It has called start_response before the fault, and knows what came."""
    faulty = Faulty(*plain)
    with faulty.begin("/has_answered") as connection:
        response = connection.response()
        assert (response.status, response.closes) == (202, True)
        assert response.body == b"as far as it came"
    faulty.expect(202, timeouts=1)
    assert faulty.server.test_log() == ""


def test_a_response_that_was_begun_is_cut(plain: tuple[Server, AdminClient]) -> None:
    """The client sees that something is missing; it is no fault of the application."""
    faulty = Faulty(*plain)
    with faulty.begin("/has_sent") as connection:
        assert connection.head().status == 200
        assert connection.chunk() == b"begun "
        connection.expect_cut()
    faulty.expect(200, timeouts=1)
    assert faulty.server.test_log() == ""


@pytest.mark.parametrize(
    ("handler", "error"), [("has_a_bug", "UploadError: a bug"), ("says_nothing", "AssertionError")]
)
def test_an_error_of_the_applications_own_is_reported_all_the_same(
    plain: tuple[Server, AdminClient], handler: str, error: str
) -> None:
    """It does not come from the read. The client is answered for what it has done itself."""
    faulty = Faulty(*plain)
    with faulty.begin(f"/{handler}") as connection:
        assert connection.response().status == 408
    faulty.expect(408, timeouts=1, exceptions=1)
    faulty.server.wait_log(error)
    faulty.server.wait_log("refused.*408.*body_timeout")


@pytest.mark.parametrize("handler", SUPERSEDED)
@pytest.mark.parametrize("way", ["close", "reset", "half-close"])
def test_a_client_that_leaves_gets_no_answer_whatever_the_handler_makes_of_it(
    plain: tuple[Server, AdminClient], handler: str, way: str
) -> None:
    """It is 499 and not what the framework would have said; there is no traceback."""
    faulty = Faulty(*plain)
    with faulty.begin(f"/{handler}") as connection:
        if way == "reset":
            connection.reset()
        elif way == "half-close":
            connection.finish()
            connection.expect_close()
    faulty.expect(499, dropped=1)
    assert faulty.server.test_log() == ""


@pytest.mark.parametrize("target", ["flask", "django", "falcon", "bottle"])
def test_a_client_that_leaves_is_no_500_of_a_framework(
    framed: tuple[Server, AdminClient], target: str
) -> None:
    faulty = Faulty(*framed)
    faulty.begin(f"/{target}").close()
    faulty.expect(499, dropped=1)
    faulty.server.errors_expected = True  # what the framework logs
    assert "application error" not in faulty.server.test_log()
