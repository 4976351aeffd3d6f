"""[proxy]: whom the server believes, what it believes, and what everybody else's word is worth.

Clients come from addresses of 127.0.0.0/8, of which one is trusted and the others are not. Real
proxies are in test_proxy_peers.py.
"""

import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripting import script
from serving import Server, Servers, free_port
from wire import Connection, get, post_chunked

PROXY = "127.0.0.1"
STRANGER = "127.0.0.9"

# The peer, and further proxies behind it.
TRUSTED = [PROXY, "10.0.0.0/8", "fd00::/8", "unix"]

# All that a client may forge.
FORGED = [
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port: 666",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Server: evil.example",
    "X-Forwarded-Ssl: on",
    "X-Forwarded-User: root",
    "X-forwarded-client-cert: Hash=0",
    "Forwarded: for=6.6.6.6;proto=https;host=evil.example",
]

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without configuration"
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder whose name fits into a unix socket's address."""
    with tempfile.TemporaryDirectory(prefix="sz", dir="/tmp") as path:
        yield Path(path)


def start(serve: Servers, proxy: dict[str, Any], *more_binds: str, **tables: Any) -> Server:
    """Start a server with one thread, so that each request gets what the last one left."""
    binds = [f"127.0.0.1:{free_port()}", *more_binds]
    config = {"listen": {"bind": binds}, "concurrency": {"threads": 1}, "proxy": proxy, **tables}
    return serve("inspecting:app", config)


@pytest.fixture(scope="module")
def server(serve_module: Servers, folder: Path) -> Server:
    """A server whose proxies set X-Forwarded-*, on TCP and on a unix socket."""
    return start(serve_module, {"trusted": TRUSTED}, f"unix:{folder}/x.sock")


@pytest.fixture(scope="module")
def forwarded(serve_module: Servers) -> Server:
    """A server whose proxies set Forwarded."""
    return start(serve_module, {"trusted": TRUSTED, "headers": "forwarded"})


@pytest.fixture(scope="module")
def protocol(serve_module: Servers, folder: Path) -> Server:
    """A server whose proxies begin with a PROXY header."""
    proxy = {"trusted": TRUSTED, "protocol": True}
    return start(serve_module, proxy, f"unix:{folder}/p.sock", timeouts={"head": 0.5})


def ask(connection: Connection, *fields: str, target: str = "/a") -> dict[str, Any]:
    """Return the environ that a request on the connection leads to."""
    connection.send(get(target, *fields))
    response = connection.response()
    assert response.status == 200, response.body
    environ = response.json()["environ"]
    assert isinstance(environ, dict)
    return environ


def environ_of(server: Server, *fields: str, source: str = PROXY, **more: Any) -> dict[str, Any]:
    """Return the environ that a request on a connection of its own leads to."""
    with server.connect(source=source) as connection:
        return ask(connection, *fields, **more)


def view(environ: dict[str, Any]) -> tuple[str, str, str, str, str, str, str]:
    """Return what the fields of a proxy may change, in one line."""
    return (
        environ["REMOTE_ADDR"],
        environ["REMOTE_PORT"],
        environ["wsgi.url_scheme"],
        environ["HTTP_HOST"],
        environ["SERVER_PORT"],
        environ["SCRIPT_NAME"],
        environ["PATH_INFO"],
    )


def forwarded_keys(environ: dict[str, Any]) -> list[str]:
    """Return the keys of all fields that tell something of a proxy's client."""
    return sorted(key for key in environ if "FORWARDED" in key)


def refusal(server: Server, request: bytes, source: str = PROXY) -> str:
    """Return the reason for which a request is refused, with 400 and the connection's end."""
    with server.connect(source=source) as connection:
        connection.send(request)
        response = connection.response()
        assert response.status == 400
        assert response.closes
        connection.expect_close()
        status, _, reason = response.body.decode().strip().partition(": ")
        assert status == "400 Bad Request"
        return reason


# X-Forwarded-*


