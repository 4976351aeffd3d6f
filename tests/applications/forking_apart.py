"""Children that call what they have of the server, and look for descriptors that are its own."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

FILES = 24
OUT_OF_THE_WAY = 200


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what a child has found out."""
    match environ["PATH_INFO"]:
        case "/calls":
            resume = environ["x-wsgiorg.suspend"]()
            text = in_child(lambda: call_everything(environ, start_response, resume))
        case "/input":
            text = in_child(lambda: read_input(environ))
        case "/sockets":
            forks = int(environ["QUERY_STRING"])
            port = int(environ["SERVER_PORT"])
            text = " ".join(in_child(lambda: sockets_of(port)) for _ in range(forks))
        case _:
            text = "answered"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]


def in_child(work: Callable[[], str]) -> str:
    """Return what the work says, which is done in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, OUT_OF_THE_WAY)
        try:
            text = work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(OUT_OF_THE_WAY, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said


def call_everything(
    environ: WSGIEnvironment, start_response: StartResponse, resume: Callable[[], None]
) -> str:
    """Which of the child's files is not as it was written, after all that it can call."""
    # The lowest numbers that are free: those of the server's descriptors among them.
    os.closerange(3, OUT_OF_THE_WAY)
    files = [tempfile.TemporaryFile(buffering=0) for _ in range(FILES)]  # noqa: SIM115
    resume()
    said = [
        f"gone {environ['serve_zig.client_disconnected']()}",
        f"hints {environ['wsgi.early_hints']([('Link', '</a>')])}",
    ]
    for name, call in {
        "suspend": environ["x-wsgiorg.suspend"],
        "readable": lambda: environ["x-wsgiorg.fdevent.readable"](files[0].fileno()),
        "writable": lambda: environ["x-wsgiorg.fdevent.writable"](files[0].fileno()),
        "write": lambda: start_response("200 OK", [])(b"from the child"),
    }.items():
        try:
            call()
        except RuntimeError as error:
            said.append(f"{name} {'forked' in str(error)}")
    for one in files:
        one.write(b"end")
        one.seek(0)
        if one.read() != b"end":
            said.append(f"descriptor {one.fileno()} was written to")
        os.fstat(one.fileno())
    return ", ".join(said)


def read_input(environ: WSGIEnvironment) -> str:
    """How much of the body the child can read."""
    return str(len(environ["wsgi.input"].read()))


def sockets_of(port: int) -> str:
    """How many sockets of the server the child has."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                address = one.getsockname()
        except OSError:
            continue
        found += isinstance(address, tuple) and address[1] == port
    return str(found)
