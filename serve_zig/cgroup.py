"""What the container may use: the CPU quota and the memory limit of its cgroup.

The host's number of cores and memory say nothing about a container. No default of the server
depends on either; the limits are told at the start, because they explain what is seen later.
"""

from __future__ import annotations

import os

from serve_zig.kinds import size_text

_ROOT = "/sys/fs/cgroup"
_MEMBERSHIP = "/proc/self/cgroup"

# Version 1 writes "no limit" as the largest multiple of a page below 2^63.
_UNLIMITED_BYTES = 1 << 60


class Limits:
    """``cpus`` is a number of cores and ``memory`` one of bytes; None where there is no limit."""

    __slots__ = ("cpus", "memory")

    def __init__(self, cpus: float | None, memory: int | None) -> None:
        self.cpus = cpus
        self.memory = memory

    def __str__(self) -> str:
        cpus = "no CPU limit" if self.cpus is None else f"CPU limit {self.cpus:.4g}"
        memory = "no memory limit" if self.memory is None else f"memory limit {_size(self.memory)}"
        return f"{cpus}, {memory}"

    def hint(self) -> str:
        """Return what should be known about the limits; empty where that is nothing."""
        if self.cpus is None or self.cpus >= 1.0:
            return ""
        return (
            f"the CPU limit of {self.cpus:.4g} is less than one core: once it is used up, the "
            "process is stopped for the rest of each period (100 ms, as a rule), and requests "
            "with it; prefer a CPU request without a limit, or a limit of 1 and more"
        )


def read(root: str = _ROOT, membership: str = _MEMBERSHIP) -> Limits:
    """Return the limits of this process: the least of its cgroup and those above it.

    Reads both versions of cgroups. What is not there, as on macOS, is no limit.
    """
    cpus: list[float] = []
    memory: list[int] = []
    for hierarchy, path in _memberships(membership):
        folders = _upwards(os.path.join(root, hierarchy) if hierarchy else root, path)
        for folder in folders:
            _add(cpus, _quota(_words(folder, "cpu.max")))
            _add(memory, _bytes(_words(folder, "memory.max")))
            quota = _words(folder, "cpu.cfs_quota_us") + _words(folder, "cpu.cfs_period_us")
            _add(cpus, _quota(quota))
            _add(memory, _bytes(_words(folder, "memory.limit_in_bytes")))
    return Limits(min(cpus, default=None), min(memory, default=None))


def pids(root: str = _ROOT, membership: str = _MEMBERSHIP) -> tuple[int, int] | None:
    """Return how many processes and threads there are and may be, where the least room is left."""
    found: list[tuple[int, int]] = []
    for hierarchy, path in _memberships(membership):
        for folder in _upwards(os.path.join(root, hierarchy) if hierarchy else root, path):
            words = _words(folder, "pids.current") + _words(folder, "pids.max")
            if len(words) == 2 and all(word.isdigit() for word in words):
                found.append((int(words[0]), int(words[1])))
    return min(found, key=lambda one: one[1] - one[0], default=None)


def _memberships(file: str) -> list[tuple[str, str]]:
    """Return the folder of each hierarchy that limits, and the process's path in it."""
    found = []
    for line in _lines(file):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            # Version 2 is mounted at the root or, beside version 1, in a folder of its own.
            found += [("", path), ("unified", path)]
        elif {"cpu", "memory", "pids"} & set(controllers.split(",")):
            # The folder has the controllers' names; links with each single one lead there.
            found += [(name, path) for name in (controllers, *controllers.split(","))]
    return found


def _upwards(root: str, path: str) -> list[str]:
    """Return the folders from the process's own up to the root.

    A container may see its path on the host, which is not there; then the root is its own.
    """
    parts = [part for part in path.strip().split("/") if part not in ("", ".", "..")]
    return [os.path.join(root, *parts[:count]) for count in range(len(parts), -1, -1)]


def _words(folder: str, name: str) -> list[str]:
    return [word for line in _lines(os.path.join(folder, name)) for word in line.split()]


def _lines(file: str) -> list[str]:
    try:
        with open(file, encoding="ascii", errors="replace") as stream:
            return stream.read().splitlines()
    except OSError:
        return []


def _quota(words: list[str]) -> float | None:
    """Return quota by period, both in microseconds; "max" and -1 are no limit."""
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _bytes(words: list[str]) -> int | None:
    if len(words) != 1 or not words[0].isdigit() or int(words[0]) >= _UNLIMITED_BYTES:
        return None
    return int(words[0])


def _add(values: list[float] | list[int], value: float | None) -> None:
    if value is not None:
        values.append(value)  # type: ignore[arg-type]


def _size(size: int) -> str:
    text = size_text(size)
    return text if not text.endswith(" B") else f"{size / (1 << 20):.1f} MiB"
