"""Stacks, thread names and exceptions of the application that cannot be formatted.

Nothing of the application's may stop the launcher's own duties.
"""

import signal

import pytest

from admin_client import serve_with_admin
from serving import Servers, wait_until
from wire import PATIENCE, get

PLACE = 'File "<made elsewhere>/x.py", line'


@pytest.mark.parametrize("form", ["text", "json"])
def test_overdue_call_is_logged_and_interrupted(serve: Servers, form: str) -> None:
    server = serve(
        "unprintable:app",
        {
            "timeouts": {"request": 0.3, "request_action": "raise"},
            "log": {"format": form},
        },
    )
    server.errors_expected = True
    with server.connect() as connection:
        connection.send(get("/slow?20"))
        assert connection.response().status == 504
    log = server.wait_log("RequestTimeout") and server.log()
    assert "request timeout: GET" in log
    assert "in slow" in log
    assert "x.py" in log
    assert server.stop() == 0


def test_drain_that_times_out_names_what_is_stuck(serve: Servers) -> None:
    server = serve("unprintable:app", {"timeouts": {"drain": 0.5}})
    with server.connect() as connection:
        connection.send(get("/slow?20"))
        server.wait_event("begun")
        assert server.stop() == 4
    assert 'cut off: GET "/slow?20"' in server.log()
    assert PLACE in server.log()
    assert "Traceback" not in server.log()


def test_traceback_without_source_says_where(serve: Servers) -> None:
    server = serve("unprintable:app")
    server.errors_expected = True
    assert server.exchange(get("/fail")).status == 500
    server.wait_log("MuteError")
    assert PLACE in server.log()
    assert "in fail" in server.log()
    assert server.exchange(get("/plain")).body == b"done"


def test_threads_without_a_name_are_told(serve: Servers) -> None:
    """By SIGUSR1 and by /threads."""
    server, admin = serve_with_admin(serve, "unprintable:app")
    with server.connect() as connection:
        connection.send(get("/slow?5"))
        server.wait_event("begun")
        # It has begun, but may be on its way to where it stays.
        wait_until(
            lambda: any(
                one["stack"] and one["stack"][-1]["function"] == "slow"
                for one in admin.json("/threads")["threads"]
            ),
            PATIENCE,
            lambda: "it is not in slow()",
        )
        server.send_signal(signal.SIGUSR1)
        server.wait_log(r"thread \(unnamed\)")
        server.wait_log(r"thread two\\nlines \\x1b\[2J")
        server.wait_log(PLACE)
        threads = admin.json("/threads")["threads"]
        names = [one["name"] for one in threads]
        assert "(unnamed)" in names
        running = [one for one in threads if one["request"] is not None]
        assert [one["request"]["target"] for one in running] == ["/slow?5"]
        assert running[0]["stack"][-1]["function"] == "slow"
        assert connection.response().body == b"done"
    server.open_gate("threads")


def test_modules_of_the_application_that_shadow_the_launchers(serve: Servers) -> None:
    """Its folder is first on sys.path; what the launcher imports late may be its own then."""
    broken = 'raise RuntimeError("not the one of the standard library")\n'
    server = serve(
        "shadowing:app",
        {"timeouts": {"request": 0.3, "request_action": "raise"}},
        files={
            "shadowing.py": (
                "import sys, time\n"
                "for name in ('traceback', 'linecache'):\n"
                "    sys.modules.pop(name, None)\n"
                "def app(environ, start_response):\n"
                "    for _ in range(1000): time.sleep(0.01)\n"
            ),
            "traceback.py": broken,
            "linecache.py": broken,
        },
    )
    server.errors_expected = True
    with server.connect() as connection:
        connection.send(get("/"))
        assert connection.response().status == 504
    server.wait_log("request timeout: GET")
    server.wait_log("RequestTimeout")
    assert "in app" in server.log()
