"""The admin listener against the real process: start, health, what it answers without the GIL."""

import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from admin_client import AdminClient, serve_with_admin
from serving import Server, Servers, free_port, wait_until
from wire import PATIENCE, Connection, get

ONE_THREAD = {"concurrency": {"threads": 1}}


@pytest.fixture(scope="module")
def pair(serve_module: Servers) -> tuple[Server, AdminClient]:
    """A server that the tests of this module share, and its admin listener."""
    return serve_with_admin(serve_module, "holding:app")


# Start


def test_answers_while_the_application_is_imported(serve: Servers) -> None:
    """It is bound first: /livez 200 and /readyz 503 until the application can answer."""
    server, admin = serve_with_admin(
        serve, "holding:app", wait=False, environment={"HOLDING_IMPORT_GATE": "import"}
    )
    server.wait_event("importing")
    assert admin.text("/livez") == "alive\n"
    assert admin.text("/readyz", 503) == "not ready: importing the application\n"
    assert admin.json()["state"] == "importing"
    assert "uptime" in admin.json()
    server.open_gate("import")
    assert admin.wait_ready() == "ready\n"
    assert server.exchange(get("/")).body == b"done /"


def test_answers_while_the_import_holds_the_gil(serve: Servers) -> None:
    """An import that computes in C, as those of large libraries do."""
    server, admin = serve_with_admin(
        serve, "holding:app", wait=False, environment={"HOLDING_IMPORT_GIL": "import"}
    )
    with server.blocked("import"):
        assert admin.ask("/livez").status == 200
        assert admin.ask("/readyz").status == 503
        assert admin.ask("/status").json()["state"] == "importing"
    admin.wait_ready()


def test_taken_admin_port_is_one_clear_line(serve: Servers) -> None:
    """It names the key and the port, and the application is not even imported."""
    _, admin = serve_with_admin(serve)
    second = serve("echo:app", {"admin": {"bind": admin.bind}}, wait=False)
    assert second.wait() == 1
    (line,) = [line for line in second.log().splitlines() if line.strip()]
    assert "admin.bind" in line
    assert admin.bind in line
    assert "in use" in line


def test_no_admin_listener_by_default(serve: Servers) -> None:
    """Nothing listens, and no path of the application is taken."""
    server = serve("inspecting:app")
    for path in ("/livez", "/-/livez", "/status"):
        assert server.exchange(get(path)).json()["environ"]["PATH_INFO"] == path


def test_admin_on_a_unix_socket(serve: Servers) -> None:
    """A sidecar needs no port."""
    with tempfile.TemporaryDirectory(prefix="sz", dir="/tmp") as folder:
        path = Path(folder) / "admin.sock"
        server = serve("echo:app", {"admin": {"bind": f"unix:{path}"}})
        with Connection(socket.AF_UNIX, str(path)) as connection:

            def is_ready() -> bool:
                connection.send(get("/readyz"))
                return connection.response().body == b"ready\n"

            wait_until(is_ready, PATIENCE, lambda: "not ready")
        assert server.stop() == 0
        assert not path.exists()


# What it answers


def test_http_of_the_admin_listener(pair: tuple[Server, AdminClient]) -> None:
    """Keep-alive, HEAD, 404, 405; nothing may be cached or taken for another type."""
    _, admin = pair
    with admin.connect() as connection:
        for _ in range(3):
            connection.send(admin.request("/livez"))
            response = connection.response()
            assert response.body == b"alive\n"
            assert response.value("Cache-Control") == "no-store"
            assert response.value("X-Content-Type-Options") == "nosniff"
        connection.send(admin.request("/readyz", method="HEAD"))
        assert connection.response("HEAD").value("Content-Length") == "6"
        connection.send(admin.request("/nothing"))
        assert connection.response().status == 404
        connection.send(admin.request("/status", method="POST"))
        refused = connection.response()
        assert (refused.status, refused.value("Allow")) == (405, "GET, HEAD")
        connection.send(admin.request("/livez?verbose=1", "Connection: close"))
        assert connection.response().closes
        connection.expect_close()


