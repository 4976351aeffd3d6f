"""Handlers that wait for events of their own in unusual ways; see also suspending.py."""

import contextlib
import gc
import io
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import events
import suspending
from suspending import PLAIN, query

wakers: dict[str, Callable[[], None]] = {}
kept: list[WSGIEnvironment] = []


def plain(start_response: StartResponse, body: bytes) -> Iterable[bytes]:
    """Answer at once."""
    start_response("200 OK", PLAIN)
    return [body]


def how(environ: WSGIEnvironment) -> bytes:
    """Say how the last wait ended."""
    return b"timeout" if environ["x-wsgiorg.fdevent.timeout"] else b"resumed"


def wake(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Resumes the response that waits under a name."""
    wakers.pop(query(environ, "name"))()
    return plain(start_response, b"woken")


def asked_before_piece(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Asks to be suspended, then sends more than the client takes at once, then waits."""
    start_response("200 OK", PLAIN)
    wakers["early"] = environ["x-wsgiorg.suspend"](600_000)
    yield bytes(8 << 20)
    yield b""
    yield how(environ)


def flag(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Says how its last wait ended, of which there was none."""
    return plain(start_response, how(environ))


def forgetful(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits for its time and keeps nothing of its environ."""
    start_response("200 OK", PLAIN)
    environ["x-wsgiorg.suspend"](1)
    return (piece for piece in (b"", b"went on"))


def flag_alone(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Keeps nothing of the environ but the flag."""
    start_response("200 OK", PLAIN)
    environ["x-wsgiorg.suspend"](600)
    return _flag_alone(environ["x-wsgiorg.fdevent.timeout"])


def _flag_alone(timed_out: object) -> Iterator[bytes]:
    events.record("waiting")
    yield b""
    yield b"timeout" if timed_out else b"resumed"


def keep(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Keeps its environ."""
    kept.append(environ)
    return plain(start_response, b"kept")


def written_meanwhile(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits while another thread is in `write`."""
    write = start_response("200 OK", PLAIN)
    writer = threading.Thread(target=write, args=(bytes(8 << 20),))
    writer.start()
    time.sleep(0.1)
    environ["x-wsgiorg.suspend"](100)
    yield b""
    writer.join()
    yield b"end"


def refusal(function: Callable[..., object], *arguments: object, within: float = 60.0) -> str:
    """Call it until it raises RuntimeError, and return what that says; empty if it never does."""
    deadline = time.monotonic() + within
    try:
        while time.monotonic() < deadline:
            function(*arguments)
            time.sleep(0.005)
    except RuntimeError as error:
        return str(error)
    return ""


def sent_meanwhile(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Another thread wants to write while the worker sends, and waits for the client."""
    kind = query(environ, "kind")
    write = start_response("200 OK", PLAIN)

    # A response whose body is still read cannot park.
    def read() -> None:
        with contextlib.suppress(ConnectionResetError):
            environ["wsgi.input"].read()

    threading.Thread(target=read).start()
    events.wait_gate(f"reading-{kind}")

    def intrude() -> None:
        message = refusal(write, b"")
        try:
            write(b"x" * 100)
        except RuntimeError as error:
            message = f"{message}; {error}"
        events.record("intruded", kind=kind, message=message)

    threading.Thread(target=intrude).start()
    if kind == "piece":
        return [bytes(8 << 20)]
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the server
    file.truncate(8 << 20)
    return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]


def opened_meanwhile(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Another thread wants to write while the server asks the file where it stands."""
    write = start_response("200 OK", PLAIN)
    file: Any = io.FileIO(__file__)

    def tell() -> int:
        intruder = threading.Thread(
            target=lambda: events.record("told", message=refusal(write, b"x", within=0.01))
        )
        intruder.start()
        intruder.join()
        return 0

    file.tell = tell
    return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]


def hinted_meanwhile(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fails while another thread sends early hints to a client that takes none."""

    def hint() -> None:
        try:
            while True:
                environ["wsgi.early_hints"]([("Link", "x" * 4000)])
        except (OSError, RuntimeError) as error:
            events.record("hinted", kind=type(error).__name__)

    write = start_response("200 OK", PLAIN)
    threading.Thread(target=hint).start()
    refusal(write, b"")
    raise ValueError("while hints are sent")


class OnePiece:
    """Says that it has one piece, whatever it wraps."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def __len__(self) -> int:
        return 1

    def close(self) -> None:
        """Close what it wraps."""
        self._pieces.close()  # type: ignore[attr-defined]


def polling(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits with empty strings, behind as many bytes as the query says."""
    start_response("200 OK", PLAIN)
    pieces = _polling(environ["QUERY_STRING"], environ)
    return OnePiece(pieces) if query(environ, "single") else pieces


def _polling(tag: str, environ: WSGIEnvironment) -> Iterator[bytes]:
    seconds = float(query(environ, "seconds", "600"))
    try:
        for _ in range(int(query(environ, "pieces", "0"))):
            yield bytes(8 * 1024)
        began = time.monotonic()
        events.record("polling", tag=tag)
        while time.monotonic() < began + seconds:
            time.sleep(0.01)
            yield b""
        events.record("polled", tag=tag)
        yield b"end"
    finally:
        events.record("closed", tag=tag)


def beating(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Says something now and then, with empty strings between."""
    start_response("200 OK", PLAIN)
    for _ in range(8):
        yield b"beat"
        for _ in range(10):
            time.sleep(0.01)
            yield b""


def ahead(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Gets ahead of its client, by less than may be kept for it, and waits for the gate."""
    write = start_response("200 OK", PLAIN)
    for _ in range(400):
        if query(environ, "kind") == "write":
            write(bytes(8 * 1024))
        else:
            yield bytes(8 * 1024)
    events.record("ahead", kind=query(environ, "kind"))
    events.wait_gate("ahead")
    yield b"end"


def burst(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Three quick pieces, then something that lasts until the gate is opened."""
    kind = query(environ, "kind")
    fields = [*PLAIN, ("Content-Length", "400")] if query(environ, "length") else PLAIN
    write = start_response("200 OK", fields)
    for _ in range(3):
        if kind == "write":
            write(b"x" * 100)
        else:
            yield b"x" * 100
    if kind == "suspend":
        wakers[query(environ, "gate")] = environ["x-wsgiorg.suspend"](600_000)
        yield b""
    elif kind == "close":
        return
    elif kind == "raise":
        events.wait_gate(query(environ, "gate"))
        raise ValueError("in the middle")
    else:
        events.wait_gate(query(environ, "gate"))
    yield b"y" * 100


class SlowClose:
    """Yields three pieces, fails, and takes its time to close."""

    def __init__(self, gate: str) -> None:
        self._left = 3
        self._gate = gate

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("in the middle")
        return b"x" * 100

    def close(self) -> None:
        """Last until the gate is opened."""
        events.wait_gate(self._gate)


def slow_close(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fails after three quick pieces, and closes slowly."""
    start_response("200 OK", PLAIN)
    return SlowClose(query(environ, "gate"))


def bodiless(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits before and after a piece that the client is not sent."""
    start_response(query(environ, "status", "200 OK"), PLAIN)
    try:
        environ["x-wsgiorg.suspend"](20)
        yield b""
        yield b"first"
        environ["x-wsgiorg.suspend"](20)
        yield b""
        yield b"second"
    finally:
        events.record("closed", request=query(environ, "request"))


def headless(environ: WSGIEnvironment, _: StartResponse) -> Iterable[bytes]:
    """Waits and never calls start_response."""
    environ["x-wsgiorg.suspend"](20)
    yield b""


def replaced_head(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Calls start_response before the wait, and again after it."""
    start_response("200 OK", PLAIN)
    environ["x-wsgiorg.suspend"](20)
    yield b""
    try:
        raise ValueError("too late")
    except ValueError:
        start_response("500 Replaced", PLAIN, sys.exc_info())
    yield b"replaced"


def unread_body(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits with a request body that nobody has read, then reads it."""
    environ["x-wsgiorg.suspend"](50)
    yield b""
    body = environ["wsgi.input"].read()
    start_response("200 OK", PLAIN)
    yield str(len(body)).encode()


def by_finaliser(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A garbage collection resumes it."""
    start_response("200 OK", PLAIN)
    for _ in range(5):
        cycle = _Cycle(environ["x-wsgiorg.suspend"](600_000))
        cycle.itself = cycle
        del cycle
        threading.Timer(0.01, gc.collect).start()
        yield b""
        yield how(environ)[:1]


class _Cycle:
    def __init__(self, resume: Callable[[], None]) -> None:
        self.itself: _Cycle | None = None
        self._resume = resume

    def __del__(self) -> None:
        self._resume()


def by_signal(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A signal's handler, which Python runs on the main thread, resumes it."""
    start_response("200 OK", PLAIN)
    for _ in range(5):
        signal_wakers.append(environ["x-wsgiorg.suspend"](600_000))
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        yield b""
        yield how(environ)[:1]


signal_wakers: list[Callable[[], None]] = []


def _on_signal(*_: object) -> None:
    while signal_wakers:
        signal_wakers.pop()()


signal.signal(signal.SIGUSR2, _on_signal)


def forking(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Forks while it waits for a descriptor; the child goes away without a word."""
    start_response("200 OK", PLAIN)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        timer = threading.Timer(0.1, theirs.send, [b"x"])
        timer.start()
        child = os.fork()
        if child == 0:
            time.sleep(0.05)
            os._exit(0)
        yield environ["x-wsgiorg.fdevent.readable"](ours, 600)
        os.waitpid(child, 0)
        yield how(environ)
        timer.join()


def restless(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits again and again, for this or that, whatever becomes of its client."""
    start_response("200 OK", PLAIN)
    return Restless(environ)


class Restless:
    """Counts itself while it is open."""

    open = 0
    closed_twice = 0
    lock = threading.Lock()

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ
        self._rounds = int(query(environ, "rounds", "20"))
        self._random = random.Random(query(environ, "seed"))
        self._is_open = True
        self._says = False
        self._sockets: tuple[socket.socket, ...] = ()
        with self.lock:
            Restless.open += 1

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._says:
            self._says = False
            return self._random.choice([b"x", b"y" * 3000, bytes(100_000)])
        self._rounds -= 1
        if self._rounds < 0:
            raise StopIteration
        self._says = self._random.random() < 0.7
        return self._wait()

    def _wait(self) -> bytes:
        kind = self._random.randrange(5)
        suspend = self._environ["x-wsgiorg.suspend"]
        delay = self._random.random() * 0.01
        if kind == 0:
            suspend(delay * 1000)
        elif kind == 1:
            threading.Timer(delay, suspend(self._random.choice([3, 5000]))).start()
        elif kind == 2:
            suspend()()
        elif kind == 3:
            self._close_sockets()
            self._sockets = socket.socketpair()
            self._sockets[1].send(b"x")
            empty: bytes = self._environ["x-wsgiorg.fdevent.readable"](self._sockets[0], 5)
            return empty
        else:
            suspend(5000)
            suspend(1)
        return b""

    def _close_sockets(self) -> None:
        for one in self._sockets:
            one.close()

    def close(self) -> None:
        """Once."""
        self._close_sockets()
        with self.lock:
            if not self._is_open:
                Restless.closed_twice += 1
            self._is_open = False
            Restless.open -= 1


def count_restless(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Tells how many are open, and how many were closed more than once."""
    return plain(start_response, f"{Restless.open} {Restless.closed_twice}".encode())


ROUTES = {
    "/wake": wake,
    "/asked-before-piece": asked_before_piece,
    "/flag": flag,
    "/forgetful": forgetful,
    "/flag-alone": flag_alone,
    "/keep": keep,
    "/written-meanwhile": written_meanwhile,
    "/sent-meanwhile": sent_meanwhile,
    "/opened-meanwhile": opened_meanwhile,
    "/hinted-meanwhile": hinted_meanwhile,
    "/polling": polling,
    "/beating": beating,
    "/ahead": ahead,
    "/burst": burst,
    "/slow-close": slow_close,
    "/bodiless": bodiless,
    "/headless": headless,
    "/replaced-head": replaced_head,
    "/unread-body": unread_body,
    "/by-finaliser": by_finaliser,
    "/by-signal": by_signal,
    "/forking": forking,
    "/restless": restless,
    "/count-restless": count_restless,
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Route by path; everything else is for suspending.app."""
    route = ROUTES.get(environ["PATH_INFO"], suspending.app)
    return route(environ, start_response)
