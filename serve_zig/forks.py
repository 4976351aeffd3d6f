"""Processes that the application forks, which have a copy of everything that the server has.

Without the work here a client would not see that the server has closed its connection, the port
would stay taken after the server's end, and a handler that comes back in such a process would
answer requests there.
"""

from __future__ import annotations

import os

from serve_zig import stderr
from serve_zig.application_traceback import format_exception
from serve_zig.errors import EXIT_DRAINED, EXIT_FAILED
from serve_zig.process_end import end_now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from serve_zig.listeners import Listener
    from serve_zig.signals import Signals


class Forks:
    """Closes in a forked process what is the server's alone."""

    def __init__(self, signals: Signals) -> None:
        """Before anything of the application runs, so that the core's hooks are next to the fork:
        those before it run in the reverse order.
        """
        from serve_zig._core import after_fork_in_child, after_fork_in_parent, before_fork

        self.listeners: list[Listener] = []
        self._has_closed = False
        # First: a signal for the child would wake the server's main loop, or find a descriptor that
        # the core has closed.
        os.register_at_fork(after_in_child=signals.leave_in_child)
        os.register_at_fork(
            before=before_fork,
            after_in_parent=after_fork_in_parent,
            after_in_child=after_fork_in_child,
        )
        os.register_at_fork(after_in_child=self._close)

    def _close(self) -> None:
        # Not again in a child of the child: the numbers may be those of its own files by then.
        if self._has_closed:
            return
        self._has_closed = True
        for listener in self.listeners:
            listener.close()


def end_child(exception: BaseException | None) -> NoReturn:
    """End a forked process that has come back from its handler; called by the core."""
    if isinstance(exception, SystemExit):
        code = exception.code
        if code is not None and not isinstance(code, int):
            stderr.tell(f"{code}\n")
            code = EXIT_FAILED
        end_now((code or EXIT_DRAINED) & 0xFF)
    if exception is None:
        stderr.tell(
            f"serve-zig: error: a process that the application forked (pid {os.getpid()}) has "
            "returned from its handler; it ends here, as os._exit would have ended it\n"
        )
    else:
        stderr.tell(format_exception(exception))
    # What the parent's streams had not written yet is the parent's to write.
    os._exit(EXIT_FAILED)