def test_status_names_the_config(pair: tuple[Server, AdminClient]) -> None:
    """What is running, and how it is configured."""
    server, admin = pair
    status = admin.json()
    assert status["pid"] == server.process.pid
    assert status["state"] == "serving"
    assert status["config"]["admin"]["bind"] == admin.bind
    assert status["config"]["concurrency"]["threads"] == 32
    assert status["python"].startswith("3.")
    assert status["version"]


def test_threads_shows_where_a_handler_is(pair: tuple[Server, AdminClient]) -> None:
    """The Python stack of the thread that runs it."""
    server, admin = pair
    with server.connect() as connection:
        connection.send(get("/gate?threads"))
        server.wait_event("begun", path="/gate")
        threads = admin.json("/threads")["threads"]
        stacks = {one["name"]: one["stack"] for one in threads if one["stack"]}
        busy = [name for name in stacks if name.startswith("serve-zig-")]
        assert len(busy) == 1, stacks
        frames = [
            (frame["file"].rpartition("/")[2], frame["function"]) for frame in stacks[busy[0]]
        ]
        assert frames[-2:] == [("holding.py", "app"), ("events.py", "wait_gate")]
        server.open_gate("threads")
        assert connection.response().status == 200


def test_threads_leaves_out_what_has_only_run_there(serve: Servers) -> None:
    """A response that waits without a thread is not what its last thread does."""
    server, admin = serve_with_admin(serve, "suspending:app", {"concurrency": {"threads": 1}})
    with server.connect() as connection:
        connection.send(get("/by-time?ms=5000"))
        wait_until(lambda: admin.json()["requests"], PATIENCE, lambda: "not in flight")
        wait_until(
            lambda: not any(one["request"] for one in admin.json("/threads")["threads"]),
            PATIENCE,
            lambda: str(admin.json("/threads")),
        )
        assert [one["target"] for one in admin.json()["requests"]] == ["/by-time?ms=5000"]


# Without the GIL


def test_answers_while_a_handler_holds_the_gil(serve: Servers) -> None:
    """Health, metrics, status and page at once; the stacks say after a second that they cannot."""
    server, admin = serve_with_admin(serve, "holding:app")
    with server.connect() as connection:
        connection.send(get("/hold?gil"))
        with server.blocked("gil"):
            for path in ("/livez", "/readyz", "/status", "/", "/metrics"):
                assert admin.ask(path).status == 200, path
            with admin.connect() as waiting:
                waiting.send(admin.request("/threads"))
                assert admin.ask("/livez").status == 200
                response = waiting.response()
            assert response.status == 503
            assert "GIL" in response.json()["error"]
            # The handler was still at it all the while.
            assert not server.events("done", path="/hold")
        assert connection.response().body == b"done /hold"
    assert admin.ask("/threads").status == 200


def test_livez_turns_when_the_gil_is_lost(serve: Servers) -> None:
    """Requests wait, none ends, and the GIL cannot be had for livez_stall: 503, then 200 again."""
    config = {"admin": {"livez_stall": 0.5, "in_band": "/-/"}}
    server, admin = serve_with_admin(serve, "holding:app", config)
    with server.connect() as first, server.connect() as second:
        first.send(get("/hold?gil"))
        with server.blocked("gil"):
            # Nobody waits: a handler may compute as long as it likes.
            time.sleep(0.7)
            assert admin.text("/livez") == "alive\n"
            second.send(get("/"))
            response = wait_until(
                lambda: found if (found := admin.ask("/livez")).status == 503 else None,
                PATIENCE,
                lambda: "/livez stays 200",
            )
            assert b"GIL" in response.body
            assert server.exchange(get("/-/livez")).status == 503
        assert first.response().status == 200
        assert second.response().status == 200
    wait_until(lambda: admin.ask("/livez").status == 200, PATIENCE, lambda: "/livez stays 503")


def test_livez_turns_though_requests_are_shed(serve: Servers) -> None:
    """queue_timeout is shorter than livez_stall by default: a request that was shed had waited."""
    config = {"admin": {"livez_stall": 4.0}, "concurrency": {"queue_timeout": 3.0}}
    server, admin = serve_with_admin(serve, "holding:app", config)
    with server.connect() as first, server.connect() as second:
        first.send(get("/hold?gil"))
        with server.blocked("gil"):
            second.send(get("/"))
            assert second.response().status == 503
            wait_until(
                lambda: admin.ask("/livez").status == 503, PATIENCE, lambda: "/livez stays 200"
            )
        assert first.response().status == 200
    wait_until(lambda: admin.ask("/livez").status == 200, PATIENCE, lambda: "/livez stays 503")


