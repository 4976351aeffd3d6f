"""The objects of a request speak for that request alone, and are ordinary objects."""

import pytest

from serving import Server, Servers
from wire import all_closed, get, post


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """One thread, so that requests follow each other on the same workers."""
    return serve_module("handling:app", {"concurrency": {"threads": 1}})


def body_of(server: Server, target: str) -> bytes:
    """Return the body of a GET."""
    answer = server.exchange(get(target, "Connection: close"))
    assert answer.status == 200, answer
    return answer.body


def test_a_weak_reference_does_not_reach_the_next_request(server: Server) -> None:
    """It counts as no reference, but the object must not be used again for that."""
    for _ in range(5):
        assert body_of(server, "/weak") == b"10"
        assert body_of(server, "/alive") == b"[] True"


def test_a_kept_object_is_of_its_own_request_only(server: Server) -> None:
    """The next requests have others, and the old ones raise."""
    for _ in range(5):
        assert body_of(server, "/keep") == b"kept"
        assert body_of(server, "/use-kept") == b"RuntimeError"
        assert body_of(server, "/use-kept") == b"RuntimeError"


def test_arguments_by_name(server: Server) -> None:
    """As with gunicorn, waitress and wsgiref."""
    with server.connect() as connection:
        connection.send(post("/by-name", b"one\ntwo\nthree"))
        answer = connection.response()
        [hints] = answer.interim
        assert (hints.status, hints.value("link")) == (103, "</style.css>")
        assert (answer.status, answer.reason) == (201, "Named")
        assert answer.value("x-first") is None
        assert answer.body == b"written returned"


def test_wrong_arguments_are_named(server: Server) -> None:
    """As a function in Python does it."""
    assert body_of(server, "/wrong-names").decode().split("\n") == [
        "start_response() is missing the argument 'status'",
        "start_response() is missing the argument 'headers'",
        "start_response() takes at most 3 positional arguments but 4 were given",
        "start_response() got multiple values for argument 'status'",
        "start_response() got an unexpected keyword argument 'excinfo'",
        "write() got an unexpected keyword argument 'bytes'",
        "client_disconnected() takes at most 0 positional arguments but 1 were given",
        "resume() takes no arguments",
        "file_wrapper() missing required argument 'filelike' (pos 1)",
        "read() takes at most 1 positional arguments but 2 were given",
    ]


def test_objects_in_the_environ_are_ordinary(server: Server) -> None:
    """Hash, ==, repr, weakref, copy and pickle work or raise."""
    assert body_of(server, "/ordinary") == b"ordinary"


@pytest.mark.parametrize("path", ["/freed", "/freed-hint"])
@pytest.mark.parametrize("what", ["surrogate", "control", "name", "type"])
def test_fields_freed_while_they_are_refused(serve: Servers, path: str, what: str) -> None:
    """Making an exception may run the collector, and that a finalizer that frees them."""
    server = serve("handling:app", environment={"PYTHONMALLOC": "debug"})
    kind = b"TypeError" if what == "type" else b"ValueError"
    for _ in range(3):
        assert body_of(server, f"{path}?{what}") == kind


def test_a_refusal_that_outlasts_its_request_leaves_the_next_response_alone(
    server: Server,
) -> None:
    """The finalizer that delays it may take as long as it likes."""
    for _ in range(5):
        first = server.exchange(get("/outlasted"))
        with all_closed([server.connect() for _ in range(2)]) as connections:
            for connection in connections:
                connection.send(get("/next"))
            answers = [connection.response() for connection in connections]
        assert {answer.status for answer in answers} == {200}
        assert {answer.body for answer in answers} == {b"second"}
        if first.value("x-thread") in {answer.value("x-thread") for answer in answers}:
            break
    server.wait_event("refused")


@pytest.mark.parametrize("how", ["file", "block", "lists", "cycle"])
def test_deeply_nested_wrappers_are_freed(server: Server, how: str) -> None:
    """Without a call of C for each level."""
    assert body_of(server, f"/nested?{how}") == b"True"


def test_deeply_nested_wrappers_as_a_response(server: Server) -> None:
    """They have no `read`, and closing them is deeper than Python's recursion limit."""
    server.errors_expected = True
    assert server.exchange(get("/nested?returned")).status == 500
    server.wait_log("has no attribute 'read'")
    server.wait_log("RecursionError")
    assert body_of(server, "/nested?file") == b"True"


@pytest.mark.parametrize("how", ["tell", "read"])
def test_a_file_that_spoils_the_head_is_a_500(server: Server, how: str) -> None:
    """Its own methods are asked after the head was checked."""
    server.errors_expected = True
    answer = server.exchange(get(f"/meddling?{how}"))
    assert answer.status == 500
    server.wait_log("without having called start_response")


def test_an_iterable_is_closed_though_its_context_cannot_be_entered(server: Server) -> None:
    """The application runs in it elsewhere."""
    server.errors_expected = True
    with server.connect() as connection:
        connection.send(get("/held-context"))
        assert connection.response().status == 500
    server.wait_event("closed")
    assert body_of(server, "/release") == b"released"
    server.wait_log("cannot enter context")