@pytest.mark.parametrize(
    ("fields", "address", "port"),
    [
        (["X-Forwarded-For: 192.0.2.7"], "192.0.2.7", ""),
        (["X-Forwarded-For: 6.6.6.6, 192.0.2.7"], "192.0.2.7", ""),
        (["X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.0.0.1, 10.9.9.9"], "192.0.2.7", ""),
        (["X-Forwarded-For: 6.6.6.6", "x-forwarded-for: 192.0.2.7, 10.0.0.1"], "192.0.2.7", ""),
        (["X-Forwarded-For: 192.0.2.7", "A: b", "X-Forwarded-For: 10.0.0.1"], "192.0.2.7", ""),
        (["X-Forwarded-For: 10.0.0.2, 10.0.0.1"], "10.0.0.2", ""),
        (["X-Forwarded-For: 192.0.2.7:4711"], "192.0.2.7", "4711"),
        (["X-Forwarded-For: [2001:DB8::7]:4711, fd00::1"], "2001:db8::7", "4711"),
        (["X-Forwarded-For: 2001:db8::7"], "2001:db8::7", ""),
        (["X-Forwarded-For: ::ffff:192.0.2.7, ::ffff:10.0.0.1"], "192.0.2.7", ""),
        (["X-Forwarded-For: nonsense, 192.0.2.7"], "192.0.2.7", ""),
        (["X-Forwarded-For: 6.6.6.6, unknown, 10.0.0.1"], "", ""),
        (["X-Forwarded-For: " + "6.6.6.6, " * 500 + "192.0.2.7"], "192.0.2.7", ""),
    ],
)
def test_client_of_x_forwarded_for(
    server: Server, fields: list[str], address: str, port: str
) -> None:
    """The list is walked from the right, past the trusted, to the first that is not."""
    environ = environ_of(server, *fields)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (address, port)
    # Nothing else was said.
    assert view(environ)[2:] == ("http", "test.example", str(server.port), "", "/a")


@pytest.mark.parametrize("value", ["", " ", ",", ", ,"])
def test_list_without_elements_says_nothing(server: Server, value: str) -> None:
    """Empty elements are none (RFC 9110 5.6.1.2)."""
    with server.connect() as connection:
        environ = ask(connection, f"X-Forwarded-For: {value}", f"X-Forwarded-Proto: {value}")
        assert environ["REMOTE_ADDR"] == PROXY
        assert environ["REMOTE_PORT"] == str(connection.socket.getsockname()[1])
        assert environ["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize(
    ("fields", "scheme", "host", "port", "prefix"),
    [
        (["X-Forwarded-Proto: https"], "https", "test.example", "443", ""),
        (["X-Forwarded-Proto: HTTPS"], "https", "test.example", "443", ""),
        # Traefik's, with a request to upgrade.
        (["X-Forwarded-Proto: wss"], "https", "test.example", "443", ""),
        (["X-Forwarded-Proto: ws"], "http", "test.example", "80", ""),
        (["X-Forwarded-Proto: http"], "http", "test.example", "80", ""),
        (["X-Forwarded-Host: a.example"], "http", "a.example", "80", ""),
        (["X-Forwarded-Host: a.example:81"], "http", "a.example:81", "81", ""),
        (["X-Forwarded-Host: [::1]:81"], "http", "[::1]:81", "81", ""),
        (["X-Forwarded-Port: 8443"], "http", "test.example", "8443", ""),
        (
            ["X-Forwarded-Proto: https", "Host: b.example:444"],
            "https",
            "b.example:444",
            "444",
            "",
        ),
        (
            [
                "X-Forwarded-Proto: https",
                "X-Forwarded-Host: a.example:1",
                "X-Forwarded-Port: 8443",
                "X-Forwarded-Prefix: /shop/",
            ],
            "https",
            "a.example:1",
            "8443",
            "/shop",
        ),
        # What the proxy added to its client's forgeries.
        (
            [
                "X-Forwarded-For: 6.6.6.6, 192.0.2.7",
                "X-Forwarded-Proto: https, http",
                "X-Forwarded-Host: evil.example, a.example",
                "X-Forwarded-Port: 666",
                "X-Forwarded-Port: 8080",
                "X-Forwarded-Prefix: /evil, /shop",
            ],
            "http",
            "a.example",
            "8080",
            "/shop",
        ),
        # Two proxies that both add: the outer one saw the client.
        (
            [
                "X-Forwarded-For: 192.0.2.7, 10.0.0.1",
                "X-Forwarded-Proto: https, http",
                "X-Forwarded-Host: a.example, inner.example",
            ],
            "https",
            "a.example",
            "443",
            "",
        ),
    ],
)
def test_url_of_x_forwarded_fields(
    server: Server, fields: list[str], scheme: str, host: str, port: str, prefix: str
) -> None:
    """wsgi.url_scheme, HTTP_HOST, SERVER_PORT and SCRIPT_NAME are those that the client used."""
    environ = environ_of(server, *fields)
    assert view(environ)[2:] == (scheme, host, port, prefix, "/a")


