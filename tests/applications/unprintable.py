"""What an application may have that cannot be shown: stacks, thread names, exceptions."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn
from wsgiref.types import StartResponse, WSGIEnvironment

import events


class Loader:
    """The loader of a module whose source cannot be had."""

    def get_source(self, name: str) -> NoReturn:
        """Raise what linecache does not catch, not even as an Exception."""
        raise SystemExit(f"no source of {name}")


MADE: dict[str, Any] = {"__name__": "made", "__loader__": Loader()}
SOURCE = """
import time
def slow(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
def fail(error):
    raise error
"""
exec(compile(SOURCE, "<made elsewhere>/x.py", "exec"), MADE)


class MuteError(Exception):
    """An exception without a message."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class Nameless(threading.Thread):
    """A thread of which nothing can be told."""

    @property
    def name(self) -> str:
        """Raise."""
        raise SystemExit

    @name.setter
    def name(self, value: str) -> None:
        pass

    @property
    def ident(self) -> NoReturn:
        """Raise."""
        raise KeyboardInterrupt


def start_threads() -> None:
    """Start one whose name is None, and one whose name, which has line ends, is no str."""
    none = threading.Thread(target=lambda: events.wait_gate("threads", 30), daemon=True)
    none._name = None  # type: ignore[attr-defined]
    none.start()
    lines = threading.Thread(target=lambda: events.wait_gate("threads", 30), daemon=True)
    lines.name = "two\nlines \x1b[2J"
    lines.start()
    Nameless(target=lambda: events.wait_gate("threads", 30), daemon=True).start()


start_threads()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Do what the path says."""
    slow: Callable[[float], None] = MADE["slow"]
    match environ["PATH_INFO"]:
        case "/slow":
            events.record("begun")
            slow(float(environ["QUERY_STRING"]))
        case "/fail":
            MADE["fail"](MuteError())
        case "/plain":
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
