"""What an application returns and what it gets wrong: PEP 3333 rule by rule."""

import contextlib
import re
from typing import Any

import pytest

from scripting import script
from serving import APPLICATIONS, Server, Servers, wait_until
from wire import PATIENCE, Response, Truncated, get, post

PIECES = ["one ", "two ", "three"]
BODY = b"one two three"
LARGE_SIZE = 256 * (24 << 12)


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """A server of the scripted application; with one thread, requests follow each other."""
    return serve_module("scripted:app", {"concurrency": {"threads": 1}})


@pytest.fixture(scope="module")
def corners(serve_module: Servers) -> Server:
    """A server of the applications in responding.py."""
    return serve_module("responding:app")


def ask(server: Server, **spec: Any) -> Response:
    """Return the response to a script."""
    return server.exchange(get(script(**spec)))


def expect_500(server: Server, log: str, **spec: Any) -> Response:
    """The script is answered 500 with nothing of the application's, and the log says why."""
    with server.connect() as connection:
        connection.send(get(script(**spec)))
        response = connection.response()
        assert response.status == 500, response.body
        assert response.reason == "Internal Server Error"
        assert str(response.value("Content-Type")).startswith("text/plain")
        assert response.framing == "content-length"
        # What went wrong is for the log, not for the client.
        assert b"Traceback" not in response.body
        assert b"scripted" not in response.body
        server.wait_log(log)
        if response.closes:
            connection.expect_cut()
        else:
            connection.send(get(script(pieces=["next"])))
            assert connection.response().body == b"next"
    assert ask(server, pieces=["alive"]).body == b"alive"
    return response


def expect_truncated(server: Server, *, version: str = "1.1", **spec: Any) -> None:
    """The response begins, never looks whole, and its connection ends."""
    with server.connect() as connection:
        connection.send(get(script(**spec), version=version))
        with pytest.raises(Truncated):
            connection.response()
    assert ask(server, pieces=["alive"]).body == b"alive"


# Iterables


