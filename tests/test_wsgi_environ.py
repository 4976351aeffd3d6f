"""The environ of PEP 3333 and of the contract, as an application finds it."""

from typing import Any

import pytest

from serving import Server, Servers
from wire import get, post, post_chunked


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """One server for the whole module: an environ may remember nothing."""
    return serve_module("inspecting:app")


def environ_of(server: Server, request: bytes) -> dict[str, Any]:
    """Return the environ that a request led to."""
    response = server.exchange(request)
    assert response.status == 200, response.body
    answer = response.json()
    assert answer["type"] == "dict"
    assert answer["odd"] == []
    environ = answer["environ"]
    assert isinstance(environ, dict)
    return environ


def test_required_by_pep_3333(server: Server) -> None:
    """Every key that PEP 3333 requires, and each of its own type."""
    environ = environ_of(server, get("/path?query"))
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"] == "/path"
    assert environ["QUERY_STRING"] == "query"
    assert environ["SERVER_NAME"]
    assert environ["SERVER_PORT"] == str(server.port)
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["wsgi.version"] == [1, 0]
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.multithread"] is True
    assert environ["wsgi.multiprocess"] is False
    assert environ["wsgi.run_once"] is False
    assert environ["wsgi.input"].startswith("<")
    assert environ["wsgi.errors"].startswith("<")


def test_offered_besides(server: Server) -> None:
    """What the contract adds to PEP 3333."""
    answer = server.exchange(get("/path?query")).json()
    environ = answer["environ"]
    assert environ["wsgi.input_terminated"] is True
    assert environ["RAW_URI"] == "/path?query"
    assert environ["REQUEST_URI"] == "/path?query"
    assert {"wsgi.file_wrapper", "wsgi.early_hints", "serve_zig.client_disconnected"} <= set(
        answer["callables"]
    )


def test_each_request_has_its_own_id(server: Server) -> None:
    """serve_zig.request_id tells requests apart, serve_zig.queue_seconds is a time."""
    with server.connect() as connection:
        found = []
        for _ in range(3):
            connection.send(get("/"))
            environ = connection.response().json()["environ"]
            assert isinstance(environ["serve_zig.queue_seconds"], float)
            assert environ["serve_zig.queue_seconds"] >= 0
            found.append(environ["serve_zig.request_id"])
        assert all(isinstance(one, str) and one for one in found)
        assert len(set(found)) == 3


def test_empty_strings_where_pep_3333_wants_them(server: Server) -> None:
    """SCRIPT_NAME and QUERY_STRING are there and empty; without a body nothing describes one."""
    environ = environ_of(server, get("/"))
    assert environ["SCRIPT_NAME"] == ""
    assert environ["QUERY_STRING"] == ""
    assert "CONTENT_TYPE" not in environ
    assert "CONTENT_LENGTH" not in environ
    assert "HTTP_CONTENT_TYPE" not in environ
    assert "HTTP_CONTENT_LENGTH" not in environ


def test_content_type_and_length(server: Server) -> None:
    """They stand under their own names, once."""
    environ = environ_of(server, post("/", b"a=b", "content-type: text/x-test; a=b"))
    assert environ["CONTENT_TYPE"] == "text/x-test; a=b"
    assert environ["CONTENT_LENGTH"] == "3"
    assert "HTTP_CONTENT_TYPE" not in environ
    assert "HTTP_CONTENT_LENGTH" not in environ


def test_content_length_of_nothing(server: Server) -> None:
    """A Content-Length of zero is one."""
    assert environ_of(server, post("/", b""))["CONTENT_LENGTH"] == "0"


def test_content_length_of_a_chunked_body(server: Server) -> None:
    """A length that nobody sent is absent, or that of the decoded body."""
    environ = environ_of(server, post_chunked("/", b"hello"))
    assert environ.get("CONTENT_LENGTH") in (None, "5")


# Paths


