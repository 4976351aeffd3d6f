"""Handlers that park until an event of their own (x-wsgiorg.suspend, x-wsgiorg.fdevent)."""

import contextvars
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import events

seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="fresh")
waiting: list[Callable[[], None]] = []
kept: list[Callable[[], None]] = []
PLAIN = [("Content-Type", "text/plain")]


def query(environ: WSGIEnvironment, name: str, default: str = "") -> str:
    """Return one value of the query string."""
    found: str = parse_qs(environ["QUERY_STRING"]).get(name, [default])[0]
    return found


def by_time(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits for its time, twice, and says how it was woken."""
    start_response("200 OK", PLAIN)
    for _ in range(2):
        environ["x-wsgiorg.suspend"](int(query(environ, "ms", "50")))
        yield b""
        yield b"timeout " if environ["x-wsgiorg.fdevent.timeout"] else b"resumed "


def by_other_thread(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Another thread resumes it, some rounds; context and thread stay what they were."""
    seen.set(environ["PATH_INFO"])
    start_response("200 OK", PLAIN)
    yield b"begun "
    before = threading.get_ident()
    same = True
    for _ in range(int(query(environ, "rounds", "3"))):
        resume = environ["x-wsgiorg.suspend"](600_000)
        threading.Timer(0.01, resume).start()
        yield b""
        same = same and threading.get_ident() == before and seen.get() == environ["PATH_INFO"]
        if environ["x-wsgiorg.fdevent.timeout"]:
            yield b"timeout "
    yield b"same" if same else b"changed"


def early(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Is resumed before it yields the empty string, and again, and much later."""
    start_response("200 OK", PLAIN)
    resume = environ["x-wsgiorg.suspend"]()
    resume()
    resume()
    kept.append(resume)
    yield b""
    yield b"went on"


def late_head(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Calls start_response only after the wait."""
    environ["x-wsgiorg.suspend"](50)
    yield b""
    start_response("202 Accepted", [*PLAIN, ("Content-Length", "4")])
    yield b"late"


def kept_head(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Calls start_response before the wait; other requests are answered meanwhile."""
    start_response("203 Kept", [*PLAIN, ("X-Kept", query(environ, "name"))])
    environ["x-wsgiorg.suspend"](150)
    yield b""
    yield query(environ, "name").encode()


def failing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Raises after the wait, before anything was sent."""
    start_response("200 OK", PLAIN)
    environ["x-wsgiorg.suspend"](20)
    yield b""
    raise ValueError("after the wait")


def descriptor(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits for a pipe that a thread writes to, the descriptor given as number or object."""
    start_response("200 OK", PLAIN)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        timer = threading.Timer(0.05, theirs.send, [b"news"])
        timer.start()
        yield environ["x-wsgiorg.fdevent.readable"](
            ours if query(environ, "object") else ours.fileno()
        )
        yield b"timeout" if environ["x-wsgiorg.fdevent.timeout"] else ours.recv(100)
        yield environ["x-wsgiorg.fdevent.readable"](ours, 0.05)
        yield b" timeout" if environ["x-wsgiorg.fdevent.timeout"] else b" ready"
        yield environ["x-wsgiorg.fdevent.writable"](ours, 600.0)
        yield b" timeout" if environ["x-wsgiorg.fdevent.timeout"] else b" writable"
        timer.join()
        theirs.close()
        yield environ["x-wsgiorg.fdevent.readable"](ours, 600.0)
        yield b" timeout" if environ["x-wsgiorg.fdevent.timeout"] else b" ended"


def same_descriptor(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits for a descriptor that other responses wait for too."""
    start_response("200 OK", PLAIN)
    events.record("watching")
    yield environ["x-wsgiorg.fdevent.readable"](shared_ours, 600)
    yield b"timeout" if environ["x-wsgiorg.fdevent.timeout"] else b"ready"


shared_ours, shared_theirs = socket.socketpair()


def regular_file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits for a file, which is always ready."""
    start_response("200 OK", PLAIN)
    with tempfile.TemporaryFile() as file:
        yield environ["x-wsgiorg.fdevent.readable"](file, 600)
        yield b"timeout" if environ["x-wsgiorg.fdevent.timeout"] else b"ready"


def wrong_arguments(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Says what each wrong call raises."""
    start_response("200 OK", PLAIN)
    suspend = environ["x-wsgiorg.suspend"]
    readable = environ["x-wsgiorg.fdevent.readable"]
    calls: list[Callable[[], object]] = [
        lambda: suspend(-1),
        lambda: suspend("soon"),
        lambda: suspend(1, 2),
        lambda: suspend(float("nan")),
        lambda: readable(),
        lambda: readable(12345),
        lambda: readable(object()),
        lambda: readable(0, -1),
        lambda: suspend(1)(1),
    ]
    names = []
    for call in calls:
        try:
            call()
        except Exception as error:
            names.append(type(error).__name__)
        else:
            names.append("nothing")
    yield " ".join(names).encode()


def from_elsewhere(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Keeps `suspend` and calls it when its request is over."""
    start_response("200 OK", PLAIN)
    kept_suspend.append(environ["x-wsgiorg.suspend"])
    return [b"kept"]


kept_suspend: list[Callable[[], Callable[[], None]]] = []


def call_kept(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Calls what `early` and `from_elsewhere` kept."""
    for resume in kept:
        resume()
    start_response("200 OK", PLAIN)
    try:
        kept_suspend[0]()
    except RuntimeError:
        return [b"refused"]
    return [b"accepted"]


def stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Sends one event for each publication; records its end."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return _stream(environ)


def _stream(environ: WSGIEnvironment) -> Iterator[bytes]:
    suspend = environ["x-wsgiorg.suspend"]
    name = query(environ, "name")
    try:
        yield b"data: hello\n\n"
        while True:
            waiting.append(suspend(60_000))
            yield b""
            yield f"data: {name}\n\n".encode()
    except GeneratorExit:
        events.record("left", stream=name)
        raise
    finally:
        events.record("closed", stream=name)


def publish(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Wakes every stream."""
    count = len(waiting)
    for resume in waiting[:count]:
        resume()
    del waiting[:count]
    start_response("200 OK", PLAIN)
    return [str(count).encode()]


def piece_ahead(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Sends much before it waits, to a client that may be slow."""
    start_response("200 OK", PLAIN)
    yield bytes(8 << 20)
    environ["x-wsgiorg.suspend"](50)
    yield b""
    yield b"end"


def trailers(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answers with the trailer fields before and after reading, and whether they leaked."""
    before = list(environ.get("serve_zig.trailers", ["none"]))
    body = environ["wsgi.input"].read()
    after = environ.get("serve_zig.trailers")
    leaked = [key for key in environ if "CHECKSUM" in key]
    start_response("200 OK", PLAIN)
    return [repr([before, len(body), after, leaked]).encode()]


def blocked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Waits while another thread reads the request's body, so that it cannot park."""
    reader = threading.Thread(target=environ["wsgi.input"].read, args=(1,))
    reader.start()
    environ["x-wsgiorg.suspend"](100)
    yield b""
    timed_out = bool(environ["x-wsgiorg.fdevent.timeout"])
    events.record("waited", timed_out=timed_out)
    reader.join()
    start_response("200 OK", PLAIN)
    yield b"read"


def told(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Says what the key holds after each wait, also in a copy of the environ."""
    start_response("200 OK", PLAIN)
    copy = dict(environ)
    for milliseconds in (20, 20_000):
        resume = environ["x-wsgiorg.suspend"](milliseconds)
        if milliseconds > 20:
            resume()
        yield b""
        for found in (environ, copy):
            key = found["x-wsgiorg.fdevent.timeout"]
            yield f"{key} {key!r} {int(key):d} {key == True} {key != False};".encode()  # noqa: E712


def hello(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answers at once."""
    start_response("200 OK", PLAIN)
    return [b"hello"]


def descriptors(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Tells how many descriptors the process has open."""
    start_response("200 OK", PLAIN)
    return [str(len(os.listdir("/proc/self/fd"))).encode()]


def wake_shared(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Makes the shared descriptor ready."""
    shared_theirs.send(b"x")
    start_response("200 OK", PLAIN)
    return [b"sent"]


ROUTES = {
    "/told": told,
    "/by-time": by_time,
    "/by-other-thread": by_other_thread,
    "/early": early,
    "/late-head": late_head,
    "/kept-head": kept_head,
    "/failing": failing,
    "/descriptor": descriptor,
    "/same-descriptor": same_descriptor,
    "/wake-shared": wake_shared,
    "/regular-file": regular_file,
    "/wrong-arguments": wrong_arguments,
    "/from-elsewhere": from_elsewhere,
    "/call-kept": call_kept,
    "/stream": stream,
    "/publish": publish,
    "/piece-ahead": piece_ahead,
    "/trailers": trailers,
    "/blocked": blocked,
    "/hello": hello,
    "/descriptors": descriptors,
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Route by path."""
    return ROUTES[environ["PATH_INFO"]](environ, start_response)
