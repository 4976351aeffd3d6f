"""What a start says of itself while it takes long, and of a limit that it meets."""

import re
import resource
import threading
import time
from pathlib import Path

import pytest

from serve_zig import cgroup, progress, shortage
from serving import Servers, wait_until
from test_cli import Project

SLOW = """
import time
time.sleep({seconds})
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
def slow():
    time.sleep(1.3)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project in a folder of its own."""
    return Project(tmp_path)


def test_long_import_is_announced(serve: Servers) -> None:
    """Before it begins to hurt, and again with the time."""
    server = serve("holding:app", environment={"HOLDING_IMPORT_GATE": "import"}, wait=False)
    server.wait_log("info importing holding:app\n", within=10)
    server.wait_log(r"info importing holding:app: \d+ s so far\n", within=20)
    server.open_gate("import")
    server.wait_log(" serves ")
    assert server.log().count("importing holding:app\n") == 1
    assert server.stop() == 0


def test_check_announces_a_long_import(project: Project) -> None:
    project.write(SLOW.format(seconds=1.3))
    done = project.run("--check")
    assert done.returncode == 0
    assert "serve-zig: importing hello:app\n" in done.stderr


def test_long_hooks_are_announced(serve: Servers) -> None:
    server = serve(
        "slow:app",
        {"app": {"startup": "slow:slow", "shutdown": "slow:slow"}},
        files={"slow.py": SLOW.format(seconds=0)},
        wait=False,
    )
    server.wait_log("info running app.startup: slow:slow\n")
    server.wait_log(" serves ")
    assert server.stop() == 0
    assert "info running app.shutdown: slow:slow\n" in server.log()
    assert "importing" not in server.log()


def test_announcements_end_with_what_they_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_AGAIN_SECONDS", 0.01)
    told: list[str] = []
    with progress.announced("waiting", told.append):
        wait_until(lambda: len(told) >= 3, 10, lambda: str(told))
    time.sleep(0.05)
    count = len(told)
    time.sleep(0.1)
    assert len(told) == count
    assert told[0] == "waiting"
    assert re.fullmatch(r"waiting: \d+ s so far", told[1])


def test_reader_of_the_log_that_fails_does_not_end_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.01)
    called = threading.Event()

    def fail(_: str) -> None:
        called.set()
        raise SystemExit(3)

    with progress.announced("waiting", fail):
        assert called.wait(10)


# Limits.


@pytest.mark.parametrize("kibibytes", [60_000, 150_000, 400_000])
def test_address_space_is_what_is_blamed(serve: Servers, kibibytes: int) -> None:
    """Not the number of processes; and nothing was said to serve before."""
    server = serve(
        prefix=["sh", "-c", f'ulimit -v {kibibytes}; exec "$@"', "sh"],
        wait=False,
    )
    assert server.wait() == 1
    lines = server.log().splitlines()
    assert len(lines) == 1, server.log()
    assert re.search(r"the system allows only \d+ of 33 threads", lines[0])
    assert "address space is limited to" in lines[0]
    assert "(ulimit -v, RLIMIT_AS)" in lines[0]
    assert "ulimit -u" not in lines[0]


def test_threads_of_the_container_are_what_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/a/b\n", "utf-8")
    for where, current, most in ((folder, "5", "100"), (folder.parent, "40", "40")):
        (where / "pids.current").write_text(current, "utf-8")
        (where / "pids.max").write_text(most, "utf-8")
    found = cgroup.pids(str(tmp_path), str(tmp_path / "membership"))
    assert found == (40, 40)
    monkeypatch.setattr(cgroup, "pids", lambda: found)
    assert "the container allows 40 processes and threads" in shortage.shortage_of_threads()
    monkeypatch.setattr(cgroup, "pids", lambda: (39, 40))
    assert "the container" in shortage.shortage_of_threads()


def test_threads_of_the_container_without_a_limit(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/\n", "utf-8")
    (tmp_path / "pids.current").write_text("5", "utf-8")
    (tmp_path / "pids.max").write_text("max", "utf-8")
    assert cgroup.pids(str(tmp_path), str(tmp_path / "membership")) is None


def test_threads_of_the_user_are_what_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NPROC: (50, 50)}
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits.get(which, unlimited))
    monkeypatch.setattr(cgroup, "pids", lambda: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert shortage.shortage_of_threads().startswith("this user may have 50 processes")
    # Root is not held by it; then nothing is known.
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert shortage.shortage_of_threads() == ""