def test_path_is_decoded_to_latin_1(server: Server) -> None:
    """Row (second battery): PATH_INFO for /p/%C3%A9%2Fz%20a//b/../c ; X-A: caf, C3, A9."""
    target = "/p/%C3%A9%2Fz%20a//b/../c?x=%C3%A9"
    environ = environ_of(server, get(target, "X-A: caf\xc3\xa9"))
    assert environ["PATH_INFO"] == "/p/\xc3\xa9/z a//b/../c"
    assert environ["HTTP_X_A"] == "caf\xc3\xa9"
    assert environ["QUERY_STRING"] == "x=%C3%A9"
    assert environ["RAW_URI"] == target
    assert environ["REQUEST_URI"] == target


def test_path_that_is_no_utf_8(server: Server) -> None:
    """Row (second battery): PATH_INFO for /p/%FF."""
    assert environ_of(server, get("/p/%FF"))["PATH_INFO"] == "/p/\xff"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/%2e%2E/a", "/../a"),
        ("/a%00b", "/a\x00b"),
        ("/a%0d%0ab", "/a\r\nb"),
        ("/a+b", "/a+b"),
        ("/a%2Bb", "/a+b"),
        ("/a%25b", "/a%b"),
        ("/a%2525", "/a%25"),
        ("/a;p=1", "/a;p=1"),
        ("/a%3Fb", "/a?b"),
        ("/a%23b", "/a#b"),
        ("/./a/../b//", "/./a/../b//"),
        ("//a", "//a"),
        ("/" + "%41" * 1000, "/" + "A" * 1000),
    ],
)
def test_path_is_decoded_once_and_not_more(server: Server, target: str, path: str) -> None:
    """Percent-decoding alone: no normalisation, no second round, no plus."""
    environ = environ_of(server, get(target))
    assert environ["PATH_INFO"] == path
    assert environ["RAW_URI"] == target


@pytest.mark.parametrize("query", ["a=b&c=d", "%41", "a+b", "?", "a?b=/c", "[x]=1", "'\"<>|{}^`"])
def test_query_is_left_alone(server: Server, query: str) -> None:
    """QUERY_STRING is what was sent."""
    try:
        environ = environ_of(server, get(f"/?{query}"))
    except AssertionError:
        # What RFC 3986 does not allow in a query may be refused, but never changed.
        assert set(query) & set("[]'\"<>|{}^`")
        assert server.exchange(get(f"/?{query}")).status == 400
        return
    assert environ["QUERY_STRING"] == query


def test_asterisk(server: Server) -> None:
    """OPTIONS * reaches the application as it is."""
    environ = environ_of(server, get("*", method="OPTIONS"))
    assert environ["PATH_INFO"] == "*"
    assert environ["RAW_URI"] == "*"


def test_absolute_form(server: Server) -> None:
    """The path is the path, the authority is the host, the target stays as it was."""
    target = "http://other.example:99/path%20?query"
    environ = environ_of(server, get(target))
    assert environ["PATH_INFO"] == "/path "
    assert environ["QUERY_STRING"] == "query"
    assert environ["HTTP_HOST"] == "other.example:99"
    assert environ["RAW_URI"] == target
    assert environ["SERVER_PORT"] == str(server.port)


# Fields


def test_field_names(server: Server) -> None:
    """HTTP_ and the name in capitals, hyphens as underscores."""
    environ = environ_of(server, get("/", "x-Some-field: 1", "Accept: */*"))
    assert environ["HTTP_X_SOME_FIELD"] == "1"
    assert environ["HTTP_ACCEPT"] == "*/*"
    assert environ["HTTP_HOST"] == "test.example"


def test_repeated_fields_are_joined(server: Server) -> None:
    """Row: repeated header joined."""
    environ = environ_of(server, get("/", "X-A: 1", "X-B: other", "x-a: 2", "X-A:", "X-A: 3"))
    assert environ["HTTP_X_A"] == "1, 2, , 3"
    assert environ["HTTP_X_B"] == "other"


