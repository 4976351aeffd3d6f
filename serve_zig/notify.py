"""Messages to the service manager, as sd_notify(3) sends them: ready, reloading, stopping, status.

The protocol is a datagram of lines NAME=VALUE to the unix socket that NOTIFY_SOCKET names; no
library is needed. The watchdog's messages come from the core (watchdog.zig), since they must not
depend on the GIL. The variables are taken out of the environment: a process that the application
starts must not speak for the service.
"""

from __future__ import annotations

import os
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

# How long a change of state waits for room in the manager's queue, which holds ten messages or so.
_SEND_SECONDS = 1.0
_PAUSE_SECONDS = 0.01

_STATUS_CHARACTERS_MAX = 500

# What is asked for beside the times of the config: the last lines of the log, and the end of the
# interpreter, which process_end.py limits.
_MARGIN_SECONDS = 20.0


class Notifier:
    """What the service manager is told; without one, nothing happens.

    ``warn`` is called once for each way in which it could not be told.
    """

    def __init__(self, environment: MutableMapping[str, str], warn: Callable[[str], None]) -> None:
        given = {name: environment.pop(name, "") for name in _VARIABLES}
        self.watchdog_seconds = 0.0
        self._warn = warn
        self._warned: set[str] = set()
        self._address: bytes | None = None
        self._socket: socket.socket | None = None
        # What it serves, and what was said last.
        self._serving = ""
        self._said = ""
        if given["NOTIFY_SOCKET"]:
            self._open(given["NOTIFY_SOCKET"])
        if self._socket is not None:
            self.watchdog_seconds = _watchdog_seconds(given["WATCHDOG_USEC"], given["WATCHDOG_PID"])

    @property
    def is_on(self) -> bool:
        """Whether there is a service manager to tell."""
        return self._socket is not None

    def starting(self, what: str, seconds: float = 0.0) -> None:
        """Say what the start is at; it may take ``seconds``, where the config limits it."""
        self._send(0.0, f"STATUS={_line(what)}", *_extension(seconds))

    def ready(self, status: str) -> None:
        """Say that the service serves."""
        self._serving = _line(status)
        self.ready_again()

    def reloading(self) -> None:
        """Say that a reload has begun; ``ready_again`` must follow."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._change("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=opening log files anew")

    def ready_again(self) -> None:
        """Say that the reload is over."""
        self._change("READY=1", f"STATUS={self._serving}")

    def stopping(self, status: str, seconds: float) -> None:
        """Say that the service ends, which may take ``seconds``."""
        self._change("STOPPING=1", f"STATUS={_line(status)}", *_extension(seconds))

    def status(self, text: str) -> None:
        """Say what ``systemctl status`` shows."""
        line = f"STATUS={_line(text)}"
        if line != self._said:
            self._said = line
            self._send(0.0, line)

    def feed_watchdog(self) -> None:
        """Say that the service lives, where the core does not say so."""
        self._send(0.0, "WATCHDOG=1")

    def watchdog_descriptor(self) -> int:
        """Return a connected descriptor for the core, which takes it over; -1 for none."""
        if self._address is None or not self.watchdog_seconds:
            return -1
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
                own.setblocking(False)
                own.connect(self._address)
                return own.detach()
        except OSError as error:
            self._complain(f"the watchdog's messages cannot be sent: {error.strerror or error}")
            return -1

    def close(self) -> None:
        """Say nothing any more."""
        own, self._socket = self._socket, None
        if own is not None:
            own.close()

    def _open(self, text: str) -> None:
        if not text.startswith(("/", "@")):
            self._complain(f"{text} is neither a path nor an abstract socket (@name)")
            return
        name = os.fsencode(text)
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError as error:
            self._complain(f"no socket for it: {error.strerror or error}")
            return
        self._socket.setblocking(False)
        self._address = b"\0" + name[1:] if text.startswith("@") else name

    def _change(self, name: str, *lines: str) -> None:
        if not self._send(_SEND_SECONDS, name, *lines):
            self._complain(f"{name} could not be sent: the manager does not read")

    def _send(self, seconds: float, *lines: str) -> bool:
        """Send a message, waiting at most so long for room; return False where there was none."""
        if self._socket is None or self._address is None:
            return True
        message = "\n".join(lines).encode("utf-8", "backslashreplace")
        deadline = time.monotonic() + seconds
        while True:
            try:
                # By name each time: the manager may have opened its socket anew.
                self._socket.sendto(message, self._address)
            except BlockingIOError:
                # poll(2) knows nothing of the queue of a socket that this one is not connected to.
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_PAUSE_SECONDS)
                continue
            except OSError as error:
                name = lines[0].partition("=")[0]
                self._complain(f"{name} could not be sent: {error.strerror or error}")
            return True

    def _complain(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(f"NOTIFY_SOCKET: {what}; the service manager may take the service for dead")


def _watchdog_seconds(usec: str, pid: str) -> float:
    """Return the manager's patience; 0 where there is none, or it is another process's."""
    if not (usec.isascii() and usec.isdigit()) or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 1_000_000


def _extension(seconds: float) -> list[str]:
    """Ask for time, which never shortens what the unit allows (EXTEND_TIMEOUT_USEC)."""
    if not seconds:
        return []
    return [f"EXTEND_TIMEOUT_USEC={round((seconds + _MARGIN_SECONDS) * 1_000_000)}"]


def _line(text: str) -> str:
    return " ".join(text.split())[:_STATUS_CHARACTERS_MAX]
