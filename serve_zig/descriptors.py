"""The process's file descriptors: the standard ones, and enough for the connections."""

from __future__ import annotations

import os
import resource
import sys

# For listeners, the admin listener's clients, and what the application opens.
HEADROOM = 256

# A connection may have a file beside its socket: the one it is sent, or its body's.
_FOR_EACH = 2


def open_standard() -> None:
    """Open the null device on each of the descriptors 0 to 2 that is closed.

    Else a client's socket gets the number, and what the application prints, or writes from a
    child process, goes to that client. The streams that Python left out are made as well.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free. Inheritable, as those that a shell opens.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # The names are None where the descriptor was closed when Python started.
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115


def fit_connections(connections: int) -> int:
    """Return how many of ``connections`` this process may hold, at least 1.

    Raises the soft limit on open files as far as their sockets and files need; no more, since the
    processes that the application starts inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FOR_EACH * connections + HEADROOM
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        except (OSError, ValueError):
            # Some systems have a further limit than the one that they name (macOS).
            raised = soft
        soft = raised
    if soft == resource.RLIM_INFINITY:
        return connections
    # Where there is no room for a file each, the sockets count: few clients have one.
    return max(1, min(connections, max(soft - HEADROOM, soft // 2)))