def test_host_of_a_proxy_counts_for_every_form_of_request(server: Server) -> None:
    """Also where the target names one, and where HTTP/1.0 names none."""
    told = "X-Forwarded-Host: a.example"
    environ = environ_of(server, told, target="http://b.example/a")
    assert (environ["HTTP_HOST"], environ["PATH_INFO"]) == ("a.example", "/a")
    with server.connect() as connection:
        connection.send(f"GET /a HTTP/1.0\r\n{told}\r\n\r\n".encode())
        assert connection.response().json()["environ"]["HTTP_HOST"] == "a.example"
    with server.connect() as connection:
        connection.send(b"GET /a HTTP/1.0\r\n\r\n")
        assert "HTTP_HOST" not in connection.response().json()["environ"]
    environ = environ_of(server, "A: b", target="http://b.example/a")
    assert environ["HTTP_HOST"] == "b.example"


def test_prefix_is_what_the_proxy_has_cut_off(server: Server) -> None:
    """PATH_INFO stays as it came: a second cut would make /shop/shop/a the path /a."""
    environ = environ_of(server, "X-Forwarded-Prefix: /shop", target="/shop/a?b")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/shop/a")
    assert environ["RAW_URI"] == "/shop/a?b"
    assert environ_of(server, "X-Forwarded-Prefix: /")["SCRIPT_NAME"] == ""


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("X-Forwarded-For: localhost", "bad_forwarded_for"),
        ("X-Forwarded-For: 192.0.2.7, nonsense, 10.0.0.1", "bad_forwarded_for"),
        ("X-Forwarded-For: 192.0.2.256", "bad_forwarded_for"),
        ("X-Forwarded-For: 192.0.2.7:65536", "bad_forwarded_for"),
        ("X-Forwarded-For: for=192.0.2.7", "bad_forwarded_for"),
        ("X-Forwarded-Proto: javascript", "bad_forwarded_proto"),
        ("X-Forwarded-Proto: https://", "bad_forwarded_proto"),
        ("X-Forwarded-Host: a b", "bad_forwarded_host"),
        ("X-Forwarded-Host: a/../b", "bad_forwarded_host"),
        ("X-Forwarded-Host: user@a", "bad_forwarded_host"),
        ("X-Forwarded-Host: a:99999", "bad_forwarded_host"),
        ("X-Forwarded-Host: a:0", "bad_forwarded_host"),
        ("X-Forwarded-Port: 0", "bad_forwarded_port"),
        ("X-Forwarded-Port: 65536", "bad_forwarded_port"),
        ("X-Forwarded-Port: https", "bad_forwarded_port"),
        ("X-Forwarded-Prefix: shop", "bad_forwarded_prefix"),
        ("X-Forwarded-Prefix: //evil.example", "bad_forwarded_prefix"),
        ("X-Forwarded-Prefix: /a/../b", "bad_forwarded_prefix"),
        ("X-Forwarded-Prefix: /a?b", "bad_forwarded_prefix"),
        ("X-Forwarded-Prefix: /%2e%2e", "bad_forwarded_prefix"),
        ("X-Forwarded-Prefix: /a\\b", "bad_forwarded_prefix"),
    ],
)
def test_invalid_values_of_a_trusted_proxy_are_refused(
    server: Server, field: str, reason: str
) -> None:
    """A guess could give a client the rights of another; the connection ends with 400."""
    assert refusal(server, get("/a", field)) == reason


@pytest.mark.parametrize("port", ["1", "65535"])
def test_ports_at_their_limits(server: Server, port: str) -> None:
    """Both fields that tell one take 1 to 65535."""
    assert environ_of(server, f"X-Forwarded-Port: {port}")["SERVER_PORT"] == port
    assert environ_of(server, f"X-Forwarded-Host: a:{port}")["SERVER_PORT"] == port


def test_fields_of_a_trusted_proxy_are_passed_on(server: Server) -> None:
    """As they came, those that the server does not read too; but not those of the other kind."""
    long = "X-Forwarded-For: " + "192.0.2.200, " * 100 + "192.0.2.7"
    environ = environ_of(server, *FORGED[1:5], *FORGED[6:8], long, "Forwarded: for=6.6.6.6")
    assert environ["HTTP_X_FORWARDED_FOR"] == long.partition(": ")[2]
    assert environ["HTTP_X_FORWARDED_PROTO"] == "https"
    assert environ["HTTP_X_FORWARDED_SSL"] == "on"
    assert environ["HTTP_X_FORWARDED_USER"] == "root"
    assert "HTTP_FORWARDED" not in environ
    environ = environ_of(server, "X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 192.0.2.7")
    assert environ["HTTP_X_FORWARDED_FOR"] == "6.6.6.6, 192.0.2.7"


