"""Enough file descriptors for the connections that the config allows."""

from __future__ import annotations

import resource

# For listeners, temporary files of request bodies, and what the application opens.
HEADROOM = 256


def fit_connections(connections: int) -> int:
    """Return how many of ``connections`` this process may hold, at least 1.

    Raises the soft limit on open files as far as that needs; no more, since the processes that the
    application starts inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + HEADROOM
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        except (OSError, ValueError):
            # Some systems have a further limit than the one that they name (macOS).
            raised = soft
        soft = raised
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    return max(1, soft - HEADROOM, soft // 2)
