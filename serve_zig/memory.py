"""How much memory this process has resident."""

from __future__ import annotations

import os
import resource
import sys


def resident_bytes() -> int:
    """Return the resident memory in bytes; where /proc is missing, the most there ever was."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
