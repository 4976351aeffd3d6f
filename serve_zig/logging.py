"""What the launcher writes to stderr once it serves: one record a line, time first.

As text a record is ``time level message``; further lines that belong to it, such as a traceback,
are indented. So a record always begins at the left edge with a time, and nothing that a client or
an exception's text contains can pass for one. As JSON it is one object on one line, with the fields
``time``, ``level``, ``message``, ``detail`` where there is one, and further ones by name. The core
writes its records (log_text.zig, access_log.zig) in the same ways.
"""

from __future__ import annotations

import time

from serve_zig import stderr
from serve_zig.application_traceback import escape_controls, format_exception, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from serve_zig._core import Server

LEVELS = ("error", "warning", "info")


class Log:
    """Writes records of a level and above; any thread may call it."""

    def __init__(self, level: str, form: str = "text") -> None:
        self._enabled = LEVELS[: LEVELS.index(level) + 1]
        self._is_json = form == "json"
        if self._is_json:
            # Before the application's directory is on sys.path, which may have a json.py too. A
            # log of text does not need it.
            import json  # noqa: F401
        self._write: Callable[[bytes], None] = stderr.write
        self._server: Server | None = None

    def hand_over(self, server: Server) -> None:
        """Let the core write, which never waits for whoever reads the log."""
        self._server = server
        self._write = server.log_function()

    def take_back(self) -> None:
        """Close the core's logs, with all that is in them, and write to stderr again."""
        server, self._server = self._server, None
        if server is not None:
            server.close_logs()
        self._write = stderr.write

    def info(self, message: str) -> None:
        """Record what happened as planned."""
        self.record("info", message)

    def warning(self, message: str) -> None:
        """Record what should be looked at; the server goes on."""
        self.record("warning", message)

    def error(self, message: str, detail: str = "") -> None:
        """Record what failed; ``detail`` may have many lines."""
        self.record("error", message, detail)

    def record(self, level: str, message: str, detail: str = "", **fields: str | None) -> None:
        """Write one record, in one piece wherever the system can. Text leaves ``fields`` out."""
        if level not in self._enabled:
            return
        if self._is_json:
            self._write(_json_record(level, message, detail, fields))
            return
        lines = [f"{_timestamp()} {level} {message}"]
        lines += [f"    {line}" for line in detail.rstrip("\n").split("\n") if detail]
        self._write(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))

    def report(
        self,
        kind: str,
        message: str,
        exception: BaseException | None,
        method: str,
        target: str,
        client: str,
        request_id: str = "",
    ) -> None:
        """Record an error of the application while it answered a request.

        ``kind`` is "application" where it raised and "protocol" where it broke PEP 3333. Called
        by the core from a worker, with the GIL held.
        """
        what = message
        detail = ""
        if exception is not None:
            what = f"{message}: {type_name(exception)}" if message else type_name(exception)
            detail = traceback_of(exception)
        if self._is_json:
            self.record(
                "error",
                f"{kind} error: {what}",
                detail,
                method=method,
                target=target,
                client=client or "unix:",
                request_id=request_id or None,
            )
            return
        request = f'{escape(method)} "{escape(target)}" from {escape(client) or "a unix socket"}'
        if request_id:
            request += f", request id {escape(request_id)}"
        self.error(f"{kind} error: {_one_line(what)}; {request}", detail)


def escape(text: str) -> str:
    r"""Return ``text`` in printable ASCII without quotes, so that it fits between two of them.

    Native strings of WSGI hold bytes as Latin-1, so what is not ASCII becomes ``\xNN``.
    """
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return text.encode("unicode_escape").decode("ascii").replace('"', '\\"')


def traceback_of(exception: BaseException) -> str:
    """Return the application's traceback, or why there is none: want of memory, say."""
    try:
        return format_exception(exception)
    except BaseException as error:
        return f"(no traceback: {type_name(error)})"


def _one_line(text: str) -> str:
    return escape_controls(text).replace("\n", "\\n")


def _json_record(level: str, message: str, detail: str, fields: dict[str, str | None]) -> bytes:
    import json

    record: dict[str, str | None] = {"time": _timestamp(), "level": level, "message": message}
    if detail:
        record["detail"] = detail.rstrip("\n")
    record.update(fields)
    # Lone surrogates are no Unicode, and not every reader of JSON takes them.
    whole = {
        name: value.encode("utf-8", "backslashreplace").decode() if value is not None else None
        for name, value in record.items()
    }
    return json.dumps(whole, separators=(",", ":")).encode("ascii") + b"\n"


def _timestamp() -> str:
    """Return the time in UTC as RFC 3339 writes it, with milliseconds."""
    now_ms = time.time_ns() // 1_000_000
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ms // 1000))
    return f"{seconds}.{now_ms % 1000:03d}Z"