def test_livez_stays_when_all_threads_wait_for_something_else(serve: Servers) -> None:
    """A database that is away is not mended by a restart."""
    config = {"admin": {"livez_stall": 2.0}, **ONE_THREAD}
    server, admin = serve_with_admin(serve, "holding:app", config)
    with server.connect() as first, server.connect() as second:
        first.send(get("/gate?database"))
        server.wait_event("begun", path="/gate")
        second.send(get("/"))
        began = time.monotonic()
        while time.monotonic() - began < 3.0:
            assert admin.text("/livez") == "alive\n"
            time.sleep(0.1)
        server.open_gate("database")
        assert first.response().status == 200
        assert second.response().status == 200


# Readiness


def test_readyz_fails_at_once_on_sigterm(serve: Servers) -> None:
    """Even while a handler holds the GIL, so that Python has not heard of the signal."""
    server, admin = serve_with_admin(serve, "holding:app")
    with server.connect() as connection:
        connection.send(get("/hold?gil"))
        with server.blocked("gil"):
            server.send_signal(signal.SIGTERM)
            assert admin.wait_ready(503) == "not ready: draining\n"
            assert admin.ask("/livez").status == 200
        assert connection.response().status == 200
    assert server.wait() == 0


def test_readyz_fails_while_the_queue_is_full(serve: Servers) -> None:
    """A further request would be answered 503."""
    config = {"concurrency": {"threads": 1, "queue": 1}}
    server, admin = serve_with_admin(serve, "holding:app", config)
    with server.connect() as first, server.connect() as second:
        first.send(get("/gate?full"))
        server.wait_event("begun", path="/gate")
        assert admin.text("/readyz") == "ready\n"
        second.send(get("/"))
        assert admin.wait_ready(503) == "not ready: the queue is full\n"
        server.open_gate("full")
        assert first.response().status == 200
        assert second.response().status == 200
    admin.wait_ready()


# In band


def test_in_band_health(serve: Servers) -> None:
    """For platforms that allow one port; everything else is the application's."""
    server = serve("inspecting:app", {"admin": {"in_band": "/-/"}})
    for path, text in (("/-/livez", b"200 OK: livez\n"), ("/-/readyz", b"200 OK: readyz\n")):
        response = server.exchange(get(path))
        assert (response.status, response.body) == (200, text)
        assert server.exchange(get(path, method="HEAD"), method="HEAD").status == 200
    for path in ("/-/metrics", "/-/status", "/-/", "/livez"):
        assert server.exchange(get(path)).json()["environ"]["PATH_INFO"] == path
    posted = server.exchange(get("/-/livez", "Content-Length: 0", method="POST"))
    assert posted.json()["environ"]["PATH_INFO"] == "/-/livez"


def test_in_band_health_is_of_this_scheme(serve: Servers) -> None:
    """An https target is for another server, here as everywhere (RFC 9110 7.4)."""
    server = serve("inspecting:app", {"admin": {"in_band": "/-/"}})
    assert server.exchange(get("http://a/-/livez")).status == 200
    assert server.exchange(get("https://a/-/livez")).status == 421


def test_in_band_health_needs_no_thread(serve: Servers) -> None:
    """It is answered by whoever polls, while the only thread is busy, and says what is so."""
    config = {"admin": {"in_band": "/-/"}, "concurrency": {"threads": 1, "queue": 1}}
    server = serve("holding:app", config)
    with server.connect() as first, server.connect() as second:
        first.send(get("/gate?band"))
        server.wait_event("begun", path="/gate")
        assert server.exchange(get("/-/readyz")).status == 200
        second.send(get("/"))
        wait_until(
            lambda: server.exchange(get("/-/readyz")).status == 503, PATIENCE, lambda: "still ready"
        )
        assert server.exchange(get("/-/livez")).status == 200
        server.open_gate("band")
        assert first.response().status == 200
        assert second.response().status == 200


# Hooks of the application


