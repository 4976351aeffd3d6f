"""The end of the process, which nothing that the application leaves behind may hold up.

The interpreter waits for threads of the application that are no daemons, runs its ``atexit``
functions, and flushes its streams into pipes that nobody may read: each without end.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from serve_zig import stderr
from serve_zig.threads import names_of_waited_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# How long the interpreter may take to end.
_END_SECONDS = 10.0
# How long streams may take to be flushed.
_FLUSH_SECONDS = 1.0


def _warn_plainly(text: str) -> None:
    stderr.tell(f"serve-zig: warning: {text}\n")


_warn: Callable[[str], None] = _warn_plainly


def warn_with(function: Callable[[str], None]) -> None:
    """Have the log tell why the process is ended."""
    global _warn
    _warn = function


def end_soon(status: int) -> None:
    """End the process with ``status`` if the interpreter has not ended it within ten seconds.

    For whoever owns the process: a caller of ``cli.main`` may have other work to do.
    """
    # Threads of Python do not run any more while the interpreter is taken down. The extension may
    # be missing, which is a start that never came to the application.
    with contextlib.suppress(ImportError):
        from serve_zig._core import end_process

        end_process(round((_END_SECONDS + 2 * _FLUSH_SECONDS) * 1000), status)
    _start(lambda: _end_late(status), "serve-zig-exit")


def _end_late(status: int) -> None:
    time.sleep(_END_SECONDS)
    with contextlib.suppress(BaseException):
        _warn(
            f"the interpreter has not ended within {_END_SECONDS:g} s (threads of the application: "
            f"{', '.join(names_of_waited_for()) or 'none'}); the process ends now"
        )
    end_now(status)


def end_now(status: int) -> NoReturn:
    """End the process beside threads that cannot be waited for."""
    flushing = _start(_flush, "serve-zig-flush")
    if flushing is not None:
        flushing.join(_FLUSH_SECONDS)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # An application may have put anything there; what cannot be flushed is lost.
        with contextlib.suppress(BaseException):
            stream.flush()


def _start(function: Callable[[], None], name: str) -> threading.Thread | None:
    thread = threading.Thread(target=function, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        # The system allows no more threads, or the interpreter is ending.
        return None
    return thread