@pytest.mark.parametrize(
    "shape",
    [
        "list",
        "tuple",
        "generator",
        "lazy",
        "iterator",
        "sized",
        "indexed",
        "map",
        "closing list",
        "write",
        "write and list",
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_shapes(server: Server, shape: str, version: str) -> None:
    """Whatever can be iterated is a body, and so is what was given to write()."""
    target = script(shape=shape, pieces=PIECES, headers=[["X-Shape", shape]])
    response = server.exchange(get(target, version=version))
    assert response.status == 200
    assert response.value("X-Shape") == shape
    assert response.body == BODY


@pytest.mark.parametrize("shape", ["list", "tuple", "generator", "sized", "write", "iterator"])
@pytest.mark.parametrize("pieces", [[], [""], ["", "", ""]], ids=str)
def test_empty_bodies(server: Server, shape: str, pieces: list[str]) -> None:
    """A body of nothing is one, and the connection stays in step."""
    with server.connect() as connection:
        for _ in range(2):
            connection.send(get(script(shape=shape, pieces=pieces)))
            response = connection.response()
            assert response.status == 200
            assert response.body == b""
        connection.expect_silence(0.05)


@pytest.mark.parametrize("shape", ["generator", "iterator", "list", "write"])
def test_empty_pieces_do_not_end_the_body(server: Server, shape: str) -> None:
    """A chunk of no bytes would be the last one: empty pieces are not sent as chunks."""
    pieces = ["", "one ", "", "", "two ", "three", ""]
    assert ask(server, shape=shape, pieces=pieces).body == BODY


def test_length_of_a_list_is_known(server: Server) -> None:
    """PEP 3333: with len(iterable) == 1 the server can tell the Content-Length; of [] too."""
    for shape in ("list", "tuple", "sized"):
        response = ask(server, shape=shape, pieces=["hello"])
        assert response.framing == "content-length", shape
        assert response.body == b"hello"
    assert ask(server, pieces=[]).value("Content-Length") == "0"


@pytest.mark.parametrize("shape", ["list", "generator", "write", "sized", "write and list"])
def test_own_content_length(server: Server, shape: str) -> None:
    """An application's Content-Length frames the response, once."""
    response = ask(server, shape=shape, pieces=PIECES, headers=[["content-LENGTH", "13"]])
    assert response.framing == "content-length"
    assert response.body == BODY


def test_lazy_start_response(server: Server) -> None:
    """Row: generator app: lazy start_response (status 201 + header kept)."""
    for shape in ("generator", "lazy"):
        response = ask(
            server, shape=shape, status="201 Made", headers=[["X-Late", "yes"]], pieces=PIECES
        )
        assert (response.status, response.reason) == (201, "Made")
        assert response.value("X-Late") == "yes"
        assert response.body == BODY


def test_start_response_where_iteration_begins(corners: Server) -> None:
    """`iter()` is early enough as well."""
    response = corners.exchange(get("/started_in_iter"))
    assert response.value("X-Late") == "iter"
    assert response.body == b"late"


def test_write_callable(server: Server) -> None:
    """Row: `write()` callable returned by start_response."""
    assert ask(server, shape="write", pieces=PIECES).body == BODY
    assert ask(server, shape="write and list", pieces=PIECES).body == BODY


def test_write_during_the_iteration(corners: Server) -> None:
    """What is written comes before what is yielded next."""
    assert corners.exchange(get("/write_late")).body == b"one two three four"


def test_many_small_pieces(server: Server) -> None:
    """Hundreds of pieces keep their order."""
    pieces = [f"{number}." for number in range(250)]
    for shape in ("list", "iterator", "write"):
        assert ask(server, shape=shape, pieces=pieces).body == "".join(pieces).encode()


def test_large_responses(corners: Server) -> None:
    """Far more than any buffer holds arrives whole."""
    with corners.connect() as connection:
        connection.send(get("/large_list") + get("/large_iterator?50") + get("/hello"))
        body = connection.response().body
        assert len(body) == LARGE_SIZE
        assert body == bytes(range(256)) * (24 << 12)
        streamed = connection.response().body
        assert streamed == b"".join(bytes([number]) * 65536 for number in range(49, -1, -1))
        assert connection.response().body == b"hello"


# Status and fields


@pytest.mark.parametrize(
    ("status", "number", "reason"),
    [
        ("200 OK", 200, "OK"),
        ("299 Very Custom", 299, "Very Custom"),
        ("418 I'm a teapot", 418, "I'm a teapot"),
        ("599 Caf\xe9", 599, "Caf\xe9"),
        ("404 Not  Found", 404, "Not  Found"),
    ],
)
def test_reason_phrase(server: Server, status: str, number: int, reason: str) -> None:
    """Row: custom reason phrase preserved."""
    response = ask(server, status=status, pieces=["x"])
    assert (response.status, response.reason) == (number, reason)


def test_latin_1_field(server: Server) -> None:
    """Row: latin-1 response header intact."""
    value = "caf\xe9 \xa1\xff"
    assert ask(server, headers=[["X-Name", value]], pieces=["x"]).value("X-Name") == value


def test_fields_keep_order_and_number(server: Server) -> None:
    """Repeated fields are sent as often as given and in order: Set-Cookie lives of it."""
    headers = [
        ["Set-Cookie", "a=1"],
        ["X-One", "1"],
        ["Set-Cookie", "b=2; Path=/"],
        ["x-ONE", "2"],
        ["X-Empty", ""],
    ]
    response = ask(server, headers=headers, pieces=["x"])
    assert response.values("Set-Cookie") == ["a=1", "b=2; Path=/"]
    assert response.values("X-One") == ["1", "2"]
    assert response.values("X-Empty") == [""]


def test_many_fields(server: Server) -> None:
    """There is no room to run out of: a hundred fields of some size."""
    headers = [[f"X-Number-{number}", "v" * 20] for number in range(100)]
    response = ask(server, headers=headers, pieces=["x"])
    assert sum(name.startswith("X-Number-") for name, _ in response.fields) == 100


@pytest.mark.parametrize("where", ["name", "value", "status"])
@pytest.mark.parametrize("character", ["\r", "\n", "\0", "\r\n", "\r\nX-Injected: 1\r\n"])
@pytest.mark.parametrize("shape", ["list", "generator"])
def test_line_ends_in_fields(server: Server, where: str, character: str, shape: str) -> None:
    """Row: CRLF in response header refused; a lone CR, LF or NUL, and in the status, as well."""
    specs: dict[str, dict[str, Any]] = {
        "name": {"headers": [[f"X-A{character}", "value"]]},
        "value": {"headers": [["X-Name", f"a{character}b"]]},
        "status": {"status": f"200 O{character}K"},
    }
    response = expect_500(server, "Traceback", shape=shape, pieces=["x"], **specs[where])
    assert response.value("X-Injected") is None


@pytest.mark.parametrize(
    "name",
    [
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailers",
        "Transfer-Encoding",
        "TRANSFER-ENCODING",
        "Upgrade",
    ],
)
def test_hop_by_hop_fields(server: Server, name: str) -> None:
    """PEP 3333: an application may not use hop-by-hop fields; it is an error to try."""
    expect_500(
        server,
        rf"ValueError: response field {name}: close: .*PEP 3333",
        headers=[[name, "close"]],
        pieces=["x"],
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Connection", "keep-alive"),
        ("connection", "Upgrade"),
        ("Keep-Alive", "timeout=5, max=100"),
        ("Proxy-Connection", "keep-alive"),
    ],
)
def test_fields_of_the_connection_are_left_out(server: Server, name: str, value: str) -> None:
    """Event-stream tutorials and proxying views set them, and mean no harm."""
    with server.connect() as connection:
        for _ in range(2):
            connection.send(get(script(headers=[[name, value], ["X-Other", "kept"]], pieces=["x"])))
            response = connection.response()
            assert (response.status, response.body) == (200, b"x")
            assert response.value(name) is None
            assert response.value("X-Other") == "kept"


@pytest.mark.parametrize("value", ["close", "Close", "x, close", "close, keep-alive"])
def test_connection_close_of_the_application_is_obeyed(server: Server, value: str) -> None:
    with server.connect() as connection:
        connection.send(get(script(headers=[["Connection", value]], pieces=PIECES)))
        response = connection.response()
        assert response.body == BODY
        assert response.values("Connection") == ["close"]
        connection.expect_close()


def test_fields_that_are_left_out_are_told_once(serve: Servers) -> None:
    server = serve("scripted:app")
    for _ in range(3):
        for name in ("Connection", "Keep-Alive"):
            ask(server, headers=[[name, "keep-alive"]], pieces=["x"])
    server.wait_log(r" info the application sets the response field Keep-Alive, ")
    server.wait_log(r" info the application sets the response field Connection, ")
    assert server.stop() == 0
    assert server.log().count("the application sets the response field") == 2


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"status": "20x Odd"}, r'ValueError: status "20x Odd": the status must be three digits'),
        ({"headers": [["X Name", "x"]]}, r"ValueError: response field X Name: x: .*token"),
        ({"headers": [["X-Name", "a\nb"]]}, r"ValueError: response field X-Name: a\\x0ab: "),
        (
            {"headers": [["X-Name", {"odd": "int"}]]},
            "TypeError: response field X-Name: the value is of type int; PEP 3333 wants a str",
        ),
        (
            {"headers": [["X-Name", {"odd": "wide"}]]},
            r'ValueError: response field X-Name: ".*" is not Latin-1',
        ),
    ],
)
def test_what_is_wrong_names_the_field(server: Server, spec: dict[str, Any], said: str) -> None:
    expect_500(server, said, **spec, **({} if "pieces" in spec else {"pieces": ["x"]}))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"status": ""}, id="empty status"),
        pytest.param({"status": "OK"}, id="status without a number"),
        pytest.param({"status": "20 Short"}, id="status of two digits"),
        pytest.param({"status": "2000 Long"}, id="status of four digits"),
        pytest.param({"status": "20x Odd"}, id="status with a letter"),
        pytest.param({"status": {"odd": "bytes"}}, id="status of bytes"),
        pytest.param({"status": {"odd": "int"}}, id="status as a number"),
        pytest.param({"status": {"odd": "none"}}, id="status None"),
        pytest.param({"status": "200 \u20ac"}, id="status beyond Latin-1"),
        pytest.param({"headers": [["X-Name", {"odd": "int"}]]}, id="value as a number"),
        pytest.param({"headers": [["X-Name", {"odd": "bytes"}]]}, id="value of bytes"),
        pytest.param({"headers": [["X-Name", {"odd": "none"}]]}, id="value None"),
        pytest.param({"headers": [["X-Name", {"odd": "wide"}]]}, id="value beyond Latin-1"),
        pytest.param({"headers": [[{"odd": "bytes"}, "x"]]}, id="name of bytes"),
        pytest.param({"headers": [[{"odd": "wide"}, "x"]]}, id="name beyond Latin-1"),
        pytest.param({"headers": [["", "x"]]}, id="empty name"),
        pytest.param({"headers": [["X Name", "x"]]}, id="space in the name"),
        pytest.param({"headers": [["X-Name:", "x"]]}, id="colon in the name"),
        pytest.param({"headers": [["X-N\xe9", "x"]]}, id="Latin-1 in the name"),
        pytest.param({"headers": [["X-Name"]]}, id="field of one part"),
        pytest.param({"headers": [["X-Name", "x", "y"]]}, id="field of three parts"),
        pytest.param({"headers": {"odd": "none"}}, id="no fields"),
        pytest.param({"headers": {"odd": "int"}}, id="fields as a number"),
        pytest.param({"headers": [["Content-Length", "abc"]]}, id="length in letters"),
        pytest.param({"headers": [["Content-Length", "-1"]]}, id="length below zero"),
        pytest.param({"headers": [["Content-Length", "+1"]]}, id="length with a sign"),
        pytest.param({"headers": [["Content-Length", "1, 1"]]}, id="length as a list"),
        pytest.param({"headers": [["Content-Length", ""]]}, id="length empty"),
        pytest.param({"headers": [["Content-Length", "1" * 30]]}, id="length too large"),
        pytest.param(
            {"headers": [["Content-Length", "1"], ["Content-Length", "2"]]}, id="two lengths"
        ),
    ],
)
def test_wrong_arguments_of_start_response(server: Server, spec: dict[str, Any]) -> None:
    """What cannot be sent as it is, is refused where the application gives it."""
    expect_500(server, "Traceback", pieces=["x"], **spec)


