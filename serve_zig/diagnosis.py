"""What the log says about requests in flight: overdue ones, stuck ones, and all on SIGUSR1."""

from __future__ import annotations

from serve_zig.application_traceback import describe_exception
from serve_zig.logging import escape
from serve_zig.request_timeout import RequestTimeout
from serve_zig.stacks import every_stack, stack_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from typing import Any

    from serve_zig._core import Server
    from serve_zig.logging import Log

    Request = dict[str, Any]

_NAMES_MAX = 10


class Diagnosis:
    """Tells the log about the requests of one server; ``threads`` are its workers, by number."""

    def __init__(
        self, server: Server, threads: Sequence[threading.Thread], log: Log, raises: bool
    ) -> None:
        self._server = server
        self._threads = threads
        self._log = log
        self._raises = raises

    def act_on_overdue(self) -> None:
        """Log each application call that has passed its limit, and raise in its thread."""
        while (report := self._server.take_overdue()) is not None:
            try:
                self._tell_overdue(report)
            except BaseException as error:
                # For want of memory, say. The call is interrupted all the same.
                self._log.error(f"diagnosis: {describe_exception(error)}")
            finally:
                if self._raises:
                    self._server.interrupt(report["thread"], report["call"], RequestTimeout)

    def _tell_overdue(self, report: Request) -> None:
        stack = stack_of(self._thread_id(report["thread"]))
        # Threads take turns while the stack is formatted; it is that of the call if the call was
        # in progress before and after.
        if not self._server.is_in_call(report["thread"], report["call"]):
            stack = ""
        answered = "; the client was answered 504" if report["answered"] else ""
        self._log.record(
            "warning",
            f"request timeout: {describe(report)} has been in the application for "
            f"{report['waited']:.1f} s{answered}",
            stack or "(it ended before its stack could be taken: the GIL was held)",
            **_fields(report),
        )

    def report_stuck(self) -> None:
        """Log each request that still runs when the drain is cut off."""
        stuck = self._server.requests()
        stacks = [
            stack_of(self._thread_id(one["thread"])) if one["thread"] is not None else ""
            for one in stuck
        ]
        # A thread may have gone on with another request since.
        still = {(one["thread"], one["request_id"]) for one in self._server.requests()}
        for request, stack in zip(stuck, stacks, strict=True):
            is_its = (request["thread"], request["request_id"]) in still
            self._log.record(
                "error",
                f"cut off: {describe(request)}",
                stack if is_its else "",
                **_fields(request),
            )

    def dump(self, why: str) -> None:
        """Log every request in flight and every thread's stack."""
        requests = self._server.requests()
        self._log.warning(f"{why}: {len(requests)} requests in flight")
        for request in sorted(requests, key=lambda one: one["age"], reverse=True):
            self._log.record("warning", f"in flight: {describe(request)}", "", **_fields(request))
        dump_threads(self._log)

    def by_thread(self) -> dict[int, Request]:
        """Return the request that each thread works on, by the thread's id."""
        found: dict[int, Request] = {}
        for request in self._server.requests():
            if request["thread"] is not None and request["phase"] != "queue":
                # Those that run come first; the rest have only run there.
                found.setdefault(self._thread_id(request["thread"]), request)
        return found

    def _thread_id(self, number: int) -> int:
        return self._threads[number].ident or 0


def dump_threads_early(log: Log) -> None:
    """Log the stacks while the application is imported.

    Raises ImportError where the module that finds the sources is being imported just now.
    """
    import traceback  # noqa: F401

    dump_threads(log)


def dump_threads(log: Log) -> None:
    """Log the stack of each thread that is inside code of the application, and name the others."""
    others = []
    for name, thread_id, stack in every_stack():
        if stack:
            log.record("warning", f"thread {name} ({thread_id})", stack)
        else:
            others.append(name)
    more = f" and {len(others) - _NAMES_MAX} more" if len(others) > _NAMES_MAX else ""
    log.warning(
        f"{len(others)} threads are in no code of the application: "
        f"{', '.join(others[:_NAMES_MAX])}{more}"
    )


def _fields(request: Request) -> dict[str, str | None]:
    """Return what tells the request from others, for a log in JSON."""
    return {
        "method": request["method"],
        "target": request["target"],
        "client": request["client"] or "unix:",
        "request_id": request["request_id"] or None,
    }


def describe(request: Request) -> str:
    """Return one request on one line, with nothing that a client sent unescaped."""
    thread = ""
    if request["thread"] is not None:
        # In the queue with a thread: parked before, and only that one may go on with it.
        role = "waits for thread" if request["phase"] == "queue" else "thread"
        thread = f", {role} serve-zig-{request['thread']}"
    client = escape(request["client"]) or "a unix socket"
    return (
        f'{escape(request["method"])} "{escape(request["target"])}" from {client} '
        f"({request['phase']} for {request['age']:.1f} s{thread}, request id "
        f"{escape(request['request_id'])})"
    )
