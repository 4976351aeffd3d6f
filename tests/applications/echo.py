"""Answers with what it was asked, as JSON, and records each call."""

import json
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import events


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read the whole body and return it with the environ's strings."""
    events.record("called", target=environ.get("RAW_URI", environ["PATH_INFO"]))
    body = environ["wsgi.input"].read()
    strings = {key: value for key, value in environ.items() if type(value) is str}
    answer = json.dumps(
        {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ.get("QUERY_STRING"),
            "host": environ.get("HTTP_HOST"),
            "protocol": environ["SERVER_PROTOCOL"],
            "body": body.decode("latin-1"),
            "environ": strings,
        }
    ).encode("ascii")
    start_response(
        "200 OK",
        [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(answer))),
            ("X-Application", "echo"),
        ],
    )
    return [answer]


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the smallest response, with the path in it."""
    answer = f"hello {environ['PATH_INFO']}".encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


def create_app(name: str = "made") -> object:
    """Return an application: the factory form of app.target."""
    events.record("factory", name=name)
    return app