def test_repeated_cookies_are_joined(server: Server) -> None:
    """Row: repeated Cookie joined with `; `."""
    environ = environ_of(server, get("/", "Cookie: a=1", "X-Other: x", "cookie: b=2"))
    assert environ["HTTP_COOKIE"] == "a=1; b=2"


def test_underscore_names_are_dropped(server: Server) -> None:
    """Row: `X_Real_IP` cannot spoof `X-Real-IP`."""
    forged = ["X_Real_IP: 6.6.6.6", "X-Real-IP: 1.1.1.1", "X_Real-IP: 6.6.6.6"]
    assert environ_of(server, get("/", *forged))["HTTP_X_REAL_IP"] == "1.1.1.1"
    assert "HTTP_X_REAL_IP" not in environ_of(server, get("/", forged[0]))


@pytest.mark.parametrize("name", ["Content_Length", "content_type", "CONTENT_LENGTH"])
def test_underscore_names_do_not_describe_the_body(server: Server, name: str) -> None:
    """The same for the names that have no HTTP_."""
    environ = environ_of(server, get("/", f"{name}: 7"))
    assert "CONTENT_LENGTH" not in environ
    assert "CONTENT_TYPE" not in environ
    assert f"HTTP_{name.upper()}" not in environ


def test_proxy_is_never_set(server: Server) -> None:
    """Httpoxy: a Proxy field would become HTTP_PROXY, which libraries believe."""
    environ = environ_of(server, get("/", "Proxy: http://evil.example", "proxy: again"))
    assert "HTTP_PROXY" not in environ


def test_field_values_are_latin_1(server: Server) -> None:
    """Every byte above 0x7f is the character of that number."""
    value = bytes(range(0x80, 0x100)).decode("latin-1")
    assert environ_of(server, get("/", f"X-A: {value}"))["HTTP_X_A"] == value


def test_empty_field(server: Server) -> None:
    """A field without a value is there."""
    assert environ_of(server, get("/", "X-Empty:"))["HTTP_X_EMPTY"] == ""


def test_many_fields(server: Server) -> None:
    """Fields that no server has interned arrive as well as those that it has."""
    lines = [f"X-Number-{number}: {number}" for number in range(80)]
    common = ["Accept-Encoding: gzip", "User-Agent: test", "Referer: http://a/", "If-None-Match: x"]
    environ = environ_of(server, get("/", *lines, *common))
    assert all(environ[f"HTTP_X_NUMBER_{number}"] == str(number) for number in range(80))
    assert environ["HTTP_USER_AGENT"] == "test"
    assert environ["HTTP_IF_NONE_MATCH"] == "x"


@pytest.mark.parametrize("size", [1, 60, 61, 62, 63, 64, 65, 300, 5000])
def test_long_field_names(server: Server, size: int) -> None:
    """A name may be as long as the head lets it, and repeat."""
    name = "x-" + "n" * size
    environ = environ_of(server, get("/", f"{name}: 1", f"{name.upper()}: 2"))
    assert environ[f"HTTP_{name.upper().replace('-', '_')}"] == "1, 2"


def test_forwarded_fields_are_not_believed(server: Server) -> None:
    """Without a trusted proxy a client cannot say who it is, to nobody."""
    forged = [
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Proto: https",
        "Forwarded: for=6.6.6.6;proto=https",
    ]
    environ = environ_of(server, get("/", *forged))
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["wsgi.url_scheme"] == "http"
    assert "HTTPS" not in environ
    assert [key for key in environ if "FORWARDED" in key] == []


# The connection


