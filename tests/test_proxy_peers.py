"""Real proxies before the real server: HAProxy and nginx, as docs/PROXIES.md configures them."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving import Server, Servers, free_port, wait_until
from wire import PATIENCE, Connection, get, post

REPOSITORY = Path(__file__).resolve().parent.parent

#: Where clients come from, so that they are told from the proxies (127.0.0.1).
CLIENT = "127.0.0.7"
OTHER_CLIENT = "127.0.0.8"

FORGED = [
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port: 666",
    "X-Forwarded-Prefix: /evil",
    "Forwarded: for=6.6.6.6;proto=https",
]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without configuration"
)


def found(program: str) -> str:
    """Return the path of a program, or skip the test: packages of that name are Debian's."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed (apt-get install {program})")
    return path


def documented(language: str, start: str) -> str:
    """Return the block of docs/PROXIES.md that begins with a line."""
    text = (REPOSITORY / "docs" / "PROXIES.md").read_text("utf-8")
    for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL):
        if block.startswith(start):
            return str(block)
    raise AssertionError(f"no {language} block that begins with {start!r}")


class Proxy:
    """A process of HAProxy or nginx, stopped by `close`."""

    def __init__(self, folder: Path, command: list[str], ports: dict[str, int]) -> None:
        self.folder = folder
        self.ports = ports
        self._log = folder / "log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Wait until every port accepts."""

        def ready() -> bool:
            assert self._process.poll() is None, self._log.read_text("utf-8", "replace")
            for port in self.ports.values():
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                    probe.settimeout(1.0)
                    if probe.connect_ex(("127.0.0.1", port)) != 0:
                        return False
            return True

        wait_until(ready, PATIENCE, lambda: self._log.read_text("utf-8", "replace"))

    def connect(self, name: str, source: str = CLIENT) -> Connection:
        """Open a connection to one of its frontends."""
        return Connection(socket.AF_INET, ("127.0.0.1", self.ports[name]), source=source)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder whose name fits into a unix socket's address."""
    with tempfile.TemporaryDirectory(prefix="sz", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def processes() -> Iterator[ExitStack]:
    """Close the proxies when the module is done."""
    with ExitStack() as stack:
        yield stack


def start(serve: Servers, proxy: dict[str, Any], *more_binds: str) -> Server:
    """Start a server behind proxies."""
    binds = [f"127.0.0.1:{free_port()}", *more_binds]
    return serve("echo:app", {"listen": {"bind": binds}, "proxy": proxy})


@pytest.fixture(scope="module")
def fields_server(serve_module: Servers, folder: Path) -> Server:
    """A server that believes X-Forwarded-*."""
    return start(serve_module, {"trusted": ["127.0.0.1", "unix"]}, f"unix:{folder}/fields.sock")


@pytest.fixture(scope="module")
def protocol_server(serve_module: Servers, folder: Path) -> Server:
    """A server that wants a PROXY header."""
    proxy = {"trusted": ["127.0.0.1", "unix"], "protocol": True}
    return start(serve_module, proxy, f"unix:{folder}/protocol.sock")


@pytest.fixture(scope="module")
def forwarded_server(serve_module: Servers) -> Server:
    """A server that believes Forwarded."""
    return start(serve_module, {"trusted": "127.0.0.1", "headers": "forwarded"})


@pytest.fixture(scope="module")
def haproxy(
    processes: ExitStack,
    folder: Path,
    fields_server: Server,
    protocol_server: Server,
    forwarded_server: Server,
) -> Proxy:
    """HAProxy with a frontend for each way to tell of a client."""
    program = found("haproxy")
    fields = documented("haproxy", "backend fields").replace(":8000", f":{fields_server.port}")
    protocol = documented("haproxy", "backend protocol").replace(
        ":8000", f":{protocol_server.port}"
    )
    target = f"127.0.0.1:{protocol_server.port}"
    backends = {
        "version_1": f"mode http\nserver app {target} send-proxy",
        "version_2": (
            "mode tcp\n"
            f"server app {target} send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl,authority"
        ),
        "unix_version_1": f"mode tcp\nserver app unix@{folder}/protocol.sock send-proxy",
        "unix_version_2": f"mode tcp\nserver app unix@{folder}/protocol.sock send-proxy-v2",
        "checked": (
            "mode http\noption httpchk GET /health\ndefault-server inter 100 fastinter 100\n"
            f"server app {target} send-proxy-v2 check check-send-proxy"
        ),
        "bare": f"mode tcp\nserver app {target}",
        "forwarded": (
            "mode http\nhttp-request set-header Forwarded "
            f"for=%[src];proto=https;host=a.example\nserver app 127.0.0.1:{forwarded_server.port}"
        ),
    }
    ports = {name: free_port() for name in (*backends, "fields", "protocol")}
    lines = ["defaults", "timeout client 5s", "timeout server 5s", "timeout connect 5s"]
    for name, port in ports.items():
        mode = "http" if name == "fields" or "mode http" in backends.get(name, "") else "tcp"
        lines += [
            f"frontend front_{name}",
            f"mode {mode}",
            f"bind 127.0.0.1:{port}",
            f"bind unix@{folder}/front_{name}.sock",
            "unique-id-format %{+X}o%ci:%cp_%rt",
            f"default_backend {name}",
        ]
    lines += [fields, protocol]
    lines += [f"backend {name}\n{backend}" for name, backend in backends.items()]
    (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n", "utf-8")
    return run(processes, folder, [program, "-db", "-f", "haproxy.cfg"], ports)


@pytest.fixture(scope="module")
def nginx(processes: ExitStack, folder: Path, fields_server: Server) -> Proxy:
    """Let nginx serve a plain location and one with a prefix, and another over a unix socket."""
    plain = documented("nginx", "location / {")
    prefixed = documented("nginx", "location /shop/ {")
    here = f"127.0.0.1:{fields_server.port}"
    locations = {
        "plain": (plain + prefixed).replace("127.0.0.1:8000", here),
        "unix": plain.replace("http://127.0.0.1:8000", f"http://unix:{folder}/fields.sock:"),
    }
    return run_nginx(processes, folder / "nginx", locations)


@pytest.fixture(scope="module")
def outer_nginx(processes: ExitStack, folder: Path, haproxy: Proxy) -> Proxy:
    """The proxy in front of the proxy in front of the server."""
    plain = documented("nginx", "location / {")
    inner = f"127.0.0.1:{haproxy.ports['fields']}"
    locations = {"outer": plain.replace("127.0.0.1:8000", inner)}
    return run_nginx(processes, folder / "outer", locations)


def run_nginx(processes: ExitStack, folder: Path, locations: dict[str, str]) -> Proxy:
    """Start nginx with a server for each text."""
    program = found("nginx")
    folder.mkdir()
    ports = {name: free_port() for name in locations}
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = "".join(
        f"server {{ listen 127.0.0.1:{ports[name]}; {text} }}\n" for name, text in locations.items()
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{servers}}}\n",
        "utf-8",
    )
    command = [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    return run(processes, folder, command, ports)


def run(processes: ExitStack, folder: Path, command: list[str], ports: dict[str, int]) -> Proxy:
    """Start a proxy and wait until it accepts."""
    proxy = Proxy(folder, command, ports)
    processes.callback(proxy.close)
    proxy.wait_ready()
    return proxy


def environ_through(connection: Connection, *fields: str, target: str = "/a") -> dict[str, str]:
    """Return the environ that a request through a proxy leads to."""
    connection.send(get(target, *fields))
    response = connection.response()
    assert response.status == 200, response.body
    environ = response.json()["environ"]
    assert isinstance(environ, dict)
    return environ


@pytest.mark.parametrize(
    "name", ["version_1", "version_2", "protocol", "unix_version_1", "unix_version_2"]
)
def test_haproxy_sends_the_proxy_protocol(haproxy: Proxy, name: str) -> None:
    """Each connection is its client's, with what a client may forge stripped."""
    with haproxy.connect(name) as one, haproxy.connect(name, OTHER_CLIENT) as other:
        for _ in range(2):
            for connection, address in ((one, CLIENT), (other, OTHER_CLIENT)):
                environ = environ_through(connection, *FORGED)
                assert environ["REMOTE_ADDR"] == address
                assert environ["REMOTE_PORT"] == str(connection.socket.getsockname()[1])
                assert environ["wsgi.url_scheme"] == "http"
                assert [key for key in environ if "FORWARDED" in key] == []


@pytest.mark.parametrize(
    ("name", "address"),
    [("version_1", "127.0.0.1"), ("version_2", "127.0.0.1"), ("unix_version_2", "")],
)
def test_client_of_a_unix_socket_of_haproxy(
    haproxy: Proxy, folder: Path, name: str, address: str
) -> None:
    """HAProxy says UNKNOWN or LOCAL: the address is its own, if any, and nothing is believed."""
    with Connection(socket.AF_UNIX, f"{folder}/front_{name}.sock") as connection:
        for _ in range(2):
            environ = environ_through(connection, *FORGED)
            assert environ["REMOTE_ADDR"] == address
            assert environ["wsgi.url_scheme"] == "http"
            assert [key for key in environ if "FORWARDED" in key] == []


def test_body_behind_a_proxy_header(haproxy: Proxy) -> None:
    """Header, head and a body that takes a while."""
    body = bytes(range(256)) * 4000
    with haproxy.connect("version_2") as connection:
        connection.send(post("/a", body))
        answer = connection.response().json()
    assert answer["body"].encode("latin-1") == body
    assert answer["environ"]["REMOTE_ADDR"] == CLIENT


def test_haproxy_checks_its_server(haproxy: Proxy, protocol_server: Server) -> None:
    """Health checks come with LOCAL, from HAProxy's own address."""
    protocol_server.wait_event("called", target="/health")
    with haproxy.connect("checked") as connection:
        assert environ_through(connection)["REMOTE_ADDR"] == CLIENT


def test_haproxy_that_sends_no_header_gets_no_answer(
    haproxy: Proxy, protocol_server: Server
) -> None:
    """proxy.protocol says that each connection begins with one."""
    with haproxy.connect("bare") as connection:
        connection.offer(get("/bare"))
        connection.expect_cut()
    assert protocol_server.events("called", target="/bare") == []


def test_haproxy_sets_fields(haproxy: Proxy) -> None:
    """It adds its own X-Forwarded-For as a second line, and keeps the connection for others."""
    for source in (CLIENT, OTHER_CLIENT, CLIENT):
        with haproxy.connect("fields", source) as connection:
            environ = environ_through(connection, *FORGED)
            assert environ["REMOTE_ADDR"] == source
            assert environ["HTTP_X_FORWARDED_FOR"] == f"6.6.6.6, {source}"
            assert environ["wsgi.url_scheme"] == "http"
            assert environ["HTTP_HOST"] == "test.example"
            assert environ["SERVER_PORT"] == str(haproxy.ports["fields"])
            assert environ["SCRIPT_NAME"] == ""
            assert "HTTP_FORWARDED" not in environ


def test_haproxy_sets_forwarded(haproxy: Proxy) -> None:
    """RFC 7239 instead of X-Forwarded-*, which nobody deletes."""
    with haproxy.connect("forwarded") as connection:
        environ = environ_through(connection, *FORGED)
        assert environ["REMOTE_ADDR"] == CLIENT
        assert environ["wsgi.url_scheme"] == "https"
        assert environ["HTTP_HOST"] == "a.example"
        assert environ["SERVER_PORT"] == "443"
        assert environ["SCRIPT_NAME"] == ""
        assert [key for key in environ if "X_FORWARDED" in key] == []


@pytest.mark.parametrize("name", ["plain", "unix"])
def test_nginx_sets_fields(nginx: Proxy, name: str) -> None:
    """Over TCP and over a unix socket; what the client forged is to the left, or gone."""
    with nginx.connect(name) as connection:
        for _ in range(2):
            environ = environ_through(connection, *FORGED)
            assert environ["REMOTE_ADDR"] == CLIENT
            assert environ["REMOTE_PORT"] == ""
            assert environ["HTTP_X_FORWARDED_FOR"] == f"6.6.6.6, {CLIENT}"
            assert environ["wsgi.url_scheme"] == "http"
            assert environ["HTTP_HOST"] == "test.example"
            assert environ["SERVER_PORT"] == str(nginx.ports[name])
            assert environ["SCRIPT_NAME"] == ""


def test_nginx_cuts_a_prefix_off(nginx: Proxy) -> None:
    """SCRIPT_NAME and PATH_INFO together are the path that the client asked for."""
    with nginx.connect("plain") as connection:
        environ = environ_through(connection, target="/shop/basket?a=b")
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/basket")
        environ = environ_through(connection, target="/shop/shop/basket")
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", "/shop/basket")
        assert environ_through(connection, target="/shops")["SCRIPT_NAME"] == ""


def test_two_proxies(outer_nginx: Proxy) -> None:
    """The client, nginx, HAProxy, the server: both proxies are passed on the walk."""
    with outer_nginx.connect("outer") as connection:
        environ = environ_through(connection, *FORGED)
        assert environ["HTTP_X_FORWARDED_FOR"] == f"6.6.6.6, {CLIENT}, 127.0.0.1"
        assert environ["REMOTE_ADDR"] == CLIENT
        assert environ["HTTP_HOST"] == "test.example"
