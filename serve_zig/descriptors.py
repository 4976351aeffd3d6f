"""Enough file descriptors for the connections that the config allows."""

from __future__ import annotations

import resource

# For listeners, the admin listener's clients, and what the application opens.
HEADROOM = 256

# A connection may have a file beside its socket: the one it is sent, or its body's.
_FOR_EACH = 2


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