def test_underscores_cannot_pass_for_hyphens(server: Server) -> None:
    """X_Forwarded_For and X-Forwarded-For would be one key of the environ."""
    forged = ["X_Forwarded_For: 6.6.6.6", "X-Forwarded_For: 6.6.6.6"]
    environ = environ_of(server, forged[0], "X-Forwarded-For: 192.0.2.7", forged[1])
    assert environ["HTTP_X_FORWARDED_FOR"] == environ["REMOTE_ADDR"] == "192.0.2.7"
    environ = environ_of(server, *forged)
    assert environ["REMOTE_ADDR"] == PROXY
    assert forwarded_keys(environ) == []


def test_claims_hold_for_one_request(server: Server) -> None:
    """A proxy's connection carries many clients; what one said is not the next one's."""
    full = [
        "X-Forwarded-For: 192.0.2.7",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: a.example",
        "X-Forwarded-Prefix: /shop",
    ]
    bare = ("http", "test.example", str(server.port), "", "/a")
    with server.connect() as connection:
        own = (PROXY, str(connection.socket.getsockname()[1]))
        for _ in range(3):
            environ = ask(connection, *full)
            assert view(environ) == ("192.0.2.7", "", "https", "a.example", "443", "/shop", "/a")
            assert view(ask(connection, full[0])) == ("192.0.2.7", "", *bare)
            environ = ask(connection)
            assert view(environ) == (*own, *bare)
            assert forwarded_keys(environ) == []


def test_claims_hold_with_a_body(server: Server) -> None:
    """The bytes that they point into may move while a large body comes."""
    fields = ["X-Forwarded-For: 192.0.2.7", "X-Forwarded-Host: a.example", "X-Forwarded-Prefix: /p"]
    request = post_chunked("/a", b"x" * 40_000, b"y" * 300_000)
    lines = "".join(f"{line}\r\n" for line in fields).encode()
    request = request.replace(b"\r\n", b"\r\n" + lines, 1)
    with server.connect() as connection:
        connection.send(request)
        environ = connection.response().json()["environ"]
    assert environ["CONTENT_LENGTH"] == "340000"
    assert view(environ) == ("192.0.2.7", "", "http", "a.example", "80", "/p", "/a")


def test_log_names_the_client_and_not_the_proxy(serve: Servers) -> None:
    """An application's error is that of the client's request."""
    server = serve("scripted:app", {"proxy": {"trusted": PROXY}})
    target = script(raise_at="call", kind="ValueError")
    assert server.exchange(get(target, "X-Forwarded-For: 192.0.2.7")).status == 500
    server.wait_log(
        r"application error: ValueError; GET \".*\" from 192\.0\.2\.7, request id \w+\n"
    )


# Everybody else


@needs_linux
def test_strangers_are_not_believed(server: Server) -> None:
    """None of their fields has an effect, and none reaches the application."""
    with server.connect(source=STRANGER) as connection:
        environ = ask(connection, *FORGED, "X-Real-IP: 6.6.6.6")
        own = (STRANGER, str(connection.socket.getsockname()[1]))
        assert view(environ) == (*own, "http", "test.example", str(server.port), "", "/a")
        assert forwarded_keys(environ) == []
        # Not of the kinds that serve-zig knows: the application's to judge.
        assert environ["HTTP_X_REAL_IP"] == "6.6.6.6"
        # Nor are they judged.
        ask(connection, "X-Forwarded-For: nonsense", 'Forwarded: "', "X-Forwarded-Host: a b")


@needs_linux
def test_only_forwarded_and_x_forwarded_names_are_stripped(server: Server) -> None:
    """What merely looks like them is passed on from anybody, as docs/PROXIES.md says."""
    similar = ["X-Forwarded", "Forwarded-For", "X-Original-Forwarded-For", "X-Real-IP"]
    fields = [*FORGED, *(f"{name}: 6.6.6.6" for name in similar)]
    environ = environ_of(server, *fields, source=STRANGER)
    passed = {f"HTTP_{name.upper().replace('-', '_')}" for name in similar}
    assert {key for key in environ if environ[key] == "6.6.6.6"} == passed
    assert set(forwarded_keys(environ)) == passed - {"HTTP_X_REAL_IP"}
    assert environ["REMOTE_ADDR"] == STRANGER


HTTPS = ["https://a.example/a", "HTTPS://a.example/a"]


