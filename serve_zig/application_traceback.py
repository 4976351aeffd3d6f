"""The application's own traceback: without the frames of the launcher and of the import system.

What an exception says may come from a client, so control characters are written as escapes: a
request cannot clear the screen of the one who reads the log.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    import traceback
    from types import FrameType

_LAUNCHER_DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_IMPORT_SYSTEM = "<frozen importlib"
_THREADING_FILE = threading.Thread.run.__code__.co_filename
_IMPORT_MODULE = os.path.join("importlib", "__init__.py")


def format_exception(exception: BaseException) -> str:
    """Return the traceback with the exceptions that led to it; it ends with a newline."""
    # Imported here because a start and a server without errors do not need it.
    import traceback

    summary = traceback.TracebackException.from_exception(exception)
    _strip(summary)
    return escape_controls("".join(summary.format()))


def format_stack(frame: FrameType) -> str:
    """Return the application's part of the stack that ends in ``frame``; empty if it has none."""
    return escape_controls("".join(application_frames(frame).format()))


def application_frames(frame: FrameType) -> traceback.StackSummary:
    """Return the application's part of the stack that ends in ``frame``, outermost first."""
    import traceback

    stack = traceback.extract_stack(frame)
    # What started the launcher is not the application's either: runpy, the script serve-zig.
    files = [entry.filename.startswith(_LAUNCHER_DIRECTORY) for entry in stack]
    begin = files.index(True) if True in files else 0
    stack[:] = [entry for entry in stack[begin:] if not _is_worker_file(entry.filename)]
    return stack


def has_application_frames(exception: BaseException) -> bool:
    """Return whether code of the application was running when the exception was raised."""
    traceback_entry = exception.__traceback__
    while traceback_entry is not None:
        if not is_launcher_file(traceback_entry.tb_frame.f_code.co_filename):
            return True
        traceback_entry = traceback_entry.tb_next
    return False


def is_launcher_file(file: str) -> bool:
    """Return whether the code in ``file`` is the launcher's or the import system's."""
    return file.startswith((_LAUNCHER_DIRECTORY, _IMPORT_SYSTEM)) or file.endswith(_IMPORT_MODULE)


def escape_controls(text: str) -> str:
    """Return ``text`` with every control character but tab and newline as an escape."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode()
        for one in text
    )


def _is_worker_file(file: str) -> bool:
    # A worker's stack begins in threading.Thread and the launcher, below the application.
    return file == _THREADING_FILE or is_launcher_file(file)


def _strip(summary: traceback.TracebackException) -> None:
    """Remove the frames that are not the application's, here and in every related exception."""
    pending = [summary]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.stack[:] = [frame for frame in one.stack if not is_launcher_file(frame.filename)]
        related = (one.__cause__, one.__context__, *(one.exceptions or ()))
        pending.extend(other for other in related if other is not None)