def test_remote_address(server: Server) -> None:
    """Row: REMOTE_ADDR is a bare IP; REMOTE_PORT set."""
    with server.connect() as connection:
        connection.send(get("/"))
        environ = connection.response().json()["environ"]
        assert environ["REMOTE_ADDR"] == "127.0.0.1"
        assert environ["REMOTE_PORT"] == str(connection.socket.getsockname()[1])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_protocol(server: Server, version: str) -> None:
    """SERVER_PROTOCOL is the request's."""
    assert environ_of(server, get("/", version=version))["SERVER_PROTOCOL"] == f"HTTP/{version}"


def test_host_absent_in_http_1_0(server: Server) -> None:
    """What was not sent is not there."""
    environ = environ_of(server, b"GET / HTTP/1.0\r\n\r\n")
    assert "HTTP_HOST" not in environ
    assert environ["SERVER_NAME"]


def test_nothing_is_left_behind(server: Server) -> None:
    """What an application writes into its environ is gone with the request."""
    with server.connect() as connection:
        for target in ("/one?first", "/two", "/three"):
            connection.send(
                get(target, "X-Only: once") if target.startswith("/one") else get(target)
            )
            environ = connection.response().json()["environ"]
            assert "test.left_behind" not in environ
            assert "HTTP_X_LEFT_BEHIND" not in environ
            assert environ["SCRIPT_NAME"] == ""
            assert environ["wsgi.url_scheme"] == "http"
            assert ("HTTP_X_ONLY" in environ) is target.startswith("/one")


def test_the_same_as_a_mature_server(server: Server) -> None:
    """No CGI key is missing that applications read, and no unknown capital one is added."""
    environ = environ_of(server, post("/path?q", b"x", "Content-Type: text/plain"))
    capitals = {key for key in environ if key.isupper()} - {"SERVER_SOFTWARE"}
    assert capitals == {
        "REQUEST_METHOD",
        "SCRIPT_NAME",
        "PATH_INFO",
        "QUERY_STRING",
        "CONTENT_TYPE",
        "CONTENT_LENGTH",
        "SERVER_NAME",
        "SERVER_PORT",
        "SERVER_PROTOCOL",
        "REMOTE_ADDR",
        "REMOTE_PORT",
        "RAW_URI",
        "REQUEST_URI",
        "HTTP_HOST",
    }


def test_no_field_of_one_request_reaches_the_next(server: Server) -> None:
    """The same connection, so the same thread: what the second request lacks is not there."""
    with server.connect() as connection:
        connection.send(
            get(
                "/first?query=1",
                "Authorization: Basic c2VjcmV0",
                "Cookie: session=1",
                "X-Custom: 1",
                "Content-Type: text/plain",
            )
        )
        first = connection.response().json()["environ"]
        assert first["HTTP_AUTHORIZATION"] == "Basic c2VjcmV0"
        assert first["HTTP_COOKIE"] == "session=1"
        connection.send(get("/second"))
        second = connection.response().json()["environ"]
        assert second["PATH_INFO"] == "/second"
        assert second["QUERY_STRING"] == ""
        gained = set(first) - set(second)
        assert gained == {"HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_X_CUSTOM", "CONTENT_TYPE"}
        connection.send(get("/third", "Cookie: session=2"))
        third = connection.response().json()["environ"]
        assert third["HTTP_COOKIE"] == "session=2"
        assert "HTTP_AUTHORIZATION" not in third


@pytest.mark.parametrize("lengths", [(3, 600), (600, 3), (600, 700), (3, 600, 3), (600, 3, 600)])
def test_repeated_fields_of_any_length_keep_their_order(
    server: Server, lengths: tuple[int, ...]
) -> None:
    """Long values take another way than short ones, and are joined in the same order."""
    values = [str(number) * length for number, length in enumerate(lengths)]
    for name, separator in (("Accept", ", "), ("Cookie", "; "), ("X-Odd-One", ", ")):
        with server.connect() as connection:
            for _ in range(2):
                connection.send(get("/", *(f"{name}: {value}" for value in values)))
                environ = connection.response().json()["environ"]
                key = "HTTP_" + name.upper().replace("-", "_")
                assert environ[key] == separator.join(values)
