"""A container's circumstances: a read-only root, a random user id, no HOME, process 1, limits."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_zig import cgroup
from serve_zig.kinds import GIBIBYTE, MEBIBYTE
from serving import REPOSITORY, Servers, free_port, wait_until
from wire import PATIENCE, Connection, Response, get, post

# The interpreter of an environment that has serve-zig; .ci/run names one made as an image is.
PYTHON = os.environ.get("SERVE_ZIG_PYTHON", sys.executable)

# Where this interpreter finds what it has: the sources, for one.
SEARCHED = (
    {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} if sys.executable == PYTHON else {}
)

USER = 54321

APPLICATION = """
import hashlib, json, os

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    found = {
        "bytes": len(body),
        "digest": hashlib.sha256(body).hexdigest(),
        "user": os.getuid(),
        "process": os.getpid(),
        "home": os.environ.get("HOME"),
        "written": [folder for folder in ("/", "/var/tmp", os.getcwd()) if writes(folder)],
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]

def writes(folder):
    try:
        with open(folder + "/made", "x"):
            return True
    except OSError:
        return False
"""


def bubblewrap() -> str | None:
    """Return why bubblewrap cannot be used here, None if it can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian: bubblewrap)"
    probe = ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc"]
    done = subprocess.run([*probe, "true"], capture_output=True, text=True, timeout=30)
    return f"bubblewrap may not be used here: {done.stderr}" if done.returncode else None


UNUSABLE = bubblewrap()
needs_bubblewrap = pytest.mark.skipif(UNUSABLE is not None, reason=str(UNUSABLE))


