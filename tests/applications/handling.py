"""What an application may do with the objects that it is given for a request."""

import contextvars
import copy
import gc
import io
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import events

PLAIN = [("Content-Type", "text/plain")]

GIVEN = [
    "wsgi.input",
    "wsgi.early_hints",
    "serve_zig.client_disconnected",
    "serve_zig.any_thread",
    "x-wsgiorg.suspend",
    "x-wsgiorg.fdevent.readable",
    "x-wsgiorg.fdevent.writable",
    "x-wsgiorg.fdevent.timeout",
]

kept: dict[str, Any] = {}


def given(environ: dict[str, Any], start_response: Any) -> dict[str, Any]:
    """Return each object that the request has of its own."""
    objects = {name: environ[name] for name in GIVEN}
    write = start_response("200 OK", PLAIN)
    return {**objects, "start_response": start_response, "write": write}


def weak(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Keep weak references to everything; their callbacks tell of its end."""
    objects = given(environ, start_response)
    ended: list[str] = []

    def reference(name: str) -> Any:
        return weakref.ref(objects[name], lambda _: ended.append(name))

    kept["weak"] = {name: reference(name) for name in objects}
    kept["ended"] = ended
    return [b"%d" % sum(one() is not None for one in kept["weak"].values())]


def alive(_: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Tell which of them are alive, and which have ended."""
    start_response("200 OK", PLAIN)
    names = [name for name, one in kept["weak"].items() if one() is not None]
    all_ended = sorted(kept["ended"]) == sorted([*GIVEN, "start_response", "write"])
    return [f"{names} {all_ended}".encode()]


def keep(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Keep everything."""
    kept["strong"] = given(environ, start_response)
    return [b"kept"]


def kind_of_error(function: Callable[..., object], *arguments: object, **named: object) -> str:
    """Return the name of what a call raises, empty for nothing."""
    try:
        function(*arguments, **named)
    except Exception as error:
        return type(error).__name__
    return ""


def use_kept(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Use what `keep` kept, and compare it with what this request has."""
    old = kept["strong"]
    new = given(environ, start_response)
    assert not [name for name in old if old[name] is new[name]]
    values = {
        "start_response": ("200 OK", []),
        "write": (b"of another request",),
        "wsgi.early_hints": ([("Link", "</of-another>")],),
        "serve_zig.any_thread": (),
        "x-wsgiorg.suspend": (),
        "x-wsgiorg.fdevent.readable": (0,),
        "x-wsgiorg.fdevent.writable": (0,),
    }
    kinds = {kind_of_error(old[name], *arguments) for name, arguments in values.items()}
    assert old["serve_zig.client_disconnected"]() is True
    assert old["wsgi.input"].read() == b""
    return [" ".join(kinds).encode()]


def by_name(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Give every argument by its name."""
    write = start_response(status="299 First", headers=[("X-First", "1")], exc_info=None)
    assert kind_of_error(start_response, "200 OK", headers=PLAIN) == "AssertionError"
    try:
        raise ValueError("by name")
    except ValueError:
        write = start_response("201 Named", headers=PLAIN, exc_info=sys.exc_info())
    environ["wsgi.early_hints"](headers=[("Link", "</style.css>")])
    assert environ["serve_zig.client_disconnected"]() is False
    environ["x-wsgiorg.suspend"](timeout=1)()
    file = environ["wsgi.file_wrapper"](filelike=io.BytesIO(b"0123456789"), blksize=4)
    assert list(file) == [b"0123", b"4567", b"89"]
    body = environ["wsgi.input"]
    assert body.readline(size=2) == b"on"
    assert body.read(size=3) == b"e\nt"
    assert body.readlines(hint=1) == [b"wo\n"]
    with open(__file__, "rb") as one:
        assert environ["x-wsgiorg.fdevent.writable"](fd=one, timeout=1) == b""
        assert environ["x-wsgiorg.fdevent.readable"](fd=one.fileno(), timeout=1) == b""
    write(data=b"written ")
    return [b"returned"]


def wrong_names(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Return the messages of wrong calls."""
    write = start_response("200 OK", PLAIN)
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (start_response, (), {}),
        (start_response, ("200 OK",), {}),
        (start_response, ("200 OK", [], None, 1), {}),
        (start_response, ("200 OK", []), {"status": "200 OK"}),
        (start_response, ("200 OK", []), {"excinfo": None}),
        (write, (), {"bytes": b""}),
        (environ["serve_zig.client_disconnected"], (1,), {}),
        (environ["x-wsgiorg.suspend"](1), (), {"soon": 1}),
        (environ["wsgi.file_wrapper"], (), {}),
        (environ["wsgi.input"].read, (1, 2), {}),
    ]
    lines = []
    for function, arguments, named in calls:
        try:
            function(*arguments, **named)
        except TypeError as error:
            lines.append(str(error))
    assert start_response.__call__.__self__ is start_response
    write.__call__(b"")
    return ["\n".join(lines).encode()]


def ordinary(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Treat each object as one treats objects: hash, compare, copy, pickle, print."""
    objects = given(environ, start_response)
    objects["resume"] = environ["x-wsgiorg.suspend"](1)
    for name, one in objects.items():
        assert {one: name}[one] == name
        assert weakref.ref(one)() is one
        assert repr(one), name
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert kind_of_error(pickle.dumps, one, protocol) == "TypeError", name
        assert kind_of_error(setattr, one, "own", 1) == "AttributeError", name
        assert kind_of_error(setattr, type(one), "own", 1) == "TypeError", name
        assert kind_of_error(type(one)) == "TypeError", name
        if name == "wsgi.input":
            assert kind_of_error(copy.copy, one) == "TypeError"
            assert kind_of_error(copy.deepcopy, one) == "TypeError"
        else:
            assert copy.copy(one) is one, name
            assert copy.deepcopy(one) is one, name
    timeout = objects["x-wsgiorg.fdevent.timeout"]
    assert {timeout: 1} == {False: 1}
    assert start_response.__name__ == "start_response" == start_response.__qualname__
    assert "PEP 3333" in start_response.__doc__
    assert repr(objects["write"]).startswith("<serve_zig write at 0x")
    assert copy.copy(environ) == environ
    wrapper = environ["wsgi.file_wrapper"](io.BytesIO())
    assert weakref.ref(wrapper)() is wrapper
    assert kind_of_error(pickle.dumps, wrapper, 0) == kind_of_error(copy.copy, wrapper)
    return [b"ordinary"]


class Trap:
    """Does something when the collector finds it."""

    def __init__(self, function: Callable[[], object]) -> None:
        """Make a cycle, so that nothing else finds it."""
        self.function = function
        self.me = self

    def __del__(self) -> None:
        """Act."""
        self.function()


def springing(function: Callable[[], object]) -> None:
    """Have the function called by the collector, which CPython 3.11 runs at the next object."""
    gc.collect()
    gc.disable()
    Trap(function)
    gc.set_threshold(1, 1, 1)
    gc.enable()


def freed(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A refused field is freed while the refusal is made."""
    name, value = {
        "surrogate": ("X-A", "".join(["\ud800", "a" * 4000])),
        "control": ("X-A", "".join(["\n", "a" * 4000])),
        "name": ("".join([" ", "a" * 4000]), "b"),
        "type": ("X-A", bytearray(4000)),
    }[environ["QUERY_STRING"]]
    headers: list[Any] = [("X-B", "b"), (name, value)]
    del name, value
    springing(headers.clear)
    try:
        if environ["PATH_INFO"] == "/freed-hint":
            environ["wsgi.early_hints"](headers)
        else:
            start_response("200 OK", headers)
    except (TypeError, ValueError) as error:
        message = type(error).__name__
    else:
        message = "nothing"
    gc.set_threshold(700, 10, 10)
    start_response("200 OK", PLAIN)
    return [message.encode()]


inside = threading.Event()
go_on = threading.Event()


def outlasted(_: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Have a thread whose start_response is refused only when this request is over."""
    inside.clear()
    go_on.clear()

    def linger() -> None:
        inside.set()
        go_on.wait(10)

    def refused() -> None:
        headers = [("X-A", "a\nb")]
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            info = sys.exc_info()
            springing(linger)
            try:
                start_response("200 OK", headers, info)
            except ValueError:
                events.record("refused")
        gc.set_threshold(700, 10, 10)

    threading.Thread(target=refused).start()
    inside.wait(10)
    start_response("200 OK", [*PLAIN, ("X-Thread", threading.current_thread().name)])
    return [b"first"]


def next_one(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Have the refusal come to its end before anything is sent."""
    start_response("200 OK", [*PLAIN, ("X-Thread", threading.current_thread().name)])
    go_on.set()
    time.sleep(0.2)
    yield b"second"


def nested(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Nest file wrappers deeper than any C stack is, and let go of them."""
    start_response("200 OK", PLAIN)
    wrap = environ["wsgi.file_wrapper"]
    one: Any = io.BytesIO(b"inner")
    inner = weakref.ref(one)
    how = environ["QUERY_STRING"]
    for number in range(400_000):
        if how == "block":
            one = wrap(None, one)
        else:
            # CPython frees nested lists without recursion, too.
            one = wrap([one] if how == "lists" and number % 3 == 0 else one)
    if how == "returned":
        # Its close() goes as deep as Python lets it.
        return one  # type: ignore[no-any-return]
    if how == "cycle":
        cycle = [one]
        cycle.append(wrap(cycle))
        del cycle
    del one
    gc.collect()
    return [str(inner() is None).encode()]


def spoil(start_response: Any) -> None:
    """Call a start_response that is refused, and takes the head away that was there."""
    try:
        raise ValueError("of the file")
    except ValueError:
        kind_of_error(start_response, "200 OK", [("X-A", "a\nb")], sys.exc_info())


class Meddled:
    """A file-like object whose `read` is that of a real file, and meddles."""

    def __init__(self, start_response: Any) -> None:
        """Take `read` from the file itself."""
        self.file = io.FileIO(__file__)
        self.start_response = start_response

    @property
    def read(self) -> Any:
        """Return the file's own, and meddle."""
        spoil(self.start_response)
        return self.file.read


def meddling(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Return a file whose own methods spoil the head."""
    start_response("200 OK", PLAIN)
    if environ["QUERY_STRING"] == "read":
        return environ["wsgi.file_wrapper"](Meddled(start_response))  # type: ignore[no-any-return]
    file: Any = io.FileIO(__file__)

    def tell() -> int:
        spoil(start_response)
        return 0

    file.tell = tell
    return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]


class Closing:
    """Yields pieces that a client has to take, and tells of its end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """Take the pieces."""
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        """Return the pieces."""
        return self.pieces

    def close(self) -> None:
        """Tell."""
        events.record("closed")


def held_context(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Park, and be in the response's context in another thread when it goes on."""
    start_response("200 OK", PLAIN)
    marker = contextvars.ContextVar("marker", default="")
    marker.set(environ["serve_zig.request_id"])

    def pieces() -> Iterator[bytes]:
        resume = environ["x-wsgiorg.suspend"](5000)
        [own] = [
            one
            for one in gc.get_objects()
            if isinstance(one, contextvars.Context)
            and one.get(marker) == environ["serve_zig.request_id"]
        ]

        def occupy() -> None:
            resume()
            events.record("occupied")
            go_on.wait(10)

        go_on.clear()

        def enter() -> None:
            time.sleep(0.2)
            own.run(occupy)

        threading.Thread(target=enter).start()
        yield b""
        yield b"never"

    return Closing(pieces())


def release(_: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Let threads that wait go on."""
    go_on.set()
    start_response("200 OK", PLAIN)
    return [b"released"]


ROUTES = {
    "/weak": weak,
    "/alive": alive,
    "/keep": keep,
    "/use-kept": use_kept,
    "/by-name": by_name,
    "/wrong-names": wrong_names,
    "/ordinary": ordinary,
    "/freed": freed,
    "/freed-hint": freed,
    "/outlasted": outlasted,
    "/next": next_one,
    "/nested": nested,
    "/meddling": meddling,
    "/held-context": held_context,
    "/release": release,
}


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Do what the path says."""
    return ROUTES[environ["PATH_INFO"]](environ, start_response)
