"""What SIGTERM, SIGINT, SIGHUP and SIGUSR1 do.

A handler only takes note; the main thread acts on it when ``Server.wait`` returns. No signal is
ever blocked: a process that the application starts would inherit the mask.
"""

from __future__ import annotations

import os
import signal

from serve_zig.errors import EXIT_FAILED, StartInterruptedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_NOT_AVAILABLE = {
    signal.SIGUSR1: "writing the threads' stacks to the log",
}


class Signals:
    """The signals that have come. ``stops`` are SIGTERM and SIGINT, in order."""

    obeys_interrupt = True
    """False under a supervisor, which gets the terminal's SIGINT too and passes SIGTERM on."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self._notes: list[str] = []
        self._is_reopening = False
        self._phase = "starting"
        self._process = os.getpid()

    def install(self) -> None:
        """Take over the signals. As PID 1 the kernel drops those without a handler."""
        signal.signal(signal.SIGTERM, self._stop)
        if self.obeys_interrupt:
            signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reopen)
        signal.signal(signal.SIGUSR1, self._note)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def serving(self, wakeup_descriptor: int) -> None:
        """From here on a stop signal is for the main loop to act on.

        A signal ends ``Server.wait`` through the descriptor, even one that comes just before it
        or that the system hands to another thread. Raises StartInterruptedError for a signal that
        came before and that the application swallowed while it was imported.
        """
        signal.set_wakeup_fd(wakeup_descriptor, warn_on_full_buffer=False)
        self._phase = "serving"
        if self.stops:
            raise StartInterruptedError

    def ending(self) -> None:
        """From here on a stop signal ends the process: only the interpreter's exit is left."""
        self._phase = "ending"

    def take_notes(self) -> list[str]:
        """Return what the log should say about the signals since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def take_reopening(self) -> bool:
        """Return whether log files shall be opened anew, once for each SIGHUP or several."""
        is_reopening, self._is_reopening = self._is_reopening, False
        return is_reopening

    def _reopen(self, number: int, frame: FrameType | None) -> None:
        self._is_reopening = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _end_child(number)
            return
        self.stops.append(signal.Signals(number).name)
        if self._phase == "ending":
            os._exit(EXIT_FAILED)
        if self._phase == "starting":
            if len(self.stops) > 1:
                os._exit(EXIT_FAILED)
            raise StartInterruptedError

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number)
        self._notes.append(f"{name.name}: {_NOT_AVAILABLE[name]} is not available yet; ignored")


def _end_child(number: int) -> None:
    """Do what the signal does by default, in a process that the application forked.

    Such a process inherits the handlers but has no server to drain; without this it could be
    ended by SIGKILL alone.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