def test_startup_runs_once_before_the_first_request(serve: Servers) -> None:
    """On the main thread, after the import, before /readyz turns 200 and anything is accepted."""
    server, admin = serve_with_admin(
        serve,
        "holding:app",
        {"app": {"startup": "holding:startup"}},
        wait=False,
        environment={"STARTUP_GATE": "startup"},
    )
    server.wait_event("startup", main=True)
    assert admin.text("/readyz", 503) == "not ready: running app.startup\n"
    server.open_gate("startup")
    admin.wait_ready()
    assert server.exchange(get("/")).status == 200
    assert len(server.events("startup")) == 1


def test_startup_that_raises(serve: Servers) -> None:
    """Status 3 and the application's own traceback."""
    server = serve(
        "holding:app",
        {"app": {"startup": "holding:startup"}},
        wait=False,
        environment={"STARTUP_FAILS": "1"},
    )
    assert server.wait() == 3
    server.errors_expected = True
    assert "app.startup: calling" in server.log()
    assert "RuntimeError: the database is away" in server.log()
    assert 'holding.py", line' in server.log()
    assert "serve_zig/" not in server.log()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("holding:missing", 'has no "missing"'),
        ("holding:PLAIN", "cannot be called, it is a list"),
        ("holding:startup()", "leave out the ()"),
        ("nothing_there:startup", "app.startup"),
    ],
)
def test_startup_that_is_none(serve: Servers, target: str, message: str) -> None:
    """Told with the key, before anything is served."""
    server = serve("holding:app", {"app": {"startup": target}}, wait=False)
    assert server.wait() in (2, 3)
    assert message in server.log()
    assert "app.startup" in server.log()


def test_startup_and_import_have_a_time_limit(serve: Servers) -> None:
    """app.startup_timeout: status 3, and where the main thread is."""
    server = serve(
        "holding:app",
        {"app": {"startup": "holding:startup", "startup_timeout": 3.0}},
        wait=False,
        environment={"STARTUP_GATE": "never"},
    )
    assert server.wait() == 3
    assert "app.startup_timeout" in server.log()
    assert "in wait_gate" in server.log()


def test_startup_time_limit_while_the_import_holds_the_gil(serve: Servers) -> None:
    """Python cannot even say so; the process ends all the same."""
    server = serve(
        "holding:app",
        {"app": {"startup_timeout": 3.0}},
        wait=False,
        environment={"HOLDING_IMPORT_GIL": "never"},
    )
    assert server.wait() == 3
    assert "startup_timeout" in server.log()
    assert "GIL" in server.log()


def test_start_in_time_is_not_disturbed(serve: Servers) -> None:
    """The limit is on the start, not on the server."""
    server = serve("holding:app", {"app": {"startup_timeout": 60.0}})
    assert server.exchange(get("/")).status == 200
    assert server.stop() == 0


def test_shutdown_runs_once_after_the_drain(serve: Servers) -> None:
    """When the last request has been answered."""
    server = serve("holding:app", {"app": {"shutdown": "holding:shutdown"}})
    with server.connect() as connection:
        connection.send(get("/gate?last"))
        server.wait_event("begun", path="/gate")
        server.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        assert not server.events("shutdown")
        server.open_gate("last")
        assert connection.response().status == 200
    assert server.wait() == 0
    names = [event["event"] for event in server.events()]
    assert names[-2:] == ["done", "shutdown"]
    assert server.events("shutdown", main=True)


def test_shutdown_that_raises(serve: Servers) -> None:
    """The drain was clean and the end is not: status 3."""
    server = serve(
        "holding:app",
        {"app": {"shutdown": "holding:shutdown"}},
        environment={"SHUTDOWN_FAILS": "1"},
    )
    assert server.stop() == 3
    server.errors_expected = True
    assert "app.shutdown: calling" in server.log()
    assert "RuntimeError: the database is still away" in server.log()


def test_shutdown_that_hangs(serve: Servers) -> None:
    """It may take as long as a drain; then the process ends, and says where it hung."""
    server = serve(
        "holding:app",
        {"app": {"shutdown": "holding:shutdown"}, "timeouts": {"drain": 0.5}},
        environment={"SHUTDOWN_HANGS": "1"},
    )
    assert server.stop() == 4
    assert "app.shutdown takes longer" in server.log()
    assert "in shutdown" in server.log()


# For whom it answers


PATHS = ("/livez", "/readyz", "/metrics", "/status", "/threads", "/")