@needs_linux
@pytest.mark.parametrize("target", HTTPS)
def test_https_of_a_stranger_is_misdirected(server: Server, target: str) -> None:
    """RFC 9110 7.4: it came over no secured connection, whatever the client says of that."""
    for fields in ([], ["X-Forwarded-Proto: https"], ["Forwarded: proto=https"]):
        with server.connect(source=STRANGER) as connection:
            connection.send(get(target, *fields))
            response = connection.response()
            assert (response.status, response.reason) == (421, "Misdirected Request")
            assert response.body == b"421 Misdirected Request: misdirected\n"
            assert response.closes
            connection.expect_close()
    assert environ_of(server, source=STRANGER, target="http://a.example/a")["PATH_INFO"] == "/a"


@pytest.mark.parametrize("target", HTTPS)
def test_https_of_a_gateway_is_served(server: Server, target: str) -> None:
    """RFC 9110 7.4: "unless the connection is from a trusted gateway"; what it says is believed."""
    for said, scheme in (("https", "https"), ("http", "http"), ("", "http")):
        environ = environ_of(server, f"X-Forwarded-Proto: {said}", target=target)
        assert (environ["wsgi.url_scheme"], environ["RAW_URI"]) == (scheme, target)
        assert (environ["HTTP_HOST"], environ["PATH_INFO"]) == ("a.example", "/a")


@needs_linux
def test_strangers_and_proxies_share_a_server(server: Server) -> None:
    """Whom the thread has served last makes no difference."""
    full = [*FORGED[1:9], "X-Forwarded-For: 192.0.2.7"]
    with server.connect() as proxy, server.connect(source=STRANGER) as stranger:
        for _ in range(3):
            told = ask(proxy, *full)
            assert view(told)[2:6] == ("https", "evil.example", "666", "/evil")
            assert len(forwarded_keys(told)) == 9
            for fields in (full, [], FORGED):
                plain = ask(stranger, *fields)
                assert view(plain)[2:6] == ("http", "test.example", str(server.port), "")
                assert plain["REMOTE_ADDR"] == STRANGER
                assert forwarded_keys(plain) == []


def test_nobody_is_trusted_by_default(serve: Servers) -> None:
    """Forwarded fields are stripped, and the log tells once how to change that."""
    server = serve("inspecting:app")
    for _ in range(3):
        environ = environ_of(server, *FORGED)
        assert environ["REMOTE_ADDR"] == PROXY
        assert environ["wsgi.url_scheme"] == "http"
        assert forwarded_keys(environ) == []
    found = server.wait_log(r"warning forwarded fields .* from (\S+) are not believed, .*\n")
    assert found[1] == PROXY
    assert 'proxy.trusted = ["127.0.0.1"]' in found[0]
    assert server.stop() == 0
    assert server.log().count("are not believed") == 1


def test_server_without_forwarded_fields_says_nothing(serve: Servers) -> None:
    """The warning is for those whom it concerns."""
    server = serve("inspecting:app")
    environ_of(server, "X-Real-IP: 192.0.2.7", "X-Custom: a", "Via: 1.1 proxy")
    assert server.stop() == 0
    assert "are not believed" not in server.log()


def test_peers_of_a_unix_socket(serve: Servers, server: Server, folder: Path) -> None:
    """They have no address: the word "unix" stands for them."""
    field = "X-Forwarded-For: 192.0.2.7:80"
    with server.connect(server.binds[1]) as connection:
        assert view(ask(connection, field))[:2] == ("192.0.2.7", "80")
        assert view(ask(connection))[:2] == ("", "")
    other = start(serve, {"trusted": "127.0.0.1"}, f"unix:{folder}/u.sock")
    with other.connect(other.binds[1]) as connection:
        environ = ask(connection, field)
        assert environ["REMOTE_ADDR"] == ""
        assert forwarded_keys(environ) == []
    other.wait_log(r"from a unix socket are not believed.*proxy\.trusted = \[\"unix\"\]")


