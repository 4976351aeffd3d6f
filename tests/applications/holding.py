"""An application that can hold the GIL in a C call, and one whose import waits for a test."""

import os
import threading
import time
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import events

PLAIN = [("Content-Type", "text/plain")]


if "HOLDING_IMPORT_GATE" in os.environ:
    events.record("importing")
    events.wait_gate(os.environ["HOLDING_IMPORT_GATE"])
if "HOLDING_IMPORT_GIL" in os.environ:
    events.record("importing")
    events.hold_gil(os.environ["HOLDING_IMPORT_GIL"])


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Do what the path says: /hold?name keeps the GIL, /sleep?seconds and /gate?name do not."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    events.record("begun", path=path)
    if path == "/hold":
        events.hold_gil(query)
    elif path == "/sleep":
        time.sleep(float(query))
    elif path == "/gate":
        events.wait_gate(query)
    events.record("done", path=path)
    start_response("200 OK", PLAIN)
    return [f"done {path}".encode()]


def startup() -> None:
    """Wait for the gate that the environment names, or raise."""
    events.record("startup", main=threading.current_thread() is threading.main_thread())
    if "STARTUP_GATE" in os.environ:
        events.wait_gate(os.environ["STARTUP_GATE"])
    if "STARTUP_FAILS" in os.environ:
        raise RuntimeError("the database is away")


def shutdown() -> None:
    """Say so, or raise, or hang."""
    events.record("shutdown", main=threading.current_thread() is threading.main_thread())
    if "SHUTDOWN_FAILS" in os.environ:
        raise RuntimeError("the database is still away")
    if "SHUTDOWN_HANGS" in os.environ:
        time.sleep(600)
