"""Nothing is left behind: memory, references, threads and descriptors after many requests."""

import sys

import pytest

import soaking
from serving import Server, Servers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: Requests of one kind, and the seconds after which fewer will do: a leak of one object a request
#: shows in hundreds, and a busy machine must not make this a long test.
REQUESTS = 20_000
SECONDS = 0.4


@pytest.fixture(scope="module")
def patient(serve_module: Servers) -> Server:
    """The server for what is answered."""
    return soaking.start(serve_module, "ok")


@pytest.fixture(scope="module")
def impatient(serve_module: Servers) -> Server:
    """The server for what is given up."""
    return soaking.start(serve_module, "overload")


def expect_no_leak(server: Server, kind: str) -> None:
    """Counts after many requests are those from before.

    A table that doubles grows once; what leaks grows each time that one looks.
    """
    server.errors_expected = kind in soaking.LOGGING
    soaking.repeated(server, kind, REQUESTS // 10, SECONDS / 4)
    before = soaking.numbers(server)
    for _ in range(3):
        sent = soaking.repeated(server, kind, REQUESTS, SECONDS)
        after = soaking.numbers(server)
        leaks = soaking.grown(before, after, sent)
        if not leaks:
            return
        before = after
    pytest.fail(f"after {sent} requests each time: {leaks}")


@pytest.mark.parametrize("kind", soaking.PATIENT_KINDS)
def test_nothing_is_left(patient: Server, kind: str) -> None:
    """After requests that were answered, refused, left or parked."""
    expect_no_leak(patient, kind)


@pytest.mark.parametrize("kind", soaking.IMPATIENT_KINDS)
def test_nothing_is_left_of_what_was_given_up(impatient: Server, kind: str) -> None:
    """After each time limit, and with more requests than are let in."""
    expect_no_leak(impatient, kind)