@pytest.mark.parametrize("odd", ["str", "int", "none"])
@pytest.mark.parametrize("shape", ["list", "tuple", "iterator", "generator", "write"])
def test_piece_that_is_no_bytes(server: Server, shape: str, odd: str) -> None:
    """A body is made of bytes; anything else is an error, and nothing of the body is sent."""
    expect_500(server, "TypeError|bytes", shape=shape, pieces=[{"odd": odd}])


@pytest.mark.parametrize("odd", ["str", "int", "none", "bytes"])
def test_body_that_is_no_iterable_of_bytes(server: Server, odd: str) -> None:
    """None, a number, a str, and bytes themselves, whose items are numbers."""
    expect_500(server, "TypeError|bytes|iterable", shape="returned", pieces=[{"odd": odd}])


@pytest.mark.parametrize("shape", ["iterator", "generator", "write"])
def test_later_piece_that_is_no_bytes(server: Server, shape: str) -> None:
    """When something is sent already, the response is cut so that nobody takes it for whole."""
    expect_truncated(server, shape=shape, pieces=["first", {"odd": "str"}, "last"])
    server.wait_log("TypeError|bytes")


def test_list_with_one_wrong_piece(server: Server) -> None:
    """A list may be looked through first: 500, or cut after what was right."""
    with server.connect() as connection:
        connection.send(get(script(pieces=["first", {"odd": "str"}])))
        with contextlib.suppress(Truncated):
            assert connection.response().status == 500
    server.wait_log("TypeError|bytes")


