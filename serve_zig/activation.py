"""systemd's socket activation: the listening sockets that the service manager has opened.

It passes them as descriptors from 3 on and tells of them in the environment: LISTEN_PID is the
process that they are meant for, LISTEN_FDS their number, LISTEN_FDNAMES their names, which are
separated by colons (sd_listen_fds(3)). The variables are taken out of the environment, so that no
process of the application takes itself for the one that is meant.
"""

from __future__ import annotations

import functools
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

_FIRST_DESCRIPTOR = 3
_SOCKETS_MAX = 1024
# What systemd calls a socket that has no name.
_UNNAMED = "unknown"

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Activation:
    """The sockets that were passed; each is taken once.

    ``absence`` says why there are none, empty where there are some.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        given = {name: environment.pop(name, "") for name in _VARIABLES}
        self._names: dict[int, str] = {}
        self.absence = _absence(given["LISTEN_PID"], given["LISTEN_FDS"])
        if self.absence:
            return
        names = given["LISTEN_FDNAMES"].split(":") if given["LISTEN_FDNAMES"] else []
        for index in range(int(given["LISTEN_FDS"])):
            descriptor = _FIRST_DESCRIPTOR + index
            self._names[descriptor] = names[index] if index < len(names) else _UNNAMED
            try:
                # Also those that no address names, whom no child process must keep open.
                os.set_inheritable(descriptor, False)
            except OSError:
                # Whoever opens it says so.
                continue

    def take(self, name: str) -> list[int]:
        """Return the descriptors of this name, or all that are left for the empty one."""
        found = [number for number, known in self._names.items() if name in ("", known)]
        for number in found:
            del self._names[number]
        return found

    def claim(self, descriptor: int) -> None:
        """Take one by its number, if it is one of these."""
        self._names.pop(descriptor, None)

    def left(self) -> list[str]:
        """Return the names of the sockets that no address has named so far."""
        return list(self._names.values())


def _absence(pid: str, count: str) -> str:
    if not count:
        return "systemd has passed no sockets to this process (LISTEN_FDS is not set)"
    if pid != str(os.getpid()):
        return (
            f"the sockets that systemd passes are meant for the process {pid or '(none)'} "
            f"(LISTEN_PID), and this is {os.getpid()}; have a wrapper script start the server with "
            "exec"
        )
    is_count = count.isascii() and count.isdigit() and len(count) < 5
    if not is_count or not 0 < int(count) <= _SOCKETS_MAX:
        return f"LISTEN_FDS={count} is not a number of sockets"
    return ""


@functools.cache
def passed_sockets() -> Activation:
    """Return the sockets that were passed to this process."""
    return Activation(os.environ)
