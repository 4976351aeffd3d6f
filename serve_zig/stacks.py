"""Where each thread is: its Python stack, as text for the log and as JSON for /threads.

Everything here needs the GIL, so it speaks of threads that have let it go.
"""

from __future__ import annotations

import sys

from serve_zig.application_traceback import application_frames, escape_controls, format_stack
from serve_zig.threads import is_daemon, name_of, threads_by_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping
    from typing import Any

    from serve_zig.application_traceback import StackEntry


def stack_of(thread_id: int) -> str:
    """Return the stack of one thread, without the server's own frames; empty if it has none."""
    frame = sys._current_frames().get(thread_id)
    return format_stack(frame) if frame is not None else ""


def every_stack() -> list[tuple[str, int, str]]:
    """Return name, id and stack of each thread; the stack of the server's own code is empty."""
    threads = threads_by_id()
    return sorted(
        (
            name_of(threads[thread_id]) if thread_id in threads else "(not of Python)",
            thread_id,
            format_stack(frame),
        )
        for thread_id, frame in sys._current_frames().items()
    )


def threads_as_json(requests: Callable[[], Mapping[int, Mapping[str, Any]]]) -> bytes:
    """Return what /threads answers; ``requests`` tells those in progress, by thread id."""
    # Imported here, because a start without an admin listener does not need it.
    import json

    threads = threads_by_id()
    before = requests()
    stacks = {
        thread_id: application_frames(frame) for thread_id, frame in sys._current_frames().items()
    }
    # A stack is a request's where its thread was in that before and after the stack was taken.
    after = requests()
    described = []
    for thread_id, stack in stacks.items():
        request = before.get(thread_id)
        later = after.get(thread_id)
        is_same = request is not None and later is not None and _id(request) == _id(later)
        # A thread in no code of the application only ran the request last: that is parked, or on
        # its way to the client.
        known = request if is_same and stack else None
        described.append(_describe(threads.get(thread_id), thread_id, stack, known))
    described.sort(key=lambda one: str(one["name"]))
    return json.dumps({"threads": described}).encode("utf-8") + b"\n"


def _id(request: Mapping[str, Any]) -> object:
    return request["request_id"]


def _describe(
    thread: threading.Thread | None,
    thread_id: int,
    stack: list[StackEntry],
    request: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "name": name_of(thread) if thread is not None else None,
        "id": thread_id,
        "daemon": is_daemon(thread) if thread is not None else None,
        "state": request["phase"] if request is not None else "idle",
        "request": request,
        "stack": [
            {
                "file": escape_controls(file),
                "line": line,
                "function": escape_controls(function),
                "code": escape_controls(code),
            }
            for file, line, function, code in stack
        ],
    }
