"""Which limit of the system keeps this process from starting another thread.

pthread_create(3) says EAGAIN for all of them: no address space for the stack, too many threads of
the user, of the cgroup or of the system.
"""

from __future__ import annotations

import os
import resource
import threading

from serve_zig import cgroup
from serve_zig.kinds import MEBIBYTE

# How many threads may have ended between the failure and the look at the cgroup.
_ENDED_SINCE = 2

# What glibc takes for a stack where the limit on it is "unlimited".
_STACK_BYTES = 2 * MEBIBYTE
# What else a thread needs: its guard page, and memory that malloc sets aside for it.
_BESIDE_BYTES = 64 * 1024
_MALLOC_ARENA_BYTES = 128 * MEBIBYTE


ANY = (
    "it may be the one on processes and threads (ulimit -u, pids of the container) or the one on "
    "address space (ulimit -v)"
)


def shortage_of_threads() -> str:
    """Return which limit has been reached; empty where none is known to be."""
    return _address_space() or _cgroup() or _user()


def _address_space() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    needed = threading.stack_size() or (_STACK_BYTES if stack == resource.RLIM_INFINITY else stack)
    used = _address_space_bytes()
    if used + needed + _BESIDE_BYTES + _MALLOC_ARENA_BYTES < limit:
        return ""
    return (
        f"address space is limited to {_mebibytes(limit)} (ulimit -v, RLIMIT_AS), of which "
        f"{_mebibytes(used)} are taken, and each thread takes {_mebibytes(needed)} for its stack; "
        "address space is not memory: limit that by the container (limits.memory) instead"
    )


def _cgroup() -> str:
    found = cgroup.pids()
    # Some of them may have ended since.
    if found is None or found[1] - found[0] > _ENDED_SINCE:
        return ""
    return (
        f"the container allows {found[1]} processes and threads (pids.max; --pids-limit of docker, "
        "TasksMax= of systemd)"
    )


def _user() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    # Root is not held by it.
    if limit == resource.RLIM_INFINITY or os.geteuid() == 0:
        return ""
    return f"this user may have {limit} processes and threads (ulimit -u, RLIMIT_NPROC)"


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _mebibytes(size: int) -> str:
    return f"{size / MEBIBYTE:.0f} MiB"