def test_ipv4_peer_of_an_ipv6_socket(serve: Servers) -> None:
    """An address that the kernel maps into IPv6 is in the IPv4 range all the same."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(("::", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen(64)
        port = listener.getsockname()[1]
        number = listener.fileno()
        config = {"listen": {"bind": f"fd://{number}"}, "proxy": {"trusted": "127.0.0.0/8"}}
        server = serve("inspecting:app", config, pass_fds=[number], wait=False)
        with Connection(socket.AF_INET, (PROXY, port)) as connection:
            assert ask(connection, "X-Forwarded-For: 192.0.2.7")["REMOTE_ADDR"] == "192.0.2.7"
        assert server.stop() == 0


# Forwarded


@pytest.mark.parametrize(
    ("fields", "address", "port"),
    [
        (["Forwarded: for=192.0.2.7"], "192.0.2.7", ""),
        (['forwarded: For="192.0.2.7:4711"'], "192.0.2.7", "4711"),
        (['Forwarded: for="[2001:db8::7]:4711"'], "2001:db8::7", "4711"),
        (["Forwarded: for=6.6.6.6, for=192.0.2.7, for=10.0.0.1"], "192.0.2.7", ""),
        (["Forwarded: for=6.6.6.6", "Forwarded: for=192.0.2.7,for=10.0.0.1"], "192.0.2.7", ""),
        (['Forwarded: for="_gazonk"'], "", ""),
        (["Forwarded: for=6.6.6.6, for=unknown, for=10.0.0.1"], "", ""),
        (['Forwarded: for=192.0.2.7;note="a, for=6.6.6.6;\\""'], "192.0.2.7", ""),
        (["Forwarded: for=10.0.0.2, for=10.0.0.1"], "10.0.0.2", ""),
        (["Forwarded: nonsense=1, for=192.0.2.7"], "192.0.2.7", ""),
    ],
)
def test_client_of_forwarded(forwarded: Server, fields: list[str], address: str, port: str) -> None:
    """RFC 7239: the list is walked as that of X-Forwarded-For is."""
    environ = environ_of(forwarded, *fields)
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (address, port)


def test_url_of_forwarded(forwarded: Server) -> None:
    """proto and host are those of the proxy that named the client."""
    elements = [
        "for=6.6.6.6;proto=http;host=evil.example",
        'for=192.0.2.7; proto=https; host="a.example:8443"; by=10.0.0.1',
        "for=10.0.0.1;proto=http;host=inner",
    ]
    environ = environ_of(forwarded, f"Forwarded: {', '.join(elements)}")
    assert view(environ) == ("192.0.2.7", "", "https", "a.example:8443", "8443", "", "/a")
    assert environ["HTTP_FORWARDED"] == ", ".join(elements)


def test_x_forwarded_fields_are_stripped_where_forwarded_is_used(forwarded: Server) -> None:
    """The proxies do not set them, so whatever there is comes from a client."""
    environ = environ_of(forwarded, *FORGED[:9], "Forwarded: for=192.0.2.7")
    assert view(environ)[2:] == ("http", "test.example", str(forwarded.port), "", "/a")
    assert environ["REMOTE_ADDR"] == "192.0.2.7"
    assert forwarded_keys(environ) == ["HTTP_FORWARDED"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("192.0.2.7", "bad_forwarded"),
        ("for=", "bad_forwarded"),
        ("for=192.0.2.7;for=6.6.6.6", "bad_forwarded"),
        # Else a client's quote would swallow what the proxy adds.
        ('for="6.6.6.6, for=192.0.2.7', "bad_forwarded"),
        ("for=nonsense", "bad_forwarded_for"),
        ("for=192.0.2.7;proto=gopher", "bad_forwarded_proto"),
        ('for=192.0.2.7;host="a/b"', "bad_forwarded_host"),
        ('for=192.0.2.7;host="a:0"', "bad_forwarded_host"),
    ],
)
def test_invalid_forwarded_is_refused(forwarded: Server, value: str, reason: str) -> None:
    """What cannot be read in one way alone is not read."""
    assert refusal(forwarded, get("/a", f"Forwarded: {value}")) == reason


# The PROXY protocol


V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"


def v2(family: int, addresses: bytes = b"", *, command: int = 1, fields: bytes = b"") -> bytes:
    """Return a header of version 2."""
    rest = addresses + fields
    start = b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x20 | command, family])
    return start + struct.pack("!H", len(rest)) + rest


def ipv4(source: str = "192.0.2.7", port: int = 56324) -> bytes:
    """Return the addresses of a connection over IPv4."""
    pair = socket.inet_aton(source) + socket.inet_aton("198.51.100.1")
    return pair + struct.pack("!HH", port, 443)


IPV6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 56324, 443)
)
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/proxy".ljust(108, b"\0")


@pytest.mark.parametrize(
    ("header", "address", "port"),
    [
        (V1, "192.0.2.7", "56324"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", "2001:db8::7", "56324"),
        (v2(0x11, ipv4()), "192.0.2.7", "56324"),
        (v2(0x21, IPV6), "2001:db8::7", "56324"),
        (v2(0x11, ipv4(), fields=b"\x01\0\x02h2" + b"\x04\0\x05\0\0\0\0\0"), "192.0.2.7", "56324"),
        (v2(0x11, ipv4(), fields=b"\x04" * (4096 - 12)), "192.0.2.7", "56324"),
        (v2(0x31, UNIX), "", ""),
        (v2(0x31, UNIX, fields=b"\x04\0\x01\0"), "", ""),
    ],
)
def test_client_of_a_proxy_header(protocol: Server, header: bytes, address: str, port: str) -> None:
    """The connection is the client's for its whole life, not for the first request alone."""
    with protocol.connect() as connection:
        connection.send(header)
        for _ in range(3):
            environ = ask(connection)
            assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (address, port)
            assert environ["SERVER_PORT"] == str(protocol.port)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff:ffff::1 whatever 1 2\r\n",
        v2(0x00),
        v2(0x00, b"whatever"),
        v2(0x00, command=0),
        v2(0x11, ipv4(), command=0),
    ],
)
def test_header_that_names_no_client(protocol: Server, header: bytes) -> None:
    """UNKNOWN, unspecified and LOCAL: the connection's own address stays."""
    with protocol.connect() as connection:
        connection.send(header)
        environ = ask(connection)
        assert environ["REMOTE_ADDR"] == PROXY
        assert environ["REMOTE_PORT"] == str(connection.socket.getsockname()[1])


