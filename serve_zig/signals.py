"""What the signals do: SIGTERM, SIGINT and SIGQUIT, SIGHUP, SIGUSR1; and those that are ignored.

A handler only takes note; the main thread acts on it when ``Server.wait`` returns. No signal is
ever blocked: a process that the application starts would inherit the mask.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time

from serve_zig.errors import EXIT_FAILED, StartInterruptedError
from serve_zig.threads import names_of_waited_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# How long the interpreter has to leave the callback in which a stop signal was lost.
_AGAIN_SECONDS = 0.01

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""The signals that begin a drain."""

IGNORED = {
    signal.SIGTTIN: "other servers start a worker for it; there is one process, and "
    "concurrency.threads is its limit: start another replica",
    signal.SIGTTOU: "other servers end a worker for it; there is one process: stop a replica with "
    "SIGTERM",
    signal.SIGUSR2: "other servers replace their binary for it; start another process, and stop "
    "this one with SIGTERM, which drains",
}
"""Signals that stop or end a process by default, and that operators of other servers send."""


def ignore(number: int) -> str:
    """Return the line about a signal that does nothing, after what must be done about it."""
    if number != signal.SIGUSR2:
        # A terminal may send these for each write of a process in the background: such a write
        # would be tried again and again.
        signal.signal(number, signal.SIG_IGN)
    one = signal.Signals(number)
    return f"{one.name} is ignored: {IGNORED[one]}"


def settle() -> None:
    """Let no signal change the exit status, which is decided, once only the interpreter is left.

    The interpreter restores the default action of each signal that has a handler when it is taken
    down; a signal that comes later would end the process with a status of its own. As long as it
    waits for threads of the application a stop signal still has its effect.
    """
    if names_of_waited_for():
        # The last that is registered is the first that runs, after the threads have ended.
        atexit.register(_ignore_all)
    else:
        _ignore_all()


def _ignore_all() -> None:
    for number in (*STOPS, *IGNORED, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class Signals:
    """The signals that have come. ``stops`` are SIGTERM, SIGINT and SIGQUIT, in order."""

    obeys_terminal = True
    """False under a supervisor, which gets the terminal's SIGINT and SIGQUIT too and passes SIGTERM
    on."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self._is_reopening = False
        self._dumps = False
        self._ignored: list[str] = []
        self._phase = "starting"
        self._status = EXIT_FAILED
        self._comes_again = False
        self._main_thread = 0
        self._tells_unraisable = sys.unraisablehook
        self._process = os.getpid()
        self._announce: Callable[[], None] | None = None
        self._dump: Callable[[], None] | None = None
        self._tell: Callable[[str], None] | None = None

    def install(self, dump: Callable[[], None], tell: Callable[[str], None]) -> None:
        """Take over the signals. As PID 1 the kernel drops those without a handler.

        ``dump`` is called for SIGUSR1, and ``tell`` with a line about a signal that is ignored,
        while the main loop does not run.
        """
        self._dump = dump
        self._tell = tell
        self._main_thread = _thread.get_ident()
        self._tells_unraisable, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self.take_back()
        signal.signal(signal.SIGHUP, self._reopen)
        signal.signal(signal.SIGUSR1, self._dump_later)
        for number in IGNORED:
            signal.signal(number, self._ignore)

    def take_back(self) -> list[str]:
        """Handle again what no server can leave to its application; return what it had replaced.

        Without these a drain would never begin, or a client that goes away would end the process.
        All others an application may have for itself.
        """
        handlers: dict[signal.Signals, Callable[[int, FrameType | None], None] | signal.Handlers]
        handlers = {signal.SIGTERM: self._stop, signal.SIGPIPE: signal.SIG_IGN}
        if self.obeys_terminal:
            handlers[signal.SIGINT] = handlers[signal.SIGQUIT] = self._stop
        replaced = [one for one, handler in handlers.items() if signal.getsignal(one) != handler]
        for one in replaced:
            signal.signal(one, handlers[one])
        return [one.name for one in replaced]

    def serving(self, wakeup_descriptor: int, announce: Callable[[], None]) -> None:
        """From here on a stop signal is for the main loop to act on; ``announce`` is called first.

        A signal ends ``Server.wait`` through the descriptor, even one that comes just before it
        or that the system hands to another thread. Raises StartInterruptedError for a signal that
        came before and that the application swallowed while it was imported.
        """
        signal.set_wakeup_fd(wakeup_descriptor, warn_on_full_buffer=False)
        self._announce = announce
        self._phase = "serving"
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._tells_unraisable
        if self.stops:
            raise StartInterruptedError

    def ending(self) -> None:
        """From here on a second stop signal ends the process; little but its exit is left."""
        self._phase = "ending"

    def closing(self) -> None:
        """From here on stop signals do nothing: the process ends in a moment, with its status."""
        self._phase = "closing"

    def failed(self, status: int) -> None:
        """From here on any stop signal ends the process, with this status."""
        self._phase = "failed"
        self._status = status

    def leave_in_child(self) -> None:
        """Do not handle the signals of a process that the application has forked.

        Left to themselves the handlers would end it, too, but late: in the child of another thread
        than the main one CPython 3.13 looks for signals only where it waits.
        """
        if os.getpid() == self._process or threading.current_thread() != threading.main_thread():
            return
        signal.set_wakeup_fd(-1)
        for number in (*STOPS, *IGNORED):
            if signal.getsignal(number) in (self._stop, self._ignore):
                is_interrupt = number == signal.SIGINT
                signal.signal(
                    number, signal.default_int_handler if is_interrupt else signal.SIG_DFL
                )

    def take_dump(self) -> bool:
        """Return whether SIGUSR1 has come since the last call."""
        taken, self._dumps = self._dumps, False
        return taken

    def take_ignored(self) -> list[str]:
        """Return a line about each signal that has come since the last call and does nothing."""
        taken, self._ignored = self._ignored, []
        return taken

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
        if self._comes_again:
            self._comes_again = False
            if self._phase == "starting":
                raise StartInterruptedError
            return
        self.stops.append(signal.Signals(number).name)
        if self._phase == "serving":
            if self._announce is not None:
                self._announce()
            return
        if self._phase == "closing":
            return
        if len(self.stops) > 1 or self._phase == "failed":
            os._exit(self._status)
        if self._phase == "starting":
            raise StartInterruptedError

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _end_child(number)
            return
        line = ignore(number)
        if self._phase == "serving" or self._tell is None:
            self._ignored.append(line)
        else:
            self._tell(line)

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Let a stop signal come again that came in a finalizer or a callback of a weak reference.

        Nothing can be raised out of those; the module system has one for every import.
        """
        if unraisable.exc_type is StartInterruptedError:
            _thread.start_new_thread(self._come_again, ())
        else:
            self._tells_unraisable(unraisable)

    def _come_again(self) -> None:
        time.sleep(_AGAIN_SECONDS)
        self._comes_again = True
        # Not interrupt_main, which ends no system call that the main thread waits in.
        signal.pthread_kill(self._main_thread, signal.SIGTERM)

    def _dump_later(self, number: int, frame: FrameType | None) -> None:
        self._dumps = True
        if self._phase != "serving" and self._dump is not None:
            # The main loop does not run: the application is imported, or shuts down.
            self._dumps = False
            try:
                self._dump()
            except Exception:
                # It may need a module that is being imported just now: the main loop does it then.
                self._dumps = True


def _end_child(number: int) -> None:
    """Do what the signal does by default, in a process that the application forked.

    Such a process inherits the handlers but has no server to drain; without this it could be
    ended by SIGKILL alone.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
