"""The admin listener of a server under test."""

from collections.abc import Mapping
from typing import Any

from serving import Server, Servers, free_port, merged, wait_until
from wire import PATIENCE, Connection, Response, get


class AdminClient:
    """Asks the admin listener of one server."""

    def __init__(self, bind: str) -> None:
        self.bind = bind
        host, _, port = bind.rpartition(":")
        self.address = (host, int(port))

    def request(self, path: str, *fields: str, method: str = "GET") -> bytes:
        """Return a request that names the listener as its host."""
        if not any(line.lower().startswith("host:") for line in fields):
            fields = (f"Host: {self.bind}", *fields)
        return get(path, *fields, method=method)

    def connect(self, timeout: float = PATIENCE) -> Connection:
        """Open a connection."""
        return Connection(2, self.address, timeout=timeout)

    def ask(self, path: str, *fields: str, method: str = "GET") -> Response:
        """Return the answer to one request on a new connection."""
        with self.connect() as connection:
            connection.send(self.request(path, *fields, method=method))
            return connection.response(method)

    def text(self, path: str, status: int = 200) -> str:
        """Return the body of an answer that has this status."""
        response = self.ask(path)
        assert response.status == status, (response.status, response.body)
        return response.body.decode()

    def json(self, path: str = "/status") -> Any:
        """Return the body as JSON."""
        return self.ask(path).json()

    def wait_up(self) -> None:
        """Wait until the listener accepts."""

        def answers() -> bool:
            try:
                return self.ask("/livez").status > 0
            except ConnectionRefusedError:
                return False

        wait_until(answers, PATIENCE, lambda: f"nothing on {self.bind}")

    def wait_ready(self, status: int = 200) -> str:
        """Wait until /readyz has this status, and return what it says."""
        response = wait_until(
            lambda: found if (found := self.ask("/readyz")).status == status else None,
            PATIENCE,
            lambda: f"/readyz is not {status}",
        )
        return response.body.decode()


def serve_with_admin(
    serve: Servers,
    app: str = "echo:app",
    config: Mapping[str, Any] | None = None,
    *,
    wait: bool = True,
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, str | bytes] | None = None,
) -> tuple[Server, AdminClient]:
    """Start a server with an admin listener, and return when that answers."""
    bind = f"127.0.0.1:{free_port()}"
    settings = merged({"admin": {"bind": bind}}, config or {})
    server = serve(app, settings, wait=wait, environment=environment, files=files)
    admin = AdminClient(bind)
    admin.wait_up()
    if wait:
        admin.wait_ready()
    return server, admin
