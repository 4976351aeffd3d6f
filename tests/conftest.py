"""Fixtures of the integration tests: real server processes, and their logs beside a failure."""

import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serving import Server, Servers

# A shell that starts the tests in the background makes them ignore SIGINT, and so would the
# servers.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Return a function that starts a server, ended with the test."""
    servers = Servers(lambda: tmp_path_factory.mktemp("serve"))
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Return a function that starts a server, ended with the module's last test."""
    servers = Servers(lambda: tmp_path_factory.mktemp("serve"))
    yield servers
    servers.close()


@pytest.fixture(autouse=True)
def _servers_stay_healthy() -> Iterator[None]:
    """Let a server that dies or fails do so in the test that made it, also a shared one."""
    for server in Servers.known:
        server.begin_test()
    yield
    for server in Servers.known:
        server.check()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget the servers that have ended."""
    Servers.known[:] = [server for server in Servers.known if server.exit_status is None]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what each server logged beside a test that failed."""
    report = yield
    if report.failed:
        for server in Servers.known:
            if server.test_log() or server.process.poll() is not None:
                report.sections.append(_log_section(server, call.when))
    return report


def _log_section(server: Server, when: str) -> tuple[str, str]:
    status = server.process.poll()
    title = f"serve-zig log at {when}, exit status {status}, {', '.join(server.binds)}"
    return title, server.test_log()
