"""Answers with what a handler finds in its environ, types included."""

import json
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment


def described(value: Any) -> Any:
    """Return a value as JSON has it; anything but a plain one as its type's name."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if type(value) is tuple:
        return list(value)
    return f"<{type(value).__name__}>"


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return the environ, what is odd about it, and leave something behind in it."""
    odd = [repr(key) for key in environ if type(key) is not str]
    odd += [
        key
        for key, value in environ.items()
        if type(value) is str and any(ord(character) > 0xFF for character in value)
    ]
    answer = {
        "type": type(environ).__name__,
        "odd": odd,
        "callables": sorted(key for key, value in environ.items() if callable(value)),
        "environ": {key: described(value) for key, value in environ.items()},
    }
    environ["test.left_behind"] = "by an earlier request"
    environ["HTTP_X_LEFT_BEHIND"] = "by an earlier request"
    environ["SCRIPT_NAME"] = "/changed"
    environ["wsgi.url_scheme"] = "changed"
    body = json.dumps(answer).encode("ascii")
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    )
    return [body]
