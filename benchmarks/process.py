"""Starts, measures and stops a server with everything that it has started itself."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Memory:
    """KiB over the process tree. RSS counts a page shared by two processes twice, PSS once."""

    rss: int
    pss: int


def read_stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third (state) on; None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the name in parentheses, and may hold spaces and parentheses itself.
    return text[text.rindex(")") + 2 :].split()


class Process:
    """A server in a session of its own, so that none of its descendants is lost from sight."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cores: Sequence[int],
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        pinned = ["taskset", "-c", ",".join(map(str, cores)), *command] if cores else [*command]
        self._child = subprocess.Popen(
            pinned,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def log(self) -> str:
        """The end of what the server wrote, on one line."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 300))
        return " ".join(self._log.read().decode(errors="replace").split())

    def tree(self) -> dict[int, list[str]]:
        """/proc/<pid>/stat of each process in the server's session."""
        session = str(self._child.pid)
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            fields = read_stat(pid)
            if fields is not None and fields[3] == session:
                found[pid] = fields
        return found

    def cpu_seconds(self) -> float:
        """User and system time of all threads, and of children that have ended already."""
        ticks = sum(int(value) for fields in self.tree().values() for value in fields[11:15])
        return ticks / TICKS

    def memory(self) -> Memory:
        rss = pss = 0
        for pid in self.tree():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name == "Rss":
                        rss += int(value.split()[0])
                    elif name == "Pss":
                        pss += int(value.split()[0])
        return Memory(rss, pss)

    def stop(self) -> None:
        if self.running:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_SECONDS)
        # What is left, by its id: descendants that outlived the server, or the server itself.
        for _ in range(10):
            left = self.tree()
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._child.poll()
            if not left:
                break
            time.sleep(0.05)
        self._child.wait(STOP_SECONDS)
        self._log.close()
