"""The interpreter's threads, of which any may be of a class of the application's.

What such a class makes of ``name``, ``ident`` or ``daemon`` may raise, or be of another type.
Nothing here does.
"""

from __future__ import annotations

import contextlib
import threading

from serve_zig.application_traceback import escape_controls

NO_NAME = "(unnamed)"


def name_of(thread: threading.Thread) -> str:
    """Return the name on one line."""
    try:
        name: object = thread.name
        # Not str(), which a subclass of str may have for itself.
        text = str.__str__(name) if isinstance(name, str) else ""
    except BaseException:
        text = ""
    return escape_controls(text).replace("\n", "\\n") or NO_NAME


def is_daemon(thread: threading.Thread) -> bool:
    """Return whether the interpreter ends without waiting for the thread."""
    try:
        return bool(thread.daemon)
    except BaseException:
        return False


def threads_by_id() -> dict[int, threading.Thread]:
    """Return the threads that Python knows and that have begun."""
    found = {}
    for thread in threading.enumerate():
        with contextlib.suppress(BaseException):
            if thread.ident is not None:
                found[int(thread.ident)] = thread
    return found


def names_of_waited_for() -> list[str]:
    """Return the names of the threads that keep the interpreter from ending."""
    return [
        name_of(thread)
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not is_daemon(thread)
    ]