# start_response more than once, or never


def test_second_start_response(corners: Server) -> None:
    """Row: 2nd start_response without exc_info raises."""
    response = corners.exchange(get("/twice"))
    assert response.body.startswith(b"raised ")
    assert (response.status, response.reason) == (200, "First")
    assert response.values("X-Call") == ["first"]


def test_exc_info_replaces(corners: Server) -> None:
    """Row: start_response(exc_info) replaces status and headers."""
    response = corners.exchange(get("/exc_info_replaces"))
    assert (response.status, response.reason) == (409, "New")
    assert response.value("X-Old") is None
    assert response.value("X-New") == "1"
    assert response.value("Content-Length") != "100"
    assert response.body == b"new body"


def test_exc_info_in_the_first_call(corners: Server) -> None:
    """It is no error to give it from the start, nor to give None."""
    response = corners.exchange(get("/exc_info_first"))
    assert (response.status, response.body) == (503, b"sorry")
    assert corners.exchange(get("/exc_info_none")).body == b"none"


def test_exc_info_after_the_head(corners: Server) -> None:
    """PEP 3333: when the head is sent, start_response raises the exception that it was given."""
    with corners.connect() as connection:
        connection.send(get("/exc_info_too_late"))
        assert connection.head().status == 200
        assert connection.chunk() == b"first"
        corners.open_gate("too-late")
        with pytest.raises(Truncated):
            connection.chunk()
    event = corners.wait_event("reraised")[0]
    assert (event["kind"], event["message"]) == ("LookupError", "after the head")
    corners.wait_log("after the head")


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize(
    "kind",
    [
        "no exception class",
        "no exception",
        "text",
        "class alone",
        "no traceback",
        "traceback alone",
        "pair",
        "list",
        "bare exception",
        "true",
    ],
)
def test_wrong_exc_info(corners: Server, kind: str, when: str) -> None:
    """What cannot be raised is the same error before the head is sent and after it."""
    response = corners.exchange(get(f"/wrong_exc_info?{kind.replace(' ', '+')}&{when}"))
    assert response.status == 200
    assert re.search(rb"TypeError: exc_info .*sys.exc_info\(\)", response.body), response.body
    assert corners.exchange(get("/hello")).body == b"hello"


