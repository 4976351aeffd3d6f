"""Handlers that fork, and children that go on in the ways that children do."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import events


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fork as the path says; the parent answers with its own id and the child's status."""
    status = ""
    match environ["PATH_INFO"]:
        case "/pid":
            pass
        case "/waits":
            # As the module multiprocessing forks, which would wait for it at the server's end.
            child = os.fork()
            if child == 0:
                events.wait_gate("children", 30)
                os._exit(0)
            status = str(child)
        case "/nested":
            status = nested()
        case path:
            child = os.fork()
            if child == 0:
                return go_on(path, environ, start_response)
            status = str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {status}".encode()]


def nested() -> str:
    """Fork a child that opens files and forks; how many of the files its own child can use."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
        if os.fork() == 0:
            usable = 0
            for descriptor in opened:
                try:
                    os.fstat(descriptor)
                except OSError:
                    continue
                usable += 1
            os.write(writing, str(usable).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as answer:
        return answer.read()


def go_on(path: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Come back from the handler, in the child."""
    match path:
        case "/exit":
            sys.exit(7)
        case "/exit_plainly":
            sys.exit()
        case "/exit_with_words":
            sys.exit("the child says goodbye")
        case "/raise":
            raise LookupError("in the child")
        case "/read":
            environ["wsgi.input"].read(1)
        case "/write":
            start_response("200 OK", [])(b"from the child")
        case "/yield":
            start_response("200 OK", [])
            return (b"from the child" for _ in range(3))
        case "/file":
            # A descriptor number that was the client's must not get the child's response.
            opened = open(os.environ["FORKING_FILE"], "wb", buffering=0)  # noqa: SIM115
            start_response("200 OK", [])
            return Keeping(opened)
        case "/thread":
            threading.Thread(target=time.sleep, args=[30]).start()
    start_response("200 OK", [])
    return [b"from the child"]


class Keeping:
    """An iterable that keeps a file open."""

    def __init__(self, opened: object) -> None:
        self.opened = opened

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"from the child"])
