"""Real proxies in front of a server, on loopback: Debian's nginx and HAProxy.

Each adds `X-Proxy` and a number of its own to every request that it hands on, and shares its
connections to the server between clients, as they do in production.
"""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from serving import free_port, wait_until
from wire import PATIENCE, Connection, get

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # As lenient as nginx can be told to be.
    ignore_invalid_headers {invalid};
    underscores_in_headers on;
    upstream application {{
        server 127.0.0.1:{backend};
        keepalive 4;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://application;
            proxy_http_version 1.1;
            proxy_request_buffering {buffering};
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_set_header X-Proxy nginx;
            proxy_set_header X-Proxy-Number $request_id;
        }}
    }}
}}
"""

HAPROXY = """
global
    maxconn 256
    nbthread 1
    stats socket {folder}/stats.sock mode 600
defaults
    mode http
    option http-keep-alive
    {options}
    timeout connect 60s
    timeout client 60s
    timeout server 60s
    timeout http-request 60s
frontend edge
    bind 127.0.0.1:{port}
    http-request set-header X-Proxy haproxy
    http-request set-header X-Proxy-Number %[rand(1000000000)]-%[rand(1000000000)]
    default_backend application
backend application
    http-reuse always
    server one 127.0.0.1:{backend} maxconn 4 pool-max-conn 4
"""


@dataclass(frozen=True)
class Kind:
    """A proxy and how it is configured."""

    name: str
    program: str
    configuration: str
    values: dict[str, str]

    @property
    def missing(self) -> bool:
        """Whether this machine has no such program."""
        return find(self.program) is None


KINDS = [
    Kind("nginx", "nginx", NGINX, {"buffering": "on", "invalid": "on"}),
    Kind("nginx_unbuffered", "nginx", NGINX, {"buffering": "off", "invalid": "off"}),
    Kind("haproxy", "haproxy", HAPROXY, {"options": ""}),
    Kind("haproxy_lenient", "haproxy", HAPROXY, {"options": "option accept-invalid-http-request"}),
]


def find(program: str) -> str | None:
    """Return the path of a daemon; Debian keeps them where only root's PATH leads."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


class Proxy:
    """One running proxy."""

    def __init__(self, kind: Kind, folder: Path, backend: int) -> None:
        self.kind = kind
        self.port = free_port()
        self._folder = folder
        path = folder / "proxy.conf"
        # As root nginx would give its files away to another user.
        user = "user root;" if os.geteuid() == 0 else ""
        values = {**kind.values, "user": user, "folder": str(folder)}
        path.write_text(kind.configuration.format(backend=backend, port=self.port, **values))
        program = find(kind.program)
        assert program is not None
        command = {
            "nginx": [program, "-p", str(folder), "-c", str(path)],
            "haproxy": [program, "-db", "-f", str(path)],
        }[kind.program]
        with open(folder / "proxy.log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def connect(self, *, timeout: float = PATIENCE) -> Connection:
        """Open a raw connection to the proxy."""
        return Connection(socket.AF_INET, ("127.0.0.1", self.port), timeout=timeout)

    def log(self) -> str:
        """Return what it wrote."""
        paths = [self._folder / "proxy.log", self._folder / "error.log"]
        return "".join(path.read_text("utf-8", "replace") for path in paths if path.exists())

    def wait_ready(self) -> None:
        """Wait until a request comes through."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            try:
                with self.connect() as connection:
                    connection.send(get("/ready"))
                    return connection.response().status == 200
            except (OSError, AssertionError):
                return False

        wait_until(ready, PATIENCE, self.log)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