def test_foreign_host_is_refused(pair: tuple[Server, AdminClient]) -> None:
    """A page whose name was made to resolve to this address reads nothing (DNS rebinding)."""
    _, admin = pair
    for path in PATHS:
        refused = admin.ask(path, "Host: evil.example:9100")
        assert refused.status == 421
        assert b"admin.hosts" in refused.body
        for host in (admin.bind, "127.0.0.1", "localhost:1", "LOCALHOST"):
            assert admin.ask(path, f"Host: {host}").status == 200, (path, host)
    for host in ("192.0.2.1", "[::1]", "localhost.evil.example"):
        assert admin.ask("/status", f"Host: {host}").status == 421
    absolute = f"GET http://evil.example/status HTTP/1.1\r\nHost: {admin.bind}\r\n\r\n".encode()
    with admin.connect() as connection:
        connection.send(absolute)
        assert connection.response().status == 421
        # Not a browser's.
        connection.send(b"GET /livez HTTP/1.0\r\n\r\n")
        assert connection.response().body == b"alive\n"


@pytest.mark.parametrize(
    "field",
    [
        "Origin: http://evil.example",
        "Origin: http://localhost:3000",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ],
)
def test_request_of_another_site_is_refused(pair: tuple[Server, AdminClient], field: str) -> None:
    _, admin = pair
    for path in PATHS:
        assert admin.ask(path, field).status == 403
    assert admin.ask("/status", f"Origin: http://{admin.bind}").status == 200
    assert admin.ask("/status", "Sec-Fetch-Site: same-origin").status == 200


def test_hosts_by_name(serve: Servers) -> None:
    """A scraper that asks a service of the orchestrator's names that."""
    hosts = {"admin": {"hosts": ["App.internal", "192.0.2.7"]}}
    _, admin = serve_with_admin(serve, "echo:app", hosts)
    for host in ("app.internal:9100", "APP.INTERNAL.", "192.0.2.7"):
        assert admin.ask("/metrics", f"Host: {host}").status == 200
    assert admin.ask("/metrics", "Host: other.internal").status == 421


def test_bound_to_every_interface_any_address_is_its_own(serve: Servers) -> None:
    """A probe of Kubernetes names the pod's address."""
    port = free_port()
    server = serve("echo:app", {"admin": {"bind": f"0.0.0.0:{port}"}})
    admin = AdminClient(f"127.0.0.1:{port}")
    admin.wait_ready()
    assert admin.ask("/livez", f"Host: 10.42.0.7:{port}").status == 200
    assert admin.ask("/livez", "Host: [fd00::7]").status == 200
    assert admin.ask("/livez", "Host: app").status == 421
    assert server.stop() == 0


@pytest.mark.parametrize(("mode", "bits"), [(None, 0o600), (0o660, 0o660)])
def test_mode_of_the_admin_socket(serve: Servers, mode: int | None, bits: int) -> None:
    """Nobody else reads it, unless the operator says so; listen.unix_mode is for the clients."""
    with tempfile.TemporaryDirectory(prefix="sz", dir="/tmp") as folder:
        path = Path(folder) / "admin.sock"
        config = {"bind": f"unix:{path}"} | ({"unix_mode": mode} if mode is not None else {})
        serve("echo:app", {"admin": config})
        assert path.stat().st_mode & 0o777 == bits


def test_status_masks_what_is_secret(serve: Servers) -> None:
    """Whoever may look at /status need not know the passwords."""
    _, admin = serve_with_admin(
        serve,
        "echo:app",
        {
            "telemetry": {"service_name": "${SHOP_API_TOKEN}"},
            "static": [
                {"route": "/a", "directory": ".", "cache_control": "${CACHE_URL}"},
                {"route": "/b", "directory": ".", "cache_control": "x=http://h/?k=hush2&hush3"},
            ],
        },
        environment={"SHOP_API_TOKEN": "hush0", "CACHE_URL": "http://me:hu/sh?1@host/"},
    )
    text = admin.text("/status")
    assert "hush" not in text
    assert "sh?1" not in text
    config = admin.json()["config"]
    assert config["telemetry"]["service_name"] == "${SHOP_API_TOKEN}"
    assert config["static"][0]["cache_control"] == "http://***@host/"