def test_exc_info_of_no_exception(corners: Server) -> None:
    """sys.exc_info() outside of an except clause replaces the head, and cannot be raised."""
    response = corners.exchange(get("/wrong_exc_info?outside&early"))
    assert (response.status, response.reason) == (500, "Replaced")
    assert response.body == b"no error"
    response = corners.exchange(get("/wrong_exc_info?outside&late"))
    assert response.status == 200
    assert response.body.startswith(b"late TypeError: exc_info ")


@pytest.mark.parametrize("target", ["/never", "/never_and_empty"])
def test_start_response_never_called(corners: Server, target: str) -> None:
    """A body without a head is an error of the application."""
    response = corners.exchange(get(target))
    assert response.status == 500
    assert b"no head" not in response.body
    corners.wait_log("start_response")


def test_write_of_text(corners: Server) -> None:
    """write() takes bytes as well, and raises in the application."""
    assert corners.exchange(get("/write_text")).status == 500
    corners.wait_log("in write_text")


# More or fewer bytes than promised


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("shape", ["list", "iterator", "generator", "write", "sized"])
def test_body_longer_than_its_length(server: Server, shape: str, version: str) -> None:
    """Row: body longer than Content-Length -> truncated; closed, and logged."""
    target = script("/longer", shape=shape, pieces=PIECES, headers=[["Content-Length", "6"]])
    with server.connect() as connection:
        connection.send(get(target, "Connection: keep-alive", version=version))
        response = connection.response()
        assert response.status == 200
        assert response.body == BODY[:6]
        connection.expect_cut()
    server.wait_log("Content-Length|/longer")
    assert ask(server, pieces=["alive"]).body == b"alive"


@pytest.mark.parametrize("shape", ["iterator", "generator", "write", "sized", "list"])
@pytest.mark.parametrize("pieces", [PIECES, ["one"], []], ids=["many", "one", "none"])
def test_body_shorter_than_its_length(server: Server, shape: str, pieces: list[str]) -> None:
    """Row: body shorter than Content-Length -> connection closed, and logged."""
    target = script("/shorter", shape=shape, pieces=pieces, headers=[["Content-Length", "20"]])
    with server.connect() as connection:
        connection.send(get(target))
        with contextlib.suppress(Truncated):
            # What is known to be too short before anything is sent may be a 500 as well.
            assert connection.response().status == 500
    server.wait_log("Content-Length|/shorter")
    assert ask(server, pieces=["alive"]).body == b"alive"


def test_longer_body_is_not_iterated_to_its_end(server: Server) -> None:
    """Where the length is reached the iteration may stop, and the iterable is closed."""
    pieces = ["x" * 10] * 300
    headers = [["Content-Length", "5"]]
    response = ask(server, shape="iterator", pieces=pieces, headers=headers, tag="cut")
    assert response.body == b"x" * 5
    server.wait_event("closed", tag="cut")
    assert len(server.events("piece", tag="cut")) < 300
    server.errors_expected = True


# Exceptions