class Container:
    """A server behind bubblewrap, as process 1."""

    def __init__(
        self, folder: Path, mounts: tuple[str, ...], after: str, config: Path | None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        given = config or folder / "serve.toml"
        needed = [folder, given.parent, REPOSITORY, Path(PYTHON).parent.parent]
        needed += [Path(sys.base_prefix), *map(Path, filter(None, sys.path))]
        below = {str(path) for path in needed if path.is_relative_to("/tmp") and path.exists()}
        info_read, info_write = os.pipe()
        with open(folder / "log", "wb") as log, open(info_read, "rb") as info:
            self.process = subprocess.Popen(
                [
                    *("bwrap", "--die-with-parent", "--info-fd", str(info_write)),
                    *("--unshare-user", "--uid", str(USER), "--gid", str(USER)),
                    *("--unshare-pid", "--as-pid-1", "--cap-drop", "ALL"),
                    *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
                    *mounts,
                    # The interpreter and this test may live in /tmp.
                    *(word for path in sorted(below) for word in ("--ro-bind", path, path)),
                    *after.split(),
                    *("--unsetenv", "HOME", "--unsetenv", "TMPDIR", "--chdir", str(given.parent)),
                    *(PYTHON, "-m", "serve_zig", "-c", str(given)),
                    *("--set", f"listen.bind=127.0.0.1:{self.port}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[info_write],
                env={**os.environ, **SEARCHED},
            )
            os.close(info_write)
            told = info.read()
        assert told, self.log()
        self.server = int(json.loads(told)["child-pid"])

    def log(self) -> str:
        """Return what was written to stdout and stderr."""
        return (self.folder / "log").read_text("utf-8")

    def wait_serving(self) -> None:
        """Wait until the server accepts."""

        def serves() -> bool:
            assert self.process.poll() is None, self.log()
            return " serves " in self.log()

        wait_until(serves, 20.0, self.log)

    def ask(self, request: bytes) -> Response:
        """Send a request and return the response."""
        with Connection(socket.AF_INET, ("127.0.0.1", self.port)) as connection:
            connection.offer(request)
            return connection.response()

    def found(self, request: bytes) -> dict[str, object]:
        """Send a request that is answered 200 and return what the application has found."""
        response = self.ask(request)
        assert response.status == 200, response
        found: dict[str, object] = json.loads(response.body)
        return found

    def stop(self) -> int:
        """Let the server drain, and return its exit status."""
        os.kill(self.server, signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End what still runs."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.server, signal.SIGKILL)
            self.process.kill()
            self.process.wait(PATIENCE)


class Containers:
    """Starts containers and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Container] = []

    def __call__(self, *mounts: str, after: str = "", config: Path | None = None) -> Container:
        """Start one, and wait until it serves.

        ``mounts`` are bubblewrap's arguments for /tmp, and ``after`` those that come last.
        """
        (self._folder / "application.py").write_text(APPLICATION, "utf-8")
        (self._folder / "serve.toml").write_text(
            '[app]\ntarget = "application:app"\n[limits]\nbody_memory = "64 KiB"\n', "utf-8"
        )
        container = Container(self._folder, mounts, after, config)
        self._started.append(container)
        container.wait_serving()
        return container

    def close(self) -> None:
        """End them all."""
        for container in self._started:
            container.close()


@pytest.fixture
def contain(tmp_path: Path) -> Iterator[Containers]:
    """Return a function that starts a container."""
    containers = Containers(tmp_path)
    yield containers
    containers.close()


UPLOAD = bytes(range(256)) * 4096 * 3


@needs_bubblewrap
def test_read_only_root_random_user_and_no_home_will_do(contain: Containers) -> None:
    container = contain("--tmpfs", "/tmp")
    found = container.found(post("/", UPLOAD))
    assert found["bytes"] == len(UPLOAD)
    assert found["user"] == USER
    # PID 1 waits for orphans and passes signals on; the server is its child.
    assert found["process"] == 2
    assert found["home"] is None
    assert found["written"] == []
    assert container.stop() == 0
    assert "warning" not in container.log()
    assert "drained; the server ends" in container.log()


@needs_bubblewrap
def test_without_a_place_for_it_a_large_upload_alone_is_refused(contain: Containers) -> None:
    container = contain("--tmpfs", "/tmp", after="--remount-ro /tmp")
    warning = (
        "warning no temporary directory can be written to (/tmp and others): a request body past "
        "limits.body_memory (64 KiB) is answered 500; mount one, or set TMPDIR\n"
    )
    wait_until(lambda: warning in container.log(), PATIENCE, container.log)
    for _ in range(3):
        refused = container.ask(post("/", UPLOAD))
        assert refused.status == 500
        assert b"temporary_file" in refused.body
        assert container.found(get("/"))["bytes"] == 0
    assert container.found(post("/", UPLOAD[:60_000]))["bytes"] == 60_000
    assert container.stop() == 0


@needs_bubblewrap
def test_full_temporary_directory_refuses_an_upload_with_507(contain: Containers) -> None:
    container = contain("--size", str(MEBIBYTE), "--tmpfs", "/tmp")
    for _ in range(3):
        assert container.ask(post("/", UPLOAD)).status == 507
        # What was written has been given back.
        assert container.found(post("/", UPLOAD[: MEBIBYTE // 2]))["bytes"] == MEBIBYTE // 2
    assert container.stop() == 0


@needs_bubblewrap
def test_application_of_the_image_is_served(contain: Containers) -> None:
    config = REPOSITORY / "examples" / "docker" / "application" / "serve.toml"
    container = contain("--tmpfs", "/tmp", config=config)
    assert container.ask(get("/")).body.startswith(b"Hello from ")
    assert container.ask(post("/upload", UPLOAD)).body == b"%d bytes\n" % len(UPLOAD)
    assert container.stop() == 0


# The limits of the cgroup.


class Groups:
    """A tree of cgroups."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.membership = folder / "membership"

    def write(self, path: str, text: str) -> None:
        """Write a file of a cgroup."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", "ascii")

    def read(self, membership: str) -> cgroup.Limits:
        """Return the limits of a process with these lines in /proc/self/cgroup."""
        self.root.mkdir(exist_ok=True)
        self.membership.write_text(membership, "ascii")
        return cgroup.read(str(self.root), str(self.membership))


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    """Return a tree without limits."""
    return Groups(tmp_path)


def test_version_2(groups: Groups) -> None:
    groups.write("cpu.max", "50000 100000")
    groups.write("memory.max", "536870912")
    limits = groups.read("0::/\n")
    assert (limits.cpus, limits.memory) == (0.5, 512 * MEBIBYTE)
    assert str(limits) == "CPU limit 0.5, memory limit 512 MiB"


def test_least_limit_on_the_way_up_counts(groups: Groups) -> None:
    groups.write("kubepods/cpu.max", "400000 100000")
    groups.write("kubepods/pod1/cpu.max", "150000 100000")
    groups.write("kubepods/pod1/app/cpu.max", "max 100000")
    groups.write("kubepods/pod1/memory.max", str(GIBIBYTE))
    groups.write("kubepods/pod1/app/memory.max", "max")
    limits = groups.read("0::/kubepods/pod1/app\n")
    assert (limits.cpus, limits.memory) == (1.5, GIBIBYTE)


def test_version_1(groups: Groups) -> None:
    groups.write("cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "200000")
    groups.write("cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000")
    groups.write("memory/docker/abc/memory.limit_in_bytes", "1000000")
    groups.write("memory/memory.limit_in_bytes", "9223372036854771712")
    membership = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n3:pids:/docker/abc\n0::/\n"
    limits = groups.read(membership)
    assert (limits.cpus, limits.memory) == (2.0, 1_000_000)
    assert str(limits) == "CPU limit 2, memory limit 1.0 MiB"


def test_path_on_the_host_is_not_there_in_the_container(groups: Groups) -> None:
    groups.write("memory/memory.limit_in_bytes", "1048576")
    limits = groups.read("4:memory:/docker/abc\n0::/../../other\n")
    assert limits.memory == MEBIBYTE


@pytest.mark.parametrize(
    ("cpu", "memory"), [("max 100000", "max"), ("-1 100000", ""), ("junk", "junk"), ("1 0", "-1")]
)
def test_no_limit(cpu: str, memory: str, groups: Groups) -> None:
    groups.write("cpu.max", cpu)
    groups.write("memory.max", memory)
    limits = groups.read("0::/\nnonsense\n")
    assert (limits.cpus, limits.memory) == (None, None)
    assert str(limits) == "no CPU limit, no memory limit"
    assert limits.hint() == ""


def test_no_cgroups_at_all(groups: Groups) -> None:
    limits = cgroup.read(str(groups.root), str(groups.membership))
    assert (limits.cpus, limits.memory) == (None, None)


def test_hint_about_less_than_one_core() -> None:
    assert cgroup.Limits(1.0, None).hint() == ""
    assert cgroup.Limits(0.25, None).hint().startswith("the CPU limit of 0.25 is less than one")


def test_limits_are_told_at_the_start(serve: Servers) -> None:
    limits = re.escape(str(cgroup.read()))
    serve().wait_log(rf"info cgroup: {limits}\n")
