"""Answers with every mark in the request, and records each call: whose bytes came together?

A mark is a client's own: `[client-number]` in the target, in a field or in the body.
"""

import json
import re
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import events

MARK = re.compile(r"\[[a-z]+-[0-9]+\]")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read the whole body, but for /nothing, and return what was asked, as JSON."""
    target = environ["RAW_URI"]
    body = b"" if target.startswith("/nothing") else environ["wsgi.input"].read()
    fields = {key: value for key, value in environ.items() if key.startswith("HTTP_")}
    found = {
        "method": environ["REQUEST_METHOD"],
        "target": target,
        "body_length": len(body),
        "marks": sorted(
            {*MARK.findall(" ".join([target, *fields.values(), body.decode("latin-1")]))}
        ),
        "proxy": fields.get("HTTP_X_PROXY"),
        "number": fields.get("HTTP_X_PROXY_NUMBER"),
    }
    events.record("called", **found)
    answer = json.dumps(found).encode("ascii")
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Application", "marking")])
    return [answer]
