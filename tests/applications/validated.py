"""Applications inside wsgiref.validate, which raises when the server breaks PEP 3333."""

import io
import sys
import warnings
from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import WSGIWarning, validator

warnings.simplefilter("error", WSGIWarning)

PLAIN = [("Content-Type", "text/plain")]


def as_list(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with a list and the length of the body."""
    body = environ["wsgi.input"].read(1 << 20)
    start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body) + 6))])
    return [b"hello ", body]


def as_generator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Answer piece by piece; start_response is called when the first is asked for."""
    start_response("201 Made", [*PLAIN, ("X-Late", "yes")])
    yield b"hello "
    yield b""
    yield from environ["wsgi.input"]


def with_write(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer through the write callable, and with an iterable after it."""
    write = start_response("200 OK", PLAIN)
    write(b"hello ")
    write(environ["wsgi.input"].readline(1 << 20))
    return [b" and the rest"]


def with_file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the file wrapper around something that is no file of the system."""
    start_response("200 OK", [*PLAIN, ("Content-Length", "6")])
    wrapper = environ["wsgi.file_wrapper"]
    return wrapper(io.BytesIO(b"hello!"), 4)  # type: ignore[no-any-return]


def with_errors(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Write to wsgi.errors in each way that there is."""
    errors = environ["wsgi.errors"]
    errors.write("written to wsgi.errors\n")
    errors.writelines(["two ", "lines\n"])
    errors.flush()
    start_response("200 OK", [*PLAIN, ("Content-Length", "0")])
    return []


def with_exc_info(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Change the mind about the status while nothing is sent."""
    start_response("200 OK", PLAIN)
    try:
        raise ValueError("on second thoughts")
    except ValueError:
        start_response("409 Conflict", [*PLAIN, ("Content-Length", "5")], sys.exc_info())
    return [b"sorry"]


def with_lines(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read with every method that the validator lets through."""
    stream = environ["wsgi.input"]
    first = stream.readline(1 << 20)
    rest = stream.readlines()
    body = b"|".join([first, *rest, stream.read(10)])
    start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
    return [body]


ROUTES = {
    "/list": validator(as_list),
    "/generator": validator(as_generator),
    "/write": validator(with_write),
    "/file": validator(with_file),
    "/errors": validator(with_errors),
    "/exc_info": validator(with_exc_info),
    "/lines": validator(with_lines),
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Hand over to the application that the path names."""
    return ROUTES[environ["PATH_INFO"]](environ, start_response)
