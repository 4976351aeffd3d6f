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
    from types import FrameType, TracebackType

# File, line, function and source of one call; the source is empty where it is not known.
StackEntry = tuple[str, int, str, str]

_LAUNCHER_DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_IMPORT_SYSTEM = "<frozen importlib"
_THREADING_FILE = threading.Thread.run.__code__.co_filename
# How often a call is shown that is made again and again from one line.
_REPEATED_MAX = 3
_IMPORT_MODULE = os.path.join("importlib", "__init__.py")


def format_exception(exception: BaseException) -> str:
    """Return the traceback with the exceptions that led to it; it ends with a newline.

    Never raises. The standard library's formatting asks loaders, exceptions and modules that are
    the application's; where one fails, the traceback is without source and related exceptions.
    """
    try:
        # Imported here because a start and a server without errors do not need it.
        import traceback

        summary = traceback.TracebackException.from_exception(exception)
        _strip(summary)
        return escape_controls("".join(summary.format()))
    except BaseException:
        return escape_controls(_format_plainly(exception))


def describe_exception(exception: BaseException) -> str:
    """Return type and message on one line; never raises, whatever the exception's class does."""
    name = type_name(exception)
    try:
        message = str(exception)
    except BaseException:
        message = "(it has no message: its __str__ failed)"
    return escape_controls(f"{name}: {message}" if message else name).replace("\n", "\\n")


def type_name(value: object) -> str:
    """Return the name of the type, past a metaclass whose ``__name__`` raises."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def format_stack(frame: FrameType) -> str:
    """Return the application's part of the stack that ends in ``frame``; empty if it has none."""
    lines = []
    before: StackEntry | None = None
    repeated = 0
    for entry in application_frames(frame):
        repeated = repeated + 1 if entry == before else 0
        before = entry
        # As the module traceback has it for a recursion.
        if repeated < _REPEATED_MAX:
            lines.append(_format_entry(entry))
        elif repeated == _REPEATED_MAX:
            lines.append("  [the same call again, several times]\n")
    return escape_controls("".join(lines))


def application_frames(frame: FrameType) -> list[StackEntry]:
    """Return the application's part of the stack that ends in ``frame``, outermost first.

    Never raises.
    """
    frames: list[tuple[FrameType, int]] = []
    one: FrameType | None = frame
    while one is not None:
        frames.append((one, one.f_lineno or 0))
        one = one.f_back
    frames.reverse()
    # What started the launcher is not the application's either: runpy, the script serve-zig.
    files = [entry.f_code.co_filename.startswith(_LAUNCHER_DIRECTORY) for entry, _ in frames]
    begin = files.index(True) if True in files else 0
    return [
        (
            entry.f_code.co_filename,
            line,
            entry.f_code.co_name,
            _source_line(entry.f_code.co_filename, line, entry),
        )
        for entry, line in frames[begin:]
        if not _is_worker_file(entry.f_code.co_filename)
    ]


def _source_line(file: str, line: int, frame: FrameType) -> str:
    """Return the line's source, without indentation; empty where it cannot be had.

    A module's loader may be the application's, and so may the module linecache.
    """
    try:
        import linecache

        linecache.checkcache(file)
        return str(linecache.getline(file, line, frame.f_globals)).strip()
    except BaseException:
        return ""


def _format_entry(entry: StackEntry) -> str:
    file, line, function, source = entry
    text = f'  File "{file}", line {line}, in {function}\n'
    return f"{text}    {source}\n" if source else text


def _format_plainly(exception: BaseException) -> str:
    lines = ["Traceback (most recent call last):\n"]
    entry: TracebackType | None = _traceback(exception)
    while entry is not None:
        code = entry.tb_frame.f_code
        if not is_launcher_file(code.co_filename):
            lines.append(_format_entry((code.co_filename, entry.tb_lineno or 0, code.co_name, "")))
        entry = entry.tb_next
    return "".join([*lines, describe_exception(exception), "\n"])


def _traceback(exception: BaseException) -> TracebackType | None:
    # Past an attribute of the application's class.
    return BaseException.__dict__["__traceback__"].__get__(exception)  # type: ignore[no-any-return]


def has_application_frames(exception: BaseException) -> bool:
    """Return whether code of the application was running when the exception was raised."""
    traceback_entry = _traceback(exception)
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
