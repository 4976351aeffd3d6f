"""Signals that other servers give a meaning to, and those that come when the status is decided."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving import Server, Servers, wait_until
from wire import get

HELLO = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""

# Each is slow in another part of the interpreter's end.
SLOW_ENDS = {
    "atexit": "import atexit, time; atexit.register(time.sleep, 1.5)",
    "finalizer": """
import sys, time
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(1.5)
# Kept by a module that is taken down last.
sys.slow = Slow()
""",
    "thread": """
import threading, time
class Late(threading.Thread):
    def run(self):
        threading.main_thread().join()
        open("late", "w").close()
Late(daemon=True).start()
import atexit
atexit.register(time.sleep, 0.5)
""",
}

IGNORED = [signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2]
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


def state(server: Server) -> str:
    """Return the state letter of the process: T is stopped."""
    text = Path(f"/proc/{server.process.pid}/stat").read_text("ascii", "replace")
    return text[text.rindex(")") + 2]


@pytest.mark.parametrize("number", IGNORED)
def test_signals_of_other_servers_change_nothing(serve: Servers, number: signal.Signals) -> None:
    """They stopped the process, or ended it without a drain."""
    server = serve("working:app")
    with server.connect() as connection:
        connection.send(get("/gate?ignored"))
        server.wait_event("begun")
        server.send_signal(number)
        (line,) = wait_until(
            lambda: [one for one in server.log().splitlines() if number.name in one],
            5,
            server.log,
        )
        assert f"info {number.name} is ignored: other servers" in line
        # Once more, since the first one may have changed how the next is handled.
        server.send_signal(number)
        server.open_gate("ignored")
        assert connection.response().status == 200
    assert server.exchange(get("/")).status == 200
    assert state(server) != "T"
    assert server.stop() == 0


@pytest.mark.parametrize("number", IGNORED)
def test_signals_of_other_servers_during_the_import(serve: Servers, number: signal.Signals) -> None:
    server = serve("holding:app", environment={"HOLDING_IMPORT_GATE": "import"}, wait=False)
    server.wait_event("importing")
    server.send_signal(number)
    server.wait_log(f"{number.name} is ignored")
    server.open_gate("import")
    server.wait_log(" serves ")
    assert server.stop() == 0


def test_application_may_have_them_for_itself(serve: Servers) -> None:
    server = serve(
        "own:app",
        files={
            "own.py": HELLO + "import signal\n"
            "signal.signal(signal.SIGUSR2, lambda *_: open('/dev/stderr', 'w').write('mine\\n'))\n"
        },
    )
    server.send_signal(signal.SIGUSR2)
    server.wait_log("mine")
    assert "is ignored" not in server.log()
    assert server.stop() == 0


def test_child_of_the_application_has_the_default_actions(serve: Servers) -> None:
    """A forked process inherits the handlers, and has no server that would ignore for it."""
    text = """
import os, signal, time
def app(environ, start_response):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(20)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.waitstatus_to_exitcode(status)).encode()]
"""
    server = serve("forking_now:app", files={"forking_now.py": text})
    assert server.exchange(get("/")).body == b"%d" % -signal.SIGUSR2
    assert server.stop() == 0


def test_sigquit_drains(serve: Servers) -> None:
    """STOPSIGNAL of images that were made for nginx or php-fpm."""
    server = serve("working:app")
    with server.connect() as connection:
        connection.send(get("/gate?quit"))
        server.wait_event("begun")
        server.send_signal(signal.SIGQUIT)
        server.wait_log("SIGQUIT: draining")
        server.open_gate("quit")
        assert connection.response().status == 200
    assert server.wait() == 0


def test_sigquit_fails_readyz_at_once(serve: Servers) -> None:
    """Even while a handler holds the GIL, as SIGTERM does."""
    config = {"admin": {"in_band": "/-/"}, "timeouts": {"drain_delay": 5.0}}
    server = serve("holding:app", config)
    server.send_signal(signal.SIGQUIT)
    wait_until(
        lambda: server.exchange(get("/-/readyz")).status == 503, 3, lambda: "/readyz stays 200"
    )
    server.send_signal(signal.SIGQUIT)
    assert server.wait() == 1


def test_sigquit_during_the_import(serve: Servers) -> None:
    server = serve("holding:app", environment={"HOLDING_IMPORT_GATE": "import"}, wait=False)
    server.wait_event("importing")
    assert server.stop(signal.SIGQUIT) == 0
    assert "SIGQUIT: stopped before the server served" in server.log()


@pytest.mark.parametrize("slow", SLOW_ENDS)
@pytest.mark.parametrize("number", STOPS)
def test_signal_while_the_interpreter_is_taken_down(
    serve: Servers, number: signal.Signals, slow: str
) -> None:
    """The interpreter has given the signal its default action back by then."""
    server = serve("slow_end:app", files={"slow_end.py": HELLO + SLOW_ENDS[slow]})
    server.send_signal(signal.SIGTERM)
    server.wait_log("drained; the server ends")
    while server.process.poll() is None:
        server.send_signal(number)
        time.sleep(0.002)
    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_while_the_interpreter_is_taken_down(
    serve: Servers, number: signal.Signals
) -> None:
    server = serve("slow_end:app", files={"slow_end.py": HELLO + SLOW_ENDS["finalizer"]})
    server.send_signal(signal.SIGTERM)
    server.wait_log("drained; the server ends")
    while server.process.poll() is None:
        server.send_signal(number)
        time.sleep(0.002)
    assert server.wait() == 0


def test_signal_after_a_drain_that_timed_out(serve: Servers) -> None:
    server = serve("working:app", {"timeouts": {"drain": 0.2}})
    with server.connect() as connection:
        connection.send(get("/stubborn?30"))
        server.wait_event("begun")
        server.send_signal(signal.SIGTERM)
        server.wait_log("the drain timed out")
        while server.process.poll() is None:
            server.send_signal(signal.SIGTERM)
            time.sleep(0.002)
    assert server.wait() == 4


def test_signal_after_a_start_that_failed(serve: Servers) -> None:
    server = serve(
        "failing:app", files={"failing.py": SLOW_ENDS["finalizer"] + "raise ValueError"}, wait=False
    )
    server.wait_log("ValueError")
    while server.process.poll() is None:
        server.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    assert server.wait() == 3


def test_supervisor_of_reload_obeys_the_same_signals(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(HELLO, "utf-8")
    (tmp_path / "serve.toml").write_text(
        '[app]\ntarget = "hello:app"\n[listen]\nbind = "127.0.0.1:0"\n', "utf-8"
    )
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_zig", "--reload"], cwd=tmp_path, stderr=log
        )
    try:

        def said(text: str) -> None:
            wait_until(
                lambda: text in (tmp_path / "log").read_text("utf-8"),
                15,
                (tmp_path / "log").read_text,
            )

        said(" serves ")
        for number in IGNORED:
            process.send_signal(number)
            said(f"{number.name} is ignored")
        process.send_signal(signal.SIGQUIT)
        said("drained; the server ends")
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