@pytest.mark.parametrize("header", [V1, v2(0x11, ipv4(), fields=b"\x04\0\x01\0")])
def test_header_in_pieces(protocol: Server, header: bytes) -> None:
    """However it is cut, and whatever comes with its last byte."""
    request = get("/a")
    with protocol.connect() as connection:
        connection.send(header + request + request)
        assert connection.response().json()["environ"]["REMOTE_ADDR"] == "192.0.2.7"
        assert connection.response().json()["environ"]["REMOTE_ADDR"] == "192.0.2.7"
    with protocol.connect() as connection:
        connection.send_slowly(header + request)
        assert connection.response().json()["environ"]["REMOTE_ADDR"] == "192.0.2.7"
    for cut in (1, 5, 12, 15, 16, len(header) - 1, len(header), len(header) + 1):
        with protocol.connect() as connection:
            connection.send(header[:cut])
            connection.send((header + request)[cut:])
            assert connection.response().json()["environ"]["REMOTE_ADDR"] == "192.0.2.7"


@pytest.mark.parametrize(
    "data",
    [
        get("/a"),
        b"PROXY\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n" + get("/a"),
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n" + get("/a"),
        b"PROXY TCP4 2001:db8::7 2001:db8::1 56324 443\r\n" + get("/a"),
        b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n" + get("/a"),
        b"\r\n" + get("/a"),
        v2(0x11, ipv4()[:-1]) + get("/a"),
        v2(0x41, ipv4()) + get("/a"),
        v2(0x11, ipv4(), command=2) + get("/a"),
        v2(0x11, ipv4(), fields=b"\x04" * (4097 - 12)) + get("/a"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_trusted_peer_without_a_header_is_closed(protocol: Server, data: bytes) -> None:
    """Without an answer: nobody knows for whom it would be."""
    with protocol.connect() as connection:
        connection.offer(data)
        connection.expect_cut()


def test_trusted_peer_that_says_nothing_is_closed(protocol: Server) -> None:
    """timeouts.head is for the header, from the connection's beginning, and for the head anew."""
    with protocol.connect() as silent, protocol.connect() as slow, protocol.connect() as half:
        half.send(V1[:20])
        silent.expect_close(within=5)
        half.expect_close(within=5)
        slow.offer(V1)
        slow.expect_cut()
    with protocol.connect() as connection:
        connection.send(V1 + b"GET /a HTTP/1.1\r\n")
        assert connection.response().status == 408


def test_client_behind_a_header_has_the_time_of_any_client(protocol: Server) -> None:
    """With its header read a connection is idle as others are, under timeouts.keep_alive."""
    with protocol.connect() as connection:
        connection.send(V1)
        connection.expect_silence(1.0)
        assert ask(connection)["REMOTE_ADDR"] == "192.0.2.7"


@needs_linux
def test_untrusted_peers_speak_http(protocol: Server) -> None:
    """The header is required of the trusted, and worth nothing from anybody else."""
    with protocol.connect(source=STRANGER) as connection:
        for _ in range(2):
            environ = ask(connection, *FORGED)
            assert environ["REMOTE_ADDR"] == STRANGER
            assert forwarded_keys(environ) == []
    assert refusal(protocol, V1 + get("/a"), STRANGER) == "bad_request_line"
    assert refusal(protocol, v2(0x11, ipv4()) + get("/a"), STRANGER) == "bad_request_line"


def test_header_where_none_is_expected(server: Server) -> None:
    """proxy.protocol = false: nobody may send one."""
    assert refusal(server, V1 + get("/a")) == "bad_request_line"
    assert refusal(server, v2(0x11, ipv4()) + get("/a")) == "bad_request_line"


@pytest.mark.parametrize(
    ("header", "believed"),
    [
        (V1, False),
        (v2(0x11, ipv4()), False),
        (v2(0x11, ipv4("10.0.0.1")), True),
        (b"PROXY TCP6 fd00::1 fd00::2 1 2\r\n", True),
        (b"PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n", True),
        (b"PROXY UNKNOWN\r\n", False),
        (v2(0x00), False),
        (v2(0x00, command=0), False),
        (v2(0x31, UNIX), True),
    ],
)
def test_forwarded_fields_behind_a_header(protocol: Server, header: bytes, believed: bool) -> None:
    """They come from whom the header names, and are believed if that is a trusted proxy."""
    with protocol.connect() as connection:
        connection.send(header)
        for _ in range(2):
            environ = ask(connection, "X-Forwarded-For: 203.0.113.5", "X-Forwarded-Proto: https")
            assert (environ["REMOTE_ADDR"] == "203.0.113.5") == believed
            assert environ["wsgi.url_scheme"] == ("https" if believed else "http")
            assert ("HTTP_X_FORWARDED_FOR" in environ) == believed


def test_header_over_a_unix_socket(protocol: Server) -> None:
    """The word "unix" makes its peers proxies, which have to send one."""
    with protocol.connect(protocol.binds[1]) as connection:
        connection.send(V1)
        assert ask(connection)["REMOTE_ADDR"] == "192.0.2.7"
    with protocol.connect(protocol.binds[1]) as connection:
        connection.offer(get("/a"))
        connection.expect_cut()


def test_missing_header_is_logged_once(serve: Servers) -> None:
    """An operator who forgot the proxy's half finds out why nothing works."""
    server = start(serve, {"trusted": "127.0.0.0/8", "protocol": True})
    for _ in range(3):
        with server.connect() as connection:
            connection.offer(get("/a"))
            connection.expect_cut()
    server.wait_log(r"warning 127\.0\.0\.1, which proxy\.trusted holds, began without a valid")
    assert server.stop() == 0
    assert server.log().count("which proxy.trusted holds") == 1


def test_drain_does_not_wait_for_headers(serve: Servers) -> None:
    """A connection that has sent nothing is idle; one whose request has come is answered."""
    server = start(serve, {"trusted": "127.0.0.1", "protocol": True})
    with server.connect() as silent, server.connect() as connection:
        connection.send(V1)
        assert ask(connection)["REMOTE_ADDR"] == "192.0.2.7"
        assert server.stop(timeout=4) == 0
        silent.expect_cut()


def test_connections_without_a_header_make_room(serve: Servers) -> None:
    """At limits.connections they are as idle as any."""
    proxy = {"trusted": "127.0.0.1", "protocol": True}
    server = start(serve, proxy, limits={"connections": 2})
    with server.connect() as first, server.connect() as second, server.connect() as third:
        third.send(V1)
        assert ask(third)["REMOTE_ADDR"] == "192.0.2.7"
        first.expect_cut()
        second.send(V1)
        assert ask(second)["REMOTE_ADDR"] == "192.0.2.7"


def test_clients_that_leave_in_a_header(protocol: Server) -> None:
    """Whatever they left behind, the server goes on."""
    for cut in range(0, len(V1), 5):
        with protocol.connect() as connection:
            connection.send(V1[:cut])
            if cut % 2:
                connection.finish()
                connection.expect_close()
            else:
                connection.reset()
    with protocol.connect() as connection:
        connection.send(V1)
        assert ask(connection)["REMOTE_ADDR"] == "192.0.2.7"


def test_configuration_that_is_wrong(serve: Servers) -> None:
    """Exit status 2 and one line with the key."""
    for proxy, message in (
        ({"trusted": ["10.0.0.0/33"]}, 'proxy.trusted: found "10.0.0.0/33"; write an address'),
        ({"trusted": ["10.0.0.1/8"]}, "proxy.trusted: found .* bits set beyond its prefix"),
        ({"headers": "x-real-ip"}, 'proxy.headers: found .*; allowed is "x-forwarded" or'),
        ({"protocol": True}, "proxy.protocol: nobody is asked for a PROXY header"),
    ):
        server = serve("echo:app", {"proxy": proxy}, wait=False)
        assert server.wait() == 2
        server.wait_log(rf"serve\.toml:\d+: {message}")