KINDS = ["RuntimeError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "Own", "MemoryError"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["call", "started", "iter"])
def test_exception_before_the_head(server: Server, point: str, kind: str) -> None:
    """Row: `sys.exit()` in a view does not stop the server; nor does any other exception."""
    log = rf"(?s)Traceback.*scripted at {point}"
    expect_500(server, log, shape="iterator", raise_at=point, kind=kind, pieces=["x"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["iterator", "generator", "lazy", "write"])
def test_exception_before_the_first_piece(server: Server, shape: str, kind: str) -> None:
    """A head that start_response has got but no client: 500, and none of its fields."""
    response = expect_500(
        server,
        "(?s)Traceback.*scripted at 0",
        shape=shape,
        raise_at=0,
        kind=kind,
        pieces=["x"],
        headers=[["X-From", "application"], ["Content-Length", "1"]],
    )
    assert response.value("X-From") is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["iterator", "generator", "write"])
def test_exception_mid_stream(server: Server, shape: str, kind: str) -> None:
    """Row: exception mid-stream visible to client (no clean end)."""
    expect_truncated(server, shape=shape, raise_at=2, kind=kind, pieces=PIECES)
    server.wait_log("(?s)Traceback.*scripted at 2")


@pytest.mark.parametrize("shape", ["iterator", "generator", "write"])
def test_exception_after_the_last_piece(server: Server, shape: str) -> None:
    """The iterable ends by raising: that is no clean end either."""
    expect_truncated(server, shape=shape, raise_at=3, pieces=PIECES)
    server.wait_log("(?s)Traceback.*scripted at 3")


def test_exception_with_a_length(server: Server) -> None:
    """With a Content-Length the missing bytes tell."""
    headers = [["Content-Length", "13"]]
    expect_truncated(server, shape="iterator", raise_at=1, pieces=PIECES, headers=headers)
    server.wait_log("(?s)Traceback.*scripted at 1")


@pytest.mark.parametrize("kind", KINDS)
def test_exception_in_close(server: Server, kind: str) -> None:
    """The response is whole by then; the exception is logged and harms nobody."""
    spec = {"shape": "iterator", "raise_at": "close", "kind": kind, "pieces": PIECES}
    assert ask(server, **spec).body == BODY
    server.wait_log("scripted at close")
    assert ask(server, pieces=["alive"]).body == b"alive"


def test_the_traceback_is_the_applications(server: Server) -> None:
    """It says where in the application, and of which request; not a frame of the server's."""
    expect_500(server, "(?s)Traceback.*scripted.py.*in reach", path="/where", raise_at="call")
    server.wait_log("/where")
    assert server.test_log().count("Traceback") == 1


def test_exceptions_do_not_leak_into_later_requests(server: Server) -> None:
    """Fifty failures in turn with fifty successes, on one connection where it stays open."""
    for _ in range(50):
        assert ask(server, raise_at="call", kind="SystemExit").status == 500
        assert ask(server, pieces=["fine"]).body == b"fine"
    server.errors_expected = True
    # All of them: the last ones would be the next test's.
    wait_until(
        lambda: server.test_log().count("SystemExit: scripted at call") == 50,
        PATIENCE,
        server.test_log,
    )


# close()

CLOSING = ["iterator", "generator", "closing list", "sized", "lazy"]


def closed_once(server: Server, tag: str) -> None:
    """close() has been called, and not twice."""
    server.wait_event("closed", tag=tag)
    # With one thread, this request comes after all that the one before has left to do.
    assert ask(server, pieces=["barrier"]).body == b"barrier"
    assert len(server.events("closed", tag=tag)) == 1


@pytest.mark.parametrize("shape", CLOSING)
def test_close_at_the_end(server: Server, shape: str) -> None:
    """Row: iterator close() always."""
    tag = f"end {shape}"
    assert ask(server, shape=shape, pieces=PIECES, tag=tag).body == BODY
    closed_once(server, tag)


@pytest.mark.parametrize("shape", CLOSING)
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_close_without_a_body(server: Server, shape: str, status: str) -> None:
    """Where the body is dropped, its iterable is closed all the same."""
    tag = f"{status} {shape}"
    assert ask(server, shape=shape, pieces=PIECES, status=status, tag=tag).body == b""
    closed_once(server, tag)
    server.errors_expected = True


@pytest.mark.parametrize("shape", ["iterator", "generator"])
@pytest.mark.parametrize("point", [1, 3])
def test_close_after_an_exception(server: Server, shape: str, point: int) -> None:
    """An iteration that fails is closed as well."""
    tag = f"exception {shape} {point}"
    expect_truncated(server, shape=shape, raise_at=point, pieces=PIECES, tag=tag)
    closed_once(server, tag)
    server.errors_expected = True


def test_close_when_iter_raises(server: Server) -> None:
    """The object that the application returned is closed, also when it cannot be iterated."""
    tag = "iter raises"
    assert ask(server, shape="iterator", raise_at="iter", pieces=PIECES, tag=tag).status == 500
    closed_once(server, tag)
    server.errors_expected = True


@pytest.mark.parametrize("length", ["5", "50"])
def test_close_with_a_wrong_length(server: Server, length: str) -> None:
    """Cut or too short: closed."""
    tag = f"length {length}"
    headers = [["Content-Length", length]]
    target = script(shape="iterator", pieces=PIECES, headers=headers, tag=tag)
    with server.connect() as connection:
        connection.send(get(target))
        connection.read_to_end(reset_counts=True)
    closed_once(server, tag)
    server.errors_expected = True


def test_close_with_a_wrong_piece(server: Server) -> None:
    """A piece of text ends the iteration and closes the iterable."""
    tag = "wrong piece"
    assert ask(server, shape="iterator", pieces=[{"odd": "str"}], tag=tag).status == 500
    closed_once(server, tag)
    server.errors_expected = True


def test_close_that_raises_is_not_repeated(server: Server) -> None:
    """Once means once."""
    tag = "close raises"
    assert ask(server, shape="iterator", raise_at="close", pieces=PIECES, tag=tag).body == BODY
    closed_once(server, tag)
    server.errors_expected = True


@pytest.mark.parametrize("target", ["/odd", "/odd_file"])
def test_close_that_cannot_be_looked_for(corners: Server, target: str) -> None:
    """The response is whole, and the exception is in the log."""
    assert corners.exchange(get(f"{target}?close&ValueError")).body == b"one two"
    corners.wait_log("ValueError: odd close")


@pytest.mark.parametrize("target", ["/odd", "/odd_file"])
def test_close_that_is_not_there(corners: Server, target: str) -> None:
    """An AttributeError says no more than that."""
    assert corners.exchange(get(f"{target}?close&AttributeError")).body == b"one two"


def test_length_that_cannot_be_told(corners: Server) -> None:
    """Other exceptions than those that wsgiref takes for "there is none" are the application's."""
    for kind in ("TypeError", "AttributeError", "NotImplementedError"):
        assert corners.exchange(get(f"/odd?len&{kind}")).body == b"one two"
    assert corners.exchange(get("/odd?len&MemoryError")).status == 500
    corners.wait_log("MemoryError: odd len")


def test_file_that_cannot_say_whether_it_is_readable(corners: Server) -> None:
    """It is read, and the exception is not left for whoever comes next."""
    response = corners.exchange(get("/odd_truth"))
    assert response.body == (APPLICATIONS / "responding.py").read_bytes()


def test_exception_that_does_not_tell_its_class(corners: Server) -> None:
    """It is what is logged, though the client has left, and nothing of the server's."""
    with corners.connect() as connection:
        head = get("/faceless", "Content-Length: 9", "Expect: 100-continue", method="POST")
        connection.send(head)
        assert connection.interim_response().status == 100
    corners.wait_log("application error: Faceless; POST")
    assert "SystemError" not in corners.test_log()


@pytest.mark.parametrize("end", ["close", "reset"])
def test_close_when_the_client_has_gone(serve: Servers, end: str) -> None:
    """Row: client disconnect -> iterator `close()` soon."""
    server = serve("responding:app")
    with server.connect() as connection:
        connection.send(get("/drip"))
        assert connection.head().status == 200
        assert connection.chunk() == b"drip\n"
        if end == "reset":
            connection.reset()
    server.wait_event("closed", tag="drip")
    assert not server.events("dripped out")
    assert server.exchange(get("/hello")).body == b"hello"
    assert len(server.events("closed", tag="drip")) == 1


def test_client_gone_is_no_error(serve: Servers) -> None:
    """Nobody has done anything wrong: no traceback."""
    server = serve("responding:app")
    for _ in range(5):
        with server.connect() as connection:
            connection.send(get("/large_iterator?400"))
            connection.take(1000)
            connection.reset()
    server.wait_event("closed", tag="large_iterator", count=5)
    assert server.exchange(get("/hello")).body == b"hello"
    assert "Traceback" not in server.log()


# wsgi.file_wrapper


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("kind", ["real", "plain", "memory", "offset", "empty", "pipe", "wrapped"])
def test_file_wrapper(corners: Server, kind: str, version: str) -> None:
    """Row: `wsgi.file_wrapper` offered and works; with files of each kind."""
    large = bytes(range(256)) * (24 << 12)
    expected = {
        "offset": large[1000:],
        "empty": b"",
        "pipe": b"through a pipe",
        "wrapped": b"ABCDEF",
    }.get(kind, large)
    response = corners.exchange(get(f"/file?{kind}", version=version))
    assert response.status == 200
    assert response.body == expected


def test_file_wrapper_keeps_the_connection(corners: Server) -> None:
    """Files between other responses on one connection, each closed once."""
    before = {tag: len(corners.events("closed", tag=tag)) for tag in ("real", "memory")}
    with corners.connect() as connection:
        for kind in ("real", "memory", "real"):
            connection.send(get(f"/file?{kind}"))
            assert len(connection.response().body) == LARGE_SIZE
            connection.send(get("/hello"))
            assert connection.response().body == b"hello"
    corners.wait_event("closed", tag="real", count=before["real"] + 2)
    corners.wait_event("closed", tag="memory", count=before["memory"] + 1)
    assert len(corners.events("closed", tag="real")) == before["real"] + 2
    assert len(corners.events("closed", tag="memory")) == before["memory"] + 1


@pytest.mark.parametrize("kind", ["real", "memory"])
def test_file_with_its_length(corners: Server, kind: str) -> None:
    """A Content-Length of the application's frames a file too."""
    response = corners.exchange(get(f"/file?{kind}&{LARGE_SIZE}"))
    assert response.framing == "content-length"
    assert len(response.body) == LARGE_SIZE


@pytest.mark.parametrize("kind", ["real", "memory"])
def test_file_longer_than_its_length(corners: Server, kind: str) -> None:
    """No more of a file is sent than was promised; PEP 3333 wants it so, and it is no error."""
    with corners.connect() as connection:
        connection.send(get(f"/file?{kind}&1000") + get("/hello"))
        response = connection.response()
        assert response.body == (bytes(range(256)) * 4)[:1000]
        assert connection.response().body == b"hello"


@pytest.mark.parametrize("kind", ["real", "memory", "empty"])
def test_file_shorter_than_its_length(corners: Server, kind: str) -> None:
    """And a file that is too short does not look whole."""
    with corners.connect() as connection:
        connection.send(get(f"/file?{kind}&{LARGE_SIZE + 1}"))
        with contextlib.suppress(Truncated):
            assert connection.response().status == 500
    corners.errors_expected = True


def test_head_of_a_file(corners: Server) -> None:
    """HEAD sends none of it, and closes it."""
    before = len(corners.events("closed", tag="real"))
    with corners.connect() as connection:
        connection.send(get(f"/file?real&{LARGE_SIZE}", method="HEAD"))
        assert connection.response("HEAD").value("Content-Length") == str(LARGE_SIZE)
        connection.send(get("/hello"))
        assert connection.response().body == b"hello"
    corners.wait_event("closed", tag="real", count=before + 1)


def test_client_gone_in_the_middle_of_a_file(corners: Server) -> None:
    """The file is closed when nobody wants the rest of it."""
    before = len(corners.events("closed", tag="real"))
    with corners.connect(receive_buffer=4096) as connection:
        connection.send(get("/file?real"))
        connection.take(1000)
        connection.reset()
    corners.wait_event("closed", tag="real", count=before + 1)
    assert corners.exchange(get("/hello")).body == b"hello"


def test_file_that_holds_its_wrapper(corners: Server) -> None:
    """The garbage collector finds the cycle."""
    assert corners.exchange(get("/cycle")).body == b"0 left"


def test_wrapper_that_the_collector_has_taken_apart(corners: Server) -> None:
    """It has no file any more, and says so when it is read."""
    assert corners.exchange(get("/collected")).status == 500
    corners.wait_log("AttributeError: 'NoneType' object has no attribute 'read'")


# What the server offers besides


def test_errors_stream(corners: Server) -> None:
    """wsgi.errors goes to the log, line by line, whatever the characters."""
    assert corners.exchange(get("/errors")).body == b"ok"
    corners.wait_log("written with caf")
    corners.wait_log("lines one\nlines two|lines one(.|\n)*lines two")
    corners.wait_log("printed for good measure")


def test_early_hints(corners: Server) -> None:
    """Row: `wsgi.early_hints` (103)."""
    with corners.connect() as connection:
        for _ in range(2):
            connection.send(get("/hints"))
            response = connection.response()
            assert response.body == b"ok"
            assert [interim.status for interim in response.interim] == [103, 103]
            first, second = response.interim
            assert first.fields == [("Link", "</style.css>; rel=preload; as=style")]
            assert second.values("X-Hint") == ["two"]


def test_early_hints_are_not_for_http_1_0(corners: Server) -> None:
    """RFC 9110 section 15.2: a 1.0 client gets no interim response."""
    response = corners.exchange(get("/hints", version="1.0"))
    assert response.interim == []
    assert response.body == b"ok"


def test_client_disconnected(serve: Servers) -> None:
    """serve_zig.client_disconnected tells a handler that nobody waits for it any more."""
    server = serve("responding:app")
    with server.connect() as connection:
        connection.send(get("/disconnected"))
        assert server.wait_event("asked")[0]["gone"] is False
        # A reset, not a close: that looks like a half-close, whose client still waits.
        connection.reset()
    assert server.wait_event("noticed")[0]["gone"] is True
    assert server.exchange(get("/hello")).body == b"hello"


def test_a_factory(serve: Servers) -> None:
    """app.target may name a factory, which is called once."""
    server = serve("echo:create_app()")
    for _ in range(3):
        assert server.exchange(post("/", b"made")).json()["body"] == "made"
    assert len(server.events("factory")) == 1


def test_log_lines_cannot_be_forged(server: Server) -> None:
    """A request's target in the log has its control characters escaped, decoded or not."""
    target = script("/%0d%0aFORGED", raise_at="call")
    assert server.exchange(get(target)).status == 500
    server.wait_log("scripted at call")
    assert not re.search("^FORGED", server.test_log(), re.MULTILINE)
